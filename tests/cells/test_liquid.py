"""Liquid networks: elapsed time as an input, the solver, and the closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import NUMPY_STEPS, assert_slopes, compiled, sigmoid
from subjects import B, D, T, assert_same, draw, draw_params, outcome

import jaxrnn
from jaxrnn.cells import LTC, CfC
from jaxrnn.tasks.models.cell_registry import make_cell

CELLS = {
    "ltc": LTC(3, unfolds=2, irregular=True),
    "cfc": CfC(3, backbone_size=4, irregular=True),
    "no_gate": CfC(3, backbone_size=None, mode="no_gate", irregular=True),
    "pure": CfC(3, backbone_size=4, mode="pure", irregular=True),
    "pure_alone": CfC(3, backbone_size=None, mode="pure", irregular=True),
}


def drawn(cell, steps=T, batch=(B,)):
    """Inputs at irregular times, and the rest as for regular ones."""
    inputs = draw(dataclasses.replace(cell, irregular=False), 0, steps, batch)
    elapsed = np.random.default_rng(1).exponential(size=(steps, *batch))
    return inputs._replace(xs=(inputs.xs, jnp.asarray(elapsed, inputs.xs.dtype)))


def numpy_unroll(cell, params, xs, carry):
    ys = []
    for x in zip(*xs, strict=True):
        carry = NUMPY_STEPS[type(cell).__name__](cell, params, carry, x)
        ys.append(carry)
    return [carry, np.stack(ys)]


@pytest.mark.parametrize("name", CELLS)
def test_irregular_times_are_those_in_numpy(name, x64):
    """Values, and gradients of parameters, features, times and the first carry."""
    cell = CELLS[name]
    inputs = drawn(cell, 3, (2,))
    at = inputs[:3]
    actual = compiled(
        lambda at, c: outcome(lambda *a: jaxrnn.unroll(cell, *a), *at, c)
    )(at, inputs.cotangents)
    numbers = jax.tree.map(np.asarray, at)
    assert_same(list(actual.values), numpy_unroll(cell, *numbers))
    assert_slopes(
        actual.gradients,
        lambda at: numpy_unroll(cell, *at),
        numbers,
        list(inputs.cotangents),
    )
    assert np.abs(actual.gradients[1][1]).min() > 1e-6  # of the times


@pytest.mark.parametrize("name", CELLS)
def test_ragged_batches_resets_and_streams(name, x64):
    """Padding of NaN, in the times too, and a reset; against streaming steps."""
    cell, inputs = CELLS[name], drawn(CELLS[name])
    params, (features, elapsed), carry = inputs[:3]
    mask = inputs.mask.at[0].set(True)
    xs = (
        jnp.where(mask[..., None], features, jnp.nan),
        jnp.where(mask, elapsed, jnp.nan),
    )
    flags = {"mask": mask, "resets": inputs.resets}

    def loss(params, xs):
        last, ys = jaxrnn.unroll(cell, params, xs, carry, **flags)
        return jnp.sin(ys).sum() + last.sum(), (last, ys)

    gradient, (last, ys) = compiled(jax.grad(loss, (0, 1), has_aux=True))(params, xs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    state = carry
    for t in range(T):
        x = (features[t], elapsed[t])
        state_now = jnp.where(inputs.resets[t][:, None], 0, state)
        new, y = cell(params, state, x, reset=inputs.resets[t])
        state = jnp.where(mask[t][:, None], new, state_now)
        assert_same(ys[t], jnp.where(mask[t][:, None], y, 0))
    assert_same(last, state)


def test_regular_times_are_irregular_ones_of_one(x64):
    """Whole numbers too: they are times, and become floats."""
    for name, irregular in CELLS.items():
        cell = dataclasses.replace(irregular, irregular=False)
        params, xs, carry, *_ = draw(cell, 0)
        expected = jaxrnn.unroll(cell, params, xs, carry)
        for dtype in (xs.dtype, jnp.int32):
            pair = (xs, jnp.ones(xs.shape[:-1], dtype))
            assert_same(jaxrnn.unroll(irregular, params, pair, carry), expected)
        assert cell.feature_ndim == 1, name
        assert irregular.feature_ndim == (1, 0)


def test_the_solver_converges_to_the_equation(x64):
    """Without recurrence f is constant, and the solution is an exponential; the error
    falls in proportion to the length of a solver step.
    """
    errors = []
    for unfolds in (40, 80):
        cell = LTC(3, unfolds=unfolds, irregular=True)
        params, (xs, elapsed), carry, *_ = drawn(cell, 1)
        params = params | {"recurrent_kernel": jnp.zeros((3, 3))}
        last, _ = jaxrnn.unroll(cell, params, (xs, elapsed), carry)
        p, x, h, time = jax.tree.map(np.asarray, (params, xs[0], carry, elapsed[0]))
        f = sigmoid(x @ p["input_kernel"] + p["bias"])
        rate = np.exp(-p["log_tau"]) + f
        rest = f * p["reversal"] / rate
        exact = rest + (h - rest) * np.exp(-rate * time[:, None])
        errors.append(np.abs(last - exact).max())
    assert errors[0] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("elapsed", [0.0, 1e-3, 1.0, 1e3, 1e12])
def test_a_liquid_state_stays_within_its_bounds(elapsed, x64):
    """Between 0 and A, after any time; no time changes nothing."""
    cell = LTC(4, irregular=True)
    params, xs, *_ = drawn(cell)
    A = params["reversal"]
    carry = 0.5 * jnp.broadcast_to(A, (B, 4))
    _, hs = jaxrnn.unroll(cell, params, (xs[0], jnp.full((T, B), elapsed)), carry)
    share = np.asarray(hs) / np.asarray(A)
    assert ((share >= 0) & (share <= 1)).all()
    if elapsed == 0:
        np.testing.assert_array_equal(hs, jnp.broadcast_to(carry, hs.shape))


def test_a_closed_form_goes_from_one_candidate_to_the_other(x64):
    """After long times m is 0 where f > 0 and 1 where f < 0."""
    cell = CfC(50, backbone_size=None, irregular=True)
    params, (xs, _), carry, *_ = drawn(cell, 1)
    ys = jaxrnn.unroll(cell, params, (xs, jnp.full((1, B), 1e9)), carry)[1][0]
    p, x, h = jax.tree.map(np.asarray, (params, xs[0], carry))
    u = x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"]
    f, _, g, n = np.split(u, 4, axis=-1)
    assert_same(ys, np.where(f > 0, np.tanh(n), np.tanh(g)))


def test_a_pure_state_goes_from_its_start_to_rest(x64):
    """A (1 - f) after no time, A after a long one; the parameters at init, too."""
    cell = CELLS["pure"]
    params, (xs, _), carry, *_ = drawn(cell, 1)
    for elapsed, share in ((0.0, 1.0), (1e9, 0.0)):
        ys = jaxrnn.unroll(cell, params, (xs, jnp.full((1, B), elapsed)), carry)[1][0]
        p, x, h = jax.tree.map(np.asarray, (params, xs[0], carry))
        u = x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"]
        f = 1.7159 * np.tanh(2 * u / 3) @ p["head_kernel"] + p["head_bias"]
        assert_same(ys, p["rest_state"] * (1 - share * f))
    drawn_at_init = cell.init(jax.random.key(0), D)
    assert drawn_at_init["head_kernel"].shape == (4, 3)
    np.testing.assert_array_equal(drawn_at_init["rate"], np.ones(3))


@pytest.mark.parametrize("name", CELLS)
def test_mixed_precision_keeps_the_state_in_float32(name):
    """The time stays as it was given: bfloat16 would round it."""
    cell, inputs = CELLS[name], drawn(CELLS[name])
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), inputs.params)
    xs = (inputs.xs[0].astype(jnp.bfloat16), inputs.xs[1])
    last, ys = jaxrnn.unroll(cell, half, xs)
    assert (last.dtype, ys.dtype) == (jnp.float32, jnp.bfloat16)
    assert cell.initial_carry(half, (B,), jnp.float32).dtype == jnp.float32
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (half, xs))
    np.testing.assert_allclose(
        ys.astype(jnp.float32), jaxrnn.unroll(cell, *wide)[1], atol=0.05
    )


def test_in_a_stack_and_in_both_directions(x64):
    """The layer that reads the times is the first."""
    layer = jaxrnn.stack(jaxrnn.bidirectional(CELLS["cfc"]), jaxrnn.GRU(2))
    params = layer.init(jax.random.key(0), D)
    xs = drawn(CELLS["cfc"]).xs
    assert jaxrnn.unroll(layer, params, xs)[1].shape == (T, B, 2)


XS = jnp.ones((4, 2, D))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: LTC(4, unfolds=0), ValueError, "unfolds must be an int of at least 1"),
        (lambda: LTC(4, tau=0.0), ValueError, r"tau must be a positive .* is 0\.0"),
        (lambda: CfC(4, backbone_size=0), ValueError, "backbone_size must be an int"),
        (
            lambda: CfC(4, mode="minimal"),
            ValueError,
            "mode must be 'default', 'no_gate' or 'pure', but it is 'minimal'",
        ),
        (
            lambda: jaxrnn.unroll(CELLS["ltc"], PARAMS, XS),
            ValueError,
            r"feature_ndim = \(1, 0\) must be .* a pytree prefix of the inputs",
        ),
        (
            lambda: jaxrnn.unroll(CELLS["ltc"], PARAMS, (XS, jnp.ones((4, 3)))),
            ValueError,
            r"must share time and batch axes \(T, \*B\)",
        ),
        (
            lambda: jaxrnn.unroll(CELLS["ltc"], PARAMS, (XS, jnp.ones((4, 2), bool))),
            TypeError,
            r"LTC: the elapsed time must be a real number .* its dtype is bool",
        ),
        (
            lambda: jaxrnn.interop.to_onnx(CELLS["ltc"], PARAMS),
            TypeError,
            "LTC has no operator in ONNX",
        ),
        (
            lambda: jaxrnn.recurrent_dropout(LTC(4), 0.1),
            TypeError,
            "LTC is not a cell whose step takes recurrent_h",
        ),
    ],
)
def test_bad_input(make, error, words, plain_errors):
    with pytest.raises(error, match=words):
        make()


PARAMS = draw_params(CELLS["ltc"], np.random.default_rng(0))


def test_by_name():
    assert make_cell("ltc", 8, 10) == LTC(8)
    assert make_cell("cfc", 8, 10) == CfC(8)
    assert make_cell("cfc:pure", 8, 10) == CfC(8, mode="pure")
    assert make_cell("cfc:no-gate", 8, 10) == CfC(8, mode="no_gate")
