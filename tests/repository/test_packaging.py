"""What the package says of itself: pyproject.toml against code and documents."""

import ast
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEPENDENCIES = {
    each.name: each.specifier for each in map(Requirement, PROJECT["dependencies"])
}


def of_extra(name):
    """The requirements of an extra, with those of extras that it names."""
    for each in map(Requirement, EXTRAS[name]):
        if each.name == "jaxrnn":
            for inner in sorted(each.extras):
                yield from of_extra(inner)
        else:
            yield each


def test_the_page_on_installing_lists_every_extra():
    page = (ROOT / "docs" / "start" / "install.md").read_text("utf-8")
    table = page.partition("| extra |")[2].partition("\n\n")[0]
    cells = re.findall(r"(?m)^\| (`.*?) \|", table)
    listed = [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]
    assert sorted(listed) == sorted(EXTRAS)


def documents():
    yield from (ROOT / "docs").rglob("*.md")
    yield from (ROOT / "jaxrnn").rglob("*.py")
    yield ROOT / "README.md"


def test_extras_that_texts_name_exist():
    """In ``pip install '.[cli]'`` and ``pip install 'jaxrnn[cli]'``."""
    named = {
        name
        for path in documents()
        for group in re.findall(
            r"""['"](?:\.|jaxrnn)\[([a-z0-9,]+)\]['"]""", path.read_text("utf-8")
        )
        for name in group.split(",")
    }
    assert {"cli", "cuda13", "onnx"} <= named
    assert named <= EXTRAS.keys()


def test_all_is_what_users_want_on_a_cpu():
    assert {each.name for each in of_extra("all")} == {
        each.name
        for name in ("cli", "data", "log", "onnx", "safetensors")
        for each in of_extra(name)
    }


def test_the_extra_for_logs_is_what_the_sinks_import():
    tree = ast.parse((ROOT / "jaxrnn" / "training" / "sinks.py").read_text("utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module]
            if isinstance(node, ast.ImportFrom) and not node.level
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    standard = {"__future__", "contextlib", "csv", "collections", "typing"}
    assert {each.name for each in of_extra("log")} == imported - standard


@pytest.mark.parametrize("name", ["cuda12", "cuda13", "tpu"])
def test_an_accelerator_is_an_extra_of_jax(name):
    (each,) = of_extra(name)
    assert (each.name, each.extras) == ("jax", {name})


def test_releases_that_do_not_fit_are_excluded():
    # jax pins jaxlib: jaxlib 0.11.1 goes with jax 0.11.1 only.
    assert "jaxlib" not in DEPENDENCIES
    for version, fits in {"0.9.2": 0, "0.10.2": 1, "0.11.1": 0, "0.12.0.1": 1}.items():
        assert DEPENDENCIES["jax"].contains(version) == fits
    # orbax-checkpoint 1.0 gives its names to another interface.
    assert DEPENDENCIES["orbax-checkpoint"].contains("0.12.8")
    assert not DEPENDENCIES["orbax-checkpoint"].contains("1.0.0")


def test_classifiers_are_right():
    listed = PROJECT["classifiers"]
    assert "Typing :: Typed" in listed
    assert (ROOT / "jaxrnn" / "py.typed").exists()
    versions = [
        int(name.rpartition(".")[2])
        for name in listed
        if name.startswith("Programming Language :: Python :: 3.")
    ]
    oldest = int(PROJECT["requires-python"].rpartition(".")[2])
    assert versions == list(range(oldest, max(versions) + 1))
    # The licence is an SPDX expression; a classifier beside it is refused.
    assert PROJECT["license"] == "Apache-2.0"
    assert not [name for name in listed if name.startswith("License ::")]
