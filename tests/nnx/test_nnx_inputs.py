"""`jaxrnn.nnx` with inputs that are a pytree, and with a context: `jaxrnn.unroll`,
batch-first.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from subjects import assert_same

import jaxrnn
from jaxrnn.nnx import RNN, Bidirectional

T, B, D, H = 5, 3, 4, 6


@dataclasses.dataclass(frozen=True)
class Mixed(jaxrnn.Cell):
    """Tokens beside vectors, and a vector that stays the same."""

    hidden_size: int
    feature_ndim: ClassVar[Any] = (0, 1)
    takes_context: ClassVar[bool] = True

    def init(self, key, input_size):
        one, two = jax.random.split(key)
        return {
            "table": jax.random.normal(one, (7, self.hidden_size)),
            "kernel": jax.random.normal(two, (input_size, self.hidden_size)),
        }

    def project(self, params, x, context):
        tokens, vectors = x
        return params["table"][tokens] + vectors @ params["kernel"]

    def step(self, params, carry, z, context):
        return jnp.tanh(z + 0.5 * carry * context)

    def output_features(self, params, input_size):
        return self.hidden_size


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


TOKENS = jnp.asarray(np.random.default_rng(0).integers(7, size=(T, B)))
VECTORS, CONTEXT = drawn(1, T, B, D), drawn(2, B, H)
XS, BATCH_FIRST = (TOKENS, VECTORS), (TOKENS.T, jnp.swapaxes(VECTORS, 0, 1))
LENGTHS = jnp.array([T, 2, 4])


def test_a_tree_and_a_context_are_those_of_unroll():
    rnn = RNN(Mixed(H), D, return_carry=True, rngs=nnx.Rngs(0))
    assert rnn.output_size == H
    how = {"seq_lengths": LENGTHS, "context": CONTEXT}
    expected = jaxrnn.unroll(
        rnn.layer,
        rnn.values(),
        XS,
        mask=jaxrnn.mask_from_lengths(LENGTHS, T),
        context=CONTEXT,
        reverse=True,
    )
    carry, ys = rnn(BATCH_FIRST, reverse=True, **how)
    assert_same((carry, jnp.swapaxes(ys, 0, 1)), expected, 0)
    carry, others = rnn(XS, reverse=True, keep_order=False, time_major=True, **how)
    flipped = jaxrnn.nnx.flip_sequences(others, LENGTHS, 1, True)
    assert_same((carry, flipped), expected, 0)
    state = rnn.initial_carry((B,))
    for t in range(T):
        reset = jnp.full(B, t == 2)
        state, y = rnn.step(
            state, (TOKENS[t], VECTORS[t]), reset=reset, context=CONTEXT
        )
    resets = jnp.zeros((B, T), bool).at[:, 2].set(True)
    carry, ys = rnn(BATCH_FIRST, resets=resets, context=CONTEXT)
    assert_same((state, y), (carry, ys[:, -1]), 1e-6)


def test_both_directions_take_them():
    cells = [RNN(Mixed(H), D, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    how = {"seq_lengths": LENGTHS, "context": CONTEXT}
    ys = Bidirectional(*cells)(BATCH_FIRST, **how)
    expected = [rnn(BATCH_FIRST, reverse=k == 1, **how) for k, rnn in enumerate(cells)]
    assert_same(ys, jnp.concatenate(expected, -1), 0)
    turned = Bidirectional(*cells)(BATCH_FIRST, reverse=True, keep_order=False, **how)
    expected = [rnn(BATCH_FIRST, reverse=k == 0, **how) for k, rnn in enumerate(cells)]
    again = jaxrnn.nnx.flip_sequences(jnp.concatenate(expected, -1), LENGTHS, 1, False)
    assert_same(turned, again, 0)


def test_what_does_not_fit(plain_errors):
    rnn = RNN(Mixed(H), D, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="share time and batch axes"):
        rnn((TOKENS, BATCH_FIRST[1]), context=CONTEXT)
    with pytest.raises(ValueError, match="Mixed takes a context"):
        rnn(BATCH_FIRST)
