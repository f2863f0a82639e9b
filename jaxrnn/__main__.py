"""``python -m jaxrnn``."""

from .cli import main

raise SystemExit(main())
