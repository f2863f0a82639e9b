"""Adaptive truncation: the smallest truncation length with a bounded gradient bias."""

from __future__ import annotations

import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..core.arrays import is_array
from ..core.dtypes import accumulator
from ..core.validation import describe
from .decay import check_fit_range


class AdaptiveTruncation(NamedTuple):
    """A truncation length and the error bounds that it is derived from.

    Entry K - 1 of an array belongs to a gradient of K lags, for K = 1..n. A bound is
    inf where none exists: for beta >= 1, for a NaN or +inf anywhere in the arguments,
    or, for the relative error, where no K bounds the gradient away from zero.

    Attributes:
        k2: the number of lags to keep. ``int(k2)`` is the ``k2`` of a `TBPTT` with
            ``k1 = 1``.
        certified: True where the bound at ``k2`` is below the requested error. Where it
            is False, ``k2`` is n.
        log_beta: the fitted log decay per lag, in nats. NaN where a phi in the fit
            range is zero or not finite.
        log_absolute_error: log of the bound of ``||g - g_K||``, ``(n,)``.
        log_relative_error: log of the bound of ``||g - g_K|| / ||g||``, ``(n,)``.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.diagnostics import adaptive_truncation
        >>> k = jnp.arange(8.0)  # every lag has half the norm of the one before
        >>> log_phi, log_g = k * jnp.log(0.5), jnp.log(2 - 0.5**k)
        >>> found = adaptive_truncation(log_phi, log_g, relative_error=0.1,
        ...                             fit_range=(2, 6))
        >>> bool(found.certified), f"{jnp.exp(found.log_beta):.2f}"
        (True, '0.50')
        >>> errors = jnp.exp(found.log_relative_error)  # of 1, 2, ... lags
        >>> bool(errors[found.k2 - 2] >= 0.1 > errors[found.k2 - 1])
        True
    """

    k2: Int[Array, ""]
    certified: Bool[Array, ""]
    log_beta: Float[Array, ""]
    log_absolute_error: Float[Array, " n"]
    log_relative_error: Float[Array, " n"]


