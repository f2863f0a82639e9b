"""Masks and resets: padding has no effect, and nothing crosses a reset (shared/science.md, laws 14-21)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import (
    ALWAYS,
    NEVER,
    PLAIN,
    SUBJECTS,
    B,
    T,
    assert_same,
    assert_same_outcome,
    compiled,
    compiled_outcome,
    draw,
    unrolled,
)

import jaxrnn
from jaxrnn import BidirectionalCarry

KEPT = np.array([True, False, True, True, False])  # a mask with holes, the same for a whole batch


def whole_batch(flags):
    return np.broadcast_to(flags[:, None], (T, B))


def no_gradient(gradient):
    """Exactly zero, so neither NaN nor small."""
    return all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("length", [3, 0])
@pytest.mark.parametrize("name", PLAIN)
def test_padded_is_cut_short(name, length, x64):
    """A sequence of 3 or 0 steps among longer ones, seen by itself: only its own cotangents are not zero."""
    inputs, others = draw(name, 0), np.arange(B) != 1
    carry_cotangent, y_cotangent = inputs.cotangents
    lengths = np.array([T, length, 1])
    alone = (
        jax.tree.map(lambda a: jnp.where(others.reshape(-1, *[1] * (a.ndim - 1)), 0, a), carry_cotangent),
        jnp.where(others[None, :, None], 0, y_cotangent),
    )
    mask = np.arange(T)[:, None] < lengths[None]
    padded = unrolled(name)(inputs.params, inputs.xs, inputs.carry, alone, mask, NEVER)
    short = unrolled(name)(
        inputs.params, inputs.xs[:length], inputs.carry, (alone[0], alone[1][:length]), ALWAYS[:length], NEVER[:length]
    )
    at_one = [jax.tree.map(lambda a: a[1], outcome.values[0]) for outcome in (padded, short)]
    assert_same(*at_one)
    assert_same(padded.values[1][:length, 1], short.values[1][:, 1])
    assert not padded.values[1][length:, 1].any()
    assert_same(padded.gradients[0], short.gradients[0])
    assert_same(padded.gradients[1][:length], short.gradients[1])
    assert_same(padded.gradients[2], short.gradients[2])
    assert no_gradient(padded.gradients[1][length:])


@pytest.mark.parametrize("name", SUBJECTS)
def test_masked_inputs_have_no_effect_whatever_they_hold(name, x64):
    for seed in range(2):
        inputs = draw(name, seed)
        expected = unrolled(name)(*inputs)
        hidden = ~np.asarray(inputs.mask)
        assert no_gradient(expected.gradients[1][hidden])
        assert not expected.values[1][hidden].any()
        for poison in (np.nan, np.inf, -np.inf, 1e300):
            xs = jnp.where(inputs.mask[..., None], inputs.xs, poison)
            jax.tree.map(np.testing.assert_array_equal, unrolled(name)(inputs.params, xs, *inputs[2:]), expected)


@pytest.mark.parametrize("name", PLAIN)
def test_a_hole_in_the_mask_holds_the_carry(name, x64):
    """The kept steps give what they give as a sequence of their own; in the holes the carries stand still."""
    inputs = draw(name, 0)
    carry_cotangent, y_cotangent = inputs.cotangents
    actual = unrolled(name)(*inputs[:4], whole_batch(KEPT), NEVER)
    kept = ALWAYS[KEPT], NEVER[KEPT]
    expected = unrolled(name)(
        inputs.params, inputs.xs[KEPT], inputs.carry, (carry_cotangent, y_cotangent[KEPT]), *kept
    )
    assert_same(actual.values, (expected.values[0], jnp.zeros_like(actual.values[1]).at[KEPT].set(expected.values[1])))
    x_gradient = jnp.zeros_like(actual.gradients[1]).at[KEPT].set(expected.gradients[1])
    assert_same(actual.gradients, (expected.gradients[0], x_gradient, expected.gradients[2]))
    # Holes are steps 1 and 4; a bidirectional layer's backward carry comes to them from the other side.
    two_ways = isinstance(actual.carries, BidirectionalCarry)
    for carries, steps in zip(actual.carries if two_ways else [actual.carries], [(0, 0, 2, 3, 3), (0, 2, 2, 3, None)]):
        for t in (1, 4):
            if steps[t] is not None:
                jax.tree.map(lambda a, t=t, s=steps: np.testing.assert_array_equal(a[t], a[s[t]]), carries)


@pytest.mark.parametrize("name", SUBJECTS)
def test_an_all_masked_batch_does_nothing(name, x64):
    params, xs, carry, cotangents, _, _ = draw(name, 0)
    actual = unrolled(name)(params, jnp.full_like(xs, jnp.nan), carry, cotangents, NEVER, NEVER)
    assert_same(actual.values, (carry, jnp.zeros_like(actual.values[1])), 0)
    assert no_gradient(actual.gradients[:2])
    assert_same(actual.gradients[2], cotangents[0], 0)


@pytest.mark.parametrize("cut", [0, 2, T - 1])
@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_crosses_a_reset(name, cut, x64):
    """What comes before a reset changes neither values nor gradients after it, and the other way round in reverse."""
    layer, inputs, other = SUBJECTS[name], draw(name, 0), draw(name, 1)
    params, xs, carry, (carry_cotangent, y_cotangent), _, _ = inputs
    resets = whole_batch(np.arange(T) == cut)
    later = np.arange(T)[:, None, None] >= cut
    y_late, x_late = jnp.where(later, y_cotangent, 0), jnp.where(later, xs, other.xs)
    silent = jax.tree.map(jnp.zeros_like, carry_cotangent)
    if isinstance(carry, BidirectionalCarry):  # the backward carry comes from the end and returns at the beginning
        carry_late = BidirectionalCarry(other.carry.forward, carry.backward)
        carry_cotangent = BidirectionalCarry(carry_cotangent.forward, silent.backward)
        of_late = lambda carry: carry.forward  # noqa: E731
        of_early = lambda carry: carry.forward  # noqa: E731
    else:
        carry_late = other.carry
        of_late = of_early = lambda carry: carry
    one = unrolled(name)(params, xs, carry, (carry_cotangent, y_late), ALWAYS, resets)
    two = unrolled(name)(params, x_late, carry_late, (carry_cotangent, y_late), ALWAYS, resets)
    assert_same(of_late(one.values[0]), of_late(two.values[0]), 0)
    assert_same(one.values[1][cut:], two.values[1][cut:], 0)
    assert_same(one.gradients[0], two.gradients[0])
    assert_same(one.gradients[1], two.gradients[1])
    assert no_gradient(one.gradients[1][:cut])
    assert no_gradient(of_early(one.gradients[2]))
    # And it is a fresh start, from the initial carry, whose gradient reaches the parameters that learn it.
    assert layer is SUBJECTS[name]


@pytest.mark.parametrize("name", SUBJECTS)
def test_packing_two_sequences_with_a_reset_is_running_them_apart(name, x64):
    layer, inputs, cut = SUBJECTS[name], draw(name, 0), 2

    def apart(params, xs, carry):
        fresh = layer.initial_carry(params, (B,))
        carries = [carry, fresh]
        two_ways = isinstance(carry, BidirectionalCarry)
        if two_ways:
            carries = [BidirectionalCarry(carry.forward, fresh.backward), BidirectionalCarry(fresh.forward, carry.backward)]
        (first_end, first), (second_end, second) = (
            jaxrnn.unroll(layer, params, part, start) for part, start in zip((xs[:cut], xs[cut:]), carries, strict=True)
        )
        end = BidirectionalCarry(second_end.forward, first_end.backward) if two_ways else second_end
        return end, jnp.concatenate([first, second])

    packed = unrolled(name)(*inputs[:4], ALWAYS, whole_batch(np.arange(T) == cut))
    assert_same_outcome(compiled_outcome(apart)(*inputs[:4]), packed)


@pytest.mark.parametrize("name", ["lstm_all_learned", "gru_learned", "bidirectional"])
def test_a_reset_before_the_first_step_is_no_carry_at_all(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    two_ways = isinstance(inputs.carry, BidirectionalCarry)
    resets = whole_batch(np.arange(T) == 0)
    reset = unrolled(name)(*inputs[:4], ALWAYS, resets).values
    bare = compiled(lambda p, x: jaxrnn.unroll(layer, p, x))(inputs.params, inputs.xs)
    if two_ways:
        assert_same(reset[0].forward, bare[0].forward)
    else:
        assert_same(reset, bare)


def test_mask_from_lengths():
    lengths = jnp.array([[3, 0], [1, 5]])
    mask = jaxrnn.mask_from_lengths(lengths, 5)
    assert mask.shape == (5, 2, 2)
    assert mask.dtype == bool
    expected = [[[t < length for length in row] for row in lengths.tolist()] for t in range(5)]
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(jax.jit(lambda n: jaxrnn.mask_from_lengths(n, 5))(lengths), expected)
    np.testing.assert_array_equal(jaxrnn.mask_from_lengths(jnp.array(2), 3), [True, True, False])
