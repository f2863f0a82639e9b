"""Runs of every task, stored by an earlier version, go on and are scored again."""

import json
import shutil
import types
from pathlib import Path

import jax
import pytest

from jaxrnn.cli import main
from jaxrnn.tasks import runner, train
from jaxrnn.tasks.synthetic import adding
from jaxrnn.training import processes

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "tests" / "frozen" / "data" / "runs"
FINISHED = sorted(path.parent.name for path in RUNS.glob("*/result.json"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """The data of these runs are named from there."""
    monkeypatch.chdir(ROOT)
    jax.devices()  # or a command would show this process every core as a device


@pytest.fixture
def run(tmp_path, request):
    name = request.node.callspec.params["task"]
    return Path(shutil.copytree(RUNS / name, tmp_path / "run"))


@pytest.mark.parametrize("task", FINISHED)
def test_a_finished_run_is_resumed(run, task, capsys):
    """Its config says that its data are those that it was started with."""
    before = (run / "metrics.jsonl").read_bytes()
    assert main(["train", task, "--out", str(run), "--resume"]) == 0
    assert "and is not scored again" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("task", FINISHED)
def test_what_it_has_held_out_is_scored_as_at_its_end(run, task, capsys):
    assert main(["evaluate", str(run)]) == 0
    out, err = capsys.readouterr()
    scores, result = json.loads(out), json.loads((run / "result.json").read_text())
    assert err.startswith("jaxrnn: scoring what the run has held out; ")
    both = {name for name in scores.keys() & result.keys() if name != "f1_by_tag"}
    assert both & {"loss", "mse", "bits_per_char", "accuracy"}
    assert {name: scores[name] for name in both} == pytest.approx(
        {name: result[name] for name in both}, rel=1e-4
    )


@pytest.mark.parametrize("task", ["sentiment"])
def test_without_its_data_the_file_is_named(run, task, capsys):
    config = json.loads((run / "config.json").read_text())
    config["options"]["data"] = ["gone.csv"]
    (run / "config.json").write_text(json.dumps(config))
    for words in (
        ["evaluate", str(run)],
        ["train", task, "--out", str(run), "--resume"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "gone.csv" in said


@pytest.mark.parametrize("task", ["captioning"])
def test_older_pictures_are_distorted_and_captioned_as_they_were(run, task):
    options = runner.restore(run)[2]
    assert options.distort == "typeface"
    assert (options.dropout, options.length_penalty) == (0.1, 1.0)


@pytest.mark.parametrize("task", ["hello"])
@pytest.mark.parametrize("is_first", [True, False])
def test_of_several_processes_the_first_shows_the_result(
    run, task, is_first, monkeypatch
):
    (run / "report.html").write_text("the report")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"python": "3"}))
    others = vars(processes) | {"is_first": lambda: is_first}
    monkeypatch.setattr(runner, "processes", types.SimpleNamespace(**others))
    _, again, lines = train(task, out=run, resume=True)
    assert again["loss"] == result["loss"]
    assert bool(lines) == is_first


def test_the_config_begins_with_the_options_of_the_task():
    stored = runner._options_as_json(adding.Options(length=7, hidden=3))
    assert list(stored)[:4] == ["length", "variant", "cell", "hidden"]
    assert adding.Options(**stored) == adding.Options(length=7, hidden=3)
