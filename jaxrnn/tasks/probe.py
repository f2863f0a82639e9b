"""Probes: the part of a task's model that the diagnostics measure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import diagnostics
from ..core.cell import Cell
from ..core.layer import Layer
from ..core.records import is_namedtuple
from ..core.types import Params


class Probe(NamedTuple):
    """A recurrent layer, its inputs ``xs (T, B, D)``, and the loss of each output.

    ``loss(y (B, H), target (B, ...)) -> scalar`` is summed over the batch; ``targets``
    are ``(T, B, ...)``.
    """

    layer: Cell | Layer
    params: Params
    xs: Array
    loss: Callable[[Array, Any], Array]
    targets: Any


class Findings(NamedTuple):
    """The measurements of one model; see `jaxrnn.diagnostics` for each.

    Attributes:
        log_v: ``(K + 1,)``.
        fit: the fitted decay.
        horizon: the memory horizon.
        exponents: the Lyapunov exponents, largest first, ``(n,)``.
        truncation_error: entry k2 - 1 is for gradients over k2 steps, ``(K,)``.
    """

    log_v: Array
    fit: diagnostics.DecayFit
    horizon: Array
    exponents: Array
    truncation_error: Array


@functools.partial(jax.jit, static_argnums=(0, 3))
def measure(
    probe: Callable[[Any], Probe],
    params: Params,
    key: Array,
    fit_range: tuple[int, int],
) -> Findings:
    """Apply all diagnostics to ``probe(params)``, compiled once for each probe."""
    probed = probe(params)
    layer, own, xs, loss, targets = probed
    k_fit, k_basis = jax.random.split(key)
    lags = lags_of(probed)
    terms = diagnostics.parameter_lags(layer, own, xs, lambda y: loss(y, targets[-1]))
    # The averages over time are taken along one long sequence, a concatenation of a
    # few sequences of the batch.
    stream = jnp.moveaxis(xs[:, :8], 1, 0).reshape(-1, xs.shape[-1])
    spectrum = diagnostics.lyapunov_spectrum(layer, own, stream, key=k_basis)
    return Findings(
        lags.log_v,
        diagnostics.fit_decay(lags, fit_range, key=k_fit),
        diagnostics.memory_horizon(lags.log_v),
        jnp.sort(spectrum.exponents, descending=True),
        terms.truncation_error,
    )


@functools.partial(jax.jit, static_argnums=0)
def measure_each_loss(probe: Callable[[Any], Probe], params: Params) -> Array:
    """Return the `diagnostics.gradient_map` of the first sequence, ``(T, T + 1)``."""
    layer, own, xs, loss, targets = probe(params)
    return diagnostics.gradient_map(layer, own, xs[:, :1], loss, targets[:, :1])[..., 0]


def lags_of(probe: Probe) -> diagnostics.GradientLags:
    """Return the gradient norms by lag for the loss of the last step."""
    layer, own, xs, loss, targets = probe
    return diagnostics.gradient_lags(layer, own, xs, lambda y: loss(y, targets[-1]))


def as_json(value: object) -> Any:
    """Convert arrays to lists of numbers; NaN and infinity become null."""
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    if is_namedtuple(value):
        return as_json(value._asdict())  # type: ignore[attr-defined]
    numbers = np.asarray(value, np.float64)
    if numbers.ndim:
        return [as_json(each) for each in numbers]
    return float(numbers) if np.isfinite(numbers) else None
