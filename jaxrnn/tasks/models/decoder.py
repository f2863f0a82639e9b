"""The decoder of translation and captioning, a language model with attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ...core.cell import Cell
from ...core.layer import Layer
from ...core.types import Carry, Params
from ...decoding.beam_search import Beams, beam_search
from ...layers import dropout, stack
from ...nnx import RNN
from ...training import InputError
from .attention import Attention, Memory

UNKNOWN = 0  # the token of unknown words or characters, which is never generated


def layers_of(cell: Cell | Layer, layers: int, rate: float) -> Layer:
    """Stack ``layers`` copies of ``cell``, each followed by dropout."""
    return stack(
        *[
            part
            for _ in range(layers)
            for part in ([cell, dropout(rate)] if rate else [cell])
        ]
    )


class Bridge(nnx.Module):
    """The initial carry of a decoder, computed from features::

    carry = split(tanh(W features + b))
    """

    def __init__(self, features: int, decoder: Decoder, *, rngs: nnx.Rngs):
        leaves = jax.tree.leaves(decoder.rnn.initial_carry())
        if any(leaf.ndim != 1 or jnp.iscomplexobj(leaf) for leaf in leaves):
            raise InputError(
                "--cell: the input is encoded in the decoder's first carry, which must "
                "consist of real vectors, but this cell's does not; "
                "try lstm, gru, elman or min-gru"
            )
        self.structure = jax.tree.structure(decoder.rnn.initial_carry())
        self.cuts = tuple(
            sum(leaf.shape[-1] for leaf in leaves[:i]) for i in range(1, len(leaves))
        )
        self.linear = nnx.Linear(
            features, sum(leaf.shape[-1] for leaf in leaves), rngs=rngs
        )

    def __call__(self, features: Float[Array, "*B F"]) -> Carry:
        """Return the carry."""
        return jax.tree.unflatten(
            self.structure,
            jnp.split(jnp.tanh(self.linear(features)), self.cuts, axis=-1),
        )


class Decoder(nnx.Module):
    """A recurrent decoder with optional attention::

        h_t = rnn(embed(y_{t-1}))_t
        c_t = attend(h_t)
        p(y_t) = softmax(readout(tanh(combine([h_t; c_t]))))

    This is figure 2 of Luong et al. 2015 without feeding back the combined vector, so
    that in training the attention of all steps is computed at once. Without attention
    there is no c_t, and the initial carry holds all information about the input.
    """

    def __init__(
        self,
        symbols: int,
        layer: Cell | Layer,
        embed: int,
        size: int,
        attention: str,
        memory_size: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.symbols = symbols
        self.embed = nnx.Embed(symbols, embed, rngs=rngs)
        self.rnn = RNN(layer, embed, rngs=rngs)
        output = self.rnn.output_size
        self.attention = (
            None
            if attention == "none"
            else Attention(attention, output, memory_size, rngs=rngs)
        )
        self.combine = nnx.Linear(
            output + (0 if attention == "none" else memory_size), size, rngs=rngs
        )
        self.readout = nnx.Linear(size, symbols, rngs=rngs)

    def memory(
        self, values: Float[Array, "*B S D"], mask: Bool[Array, "*B S"]
    ) -> Memory | None:
        """Return the memory of the attention; None without attention."""
        return None if self.attention is None else self.attention.memory(values, mask)

    def read(
        self, hs: Float[Array, "*B T H"], memory: Memory | None
    ) -> tuple[Float[Array, "*B T V"], Array | None]:
        """Return logits and attention weights, from outputs of the recurrent layers.

        The weights are ``(*B, T, S)``.
        """
        weights = None
        if self.attention is not None and memory is not None:
            contexts, weights = self.attention(hs, memory)
            hs = jnp.concatenate([hs, contexts], axis=-1)
        return self.readout(jnp.tanh(self.combine(hs))), weights

    def __call__(
        self,
        carry: Carry,
        tokens: Int[Array, "*B T"],
        memory: Memory | None,
        mask: Bool[Array, "*B T"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "*B T V"], Array | None]:
        """Return the logits after each of ``tokens`` and the attention weights.

        This is teacher forcing: the inputs are the given tokens.
        """
        return self.read(
            self.rnn(self.embed(tokens), carry, mask=mask, rngs=rngs), memory
        )

    def step(
        self, carry: Carry, token: Int[Array, "*B"], memory: Memory | None
    ) -> tuple[Carry, Float[Array, "*B V"]]:
        """Apply one step, for streaming."""
        carry, h = self.rnn.step(carry, self.embed(token))
        return carry, self.read(h[..., None, :], memory)[0][..., 0, :]

    def sampled(
        self,
        carry: Carry,
        tokens: Int[Array, "B T"],
        memory: Memory | None,
        share: float,
        key: Array,
    ) -> Float[Array, "B T V"]:
        """Return logits with scheduled sampling (Bengio et al. 2015).

        Each input but the first is, with probability ``share``, one that the model
        draws itself instead of the given token. There is no dropout in the recurrent
        layers.
        """

        def advance(loop: Any, step_inputs: Any) -> tuple[Any, Array]:
            carry, logits, is_first = loop
            token, key = step_inputs
            k_which, k_draw = jax.random.split(key)
            use_drawn = jax.random.bernoulli(k_which, share, token.shape) & ~is_first
            drawn = jax.random.categorical(
                k_draw, jax.lax.stop_gradient(logits)
            ).astype(token.dtype)
            carry, logits = self.step(carry, jnp.where(use_drawn, drawn, token), memory)
            return (carry, logits, jnp.zeros_like(is_first)), logits

        no_logits = jnp.zeros((tokens.shape[0], self.symbols))
        steps = (tokens.T, jax.random.split(key, tokens.shape[1]))
        _, logits = jax.lax.scan(advance, (carry, no_logits, jnp.asarray(True)), steps)
        return jnp.swapaxes(logits, 0, 1)

    def write(
        self,
        carry: Carry,
        memory: Memory | None,
        boundary: int,
        width: int,
        length: int,
        length_penalty: float,
    ) -> Beams:
        """Return the most probable sequences, by beam search.

        ``boundary`` is the token before and after each sequence.
        """
        batch = jax.tree.leaves(carry)[0].shape[:-1]

        def step(carry: Carry, token: Array) -> tuple[Carry, Array]:
            carry, logits = self.step(carry, token, memory)
            return carry, logits.at[..., UNKNOWN].set(-jnp.inf)

        start = jnp.full(batch, boundary, jnp.int32)
        return beam_search(
            step,
            carry,
            start,
            end=boundary,
            width=width,
            length=length,
            length_penalty=length_penalty,
        )


def shifted(targets: Int[Array, "*B T"], boundary: int) -> Int[Array, "*B T"]:
    """Return the decoder's inputs: the previous target, and the boundary at first."""
    return jnp.concatenate(
        [jnp.full_like(targets[..., :1], boundary), targets[..., :-1]], axis=-1
    )


def total_loss(
    logits: Params, targets: Int[Array, "*B T"], mask: Bool[Array, "*B T"]
) -> tuple[Array, Array]:
    """Return the summed cross-entropy (nats) over the mask, and the number of steps."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.where(mask, losses, 0).sum(), mask.sum()