def adaptive_truncation(
    log_phi: Float[Array | np.ndarray, " n"],
    log_gradient_norms: Float[Array | np.ndarray, " n"],
    *,
    relative_error: float,
    fit_range: tuple[int, int],
) -> AdaptiveTruncation:
    """Choose the smallest K whose gradient of K lags is within ``relative_error``.

    The bound is of the distance to the gradient of all lags, and it holds if the lags
    decay as fitted. Let ``G(t, k)`` be the part of the gradient of loss l_t that passes
    through the parameters as they were used k steps earlier, let ``phi_k = E_t ||G(t,
    k)||``, and let ``g_K = E_t [G(t, 0) + ... + G(t, K-1)]`` be the gradient of TBPTT
    with K lags. With ``fit_range = (tau, W)`` (Aicher, Foti & Fox 2019,
    arXiv:1905.07473, theorem 1 and its proof in the supplement, B.1)::

        log beta = least-squares slope of log phi_k over tau <= k <= W

        absolute(K) = sum of phi_j over K <= j < tau
                      + phi_tau beta^max(K - tau, 0) / (1 - beta)
                    >= ||g - g_K||

        relative(K) = absolute(K) / max over K' of (||g_K'|| - absolute(K'))_+
                    >= ||g - g_K|| / ||g||

    These are bounds as long as phi_k <= phi_tau beta^(k - tau) for all k > tau,
    including the lags beyond n, which were not measured. The computation is done in
    logarithms, so that phi_k may be far below the smallest float. The function can be
    called inside ``jit``.

    Units: phi and the gradient norms have the same unit, that of the gradient;
    `parameter_lags` returns both (``log_norm`` and ``log_sum``). To use state norms
    ``||dl_t/ds_{t-k}||``, as the paper does, take phi to be their mean times a bound M
    of ``||ds_t/dtheta||``, that is, add log M to their logarithm. (The authors' code
    compares state norms with the norm of summed state gradients, so that M cancels.
    Then neither is the gradient's, and the ratio does not bound its bias.)

    A loss at step j of a window of TBPTT(k1, k2) sees at least k2 - k1 + 1 lags: for k1
    > 1 use ``k2 = K + k1 - 1``.

    Args:
        log_phi: log phi_k for lags k = 0..n-1, ``(n,)``. -inf stands for zero.
        log_gradient_norms: log ||g_K|| for K = 1..n, ``(n,)``.
        relative_error: the bound to reach, in (0, 1).
        fit_range: the first and the last lag of the fit, both inclusive. The slope is
            fitted to these lags alone.

    Returns:
        An `AdaptiveTruncation`.

    Raises:
        TypeError: if an array is not real and one-dimensional.
        ValueError: if the arrays have different lengths, ``relative_error`` is outside
            (0, 1), or ``fit_range`` has fewer than two lags or reaches beyond n - 1.

    Example::

        >>> import jax.numpy as jnp
        >>> from jaxrnn.diagnostics import adaptive_truncation
        >>> k = jnp.arange(8.0)  # every lag has half the norm of the one before
        >>> log_phi, log_g = k * jnp.log(0.5), jnp.log(2 - 0.5**k)
        >>> int(adaptive_truncation(log_phi, log_g, relative_error=0.1,
        ...                         fit_range=(2, 6)).k2)
        4
    """
    log_phi, log_gradient_norms = _check_arrays(log_phi, log_gradient_norms)
    if (
        isinstance(relative_error, bool)
        or not isinstance(relative_error, numbers.Real)
        or not 0 < relative_error < 1
    ):
        raise ValueError(
            f"adaptive_truncation: relative_error must be a number in (0, 1), but it "
            f"is {relative_error!r}"
        )
    return _adapt(
        log_phi,
        log_gradient_norms,
        float(relative_error),
        *check_fit_range("adaptive_truncation", fit_range, log_phi.shape[0] - 1),
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _adapt(
    log_phi: Array, log_g: Array, error: float, tau: int, fit_end: int
) -> AdaptiveTruncation:
    # -inf is a valid logarithm (of zero); NaN and +inf make every bound meaningless.
    """Compute the bounds of all K in logarithms; select the first K below ``error``."""
    all_finite = ~(
        jnp.isnan(log_phi)
        | jnp.isposinf(log_phi)
        | jnp.isnan(log_g)
        | jnp.isposinf(log_g)
    ).any()
    log_beta = _slope(log_phi[tau : fit_end + 1])
    absolute = jnp.where(all_finite, _log_tails(log_phi, log_beta, tau), jnp.inf)
    # ||g|| >= ||g_K|| - ||g - g_K|| >= ||g_K|| - absolute(K) for every K, so the
    # largest right-hand side is the best lower bound of ||g||. In logarithms,
    # log(e^a - e^b) = a + log(1 - e^(b - a)), where a > b.
    positive = log_g > absolute
    log_lower_bound = jnp.where(
        positive,
        log_g + _log_one_minus_exp(jnp.where(positive, absolute - log_g, -1)),
        -jnp.inf,
    ).max()
    relative = jnp.where(
        jnp.isfinite(log_lower_bound), absolute - log_lower_bound, jnp.inf
    )
    reached = relative < jnp.log(jnp.asarray(error, relative.dtype))
    k2 = jnp.where(reached.any(), jnp.argmax(reached) + 1, log_phi.shape[0]).astype(
        jnp.int32
    )
    return AdaptiveTruncation(k2, reached.any(), log_beta, absolute, relative)


def _slope(values: Array) -> Array:
    """Fit the least-squares slope of ``values`` over consecutive lags.

    NaN where a value is not finite.
    """
    lags = jnp.arange(values.shape[0], dtype=values.dtype)
    lags = lags - lags.mean()
    slope = (lags * (values - values[0])).sum() / jnp.square(lags).sum()
    return jnp.where(jnp.isfinite(values).all(), slope, jnp.nan)


def _log_tails(log_phi: Array, log_beta: Array, tau: int) -> Array:
    """Compute log absolute(K) for K = 1..n; inf where beta >= 1 or beta is NaN."""
    lags_kept = jnp.arange(1, log_phi.shape[0] + 1, dtype=log_phi.dtype)
    decays = log_beta < 0  # False for NaN
    rate = jnp.where(decays, log_beta, -1)
    tail = (
        log_phi[tau] + rate * jnp.maximum(lags_kept - tau, 0) - _log_one_minus_exp(rate)
    )
    # The sum of the measured lags K..tau-1, accumulated from the last lag to the
    # first: entry K - 1 belongs to K. From K = tau on this sum is empty.
    measured = jax.lax.cumlogsumexp(log_phi[1:tau], reverse=True)
    measured = jnp.full_like(log_phi, -jnp.inf).at[: measured.shape[0]].set(measured)
    return jnp.where(decays, jnp.logaddexp(measured, tail), jnp.inf)


def _log_one_minus_exp(x: Array) -> Array:
    """Compute log(1 - e^x) for x < 0."""
    return jnp.log(-jnp.expm1(x))


def _check_arrays(log_phi: Any, log_gradient_norms: Any) -> tuple[Array, Array]:
    """Check both arrays and convert them to the wider of their accumulation dtypes."""
    for name, values in (
        ("log_phi", log_phi),
        ("log_gradient_norms", log_gradient_norms),
    ):
        if (
            not is_array(values)
            or not jnp.issubdtype(values.dtype, jnp.floating)
            or values.ndim != 1
        ):
            raise TypeError(
                f"adaptive_truncation: {name} must be a real array (n,) of logarithms, "
                f"but it is {describe(values)}"
            )
    if log_phi.shape != log_gradient_norms.shape:
        raise ValueError(
            f"adaptive_truncation: log_phi has {log_phi.shape[0]} lags, "
            f"log_gradient_norms {log_gradient_norms.shape[0]}: give "
            "phi_k for k = 0..n-1, and the norms of the gradients with K = 1..n lags"
        )
    log_phi, log_gradient_norms = jnp.asarray(log_phi), jnp.asarray(log_gradient_norms)
    dtype = accumulator(
        max(log_phi.dtype, log_gradient_norms.dtype, key=lambda d: jnp.finfo(d).bits)
    )
    return log_phi.astype(dtype), log_gradient_norms.astype(dtype)
