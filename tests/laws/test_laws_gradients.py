"""Gradients, in every mode (laws 22, 25-28), and under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from reference import compiled
from subjects import (
    ALWAYS,
    CAUSAL,
    CELLS,
    FEW,
    NEVER,
    PLAIN,
    SUBJECTS,
    B,
    T,
    assert_same,
    draw,
    normal,
    unrolled,
)

import jaxrnn

# of central differences: layer normalization of a zero state has third derivatives near
# 1e7
STEP = 1e-6


def dot(a, b):
    """The real part of the sum of the products of two trees: JAX's pullback is the
    transpose, without conjugation.
    """
    return sum(
        float(np.sum(np.asarray(x) * np.asarray(y)).real)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def moved(tree, direction, distance):
    return jax.tree.map(lambda a, d: a + distance * d, tree, direction)


def run_of(layer, inputs):
    """A function of (params, xs, carry) with the mask and resets of ``inputs``."""
    return lambda p, x, s: jaxrnn.unroll(
        layer, p, x, s, mask=inputs.mask, resets=inputs.resets
    )


@pytest.mark.parametrize("name", SUBJECTS)
def test_gradients_are_central_differences(name, x64):
    """Of params, xs and the first carry, for random cotangents of the outputs and
    the last carry, in several directions.
    """
    random = np.random.default_rng(0)
    for seed, flags in ((0, (ALWAYS, NEVER)), (1, None)):
        inputs = draw(name, seed)
        flags, at = flags or inputs[4:], inputs[:3]
        gradients = unrolled(name)(*inputs[:4], *flags).gradients
        for part in (0, 1, 2, None):  # each alone, then all together
            direction = tuple(
                normal(random, tree, float(part in (i, None)))
                for i, tree in enumerate(at)
            )
            high, low = (
                dot(
                    unrolled(name)(
                        *moved(at, direction, step), inputs.cotangents, *flags
                    ).values,
                    inputs.cotangents,
                )
                for step in (STEP, -STEP)
            )
            slope = dot(gradients, direction)
            assert (high - low) / (2 * STEP) == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", PLAIN)
def test_forward_mode_is_reverse_mode(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    direction = normal(np.random.default_rng(0), inputs[:3])
    push = compiled(
        lambda at, direction: jax.jvp(run_of(layer, inputs), at, direction)[1]
    )
    slope = dot(push(tuple(inputs[:3]), direction), inputs.cotangents)
    assert slope == pytest.approx(
        dot(unrolled(name)(*inputs).gradients, direction), rel=1e-12, abs=1e-12
    )


@pytest.mark.parametrize("name", FEW)
def test_rematerialising_changes_nothing(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    gradients = compiled(
        lambda *at: jax.vjp(jax.checkpoint(run_of(layer, inputs)), *at)[1](
            inputs.cotangents
        )
    )(*inputs[:3])
    assert_same(gradients, unrolled(name)(*inputs).gradients)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_gradient_of_the_first_carry_is_a_product_of_jacobians(name, x64):
    """dL/ds_0 = dL/ds_T J_T ... J_1, the carry taken as one vector, so for an LSTM
    over h and c.
    """
    layer, inputs = SUBJECTS[name], draw(name, 0, batch=())
    silent = (inputs.cotangents[0], jnp.zeros_like(inputs.cotangents[1]))
    outcome = unrolled(name)(*inputs[:3], silent, ALWAYS[:, 0], NEVER[:, 0])
    start, to_carry = ravel_pytree(inputs.carry)

    @compiled
    def jacobian(params, flat, x):
        def step(flat):
            return ravel_pytree(layer(params, to_carry(flat), x)[0])[0]

        return jax.jacfwd(step, holomorphic=jnp.iscomplexobj(flat))(flat)

    before = [
        start,
        *(
            ravel_pytree(jax.tree.map(lambda a, t=t: a[t], outcome.carries))[0]
            for t in range(T - 1)
        ),
    ]
    row = ravel_pytree(silent[0])[0]
    for t in reversed(range(T)):
        row = row @ jacobian(inputs.params, before[t], inputs.xs[t])
    assert_same(outcome.gradients[2], to_carry(row))


@pytest.mark.parametrize("name", [*CELLS, "user", "stack"])
def test_second_order(name, x64):
    """A Hessian-vector product, forward over reverse, against central differences of
    the gradient.
    """
    layer, inputs = SUBJECTS[name], draw(name, 0)
    direction = normal(np.random.default_rng(0), inputs.params)

    def loss_gradient(params):
        return jax.vjp(run_of(layer, inputs), params, *inputs[1:3])[1](
            inputs.cotangents
        )[0]

    product = compiled(lambda p, d: jax.jvp(loss_gradient, (p,), (d,))[1])(
        inputs.params, direction
    )
    high, low = (
        unrolled(name)(moved(inputs.params, direction, step), *inputs[1:]).gradients[0]
        for step in (STEP, -STEP)
    )
    assert_same(
        product, jax.tree.map(lambda a, b: (a - b) / (2 * STEP), high, low), 1e-7
    )


@pytest.mark.parametrize("name", FEW)
def test_per_example_gradients(name, x64):
    """vmap of the gradient, against one sequence at a time: the others' cotangents
    set to zero.
    """
    layer, inputs = SUBJECTS[name], draw(name, 0)

    def gradient(xs, carry, cotangents):
        return jax.vjp(lambda p: jaxrnn.unroll(layer, p, xs, carry), inputs.params)[1](
            cotangents
        )[0]

    each = compiled(jax.vmap(gradient, in_axes=(1, 0, (0, 1))))(
        inputs.xs, inputs.carry, inputs.cotangents
    )
    for b in range(B):
        only = jax.tree.map(jnp.zeros_like, inputs.cotangents)
        only = (
            jax.tree.map(
                lambda zero, a, b=b: zero.at[b].set(a[b]), only[0], inputs.cotangents[0]
            ),
            only[1].at[:, b].set(inputs.cotangents[1][:, b]),
        )
        alone = unrolled(name)(*inputs[:3], only, ALWAYS, NEVER)
        assert_same(jax.tree.map(lambda a, b=b: a[b], each), alone.gradients[0])


@pytest.mark.parametrize("name", FEW)
def test_an_ensemble_of_parameters(name, x64):
    layer, members = SUBJECTS[name], [draw(name, seed) for seed in range(2)]
    inputs = members[0]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(member.params for member in members)
    )

    def gradient(params):
        values, pullback = jax.vjp(
            lambda p: run_of(layer, inputs)(p, inputs.xs, inputs.carry), params
        )
        return values, pullback(inputs.cotangents)[0]

    together = compiled(jax.vmap(gradient))(stacked)
    for e, member in enumerate(members):
        alone = unrolled(name)(member.params, *inputs[1:])
        assert_same(
            jax.tree.map(lambda a, e=e: a[e], together),
            (alone.values, alone.gradients[0]),
        )


@pytest.mark.parametrize("name", FEW)
def test_vmap_inside_vmap(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0, batch=(2, 3))
    one = jax.vmap(
        lambda x, s: jaxrnn.unroll(layer, inputs.params, x, s),
        in_axes=(1, 0),
        out_axes=(0, 1),
    )
    two = jax.vmap(one, in_axes=(1, 0), out_axes=(0, 1))
    batched = compiled(lambda x, s: jaxrnn.unroll(layer, inputs.params, x, s))
    assert_same(compiled(two)(*inputs[1:3]), batched(*inputs[1:3]))
