"""Masks and resets: padding has no effect, and nothing crosses a reset (laws 14-21)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import (
    ALWAYS,
    LAYERS,
    NEVER,
    PLAIN,
    SUBJECTS,
    B,
    T,
    assert_same,
    assert_same_outcome,
    compiled_outcome,
    draw,
    unrolled,
)

import jaxrnn
from jaxrnn import BidirectionalCarry
from jaxrnn.core.flags import expand_flags

# a mask with holes, the same for a whole batch
KEPT = np.array([True, False, True, True, False])


def whole_batch(flags):
    return np.broadcast_to(flags[:, None], (T, B))


def no_gradient(gradient):
    """Exactly zero, so neither NaN nor small."""
    return all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("length", [3, 0])
@pytest.mark.parametrize("name", PLAIN)
def test_padded_is_cut_short(name, length, x64):
    """A sequence of 3 or 0 steps among longer ones, seen by itself: only its own
    cotangents are not zero.
    """
    inputs, others = draw(name, 0), np.arange(B) != 1
    carry_cotangent, y_cotangent = inputs.cotangents
    lengths = np.array([T, length, 1])
    alone = (
        jax.tree.map(
            lambda a: jnp.where(others.reshape(-1, *[1] * (a.ndim - 1)), 0, a),
            carry_cotangent,
        ),
        jnp.where(expand_flags(jnp.asarray(others)[None], y_cotangent), 0, y_cotangent),
    )
    mask = np.arange(T)[:, None] < lengths[None]
    padded = unrolled(name)(inputs.params, inputs.xs, inputs.carry, alone, mask, NEVER)
    short = unrolled(name)(
        inputs.params,
        inputs.xs[:length],
        inputs.carry,
        (alone[0], alone[1][:length]),
        ALWAYS[:length],
        NEVER[:length],
    )
    at_one = [
        jax.tree.map(lambda a: a[1], outcome.values[0]) for outcome in (padded, short)
    ]
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
            mask = expand_flags(inputs.mask, inputs.xs)
            xs = jnp.where(mask, inputs.xs, poison)
            jax.tree.map(
                np.testing.assert_array_equal,
                unrolled(name)(inputs.params, xs, *inputs[2:]),
                expected,
            )


@pytest.mark.parametrize("name", PLAIN)
def test_a_hole_in_the_mask_holds_the_carry(name, x64):
    """The kept steps give what they give as a sequence of their own; in the holes
    the carries stand still.
    """
    inputs = draw(name, 0)
    carry_cotangent, y_cotangent = inputs.cotangents
    actual = unrolled(name)(*inputs[:4], whole_batch(KEPT), NEVER)
    kept = ALWAYS[KEPT], NEVER[KEPT]
    expected = unrolled(name)(
        inputs.params,
        inputs.xs[KEPT],
        inputs.carry,
        (carry_cotangent, y_cotangent[KEPT]),
        *kept,
    )
    assert_same(
        actual.values,
        (
            expected.values[0],
            jnp.zeros_like(actual.values[1]).at[KEPT].set(expected.values[1]),
        ),
    )
    x_gradient = jnp.zeros_like(actual.gradients[1]).at[KEPT].set(expected.gradients[1])
    assert_same(
        actual.gradients, (expected.gradients[0], x_gradient, expected.gradients[2])
    )
    # Holes are steps 1 and 4; a bidirectional layer's backward carry comes to them from
    # the other side.
    two_ways = isinstance(actual.carries, BidirectionalCarry)
    for carries, steps in zip(
        actual.carries if two_ways else [actual.carries],
        [(0, 0, 2, 3, 3), (0, 2, 2, 3, None)],
    ):
        for t in (1, 4):
            if steps[t] is not None:
                jax.tree.map(
                    lambda a, t=t, s=steps: np.testing.assert_array_equal(
                        a[t], a[s[t]]
                    ),
                    carries,
                )


@pytest.mark.parametrize("name", SUBJECTS)
def test_an_all_masked_batch_does_nothing(name, x64):
    params, xs, carry, cotangents, _, _ = draw(name, 0)
    actual = unrolled(name)(
        params, jnp.full_like(xs, jnp.nan), carry, cotangents, NEVER, NEVER
    )
    assert_same(actual.values, (carry, jnp.zeros_like(actual.values[1])), 0)
    assert no_gradient(actual.gradients[:2])
    assert_same(actual.gradients[2], cotangents[0], 0)


@pytest.mark.parametrize("cut", [0, 2, T - 1])
@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_crosses_a_reset(name, cut, x64):
    """With a loss on what comes after a reset, what came before changes neither
    values nor gradients, and gets none.
    """
    inputs, other = draw(name, 0), draw(name, 1)
    params, xs, carry, (carry_cotangent, y_cotangent), _, _ = inputs
    steps = jnp.arange(T)[:, None] >= cut
    changed_carry = other.carry
    if isinstance(
        carry, BidirectionalCarry
    ):  # whose backward part comes from the end and arrives at the beginning
        changed_carry = other.carry._replace(backward=carry.backward)
        carry_cotangent = carry_cotangent._replace(
            backward=jax.tree.map(jnp.zeros_like, carry_cotangent.backward)
        )
    after = (
        (carry_cotangent, jnp.where(expand_flags(steps, y_cotangent), y_cotangent, 0)),
        ALWAYS,
        whole_batch(np.arange(T) == cut),
    )
    actual = unrolled(name)(params, xs, carry, *after)
    changed = unrolled(name)(
        params, jnp.where(expand_flags(steps, xs), xs, other.xs), changed_carry, *after
    )
    assert_same(forward_part(changed.values[0]), forward_part(actual.values[0]), 0)
    assert_same(changed.values[1][cut:], actual.values[1][cut:], 0)
    assert_same(changed.gradients, actual.gradients)
    assert no_gradient(actual.gradients[1][:cut])
    assert no_gradient(forward_part(actual.gradients[2]))


def forward_part(carry):
    """Of a bidirectional carry the part that runs forwards; any other carry itself."""
    return carry.forward if isinstance(carry, BidirectionalCarry) else carry


LEARN = [
    "elman_learned",
    "lstm_all_learned",
    "gru_learned",
    "mlstm_learned",
    "min_lstm_learned",
]


@pytest.mark.parametrize("name", [*LEARN, *LAYERS, "user"])
def test_packing_two_sequences_with_a_reset_is_running_them_apart(name, x64):
    layer, inputs, cut = SUBJECTS[name], draw(name, 0), 2

    def apart(params, xs, carry):
        fresh = layer.initial_carry(params, (B,))
        carries = [carry, fresh]
        two_ways = isinstance(carry, BidirectionalCarry)
        if two_ways:
            carries = [
                BidirectionalCarry(carry.forward, fresh.backward),
                BidirectionalCarry(fresh.forward, carry.backward),
            ]
        (first_end, first), (second_end, second) = (
            jaxrnn.unroll(layer, params, part, start)
            for part, start in zip((xs[:cut], xs[cut:]), carries, strict=True)
        )
        end = (
            BidirectionalCarry(second_end.forward, first_end.backward)
            if two_ways
            else second_end
        )
        return end, jnp.concatenate([first, second])

    packed = unrolled(name)(*inputs[:4], ALWAYS, whole_batch(np.arange(T) == cut))
    assert_same_outcome(compiled_outcome(apart)(*inputs[:4]), packed)


@pytest.mark.parametrize("name", ["lstm_all_learned", "gru_learned", "stack"])
def test_a_reset_before_the_first_step_is_no_carry_at_all(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    reset = unrolled(name)(*inputs[:4], ALWAYS, whole_batch(np.arange(T) == 0)).values
    assert_same(
        reset,
        compiled(lambda p, x: jaxrnn.unroll(layer, p, x))(inputs.params, inputs.xs),
    )


def test_mask_from_lengths():
    lengths = jnp.array([[3, 0], [1, 5]])
    mask = jaxrnn.mask_from_lengths(lengths, 5)
    assert mask.shape == (5, 2, 2)
    assert mask.dtype == bool
    expected = [
        [[t < length for length in row] for row in lengths.tolist()] for t in range(5)
    ]
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(
        jax.jit(lambda n: jaxrnn.mask_from_lengths(n, 5))(lengths), expected
    )
    np.testing.assert_array_equal(
        jaxrnn.mask_from_lengths(jnp.array(2), 3), [True, True, False]
    )
