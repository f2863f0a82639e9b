"""Randomness for training: dropout between layers, recurrent dropout, zoneout; and
`inference`, the same without it.

Every layer here demands a key in `unroll`. `inference(layer)` gives the layer of equal
parameters that draws nothing, so nobody trains without dropout, or evaluates with it,
by forgetting a flag.
"""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.cell import (
    AbstractWrappedCell,
    Carry,
    Cell,
    Layer,
    Params,
    UnrollSpec,
    check_cell,
)
from ..core.validation import describe_tree
from ..unrolling import unroll_unchecked
from .compose import init_in


def dropout(rate: float, *, variational: bool = False) -> Dropout:
    """Zero each feature with probability ``rate`` and divide the others by ``1 -
    rate``; it stands in a `stack`.

    Args:
        rate: in [0, 1).
        variational: draw one mask an unroll and use it at every step (Gal &
            Ghahramani 2016), not one a step. Under `TBPTT` an unroll is a window; in
            streaming calls it is a step.
    """
    return Dropout(_check_rate("dropout", rate), variational)


def recurrent_dropout(cell: Cell, rate: float) -> RecurrentDropout:
    """Variational recurrent dropout (Gal & Ghahramani 2016, arXiv:1512.05287): one mask
    an unroll on h where it meets U.

    ``h_{t-1} U`` becomes ``(h_{t-1} * m / (1 - rate)) U`` with the same m at every
    step; what the carry holds is untouched, also in a GRU. Parameters and carry are
    those of ``cell``, whose ``step`` must take ``recurrent_h`` (the built-in cells do).
    """
    check_cell(cell)
    if (
        not isinstance(cell, Cell)
        or "recurrent_h" not in inspect.signature(cell.step).parameters
    ):
        raise TypeError(
            f"recurrent_dropout: {type(cell).__name__} is not a cell whose step takes "
            f"recurrent_h, so there is no telling "
            "where its state meets the recurrent weights. Wrap a cell (inside a "
            "stack), or write "
            "step(self, params, carry, z, *, recurrent_h=None) and use recurrent_h in "
            "place of h before the recurrent kernel"
        )
    return RecurrentDropout(cell, _check_rate("recurrent_dropout", rate))


def zoneout(cell: Cell, rate: float | tuple[float, ...]) -> Zoneout:
    """Zoneout (Krueger et al. 2017, arXiv:1606.01305): each unit of the carry keeps its
    old value with probability ``rate``::

        s_t = m_t * s_{t-1} + (1 - m_t) * step(s_{t-1}, x_t),   m_t ~ Bernoulli(rate)

    In `inference` the expectation takes the draw's place: ``rate * s_{t-1} + (1 - rate)
    * step(...)``. Integers, flags and keys in the carry, of which there is no
    expectation, go on as the step says in either.

    Args:
        rate: in [0, 1); one for every floating-point leaf of the carry, or a tuple in
            the order of these, (h, c) for an LSTM.
    """
    check_cell(cell)
    if not isinstance(cell, Cell):
        raise TypeError(
            f"zoneout wraps a cell, but got the layer {type(cell).__name__}: wrap the "
            f"cells inside it"
        )
    rates = rate if isinstance(rate, tuple) else (rate,)
    if not rates:
        raise ValueError(
            "zoneout: the rate is an empty tuple; give one rate, or one for each part "
            "of the carry"
        )
    for each in rates:
        _check_rate("zoneout", each)
    if getattr(cell, "shares_scale", False) and (len(rates) == 1 or any(rates[1:])):
        raise ValueError(
            f"zoneout: c, n and m of {type(cell).__name__} are one number at a common "
            f"scale, and an old one beside new ones "
            "means nothing: give h alone a rate, (0.1, 0.0, 0.0, 0.0)"
        )
    return Zoneout(cell, rates)


def inference(layer: Cell | Layer) -> Cell | Layer:
    """The same cell or layer, with the same parameters, without randomness: it takes no
    key.

    Dropout becomes the identity, zoneout its expectation.
    """
    check_cell(layer)

    def convert(value):
        if isinstance(value, tuple):
            return tuple(convert(v) for v in value)
        return inference(value) if isinstance(value, (Cell, Layer)) else value

    if isinstance(layer, Cell):
        return layer
    changed: Any = layer
    changes = {
        field.name: convert(getattr(layer, field.name))
        for field in dataclasses.fields(changed)
    }
    if isinstance(layer, StochasticLayer):
        changes["drawing"] = False
    return dataclasses.replace(changed, **changes)


def _check_rate(what: str, rate: Any) -> float:
    if (
        isinstance(rate, bool)
        or not isinstance(rate, numbers.Real)
        or not 0 <= float(rate) < 1
    ):
        raise ValueError(
            f"{what}: the rate must be a number in [0, 1), the share that is dropped, "
            f"but it is {rate!r}"
        )
    return float(rate)


class StochasticLayer(Layer):
    """A layer that draws while its field ``drawing`` is True."""

    drawing: bool
    reads_inputs: ClassVar[bool] = (
        False  # dropout multiplies them, and where masked the products become zero
    )

    @property
    def requires_key(self) -> bool:
        return self.drawing


@dataclasses.dataclass(frozen=True)
class Dropout(StochasticLayer):
    """Made by `dropout`. No parameters, no carry."""

    rate: float
    variational: bool = False
    drawing: bool = True

    def init(self, key: Array, input_size: int, dtype: Any = None) -> Params:
        return {}

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> tuple[()]:
        return ()

    def unroll(
        self,
        params: Params,
        carry: tuple[()],
        xs: Float[Array, "T *B D"],
        spec: UnrollSpec,
    ):
        if not self.drawing:
            return (), xs, ()
        shape = xs.shape[1:] if self.variational else xs.shape
        return (), _drop(spec.key, self.rate, xs, shape), ()

    def output(self, params: Params, carry: tuple[()], x: Any) -> Array:
        if self.drawing:
            raise ValueError(
                "dropout draws random numbers: what it shows is not a function of its "
                "carry; use jaxrnn.inference"
            )
        return x


