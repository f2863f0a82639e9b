"""How many cases each law has: rows of test functions that are about a cell, a layer or
an engine, counted when they are collected and before any tier leaves some out.

    python tests/helpers/cases.py      # write tests/helpers/cases.json anew

``repository/test_tiers.py`` holds a run against that file. Rows come out of tables of
cells and engines, some of them by what those declare, so that a wrong declaration would
otherwise take rows away and nothing would fail.
"""

import json
import sys
from collections import Counter
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
ABOUT = {"name", "cell", "layer", "engine", "kind"}  # parameters
# rows of libraries and data that may not be installed
OTHERS = ("benchmarks/", "interop/", "tasks/test_synthetic_runs.py")
COUNTED: Counter[str] = Counter()


def count(groups):
    """Count the rows of functions, given by (file, function)."""
    COUNTED.clear()
    for (file, function), rows in groups.items():
        if file.startswith(OTHERS):
            continue
        number = sum(bool(ABOUT & params_of(row).keys()) for row in rows)
        if number > 1:
            COUNTED[f"{file}::{function}"] = number


def params_of(row):
    return row.callspec.params if hasattr(row, "callspec") else {}


def lost():
    """What has fewer cases than the file says, of the files that are collected."""
    files = {law.split("::")[0] for law in COUNTED}
    return {
        law: f"{COUNTED[law]} of {number}"
        for law, number in json.loads(FILE.read_text()).items()
        if law.split("::")[0] in files and COUNTED[law] < number
    }


def main():
    """Collect all tests, and write how many there are."""
    import pytest

    tests = Path(__file__).parents[1]
    words = ["--collect-only", "-qq", "-n", "0", "-p", "no:cacheprovider", str(tests)]
    status = pytest.main(words)
    if status != 0:
        sys.exit(int(status))
    counted = sys.modules["cases"].COUNTED
    FILE.write_text(json.dumps(dict(sorted(counted.items())), indent=0) + "\n")
    print(f"{sum(counted.values())} cases of {len(counted)} functions")


if __name__ == "__main__":
    main()
