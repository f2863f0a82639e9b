"""What a run says when it is resumed: where it goes on, or that it is finished."""

import dataclasses
import json

import pytest
from counting import counting_experiment, counting_step

from jaxrnn.training import (
    Budget,
    InputError,
    Run,
    fit,
)

pytestmark = pytest.mark.usefixtures("optax_promotion")
BUDGET = Budget(steps=6, report_every=2, evaluate_every=2, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def step():
    """Parameters count the updates; it is compiled once for all tests."""
    return counting_step()


@pytest.fixture
def scored():
    return []


@pytest.fixture
def experiment(step, scored):
    def evaluate(state):
        scored.append(float(state.params["w"]))
        return {"score": min(scored[-1], 2.0)}

    return counting_experiment(*step, evaluate=evaluate)


def files(run):
    return {
        name: (run.path / name).read_bytes()
        for name in ("metrics.jsonl", "result.json")
    }


@pytest.mark.parametrize("best", [False, True])
def test_a_finished_run_is_not_scored_again(experiment, scored, tmp_path, capsys, best):
    if best:  # the score stays at 2 from step 2 on: patience ends the run at step 4
        experiment = dataclasses.replace(experiment, best_by=("score", "max"))
    budget = dataclasses.replace(BUDGET, patience=1 if best else 0)
    run = Run.create(tmp_path / "run", {"task": "count"})
    state, result = fit(experiment, run, budget)
    before, count = files(run), len(scored)
    capsys.readouterr()
    again, same = fit(experiment, run, budget, resume=True)
    assert len(scored) == count
    assert same == result
    assert again.params["w"] == state.params["w"]
    assert files(run) == before
    at = "step 4/6" if best else "step 6/6"
    said = f"the run is finished, at {at}, and is not scored again\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("what", ["more steps", "no result", "a damaged result"])
def test_it_is_when_there_is_something_to_do(experiment, scored, tmp_path, what):
    run = Run.create(tmp_path / "run", {"task": "count"})
    _, result = fit(experiment, run, BUDGET)
    file, count = run.path / "result.json", len(scored)
    more = dataclasses.replace(BUDGET, steps=8 if what == "more steps" else 6)
    if what == "no result":
        file.unlink()
    elif what == "a damaged result":
        file.write_text("{")
    _, again = fit(experiment, run, more, resume=True)
    assert len(scored) > count
    assert again["steps"] == more.steps
    assert json.loads(file.read_text())["score"] == result["score"]


@pytest.mark.parametrize("lost", ["", "process 1 of 2, on here, was lost"])
def test_without_a_checkpoint_one_line_says_what_happens(
    experiment, tmp_path, capsys, lost
):
    run = Run.create(tmp_path / "run", {"task": "count"})
    run.append("metrics.jsonl", {"step": 1, "loss": 1.0})
    fit(dataclasses.replace(experiment, last_end=lost), run, BUDGET, resume=True)
    first, then, *_ = capsys.readouterr().out.splitlines()
    words = "no checkpoint was written before: starting from the beginning"
    assert first == (f"{lost}; {words}" if lost else words)
    assert then == "compiling"
    assert [r["step"] for r in run.records("metrics.jsonl")] == [2, 2, 4, 4, 6, 6, 6]


def test_scores_of_older_runs_have_the_names_of_today(tmp_path):
    run = Run.create(tmp_path / "run", {"task": "captioning"})
    scores = {"word_f1": 0.5, "nearest_neighbour_word_f1": 0.4}
    run.write_result(scores)
    run.append("metrics.jsonl", {"step": 1, "final": True, **scores})
    today = {"word_f1": 0.5, "nearest_neighbor_word_f1": 0.4}
    assert run.result() == today
    assert run.records("metrics.jsonl") == [{"step": 1, "final": True, **today}]
    (run.path / "result.json").write_text("[]")
    with pytest.raises(InputError, match=r"result\.json is damaged"):
        run.result()
