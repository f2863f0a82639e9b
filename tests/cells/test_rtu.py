"""Recurrent trace units: two parts of one complex recurrence, linear and not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import NUMPY_STEPS, compiled, numpy_output
from subjects import B, D, assert_same, draw, outcome

import jaxrnn
from jaxrnn.cells import RTU, NonlinearRTU
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.training import InputError


def test_the_linear_units_are_the_complex_recurrence_in_numpy(x64):
    cell = RTU(4)
    params, xs, carry, *_ = draw(cell, 0)
    last, ys = jaxrnn.unroll(cell, params, xs, carry)
    numbers = jax.tree.map(np.asarray, params)
    state = np.asarray(carry)
    for x, y in zip(np.asarray(xs), ys, strict=True):
        state = NUMPY_STEPS["RTU"](cell, numbers, state, x)
        assert_same(y, numpy_output(cell, numbers, state, x))
    assert_same(last, state)


@pytest.mark.parametrize("engine", [None, jaxrnn.Associative(2)])
def test_without_an_activation_both_kinds_are_one(engine, x64):
    """Values and gradients of the complex recurrence and of that in real arithmetic,
    whose own are compared with numpy.
    """
    linear, real = (kind(4, activation=jnp.positive) for kind in (RTU, NonlinearRTU))
    params, xs, carry, (last, ys), *_ = draw(real, 0)
    halves = lambda h: jax.lax.complex(*jnp.split(h, 2, -1))  # noqa: E731

    def through_complex(params, xs, carry):
        last, ys = jaxrnn.unroll(linear, params, xs, halves(carry), engine=engine)
        return jnp.concatenate([last.real, last.imag], -1), ys

    runs = (through_complex, lambda *a: jaxrnn.unroll(real, *a))
    actual, expected = (
        compiled(lambda *a, f=f: outcome(f, *a))(params, xs, carry, (last, ys))
        for f in runs
    )
    assert_same(actual.values, expected.values)
    assert_same(actual.gradients, expected.gradients)


def test_units_see_no_state_but_their_own(x64):
    cell = NonlinearRTU(4, activation=jnp.tanh)
    params, xs, carry, *_ = draw(cell, 0)
    z = cell.project(params, xs[0, 0])
    jacobian = np.asarray(jax.jacobian(lambda h: cell.step(params, h, z))(carry[0]))
    own = np.kron(np.ones((2, 2)), np.eye(4))
    assert (jacobian[own == 0] == 0).all()
    assert (np.abs(jacobian[own == 1]) > 0).all()


def test_begins_on_the_ring_and_never_grows():
    cell = RTU(1000, r_min=0.5, r_max=0.9, max_phase=1.0)
    params = cell.init(jax.random.key(0), D)
    eigenvalues = np.asarray(cell.eigenvalues(params))
    size, phase = np.abs(eigenvalues), np.angle(eigenvalues)
    assert (size.min(), size.max()) == pytest.approx((0.5, 0.9), abs=0.01)
    assert np.median(size**2) == pytest.approx((0.25 + 0.81) / 2, abs=0.03)
    assert (phase.min(), phase.max()) == pytest.approx((0, 1), abs=0.02)
    # a unit keeps the variance of white noise, because gamma^2 = 1 - r^2
    z = cell.project(params, jnp.eye(D))
    W = np.asarray(params["input_kernel"])
    np.testing.assert_allclose(
        z[:, :1000] / W[:, :1000], np.sqrt(1 - size**2)[None].repeat(D, 0), rtol=1e-4
    )
    steep = params | {"nu": jnp.full(1000, 5.0), "theta": jnp.full(1000, 3.0)}
    assert (np.abs(cell.eigenvalues(steep)) <= 1).all()


@pytest.mark.parametrize("kind", [RTU, NonlinearRTU])
def test_mixed_precision_keeps_the_state_in_float32(kind):
    cell = kind(4)
    params = cell.init(jax.random.key(0), D, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    xs = jax.random.normal(jax.random.key(1), (20, B, D), jnp.bfloat16)
    last, ys = jaxrnn.unroll(cell, params, xs)
    assert last.dtype == (jnp.complex64 if kind is RTU else jnp.float32)
    assert ys.dtype == jnp.bfloat16
    assert cell.initial_carry(params, (B,), jnp.float32).dtype == last.dtype
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
    np.testing.assert_allclose(
        ys.astype(jnp.float32), jaxrnn.unroll(cell, *wide)[1], atol=0.03
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RTU(4, r_min=0.9, r_max=0.9), "RTU: r_min and r_max must satisfy"),
        (lambda: NonlinearRTU(4, max_phase=7.0), "NonlinearRTU: max_phase must lie in"),
        (
            lambda: RTU(4, learned_initial_carry=True),
            "RTU: its carry is complex, .* or use NonlinearRTU",
        ),
    ],
)
def test_bad_options(make, words, plain_errors):
    with pytest.raises(ValueError, match=words):
        make()


def test_by_name_and_refusals(plain_errors):
    assert make_cell("rtu", 8, 10) == RTU(8)
    assert make_cell("rtu:nonlinear", 8, 10) == NonlinearRTU(8)
    with pytest.raises(InputError, match="'linear' is no variant of rtu"):
        make_cell("rtu:linear", 8, 10)
    cell = NonlinearRTU(4)
    params = cell.init(jax.random.key(0), D)
    with pytest.raises(TypeError, match="NonlinearRTU has no operator in ONNX"):
        jaxrnn.interop.to_onnx(cell, params)
    with pytest.raises(TypeError, match="NonlinearRTU is not linear in its state"):
        jaxrnn.unroll(cell, params, jnp.ones((5, D)), engine=jaxrnn.Associative())
