"""The recipes of docs/frameworks.md for libraries that need not be installed: the code
of the page, for those that are.

The test of the pages runs its blocks for flax.
"""

import os
import pathlib
import re

import jax
import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "frameworks.md"
TEXT = PAGE.read_text(encoding="utf-8")
SHARED = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)


def recipe(title):
    """The block of a section that only some installations can run."""
    section = TEXT[TEXT.index(f"\n## {title}") :]
    return re.search(r"```py\n(.*?)```", section, re.DOTALL).group(1)


@pytest.fixture
def keras_on_jax(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "jax"))


@pytest.mark.parametrize(
    ("title", "package"),
    [("Haiku", "haiku"), ("Equinox", "equinox"), ("Keras 3", "keras")],
)
def test_a_recipe_trains_saves_and_is_unroll(
    title, package, tmp_path, monkeypatch, keras_on_jax
):
    module = pytest.importorskip(package)
    if package == "keras" and module.backend.backend() != "jax":
        pytest.skip(f"keras was imported on {module.backend.backend()} before")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "recipe"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in (SHARED, recipe(title)):
            exec(compile(block, f"{PAGE.name}: {title}", "exec"), names)
    assert names["second"] < names["first"]
    np.testing.assert_allclose(names["ys"], names["expected"], rtol=0, atol=1e-6)
    assert not np.asarray(names["ys"])[2, 2:].any()


def test_every_block_is_run_by_one_test_or_another():
    assert len(re.findall(r"```py\n", TEXT)) == 3
    assert len(re.findall(r"```python\n", TEXT)) == 5
