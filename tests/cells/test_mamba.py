"""Mamba beside the laws of state spaces (tests/matrix/test_state_space.py) and its twin
in numpy (test_twins.py): its beginning, its options, and what it is for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import normal

import jaxrnn
from jaxrnn.cells import Mamba
from jaxrnn.testing import check_cell

KEY = jax.random.key(0)


def test_the_published_beginning(x64):
    params = Mamba(200, state_size=3).init(KEY, 33)
    rates = np.exp(params["A_log"])
    np.testing.assert_allclose(rates, np.tile([1.0, 2.0, 3.0], (200, 1)))
    steps = np.log1p(np.exp(np.asarray(params["dt_bias"])))
    assert 0.001 <= steps.min() < 0.002
    assert 0.05 < steps.max() <= 0.1
    assert params["dt_kernel"].shape == (3, 200)  # 33 / 16, rounded up
    bound = np.abs(params["dt_kernel"]).max()
    assert 0.95 * 3**-0.5 < bound <= 3**-0.5
    bound = np.abs(params["conv_kernel"]).max()
    assert 0.48 < bound <= 0.5
    assert (params["skip"] == 1).all()


def test_sizes_of_parameters_and_outputs():
    cell = Mamba(4, state_size=2, rank=3, conv=None, output_size=7)
    params = jax.eval_shape(lambda key: cell.init(key, 5), KEY)
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "input_kernel": (5, 8),
        "select_kernel": (4, 3 + 4),
        "dt_kernel": (3, 4),
        "dt_bias": (4,),
        "A_log": (4, 2),
        "skip": (4,),
        "output_kernel": (4, 7),
    }
    xs = jax.ShapeDtypeStruct((6, 2, 5), jnp.float32)
    _, ys = jax.eval_shape(lambda *a: jaxrnn.unroll(cell, *a), params, xs)
    assert ys.shape == (6, 2, 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"state_size": 0}, "state_size must be an int of at least 1"),
        ({"rank": 0}, "rank must be an int of at least 1"),
        ({"output_size": 0}, "output_size must be an int of at least 1"),
        ({"conv": 1}, "conv must be an int from 2 .*conv=None"),
    ],
)
def test_options_that_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Mamba(4, **options)


def test_a_channel_of_large_steps_forgets_and_one_of_small_steps_keeps(x64):
    """The decays of two steps, dt near 20 and near 0, from gate_values."""
    cell = Mamba(2, state_size=3, rank=1)
    params = normal(
        np.random.default_rng(0), jax.eval_shape(lambda key: cell.init(key, 4), KEY)
    )
    params |= {"dt_bias": jnp.asarray([20.0, -30.0])}
    x = jax.random.normal(KEY, (5, 4))
    gate = cell.gate_values(
        params, cell.initial_carry(params, (5,)), cell.project(params, x)
    )["decay"]
    assert gate.keeps
    forgets, keeps = np.split(np.asarray(gate.value), 2, axis=-1)
    assert (forgets < 1e-6).all()
    assert (keeps > 1 - 1e-11).all()
    assert (keeps <= 1).all()


def test_check_cell():
    report = check_cell(Mamba(4, state_size=2, conv=2), 3)
    assert report["chunks"].status == "holds"


def test_all_carries_are_those_of_steps():
    cell, xs = Mamba(4, state_size=2), jax.random.normal(KEY, (5, 2, 3))
    params = jax.jit(cell.init, static_argnums=1)(KEY, 3)
    with pytest.raises(ValueError, match="carries"):
        jaxrnn.unroll(
            cell, params, xs, return_carries=True, engine=jaxrnn.Associative()
        )
    carries = jaxrnn.unroll(cell, params, xs, return_carries=True)[2]
    assert carries.s.shape == (5, 2, 4, 2)


def test_in_the_published_block(x64):
    """residual(norm(Mamba)): streaming gives what all of time at once does."""
    block = jaxrnn.residual(
        jaxrnn.stack(jaxrnn.layers.rms_norm(), Mamba(6, state_size=2))
    )
    params, xs = (
        jax.jit(block.init, static_argnums=1)(KEY, 3),
        jax.random.normal(KEY, (7, 2, 3)),
    )
    _, ys = jaxrnn.unroll(block, params, xs)
    carry, step = block.initial_carry(params, (2,)), jax.jit(block.__call__)
    for x, y in zip(xs, ys, strict=True):
        carry, now = step(params, carry, x)
        np.testing.assert_allclose(now, y, rtol=0, atol=1e-12)
