"""Hooks that get each record of a run, and the logs that are made of them."""

import csv
import importlib.util
import json
import sys
import types

import jax.numpy as jnp
import pytest
from counting import counting_experiment, counting_step

from jaxrnn.tasks import train
from jaxrnn.tasks.logs import LOGS, logs
from jaxrnn.training import (
    Budget,
    InputError,
    Run,
    fit,
    sinks,
)

pytestmark = pytest.mark.usefixtures("optax_promotion")
BUDGET = Budget(steps=6, report_every=2, evaluate_every=4, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def experiment():
    """Parameters count the updates; it is compiled once for all tests."""
    return counting_experiment(*counting_step(), sample=lambda state: "some text")


def new_run(path):
    return Run.create(path, {"task": "count", "options": {"seed": 3}, "budget": {}})


def on_disk(run):
    return [(r["step"], r) for r in run.records("metrics.jsonl")]


def test_a_hook_gets_every_record_after_it_is_on_disk(experiment, tmp_path):
    run, seen = new_run(tmp_path / "run"), []

    def hook(step, record):
        assert on_disk(run)[-1] == (step, record)
        seen.append((step, dict(record)))
        record.clear()  # it is the hook's own

    also = []
    fit(experiment, run, BUDGET, on_record=[hook, lambda *words: also.append(words)])
    assert seen == on_disk(run) == also
    assert [step for step, _ in seen] == [2, 4, 4, 6, 6]


@pytest.mark.parametrize("fails_at", [2, 4, 6])
def test_a_failing_hook_stops_the_run_and_loses_nothing(experiment, tmp_path, fails_at):
    undisturbed, run = new_run(tmp_path / "whole"), new_run(tmp_path / "run")
    fit(experiment, undisturbed, BUDGET)

    def hook(step, record):
        if step == fails_at:
            raise OverflowError("too much")

    words = (
        rf"on_record failed at step {fails_at}: OverflowError: too much; .*run is "
        rf"saved at step {fails_at}: mend it, then continue with --resume"
    )
    with pytest.raises(InputError, match=words):
        fit(experiment, run, BUDGET, on_record=hook)
    _, result = fit(experiment, run, BUDGET, resume=True)
    assert result["score"] == 6
    assert on_disk(run) == on_disk(undisturbed)


def test_a_hook_that_fails_at_the_end_leaves_a_finished_run(experiment, tmp_path):
    run = new_run(tmp_path / "run")

    def hook(step, record):
        if record.get("final"):
            raise OverflowError("too much")

    with pytest.raises(InputError, match="finished and its result is written"):
        fit(experiment, run, BUDGET, on_record=hook)
    assert run.result()["score"] == 6


def test_what_is_no_hook_is_refused(experiment, tmp_path, plain_errors):
    run = new_run(tmp_path / "run")
    for wrong in ("csv", [print, 1]):
        with pytest.raises(TypeError, match=r"on_record must be a function of \(step"):
            fit(experiment, run, BUDGET, on_record=wrong)
    with pytest.raises(InputError, match=r"--log: there is no 'cvs'; did you mean csv"):
        train("hello", log=["cvs"], out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def table(run):
    with open(run.path / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(rows):
    return [{k: float(v) for k, v in row.items() if v != ""} for row in rows]


def wanted(run):
    """What a log of a run holds: numbers, the final ones apart."""
    return [
        {"step": step}
        | {
            ("final/" if "final" in record else "") + name: value
            for name, value in record.items()
            if name not in ("step", "final", "sample")
        }
        for step, record in on_disk(run)
    ]


def test_the_csv_file_is_the_records(experiment, tmp_path):
    run = new_run(tmp_path / "run")
    with logs(["csv"], run) as hooks:
        fit(experiment, run, BUDGET, on_record=hooks)
    rows = table(run)
    assert list(rows[0]) == [
        "step",
        "loss",
        "learning_rate",
        "held_out_score",
        "final/score",
    ]
    assert numbers(rows) == wanted(run)


def test_the_csv_file_of_a_resumed_run_has_no_row_twice(experiment, tmp_path):
    run = new_run(tmp_path / "run")

    def stop(step, record):
        if step == 4:
            raise OverflowError

    with logs(["csv"], run) as hooks, pytest.raises(InputError):
        fit(experiment, run, BUDGET, on_record=[*hooks, stop])
    with logs(["csv"], run) as hooks:
        fit(experiment, run, BUDGET, resume=True, on_record=hooks)
    assert numbers(table(run)) == wanted(run)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None,
    reason="pip install tensorboardX",
)
def test_the_events_of_tensorboard_are_the_records(experiment, tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    run = new_run(tmp_path / "run")
    with logs(["tensorboard"], run) as hooks:
        fit(experiment, run, BUDGET, on_record=hooks)
    (file,) = (run.path / "tensorboard").iterdir()
    data, found = file.read_bytes(), set()
    while data:  # length, its checksum, an event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            found.add((event.step, value.tag, value.simple_value))
    assert found == {
        (row["step"], name, jnp.float32(value).item())
        for row in wanted(run)
        for name, value in row.items()
        if name != "step"
    }


class Fake(types.ModuleType):
    """Records what a logging package is asked to do."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, **words):
        self.calls.append(("init", words))
        return self

    def log(self, values, step):
        self.calls.append(("log", {"step": step, **values}))

    def finish(self):
        self.calls.append(("finish", {}))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.finish()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_logs_are_opened_fed_and_closed(experiment, tmp_path, monkeypatch, name):
    run, fake = new_run(tmp_path / "run"), Fake(name)
    monkeypatch.setitem(sys.modules, name, fake)
    with logs([name, name], run) as hooks:  # named twice, opened once
        fit(experiment, run, BUDGET, on_record=hooks)
    kinds = [kind for kind, _ in fake.calls]
    assert kinds == ["init", *["log"] * 5, "finish"]
    begin = fake.calls[0][1]
    assert (begin["project"], begin["name"]) == ("jaxrnn", "run")
    assert begin["config"] == {"task": "count", "options": {"seed": 3}, "budget": {}}
    json.dumps(begin["config"])
    assert [words for kind, words in fake.calls if kind == "log"] == wanted(run)


@pytest.mark.parametrize("name", ["tensorboardX", "wandb", "trackio"])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    sink = LOGS[name.lower().removesuffix("x")] if "X" in name else LOGS[name]
    words = f"needs {name}, which is not installed: pip install {name}"
    with pytest.raises(InputError, match=words), sink(new_run(tmp_path / "run")):
        pass


def test_a_missing_package_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        train("hello", log=["wandb"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert sinks.numbers_of({"step": 1, "final": True}) == {}
