"""The continuous-time network: its equation, Dale's law, and time constants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import compiled
from subjects import B, D, assert_same, draw

import jaxrnn
from jaxrnn.cells import CTRNN
from jaxrnn.initializers import Normal
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.training import InputError


def test_small_steps_solve_the_differential_equation(x64):
    """For f(s) = s the solution is known, exp(M t) s(0) of an affine system, and the
    error of Euler's method falls in proportion to dt.
    """
    size, time, taus = 3, 2.0, (1.0, 2.0, 4.0)
    random = np.random.default_rng(0)
    U, drive, start = (random.normal(size=s) for s in ((3, 3), 3, 3))
    # d(s, 1)/dt = (s, 1) M
    M = np.zeros((size + 1, size + 1))
    M[:size, :size], M[size, :size] = (U - np.eye(size)) / taus, drive / taus
    values, vectors = np.linalg.eig(M)
    flow = (vectors * np.exp(values * time)) @ np.linalg.inv(vectors)
    exact = (np.append(start, 1) @ flow).real[:size]
    params = {
        "input_kernel": jnp.zeros((1, size)),
        "recurrent_kernel": jnp.asarray(U),
        "bias": jnp.asarray(drive),
    }
    errors = []
    for steps in (1000, 2000):
        cell = CTRNN(size, dt=time / steps, tau=taus, activation=jnp.positive)
        xs = jnp.zeros((steps, 1))
        last, _ = jaxrnn.unroll(cell, params, xs, jnp.asarray(start))
        errors.append(np.abs(last - exact).max())
    assert errors[0] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


def test_a_learned_time_constant_begins_at_tau_and_stays_above_dt(x64):
    tau = (2.5, 4.0, 40.0, 400.0)
    cell = CTRNN(4, dt=2.0, tau=tau, learned_tau=True)
    fixed = CTRNN(4, dt=2.0, tau=tau)
    params, xs, carry, *_ = draw(fixed, 0)
    learned = params | {"rate_logit": cell.init(jax.random.key(0), D)["rate_logit"]}
    np.testing.assert_allclose(cell.time_constants(learned), tau, rtol=1e-12)
    assert_same(
        jaxrnn.unroll(cell, learned, xs, carry), jaxrnn.unroll(fixed, params, xs, carry)
    )
    np.testing.assert_array_equal(fixed.time_constants(params), tau)
    extreme = learned | {"rate_logit": jnp.array([-800.0, 800.0, -1e4, 1e4])}
    gradient = jax.grad(lambda p: jaxrnn.unroll(cell, p, xs, carry)[1].sum())(extreme)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("dale", "excitatory"), [(0.8, 8), (0.0, 0), (1.0, 10), (0.25, 2)]
)
def test_dales_law_holds_in_training(dale, excitatory):
    """Before and after updates large enough to change the signs of V."""
    cell = CTRNN(10, dale=dale, autapses=False, activation=jax.nn.softplus)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (6, B, D))
    optimizer = optax.sgd(1.0)
    state = optimizer.init(params)

    @compiled
    def update(params, state):
        loss = lambda p: jnp.sin(3 * jaxrnn.unroll(cell, p, xs)[1]).sum()  # noqa: E731
        changes, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, changes), state

    first = params
    for _ in range(3):
        U = np.asarray(cell.recurrent_weights(params))
        assert (U[:excitatory] >= 0).all()
        assert (U[excitatory:] <= 0).all()
        assert (np.diag(U) == 0).all()
        off_diagonal = U[~np.eye(10, dtype=bool)]
        assert (off_diagonal != 0).all()
        params, state = update(params, state)
    signs = [np.sign(p["recurrent_kernel"]) for p in (first, params)]
    assert (signs[0] != signs[1]).any()


def test_excitation_and_inhibition_balance_at_init():
    """Means cancel, and the sum of squares is that of the initializer."""
    cell = CTRNN(400, dale=0.8, recurrent_init=Normal(1.5))
    params = cell.init(jax.random.key(0), 1)
    U = np.asarray(cell.recurrent_weights(params))
    mean_input = np.abs(U).sum(0)
    assert np.abs(U.sum(0) / mean_input).mean() < 0.05
    assert np.square(U).sum(0).mean() == pytest.approx(1.5**2, rel=0.05)
    plain = CTRNN(400, recurrent_init=Normal(1.5)).init(jax.random.key(0), 1)
    np.testing.assert_allclose(
        params["recurrent_kernel"][:320], plain["recurrent_kernel"][:320] / 2
    )
    np.testing.assert_allclose(
        params["recurrent_kernel"][320:], plain["recurrent_kernel"][320:] * 2
    )


def test_mixed_precision_keeps_its_sum_in_float32():
    """With a time constant of 1024 steps, bfloat16 would lose every addend."""
    cell = CTRNN(2, tau=1024.0)
    params = {
        "input_kernel": jnp.ones((1, 2), jnp.bfloat16),
        "recurrent_kernel": jnp.zeros((2, 2), jnp.bfloat16),
        "bias": jnp.zeros(2, jnp.bfloat16),
    }
    last, ys = jaxrnn.unroll(cell, params, jnp.ones((2048, 1), jnp.bfloat16))
    assert (last.dtype, ys.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(last, 1 - (1 - 1 / 1024) ** 2048, rtol=1e-4)
    assert cell.initial_carry(params, (B,), jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dt": 0.0}, ValueError, r"0 < dt <= tau, .* they are 0\.0 and 5\.0"),
        ({"dt": 9.0}, ValueError, r"0 < dt <= tau, .* they are 9\.0 and 5\.0"),
        ({"tau": float("inf")}, ValueError, r"they are 1\.0 and inf"),
        ({"tau": (5.0, 6.0)}, ValueError, "tau has 2 entries, but there are 4 units"),
        ({"tau": "learned"}, TypeError, "tau a number or a tuple .* 'learned'"),
        ({"dt": True}, TypeError, "dt must be a number, .* True"),
        (
            {"dt": 5.0, "learned_tau": True},
            ValueError,
            r"a learned tau must begin above dt, but both are 5\.0",
        ),
        ({"dale": 1.2}, ValueError, r"share of excitatory units, .* it is 1\.2"),
        ({"dale": True}, ValueError, "share of excitatory units, .* it is True"),
        ({"activation": "relu"}, TypeError, "activation must be a function"),
    ],
)
def test_bad_options(options, error, words, plain_errors):
    with pytest.raises(error, match=words):
        CTRNN(4, **options)


def test_what_cannot_hold_it_refuses(plain_errors):
    cell = CTRNN(4)
    params = cell.init(jax.random.key(0), D)
    with pytest.raises(TypeError, match="CTRNN has no operator in ONNX"):
        jaxrnn.interop.to_onnx(cell, params)
    with pytest.raises(TypeError, match=r"supported are .* but got CTRNN"):
        jaxrnn.interop.to_torch(cell, params)
    with pytest.raises(TypeError, match="CTRNN is not a cell whose step takes"):
        jaxrnn.recurrent_dropout(cell, 0.1)


def test_by_name():
    assert make_cell("ctrnn", 8, 10) == CTRNN(8)
    assert make_cell("ctrnn:20", 8, 10) == CTRNN(8, tau=20.0)
    with pytest.raises(InputError, match=r"'0\.5' is no variant of ctrnn"):
        make_cell("ctrnn:0.5", 8, 10)
