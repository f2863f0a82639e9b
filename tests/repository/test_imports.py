"""The floors of the design: imports only go down, and what no file may do. Read from
the files, nothing is run.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "jaxrnn"
FILES = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)
FLOORS = {
    "core": 0,
    "cells": 1,
    "engines": 1,
    "initializers": 1,
    "unrolling": 2,
    "truncation": 2,
    "version": 0,
    "extending": 3,
    "layers": 3,
    "nnx": 3,
    "diagnostics": 3,
    "explaining": 3,
    "interop": 3,
    "training": 4,
    "decoding": 4,
    "tasks": 5,
    "cli": 6,
    "__main__": 6,
}
STRANGERS = {"torch", "keras", "tensorflow", "equinox", "haiku"}
HELPED_BY_EXTRAS = {
    "matplotlib",
    "PIL",
    "sacrebleu",
    "sentencepiece",
    "babel",
    "onnx",
    "safetensors",
}  # imported only inside the function that needs it
names = [str(path.relative_to(ROOT)) for path in FILES]


def part_of(path):
    """The part of the library that a file belongs to; "" for jaxrnn/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports(path):
    """Absolute names of every module that a file imports from, wherever in the file."""
    package = ("jaxrnn", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = (*base, *(node.module.split(".") if node.module else ()))
            # ``from . import x`` may name a module: the floor is then that of x
            yield from (".".join((*base, alias.name)) for alias in node.names)


def test_every_part_has_a_floor():
    assert {part_of(path) for path in FILES} - {""} <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=names)
def test_imports_go_down(path):
    part = part_of(path)
    for name in imports(path):
        words = name.split(".")
        if words[0] != "jaxrnn" or part == "":
            continue
        if len(words) < 2 or words[1] not in FLOORS:
            # ``import jaxrnn`` or ``from jaxrnn import LSTM``: the whole library, so
            # only what stands above it may
            assert FLOORS[part] >= 5, (
                f"{path.name} imports {name}: import from the module itself"
            )
            continue
        assert FLOORS[words[1]] <= FLOORS[part], (
            f"{path.name} (floor {FLOORS[part]}) imports {name} (floor "
            f"{FLOORS[words[1]]})"
        )
        assert (part, words[1]) != ("cells", "engines"), (
            f"{path.name} imports {name}: cells never import engines"
        )


@pytest.mark.parametrize("path", FILES, ids=names)
def test_no_other_framework_is_imported(path):
    assert not {name.split(".")[0] for name in imports(path)} & STRANGERS


@pytest.mark.parametrize("path", FILES, ids=names)
def test_extras_are_imported_where_they_are_used(path):
    """matplotlib and its like are extras: importing jaxrnn must work without them."""
    top = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    modules = {
        alias.name
        for node in top
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    modules |= {
        node.module
        for node in top
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    assert not {module.split(".")[0] for module in modules} & HELPED_BY_EXTRAS


@pytest.mark.parametrize("path", FILES, ids=names)
def test_only_the_command_line_sets_jaxs_configuration(path):
    if part_of(path) in ("cli", "__main__"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert not ast.unparse(node.func).endswith("config.update"), (
                f"{path.name}, line {node.lineno}"
            )


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.name == "__init__.py"],
    ids=lambda path: path.parent.name,
)
def test_init_files_only_hand_names_on(path):
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        constant = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
            "__version__",
            "__all__",
        )
        assert (
            docstring or constant or isinstance(node, (ast.Import, ast.ImportFrom))
        ), f"line {node.lineno}"


def test_public_names_are_few():
    """About 60 at most: the README's reference table holds them all."""
    import jaxrnn

    public = [name for name in vars(jaxrnn) if not name.startswith("_")]
    assert len(public) <= 75


@pytest.mark.parametrize("path", FILES, ids=names)
def test_bad_input_is_never_met_by_assert(path):
    assert not [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
