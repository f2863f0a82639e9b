"""Linear recurrences of blocks are the loop in NumPy, with derivatives of any order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.engines.jaxpr.evaluate import all_equations
from jaxrnn.engines.loops.block_solve import solve_blocks


def draw(steps, groups, size, seed=0):
    random = np.random.default_rng(seed)
    blocks = random.normal(size=(steps, *groups, size, size)) / size
    return blocks, random.normal(size=(steps, *groups, size))


def looped(blocks, addends, reverse=False):
    d, out = np.zeros(addends.shape[1:]), np.empty_like(addends)
    order = range(len(addends))
    for t in reversed(order) if reverse else order:
        d = np.einsum("...ij,...j->...i", blocks[t], d) + addends[t]
        out[t] = d
    return out


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("steps", "groups", "size"),
    [(1, (2,), 1), (7, (2,), 2), (8, (), 3), (9, (2,), 1), (23, (3,), 2), (26, (), 5)],
)
def test_solutions_are_the_loop(steps, groups, size, reverse, x64):
    blocks, addends = draw(steps, groups, size)
    got = jax.jit(solve_blocks, static_argnums=2)(blocks, addends, reverse)
    np.testing.assert_allclose(got, looped(blocks, addends, reverse), atol=1e-13)


@pytest.mark.parametrize("reverse", [False, True])
def test_prefixes_are_the_loop(reverse, x64):
    blocks, addends = draw(6, (2,), 2)
    got = jax.jit(solve_blocks, static_argnums=(2, 3))(blocks, addends, reverse, True)
    np.testing.assert_allclose(got, looped(blocks, addends, reverse), atol=1e-13)


def test_derivatives_of_first_and_second_order(x64):
    """Of the loop by JAX, at blocks of zeros and at zeros of d, too."""
    blocks, addends = draw(11, (), 2)
    blocks[4], addends[:3] = 0, 0

    def by_scan(blocks, addends):
        def step(d, now):
            d = now[0] @ d + now[1]
            return d, d

        return jax.lax.scan(step, jnp.zeros(2), (blocks, addends))[1]

    directions = tuple(map(jnp.asarray, draw(11, (), 2, seed=1)))

    def derivatives(solve):
        def loss(blocks, addends):
            return jnp.sum(jnp.sin(solve(blocks, addends)) ** 2)

        def product(blocks, addends):
            slopes = jax.grad(loss, (0, 1))(blocks, addends)
            return sum(jnp.vdot(a, b) for a, b in zip(slopes, directions, strict=True))

        at = (jnp.asarray(blocks), jnp.asarray(addends))
        return (
            jax.grad(loss, (0, 1))(*at),
            jax.grad(product, (0, 1))(*at),
            jax.jvp(loss, at, directions),
        )

    got = jax.jit(lambda: derivatives(solve_blocks))()
    want = jax.jit(lambda: derivatives(by_scan))()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("prefix", [False, True])
def test_products_are_in_full_precision(prefix):
    """Products of float32 with a tensor core's digits would not be a gradient."""
    blocks, addends = (jnp.asarray(a, jnp.float32) for a in draw(23, (), 6))

    def loss(blocks, addends):
        return jnp.sum(solve_blocks(blocks, addends, False, prefix) ** 2)

    closed = jax.make_jaxpr(jax.grad(loss, (0, 1)))(blocks, addends)
    products = [
        e for e in all_equations(closed.jaxpr) if e.primitive.name == "dot_general"
    ]
    assert len(products) > 3
    highest = jax.lax.Precision.HIGHEST
    assert {e.params["precision"] for e in products} == {(highest, highest)}


def test_what_is_not_finite_stops_at_zeros(x64):
    blocks, addends = draw(12, (), 2)
    # A reset forgets what was before, even if it is NaN.
    addends[3], blocks[6] = np.nan, 0
    got = np.asarray(solve_blocks(*map(jnp.asarray, (blocks, addends))))
    assert np.isnan(got[3:6]).all()
    want = looped(blocks[6:], addends[6:])
    np.testing.assert_allclose(got[6:], want, atol=1e-13)
    # With guard a zero stays zero whatever it is multiplied by.
    blocks, addends = draw(12, (), 2)
    blocks[:5], addends[:5] = np.inf, 0
    given = tuple(map(jnp.asarray, (blocks, addends)))
    got = np.asarray(solve_blocks(*given, False, False, True))
    assert (got[:5] == 0).all()
    assert np.isfinite(got[5]).all()
    assert np.isnan(np.asarray(solve_blocks(*given))[:6]).any()
