"""The decoder of translation and captioning: a recurrent language model that may
look at a memory.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ...core.cell import Carry, Cell, Layer, Params
from ...decoding.beam_search import Beams, beam_search
from ...layers import dropout, stack
from ...nnx import RNN
from ...training import InputError
from .attention import Attention, Memory

UNKNOWN = 0  # the symbol for what training did not show: it is read, never written


def layers_of(cell: Cell | Layer, layers: int, rate: float) -> Layer:
    """``layers`` of ``cell``, each with dropout after it."""
    return stack(
        *[
            part
            for _ in range(layers)
            for part in ([cell, dropout(rate)] if rate else [cell])
        ]
    )


class Bridge(nnx.Module):
    """The first carry of a decoder out of features: ``tanh(W features + b)``, cut
    into the parts of the carry.
    """

    def __init__(self, features: int, decoder: Decoder, *, rngs: nnx.Rngs):
        leaves = jax.tree.leaves(decoder.rnn.initial_carry())
        if any(leaf.ndim != 1 or jnp.iscomplexobj(leaf) for leaf in leaves):
            raise InputError(
                "--cell: what is read becomes the decoder's first carry, so that must "
                "be real vectors, and this cell's is not; "
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
        return jax.tree.unflatten(
            self.structure,
            jnp.split(jnp.tanh(self.linear(features)), self.cuts, axis=-1),
        )


class Decoder(nnx.Module):
    """``h_t = rnn(embed(y_{t-1}))_t``, ``c_t = attend(h_t)``, ``p(y_t) =
    softmax(readout(tanh(combine([h_t; c_t]))))``.

    Luong et al. 2015, figure 2, without feeding the last combination back: so in
    training all steps are attended at once. Without attention there is no c_t, and all
    that is known of the input comes with the first carry.
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
        """What the attention, if there is one, looks at."""
        return None if self.attention is None else self.attention.memory(values, mask)

    def read(
        self, hs: Float[Array, "*B T H"], memory: Memory | None
    ) -> tuple[Float[Array, "*B T V"], Array | None]:
        """Logits out of the outputs of the recurrent layers, and the weights of
        attention ``(*B, T, S)``.
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
        """Logits of what follows each of ``tokens``, and the weights of attention:
        teacher forcing.
        """
        return self.read(
            self.rnn(self.embed(tokens), carry, mask=mask, rngs=rngs), memory
        )

    def step(
        self, carry: Carry, token: Int[Array, "*B"], memory: Memory | None
    ) -> tuple[Carry, Float[Array, "*B V"]]:
        """One streaming step."""
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
        """As teacher forcing, but each input is with probability ``share`` one that the
        model draws itself (Bengio et al. 2015); the first one never. Without dropout in
        the recurrent layers.
        """

        def advance(loop: Any, now: Any) -> tuple[Any, Array]:
            carry, logits, first = loop
            token, key = now
            k_which, k_draw = jax.random.split(key)
            own = jax.random.bernoulli(k_which, share, token.shape) & ~first
            drawn = jax.random.categorical(
                k_draw, jax.lax.stop_gradient(logits)
            ).astype(token.dtype)
            carry, logits = self.step(carry, jnp.where(own, drawn, token), memory)
            return (carry, logits, jnp.zeros_like(first)), logits

        nothing = jnp.zeros((tokens.shape[0], self.symbols))
        steps = (tokens.T, jax.random.split(key, tokens.shape[1]))
        _, logits = jax.lax.scan(advance, (carry, nothing, jnp.asarray(True)), steps)
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
        """The likeliest sequences, by beam search; ``boundary`` is the symbol before
        and after each.
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
    """The decoder's inputs: each target's predecessor, before the first the
    boundary.
    """
    return jnp.concatenate(
        [jnp.full_like(targets[..., :1], boundary), targets[..., :-1]], axis=-1
    )


def total_loss(
    logits: Params, targets: Int[Array, "*B T"], mask: Bool[Array, "*B T"]
) -> tuple[Array, Array]:
    """The summed cross-entropy (nats) over the steps of the mask, and their number."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.where(mask, losses, 0).sum(), mask.sum()
