"""A recurrent language model."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ...core.cell import Cell
from ...core.layer import Layer
from ...core.types import Carry, Params
from ...layers import inference
from ...nnx import RNN
from ...training.announced import Work
from ...truncation.tbptt import TBPTT, Window
from ..data.tokens import Tokens
from ..probe import Probe
from .functional import Pure
from .readout import apply_linear


class LanguageModel(nnx.Module):
    """The model ``softmax(readout(rnn(embed(tokens))))``.

    The inputs are one-hot if ``embed_size`` is 0.
    """

    def __init__(
        self,
        vocabulary_size: int,
        layer: Cell | Layer,
        embed_size: int = 0,
        *,
        rngs: nnx.Rngs,
    ):
        self.vocabulary_size = vocabulary_size
        self.embed = (
            nnx.Embed(vocabulary_size, embed_size, rngs=rngs) if embed_size else None
        )
        self.rnn = RNN(layer, embed_size or vocabulary_size, time_major=True, rngs=rngs)
        self.readout = nnx.Linear(self.rnn.output_size, vocabulary_size, rngs=rngs)

    def encode(self, tokens: Int[Array, "*TB"]) -> Float[Array, "*TB D"]:
        """Return the embedding of tokens."""
        return (
            jax.nn.one_hot(tokens, self.vocabulary_size)
            if self.embed is None
            else self.embed(tokens)
        )

    def __call__(
        self, window: Window, carry: Carry = None, rngs: nnx.Rngs | None = None
    ):
        """Return ``(carry, logits (T, *B, V), carries)`` for the inputs of a window."""
        carry, ys, carries = self.rnn(
            self.encode(window.inputs),
            carry,
            mask=window.mask,
            resets=window.resets,
            return_carries=True,
            rngs=rngs,
        )
        return carry, apply_linear(self.readout, ys), carries

    def step(
        self, carry: Carry, token: Int[Array, "*B"]
    ) -> tuple[Carry, Float[Array, "*B V"]]:
        """Apply one step, for `jaxrnn.generate`."""
        carry, y = self.rnn.step(carry, self.encode(token))
        return carry, self.readout(y)


@dataclasses.dataclass(frozen=True)
class Functions(Pure):
    """A `LanguageModel` as pure functions of its parameters."""

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        """Return the carry before the first token."""
        return self.still(params).rnn.initial_carry(batch_shape)

    def losses(
        self, params: Params, carry: Carry, window: Window
    ) -> tuple[Float[Array, "T *B"], Carry]:
        """Return the cross-entropies in nats and the carries, as `TBPTT` requires."""
        rngs = None if window.key is None else nnx.Rngs(dropout=window.key)
        _, logits, carries = self.training(params)(window, carry, rngs)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, window.targets
        ), carries

    def tbptt(self, k1: int, k2: int) -> TBPTT:
        """Return the `TBPTT` of the model."""
        return TBPTT(self.losses, self.initial_carry, k1, k2)

    @functools.partial(jax.jit, static_argnums=0)
    def total_loss(
        self, params: Params, carry: Carry, window: Window, counted: Array
    ) -> tuple[Carry, Array]:
        """Return the carry after a window, and its summed cross-entropy (nats).

        Only the valid steps of ``counted`` count.
        """
        carry, logits, _ = self.still(params)(window, carry)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, window.targets)
        return carry, jnp.where(counted & window.mask, losses, 0).sum()

    def probe(self, tokens: ArrayLike, following: ArrayLike, params: Params) -> Probe:
        """Return the `Probe` of the recurrent layers, for the diagnostics.

        Its inputs are the embedded ``tokens (T, B)``, and the loss is the cross-entropy
        of each step.
        """
        model = self.still(params)

        def loss(y, target):
            return optax.softmax_cross_entropy_with_integer_labels(
                model.readout(y), target
            ).sum()

        xs = model.encode(jnp.asarray(tokens))
        return Probe(
            inference(model.rnn.layer),
            model.rnn.values(),
            xs,
            loss,
            jnp.asarray(following),
        )

    def step(self, params: Params, carry: Carry, token: Array) -> tuple[Carry, Array]:
        """Apply one step without randomness."""
        return self.still(params).step(carry, token)


def bits_per_token(
    functions: Functions,
    params: Params,
    text: np.ndarray | Tokens,
    *,
    streams: int = 32,
    context: int = 512,
    window: int = 256,
    most: int = 0,
    work: Work | None = None,
) -> float:
    """Return the mean bits per token of ``text (N,)``.

    Each token but the first is predicted from those before it. A long text is read in
    ``streams`` parallel parts. Each part is warmed up on the ``context`` tokens before
    it, which do not count; the first one starts from the initial carry. The text is
    read ``window`` tokens at a time with the carry passed on, so that the memory does
    not grow with the text.

    With ``most``, only about so many tokens count: the first ones of each part.
    ``work`` is told how many have been counted.
    """
    count = len(text) - 1
    if count < streams * context:
        streams = 1
    length = -(-count // streams)
    scored = min(length, -(-most // streams)) if most else length
    first = -context if streams > 1 else 0
    carry, total, counted = functions.initial_carry(params, (streams,)), 0.0, 0
    for begin in range(first, scored, window):
        step = np.arange(begin, begin + window)[:, None]
        rows = step + np.arange(streams)[None, :] * length
        valid = (rows >= 0) & (rows < count) & (step < scored)
        rows = np.clip(rows, 0, count - 1)
        counts = valid & (step >= 0)
        carry, loss = functions.total_loss(
            params, carry, Window(text[rows], text[rows + 1], valid), counts
        )
        total += float(loss)
        counted += int(counts.sum())
        if work is not None:
            work.done = counted
    return total / counted / math.log(2)
