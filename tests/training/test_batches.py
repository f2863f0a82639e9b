"""Training on whole sequences, and looking inside as it goes on: `make_batch_step`,
`Experiment.look`, cells by name.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import training
from jaxrnn.initializers import Chrono, Identity, Normal, Orthogonal
from jaxrnn.tasks import charlm, hello
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.tasks.models.sequence_model import Batch, SequenceModel
from jaxrnn.tasks.synthetic.gradients import record_lags
from jaxrnn.training.curves import draw_curves

pytestmark = pytest.mark.usefixtures("optax_promotion")

CELL = jaxrnn.GRU(3)


def summed(params, batch, key):
    """Squared outputs of sequences, of which some steps count."""
    xs, counts = batch
    _, ys = jaxrnn.unroll(CELL, params, xs)
    return jnp.where(counts, jnp.square(ys).sum(-1), 0).sum(), counts.sum()


def data(seed, none=False):
    k_xs, k_counts = jax.random.split(jax.random.key(seed))
    return jax.random.normal(k_xs, (5, 4, 3)), jax.random.bernoulli(
        k_counts, 0.0 if none else 0.6, (5, 4)
    )


def test_the_batch_step_is_the_plain_optax_update_twice():
    """By a rule that knows how large a gradient is, as Adam and clipping do not."""
    params, optimizer = (
        CELL.init(jax.random.key(0), 3),
        training.make_optimizer(clip=1e6, rule=optax.trace(0.9)),
    )
    step = training.make_batch_step(summed, optimizer, training.constant(0.05))
    state = training.fresh_state(optimizer, params, jax.random.key(1))
    by_hand = optax.sgd(0.05, momentum=0.9)
    expected, memory, total, count = params, by_hand.init(params), 0.0, 0

    @jax.jit
    def updated(gradient, memory, params):
        change, memory = by_hand.update(gradient, memory, params)
        return optax.apply_updates(params, change), memory

    @jax.jit
    def by_batch(params, batch):
        def mean(params):
            sums = summed(params, batch, None)
            return jnp.divide(*sums), sums

        gradient, sums = jax.grad(mean, has_aux=True)(params)
        return sums, gradient

    for seed in (0, 1):
        batch = data(seed)
        state = step(state, batch, np.float32(seed / 2))
        sums, gradient = by_batch(expected, batch)
        expected, memory = updated(gradient, memory, expected)
        total, count = total + float(sums[0]), count + int(sums[1])
    for name in expected:
        np.testing.assert_allclose(state.params[name], expected[name], atol=1e-6)
    assert float(state.loss) == pytest.approx(total, rel=1e-5)
    assert (int(state.tokens), int(state.step)) == (count, 2)
    assert state.carry == ()


def test_a_batch_of_which_nothing_counts_changes_nothing_and_is_no_nan():
    params, optimizer = CELL.init(jax.random.key(0), 3), training.make_optimizer()
    step = training.make_batch_step(summed, optimizer, training.constant(0.05))
    state = step(
        training.fresh_state(optimizer, params, jax.random.key(1)),
        data(0, none=True),
        np.float32(0),
    )
    assert all(np.array_equal(state.params[name], params[name]) for name in params)
    assert float(state.loss) == float(state.tokens) == 0


def test_the_key_of_each_step_is_the_states_key_folded_with_its_number():
    def loss(params, batch, key):
        return params["w"] * 0 + jax.random.uniform(key), jnp.ones(())

    optimizer, key = training.make_optimizer(), jax.random.key(7)
    step = training.make_batch_step(loss, optimizer, training.constant(0.1))
    state, seen = training.fresh_state(optimizer, {"w": jnp.ones(())}, key), []
    for _ in range(3):
        before = float(state.loss)
        state = step(state, None, np.float32(0))
        seen.append(float(state.loss) - before)
    np.testing.assert_allclose(
        seen,
        [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(3)],
        atol=1e-6,
    )


def test_a_loss_for_each_step_and_an_optimiser_without_a_rate_are_refused():
    params, optimizer = CELL.init(jax.random.key(0), 3), training.make_optimizer()
    state = training.fresh_state(optimizer, params, jax.random.key(0))
    step = training.make_batch_step(
        lambda p, b, k: (b[0][..., 0], b[1].sum()), optimizer, training.constant(0.1)
    )
    with pytest.raises(
        ValueError, match=r"loss must return two scalars.*\(5, 4\) and \(\)"
    ):
        step(state, data(0), np.float32(0))
    adam = optax.adam(1e-3)
    step = training.make_batch_step(summed, adam, training.constant(0.1))
    with pytest.raises(
        ValueError,
        match=(
            "make_batch_step: the optimizer has no injected hyperparameter "
            "learning_rate"
        ),
    ):
        step(
            training.fresh_state(adam, params, jax.random.key(0)),
            data(0),
            np.float32(0),
        )


def test_a_constant_schedule_is_constant():
    rate = training.constant(0.25)
    assert [float(rate(np.float32(p))) for p in (0, 0.5, 1)] == [0.25] * 3


# Looking inside


def looked_at(look):
    experiment, _ = hello.prepare(hello.Options(hidden=4))
    return dataclasses.replace(experiment, look=look, unit="letters")


def looks(state):
    return {
        "step_seen": state.step,
        "norm": float(
            sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(state.params))
        ),
    }


BUDGET = training.Budget(
    steps=25, report_every=5, evaluate_every=10, checkpoint_seconds=0
)


def test_a_look_is_recorded_at_the_start_at_evaluations_and_at_the_end(tmp_path):
    run = training.Run.create(tmp_path / "run", {"task": "hello"})
    _, result = training.fit(looked_at(looks), run, BUDGET)
    records = run.records("gradients.jsonl")
    assert (
        [r["step"] for r in records]
        == [r["step_seen"] for r in records]
        == [0, 10, 20, 25]
    )
    assert [r.get("final", False) for r in records] == [False, False, False, True]
    assert len({r["norm"] for r in records}) == 4
    assert result["letters_per_second"] > 0
    assert "tokens_per_second" not in result
    # without it there is no such file
    plain = training.Run.create(tmp_path / "plain", {"task": "hello"})
    training.fit(hello.prepare(hello.Options(hidden=4))[0], plain, BUDGET)
    assert not (tmp_path / "plain/gradients.jsonl").exists()
    # and a run that replaces this one begins with none
    training.Run.create(tmp_path / "run", {"task": "hello"}, overwrite=True)
    assert not (tmp_path / "run/gradients.jsonl").exists()


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("at", "half_a_line"),
    [(0, True), (3, False), (5, True), (10, False), (14, True), (20, False)],
)
def test_looks_of_a_resumed_run_are_those_of_the_run_left_alone(
    tmp_path, at, half_a_line
):
    alone = training.Run.create(tmp_path / "alone", {"task": "hello"})
    training.fit(looked_at(looks), alone, BUDGET)

    broken = looked_at(looks)
    advance = broken.advance

    def dies(state, progress):
        if int(state.step) == at:
            raise Killed
        return advance(state, progress)

    run = training.Run.create(tmp_path / "run", {"task": "hello"})
    with pytest.raises(Killed):
        training.fit(dataclasses.replace(broken, advance=dies), run, BUDGET)
    if half_a_line:
        with open(run.path / "gradients.jsonl", "a") as out:
            out.write('{"step": 9, "no')
    training.fit(looked_at(looks), run, BUDGET, resume=True)
    for name in ("gradients.jsonl", "metrics.jsonl"):
        assert (run.path / name).read_bytes() == (alone.path / name).read_bytes()
    # finished: nothing is left to do
    training.fit(looked_at(looks), run, BUDGET, resume=True)
    assert (run.path / "gradients.jsonl").read_bytes() == (
        alone.path / "gradients.jsonl"
    ).read_bytes()


def test_the_baseline_is_a_dashed_line_of_the_curves(tmp_path, monkeypatch):
    Axes = pytest.importorskip("matplotlib.axes").Axes
    run = training.Run.create(tmp_path / "run", {"task": "hello"})
    run.append("metrics.jsonl", {"step": 5, "loss": 1.0})
    drawn, axhline = [], Axes.axhline
    monkeypatch.setattr(
        Axes,
        "axhline",
        lambda self, y, **how: drawn.append((y, how)) or axhline(self, y, **how),
    )
    assert (
        draw_curves(run, "loss", "loss", {"chance": 0.25})
        == tmp_path / "run/curves.png"
    )
    assert [(y, how["ls"], how["label"]) for y, how in drawn] == [
        (0.25, "--", "chance: 0.25")
    ]


# Cells by name


@pytest.mark.parametrize(
    ("spec", "cell"),
    [
        ("elman", jaxrnn.Elman(8, recurrent_init=Orthogonal())),
        ("elman:1.5", jaxrnn.Elman(8, recurrent_init=Normal(1.5))),
        ("irnn", jaxrnn.Elman(8, activation=jax.nn.relu, recurrent_init=Identity())),
        ("lstm", jaxrnn.LSTM(8)),
        ("lstm:0", jaxrnn.LSTM(8, forget_bias=0.0)),
        ("lstm:-2.5", jaxrnn.LSTM(8, forget_bias=-2.5)),
        ("lstm:chrono", jaxrnn.LSTM(8, forget_bias=Chrono(90.0))),
        ("gru", jaxrnn.GRU(8)),
        ("gru:1", jaxrnn.GRU(8, update_bias=1.0)),
        ("gru:chrono", jaxrnn.GRU(8, update_bias=Chrono(90.0))),
    ],
)
def test_cells_by_name(spec, cell):
    assert make_cell(spec, 8, 90) == cell
    cell.init(jax.random.key(0), 2)
    assert hello.Options(cell=spec).cell == charlm.Options(cell=spec).cell == spec


def test_chrono_of_the_shortest_sequences_is_possible():
    assert make_cell("lstm:chrono", 8, 1) == jaxrnn.LSTM(8, forget_bias=Chrono(3.0))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("lstn", "there is no 'lstn'; did you mean lstm?"),
        ("lsmt:chrono", "did you mean lstm:chrono?"),
        ("LSTM", "did you mean lstm?"),
        ("transformer", "known: elman, irnn, lstm, gru"),
        ("", "there is no ''; known"),
        ("lstm:", "'' is no variant of lstm"),
        ("lstm:crono", "'crono' is no variant of lstm; lstm: forget bias 1; lstm:B"),
        ("elman:chrono", "'chrono' is no variant of elman"),
        ("irnn:2", "'2' is no variant of irnn"),
        ("gru:inf", "'inf' is no variant of gru"),
        ("gru:nan", "'nan' is no variant of gru"),
    ],
)
def test_a_wrong_cell_is_refused(spec, words):
    with pytest.raises(training.InputError) as error:
        make_cell(spec, 8, 90)
    assert words in str(error.value)
    with pytest.raises(training.InputError, match="--cell"):
        hello.Options(cell=spec)


def test_records_are_json_without_infinities(tmp_path):
    model = SequenceModel(jaxrnn.Elman(3, activation=jax.nn.relu), 2, 0)
    params = model.init(jax.random.key(0))
    # every unit is off: no gradient at all beyond the readout
    params["rnn"]["bias"] = jnp.full(3, -99.0)
    counts = jnp.zeros((6, 4), bool).at[-1].set(True)
    batch = Batch(
        jax.random.normal(jax.random.key(1), (6, 4, 2)), jnp.ones((6, 4)), counts
    )
    record = record_lags(model, params, batch)
    assert np.isfinite(record["log_v"][0])
    assert record["log_v"][1:] == [None] * 6
    json.dumps(record, allow_nan=False)
