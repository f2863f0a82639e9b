"""Runs that are killed, for the tests of the tasks on labelled examples."""

import dataclasses
import json

import pytest

from jaxrnn.training import Budget, Run, fit


def killed_and_resumed(task, options, tmp_path, kill, steps=16):
    """The metrics of a run left alone, and of one that was killed after ``kill``
    steps and resumed, as bytes.
    """
    budget = Budget(steps=steps, report_every=2, evaluate_every=4, checkpoint_seconds=0)

    def stopping(experiment):
        steps = iter(range(kill))

        def advance(state, progress):
            if next(steps, None) is None:
                raise KeyboardInterrupt  # as a kill: nothing is saved after this
            return experiment.advance(state, progress)

        return dataclasses.replace(experiment, advance=advance)

    experiment, config = task.prepare(options)
    runs = [
        Run.create(tmp_path / name, {"task": "t", **config})
        for name in ("alone", "killed")
    ]
    _, alone = fit(experiment, runs[0], budget)
    with pytest.raises(KeyboardInterrupt):
        fit(stopping(experiment), runs[1], budget)
    again, same = task.prepare(options)
    assert same == config
    _, resumed = fit(again, runs[1], budget, resume=True)
    clock = {"seconds", f"{experiment.unit}_per_second"}
    assert json.dumps({k: v for k, v in alone.items() if k not in clock}) == json.dumps(
        {k: v for k, v in resumed.items() if k not in clock}
    )
    return [(run.path / "metrics.jsonl").read_bytes() for run in runs]
