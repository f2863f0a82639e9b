"""Adaptive truncation: the fewest lags under which the gradient's relative bias
stays below a bound.
"""

from __future__ import annotations

import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..core.cell import accumulator
from ..core.validation import describe
from .decay import check_fit_range


class AdaptiveTruncation(NamedTuple):
    """A truncation length and the bounds it comes from; entry K - 1 of an array is for
    a gradient of K lags, K = 1..n.

    ``log_beta`` is the fitted decay per lag (nats); NaN where a phi in the fit range is
    zero or not finite. Bounds are inf where there is none: for beta >= 1, for a NaN or
    +inf anywhere in what was given, or, of the relative error, where no K bounds the
    gradient away from zero.
    """

    k2: Int[
        Array, ""
    ]  # the lags to keep; ``int(...)`` makes the k2 of a TBPTT with k1 = 1
    certified: Bool[
        Array, ""
    ]  # whether the bound at k2 lies below the error asked for; if not, k2 = n
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
    """The least K for which the gradient of K lags is within ``relative_error`` of the
    whole one, if lags decay as fitted.

    Let ``G(t, k)`` be the part of loss l_t's gradient by way of the parameters as they
    were used k steps earlier, ``phi_k = E_t ||G(t, k)||`` and ``g_K = E_t [G(t, 0) +
    ... + G(t, K-1)]``, TBPTT's gradient with K lags. With ``fit_range = (tau, W)``
    (Aicher, Foti & Fox 2019, arXiv:1905.07473, theorem 1 and its proof in the
    supplement, B.1)::

        log beta = least-squares slope of log phi_k over tau <= k <= W
        absolute(K) = sum of phi_j over K <= j < tau  +  phi_tau beta^max(K - tau, 0) / (1 - beta)   >= ||g - g_K||
        relative(K) = absolute(K) / max over K' of (||g_K'|| - absolute(K'))_+                       >= ||g - g_K|| / ||g||

    These are bounds as far as phi_k <= phi_tau beta^(k - tau) for all k > tau, those
    beyond n included, which nobody measured. All is computed in logarithms, so phi_k
    may be far below the smallest float. Runs under ``jit``.

    Units: phi and the gradient norms have the same, those of the gradient;
    `parameter_lags` gives both (``log_norm`` and ``log_sum``). From state norms
    ``||dl_t/ds_{t-k}||``, as in the paper, phi is their mean times a bound M of
    ``||ds_t/dtheta||``: add log M to their logarithm. (The authors' code compares state
    norms with the norm of summed state gradients, so that M drops out; then neither is
    the gradient's, and the ratio no bound of its bias.)

    A loss at step j of a window of TBPTT(k1, k2) sees at least k2 - k1 + 1 lags: for k1
    > 1 take ``k2 = K + k1 - 1``.

    Args:
        log_phi: log phi_k for lags k = 0..n-1; -inf is zero.
        log_gradient_norms: log ||g_K|| for K = 1..n.
        relative_error: the bound asked for, in (0, 1).
        fit_range: the first and the last lag of the fit, both taken; others do not
            touch it.

    Raises:
        TypeError, ValueError: for arrays that are not real and of one length, an error
            outside (0, 1), or a range of fewer than two lags or beyond n - 1.
    """  # noqa: E501
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
    log_phi: Array, log_g: Array, error: float, tau: int, last: int
) -> AdaptiveTruncation:
    known = ~(
        jnp.isnan(log_phi)
        | jnp.isposinf(log_phi)
        | jnp.isnan(log_g)
        | jnp.isposinf(log_g)
    ).any()
    log_beta = _slope(log_phi[tau : last + 1])
    absolute = jnp.where(known, _log_tails(log_phi, log_beta, tau), jnp.inf)
    below = log_g > absolute
    lower = jnp.where(
        below,
        log_g + _log_one_minus_exp(jnp.where(below, absolute - log_g, -1)),
        -jnp.inf,
    ).max()
    relative = jnp.where(jnp.isfinite(lower), absolute - lower, jnp.inf)
    reached = relative < jnp.log(jnp.asarray(error, relative.dtype))
    k2 = jnp.where(reached.any(), jnp.argmax(reached) + 1, log_phi.shape[0]).astype(
        jnp.int32
    )
    return AdaptiveTruncation(k2, reached.any(), log_beta, absolute, relative)


def _slope(values: Array) -> Array:
    """The least-squares slope of ``values`` over consecutive lags; NaN where one is
    not finite.
    """
    lags = jnp.arange(values.shape[0], dtype=values.dtype)
    lags = lags - lags.mean()
    slope = (lags * (values - values[0])).sum() / jnp.square(lags).sum()
    return jnp.where(jnp.isfinite(values).all(), slope, jnp.nan)


def _log_tails(log_phi: Array, log_beta: Array, tau: int) -> Array:
    """log absolute(K) for K = 1..n; inf where beta is not below 1 or not known."""
    kept = jnp.arange(1, log_phi.shape[0] + 1, dtype=log_phi.dtype)
    decays = log_beta < 0  # False for NaN
    rate = jnp.where(decays, log_beta, -1)
    tail = log_phi[tau] + rate * jnp.maximum(kept - tau, 0) - _log_one_minus_exp(rate)
    # Lags K..tau-1 that are dropped and measured, summed from the last: entry K - 1 is
    # for K, and none are left from tau on.
    measured = jax.lax.cumlogsumexp(log_phi[1:tau], reverse=True)
    measured = jnp.full_like(log_phi, -jnp.inf).at[: measured.shape[0]].set(measured)
    return jnp.where(decays, jnp.logaddexp(measured, tail), jnp.inf)


def _log_one_minus_exp(x: Array) -> Array:
    """log(1 - e^x) for x < 0."""
    return jnp.log(-jnp.expm1(x))


def _check_arrays(log_phi: Any, log_gradient_norms: Any) -> tuple[Array, Array]:
    for name, values in (
        ("log_phi", log_phi),
        ("log_gradient_norms", log_gradient_norms),
    ):
        if (
            not hasattr(values, "dtype")
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