@dataclasses.dataclass(frozen=True)
class StochasticCellLayer(StochasticLayer):
    """Noise inside a cell's recurrence: the parameters and the carry are the cell's."""

    cell: Cell

    def init(self, key: Array, input_size: int, dtype: Any = None) -> Params:
        return init_in(self.cell, key, input_size, dtype)

    def check(self, params: Params) -> None:
        self.cell.check(params)

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Carry:
        return self.cell.initial_carry(params, batch_shape, dtype)

    def output(self, params: Params, carry: Carry, x: Any) -> Any:
        return self.cell.output(params, carry, x)


@dataclasses.dataclass(frozen=True)
class RecurrentDropout(StochasticCellLayer):
    """Made by `recurrent_dropout`."""

    rate: float
    drawing: bool = True

    def unroll(
        self, params: Params, carry: Carry, xs: Float[Array, "T *B D"], spec: UnrollSpec
    ):
        if not self.drawing:
            return unroll_unchecked(self.cell, params, carry, xs, spec)
        h = _hidden(carry)
        if not hasattr(h, "dtype") or not _is_real(h):
            raise TypeError(
                f"recurrent_dropout: the carry of {type(self.cell).__name__} is "
                f"{describe_tree(carry)}, and what meets the recurrent "
                "weights is its part named h, or all of it: make it a NamedTuple with "
                "a floating-point part h"
            )
        scale = _drop(spec.key, self.rate, jnp.ones_like(h), h.shape)
        return unroll_unchecked(
            _MaskedRecurrence(self.cell),
            (params, scale),
            carry,
            xs,
            spec.replace(key=None),
        )


@dataclasses.dataclass(frozen=True)
class Zoneout(StochasticCellLayer):
    """Made by `zoneout`."""

    rates: tuple[float, ...]
    drawing: bool = True

    def unroll(
        self, params: Params, carry: Carry, xs: Float[Array, "T *B D"], spec: UnrollSpec
    ):
        leaves = [leaf for leaf in jax.tree.leaves(carry) if _is_real(leaf)]
        if len(self.rates) not in (1, len(leaves)):
            raise ValueError(
                f"zoneout: {len(self.rates)} rates were given, but the carry of "
                f"{type(self.cell).__name__} has "
                f"{len(leaves)} parts of floating-point numbers: give one rate, or one "
                f"for each"
            )
        rates = self.rates * len(leaves) if len(self.rates) == 1 else self.rates
        if not self.drawing:
            return unroll_unchecked(
                _Averaged(self.cell, rates), params, carry, xs, spec
            )
        keys = jax.random.split(spec.key, len(leaves))
        requires_key = [
            jax.random.bernoulli(k, r, (xs.shape[0], *a.shape))
            for k, r, a in zip(keys, rates, leaves, strict=True)
        ]
        return unroll_unchecked(
            _ZonedOut(self.cell),
            params,
            carry,
            (xs, tuple(requires_key)),
            spec.replace(key=None),
        )


def _hidden(carry: Carry) -> Any:
    """What meets the recurrent weights: ``carry.h``, or the carry itself."""
    return carry.h if hasattr(carry, "h") else carry


def _drop(key: Array, rate: float, xs: Array, shape: tuple[int, ...]) -> Array:
    """``xs`` with features zeroed by a mask of ``shape``, and the others scaled to
    keep the mean.
    """
    return jnp.where(
        jax.random.bernoulli(key, 1 - rate, shape), xs / (1 - rate), jnp.zeros_like(xs)
    )


@dataclasses.dataclass(frozen=True)
class _MaskedRecurrence(AbstractWrappedCell):
    """Parameters are (the cell's, the scale of h); the same scale at every step."""

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return self.cell.initial_carry(params[0], batch_shape, dtype)

    def project(self, params, x):
        return self.cell.project(params[0], x)

    def output(self, params, carry, x):
        return self.cell.output(params[0], carry, x)

    def step(self, params, carry, z):
        h = _hidden(carry)
        step: Any = self.cell.step
        return step(params[0], carry, z, recurrent_h=h * params[1])


@dataclasses.dataclass(frozen=True)
class _ZonedOut(AbstractWrappedCell):
    """Inputs are (the cell's, for each floating-point part of the carry a bool per
    unit: keep its old value).
    """

    def project(self, params, x):
        return self.cell.project(params, x[0]), x[1]

    def output(self, params, carry, x):
        return self.cell.output(params, carry, x[0])

    def step(self, params, carry, z):
        new = self.cell.step(params, carry, z[0])
        return _mix(jnp.where, z[1], carry, new)


@dataclasses.dataclass(frozen=True)
class _Averaged(AbstractWrappedCell):
    """The expectation of `_ZonedOut`."""

    rates: tuple[float, ...]

    def step(self, params, carry, z):
        new = self.cell.step(params, carry, z)
        return _mix(lambda r, old, s: r * old + (1 - r) * s, self.rates, carry, new)


def _mix(
    mix: Callable[[Any, Array, Array], Array],
    shares: tuple[Any, ...],
    old: Carry,
    new: Carry,
) -> Carry:
    """``mix(share, old, new)`` of each floating-point part; all others are new."""
    rest = iter(shares)
    return jax.tree.map(
        lambda a, b: mix(next(rest), a, b) if _is_real(a) else b, old, new
    )


def _is_real(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
