"""ARTBP: randomly truncated backpropagation whose expected gradient is exact."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.arrays import is_array
from ..core.types import Flags
from ..core.validation import check_batch_shape, describe


@runtime_checkable
class Truncation(Protocol):
    """What draws the gradient scales of windows for `TBPTT`, as `ARTBP` does."""

    def sample(
        self,
        key: Array,
        steps: int,
        batch_shape: tuple[int, ...] = (),
        mask: Any = None,
        resets: Any = None,
    ) -> Array:
        """Draw a scale ``(steps, *batch_shape)``."""


@dataclasses.dataclass(frozen=True)
class ARTBP:
    """Anticipated reweighted truncated backpropagation (ARTBP).

    Tallec & Ollivier (2017, arXiv:1705.08209). Before step t the gradient is cut with
    probability c_t, and otherwise multiplied by 1 / (1 - c_t)::

        delta_{t-1} = dl_{t-1}/ds_{t-1} + w_t delta_t J_t
        w_t = 0 with probability c_t, else 1 / (1 - c_t)
        c_t = (alpha - 1) / ((alpha - 2) mean_length + d_t)

    where d_t, from 1, is the number of valid steps since the last cut.

    Given all cuts before it, w_t has expectation ``c_t 0 + (1 - c_t) / (1 - c_t) = 1``.
    The product of the w_t over k consecutive steps, which multiplies lag k of a loss,
    therefore has expectation 1 as well, and the expected gradient is that of full BPTT.
    This is exact for any alpha and any length, with mask and resets.

    The price is noise: a lag of k steps survives with probability about ``((alpha - 2)
    mean_length / k) ** (alpha - 1)``, and is then multiplied by the inverse. The
    intervals between cuts have exactly the mean ``mean_length``, a power-law tail, and
    a finite variance for alpha > 3. ``alpha=math.inf`` is the limit of a constant ``c =
    1 / mean_length``, whose weights grow exponentially with the lag.

    The first step and a step after a reset, which have no history to cut off, are never
    cut (d_t = 0, c_t = 0). Nor are masked steps, which do not count in d_t. The layers
    of a stack are cut at the same steps, so that a path back in time meets the weight
    of each step at most once. This makes the expectation exact. It is not exact if one
    path runs both ways in time, in a stack with a `bidirectional` layer; one
    bidirectional layer by itself is exact.

    ARTBP saves neither time nor memory: arrays have fixed shapes, and the backward pass
    computes every step whatever is cut. Use it to study unbiased truncation, or in
    `TBPTT(truncation=...)`.

    Args:
        mean_length: mean number of steps between cuts, above 1 (the paper's L0).
        alpha: the exponent of the tail, above 2.

    Raises:
        ValueError: if ``mean_length`` is not a finite number above 1, or ``alpha`` not
            a number above 2.

    Example::

        >>> import jax, jaxrnn
        >>> artbp, cell = jaxrnn.ARTBP(mean_length=4), jaxrnn.GRU(4)
        >>> scale = artbp.sample(jax.random.key(0), steps=6, batch_shape=(2,))
        >>> params, xs = cell.init(jax.random.key(1), 3), jax.numpy.ones((6, 2, 3))
        >>> carry, ys = jaxrnn.truncated_unroll(cell, params, xs, gradient_scale=scale)
        >>> scale.shape, ys.shape
        ((6, 2), (6, 2, 4))
    """

    mean_length: float
    alpha: float = 4.0

    def __post_init__(self):
        for name, value, least in (
            ("mean_length", self.mean_length, 1),
            ("alpha", self.alpha, 2),
        ):
            if (
                isinstance(value, bool)
                or not isinstance(value, numbers.Real)
                or not float(value) > least
            ):
                raise ValueError(
                    f"ARTBP: {name} must be a number above {least}, but it is {value!r}"
                )
        if math.isinf(self.mean_length):
            raise ValueError(
                "ARTBP: mean_length is infinite, so nothing would be cut: leave ARTBP "
                "out"
            )

    def sample(
        self,
        key: Array,
        steps: int,
        batch_shape: tuple[int, ...] = (),
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
    ) -> Float[Array, "T *B"]:
        """Draw cuts for every sequence independently, and return the gradient scale w.

        Steps since a cut are counted in the order of time. The expectation is also
        exact if the scale is used for an unroll with ``reverse=True``.

        Args:
            key: a `jax.random` key.
            steps: T.
            batch_shape: the batch axes ``*B``.
            mask: False at masked steps, or None.
            resets: True where a new sequence begins, or None.

        Returns:
            w ``(T, *B)``, for ``gradient_scale`` of `truncated_unroll`.

        Raises:
            TypeError: if ``key`` is no key, or ``batch_shape`` no tuple.
            ValueError: if ``mask`` or ``resets`` is not bool of shape ``(T, *B)``.
        """
        check_batch_shape(batch_shape)
        shape = (steps, *batch_shape)
        if not is_array(key):
            raise TypeError(
                f"ARTBP: key must be a key such as jax.random.key(0), but it is "
                f"{describe(key)}"
            )
        cuts, probabilities = self._follow(jax.random.uniform(key, shape), mask, resets)
        return _scale(cuts, probabilities)

    def probabilities(
        self,
        cuts: Bool[Array, "T *B"],
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
    ) -> Float[Array, "T *B"]:
        """Return c_t, the probability of a cut before step t given all cuts before it.

        Args:
            cuts: True where the gradient is cut before a step.
            mask: False at masked steps, or None.
            resets: True where a new sequence begins, or None.

        Returns:
            c ``(T, *B)``.

        Raises:
            ValueError: if an argument is not bool of shape ``(T, *B)``.
        """
        check_pattern("cuts", cuts, None)
        # A draw of -1 lies below every probability and one of 2 above.
        return self._follow(jnp.where(cuts, -1.0, 2.0), mask, resets)[1]

    def scale_of(
        self,
        cuts: Bool[Array, "T *B"],
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
    ) -> tuple[Float[Array, "T *B"], Float[Array, "*B"]]:
        """Return the gradient scale and the log probability of a pattern of cuts.

        Args:
            cuts: True where the gradient is cut before a step.
            mask: False at masked steps, or None.
            resets: True where a new sequence begins, or None.

        Returns:
            ``(w, log_probability)``, of shapes ``(T, *B)`` and ``(*B)``. The log
            probability of a pattern that is never drawn is -inf.
        """
        c = self.probabilities(cuts, mask, resets)
        return _scale(jnp.asarray(cuts), c), jnp.where(
            cuts, jnp.log(c), jnp.log1p(-c)
        ).sum(0)

    def _follow(
        self, draws: Array, mask: Flags | None, resets: Flags | None
    ) -> tuple[Array, Array]:
        """Cut where a draw is below c_t; return the cuts and c, both ``(T, *B)``."""
        for name, flags in (("mask", mask), ("resets", resets)):
            if flags is not None:
                check_pattern(name, flags, draws.shape)
        keep = jnp.ones(draws.shape, bool) if mask is None else jnp.asarray(mask)
        reset = jnp.zeros(draws.shape, bool) if resets is None else jnp.asarray(resets)

        # The carry is d, the number of valid steps since the last cut or reset. It is 0
        # where a sequence begins, so that c is 0 there. A cut before step t sets it to
        # zero, and step t itself then counts, if it is valid.
        def step(d, inputs):
            draw, keep, reset = inputs
            d = jnp.where(reset, jnp.zeros_like(d), d)
            c = jnp.where(
                keep & (d > 0),
                self._probability(d.astype(draw.dtype)),
                jnp.zeros_like(draw),
            )
            cut = draw < c
            d = jnp.where(cut, jnp.zeros_like(d), d) + keep.astype(d.dtype)
            return d, (cut, c)

        _, (cuts, probabilities) = jax.lax.scan(
            step, jnp.zeros(draws.shape[1:], jnp.int32), (draws, keep, reset)
        )
        return cuts, probabilities

    def _probability(self, d: Array) -> Array:
        """Return c for d valid steps since the last cut."""
        if math.isinf(self.alpha):
            return jnp.full_like(d, 1 / float(self.mean_length))
        return (self.alpha - 1) / ((self.alpha - 2) * float(self.mean_length) + d)


def _scale(cuts: Array, probabilities: Array) -> Array:
    """Return w: 0 where the gradient is cut, else 1 / (1 - c)."""
    return jnp.where(cuts, jnp.zeros_like(probabilities), 1 / (1 - probabilities))


def check_pattern(name: str, flags: Any, shape: tuple[int, ...] | None) -> None:
    """Check that ``flags`` is bool ``(T, *B)``, and of ``shape`` if one is given."""
    want = "(T, *B)" if shape is None else f"(T, *B) = {tuple(shape)}"
    fits = (
        is_array(flags)
        and flags.ndim >= 1
        and (shape is None or tuple(flags.shape) == tuple(shape))
    )
    if not fits or flags.dtype != bool:
        raise ValueError(
            f"ARTBP: {name} must be bool of shape {want}, but it is {describe(flags)}"
        )
