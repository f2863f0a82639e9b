"""The floors of the design: imports only go down, and what no file may do. Read from
the files, nothing is run. Each test lists every violation.
"""

import ast
import types

from import_graph import FILES, ROOT, imports, parsed, part_of

FLOORS = {
    "core": 0,
    "cells": 1,
    "engines": 1,
    "initializers": 1,
    "matrix": 1,
    "unrolling": 2,
    "sequences": 2,
    "truncation": 2,
    "version": 0,
    "extending": 3,
    "layers": 3,
    "modules": 3,
    "nnx": 3,
    "linen": 3,
    "diagnostics": 3,
    "online": 3,
    "explaining": 3,
    "interop": 3,
    "testing": 3,
    "training": 4,
    "decoding": 4,
    "distributed": 4,
    "tasks": 5,
    "cli": 6,
    "__main__": 6,
}
STRANGERS = {"torch", "keras", "tensorflow", "equinox", "haiku"}
# imported only inside the function that needs it
HELPED_BY_EXTRAS = {
    "matplotlib",
    "PIL",
    "sacrebleu",
    "sentencepiece",
    "babel",
    "onnx",
    "safetensors",
}


def named(path):
    return str(path.relative_to(ROOT))


def test_every_part_has_a_floor():
    assert {part_of(path) for path in FILES} - {""} <= FLOORS.keys()


def wrong_imports(path):
    """What a file imports from above it, in words."""
    part, file = part_of(path), named(path)
    for name in imports(path):
        words = name.split(".")
        if words[0] != "jaxrnn" or part == "":
            continue
        if len(words) < 2 or words[1] not in FLOORS:
            # ``import jaxrnn`` or ``from jaxrnn import LSTM``: the whole library, so
            # only what stands above it may
            if FLOORS[part] < 5:
                yield f"{file} imports {name}: import from the module itself"
            continue
        if FLOORS[words[1]] > FLOORS[part]:
            yield (
                f"{file} (floor {FLOORS[part]}) imports {name} (floor "
                f"{FLOORS[words[1]]})"
            )
        if (part, words[1]) == ("cells", "engines"):
            yield f"{file} imports {name}: cells never import engines"


def test_imports_go_down():
    assert not [words for path in FILES for words in wrong_imports(path)]


def test_no_other_framework_is_imported():
    assert not [
        f"{named(path)} imports {name}"
        for path in FILES
        for name in imports(path)
        if name.split(".")[0] in STRANGERS
    ]


def imported_at_the_top(path):
    for node in parsed(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_extras_are_imported_where_they_are_used():
    """matplotlib and its like are extras: importing jaxrnn must work without them."""
    assert not [
        f"{named(path)} imports {name} at its top"
        for path in FILES
        for name in imported_at_the_top(path)
        if name.split(".")[0] in HELPED_BY_EXTRAS
    ]


def test_only_the_command_line_sets_jaxs_configuration():
    assert not [
        f"{named(path)}, line {node.lineno}"
        for path in FILES
        if part_of(path) not in ("cli", "__main__")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("config.update")
    ]


def hands_a_name_on(node):
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    constant = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
        "__version__",
        "__all__",
    )
    return docstring or constant or isinstance(node, (ast.Import, ast.ImportFrom))


def test_init_files_only_hand_names_on():
    assert not [
        f"{named(path)}, line {node.lineno}"
        for path in FILES
        if path.name == "__init__.py"
        for node in parsed(path).body
        if not hands_a_name_on(node)
    ]


def test_public_names_are_few():
    """About 60 at most, apart from the modules that something has imported by now:
    docs/reference/names.md holds them all.
    """
    import jaxrnn

    public = [
        name
        for name, value in vars(jaxrnn).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert len(public) <= 62, len(public)


def test_bad_input_is_never_met_by_assert():
    assert not [
        f"{named(path)}, line {node.lineno}"
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Assert)
    ]


def test_attributes_are_asked_for_by_name_in_few_places():
    """What engines, layers and cells can do is declared. `core.foreign` asks the
    objects of other libraries, and `core.records` reads the fields of dataclasses.
    """
    found = {"hasattr": [], "getattr": []}
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Name) and node.id in found:
                found[node.id].append(f"{named(path)}:{node.lineno}")
    assert len(found["hasattr"]) <= 10, found["hasattr"]
    assert len(found["getattr"]) <= 10, found["getattr"]
