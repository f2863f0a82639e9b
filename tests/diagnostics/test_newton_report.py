"""The figures of `newton_report`, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Newton, Scan
from jaxrnn.diagnostics import lyapunov_spectrum, newton_report

KEY = jax.random.key(3)


def elman(gain, steps, size=6):
    cell = jaxrnn.Elman(size)
    params = cell.init(jax.random.key(0), 3)
    params["recurrent_kernel"] = gain * params["recurrent_kernel"]
    return cell, params, jax.random.normal(jax.random.key(1), (steps, 2, 3))


def test_a_contracting_cell(x64):
    cell, params, xs = elman(0.8, 30)
    (layer,) = newton_report(cell, params, xs, key=KEY, engine=Newton(12)).layers
    assert layer.structure == "full 6x6"
    assert layer.chunk == 12
    assert layer.iterations.shape == (3,)  # the last chunk is shorter
    assert (layer.iterations >= 2).all()
    assert (layer.iterations <= 10).all()
    assert layer.converged.all()
    assert layer.change.max() <= 50 * np.finfo(float).eps
    assert layer.residual <= 1e-14
    assert layer.bytes == 12 * 2 * 6 * 7 * 8
    assert 1 < layer.amplification < 100
    assert not any("did not converge" in sentence for sentence in layer.advice)
    # The exponent is that of the diagnostic by itself, from the same direction.
    key = jax.random.split(jax.random.fold_in(KEY, 0))[1]
    exponents = lyapunov_spectrum(cell, params, xs, key=key, count=1).exponents
    assert layer.exponent < 0
    np.testing.assert_allclose(layer.exponent, exponents.max(), rtol=1e-9)


def test_what_does_not_converge_is_said(x64):
    cell, params, xs = elman(5.0, 40, 8)
    engine = Newton(20, max_iterations=3)
    report = newton_report(cell, params, xs, key=KEY, engine=engine)
    (layer,) = report.layers
    assert not layer.converged.any()
    assert (layer.iterations == 3).all()
    assert layer.residual <= 1e-14  # what is returned was run step by step
    text = str(report)
    assert "2 of 2 chunks did not converge" in text
    assert "full 8x8" in text
    nan = newton_report(
        cell, params, xs, key=KEY, engine=Newton(20, max_iterations=3, fallback="nan")
    )
    assert "are NaN" in str(nan)


def test_a_positive_exponent_is_said(x64):
    """Whatever the residual is: each unit grows by 1.3 where softplus is steep."""
    cell = jaxrnn.Elman(3, activation=jax.nn.softplus)
    params = cell.init(jax.random.key(0), 3)
    params["recurrent_kernel"] = 1.3 * jnp.eye(3)
    xs = jax.random.normal(jax.random.key(1), (24, 3))
    report = newton_report(cell, params, xs, key=KEY, engine=Newton(12))
    (layer,) = report.layers
    assert 0 < layer.exponent < np.log(1.3)
    assert layer.converged.all()
    assert layer.residual <= 1e-13
    assert layer.amplification > 50
    assert "The leading exponent is not negative" in str(report)


def test_the_residual_by_hand(x64):
    """Of states that have not converged, in a chunk that is all of T."""
    cell, params, xs = elman(3.0, 10)
    engine = Newton(10, max_iterations=2, fallback="nan")
    (layer,) = newton_report(cell, params, xs, key=KEY, engine=engine).layers
    # Two Newton iterations from zeros, in NumPy.
    U = np.asarray(params["recurrent_kernel"])
    zs = np.asarray(xs @ params["input_kernel"] + params["bias"][None, None])
    first = np.zeros((2, 6))
    states = np.zeros((10, 2, 6))
    for _ in range(2):
        before = np.concatenate([first[None], states[:-1]])
        new = np.tanh(before @ U + zs)
        d = np.zeros((2, 6))
        moved = np.empty_like(states)
        for t in range(10):
            step = (d @ U) * (1 - new[t] ** 2)
            moved[t] = new[t] + step
            d = step + new[t] - states[t]
        states = moved
    before = np.concatenate([first[None], states[:-1]])
    residual = np.abs(np.tanh(before @ U + zs) - states) / (1 + np.abs(states))
    np.testing.assert_allclose(layer.residual, residual.max(), rtol=1e-9)
    assert layer.residual > 1e-3


@pytest.mark.parametrize("reverse", [False, True])
def test_the_amplification_of_a_linear_cell(reverse, x64):
    """One unit: the deviation is a sum of products of its factors, with the signs."""
    cell = jaxrnn.MinGRU(1)
    params = cell.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (9, 3))
    (layer,) = newton_report(
        cell, params, xs, key=KEY, engine=Newton(4), reverse=reverse
    ).layers
    factors = np.asarray(cell.affine(params, cell.project(params, xs))[0])[:, 0]
    factors = factors[::-1] if reverse else factors

    def deviation(signs):
        d, most = 0.0, 0.0
        for a, e in zip(factors, signs, strict=True):
            d = a * d + e
            most = max(most, abs(d))
        return most

    possible = [
        deviation([1 - 2 * (n >> t & 1) for t in range(9)]) for n in range(2**9)
    ]
    assert np.abs(np.array(possible) - layer.amplification).min() <= 1e-12
    assert layer.structure == "units 1x1"
    assert (layer.iterations == 1).all()
    assert layer.converged.all()


def test_layers_have_a_report_each_and_masks_and_resets_are_theirs(x64):
    layer = jaxrnn.stack(jaxrnn.DiagonalLSTM(3), jaxrnn.GRU(2))
    params = layer.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (8, 2, 3))
    mask = jnp.ones((8, 2), bool).at[5:, 1].set(False)
    resets = jnp.zeros((8, 2), bool).at[4].set(True)
    report = newton_report(
        layer, params, xs, key=KEY, engine=Newton(4), mask=mask, resets=resets
    )
    assert [r.structure for r in report.layers] == ["units 2x2", "full 2x2"]
    assert all(r.converged.all() for r in report.layers)
    assert "DiagonalLSTM" in str(report)


def test_a_step_without_forward_mode_has_no_exponent(plain_errors):
    @jax.custom_vjp
    def bent(x):
        return jnp.sin(x)

    bent.defvjp(lambda x: (bent(x), x), lambda x, g: (g * jnp.cos(x),))
    cell, params, xs = elman(1.0, 4)
    cell = jaxrnn.Elman(6, activation=bent)
    with pytest.raises(ValueError, match=r"newton_report: the exponent of Elman.*rule"):
        newton_report(cell, params, xs, key=KEY)


def test_bad_arguments(plain_errors):
    cell, params, xs = elman(1.0, 4)
    with pytest.raises(TypeError, match=r"newton_report: engine must be .*Newton"):
        newton_report(cell, params, xs, key=KEY, engine=Scan())
    with pytest.raises(ValueError, match="fewer than two steps"):
        newton_report(cell, params, xs[:1], key=KEY)
    with pytest.raises(TypeError, match=r"newton_report: key must"):
        newton_report(cell, params, xs, key=None)
