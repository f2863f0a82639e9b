"""The pages of the site print what they say, and the site builds without a warning."""

import contextlib
import importlib.util
import io
import math
import pathlib
import re
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in sorted(DOCS.glob("*/*.md"))
    if page.parent.name != "reference" and not page.parent.name.startswith("_")
]
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def agrees(said, shown):
    """Whether two words are equal, or numbers that differ by rounding only."""
    try:
        return math.isclose(float(said), float(shown), rel_tol=0.05, abs_tol=0.02)
    except ValueError:
        return said == shown


def same(printed, shown):
    """Whether a text is what the page shows, apart from rounding."""
    said, expected = printed.split(), shown.split()
    return len(said) == len(expected) and all(map(agrees, said, expected))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for code, shown in BLOCK.findall(page.read_text(encoding="utf-8")):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, page.name, "exec"), names)
            if shown:
                assert same(printed.getvalue(), shown), printed.getvalue()


def test_other_words_and_other_numbers_are_seen():
    assert same("loss 1.402", "loss 1.4")
    assert not same("loss 1.6", "loss 1.4")
    assert not same("ten 1.4", "loss 1.4")
    assert not same("loss", "loss 1.4")


def test_every_page_is_in_the_tree():
    tree = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    pages = [
        page.relative_to(DOCS).with_suffix("").as_posix()
        for page in [*DOCS.glob("*.md"), *DOCS.glob("[!_]*/*.md")]
    ]
    assert len(pages) > 30
    assert not [page for page in pages if page != "index" and page not in tree]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None
    or importlib.util.find_spec("furo") is None,
    reason="the tools of the site are not installed: pip install '.[docs]'",
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    built = subprocess.run(
        [*command, "-b", "html", "-d", tmp_path / "doctrees", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    site = tmp_path / "html"
    assert "<math" in (site / "tutorials" / "hello.html").read_text(encoding="utf-8")
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert "--hidden" in pages[site / "reference" / "command_line.html"]
    assert "jaxrnn.LSTM" in pages[site / "reference" / "cells.html"]
    # Links lead somewhere, and nothing is loaded from a network.
    for page, text in pages.items():
        assert not re.search(r"<(?:script|img|link rel=.stylesheet)[^>]*https?:", text)
        for target in re.findall(r'<a [^>]*href="([^"#:?]+)[#"]', text):
            assert (page.parent / target).resolve().exists(), (page.name, target)
