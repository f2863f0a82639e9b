"""The README's code runs, in its order, and its reference table knows every public
name.
"""

import pathlib
import re

import jax
import pytest

import jaxrnn
from jaxrnn import initializers, tasks, training

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 7
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), names)
    assert names["ys"].shape == (100, 8, 64)
    assert names["logits"].shape == (4, 9, 5)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(encoding="utf-8"), {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, page.name, "exec"), names)


def test_the_cell_of_ones_own_is_short():
    cell = re.search(
        r"@dataclasses.dataclass\(frozen=True\)\nclass Leaky.*?\n\n(?=leaky =)",
        README,
        re.DOTALL,
    )
    assert cell is not None
    assert cell.group().count("\n") < 25


@pytest.mark.parametrize("module", [jaxrnn, initializers, tasks, training])
def test_every_public_name_is_in_the_reference(module):
    reference = README[README.index("## Reference") : README.index("## What it is not")]
    if module is initializers:
        names = [
            n
            for n, v in vars(module).items()
            if isinstance(v, type) and v.__module__ == module.__name__
        ]
    else:
        modules = {
            "initializers",
            "charlm",
            "hello",
            "program",
            "options",
            "text",
            "language_model",
        }
        names = [
            n
            for n, v in vars(module).items()
            if not n.startswith("_") and not hasattr(v, "__path__")
        ]
        names = [
            n
            for n in names
            if n not in modules and type(getattr(module, n)).__name__ != "module"
        ]
    missing = [
        name
        for name in names
        if f"`{name}" not in reference and f"{name}`" not in reference
    ]
    assert not missing
    assert len(names) < 60
