"""The blocks of a step's Jacobian by units, against the whole Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import PLAIN, draw

from jaxrnn.core.gradient_scale import scale_gradient
from jaxrnn.engines.jaxpr.grouping import Grouping
from jaxrnn.engines.jaxpr.tangent_program import from_real_parts, real_parts
from jaxrnn.engines.jaxpr.unit_blocks import (
    MixedUnitsError,
    unit_blocks,
)
from jaxrnn.engines.recurrence.run import one_step

UNIT_WISE = {  # the number of real parts of a unit
    "indrnn": 1,
    "diagonal_gru": 1,
    "diagonal_lstm": 2,
    "user": 1,
    "min_gru": 1,
    "min_lstm": 1,
    "rg_lru": 1,
    "user_linear": 2,
    "nonlinear_rtu": 2,
    "rtu": 2,
    "lru": 2,
}
ONE_MATMUL = {"elman": 1, "lstm": 2, "gru": 1, "lstm_peephole": 2, "slstm": 4}


def problem(name, flags=True):
    """A step on flat lists, and its random arguments, with mask and reset."""
    inputs = draw(name, 0, 1)
    cell, (leaves, tree) = PLAIN[name], jax.tree.flatten(inputs.carry)

    def step(leaves, given):
        now = given if flags else (given[0], None, None)
        carry = jax.tree.unflatten(tree, leaves)
        return jax.tree.leaves(one_step(cell, inputs.params, carry, now))

    return step, leaves, (inputs.xs[0], inputs.mask[0], inputs.resets[0])


def whole_blocks(step, leaves, given, units):
    """The blocks on the diagonal of the Jacobian by jacfwd, and what is outside."""
    parts, grouping = real_parts(leaves), Grouping(1, units)
    flat = grouping.split(parts)  # (B, H, m)

    def of_vector(v):
        moved = from_real_parts(grouping.join(v, parts), leaves)
        return grouping.split(real_parts(step(moved, given)))

    jacobian = np.array(jax.jit(jax.jacfwd(of_vector))(flat))
    b, u = np.meshgrid(*map(np.arange, flat.shape[:2]), indexing="ij")
    blocks = jacobian[b, u, :, b, u, :]
    jacobian[b, u, :, b, u, :] = 0
    return blocks, np.abs(jacobian).max()


@pytest.mark.parametrize("name", UNIT_WISE)
def test_blocks_are_the_whole_jacobian_where_units_are_alone(name, x64):
    step, leaves, given = problem(name)
    result = jax.jit(lambda: unit_blocks(step, leaves, given)[:2])()
    products = unit_blocks(step, leaves, given).products
    assert products == 0
    blocks = result[1]
    assert blocks.shape[-2:] == (UNIT_WISE[name],) * 2
    want, outside = whole_blocks(step, leaves, given, blocks.shape[-3])
    np.testing.assert_allclose(blocks, want, atol=1e-13, rtol=1e-12)
    assert outside == 0
    for a, b in zip(result[0], step(leaves, given), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


@pytest.mark.parametrize("name", ONE_MATMUL)
def test_blocks_are_on_the_diagonal_where_units_share_a_matmul(name, x64):
    step, leaves, given = problem(name, flags=False)
    found = unit_blocks(step, leaves, given)
    assert found.products == 1
    assert found.blocks.shape[-2:] == (ONE_MATMUL[name],) * 2
    want, outside = whole_blocks(step, leaves, given, found.blocks.shape[-3])
    np.testing.assert_allclose(found.blocks, want, atol=1e-13, rtol=1e-12)
    assert outside > 1e-3


def test_two_matmuls_in_a_row_are_counted_and_are_not_the_diagonal(x64):
    step, leaves, given = problem("gru_before", flags=False)
    found = unit_blocks(step, leaves, given)
    want, _ = whole_blocks(step, leaves, given, 4)
    assert found.products == 2
    assert np.abs(found.blocks - want).max() > 1e-3


def test_matmuls_left_out(x64):
    """e-prop: what remains is the derivative with the recurrent kernel's at zero."""
    step, leaves, given = problem("elman", flags=False)
    found = unit_blocks(step, leaves, given, products="zero")
    assert np.abs(found.blocks).max() == 0
    step, leaves, given = problem("lstm", flags=False)
    found = unit_blocks(step, leaves, given, products="zero").blocks
    whole = unit_blocks(step, leaves, given).blocks
    # (h, c): c's own path is the forget gate; nothing comes from h.
    assert np.abs(found[..., 0]).max() == 0
    np.testing.assert_allclose(found[..., 1], whole[..., 1], atol=1e-14)


def test_a_gradient_scale_is_no_part_of_the_values_jacobian(x64):
    def step(leaves, scale):
        return [jnp.tanh(a) for a in scale_gradient(leaves, scale)]

    carry = [jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))]
    found = unit_blocks(step, carry, jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(
        found.blocks[..., 0, 0], 1 - jnp.tanh(carry[0]) ** 2, atol=1e-14
    )


MIXERS = {
    "roll": (lambda h: jnp.tanh(jnp.roll(h, 1, -1)), "concatenate|slice"),
    "reverse": (lambda h: jnp.tanh(h[..., ::-1]), "a change of places"),
    "mean": (lambda h: jnp.tanh(h - h.mean(-1, keepdims=True)), "reduce_sum"),
    "cumsum": (lambda h: jnp.cumsum(h, -1), "cumsum"),
    "sort": (lambda h: jnp.sort(h, -1), "sort|gather"),
    "batch": (lambda h: jnp.tanh(h - h.mean(0, keepdims=True)), "reduce_sum"),
}


@pytest.mark.parametrize("name", MIXERS)
def test_units_that_see_each_other_otherwise_are_refused(name):
    function, words = MIXERS[name]
    with pytest.raises(MixedUnitsError, match=words if name != "roll" else "Jacobian"):
        unit_blocks(lambda s, _: [function(s[0])], [jnp.arange(12.0).reshape(3, 4)])


def test_a_scan_and_a_cond_inside_a_step():
    def step(s, x):
        h = jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h + x), s[0])
        return [jax.lax.cond(x > 0, jnp.sin, jnp.cos, h)]

    carry = [jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)]
    found = unit_blocks(step, carry, 0.25)
    want = jax.vmap(jax.vmap(jax.grad(lambda h: step([h], 0.25)[0])))(carry[0])
    np.testing.assert_allclose(found.blocks[..., 0, 0], want, rtol=1e-5)
    assert found.products == 0

    def mixing(s, x):
        return [jax.lax.fori_loop(0, 3, lambda i, h: jnp.roll(h, 1, -1), s[0])]

    with pytest.raises(MixedUnitsError):
        unit_blocks(mixing, carry, 0.25)
