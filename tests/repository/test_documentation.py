"""The pages of the site print what they say, and the site builds without a warning."""

import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"


def script(name):
    """Return a program of the site as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run_pages, check, screens = script("run_pages"), script("check"), script("screens")
needs_sphinx = pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None
    or importlib.util.find_spec("furo") is None,
    reason="the tools of the site are not installed: pip install '.[docs]'",
)


def build(folder):
    """Build the site strictly, and return its folder."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    built = subprocess.run(
        [*command, "-b", "html", "-d", folder / "doctrees", DOCS, folder / "html"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.mark.parametrize(
    "page", run_pages.PAGES, ids=[page.stem for page in run_pages.PAGES]
)
def test_a_page_prints_what_it_shows(page, tmp_path, plain_errors):
    # Without beartype, as readers run it: NumPy arrays are arrays for them.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for picture in run_pages.run(page, tmp_path):
            assert (page.parent / picture.name).exists(), "run_pages.py --pictures"


def test_what_pages_import_from_the_library_is_there():
    """Of the long pages as well, which the default tier does not run."""
    taken = re.compile(r"^ *from (jaxrnn[\w.]*) import (\(.*?\)|.*?)$", re.M | re.S)
    found = 0
    for page in sorted(DOCS.rglob("*.md")):
        for module, names in taken.findall(page.read_text("utf-8")):
            for name in re.findall(r"(\w+)(?: as \w+)?(?:,|\)|\n|$)", names):
                try:
                    there = hasattr(importlib.import_module(module), name)
                except ModuleNotFoundError:
                    there = False
                if not there:
                    importlib.import_module(f"{module}.{name}")
                found += 1
    assert found > 20


def test_other_words_and_other_numbers_are_seen():
    same = run_pages.same
    assert same("loss 1.402", "loss 1.4")
    assert not same("loss 1.6", "loss 1.4")
    assert not same("ten 1.4", "loss 1.4")
    assert not same("loss", "loss 1.4")


def test_a_page_that_shows_something_else_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(run_pages.Differs, match="but its code prints"):
        run_pages.run(page, tmp_path)
    page.write_text("```python\nopen('a.svg', 'w').close()\n```\n")
    with pytest.raises(run_pages.Differs, match="does not show it"):
        run_pages.run(page, tmp_path)


def test_mistakes_of_a_site_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="x"></p><p id="x"></p><a href="b.html#no">b</a><a href="c.html">c</a>'
        '<img src="https://away/p.png" alt="p"><img src="a.html">'
        '<link rel="stylesheet" href="//away/s.css"><svg role="img"></svg>'
        '<a href="https://away/">fine</a><a href="b.html#yes">fine</a>'
    )
    (tmp_path / "b.html").write_text('<p id="yes"></p>')
    assert list(check.check(tmp_path)) == [
        "a.html: <img> loads https://away/p.png from a network",
        "a.html: a picture has no alt: a.html",
        "a.html: <link> loads //away/s.css from a network",
        "a.html: a drawing has no aria-label",
        "a.html: the id x occurs twice",
        "a.html: b.html#no: there is no such anchor",
        "a.html: c.html does not exist",
    ]


def test_every_page_is_in_the_tree():
    tree = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    pages = [
        page.relative_to(DOCS).with_suffix("").as_posix()
        for page in [*DOCS.glob("*.md"), *DOCS.glob("[!_]*/*.md")]
    ]
    assert len(pages) > 30
    assert not [page for page in pages if page != "index" and page not in tree]


def named(name):
    """Return what a dotted name stands for."""
    parts = name.split(".")
    for count in reversed(range(1, len(parts) + 1)):
        module = ".".join(parts[:count])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def test_names_in_the_documents_exist():
    """All that begin with jaxrnn and a dot; the changelog names what was, too."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("**/*.md")]
    names, wrong = set(), []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w./-])jaxrnn(?:\.[A-Za-z_]\w*)+", text):
            names.add(name)
            try:
                named(name)
            except (AttributeError, ModuleNotFoundError):
                wrong.append(f"{page.name}: {name}")
    assert wrong == []
    assert len(names) > 60
    with pytest.raises(AttributeError):
        named("jaxrnn.training.no_such_name")


@pytest.mark.slow
@needs_sphinx
def test_the_site_builds_without_a_warning(tmp_path):
    site = build(tmp_path)
    assert "<math" in (site / "tutorials" / "hello.html").read_text(encoding="utf-8")
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert "--hidden" in pages[site / "reference" / "command_line.html"]
    assert "jaxrnn.LSTM" in pages[site / "reference" / "cells.html"]
    assert "Intel" in pages[site / "benchmarks" / "throughput.html"]
    assert "<svg" in pages[site / "tutorials" / "dates.html"]
    assert list(check.check(site)) == []


@pytest.mark.slow
@needs_sphinx
@pytest.mark.skipif(bool(screens.missing()), reason=screens.missing() or "unused")
def test_no_page_scrolls_sideways_in_a_browser(tmp_path):
    pages, wrong = screens.look(build(tmp_path), themes=("light",))
    assert pages > 50
    assert wrong == []
