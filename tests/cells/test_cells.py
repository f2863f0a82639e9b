"""The arithmetic of the cells: numpy's steps, closed forms, numbers worked out by
hand, dtypes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import NUMPY_STEPS, TWINS_ELSEWHERE, compiled, numpy_output
from subjects import (
    ALWAYS,
    CELLS,
    NEVER,
    PLAIN,
    SUBJECTS,
    B,
    D,
    T,
    assert_same,
    draw,
    unrolled,
)

import jaxrnn

WITH_A_TWIN_HERE = [
    name for name, cell in CELLS.items() if type(cell).__name__ not in TWINS_ELSEWHERE
]


@pytest.mark.parametrize("name", WITH_A_TWIN_HERE)
def test_step_is_the_equations_in_numpy(name, x64):
    cell = CELLS[name]
    for seed in range(3):
        inputs = draw(name, seed)
        params, x = jax.tree.map(np.asarray, inputs.params), np.asarray(inputs.xs[0])
        expected = NUMPY_STEPS[type(cell).__name__](
            cell, params, jax.tree.map(np.asarray, inputs.carry), x
        )
        carry, y = compiled(cell)(inputs.params, inputs.carry, inputs.xs[0])
        assert_same(jax.tree.leaves(carry), jax.tree.leaves(expected))
        assert_same(y, numpy_output(cell, params, expected, x))


@pytest.mark.parametrize("name", CELLS)
def test_project_step_and_output_take_any_leading_axes(name, x64):
    cell, inputs = CELLS[name], draw(name, 0)
    z = cell.project(inputs.params, inputs.xs)
    assert_same(
        jax.tree.map(lambda a: a[1, 2], z), cell.project(inputs.params, inputs.xs[1, 2])
    )
    carries = unrolled(name)(*inputs[:4], ALWAYS, NEVER).carries
    assert cell.output(inputs.params, carries, inputs.xs).shape[:2] == (T, B)


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_cell_has_a_closed_form(seed, x64):
    """h_T = A^T h_0 + sum A^(T-1-t) B x_t, and its gradients, of delta_t = dL/dh_T
    A^(T-1-t) for every t.
    """
    cell = jaxrnn.Elman(4, activation=lambda a: a)
    params, xs, h0, (cotangent, _), _, _ = draw(cell, seed)
    A, W, b = params["recurrent_kernel"], params["input_kernel"], params["bias"]
    powers = [np.linalg.matrix_power(A, n) for n in range(T + 1)]
    expected = h0 @ powers[T] + sum(
        (xs[t] @ W + b[None]) @ powers[T - 1 - t] for t in range(T)
    )
    last, pullback = jax.vjp(lambda *a: jaxrnn.unroll(cell, *a)[0], params, xs, h0)
    assert_same(last, expected)
    params_gradient, x_gradient, h_gradient = pullback(cotangent)
    deltas = [cotangent @ powers[T - 1 - t].T for t in range(T)]
    assert_same(h_gradient, cotangent @ powers[T].T)
    assert_same(x_gradient, jnp.stack([delta @ W.T for delta in deltas]))
    assert_same(params_gradient["bias"], sum(delta.sum(0) for delta in deltas))
    assert_same(
        params_gradient["input_kernel"],
        sum(x.T @ delta for x, delta in zip(xs, deltas)),
    )
    states = [h0]
    for x in xs:
        states.append(states[-1] @ A + x @ W + b[None])
    assert_same(
        params_gradient["recurrent_kernel"],
        sum(h.T @ delta for h, delta in zip(states, deltas)),
    )


def test_an_lstm_worked_out_by_hand(x64):
    """One unit, two steps, literal numbers."""
    params = {
        "input_kernel": jnp.array([[0.5, -0.5, 1.0, 0.25]]),
        "recurrent_kernel": jnp.array([[0.1, 0.2, 0.3, 0.4]]),
        "bias": jnp.array([0.0, 1.0, 0.0, -1.0]),
    }
    # Step 1: i = sigmoid(0.5) = 0.622459, g = tanh(1) = 0.761594, o = sigmoid(-0.75) =
    # 0.320821; c = i g; h = o tanh(c). Step 2: i = sigmoid(-1 + 0.1 h), f = sigmoid(2 +
    # 0.2 h), g = tanh(-2 + 0.3 h), o = sigmoid(-1.5 + 0.4 h); c = f c + i g.
    carry, ys = jaxrnn.unroll(jaxrnn.LSTM(1), params, jnp.array([[1.0], [-2.0]]))
    np.testing.assert_allclose(
        ys[:, 0], [0.14163458175512056, 0.029903232370980082], rtol=1e-13
    )
    np.testing.assert_allclose(
        carry, [[0.029903232370980082], [0.1578364776243042]], rtol=1e-13
    )


def test_forget_gate_open_and_input_gate_shut_keeps_for_ever(x64):
    cell = jaxrnn.LSTM(3)
    params = cell.init(jax.random.key(0), D)
    shut = params | {"bias": jnp.repeat(jnp.array([-1e3, 1e3, 0.0, 0.0]), 3)}
    carry = jaxrnn.LSTMState(jnp.zeros(3), jnp.arange(3.0))
    (_, c), _ = jaxrnn.unroll(cell, shut, draw(cell, 0).xs[:, 0], carry)
    np.testing.assert_array_equal(c, carry.c)


def test_an_update_gate_of_one_keeps_for_ever(x64):
    cell = jaxrnn.GRU(3, update_bias=1e3)
    params = cell.init(jax.random.key(0), D)
    last, _ = jaxrnn.unroll(cell, params, draw(cell, 0).xs[:, 0], jnp.arange(3.0))
    np.testing.assert_array_equal(last, jnp.arange(3.0))


def test_the_two_resets_are_different_functions(x64):
    after, before = jaxrnn.GRU(4), jaxrnn.GRU(4, reset_after=False)
    params, xs, carry, *_ = draw(after, 0)
    bare = {name: leaf for name, leaf in params.items() if name != "recurrent_bias"}
    difference = (
        jaxrnn.unroll(after, params, xs, carry)[1]
        - jaxrnn.unroll(before, bare, xs, carry)[1]
    )
    assert jnp.abs(difference).max() > 1e-3


# -- dtypes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "user"])
def test_half_precision_keeps_its_dtypes(name):
    """bfloat16 in, bfloat16 out, and carries as initial_carry says; the values are
    near those of float64.
    """
    layer = SUBJECTS[name]
    with jax.enable_x64(True):
        inputs = draw(name, 0)
        exact = np.asarray(unrolled(name)(*inputs).values[1], np.float32)
    params, xs = jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a), jnp.bfloat16), inputs[:2]
    )
    expected = jax.eval_shape(lambda p: layer.initial_carry(p, (B,)), params)
    carry = jax.tree.map(
        lambda a, like: jnp.asarray(np.asarray(a), like.dtype), inputs.carry, expected
    )

    @compiled
    def run(params, xs, carry):
        def loss(params):
            last, ys = jaxrnn.unroll(
                layer, params, xs, carry, mask=inputs.mask, resets=inputs.resets
            )
            return ys.astype(jnp.float32).sum(), (last, ys)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (last, ys)), gradient = run(params, xs, carry)
    assert ys.dtype == jnp.bfloat16
    assert jax.tree.map(lambda a: a.dtype, last) == jax.tree.map(
        lambda a: a.dtype, expected
    )
    # A layer without parameters has no gradient.
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {
        leaf.dtype for leaf in jax.tree.leaves(params)
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} <= {jnp.dtype(jnp.bfloat16)}
    assert all(
        np.isfinite(np.asarray(leaf, np.float32)).all()
        for leaf in jax.tree.leaves(gradient)
    )
    np.testing.assert_allclose(
        np.asarray(ys, np.float32), exact, atol=0.1 * max(1, np.abs(exact).max())
    )


def test_accumulators_stay_float32():
    for dtype in (jnp.bfloat16, jnp.float16):
        lstm, gru, elman = jaxrnn.LSTM(4), jaxrnn.GRU(4), jaxrnn.Elman(4)
        params = [
            cell.init(jax.random.key(0), D, dtype=dtype) for cell in (lstm, gru, elman)
        ]
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        state = lstm.initial_carry(params[0])
        assert (state.h.dtype, state.c.dtype) == (dtype, jnp.float32)
        assert gru.initial_carry(params[1]).dtype == jnp.float32
        assert elman.initial_carry(params[2]).dtype == dtype


def test_a_small_sum_is_not_lost_in_half_precision():
    """c grows by 1/512 a step: in bfloat16 it would stop at 1/2 or so, in float32 it
    reaches 1.
    """
    cell = jaxrnn.LSTM(1)
    step = math.atanh(1 / 512)
    params = {
        "input_kernel": jnp.array([[0.0, 0.0, step, 0.0]], jnp.bfloat16),
        "recurrent_kernel": jnp.zeros((1, 4), jnp.bfloat16),
        "bias": jnp.array([50.0, 50.0, 0.0, 0.0], jnp.bfloat16),
    }
    carry, _ = jaxrnn.unroll(cell, params, jnp.ones((512, 1), jnp.bfloat16))
    assert carry.c[0] == pytest.approx(1, rel=0.01)


# -- cells as configuration ------------------------------------------------------------


@pytest.mark.parametrize("name", SUBJECTS)
def test_equal_cells_are_equal_and_hash_equal(name):
    layer = SUBJECTS[name]
    twin = dataclasses.replace(layer)
    assert twin is not layer
    assert twin == layer
    assert hash(twin) == hash(layer)


@pytest.mark.parametrize(
    "name",
    ["elman", "lstm_all", "gru_before_layer_norm", "user", "stack", "bidirectional"],
)
def test_init_is_a_function_of_its_key(name):
    init = compiled(lambda key: SUBJECTS[name].init(key, D))
    one, same, other = (init(jax.random.key(seed, impl="rbg")) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other))
    )


def test_the_parts_of_a_stack_draw_different_parameters():
    params = jaxrnn.stack(jaxrnn.Elman(D), jaxrnn.bidirectional(jaxrnn.Elman(D))).init(
        jax.random.key(0), D
    )
    kernels = [
        params["layer_0"],
        params["layer_1"]["forward"],
        params["layer_1"]["backward"],
    ]
    for i, one in enumerate(kernels):
        for other in kernels[:i]:
            assert (one["input_kernel"] != other["input_kernel"]).all()


def test_a_learned_initial_carry_starts_at_zero_and_fills_the_batch():
    cell = jaxrnn.LSTM(4, learned_initial_carry=True, projection_size=2)
    params = cell.init(jax.random.key(0), D)
    assert jax.tree.map(jnp.shape, params["initial_carry"]) == ((2,), (4,))
    params["initial_carry"] = jaxrnn.LSTMState(jnp.arange(2.0), jnp.arange(4.0))
    carry = cell.initial_carry(params, (5, 3))
    np.testing.assert_array_equal(carry.h, np.broadcast_to(np.arange(2.0), (5, 3, 2)))
    np.testing.assert_array_equal(carry.c, np.broadcast_to(np.arange(4.0), (5, 3, 4)))
