"""Attention over a memory (Bahdanau et al. 2015; Luong et al. 2015)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


class Memory(NamedTuple):
    """The values, the keys computed from them, and the mask of valid steps."""

    values: Float[Array, "*B S D"]
    keys: Float[Array, "*B S A"]
    mask: Bool[Array, "*B S"]


class Attention(nnx.Module):
    """Additive or bilinear attention over a masked memory::

        context = sum_s weights_s values_s
        weights = softmax_s(score(query, key_s))    over the steps of the mask

    The score is one of

    - ``additive``: v . tanh(W query + U value)   (Bahdanau et al. 2015, section A.1.2)
    - ``dot``: (W query) . value                  (Luong et al. 2015, eq. 8, "general")

    Padding has a weight of exactly 0, whatever it contains; for a memory of padding
    alone the context is 0.
    """

    def __init__(
        self,
        score: str,
        query_size: int,
        memory_size: int,
        size: int = 64,
        *,
        rngs: nnx.Rngs,
    ):
        if score not in ("additive", "dot"):
            raise ValueError(
                f"Attention: the score must be 'additive' or 'dot', but it is {score!r}"
            )
        additive = score == "additive"
        self.query = nnx.Linear(
            query_size, size if additive else memory_size, use_bias=False, rngs=rngs
        )
        self.key = nnx.Linear(memory_size, size, rngs=rngs) if additive else None
        self.weigh = (
            nnx.Linear(size, 1, use_bias=False, rngs=rngs) if additive else None
        )

    def memory(
        self, values: Float[Array, "*B S D"], mask: Bool[Array, "*B S"]
    ) -> Memory:
        """Compute the keys once, for any number of queries."""
        values = jnp.where(mask[..., None], values, 0)
        return Memory(values, values if self.key is None else self.key(values), mask)

    def __call__(
        self, query: Float[Array, "*B T H"], memory: Memory
    ) -> tuple[Float[Array, "*B T D"], Float[Array, "*B T S"]]:
        """Return contexts ``(*B, T, D)`` and weights ``(*B, T, S)``."""
        query = self.query(query)
        if self.weigh is None:
            scores = jnp.einsum("...td,...sd->...ts", query, memory.keys)
        else:
            scores = self.weigh(
                jnp.tanh(query[..., :, None, :] + memory.keys[..., None, :, :])
            )[..., 0]
        mask = jnp.broadcast_to(memory.mask[..., None, :], scores.shape)
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.where(
            mask,
            jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True))),
            0,
        )
        weights = weights / jnp.maximum(
            weights.sum(-1, keepdims=True), jnp.finfo(scores.dtype).tiny
        )
        return jnp.einsum("...ts,...sd->...td", weights, memory.values), weights
