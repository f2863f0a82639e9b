"""``make quick``: the tests near to what has changed since the last commit, in less
than a minute on two cores.

Near are the test files of a changed file's own part of the library, then those of the
parts that import from it, nearest first; with nothing changed, `ALWAYS`. They are taken
in this order until their cost reaches `BUDGET`, each function with few rows (see
`tiers.few_rows`). What is left out is printed. ``python tests/quick_select.py --list``
prints the choice and runs nothing; other words go to pytest.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS / "helpers"))

from import_graph import module_of, reached_from  # noqa: E402

BUDGET = 50  # CPU seconds of tests, by `COSTS`
SECONDS = 50  # after which no more tests begin, however fast the machine

# Where a part of the library is tested, if not in the folder of its name
PLACES = {
    "initializers": ["core/test_initializers.py"],
    "unrolling": ["laws"],
    "truncation": ["laws/test_laws_tbptt.py", "truncation"],
    "layers": ["layers", "laws/test_laws_noise.py"],
    "cells": ["cells/test_cells.py", "laws/test_laws_forward.py", "cells"],
    "cli": ["tasks/test_cli.py", "tasks/test_gradients_command.py"],
    "__main__": ["tasks/test_cli.py"],
}
# With nothing changed, or where there is room
ALWAYS = [
    "repository/test_imports.py",
    "repository/test_tiers.py",
    "laws/test_laws_forward.py",
    "laws/test_laws_masks.py",
    "engines/test_engines.py",
    "laws/test_laws_gradients.py",
    "core/test_bad_input.py",
    "interop/test_golden.py",
]
# CPU seconds of a file's few rows, where they are not `USUAL`
USUAL = 10
COSTS = {
    "benchmarks/test_accelerator_benchmark.py": 5,
    "benchmarks/test_benchmarks.py": 4,
    "cells/test_cells.py": 17,
    "cells/test_masked_steps.py": 11,
    "cells/test_mlstm_chunks.py": 7,
    "cells/test_modern_cells.py": 18,
    "core/test_bad_input.py": 2,
    "core/test_empty.py": 4,
    "core/test_export.py": 5,
    "core/test_pickling.py": 4,
    "core/test_words.py": 4,
    "decoding/test_beam.py": 20,
    "decoding/test_generation.py": 3,
    "diagnostics/test_diagnostics.py": 38,
    "diagnostics/test_diagnostics_marks.py": 24,
    "engines/test_checkify.py": 8,
    "engines/test_cudnn.py": 13,
    "engines/test_data_parallel.py": 3,
    "engines/test_engines.py": 42,
    "engines/test_fused.py": 27,
    "engines/test_fused_cells.py": 7,
    "engines/test_fused_gpu.py": 20,
    "engines/test_fuzz.py": 0,
    "engines/test_linear.py": 19,
    "engines/test_plans.py": 14,
    "engines/test_sums.py": 7,
    "explaining/test_explain.py": 36,
    "frozen/test_frozen.py": 9,
    "interop/test_interop.py": 15,
    "interop/test_interop_edges.py": 18,
    "interop/test_interop_flax.py": 5,
    "interop/test_interop_keras.py": 6,
    "laws/test_laws_forward.py": 40,
    "laws/test_laws_gradients.py": 8,
    "laws/test_laws_masks.py": 8,
    "laws/test_laws_noise.py": 11,
    "laws/test_laws_tbptt.py": 34,
    "layers/test_own_layers.py": 29,
    "nnx/test_nnx_cells.py": 5,
    "nnx/test_nnx_flax.py": 14,
    "repository/test_doctests.py": 5,
    "repository/test_documentation.py": 25,
    "repository/test_imports.py": 1,
    "repository/test_mended.py": 13,
    "repository/test_readme.py": 16,
    "repository/test_tiers.py": 1,
    "repository/test_tracing.py": 4,
    "tasks/test_buckets.py": 0,
    "tasks/test_captioning.py": 18,
    "tasks/test_cli.py": 14,
    "tasks/test_sentiment.py": 14,
    "tasks/test_series.py": 25,
    "tasks/test_series_files.py": 0,
    "tasks/test_synthetic.py": 24,
    "tasks/test_synthetic_runs.py": 20,
    "tasks/test_tables.py": 0,
    "tasks/test_tagging.py": 7,
    "tasks/test_tasks.py": 17,
    "tasks/test_translation.py": 12,
    "test_structure.py": 0,
    "training/test_batches.py": 7,
    "training/test_best.py": 3,
    "training/test_devices.py": 2,
    "training/test_full_disk.py": 4,
    "training/test_orbax.py": 2,
    "truncation/test_truncation.py": 15,
}


def changed_files():
    """Those that differ from the last commit, and those that git does not know."""
    words = (
        ["diff", "--name-only", "--relative", "HEAD"],
        ["ls-files", "--others", "--exclude-standard"],
    )
    found = [
        subprocess.run(
            ["git", *w], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for w in words
    ]
    return sorted(path for done in found for path in done.stdout.splitlines())


def test_files(place):
    """The test files of a folder, or a file, named from tests/."""
    path = TESTS / place
    files = [path] if path.suffix else sorted(path.glob("test_*.py"))
    return [file.relative_to(TESTS).as_posix() for file in files if file.exists()]


def near(paths):
    """Test files, the nearest to the changed paths first."""
    modules, files, shared = set(), [], []
    for path in map(Path, paths):
        head, *rest = path.parts
        if head == "jaxrnn" and path.suffix == ".py" and (ROOT / path).exists():
            modules.add(module_of(ROOT / path))
        elif head == "tests" and path.name.startswith("test_"):
            files += test_files(Path(*rest))
        elif head == "tests" and len(rest) > 1 and rest[0] == "fuzz":
            files += ["engines/test_fuzz.py"]
        elif head == "tests":
            shared = ALWAYS
        elif head == "benchmarks":
            files += test_files("benchmarks")
        elif path.suffix == ".md":
            files += ["repository/test_readme.py"]
            files += ["repository/test_documentation.py"]
    # of a part, first the files that are called as a changed module is
    words = {word for name in modules for word in name.rpartition(".")[2].split("_")}
    reached = reached_from(modules)
    for part in sorted(reached, key=reached.get):
        for place in PLACES.get(part, [part]):
            there = test_files(place)
            named = [f for f in there if words & set(Path(f).stem.split("_"))]
            files += named + there
    files += shared
    return list(dict.fromkeys([*ALWAYS[:2], *files] if files else ALWAYS))


def chosen(files):
    """As many of the files as `BUDGET` allows, in their order, and the others."""
    taken, left, spent = [], [], 0
    for file in files:
        cost = COSTS.get(file, USUAL)
        if spent + cost <= BUDGET or not taken:
            taken, spent = [*taken, file], spent + cost
        else:
            left.append(file)
    return taken, left


def main(arguments):
    changes = changed_files()
    taken, left = chosen(near(changes))
    print(f"{len(changes)} files changed since the last commit; their tests:")
    print(*(f"  {file}" for file in taken), sep="\n")
    if left:
        print("left out for want of time (make test runs them):")
        print(*(f"  {file}" for file in left), sep="\n")
    if "--list" in arguments:
        return 0
    words = ["-q", "-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder"]
    environment = os.environ | {
        "JAXRNN_TIER": "quick",
        "JAXRNN_QUICK_UNTIL": str(time.time() + SECONDS),
    }
    paths = [str(TESTS / file) for file in taken]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words, *arguments, *paths],
        cwd=ROOT,
        env=environment,
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
