"""Does the default tier notice a mistake? One-line faults are planted, one at a time,
in a copy of the repository, and the test files of the changed part run on it.

    python tests/planted_faults.py --list            # what there is
    python tests/planted_faults.py --only mask_is_ignored
    python tests/planted_faults.py                   # all: some minutes
    python tests/planted_faults.py --clean           # the same tests, without a fault

A fault is caught where a test fails. A run that cannot begin (an import that fails, no
test that is chosen) is an error of this table and counts as neither. The faults stand
in tests/planted_faults_table.py, and what came of them in docs/testing.md.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planted_faults_table import FAULTS

ROOT = Path(__file__).parents[1]
COPIED = ("jaxrnn", "tests", "docs", "README.md", "pyproject.toml")
WORDS = {0: "not caught", 1: "caught"}


def main():
    """Print a line for each fault; the status is 1 if the default tier misses one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="print the faults")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults")
    parser.add_argument("--clean", action="store_true", help="plant nothing")
    options = parser.parse_args()
    chosen = [f for f in FAULTS if options.only is None or f.name in options.only]
    if options.only and len(chosen) < len(set(options.only)):
        parser.error(f"unknown: {set(options.only) - {f.name for f in FAULTS}}")
    if options.list:
        for fault in chosen:
            print(f"{fault.name:32} {fault.file}  {fault.tests} {fault.rows}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder) / "copy")
        programs = Path(folder) / "programs"
        return max(shown(fault, copy, programs, options.clean) for fault in chosen)


def copied(target):
    """What the tests read, in a new folder."""
    target.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "_build")
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy(source, target / name)
    return target


def shown(fault, copy, programs, clean):
    """Run the tests of one fault, print what came of it, and return 1 for a miss."""
    began = cpu_seconds()
    file = copy / "jaxrnn" / fault.file
    text = file.read_text(encoding="utf-8")
    planted = text if clean else fault.planted(text)
    try:
        file.write_text(planted, encoding="utf-8")
        status, output = tested(fault, copy, programs)
    finally:
        file.write_text(text, encoding="utf-8")
    said = WORDS.get(status, f"error: pytest ended with {status}")
    first = next((line for line in output.splitlines() if line[:6] == "FAILED"), "")
    test = first.removeprefix("FAILED ").split(" - ")[0]
    cost = f"{cpu_seconds() - began:4.0f} s"
    print(f"{fault.name:32} {said:12} {cost}  {test}", flush=True)
    if status not in WORDS:
        print(output[-2000:], flush=True)
    return int(status != (0 if clean else 1))


def tested(fault, copy, programs):
    """pytest's status and words, in the copy. Programs that faults have in common are
    compiled once.
    """
    environment = os.environ | {
        "PYTHONPATH": str(copy),
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    words = ["-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--tb=no"]
    files = [f"tests/{name}" for name in fault.tests.split()]
    rows = ["-k", fault.rows] if fault.rows else []
    done = subprocess.run(
        [sys.executable, *words, *rows, *files],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout + done.stderr


def cpu_seconds():
    """Of the processes that this one has waited for."""
    now = os.times()
    return now.children_user + now.children_system


if __name__ == "__main__":
    began = time.monotonic()
    missed = main()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(missed)
