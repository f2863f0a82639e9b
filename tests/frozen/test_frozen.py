"""The library against what it did before its redesign, kept in ``data/``.

A few of each kind run by default, the rest with ``-m slow``. What the library calls
things now stands in `names` alone.
"""

import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen import make_runs, make_schedules, names, old_tests, others, store, walks
from frozen.paths import DATA, ROOT

TOLERANCE = 1e-12
PRINTED = 2e-4  # numbers in texts have four decimals or come of float32
FEW = ("elman", "lstm all", "zoneout")
QUICK_CASES = make_schedules.QUICK[:2]
QUICK_RUNS = ("hello",)
VERSION_IS_KNOWN = make_schedules.file_for(jax.__version__).exists()
pytestmark = pytest.mark.usefixtures("optax_promotion")
needs_version = pytest.mark.skipif(
    not VERSION_IS_KNOWN, reason=f"nothing was frozen under jax {jax.__version__}"
)


def marked(all_of_them, quick):
    """Parameters for pytest, those not among the quick ones being slow."""
    slow = pytest.mark.slow
    return [pytest.param(n, marks=[] if n in quick else [slow]) for n in all_of_them]


def pairs(all_of_them, quick):
    """The same for tuples, quick where the words joined are."""
    slow = pytest.mark.slow
    return [
        pytest.param(*each, id="-".join(each), marks=[] if each in quick else [slow])
        for each in all_of_them
    ]


@functools.cache
def numbers():
    return store.load(DATA / "numbers.npz")


@functools.cache
def given(name):
    return walks.restored(name, numbers())


# --- numbers --------------------------------------------------------------------------


