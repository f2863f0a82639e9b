"""The table of tests/tiers.py names what there is: a renamed test would otherwise go
on as one that the table does not know.
"""

import ast

import tiers


def functions_in(file):
    tree = ast.parse((tiers.TESTS / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_functions_of_the_table_exist():
    assert not [
        f"{file}::{function}"
        for file, rules in tiers.TABLE.items()
        for function in sorted(rules.keys() - functions_in(file) - {"*"})
    ]


def test_every_pattern_of_the_table_has_a_row():
    """Of the files that this run collects; the name of the subjects' parameter is
    `name`.
    """
    assert not tiers.UNMATCHED


def test_subjects_of_the_table_exist():
    from subjects import SUBJECTS

    wanted = tiers.WIDE | tiers.NARROW | tiers.ONE | tiers.SUBJECTS_OF_QUICK
    assert wanted <= SUBJECTS.keys()
