"""Every public name has an example, which test_doctests.py runs.

Public is what docs/reference/names.md lists, and what the other pages of that reference
show: what ``jaxrnn`` exports, and the packages that a directive ``room`` names. Nothing
is compiled here.
"""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import jaxrnn
from jaxrnn.diagnostics import plots

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

# Without an example, and why.
EXCEPTIONS: dict[str, str] = {}


def listed():
    """Yield the names in the first column of names.md with the module they are in.

    A code span that ends in a dot names the module of those behind it.
    """
    for line in (REFERENCE / "names.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("| `"):
            continue
        module = "jaxrnn"
        for span in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
            name = span.partition("(")[0]
            if name.endswith("."):
                module = "jaxrnn." + name.strip(".").removeprefix("jaxrnn").strip(".")
            else:
                yield module, name


def found(module, name):
    """Return what a listed name stands for; one with a dot may be a method."""
    if "." in name:
        owner, _, name = name.rpartition(".")
        owners = {"cell": jaxrnn.Cell}  # what the page calls an object of a class
        place = owners.get(owner) or importlib.import_module(owner)
    else:
        place = importlib.import_module(module)
    return getattr(place, name)


def is_own(value):
    """Whether a value is a class or function of this library."""
    module = inspect.getmodule(value)
    return (
        callable(value)
        and module is not None
        and module.__name__.startswith("jaxrnn.")
        and module.__name__ != "jaxrnn.core.dtypes"
    )


def rooms():
    """Yield the packages of the reference, and whether all their exports are shown."""
    for page in sorted(REFERENCE.glob("*.md")):
        lines = page.read_text(encoding="utf-8").splitlines()
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith(".. room:: "):
                for package in line.removeprefix(".. room:: ").split():
                    yield package, ":short:" not in after


def public():
    """Return all public classes and functions by their names."""
    values = {f"{module}.{name}": found(module, name) for module, name in listed()}
    for place in ["jaxrnn", *(package for package, whole in rooms() if whole)]:
        exports = vars(importlib.import_module(place))
        values |= {f"{place}.{name}": value for name, value in exports.items()}
    values |= {
        f"jaxrnn.diagnostics.plots.{name}": value
        for name, value in vars(plots).items()
        if inspect.getmodule(value) is plots
    }
    return {
        name: value
        for name, value in values.items()
        if is_own(value) and not name.rpartition(".")[2].startswith("_")
    }


PUBLIC = public()


def test_the_names_are_found():
    assert len(PUBLIC) > 250
    for name in ("jaxrnn.LSTMState", "jaxrnn.training.fit", "jaxrnn.extending.tap"):
        assert name in PUBLIC
    assert set(EXCEPTIONS) <= set(PUBLIC)


def test_every_public_name_has_an_example():
    """That of the class counts for its methods."""
    missing = [
        name
        for name, value in PUBLIC.items()
        if ">>> " not in (inspect.getdoc(value) or "")
        and ">>> " not in (inspect.getdoc(owner_of(value)) or "")
    ]
    assert sorted(missing) == sorted(EXCEPTIONS)


def owner_of(value):
    """Return the class that a method is defined in, or the value itself."""
    owner = value.__qualname__.rpartition(".")[0]
    return getattr(importlib.import_module(value.__module__), owner, value)


@pytest.mark.parametrize("section", ["Args", "Attributes", "Returns", "Raises"])
def test_sections_begin_on_a_line_of_their_own(section):
    """Otherwise several arguments run together in one paragraph."""
    wrong = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(jaxrnn.__file__).parent.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(rf"\s+{section}: \S", line)
    ]
    assert wrong == []
