"""The minimal gated unit: the GRU with tied gates that it is, and its biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import B, D, assert_same, draw

import jaxrnn
from jaxrnn.cells import MGU
from jaxrnn.initializers import Chrono
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.training import InputError


def test_it_is_a_gru_with_tied_gates(x64):
    """r = f and z = 1 - f = sigmoid(-a), reset before U_n."""
    cell, gru = MGU(4), jaxrnn.GRU(4, reset_after=False)
    params, xs, carry, *_ = draw(cell, 0)

    def tied(packed):
        f, n = jnp.split(packed, 2, axis=-1)
        return jnp.concatenate([f, -f, n], axis=-1)

    expected = jaxrnn.unroll(gru, jax.tree.map(tied, params), xs, carry)
    assert_same(jaxrnn.unroll(cell, params, xs, carry), expected)


def test_f_replaces_and_what_is_left_keeps(x64):
    """A large update bias forgets all, a large negative one nothing."""
    for bias, kept in ((-1e3, True), (1e3, False)):
        cell = MGU(4, update_bias=bias)
        params = cell.init(jax.random.key(0), D)
        carry = draw(cell, 0).carry
        last, _ = jaxrnn.unroll(cell, params, draw(cell, 0).xs, carry)
        assert bool((last == carry).all()) == kept
        gates = cell.gate_values(
            params, carry, cell.project(params, draw(cell, 0).xs[0])
        )
        np.testing.assert_allclose(gates["z"].value, float(kept), atol=1e-12)
        np.testing.assert_allclose(gates["f"].value, float(not kept), atol=1e-12)


def test_chrono_biases_keep_for_their_time():
    bias = MGU(1000, update_bias=Chrono(50)).init(jax.random.key(0), 1)["bias"]
    time = 1 + np.exp(-np.asarray(bias[:1000]))  # 1 / f steps
    assert (time.min(), time.max()) == (
        np.clip(time.min(), 2, 2.5),
        np.clip(time.max(), 49, 50),
    )
    assert (bias[1000:] == 0).all()


def test_mixed_precision_keeps_its_sum_in_float32():
    """bfloat16 parameters and outputs; the carry is float32, and wider if asked for."""
    cell = MGU(4)
    params = cell.init(jax.random.key(0), D, dtype=jnp.bfloat16)
    xs = jax.random.normal(jax.random.key(1), (6, B, D), jnp.bfloat16)
    last, ys = jaxrnn.unroll(cell, params, xs)
    assert (last.dtype, ys.dtype) == (jnp.float32, jnp.bfloat16)
    assert cell.initial_carry(params, (B,), jnp.float32).dtype == jnp.float32
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
    np.testing.assert_allclose(
        ys.astype(jnp.float32), jaxrnn.unroll(cell, *wide)[1], atol=0.03
    )


def test_by_name():
    assert make_cell("mgu", 8, 10) == MGU(8)
    assert make_cell("mgu:chrono", 8, 10) == MGU(8, update_bias=Chrono(10.0))
    with pytest.raises(InputError, match="'2' is no variant of mgu"):
        make_cell("mgu:2", 8, 10)
