"""The recurrent language model: tokens in, the distribution of the next token out."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from ..cell import Carry, Cell, Layer, Params
from ..nnx import RNN
from ..tbptt import TBPTT, Window


class LanguageModel(nnx.Module):
    """``softmax(readout(rnn(embed(tokens))))``; one-hot inputs where ``embed_size`` is 0."""

    def __init__(self, vocabulary_size: int, layer: Cell | Layer, embed_size: int = 0, *, rngs: nnx.Rngs):
        self.vocabulary_size = vocabulary_size
        self.embed = nnx.Embed(vocabulary_size, embed_size, rngs=rngs) if embed_size else None
        self.rnn = RNN(layer, embed_size or vocabulary_size, time_major=True, rngs=rngs)
        self.readout = nnx.Linear(self.rnn.output_size, vocabulary_size, rngs=rngs)

    def encode(self, tokens: Int[Array, "*TB"]) -> Float[Array, "*TB D"]:
        return jax.nn.one_hot(tokens, self.vocabulary_size) if self.embed is None else self.embed(tokens)

    def __call__(self, window: Window, carry: Carry = None, rngs: nnx.Rngs | None = None):
        """``(carry, logits (T, *B, V), carries)`` for the inputs of a window."""
        carry, ys, carries = self.rnn(
            self.encode(window.inputs), carry, mask=window.mask, resets=window.resets, return_carries=True, rngs=rngs
        )
        flat = self.readout(ys.reshape(-1, ys.shape[-1]))  # 2-D: see jaxrnn.cells.arithmetic.dense
        return carry, flat.reshape(*ys.shape[:-1], self.vocabulary_size), carries

    def step(self, carry: Carry, token: Int[Array, "*B"]) -> tuple[Carry, Float[Array, "*B V"]]:
        """One streaming step, for `jaxrnn.generate`."""
        carry, y = self.rnn.step(carry, self.encode(token))
        return carry, self.readout(y)


@dataclasses.dataclass(frozen=True)
class Functions:
    """A language model as pure functions of its parameters: ``graph`` for training, ``still`` without randomness."""

    graph: Any
    still: Any

    @classmethod
    def of(cls, model: LanguageModel) -> tuple[Functions, Params]:
        """The functions, and the model's parameters as a dict."""
        graph, state = nnx.split(model)
        model.eval()
        still, _ = nnx.split(model)
        model.train()
        return cls(graph, still), nnx.to_pure_dict(state)

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return nnx.merge(self.still, params).rnn.initial_carry(batch_shape)

    def losses(self, params: Params, carry: Carry, window: Window) -> tuple[Float[Array, "T *B"], Carry]:
        """Cross-entropies in nats, as `TBPTT` wants them."""
        rngs = None if window.key is None else nnx.Rngs(dropout=window.key)
        _, logits, carries = nnx.merge(self.graph, params)(window, carry, rngs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, window.targets), carries

    def tbptt(self, k1: int, k2: int) -> TBPTT:
        return TBPTT(self.losses, self.initial_carry, k1, k2)

    @functools.partial(jax.jit, static_argnums=0)
    def total_loss(self, params: Params, window: Window, counted: Array) -> tuple[Array, Array]:
        """The summed cross-entropy (nats) of the steps that count, and how many they are."""
        _, logits, _ = nnx.merge(self.still, params)(window)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, window.targets)
        counted = counted & window.mask
        return jnp.where(counted, losses, 0).sum(), counted.sum()

    def step(self, params: Params, carry: Carry, token: Array) -> tuple[Carry, Array]:
        return nnx.merge(self.still, params).step(carry, token)


def bits_per_token(functions: Functions, params: Params, text: np.ndarray, *, streams: int = 32, context: int = 512) -> float:
    """Mean bits per token of ``text (N,)``, each token but the first predicted from those before it.

    The text is read in up to ``streams`` stretches side by side; each is warmed up on the ``context`` tokens that stand
    before it, which are not counted. The first begins from the initial state.
    """
    count = len(text) - 1
    streams = max(1, min(streams, count // context))
    length = -(-count // streams)
    at = np.arange(-context if streams > 1 else 0, length)[:, None] + np.arange(streams)[None, :] * length
    there = (at >= 0) & (at < count)
    rows = np.clip(at, 0, count - 1)
    counted = there & (np.arange(at.shape[0])[:, None] >= at.shape[0] - length)
    window = Window(text[rows], text[rows + 1], there, None)
    total, number = functions.total_loss(params, window, counted)
    assert int(number) == count
    return float(total) / count / math.log(2)
