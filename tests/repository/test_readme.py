"""The README is short, its code runs, and what it links to exists. The pages of docs/
run in their order, and the page of names knows every public name.
"""

import contextlib
import io
import json
import pathlib
import re

import jax
import pytest

import jaxrnn
from jaxrnn import initializers, tasks, training

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMES = (ROOT / "docs" / "reference" / "names.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def test_the_readme_is_short():
    assert len(README.encode()) <= 8000


def test_no_line_of_code_is_cut_off():
    """A page shows about 92 columns of a block of code."""
    for block in re.findall(r"```\w*\n(.*?)```", README, re.DOTALL):
        assert not [line for line in block.splitlines() if len(line) > 92]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not [link for link in LINK.findall(text) if not (ROOT / link).exists()]


def test_the_code_prints_what_is_shown():
    code, shown = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL
    ).groups()
    printed = io.StringIO()
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        contextlib.redirect_stdout(printed),
    ):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == shown
    assert README.count("```python") == 1


def test_the_table_of_speed_is_what_was_measured():
    results = ROOT / "benchmarks" / "results" / "throughput_cpu_jax0.12.0.1.json"
    measured = {}
    for row in json.loads(results.read_text())["rows"]:
        size = row["shape"]
        place = (row["cell"], size["B"], size["T"], size["H"], row["mode"])
        measured[(*place, row["entry"])] = f"{row['ms']['median']:.1f}"
    table = re.findall(
        r"^\| (\w+) \((\d+), ([\d,]+), (\d+)\)(, forward)? \|(.*)\|$", README, re.M
    )
    assert len(table) >= 6
    for cell, *sizes, mode, cells in table:
        place = (cell, *map(int, sizes), "forward" if mode else "train")
        shown = [number.strip(" *") for number in cells.split("|")]
        libraries = ("jaxrnn", "flax", "haiku", "equinox", "torch")
        assert shown == [measured[(*place, library)] for library in libraries]
        bold = [n.strip(" *") for n in cells.split("|") if "**" in n]
        assert bold == [min(shown, key=float)]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(encoding="utf-8"), {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, page.name, "exec"), names)


def test_the_cell_of_ones_own_is_short():
    page = ROOT / "docs" / "explanation" / "what_a_cell_is.md"
    cell = re.search(
        r"@dataclasses.dataclass\(frozen=True\)\nclass Leaky.*?\n\n(?=leaky =)",
        page.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert cell is not None
    assert cell.group().count("\n") < 25


@pytest.mark.parametrize("module", [jaxrnn, initializers, tasks, training])
def test_every_public_name_is_on_the_page_of_names(module):
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
        name for name in names if f"`{name}" not in NAMES and f"{name}`" not in NAMES
    ]
    assert not missing
    assert len(names) < 60
