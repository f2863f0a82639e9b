"""Training: states, run directories, checkpoints, and a run that is killed and goes
on to the same numbers.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import kept_programs, programs_kept_in

import jaxrnn
from jaxrnn import training
from jaxrnn.cli import main
from jaxrnn.tasks import hello

pytestmark = pytest.mark.usefixtures("optax_promotion")

SIZES = {"hidden": 24, "batch": 16, "tbptt": 16, "embed": 8, "devices": 1}
OFTEN = {"report-every": 10, "evaluate-every": 60}
SMALL = [w for name, n in (SIZES | OFTEN).items() for w in (f"--{name}", str(n))]


def command(*words):
    return [sys.executable, "-m", "jaxrnn", *map(str, words)]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A run compiles its programs once, in whichever process comes first."""
    folder = tmp_path / "programs"
    for name, value in kept_programs(folder).items():
        monkeypatch.setenv(name, value)
    with programs_kept_in(folder):
        yield


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("kills", [1, 5])
def test_killed_and_resumed_a_run_ends_with_the_same_metrics(tmp_path, capsys, kills):
    # Reports enough that the kills cannot let all of them pass: by count, not by the
    # clock, so that a fast machine cannot finish the run before the last kill.
    steps = ["--steps", 60 * (kills + 1), "--checkpoint-seconds", 0]
    flags = ["train", "charlm", *SMALL, *map(str, steps)]
    assert main([*flags, "--out", str(tmp_path / "alone")]) == 0

    rng, resume = random.Random(time.time_ns()), []
    metrics = tmp_path / "killed/metrics.jsonl"
    checkpoints = tmp_path / "killed/checkpoints"

    def written():
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def saved():
        return checkpoints.is_dir() and any(
            path.name.isdigit() for path in checkpoints.iterdir()
        )

    for _ in range(kills):
        last = written() + rng.randint(1, 4)
        process = subprocess.Popen(
            command(*flags, "--out", tmp_path / "killed", *resume),
            stdout=subprocess.DEVNULL,
        )
        # Fewer lines at first: it goes on from its last checkpoint, which is saved in
        # the background, after the first reports.
        while written() < last or not saved():
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))  # anywhere between two writes
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        # it goes on as it was begun
        flags, resume = ["train", "charlm"], ["--resume"]
    capsys.readouterr()
    assert main([*flags, "--out", str(tmp_path / "killed"), *resume]) == 0
    assert "resumed at step" in capsys.readouterr().out
    for name in ("metrics.jsonl", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (
            tmp_path / "alone" / name
        ).read_bytes()
    scores = [
        json.loads((tmp_path / r / "result.json").read_text())["bits_per_char"]
        for r in ("killed", "alone")
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("task", ["hello", "recall"])
def test_a_step_is_compiled_once(tmp_path, caplog, task):
    """Reports and evaluations put nothing into the state that a compiled step does not
    know, such as an array that is committed to its device.
    """
    words = ["--steps", "9", "--report-every", "3", "--evaluate-every", "3"]
    with jax.log_compiles():
        assert main(["train", task, *words, "--out", str(tmp_path)]) == 0
    compiled = [line for line in caplog.messages if "Finished XLA compilation" in line]
    assert sum("jit(step)" in line for line in compiled) == 1


def test_control_c_saves_and_exits(tmp_path):
    flags = ["train", "hello", "--steps", "100000", "--report-every", "10", "--out"]
    process = subprocess.Popen(
        command(*flags, tmp_path / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not process.stdout.readline().startswith("step 20"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate()
    assert process.returncode == 130
    assert f", saved in {tmp_path / 'run'}" in rest
    assert error == (
        f"jaxrnn: continue with: jaxrnn train hello --out {tmp_path / 'run'} --resume\n"
    )
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1
    assert not (tmp_path / "run/result.json").exists()


def test_seconds_stop_the_run_and_the_result_is_written(tmp_path):
    flags = ["train", "charlm", *SMALL, "--seconds", "0.5"]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["seconds"] >= 0.5
    assert 0 < result["bits_per_char"] < 8


@pytest.fixture
def state():
    """A state with everything that can stand in one: named tuples, empty leaves,
    integers, bfloat16.
    """
    cell = jaxrnn.LSTM(3)
    key = jax.random.key(1)
    params = {
        "cell": cell.init(key, 2, dtype=jnp.bfloat16),
        "w": jax.random.normal(key, (3,)),
    }
    return training.TrainState(
        step=jnp.asarray(7, jnp.int32),
        params=params,
        opt_state=training.make_optimizer().init(params),
        carry=jaxrnn.LSTMState(jnp.ones(3), jnp.zeros((0, 4))),
        key=jax.random.key_data(key),
        loss=jnp.asarray(1.5),
        tokens=jnp.asarray(3.0),
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(np.asarray(x, np.float64), np.asarray(y, np.float64))


def test_a_checkpoint_gives_back_the_state_bit_for_bit(tmp_path, state):
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(7, state, {"seconds": 2.5})
    step, back, meta, notes, _ = checkpoints.restore(
        jax.tree.map(jnp.zeros_like, state)
    )
    assert (step, meta["seconds"], notes) == (7, 2.5, [])
    assert_same(back, state)
    params, _ = checkpoints.restore_params(state.params)
    assert_same(params, state.params)


def test_a_checkpoint_of_older_names_is_read(tmp_path):
    """Modules were called normalise; a parameter that is called so stays what it is."""
    before = {"normalise": {"scale": jnp.arange(3.0)}, "w": jnp.ones(2)}
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, before, {})
    now = {"normalize": {"scale": jnp.zeros(3)}, "w": jnp.zeros(2)}
    found = checkpoints.restore(now).state
    np.testing.assert_array_equal(found["normalize"]["scale"], np.arange(3.0))
    assert_same(checkpoints.restore(jax.tree.map(jnp.zeros_like, before)).state, before)


def test_only_the_last_checkpoints_are_kept(tmp_path, state):
    checkpoints = training.Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state, {})
    assert checkpoints.steps() == [2, 3]


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path, state, damage
):
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state, {})
    checkpoints.save(2, state._replace(loss=jnp.asarray(9.0)), {})
    files = [
        p
        for p in (tmp_path / "checkpoints/2").rglob("*")
        if p.is_file() and p.stat().st_size > 64 and "/d/" in str(p)
    ]
    assert files
    for file in files:
        data = bytearray(file.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 0xFF
        file.write_bytes(data[: len(data) // 2] if damage == "truncate" else data)
        if damage == "missing":
            file.unlink()
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    step, back, _, notes, _ = checkpoints.restore(state)
    assert step == 1
    assert_same(back, state)
    assert len(notes) == 1
    assert "checkpoint 2 is damaged" in notes[0]
    assert "the one before it is used" in notes[0]
    assert (tmp_path / "damaged-2").is_dir()
    checkpoints.save(2, state, {})  # and the run can write that step again
    assert checkpoints.steps() == [1, 2]


def test_arrays_that_do_not_fit_their_checksum_are_damaged(
    tmp_path, state, monkeypatch
):
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state, {})
    with monkeypatch.context() as other:
        other.setattr("jaxrnn.training.checkpoints._checksum", lambda arrays: 0)
        checkpoints.save(2, state, {})
    step, back, _, (note,), _ = checkpoints.restore(state)
    assert step == 1
    assert_same(back, state)
    assert "its checksum does not fit its contents" in note


def test_where_every_checkpoint_is_damaged_the_error_says_so(tmp_path, state):
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state, {})
    for file in (tmp_path / "checkpoints/1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    for _ in range(
        2
    ):  # and nothing is moved away, so that the next try finds what this one found
        with pytest.raises(training.InputError, match="no readable checkpoint"):
            training.Checkpoints(tmp_path / "checkpoints").restore(state)


def test_a_checkpoint_of_another_model_is_refused_by_leaf(tmp_path, state):
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state, {})
    other = state._replace(params={**state.params, "w": jnp.zeros(4)})
    with pytest.raises(
        training.InputError,
        match=r"params\.w should be \(4,\) float32, found \(3,\) float32",
    ):
        checkpoints.restore(other)


def test_the_train_step_is_the_plain_optax_update():
    """One window of a linear readout, against optax called by hand on jax.grad of
    the mean loss.
    """
    cell, key = jaxrnn.GRU(3), jax.random.key(0)
    xs, targets = jax.random.normal(key, (2, 5, 4, 3))

    def losses(params, carry, window):
        _, ys, carries = jaxrnn.unroll(
            cell, params, window.inputs, carry, mask=window.mask, return_carries=True
        )
        return jnp.square(ys - window.targets).sum(-1), carries

    tbptt = jaxrnn.TBPTT(losses, cell.initial_carry, 5)
    optimizer = training.make_optimizer(clip=0.1)
    params = cell.init(key, 3)
    window = jaxrnn.Window(xs, targets, np.ones((5, 4), bool), np.zeros((5, 4), bool))
    schedule = training.warmup_cosine(0.1, warmup=0.5)
    train_step = training.make_train_step(tbptt, optimizer, schedule)
    state = train_step(
        training.start(tbptt, optimizer, params, window, (4,), key),
        window,
        np.float32(0.25),
    )

    by_hand = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.05, b2=0.99))

    @jax.jit
    def updated(params):
        loss, gradient = jax.value_and_grad(
            lambda p: jnp.square(jaxrnn.unroll(cell, p, xs)[1] - targets).sum(-1).mean()
        )(params)
        change, _ = by_hand.update(gradient, by_hand.init(params), params)
        return loss, optax.apply_updates(params, change)

    loss, expected = updated(params)
    for name in params:
        np.testing.assert_allclose(state.params[name], expected[name], atol=1e-6)
    np.testing.assert_allclose(state.loss / state.tokens, loss, rtol=1e-5)
    assert int(state.step) == 1


