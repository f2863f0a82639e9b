"""The best parameters by a held-out score: kept, returned, read back, and the same
after a kill; patience.
"""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from counting import counting_experiment, counting_step

from jaxrnn.training import (
    Budget,
    Checkpoints,
    Experiment,
    InputError,
    Run,
    fit,
)

pytestmark = pytest.mark.usefixtures("optax_promotion")
SCORES = [0.3, 0.5, 0.4, 0.7, 0.7, 0.6, float("nan"), 0.2]  # one an evaluation


def experiment(scores=SCORES, way="max", stop_at=None):
    """Parameters count the updates; held-out scores are as given."""
    optimizer, step = counting_step()
    tally = itertools.count(1)

    def advance(state, progress):
        if stop_at is not None and next(tally) > stop_at:
            raise KeyboardInterrupt  # as a kill: nothing is saved after this
        return step(state, None, progress)

    return counting_experiment(
        optimizer,
        step,
        advance=advance,
        evaluate=lambda state: {"score": scores[int(state.params["w"]) // 10 - 1]},
        best_by=("score", way),
        finally_evaluate=lambda state: {"score": float(state.params["w"])},
        notes=("eight evaluations",),
    )


def budget(**changes):
    return Budget(
        **{
            "steps": 80,
            "report_every": 5,
            "evaluate_every": 10,
            "checkpoint_seconds": 0,
            **changes,
        }
    )


@pytest.mark.parametrize(("way", "at"), [("max", 40), ("min", 80)])
def test_the_first_of_the_best_is_kept_scored_and_read_back(tmp_path, capsys, way, at):
    run = Run.create(tmp_path / "run", {"task": "t"})
    state, result = fit(experiment(way=way), run, budget())
    assert "eight evaluations" in capsys.readouterr().out
    assert state.params["w"] == at
    assert result["score"] == at
    assert json.loads((run.path / "result.json").read_text())["score"] == at
    params, _ = Checkpoints(run.checkpoints).restore_params({"w": jnp.zeros(())})
    assert params["w"] == at


def test_patience_stops_and_the_last_state_is_a_candidate_too(tmp_path):
    state, result = fit(
        experiment(), Run.create(tmp_path / "a", {"task": "t"}), budget(patience=2)
    )
    assert result["steps"] == 60  # .7 at 40, then .7 and .6
    assert state.params["w"] == 40
    rising = [0.1, 0.2, 0.3, 0.4]
    run = Run.create(tmp_path / "b", {"task": "t"})
    state, result = fit(experiment(rising), run, budget(steps=44, evaluate_every=15))
    assert state.params["w"] == 44
    assert [
        r["held_out_score"]
        for r in run.records("metrics.jsonl")
        if "held_out_score" in r
    ] == [0.1, 0.3, 0.4]


@pytest.mark.parametrize("kill", [12, 44, 47, 69])
def test_killed_and_resumed_it_keeps_the_same(tmp_path, kill):
    runs = [Run.create(tmp_path / name, {"task": "t"}) for name in ("alone", "killed")]
    whole, _ = fit(experiment(), runs[0], budget(patience=3))
    with pytest.raises(KeyboardInterrupt):
        fit(experiment(stop_at=kill), runs[1], budget(patience=3))
    again, _ = fit(experiment(), runs[1], budget(patience=3), resume=True)
    assert again.params["w"] == whole.params["w"] == 40
    assert np.array_equal(*[(run.path / "metrics.jsonl").read_bytes() for run in runs])


def test_patience_needs_a_score(tmp_path):
    with pytest.raises(InputError, match="--patience must not be negative"):
        budget(patience=-1)
    plain = experiment()
    plain = Experiment(**{**vars(plain), "best_by": None})
    with pytest.raises(InputError, match="this one has none"):
        fit(plain, Run.create(tmp_path / "run", {"task": "t"}), budget(patience=1))
