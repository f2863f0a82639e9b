"""How much of what one step of a chunk wrote, or entered the chunk, later steps see.

Every class here takes the logarithms of the decays of a chunk, ``g (..., C, 1 or K)``,
and answers the same questions. No answer contains exp of a positive number, and no sum
of logarithms is the difference of two longer ones: after a decay of exp(-1e4) a
difference would lose the digits of all that follows.

With resets, ``segment (..., C)`` counts those up to each step; a step sees nothing of
an earlier segment.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .inverse import exact_matmul

BLOCK = 8  # steps between which each decay a channel is summed by itself


def decay_of(g: Array | None, segment: Array | None, size: int) -> AbstractDecay:
    """Return the decay of a chunk: none, one a head, or one a channel of the keys."""
    if g is None:
        return NoDecay(segment, size)
    if g.shape[-1] == 1:
        return HeadDecay(g, segment)
    return ChannelDecay(g, segment)


class AbstractDecay:
    """The answers, for whatever decays.

    Args:
        segment: ``(..., C)``, the number of resets up to each step, or None.
        size: C.
    """

    def __init__(self, segment: Int[Array, "*B C"] | None, size: int):
        self.segment, self.size = segment, size

    def scores(self, x: Array, y: Array, *, before: bool) -> Float[Array, "*B C C"]:
        """Return what x at step t reads of what was written at y at step s::

            scores_ts = sum over d of x_td y_sd exp(g_{s+1,d} + ... + g_{t,d})

        for s <= t; with ``before``, x reads the state before step t: the sum ends with
        g_{t-1}, and s < t. It is zero for other s.
        """
        raise NotImplementedError

    def since_start(self, *, before: bool) -> Array | None:
        """Return the decay of what entered: since the chunk began, or was last reset.

        It is ``(..., C, 1 or K)``, with step t, or without it where ``before`` is set;
        None stands for 1.
        """
        raise NotImplementedError

    def to_end(self) -> Array | None:
        """Return the decay of what was written at each step until the chunk ends."""
        raise NotImplementedError

    def sees(self, *, before: bool) -> Array:
        """Return which steps s each step t sees, ``(..., C, C)``."""
        place = np.arange(self.size)
        t, s = place[:, None], place[None, :]
        causal = t > s if before else t >= s
        if self.segment is None:
            return jnp.asarray(causal)
        same = self.segment[..., :, None] == self.segment[..., None, :]
        return like(causal, same) & same

    def summed(self, g: Array, *, before: bool) -> Array:
        """Return the sums of g over the steps that each step sees, with its own."""
        sees = like(self.sees(before=before), g).astype(g.dtype)
        return exact_matmul(sees, g)


class NoDecay(AbstractDecay):
    """Nothing decays."""

    def scores(self, x, y, *, before):
        scores = products(x, y, before)
        return jnp.where(like(self.sees(before=before), scores), scores, 0)

    def since_start(self, *, before):
        return None

    def to_end(self):
        return None


class HeadDecay(AbstractDecay):
    """One decay a head: a matrix of sums, each of which is computed by itself.

    Attributes:
        between: ``(..., C, C)``, the sum of g over the steps after s up to t.
    """

    def __init__(self, g: Float[Array, "*B C 1"], segment: Array | None):
        super().__init__(segment, g.shape[-2])
        self.g = g
        lower = np.tri(self.size, dtype=bool)
        after_s = jnp.where(like(np.tril(lower, -1), g), g, jnp.zeros_like(g))
        self.between = exact_matmul(like(lower, g).astype(g.dtype), after_s)

    def log_weights(self, *, before: bool) -> Float[Array, "*B C C"]:
        """Return the logarithm of what step t sees of step s; -inf for nothing."""
        between = self.between
        if before:
            between = _shift(between)
        return jnp.where(like(self.sees(before=before), between), between, -jnp.inf)

    def log_since_start(self, *, before: bool) -> Float[Array, "*B C"]:
        """Return the logarithm of `since_start`."""
        return self.summed(self.g, before=before)[..., 0]

    def scores(self, x, y, *, before):
        return jnp.exp(self.log_weights(before=before)) * products(x, y, before)

    def since_start(self, *, before):
        return jnp.exp(self.log_since_start(before=before))[..., None]

    def to_end(self):
        return jnp.exp(self.between[..., -1, :, None])


class ChannelDecay(AbstractDecay):
    """One decay a channel of the keys: scores by blocks of 8 steps.

    What a step reads of an earlier block decays to the beginning of its own block, and
    from there on, so that it is a product of two factors of at most 1, and one matrix
    product for all earlier blocks. Within a block the decay between any two steps is
    summed by itself.

    Attributes:
        ahead: the sum of g from the beginning of a step's block up to the step.
        behind: the sum of g after a step to the end of its block.
        between: the sum of g over the blocks between two blocks, ``(..., n, n, K)``;
            -inf where the second is not earlier.
    """

    def __init__(self, g: Float[Array, "*B C K"], segment: Array | None):
        super().__init__(segment, g.shape[-2])
        self.g, self.width = g, min(BLOCK, self.size)
        blocks = self._blocks(g)  # (..., n, w, K)
        lower = np.tri(self.width)
        self.ahead = exact_matmul(like(lower, blocks).astype(g.dtype), blocks)
        upper = like(1 - lower, blocks).astype(g.dtype)
        self.behind = exact_matmul(upper, blocks)
        totals = self.ahead[..., -1, :]
        count = totals.shape[-2]
        i, j, m = np.ogrid[:count, :count, :count]
        inside = ((j < m) & (m < i)).reshape(count * count, count)
        sums = exact_matmul(like(inside, totals).astype(g.dtype), totals)
        sums = sums.reshape(*totals.shape[:-2], count, count, -1)
        earlier = np.tri(count, k=-1, dtype=bool)[:, :, None]
        self.between = jnp.where(like(earlier, sums), sums, -jnp.inf)

    def scores(self, x, y, *, before):
        x, y = self._blocks(x), self._blocks(y)
        scores = self._with_earlier_blocks(x, y, before)
        own = self._within_blocks(x, y, before)  # (..., n, w, w)
        count = own.shape[-3]
        eye = np.eye(count, dtype=own.dtype)[:, None, :, None]
        own = own[..., None, :]
        scores = scores + own * like(eye, own)
        scores = scores.reshape(*scores.shape[:-4], self.size, self.size)
        if self.segment is None:
            return scores
        return jnp.where(like(self.sees(before=before), scores), scores, 0)

    def _with_earlier_blocks(self, x, y, before):
        """Return the scores of every step with those of earlier blocks."""
        x = x * jnp.exp(_shift(self.ahead) if before else self.ahead)
        decay = self.behind[..., None, :, :, :] + self.between[..., :, :, None, :]
        y = y[..., None, :, :, :] * jnp.exp(decay)  # (..., n, n, w, K)
        flat = y.reshape(*y.shape[:-3], self.size, y.shape[-1])
        scores = products(x, flat, before)
        return scores.reshape(*scores.shape[:-1], *y.shape[-3:-1])

    def _within_blocks(self, x, y, before):
        """Return the scores of every step with those of its own block."""
        place = np.arange(self.width)
        t, s, u = place[:, None, None], place[None, :, None], place[None, None, :]
        inside = (s < u) & (u < t if before else u <= t)
        inside = inside.reshape(self.width * self.width, self.width)
        g = self._blocks(self.g)
        sums = exact_matmul(like(inside, g).astype(g.dtype), g)
        sums = sums.reshape(*g.shape[:-2], self.width, self.width, -1)
        sees = (s < t if before else s <= t)[:, :, 0, None]
        decay = jnp.exp(jnp.where(like(sees, sums), sums, -jnp.inf))
        return (x[..., :, None, :] * y[..., None, :, :] * decay).sum(-1)

    def _blocks(self, x):
        """Split the steps into blocks."""
        count = self.size // self.width
        return x.reshape(*x.shape[:-2], count, self.width, x.shape[-1])

    def since_start(self, *, before):
        return jnp.exp(self.summed(self.g, before=before))

    def to_end(self):
        after = like(1 - np.tri(self.size), self.g).astype(self.g.dtype)
        return jnp.exp(exact_matmul(after, self.g))


def products(x: Array, y: Array, exact: bool) -> Array:
    """Return ``x_t . y_s`` for all t and s; in full precision where it is solved for.

    Scores of a query are read once and need none.
    """
    precision = jax.lax.Precision.HIGHEST if exact else None
    return jnp.matmul(x, jnp.swapaxes(y, -1, -2), precision=precision)


def like(x: Any, other: Array) -> Array:
    """Add leading axes of size 1 to x until it has as many axes as ``other``."""
    x = jnp.asarray(x)
    return x.reshape((1,) * (other.ndim - x.ndim) + x.shape)


def _shift(x: Array) -> Array:
    """Move the rows down by one; the first becomes zero."""
    widths = [(0, 0)] * (x.ndim - 2) + [(1, 0), (0, 0)]
    return jnp.pad(x[..., :-1, :], widths)
