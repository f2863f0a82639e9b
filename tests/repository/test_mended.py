"""What once went wrong, each with the smallest case that showed it."""

import io
import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import compiled
from subjects import assert_same

import jaxrnn
import jaxrnn.nnx
from jaxrnn import GRU, LSTM, TBPTT, Window, bidirectional, residual, stack, unroll
from jaxrnn.training.progress import Report

KEY = jax.random.key(0)


def readout_losses(cell):
    """A model that multiplies its inputs before the cell sees them, as an embedding
    would.
    """

    def losses(params, carry, window):
        xs = window.inputs @ params["in"]
        _, ys, carries = unroll(
            cell,
            params["cell"],
            xs,
            carry,
            mask=window.mask,
            resets=window.resets,
            return_carries=True,
        )
        return jnp.square(ys - window.targets).mean(-1), carries

    return losses


@pytest.fixture
def regression():
    cell = GRU(3)
    params = {"cell": cell.init(KEY, 2), "in": jax.random.normal(KEY, (2, 2))}
    xs, targets = jax.random.normal(KEY, (8, 3, 2)), jax.random.normal(KEY, (8, 3, 3))
    return cell, params, Window(xs, targets)


def make(cell, k1, k2):
    return TBPTT(
        readout_losses(cell),
        lambda p, batch: cell.initial_carry(p["cell"], batch),
        k1,
        k2,
    )


def test_a_state_of_another_horizon_is_refused(regression, plain_errors):
    cell, params, window = regression
    state = make(cell, 2, 2).init(params, window, (3,))
    with pytest.raises(
        ValueError, match="make the state with init\\(\\) of the same TBPTT"
    ):
        make(cell, 2, 6).value_and_grad(params, window, state)


@pytest.mark.parametrize("k2", [2, 6])
def test_padding_that_is_nan_before_the_model_reads_it_changes_nothing(regression, k2):
    cell, params, window = regression
    mask = jnp.arange(8)[:, None] < jnp.array([[8, 3, 5]])
    results = []
    for padding in (jnp.nan, 0.5):
        dirty = window._replace(
            inputs=jnp.where(mask[..., None], window.inputs, padding), mask=mask
        )
        tbptt = make(cell, 2, k2)
        results.append(
            tbptt.value_and_grad(params, dirty, tbptt.init(params, dirty, (3,)))[:2]
        )
    assert_same(*results)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results[0]))


def test_a_cell_that_draws_nothing_gets_no_key_invented(regression):
    cell, params, window = regression

    def losses(params, carry, window):
        _, ys, carries = unroll(
            cell,
            params["cell"],
            window.inputs,
            carry,
            mask=window.mask,
            key=window.key,
            return_carries=True,
        )
        return jnp.square(ys - window.targets).mean(-1), carries

    tbptt = TBPTT(losses, lambda p, batch: cell.initial_carry(p["cell"], batch), 2, 6)
    assert np.isfinite(
        tbptt.value_and_grad(params, window, tbptt.init(params, window, (3,)))[0]
    )


def test_tbptt_called_eagerly_compiles_once(regression):
    cell, params, window = regression
    traces, plain = [], readout_losses(cell)

    def losses(*inputs):
        traces.append(1)
        return plain(*inputs)

    tbptt = TBPTT(losses, lambda p, batch: cell.initial_carry(p["cell"], batch), 4)
    state = tbptt.init(params, window, (3,))
    for _ in range(4):
        _, _, state = tbptt.value_and_grad(params, window, state)
        count = len(traces)
    assert count == len(traces) == 1


def test_losses_in_half_precision_are_summed_in_single(regression):
    def losses(params, carry, window):
        return jnp.ones(window.mask.shape, jnp.bfloat16), jnp.broadcast_to(
            carry, (*window.mask.shape, 1)
        )

    tbptt = TBPTT(losses, lambda params, batch: jnp.zeros((*batch, 1)), 700)
    window = Window(jnp.zeros((700, 3, 1)), jnp.zeros((700, 3)))
    assert (
        tbptt.value_and_grad({"w": jnp.ones(1)}, window, tbptt.init({}, window, (3,)))[
            0
        ]
        == 1
    )


