"""The decay rate of a gradient per lag, and the memory horizon."""

from __future__ import annotations

import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.dtypes import accumulator
from ..core.validation import check_int, check_key_given, describe
from .lags import GradientLags
from .scaled import log_mean_exp


class DecayFit(NamedTuple):
    """The fit ``v_k ~ exp(intercept) beta^k``, by least squares on log v_k.

    All fields are NaN where a v_k in the range is exactly zero or not finite, or where
    no sequence has all lags of the range.

    Attributes:
        beta: the factor by which v decays per lag.
        tau: -1 / log beta, the number of steps after which a share e^-1 is left; inf
            where beta >= 1, because nothing decays.
        intercept: log v_0 of the fitted line.
        residual: root mean square of log v_k minus the line, in nats.
        low, high: a bootstrap interval of beta over the batch. NaN where only one
            sequence has all lags, or a resampled batch has no sequence with a nonzero
            gradient.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.diagnostics import fit_decay
        >>> log_norm = 1 + jnp.log(0.5) * jnp.arange(5.0)[:, None]
        >>> fit = fit_decay(log_norm, (0, 4), key=jax.random.key(0))
        >>> f"{fit.beta:.2f} {fit.intercept:.2f} {fit.residual:.2f}"
        '0.50 1.00 0.00'
        >>> bool(jnp.isnan(fit.low))  # an interval needs a second sequence
        True
    """

    beta: Float[Array, ""]
    tau: Float[Array, ""]
    intercept: Float[Array, ""]
    residual: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]


def fit_decay(
    lags: GradientLags | Float[Array, "K *B"],
    fit_range: tuple[int, int],
    *,
    key: Array,
    resamples: int = 500,
    level: float = 0.95,
) -> DecayFit:
    """Fit the decay rate beta of the mean gradient norm per lag.

    The fit is ordinary least squares of log v_k on k over ``fit_range[0] <= k <=
    fit_range[1]``, where ``v_k = mean_b exp(log_norm[k, b])`` (Aicher, Foti & Fox 2019,
    eq. 13, restricted to the requested range)::

        log v_k ~ intercept + k log beta

    The interval is the percentile bootstrap over batch elements. It measures how much
    beta depends on the batch, not whether the decay is exponential; for the latter see
    ``residual``.

    Args:
        lags: the result of `gradient_lags`, or an array of log norms ``(K + 1, *B)``.
            From the result of `gradient_lags`, sequences too short to have every lag of
            the range are left out, so that v_k is a mean over the same sequences at all
            lags. Of an array every sequence is used.
        fit_range: the first and the last lag, both inclusive.
        key: the key of the bootstrap.
        resamples: the number of resampled batches.
        level: the share of the resampled batches inside the interval.

    Returns:
        A `DecayFit`.

    Raises:
        TypeError: if the log norms are not real or ``fit_range`` is not two ints.
        ValueError: if the range has fewer than two lags or reaches beyond the last lag,
            or if ``level`` is outside (0, 1).

    Example::

        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.diagnostics import fit_decay
        >>> log_norm = jnp.log(0.5) * jnp.arange(5.0)[:, None]  # one sequence
        >>> fit = fit_decay(log_norm, (0, 4), key=jax.random.key(0))
        >>> print(f"{fit.beta:.2f} {fit.tau:.2f}")
        0.50 1.44
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
    has_all_lags = (
        lags.exists[high].reshape(-1)
        if isinstance(lags, GradientLags)
        else jnp.ones(part.shape[1], bool)
    )
    return _fit(part, has_all_lags, low, key, resamples, float(level))


@functools.partial(jax.jit, static_argnums=(2, 4, 5))
def _fit(
    log_norm: Array,
    has_all_lags: Array,
    first_lag: int,
    key: Array,
    resamples: int,
    level: float,
) -> DecayFit:
    """Fit the line, and bootstrap its slope over the sequences that have all lags."""
    lags = first_lag + jnp.arange(log_norm.shape[0], dtype=log_norm.dtype)
    centered = lags - lags.mean()

    def line(log_v):
        slope = (centered * log_v).sum() / jnp.square(centered).sum()
        return slope, log_v.mean() - slope * lags.mean()

    count = has_all_lags.sum()
    log_v = log_mean_exp(jnp.where(has_all_lags, log_norm, jnp.nan), 1)
    slope, intercept = line(log_v)
    invalid = (
        ~jnp.isfinite(log_v).all() | (has_all_lags & jnp.isnan(log_norm).any(0)).any()
    )
    slope, intercept = (
        jnp.where(invalid, jnp.nan, slope),
        jnp.where(invalid, jnp.nan, intercept),
    )

    # Shapes are static, so the bootstrap draws indices below the (traced) number of
    # complete sequences from an order in which these come first; the remaining
    # columns become NaN, which the mean leaves out.
    order = jnp.argsort(~has_all_lags)

    def resampled(k):
        sampled = order[
            jax.random.randint(k, has_all_lags.shape, 0, jnp.maximum(count, 1))
        ]
        resampled_norms = jnp.where(
            jnp.arange(has_all_lags.size) < count, log_norm[:, sampled], jnp.nan
        )
        return line(log_mean_exp(resampled_norms, 1))[0]

    slopes = jax.lax.map(resampled, jax.random.split(key, resamples))
    ends = jnp.quantile(
        slopes, jnp.asarray([(1 - level) / 2, (1 + level) / 2], slopes.dtype)
    )
    ends = jnp.where(invalid | (count < 2), jnp.nan, jnp.exp(ends))
    tau = jnp.where(
        slope < 0, -1 / slope, jnp.where(jnp.isnan(slope), jnp.nan, jnp.inf)
    )
    residual = jnp.sqrt(jnp.square(log_v - intercept - slope * lags).mean())
    return DecayFit(jnp.exp(slope), tau, intercept, residual, ends[0], ends[1])


def memory_horizon(log_v: Float[Array, " K"], share: float = 0.01) -> Float[Array, ""]:
    """Return the number of lags after which v stays below a share of its maximum.

    Args:
        log_v: log v_k for k = 0..K, as ``GradientLags.log_v``.
        share: the share of the largest v, in (0, 1).

    Returns:
        The number of steps, as a float scalar. It is inf where v is not below that
        share at the last lag, so that the memory reaches further than was measured. It
        is NaN where any v is NaN or infinite, or all are zero. A masked step counts as
        a lag, because it holds the state.

    Raises:
        TypeError: if ``log_v`` is not real.
        ValueError: if ``log_v`` is not one-dimensional or is empty, or ``share`` is
            outside (0, 1).

    Example::

        >>> import jax.numpy as jnp
        >>> from jaxrnn.diagnostics import memory_horizon
        >>> float(memory_horizon(jnp.log(jnp.array([1.0, 0.1, 0.001, 0.0001]))))
        2.0
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
    last_above = count - 1 - jnp.argmax(above[::-1])
    horizon = jnp.where(above[-1], jnp.inf, (last_above + 1).astype(log_v.dtype))
    return jnp.where(jnp.isfinite(log_v.max()), horizon, jnp.nan)


def check_fit_range(what: str, fit_range: Any, most: int) -> tuple[int, int]:
    """Return ``(first, last)`` as ints, at least two lags between 0 and ``most``."""
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
