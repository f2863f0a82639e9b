"""What a run prints: before the first step, at its end, and after Ctrl-C."""

import dataclasses
import errno
import itertools
import json
import os
import shlex
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from jaxrnn.cli import entry, main
from jaxrnn.tasks import hello
from jaxrnn.tasks.about import ABOUT
from jaxrnn.tasks.metrics.ngrams import ngram_baselines
from jaxrnn.tasks.runner import TASKS
from jaxrnn.tasks.score_table import score_rows, score_table
from jaxrnn.tasks.synthetic.task import SyntheticTask
from jaxrnn.training import InputError

pytestmark = pytest.mark.usefixtures("optax_promotion")

SHORT = ["--steps", "20", "--report-every", "10", "--evaluate-every", "10"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run, and what it printed into a pipe."""
    import contextlib
    import io

    import jax

    jax.devices()  # or the command line would show this process every core as a device
    path, out = tmp_path_factory.mktemp("runs") / "run", io.StringIO()
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        contextlib.redirect_stdout(out),
    ):
        assert main(["train", "hello", *SHORT, "--out", str(path)]) == 0
    return path, out.getvalue().splitlines()


def test_before_the_first_step_it_says_what_is_trained(trained):
    path, lines = trained
    head = lines[: lines.index("compiling")]
    said = dict(line.split(maxsplit=1) for line in head)
    assert said["hello"] == ABOUT["hello"].sentence
    # 4 letters: 8 x 4 inputs, 8 x 8 and a bias; the readout has 4 x 8 and a bias
    assert said["model"] == "elman, 8 units, 1 layer, 140 parameters"
    assert said["data"] == "the word hello, of 4 different letters"
    assert said["training"].startswith(
        "20 steps, batch 1, learning rate 0.05, on 1 cpu"
    )
    assert said["run"] == str(path)


def test_evaluations_say_when_they_were_and_of_what(trained):
    _, lines = trained
    (line,) = (x for x in lines if x.startswith("step 20/20") and "the word" in x)
    assert line.split("  ")[2] == "the word"


def test_into_a_pipe_the_result_is_json(trained):
    path, lines = trained
    result = json.loads((path / "result.json").read_text())
    assert json.loads(lines[-2]) == result
    assert lines[-1] == f"run: {path}"


def test_on_a_terminal_it_is_a_table_and_what_to_do_next(trained, capsys, monkeypatch):
    path, _ = trained
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["train", "hello", "--out", str(path), "--resume"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("{")]
    result = json.loads((path / "result.json").read_text())
    assert ["loss", f"{result['loss']:.4g}"] in [line.split() for line in lines]
    assert any(line.startswith("20 steps in ") for line in lines)
    commands = [line.strip() for line in lines[lines.index("next") + 1 :]]
    assert commands[0] == f"jaxrnn sample {path}"
    for command in commands:  # they are whole: each runs as it stands
        assert main(shlex.split(command)[1:]) == 0


def test_with_json_standard_output_holds_nothing_else(trained, capsys):
    path, _ = trained
    assert main(["train", "hello", "--out", str(path), "--resume", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads((path / "result.json").read_text())
    assert json.loads(out) == {"run": str(path), **result}
    assert "the run is finished, at step 20/20, and is not scored again" in err


def test_control_c_saves_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    path, really = tmp_path / "my run", hello.prepare

    def prepare(options):
        experiment, config = really(options)

        def advance(state, progress):
            if int(state.step) == 4:
                signal.raise_signal(signal.SIGINT)
            return experiment.advance(state, progress)

        return dataclasses.replace(experiment, advance=advance), config

    patched = dataclasses.replace(hello.TASK, prepare=prepare)
    monkeypatch.setitem(TASKS, "hello", patched)
    assert main(["train", "hello", *SHORT, "--out", str(path)]) == 130
    out, err = capsys.readouterr()
    assert f"stopped at step 5/20, saved in {path}" in out
    command = f"jaxrnn train hello --out '{path}' --resume"
    assert err == f"jaxrnn: continue with: {command}\n"
    monkeypatch.undo()
    assert main(shlex.split(command)[1:]) == 0
    assert "resumed at step 5" in capsys.readouterr().out


def test_control_c_before_there_is_a_run(tmp_path, capsys, monkeypatch):
    def prepare(options):
        raise KeyboardInterrupt

    patched = dataclasses.replace(hello.TASK, prepare=prepare)
    monkeypatch.setitem(TASKS, "hello", patched)
    assert main(["train", "hello", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "jaxrnn: interrupted\n"
    assert not (tmp_path / "run").exists()


def test_scores_stand_beside_their_baselines():
    result = {
        "task": "sentiment",
        "steps": 9,
        "accuracy": 0.75,
        "macro_f1": 0.7,
        "majority_accuracy": 0.5,
        "bag_of_words_accuracy": 0.72,
        "bag_of_words_macro_f1": 0.71,
        "texts_per_second": 10.0,
        "f1_by_tag": {"a": 1.0},
        "device": "cpu",
    }
    rows = score_rows("sentiment", result)
    assert rows == [
        ("accuracy", 0.75, {"majority": 0.5, "bag of words": 0.72}),
        ("macro f1", 0.7, {"bag of words": 0.71}),
    ]
    head, *lines = score_table("sentiment", result)
    assert head.split() == ["score", "test", "baseline"]
    assert lines[0].split("   ") == [
        "accuracy",
        "0.75",
        "majority 0.5, bag of words 0.72",
    ]
    assert all(len(line) <= 40 for line in score_table("sentiment", result, 40))


def test_scores_at_other_lengths_have_the_same_baseline():
    rows = score_rows("parity", {"accuracy": 1.0, "baseline": 0.5, "accuracy_40": 0.9})
    assert rows[1] == ("accuracy at length 40", 0.9, {"chance": 0.5})
    for name in ("parity", "group-words"):
        problem = TASKS[name].problem(TASKS[name].Options())
        chance = problem.baseline[1]
        assert {chance(n) for n in problem.other_lengths} == {chance(problem.length)}


@pytest.mark.parametrize("name", [name for name in ABOUT if name in TASKS])
def test_the_baselines_of_synthetic_tasks_are_called_what_they_are(name):
    task = TASKS[name]
    if isinstance(task, SyntheticTask):
        problem = task.problem(task.Options())
        known = ABOUT[name].baselines["baseline"]
        assert (known.score, known.name) == (problem.score, problem.baseline[0])


def test_ngrams_are_those_of_a_slow_twin():
    rng = np.random.default_rng(0)
    train, held_out = rng.integers(0, 7, 400), rng.integers(0, 9, 50)
    size, bits = 9, [[], []]
    for a, b in itertools.pairwise(held_out):
        one = (sum(x == b for x in train) + 1) / (len(train) + size)
        together = sum(x == a and y == b for x, y in itertools.pairwise(train))
        before = sum(x == a for x in train[:-1])
        bits[0].append(-np.log2(one))
        bits[1].append(-np.log2((together + size * one) / (before + size)))
    found = ngram_baselines(train, held_out, size)
    np.testing.assert_allclose(list(found.values()), np.mean(bits, 1), rtol=1e-12)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "jaxrnn: interrupted\n"),
        (SystemExit(3), 3, ""),
        (InputError("no such run"), 2, "jaxrnn: no such run\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there"),
            2,
            "jaxrnn: there could not be written: No space left on device\n",
        ),
    ],
)
def test_what_ends_a_command(error, status, said, monkeypatch, capsys):
    def command(arguments):
        raise error

    monkeypatch.setattr(entry, "parse", lambda argv: SimpleNamespace(command=command))
    assert entry.main([]) == status
    assert capsys.readouterr().err == said


def test_what_nobody_expects_is_shown_whole(monkeypatch):
    def command(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "parse", lambda argv: SimpleNamespace(command=command))
    with pytest.raises(ZeroDivisionError):
        entry.main([])