@pytest.mark.parametrize(
    "cell", [LSTM(4, learned_initial_carry=True), GRU(4, learned_initial_carry=True)]
)
@pytest.mark.parametrize("wrap", [lambda c: stack(c, c), residual, bidirectional])
def test_learned_states_in_half_precision_stand_in_layers(cell, wrap):
    layer = wrap(cell)
    params = layer.init(KEY, 4, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    carry, ys = unroll(layer, params, jnp.ones((3, 2, 4), jnp.bfloat16))
    assert ys.dtype == jnp.bfloat16
    assert jnp.dtype("float32") in {leaf.dtype for leaf in jax.tree.leaves(carry)}


def test_a_layer_within_both_directions_keeps_a_reset_at_the_first_step():
    one = LSTM(2)
    both, params = bidirectional(one), bidirectional(one).init(KEY, 2)
    nested, ys = bidirectional(both), None
    params = {"forward": params, "backward": params}
    xs, resets = (
        jax.random.normal(KEY, (6, 1, 2)),
        jnp.zeros((6, 1), bool).at[jnp.array([0, 3])].set(True),
    )
    carry = jax.tree.map(lambda a: a + 1, nested.initial_carry(params, (1,)))
    _, ys = unroll(nested, params, xs, carry, resets=resets)
    _, forwards = unroll(
        one, params["forward"]["forward"], xs, carry.forward.forward, resets=resets
    )
    # the backward layer of the backward layer runs forwards
    twice_turned = ys[..., 6:]
    assert_same(
        twice_turned,
        unroll(
            one,
            params["backward"]["backward"],
            xs,
            carry.backward.backward,
            resets=resets,
        )[1],
    )
    assert_same(ys[..., :2], forwards)


def test_concrete_lengths_may_stand_inside_a_compiled_function():
    lengths = jnp.array([1, 2, 3])
    mask = jax.jit(lambda: jaxrnn.mask_from_lengths(lengths, 4))()
    assert mask.sum(0).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="they run from 1 to 3"):
        jax.jit(lambda: jaxrnn.mask_from_lengths(lengths, 2))()


def test_generate_writes_symbols_that_the_prompt_dtype_cannot_hold():
    def step(carry, token):
        return carry, jax.nn.one_hot(299, 300)

    prompt = jnp.zeros(1, jnp.uint8)
    assert jaxrnn.generate(step, (), prompt, 2, temperature=0).tokens.tolist() == [
        299,
        299,
    ]
    for temperature in (1e-39, 1e-42):
        assert jaxrnn.generate(
            step, (), prompt, 2, temperature=temperature, key=KEY
        ).tokens.tolist() == [299, 299]


class Parts(NamedTuple):
    a: jax.Array
    b: jax.Array


def test_a_carry_of_parts_without_h_wants_an_output(plain_errors):
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class TwoParts(jaxrnn.Cell):
        def init(self, key, input_size):
            return {}

        def initial_carry(self, params, batch_shape=(), dtype=None):
            return Parts(jnp.zeros((*batch_shape, 2)), jnp.zeros((*batch_shape, 2)))

        def step(self, params, carry, z):
            return Parts(carry.a + z, carry.b - z)

    with pytest.raises(
        TypeError, match="define output\\(self, params, carry, x\\), or name the part h"
    ):
        unroll(TwoParts(), {}, jnp.ones((3, 2)))


def test_evaluating_a_long_text_takes_no_more_memory_than_a_short_one():
    from jaxrnn.tasks import charlm
    from jaxrnn.tasks.models.language_model import bits_per_token

    functions, params = charlm.build(
        charlm.Options(hidden=4, embed=2), {"vocabulary": "abc"}
    )
    shapes = []
    total_loss = type(functions).total_loss

    class Watched(type(functions)):
        def total_loss(self, params, carry, window, counted):
            shapes.append(window.inputs.shape)
            return total_loss(self, params, carry, window, counted)

    watched = Watched(functions.graph, functions.still_graph)
    for length in (100, 700, 40_000):
        bits_per_token(watched, params, np.random.default_rng(0).integers(0, 3, length))
    assert set(shapes) == {(256, 1), (256, 32)}


def test_training_goes_on_when_its_reader_goes_away(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    report = Report()
    report.line("step 1")
    report.line("step 2")


def test_output_that_the_terminal_cannot_show_ends_no_run(monkeypatch):
    from jaxrnn.cli import main

    run = pathlib.Path(__file__).parents[1] / "frozen/data/runs/charlm"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main(["sample", str(run), "--prompt", "한 the", "--length", "3"]) == 0
    assert sys.stdout.buffer.getvalue().startswith(b"? the")


def test_a_mask_of_the_wrong_layout_is_named_in_the_modules_own_layout(plain_errors):
    module = jaxrnn.nnx.RNN(GRU(3), 2, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError,
        match=r"mask must have shape \(\*B, T\) = \(4, 5\), but its shape is \(5, 4\)",
    ):
        module(jnp.ones((4, 5, 2)), mask=jnp.ones((5, 4), bool))


def test_names_in_place_of_functions_are_refused(plain_errors):
    for cell, name in (
        (lambda: jaxrnn.Elman(3, activation="relu"), "activation"),
        (lambda: LSTM(3, recurrent_init="x"), "recurrent_init"),
    ):
        with pytest.raises(TypeError, match=f"{name} must be a function such as"):
            cell()


def test_parameters_of_the_other_gru_are_refused(plain_errors):
    with pytest.raises(TypeError, match="its params are a dict of"):
        unroll(GRU(3, reset_after=False), GRU(3).init(KEY, 2), jnp.ones((4, 2)))


def test_the_compiled_gradient_is_the_eager_one(regression):
    cell, params, window = regression
    tbptt = make(cell, 2, 4)
    state = tbptt.init(params, window, (3,))
    assert_same(
        compiled(lambda p: tbptt.value_and_grad(p, window, state)[:2])(params),
        tbptt.value_and_grad(params, window, state)[:2],
        1e-6,
    )