LAYERS = list(walks.layers())
OF_WALKS = [(name, walk) for name in LAYERS for walk in walks.walks_of(name)]
SUPPORTS = json.loads((DATA / "supports.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "walk"), pairs(OF_WALKS, [(name, "flags") for name in FEW])
)
def test_values_and_gradients(name, walk):
    found = walks.outcome(name, walk, given(name))
    expected = dict(walks.under(f"{name}/{walk}/", numbers()))
    assert walks.difference(found, present(expected)) <= TOLERANCE


def present(outcome):
    """Frozen results, gradients of parameters under the paths of today."""
    begin = "by params/"
    return {
        begin + names.path_of(n.removeprefix(begin)) if n.startswith(begin) else n: a
        for n, a in outcome.items()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("x64", "plain_errors")
@pytest.mark.parametrize("engine", walks.COMPARED)
@pytest.mark.parametrize("name", LAYERS)
def test_every_engine_gives_the_same_numbers(name, engine):
    if name not in SUPPORTS[engine]:
        with pytest.raises((TypeError, ValueError)):
            walks.outcome(name, "flags", given(name), engine)
        return
    found = walks.outcome(name, "flags", given(name), engine)
    expected = dict(walks.under(f"{name}/flags/", numbers()))
    assert walks.difference(found, present(expected)) <= TOLERANCE


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", marked(LAYERS, FEW[1:2]))
def test_first_parameters(name):
    found = walks.by_path(walks.initial(name))
    frozen = walks.under(f"{name}/init/", numbers())
    expected = {names.path_of(path): array for path, array in frozen}
    assert list(found) == list(expected)
    for path, array in expected.items():
        new = found[path]
        if name == "s5":  # LAPACK chooses the signs of the eigenvectors it begins with
            new, array = np.abs(new), np.abs(array)
        assert others.difference(new, array) <= TOLERANCE, path


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", marked(others.FUNCTIONS, ()))
def test_what_else_is_computed(name):
    found = others.FUNCTIONS[name]()
    expected = dict(walks.under(f"{name}/", numbers()))
    assert set(found) == set(expected)
    for part, array in expected.items():
        tolerance = TOLERANCE if array.dtype.itemsize >= 8 else 1e-6
        # Singular values of ten steps lose digits, as many as their ratio has.
        tolerance = 1e-10 if name == "spectra" else tolerance
        assert others.difference(found[part], array) <= tolerance, part


# --- schedules ------------------------------------------------------------------------


@functools.cache
def schedules():
    return make_schedules.read(jax.__version__)


def on_gpu_otherwise(engine):
    if engine == "cudnn" and jax.default_backend() == "gpu":
        pytest.skip("what it says was frozen where there is no GPU")


@needs_version
@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("case", marked(make_schedules.cases(), QUICK_CASES))
def test_what_explain_says(case):
    on_gpu_otherwise(case.split(" | ")[2])
    found = json.loads(json.dumps(make_schedules.explained(case)))
    expected = schedules()["cases"][case]
    # The printed table follows from the rows, and was kept for a few cases only.
    assert set(found) - {"printed"} == set(expected) - {"printed"}
    if "rows" in expected:
        assert [chosen(row) for row in found["rows"]] == [
            with_changes(chosen(row), now)
            for row, now in zip(expected["rows"], found["rows"], strict=True)
        ]


# What is chosen otherwise since then, on purpose: (platform, loop, steps) -> steps.
CHANGED = {
    # a gradient's rows of over 32 MiB are mapped anew by malloc at every call
    ("cpu", "loop", None): {75, 250, 800, 1000},
    # chunks of 64 steps have fewer launches than those of 32
    ("gpu", "chunks", 32): {64},
    ("tpu", "chunks", 32): {64},
}


def with_changes(frozen, found):
    """The frozen row, with the steps of today where `CHANGED` has them."""
    row = dict(frozen)
    for way in names.WAYS:
        was, now = frozen[way], found[way]["steps"]
        key = frozen["platform"], was["how"], was["steps"]
        if now in CHANGED.get(key, ()):
            row[way] = was | {"steps": now}
    return row


def chosen(row):
    """What a row of `jaxrnn.explain` says was chosen, without the words for it: those
    were rewritten.
    """
    ways = {
        way: {part: row[way][part] for part in names.WAY if part != "reason"}
        for way in names.WAYS
    }
    places = {part: row[part] for part in ("number", "place", "platform")}
    engine = names.as_it_was(row["engine"])
    return ways | places | {"engine": engine, "error": row["error"] is None}


@needs_version
@pytest.mark.slow
@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("engine", names.ENGINES)
def test_what_engines_refuse(engine):
    on_gpu_otherwise(engine)
    found = {
        cell: make_schedules.refusal(engine, cell) for cell in make_schedules.CELLS
    }
    expected = schedules()["refusals"].get(engine, {})
    kinds = {cell: text.partition(":")[0] for cell, text in expected.items()}
    assert {c: t.partition(":")[0] for c, t in found.items() if t} == kinds


@needs_version
@pytest.mark.slow
@pytest.mark.usefixtures("plain_errors")
def test_which_flags_are_refused():
    found, expected = make_schedules.refused_flags(), schedules()["refused_flags"]
    assert {k: v and v.partition(":")[0] for k, v in found.items()} == {
        k: v and v.partition(":")[0] for k, v in expected.items()
    }


# --- programs and files ---------------------------------------------------------------


RUNS = make_runs.RUNS
ASKED = json.loads((RUNS / "printed.json").read_text(encoding="utf-8"))


def assert_same_text(found, expected):
    """Equal words, and numbers that are equal as far as float32 goes."""
    number = r"-?\d+\.\d+(?:e[+-]?\d+)?"
    assert re.sub(number, "#", found) == re.sub(number, "#", expected)
    pair = (np.array(re.findall(number, text), float) for text in (found, expected))
    np.testing.assert_allclose(*pair, rtol=PRINTED, atol=PRINTED)


@pytest.mark.parametrize("task", marked(make_runs.TRAINED, QUICK_RUNS))
def test_a_run_prints_the_same(task, monkeypatch):
    monkeypatch.chdir(ROOT)
    place = (RUNS / task).relative_to(ROOT).as_posix()
    rows = [row for row in ASKED if row["task"] == task]
    assert rows
    for row in rows:
        told = names.command(make_runs.asked(task, row["words"], place))
        assert_same_text(told, row["printed"])


@pytest.mark.slow
def test_a_run_that_was_begun_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shutil.copytree(RUNS / "begun", tmp_path / "run")
    jax.devices()  # or the command would show this process every core as a device
    names.command(["train", "charlm", "--out", str(tmp_path / "run"), "--resume"])
    found = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    expected = (RUNS / "charlm" / "metrics.jsonl").read_text(encoding="utf-8")
    assert_same_text(names.metrics_as_they_were(found), expected)


@pytest.mark.parametrize("name", make_runs.SAVED)
def test_saved_states_are_read(name, tmp_path):
    template = dict(zip(("params", "carry"), make_runs.saved(name), strict=True))
    kept = store.load(RUNS / "saved.npz")
    shutil.copytree(RUNS / "saved" / name, tmp_path / "saved")
    shutil.copytree(RUNS / "orbax" / name, tmp_path / "orbax")
    step, state, words = names.restore_checkpoint(tmp_path / "saved", template)
    assert (step, words) == (3, "kept beside it")
    for found in (state, names.restore_orbax(tmp_path / "orbax", template)):
        assert jax.tree.structure(found) == jax.tree.structure(template)
        for path, array in walks.under(f"{name}/params/", kept):
            now = names.path_of(path)
            np.testing.assert_array_equal(walks.by_path(found["params"])[now], array)
        carry = walks.numbered(f"{name}/carry", found["carry"])
        for place, array in carry.items():
            np.testing.assert_array_equal(array, kept[place])


@pytest.mark.parametrize("name", make_runs.SAVED)
def test_weights_for_torch_are_read(name):
    pytest.importorskip("safetensors")
    path = RUNS / f"{name}.safetensors"
    layer, params = names.read_torch(path, make_runs.TORCH[name])
    assert layer == walks.layers()[name]
    found = walks.by_path(params)
    for place, array in walks.under(f"{name}/params/", store.load(RUNS / "saved.npz")):
        np.testing.assert_array_equal(found[names.path_of(place)], array)


@pytest.mark.parametrize("name", make_runs.SAVED)
def test_weights_for_torch_are_written_the_same(name, tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    layer, params = walks.layers()[name], make_runs.saved(name)[0]
    kept = store.load(RUNS / "saved.npz")
    leaves = [kept[f"{name}/params/{path}"] for path in walks.paths(params)]
    params = jax.tree.unflatten(jax.tree.structure(params), map(jnp.asarray, leaves))
    names.write_torch(layer, params, tmp_path / "new", prefix=make_runs.TORCH[name])
    found, expected = map(
        package.load_file, (tmp_path / "new", RUNS / f"{name}.safetensors")
    )
    assert list(found) == list(expected)
    for place, array in expected.items():
        np.testing.assert_array_equal(found[place], array)


# --- lists ----------------------------------------------------------------------------


def test_the_table_of_errors_is_readable():
    table = json.loads((DATA / "errors.json").read_text(encoding="utf-8"))
    counts = {name: len(rows) for name, rows in table.items()}
    assert counts == {"raises": 473, "made": 6, "sentences": 326}
    assert all({"file", "line", "in", "words"} <= set(row) for row in table["raises"])


def test_the_lists_of_tests_are_readable():
    ids = (DATA / "test_ids.txt").read_text(encoding="utf-8").splitlines()
    functions = (DATA / "test_functions.txt").read_text(encoding="utf-8").splitlines()
    assert (len(ids), len(functions)) == (4506, 835)
    assert {each.partition("[")[0] for each in ids} <= set(functions)


def test_every_old_test_is_somewhere_today():
    """`old_tests.BY_HAND` says where each is that was renamed."""
    before = old_tests.functions_before()
    assert not [each for each in before if old_tests.today(each) is None]
    assert old_tests.BY_HAND.keys() <= set(before)
    assert old_tests.today("tests/test_cells.py::test_that_never_was") is None
