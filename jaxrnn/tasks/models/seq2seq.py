"""Sequence to sequence: a bidirectional encoder and a decoder.

The design follows Sutskever et al. 2014.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ...core.cell import Cell
from ...core.layer import Layer
from ...core.types import Carry
from ...decoding.beam_search import Beams
from ...layers import bidirectional
from ...nnx import RNN
from ...unrolling import mask_from_lengths
from .attention import Memory
from .decoder import Bridge, Decoder, layers_of, shifted, total_loss


class Batch(NamedTuple):
    """Padded pairs of token sequences.

    ``target`` ends with the boundary token, which is part of its length.
    """

    source: Int[Array, "B S"]
    source_lengths: Int[Array, " B"]
    target: Int[Array, "B T"]
    target_lengths: Int[Array, " B"]


class Encoder(nnx.Module):
    """The encoder ``bidirectional(rnn)(embed(x))``.

    Its outputs are the memory of the attention, and the last states of both directions
    are the features.
    """

    def __init__(
        self,
        symbols: int,
        cell: Cell | Layer,
        embed: int,
        layers: int,
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.embed = nnx.Embed(symbols, embed, rngs=rngs)
        self.rnn = RNN(
            layers_of(bidirectional(cell), layers, dropout), embed, rngs=rngs
        )
        self.features = sum(
            leaf.shape[-1] for leaf in jax.tree.leaves(self.rnn.initial_carry())
        )

    def __call__(
        self,
        xs: Float[Array, "B S E"],
        lengths: Int[Array, " B"],
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B F"], Bool[Array, "B S"]]:
        """Return outputs, features and mask of embedded sources.

        What the padding contains has no effect.
        """
        carry, ys = self.rnn(xs, seq_lengths=lengths, return_carry=True, rngs=rngs)
        return (
            ys,
            jnp.concatenate(jax.tree.leaves(carry), axis=-1),
            mask_from_lengths(lengths, xs.shape[1]).T,
        )


class Translator(nnx.Module):
    """Encoder, bridge and decoder.

    With ``attention="none"`` the bridge is the only connection between both.
    """

    def __init__(
        self,
        symbols: tuple[int, int],
        cell: Cell | Layer,
        *,
        embed: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        attention: str = "additive",
        size: int = 128,
        rngs: nnx.Rngs,
    ):
        self.boundary = symbols[1] - 1
        self.encoder = Encoder(symbols[0], cell, embed, layers, dropout, rngs=rngs)
        memory_size = self.encoder.rnn.output_size
        layer = layers_of(cell, layers, dropout)
        self.decoder = Decoder(
            symbols[1], layer, embed, size, attention, memory_size, rngs=rngs
        )
        self.bridge = Bridge(self.encoder.features, self.decoder, rngs=rngs)

    def encode(
        self,
        source: Int[Array, "B S"],
        lengths: Int[Array, " B"],
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Carry, Memory | None]:
        """Return the decoder's initial carry, and the memory of its attention."""
        ys, features, mask = self.encoder(self.encoder.embed(source), lengths, rngs)
        return self.bridge(features), self.decoder.memory(ys, mask)

    def __call__(
        self, batch: Batch, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "B T V"], Array | None]:
        """Return logits under teacher forcing, and attention weights.

        The weights are ``(B, T, S)``.
        """
        carry, memory = self.encode(batch.source, batch.source_lengths, rngs)
        tokens = shifted(batch.target, self.boundary)
        return self.decoder(carry, tokens, memory, counted(batch), rngs)

    def loss(
        self, batch: Batch, key: Array, scheduled_sampling: float = 0.0
    ) -> tuple[Array, Array]:
        """Return the summed cross-entropy (nats) of targets, and their token count."""
        k_dropout, k_sampled = jax.random.split(key)
        rngs = nnx.Rngs(dropout=k_dropout)
        if scheduled_sampling:
            carry, memory = self.encode(batch.source, batch.source_lengths, rngs)
            tokens = shifted(batch.target, self.boundary)
            logits = self.decoder.sampled(
                carry, tokens, memory, scheduled_sampling, k_sampled
            )
        else:
            logits, _ = self(batch, rngs)
        return total_loss(logits, batch.target, counted(batch))

    def translate(
        self,
        source: Int[Array, "B S"],
        lengths: Int[Array, " B"],
        width: int,
        length: int,
        length_penalty: float,
    ) -> Beams:
        """Return the most probable translations, by beam search."""
        carry, memory = self.encode(source, lengths)
        return self.decoder.write(
            carry, memory, self.boundary, width, length, length_penalty
        )


def counted(batch: Batch) -> Bool[Array, "B T"]:
    """Return the mask of the targets."""
    return mask_from_lengths(batch.target_lengths, batch.target.shape[1]).T
