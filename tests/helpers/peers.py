"""jaxrnn beside another library: the same weights, the same ragged batch, values and
gradients compared.

Each test of a converter says what the other library computes, `Answers`, in jaxrnn's
layout; the gradients with respect to its weights stay in its own layout, because here
they go back through the converter.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

LENGTHS = np.array([5, 2, 4])
STEPS, BATCH, INPUTS = 5, 3, 3
MASK = np.arange(STEPS)[:, None] < LENGTHS
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}


class Answers(NamedTuple):
    """What the other library gave: outputs ``(T, B, F)`` with zeros in the padding,
    the leaves of the last carry, gradients.
    """

    ys: Any
    carry: Any
    x_gradient: Any
    weight_gradients: Any


def cases(kinds, wide, doubles=True):
    """Each kind with one and two layers, in one direction and both; slow is what the
    others imply, and float32 at last.

    Of the kinds in ``wide`` two layers in both directions run by default. Without
    ``doubles`` all is float32.
    """
    places = [
        (1, False, "float64"),
        (2, True, "float64"),
        (1, True, "float64"),
        (2, False, "float64"),
        (2, True, "float32"),
    ]
    places = (
        places
        if doubles
        else [
            (layers, both, "float32")
            for layers, both, dtype in places
            if dtype == "float64"
        ]
    )
    return [
        pytest.param(
            kind,
            *place,
            marks=[] if k == 0 or (k == 1 and kind in wide) else [pytest.mark.slow],
        )
        for kind in kinds
        for k, place in enumerate(places)
    ]


def draw(seed, *shape, dtype="float64"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def inputs(dtype):
    """A batch ``(T, B, D)``, whose padding no library may look at."""
    return draw(0, STEPS, BATCH, INPUTS, dtype=dtype)


def cotangents(leaves, dtype):
    """One random cotangent for the outputs and for each leaf of the carry, given
    their shapes.
    """
    return [draw(10 + k, *shape, dtype=dtype) for k, shape in enumerate(leaves)]


def loss_of(ys, states, weights):
    """The loss whose gradients are compared: outputs and last states, each times its
    cotangent.
    """
    return sum((a * w).sum() for a, w in zip((ys, *states), weights, strict=True))


def ours(convert, weights, dtype):
    """The same from jaxrnn: through ``convert(weights) -> (layer, params)`` and
    back.
    """
    layer = convert(weights)[0]

    def run(weights, xs):
        carry, ys = jaxrnn.unroll(
            layer, convert(weights)[1], xs, mask=jnp.asarray(MASK)
        )
        return ys, jax.tree.leaves(carry)

    weights, xs = jax.tree.map(jnp.asarray, weights), jnp.asarray(inputs(dtype))
    ys, states = jax.eval_shape(run, weights, xs)
    cs = list(
        map(jnp.asarray, cotangents([ys.shape, *(s.shape for s in states)], dtype))
    )

    @jax.jit
    def everything(weights, xs):
        (ys, states), pullback = jax.vjp(run, weights, xs)
        return ys, states, *pullback((cs[0], cs[1:]))

    ys, states, by_weight, by_x = everything(weights, xs)
    return Answers(ys, states, by_x, by_weight)


def theirs(run, weights, dtype):
    """From a library on JAX: ``run(weights, xs batch-first, lengths) -> (ys
    batch-first, leaves of the carry)``.
    """
    mask = jnp.asarray(MASK)[..., None]
    xs, lengths = jnp.asarray(inputs(dtype)), jnp.asarray(LENGTHS)

    def time_major(weights, xs):
        ys, states = run(weights, jnp.swapaxes(xs, 0, 1), lengths)
        return jnp.where(mask, jnp.swapaxes(ys, 0, 1), 0), states

    @jax.jit
    def everything(weights, xs):
        (ys, states), pullback = jax.vjp(time_major, weights, xs)
        cs = [
            jnp.asarray(c)
            for c in cotangents([ys.shape, *(s.shape for s in states)], dtype)
        ]
        return (ys, states, *pullback((cs[0], cs[1:])))

    ys, states, by_weight, by_x = everything(weights, xs)
    return Answers(ys, states, by_x, by_weight)


def assert_agree(actual, expected, dtype):
    """Values to 1e-6 or 1e-12, gradients relative to the largest entry of each."""
    tolerance = TOLERANCE[dtype]
    close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(close, actual.ys, np.asarray(expected.ys))
    for a, e in zip(actual.carry, expected.carry, strict=True):
        close(a, e)
    ours, theirs = ((x.x_gradient, x.weight_gradients) for x in (actual, expected))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        size = max(np.abs(np.asarray(e)).max(), 1.0)
        np.testing.assert_allclose(
            a / size, np.asarray(e) / size, rtol=0, atol=tolerance
        )


def equal(one, other):
    """Two trees of arrays, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
        one,
        other,
    )
