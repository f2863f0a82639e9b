"""The table of tests/tiers.py names what there is: a renamed test would otherwise go
on as one that the table does not know.
"""

import ast
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import tiers
from planted_faults_table import FAULTS

import jaxrnn

PACKAGE = Path(jaxrnn.__file__).parent


def functions_in(file):
    tree = ast.parse((tiers.TESTS / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_functions_of_the_table_exist():
    assert not [
        f"{file}::{function}"
        for file, rules in tiers.TABLE.items()
        for function in sorted(rules.keys() - functions_in(file) - {"*"})
    ]


def test_no_two_files_have_one_name():
    """pytest imports them by it, and collects nothing where two are alike."""
    names = [path.name for path in tiers.TESTS.rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}


def test_every_planted_fault_has_its_line():
    """Who changes a line that stands in that table changes the table with it."""
    for fault in FAULTS:
        text = (PACKAGE / fault.file).read_text(encoding="utf-8")
        assert fault.planted(text) != text


def test_every_pattern_of_the_table_has_a_row():
    """Of the files that this run collects; the name of the subjects' parameter is
    `name`.
    """
    assert not tiers.UNMATCHED


def test_no_law_has_lost_a_case():
    """Law by cell by engine; ``python tests/helpers/cases.py`` counts anew, where rows
    were taken away on purpose.
    """
    assert not cases.lost()


def test_subjects_of_the_table_exist():
    from subjects import SUBJECTS

    wanted = tiers.WIDE | tiers.NARROW | tiers.ONE | tiers.SUBJECTS_OF_QUICK
    assert wanted <= SUBJECTS.keys()


@pytest.mark.slow
def test_the_tests_of_a_file_share_a_process(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name in "abcd":
        tests = "".join(f"def test_{i}(): pass\n" for i in range(4))
        (tmp_path / f"test_{name}.py").write_text(tests)
    (tmp_path / "conftest.py").write_text(
        f"import os, sys\n"
        f"sys.path.append({str(tiers.TESTS / 'helpers')!r})\n"
        "from groups import ByGroup\n"
        "def pytest_xdist_make_scheduler(config, log):\n"
        "    return ByGroup(config, log)\n"
        "def pytest_runtest_call(item):\n"
        "    with open('ran', 'a') as file:\n"
        "        print(item.path.stem, os.environ['PYTEST_XDIST_WORKER'], file=file)\n"
    )
    words = ["-m", "pytest", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)
    ran = (tmp_path / "ran").read_text().splitlines()
    assert len(ran) == 16
    assert len(set(ran)) == 4
