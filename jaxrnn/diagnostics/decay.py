"""How fast a gradient decays: the fitted rate per step, and the horizon beyond which
nothing arrives.
"""

from __future__ import annotations

import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.cell import accumulator
from ..core.validation import check_int, check_key_given, describe
from .lags import GradientLags
from .scaled import log_mean_exp


class DecayFit(NamedTuple):
    """``v_k ~ exp(intercept) beta^k`` by least squares on log v_k.

    All NaN where a v_k in the range is exactly zero or not finite, or no sequence has
    all its lags. ``tau`` is inf where beta >= 1: nothing decays. The interval (``low``,
    ``high``) is NaN where only one sequence has them, or a resampled batch holds none
    whose gradient is not zero.
    """

    beta: Float[Array, ""]
    tau: Float[Array, ""]  # steps after which e^-1 is left: -1 / log beta
    intercept: Float[Array, ""]
    residual: Float[Array, ""]  # root mean square of log v_k minus the line, in nats
    low: Float[Array, ""]  # a bootstrap interval of beta over the batch
    high: Float[Array, ""]


def fit_decay(
    lags: GradientLags | Float[Array, "K *B"],
    fit_range: tuple[int, int],
    *,
    key: Array,
    resamples: int = 500,
    level: float = 0.95,
) -> DecayFit:
    """The decay rate beta of ``v_k = mean_b exp(log_norm[k, b])`` over lags
    ``fit_range[0] <= k <= fit_range[1]``.

    Ordinary least squares of log v_k on k (Aicher, Foti & Fox 2019, eq. 13, over the
    range asked for only). The interval is the percentile bootstrap over batch elements:
    it says how much the batch matters, not whether the decay is exponential, of which
    ``residual`` speaks.

    Args:
        lags: what `gradient_lags` returned: sequences too short to have every lag of
            the range are left out, so that v_k is the mean of the same ones throughout.
            Or an array of logarithms, all of which are taken.
        fit_range: the first and the last lag, both taken.
        key: for the bootstrap.
        resamples: batches drawn for it.
        level: share of them inside the interval.

    Raises:
        ValueError: for an empty range, one with fewer than two lags, or one that
            reaches beyond the lags there are.
    """
    log_norm = jnp.asarray(lags.log_norm if isinstance(lags, GradientLags) else lags)
    check_key_given("fit_decay", key)
    if not jnp.issubdtype(log_norm.dtype, jnp.floating) or log_norm.ndim < 1:
        raise TypeError(
            f"fit_decay: log_norm must be real, (K + 1, *B), but it is "
            f"{describe(log_norm)}"
        )
    log_norm = log_norm.astype(accumulator(log_norm.dtype))
    low, high = check_fit_range("fit_decay", fit_range, log_norm.shape[0] - 1)
    if not 0 < level < 1:
        raise ValueError(
            f"fit_decay: level must lie between 0 and 1, but it is {level!r}"
        )
    resamples = check_int("fit_decay", "resamples", resamples, 1, 2**20, "of batches")
    part = log_norm[low : high + 1].reshape(high + 1 - low, -1)
    there = (
        lags.exists[high].reshape(-1)
        if isinstance(lags, GradientLags)
        else jnp.ones(part.shape[1], bool)
    )
    return _fit(part, there, low, key, resamples, float(level))


@functools.partial(jax.jit, static_argnums=(2, 4, 5))
def _fit(
    part: Array, there: Array, first: int, key: Array, resamples: int, level: float
) -> DecayFit:
    lags = first + jnp.arange(part.shape[0], dtype=part.dtype)
    centred = lags - lags.mean()

    def line(log_v):
        slope = (centred * log_v).sum() / jnp.square(centred).sum()
        return slope, log_v.mean() - slope * lags.mean()

    count = there.sum()
    log_v = log_mean_exp(jnp.where(there, part, jnp.nan), 1)
    slope, intercept = line(log_v)
    bad = ~jnp.isfinite(log_v).all() | (there & jnp.isnan(part).any(0)).any()
    slope, intercept = (
        jnp.where(bad, jnp.nan, slope),
        jnp.where(bad, jnp.nan, intercept),
    )

    order = jnp.argsort(~there)  # those there first

    def resampled(k):
        chosen = order[jax.random.randint(k, there.shape, 0, jnp.maximum(count, 1))]
        drawn = jnp.where(jnp.arange(there.size) < count, part[:, chosen], jnp.nan)
        return line(log_mean_exp(drawn, 1))[0]

    slopes = jax.lax.map(resampled, jax.random.split(key, resamples))
    ends = jnp.quantile(
        slopes, jnp.asarray([(1 - level) / 2, (1 + level) / 2], slopes.dtype)
    )
    ends = jnp.where(bad | (count < 2), jnp.nan, jnp.exp(ends))
    tau = jnp.where(
        slope < 0, -1 / slope, jnp.where(jnp.isnan(slope), jnp.nan, jnp.inf)
    )
    residual = jnp.sqrt(jnp.square(log_v - intercept - slope * lags).mean())
    return DecayFit(jnp.exp(slope), tau, intercept, residual, ends[0], ends[1])


def memory_horizon(log_v: Float[Array, " K"], share: float = 0.01) -> Float[Array, ""]:
    """The effective memory in steps: the least k after which v stays below ``share``
    times its largest value.

    inf where v is not below that at the last lag given: the memory reaches further than
    was looked. NaN where any v is NaN or infinite, or all are zero. A masked step
    counts as a lag: it holds the state.
    """
    log_v = jnp.asarray(log_v)
    if not jnp.issubdtype(log_v.dtype, jnp.floating):
        raise TypeError(
            f"memory_horizon: log_v must be real, as GradientLags.log_v is, but it is "
            f"{describe(log_v)}"
        )
    if log_v.ndim != 1 or not log_v.shape[0]:
        raise ValueError(
            f"memory_horizon: log_v must be (K + 1,), but it is {describe(log_v)}; "
            f"GradientLags.log_v is"
        )
    if not 0 < share < 1:
        raise ValueError(
            f"memory_horizon: share must lie between 0 and 1, but it is {share!r}"
        )
    above = log_v >= log_v.max() + jnp.log(jnp.asarray(share, log_v.dtype))
    count = log_v.shape[0]
    last = count - 1 - jnp.argmax(above[::-1])  # the last lag that is not below
    horizon = jnp.where(above[-1], jnp.inf, (last + 1).astype(log_v.dtype))
    return jnp.where(jnp.isfinite(log_v.max()), horizon, jnp.nan)


def check_fit_range(what: str, fit_range: Any, most: int) -> tuple[int, int]:
    """``(first, last)``, at least two lags, all there."""
    ints = isinstance(fit_range, (tuple, list)) and len(fit_range) == 2
    if not ints or any(
        isinstance(k, bool) or not isinstance(k, numbers.Integral) for k in fit_range
    ):
        raise TypeError(
            f"{what}: fit_range must be two ints, the first and the last lag, but it "
            f"is {fit_range!r}"
        )
    first, last = int(fit_range[0]), int(fit_range[1])
    if not 0 <= first < last <= most:
        raise ValueError(
            f"{what}: fit_range must hold at least two of the lags 0..{most}, its "
            f"first before its last, but it is "
            f"({first}, {last})"
        )
    return first, last
