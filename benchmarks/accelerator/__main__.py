"""``python -m benchmarks.accelerator``: see `benchmarks.accelerator.run`."""

from .run import main

if __name__ == "__main__":
    main()
