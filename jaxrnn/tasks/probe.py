"""What the instruments look at in a task's model: its recurrent layer, inputs of
that layer, and the loss of each output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import diagnostics
from ..core.cell import Cell, Layer, Params


class Probe(NamedTuple):
    """``loss(y (B, H), target (B, ...)) -> scalar``, summed over the batch, of the
    output at each step of ``xs (T, B, D)``.
    """

    layer: Cell | Layer
    params: Params
    xs: Array
    loss: Callable[[Array, Any], Array]
    targets: Any  # (T, B, ...)


class Findings(NamedTuple):
    """The numbers of one model: see `jaxrnn.diagnostics` for each."""

    log_v: Array  # (K + 1,)
    fit: diagnostics.DecayFit
    horizon: Array
    exponents: Array  # (n,), largest first
    truncation_error: Array  # (K,): entry k2 - 1 for gradients over k2 steps


@functools.partial(jax.jit, static_argnums=(0, 3))
def measure(
    probe: Callable[[Any], Probe], params: Any, key: Array, fit_range: tuple[int, int]
) -> Findings:
    """All instruments on ``probe(params)``, compiled once for each probe."""
    seen = probe(params)
    layer, own, xs, loss, targets = seen
    k_fit, k_basis = jax.random.split(key)
    lags = lags_of(seen)
    terms = diagnostics.parameter_lags(layer, own, xs, lambda y: loss(y, targets[-1]))
    # One long sequence for the averages over time: a few of the batch, one after the
    # other.
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
def measure_each_loss(probe: Callable[[Any], Probe], params: Any) -> Array:
    """`diagnostics.gradient_map` of the first sequence, the losses of all steps:
    ``(T, T + 1)``.
    """
    layer, own, xs, loss, targets = probe(params)
    return diagnostics.gradient_map(layer, own, xs[:, :1], loss, targets[:, :1])[..., 0]


def lags_of(probe: Probe) -> diagnostics.GradientLags:
    """Where the gradient of the last step's loss goes."""
    layer, own, xs, loss, targets = probe
    return diagnostics.gradient_lags(layer, own, xs, lambda y: loss(y, targets[-1]))


def as_json(value: Any) -> Any:
    """Arrays as lists of numbers; JSON knows no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    numbers = np.asarray(value, np.float64)
    if numbers.ndim:
        return [as_json(each) for each in numbers]
    return float(numbers) if np.isfinite(numbers) else None