def test_the_schedule_rises_and_falls():
    rate = training.warmup_cosine(2.0, warmup=0.1, final=0.05)
    values = [float(rate(jnp.asarray(p))) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    np.testing.assert_allclose(values, [0, 1, 2, 2 * (0.05 + 0.95 / 2), 0.1], rtol=1e-4)


def test_a_run_directory_is_never_overwritten_by_accident(tmp_path):
    training.Run.create(tmp_path / "run", {"task": "hello"})
    with pytest.raises(
        training.InputError, match="already holds a run: continue it with --resume"
    ):
        training.Run.create(tmp_path / "run", {"task": "hello"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(
            training.InputError, match="is not empty and not a run directory"
        ):
            training.Run.create(
                tmp_path / "mine", {"task": "hello"}, overwrite=overwrite
            )
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_a_half_written_line_is_dropped_and_later_records_are_rewound(tmp_path):
    r = training.Run.create(tmp_path / "run", {"task": "hello"})
    for step in (10, 20, 30):
        r.append("metrics.jsonl", {"step": step, "loss": step / 7})
    r.append("metrics.jsonl", {"step": 20, "final": True})
    with open(tmp_path / "run/metrics.jsonl", "a") as out:
        out.write('{"step": 40, "lo')
    r.rewind(20)
    assert r.records("metrics.jsonl") == [
        {"step": 10, "loss": 10 / 7},
        {"step": 20, "loss": 20 / 7},
    ]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoints(
    tmp_path, capsys
):
    flags = "train hello --learning-rate 1e38 --report-every 1 --checkpoint-seconds 0"
    assert main([*flags.split(), "--out", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert "try a smaller --learning-rate" in said
    assert said.count("\n") == 1
    assert os.listdir(tmp_path / "r/checkpoints")


def test_a_run_that_was_trained_is_not_trained_over(tmp_path):
    r = training.Run.create(tmp_path / "run", {"task": "mine"})
    r.append("metrics.jsonl", {"step": 5, "loss": 1.0})
    experiment, _ = hello.prepare(hello.Options())
    with pytest.raises(
        training.InputError, match="has been trained already: resume it"
    ):
        training.fit(experiment, r, training.Budget(steps=1))
    assert r.records("metrics.jsonl") == [{"step": 5, "loss": 1.0}]
