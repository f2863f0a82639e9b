"""Which file of the library imports which, read from the files: nothing is run.

Used by tests/repository/test_imports.py, for which imports only go down, and by
tests/quick_select.py, for which a change reaches what imports the file.
"""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[2] / "jaxrnn"
FILES = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


def part_of(path):
    """The part of the library that a file belongs to; "" for jaxrnn/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports(path):
    """Absolute names of every module that a file imports from, wherever in the file."""
    package = ("jaxrnn", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = (*base, *(node.module.split(".") if node.module else ()))
            # ``from . import x`` may name a module: the floor is then that of x
            yield from (".".join((*base, alias.name)) for alias in node.names)


def module_of(path):
    """``jaxrnn.cells.lstm`` of jaxrnn/cells/lstm.py."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def importers():
    """For every module, those that import from it directly; ``jaxrnn/__init__.py``,
    which imports all there is, is left out.
    """
    known = {module_of(path) for path in FILES}
    found = {name: set() for name in known}
    for path in FILES:
        if part_of(path) == "":
            continue
        for name in imports(path):
            while name not in known and "." in name:
                name = name.rpartition(".")[0]
            if name in known and name != "jaxrnn":
                found[name].add(module_of(path))
    return found


def reached_from(modules):
    """The parts of the library that a change of these modules can reach, each with
    how many imports away it is: 0 for the part of a changed module itself.
    """
    graph, distances, now = importers(), {}, set(modules) & importers().keys()
    seen, steps = set(now), 0
    while now:
        for name in now:
            if "." in name:
                distances.setdefault(name.split(".")[1], steps)
        now = set().union(*(graph[name] for name in now)) - seen
        seen, steps = seen | now, steps + 1
    return distances
