"""The measures of the source, on a library of three files whose measures are known."""

import json
import shutil

import pytest

from benchmarks import structure

FILES = {
    "__init__.py": '"""A library."""\n\nfrom .low.a import add as add\n',
    "low/__init__.py": "",
    "low/a.py": '''"""Adds."""

from typing import Any

from ..high import b

Params = Any


def add(x: Any, y: Params, z: int = 0, *, key=None) -> int:
    """The sum.

    Args:
        x: one.
        y: the other.

    >>> add(1, 2)
    3
    """
    # two of them
    return x + y if hasattr(x, "real") else getattr(b, "times")  # noqa: B009


def _hidden(x: Any) -> None:
    pass
''',
    "high/__init__.py": "",
    "high/b.py": "def times(x: int):\n    from ..low import a\n\n    return a\n",
}


@pytest.fixture
def found(tmp_path):
    if shutil.which("ruff") is None:
        pytest.importorskip("ruff")
    for name, text in FILES.items():
        path = tmp_path / "jaxrnn" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    words = ["--root", str(tmp_path), "--json", str(tmp_path / "s.json")]
    assert structure.main(words) == 0
    return json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))


def test_measures_of_a_small_library(found):
    assert found["sizes"]["files"] == 5
    lengths = found["functions_at_88_columns"]["with_docstrings"]
    assert lengths == {"count": 3, "median": 4, "percentile_90": 12, "maximum": 12}
    assert found["comments"]["count"] == 1
    questions = found["hasattr_getattr"]
    assert questions["by_file"] == {"jaxrnn/low/a.py": {"hasattr": 1, "getattr": 1}}
    types = found["any_in_public_parameters"]
    assert (types["annotated_parameters"], types["any"], types["by_alias"]) == (4, 1, 1)
    shares = {"names": 2, "docstring": 0.5, "Args": 0.5, "Returns": 0, "Raises": 0}
    assert found["docstrings_of_public_names"] == {**shares, "example": 0.5}
    assert found["exported_names"]["names"] == ["add"]


def test_imports_and_circles_of_a_small_library(found):
    imports = found["imports"]
    assert imports["circles_of_folders"] == [["high", "low"]]
    assert imports["circles_of_modules"] == [["jaxrnn.high.b", "jaxrnn.low.a"]]
    assert imports["folders"]["low"]["imports_from"] == {"high": 1}
    assert imports["edges"] == 2
