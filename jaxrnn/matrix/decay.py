"""How much of what one step of a chunk wrote, or entered the chunk, later steps see.

Every class here takes the logarithms of the decays of a chunk, ``g (..., C, 1 or K)``,
and answers the same questions. No answer contains exp of a positive number, and no sum
of logarithms is the difference of two longer ones: after a decay of exp(-1e4) a
difference would lose the digits of all that follows.

With resets, ``segment (..., C)`` counts those up to each step; a step sees nothing of
an earlier segment.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .inverse import exact_matmul


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

    def tables(
        self, readers: list[tuple[Array, bool]], written: list[Array]
    ) -> list[list[Array]]:
        """Return the `scores` of every reader with everything that is written.

        Args:
            readers: pairs of x and its ``before``.
            written: all y.
        """
        return [
            [self.scores(x, y, before=before) for y in written] for x, before in readers
        ]

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

    @property
    def log_weights(self) -> Float[Array, "*B C C"]:
        """The logarithm of what step t sees of step s; -inf for nothing."""
        sees = like(self.sees(before=False), self.between)
        return jnp.where(sees, self.between, -jnp.inf)

    def log_since_start(self, *, before: bool) -> Float[Array, "*B C"]:
        """Return the logarithm of `since_start`."""
        return self.summed(self.g, before=before)[..., 0]

    @functools.cached_property
    def weights(self) -> Float[Array, "*B C C"]:
        """What step t sees of step s."""
        return jnp.exp(self.log_weights)

    def scores(self, x, y, *, before):
        weights = self.weights
        if before:
            # Step t sees what the step before it saw, unless it is reset in between.
            weights = _shift(weights)
            if self.segment is not None:
                weights = jnp.where(self.sees(before=True), weights, 0)
        return weights * products(x, y, before)

    def since_start(self, *, before):
        return jnp.exp(self.log_since_start(before=before))[..., None]

    def to_end(self):
        return jnp.exp(self.between[..., -1, :, None])


class ChannelDecay(AbstractDecay):
    """One decay a channel of the keys: scores by halves.

    A block of 2h steps has a right and a left half. What the right one reads of the
    left one decays to the end of the left half and from there on, so it is a product of
    two factors of at most 1, and one matrix product. The halves are blocks themselves.
    """

    def __init__(self, g: Float[Array, "*B C K"], segment: Array | None):
        super().__init__(segment, g.shape[-2])
        self.g = g
        # For every level: sums from the beginning of the step's block of h steps up to
        # the step, and from after the step to the block's end; ``(..., C/h, h, K)``.
        ahead, behind = g[..., :, None, :], jnp.zeros_like(g[..., :, None, :])
        self.levels = [(ahead, behind)]
        while ahead.shape[-3] > 1:
            (first, second), (left, right) = _halves(ahead), _halves(behind)
            total_first, total_second = first[..., -1:, :], second[..., -1:, :]
            ahead = jnp.concatenate([first, second + total_first], -2)
            behind = jnp.concatenate([left + total_second, right], -2)
            self.levels.append((ahead, behind))

    def scores(self, x, y, *, before):
        return self._together([(x, before)], [y])[0][0]

    def tables(self, readers, written):
        """Compute all scores together: products of larger matrices are faster.

        Where heads share a part of them, this is computed once instead.
        """
        leads = {x.shape[:-2] for x in (*(x for x, _ in readers), *written)}
        if len(leads) > 1:
            return super().tables(readers, written)
        return self._together(readers, written)

    def _together(self, readers, written):
        """Compute `tables` by halves."""
        lead = np.broadcast_shapes(
            *(x.shape[:-2] for x, _ in readers),
            *(y.shape[:-2] for y in written),
            self.g.shape[:-2],
        )
        # Blocks of h steps, (..., C/h, readers, h, written, h), are joined in pairs.
        blocks = jnp.stack(
            [self._own(x, written, before) for x, before in readers], axis=-2
        )
        blocks = jnp.broadcast_to(blocks, (*lead, *blocks.shape[-3:]))
        blocks = blocks[..., :, None, :, None]
        for ahead, behind in self.levels[:-1]:
            half = blocks.shape[-1]
            below = self._between_halves(readers, written, ahead, behind, half)
            upper, lower = _halves(blocks, 4)
            top = jnp.concatenate([upper, jnp.zeros_like(below)], -1)
            bottom = jnp.concatenate([below, lower], -1)
            blocks = jnp.concatenate([top, bottom], -3)
        total = blocks[..., 0, :, :, :, :]
        found = [
            [total[..., i, :, j, :] for j in range(len(written))]
            for i in range(len(readers))
        ]
        if self.segment is None:
            return found
        return [
            [
                jnp.where(like(self.sees(before=before), score), score, 0)
                for score in row
            ]
            for row, (_, before) in zip(found, readers, strict=True)
        ]

    def _own(self, x, written, before):
        """Return what x at each step reads of the same step, ``(..., C, written)``."""
        own = jnp.stack([(x * y).sum(-1) for y in written], axis=-1)
        return jnp.zeros_like(own) if before else own

    def _between_halves(self, readers, written, ahead, behind, half):
        """Return the scores of right halves with left ones.

        They are ``(..., C/2h, readers, h, written, h)``.
        """
        _, ahead = _halves(ahead)
        behind, _ = _halves(behind)
        since, until = jnp.exp(ahead), jnp.exp(behind)
        right = [
            _halves(_blocks(x, half))[1] * (_shift(since, 1) if before else since)
            for x, before in readers
        ]
        left = [_halves(_blocks(y, half))[0] * until for y in written]
        exact = any(before for _, before in readers)
        scores = products(jnp.concatenate(right, -2), jnp.concatenate(left, -2), exact)
        lead = scores.shape[:-2]
        return scores.reshape(*lead, len(readers), half, len(written), half)

    def since_start(self, *, before):
        if self.segment is not None:
            return jnp.exp(self.summed(self.g, before=before))
        since = jnp.exp(self.levels[-1][0][..., 0, :, :])
        return _shift(since, 1) if before else since

    def to_end(self):
        return jnp.exp(self.levels[-1][1][..., 0, :, :])


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


def _shift(x: Array, first: float = 0) -> Array:
    """Move the rows down by one, and fill the first."""
    widths = [(0, 0)] * (x.ndim - 2) + [(1, 0), (0, 0)]
    return jnp.pad(x[..., :-1, :], widths, constant_values=first)


def _blocks(x: Array, half: int) -> Array:
    """Split the steps into blocks of ``half``."""
    return x.reshape(*x.shape[:-2], x.shape[-2] // half, half, x.shape[-1])


def _halves(x: Array, axes: int = 2) -> tuple[Array, Array]:
    """Return the left and the right one of every two blocks of ``axes`` axes."""
    *lead, count = x.shape[: x.ndim - axes]
    x = x.reshape(*lead, count // 2, 2, *x.shape[x.ndim - axes :])
    return tuple(jnp.moveaxis(x, len(lead) + 1, 0))
