"""ARTBP: backpropagation through time cut at random places, and reweighted so that
its expectation is exact.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.validation import check_batch_shape, describe


@dataclasses.dataclass(frozen=True)
class ARTBP:
    """Anticipated reweighted truncated backpropagation (Tallec & Ollivier 2017,
    arXiv:1705.08209).

    Before step t the gradient is cut with probability c_t, and else multiplied by 1 /
    (1 - c_t)::

        delta_{t-1} = dl_{t-1}/ds_{t-1} + w_t delta_t J_t        w_t = 0 with probability c_t, else 1 / (1 - c_t)
        c_t = (alpha - 1) / ((alpha - 2) mean_length + d_t)      d_t: valid steps since the last cut, from 1

    Given all cuts before it, w_t has expectation 1; so has the product of the w_t over
    any stretch of steps, by which lag k of a loss is multiplied, and the expected
    gradient is that of full BPTT. This is exact for any alpha and any length, with mask
    and resets. The price is noise: a lag of k steps survives with probability about
    ``((alpha - 2) mean_length / k) ** (alpha - 1)``, and is then multiplied by the
    inverse. The intervals between cuts have exactly the mean ``mean_length``, a
    power-law tail, and a finite variance for alpha > 3; ``alpha=math.inf`` is the limit
    of a constant ``c = 1 / mean_length``, whose weights grow exponentially with the
    lag.

    The first step and one after a reset, which have nothing behind them to cut, are
    never cut (d_t = 0, c_t = 0); nor are masked steps, which do not count in d_t. The
    layers of a stack are cut at the same steps. A path back in time then meets every
    step's weight at most once, which is what makes the expectation exact; not so where
    one path goes both ways in time, in a stack that has a `bidirectional` layer. (One
    bidirectional layer by itself is exact.)

    No time is saved and no memory: arrays have fixed shapes, and the backward pass
        walks every step whatever is cut.

    Args:
        mean_length: mean number of steps between cuts, above 1 (the paper's L0).
        alpha: above 2; the exponent of the tail.

    Example::

        scale = jaxrnn.ARTBP(mean_length=50).sample(key, steps=500, batch_shape=(32,))
        carry, ys = jaxrnn.truncated_unroll(cell, params, xs, gradient_scale=scale)
    """  # noqa: E501

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
                "ARTBP: mean_length is infinite, which is never to cut: leave ARTBP out"
            )

    def sample(
        self,
        key: Array,
        steps: int,
        batch_shape: tuple[int, ...] = (),
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
    ) -> Float[Array, "T *B"]:
        """Draw where to cut, for every stream by itself; return the gradient scale w
        for `truncated_unroll`.

        Counts in the order of time; for a walk backwards the expectation is as exact.
        """
        check_batch_shape(batch_shape)
        shape = (steps, *batch_shape)
        if not hasattr(key, "dtype"):
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
        """c_t along a given pattern: the probability of a cut before step t, given
        the cuts before it.
        """
        check_pattern("cuts", cuts, None)
        return self._follow(jnp.where(cuts, -1.0, 2.0), mask, resets)[1]

    def scale_of(
        self,
        cuts: Bool[Array, "T *B"],
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
    ) -> tuple[Float[Array, "T *B"], Float[Array, "*B"]]:
        """``(gradient scale, log probability)`` of a given pattern of cuts; -inf for
        one that is never drawn.
        """
        c = self.probabilities(cuts, mask, resets)
        return _scale(jnp.asarray(cuts), c), jnp.where(
            cuts, jnp.log(c), jnp.log1p(-c)
        ).sum(0)

    def _follow(self, draws: Array, mask: Any, resets: Any) -> tuple[Array, Array]:
        """Cut where a draw lies below c_t: the cuts, and c_t, both ``(T, *B)``."""
        for name, flags in (("mask", mask), ("resets", resets)):
            if flags is not None:
                check_pattern(name, flags, draws.shape)
        keep = jnp.ones(draws.shape, bool) if mask is None else jnp.asarray(mask)
        reset = jnp.zeros(draws.shape, bool) if resets is None else jnp.asarray(resets)

        def step(behind, now):
            draw, keep, reset = now
            behind = jnp.where(reset, jnp.zeros_like(behind), behind)
            c = jnp.where(
                keep & (behind > 0),
                self._probability(behind.astype(draw.dtype)),
                jnp.zeros_like(draw),
            )
            cut = draw < c
            behind = jnp.where(cut, jnp.zeros_like(behind), behind) + keep.astype(
                behind.dtype
            )
            return behind, (cut, c)

        _, (cuts, probabilities) = jax.lax.scan(
            step, jnp.zeros(draws.shape[1:], jnp.int32), (draws, keep, reset)
        )
        return cuts, probabilities

    def _probability(self, behind: Array) -> Array:
        if math.isinf(self.alpha):
            return jnp.full_like(behind, 1 / float(self.mean_length))
        return (self.alpha - 1) / ((self.alpha - 2) * float(self.mean_length) + behind)


def _scale(cuts: Array, probabilities: Array) -> Array:
    return jnp.where(cuts, jnp.zeros_like(probabilities), 1 / (1 - probabilities))


def check_pattern(name: str, flags: Any, shape: tuple[int, ...] | None) -> None:
    """``flags`` is bool and ``(T, *B)``, of ``shape`` where that is known."""
    want = "(T, *B)" if shape is None else f"(T, *B) = {tuple(shape)}"
    fits = (
        hasattr(flags, "dtype")
        and flags.ndim >= 1
        and (shape is None or tuple(flags.shape) == tuple(shape))
    )
    if not fits or flags.dtype != bool:
        raise ValueError(
            f"ARTBP: {name} must be bool of shape {want}, but it is {describe(flags)}"
        )
