"""Cells that apply what a stochastic layer drew to the steps of another cell.

`jaxrnn.layers.stochastic` draws; the cells here are given what was drawn, with their
parameters or with their inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.cell import (
    AbstractWrappedCell,
    Cell,
    ContextCell,
    LinearCell,
    is_linear,
    part_named_h,
    without_context,
)
from ..core.types import Carry


def hidden_of(carry: Carry) -> Any:
    """Return what the recurrent weights multiply: ``carry.h``, or the carry itself."""
    h = part_named_h(carry)
    return carry if h is None else h


def drop(key: Array, rate: float, xs: Array, shape: tuple[int, ...]) -> Array:
    """Zero features of ``xs`` by a mask of ``shape``, and scale the rest.

    Divided by ``1 - rate``, the result has the mean of ``xs``.
    """
    return jnp.where(
        jax.random.bernoulli(key, 1 - rate, shape), xs / (1 - rate), jnp.zeros_like(xs)
    )


@dataclasses.dataclass(frozen=True)
class MaskedRecurrence(AbstractWrappedCell):
    """A cell whose h is scaled where it is multiplied by the recurrent kernel.

    Its parameters are ``(params of the cell, scale of h)``, so that the scale is the
    same at every step.
    """

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return self.cell.initial_carry(params[0], batch_shape, dtype)

    def project(self, params, x):
        return self.cell.project(params[0], x)

    def output(self, params, carry, x):
        return self.cell.output(params[0], carry, x)

    def step(self, params, carry, z):
        h = hidden_of(carry)
        step: Any = self.cell.step
        return step(params[0], carry, z, recurrent_h=h * params[1])


@dataclasses.dataclass(frozen=True)
class ZonedOut(AbstractWrappedCell):
    """A cell whose units keep their old values where a mask is True.

    Its inputs are ``(x of the cell, masks)`` with one mask for each floating-point part
    of the carry.
    """

    def project(self, params, x):
        return self.cell.project(params, x[0]), x[1]

    def output(self, params, carry, x):
        return self.cell.output(params, carry, x[0])

    def step(self, params, carry, z):
        new = self.cell.step(params, carry, z[0])
        return _mix(jnp.where, z[1], carry, new)


@dataclasses.dataclass(frozen=True)
class Noisy(AbstractWrappedCell):
    """A cell to whose h noise is added after each step.

    Its inputs are ``(x of the cell, noise)``.
    """

    def project(self, params, x):
        return self.cell.project(params, x[0]), x[1]

    def output(self, params, carry, x):
        return self.cell.output(params, carry, x[0])

    def step(self, params, carry, z):
        return _add_to_h(self.cell.step(params, carry, z[0]), z[1])


@dataclasses.dataclass(frozen=True)
class NoisyLinear(Noisy, LinearCell):
    """A linear cell with noise, which adds to its addend: it is linear still."""

    step = LinearCell.step

    def affine(self, params, z):
        linear: Any = without_context(self.cell)
        given: tuple[Any, ...] = (params, z[0])
        if isinstance(self.cell, ContextCell):
            given = (params[0], z[0], params[1])
        a, b = linear.affine(*given)
        return a, _add_to_h(b, z[1])


def has_affine(cell: Cell) -> bool:
    """Return whether a cell is linear and defines ``affine`` itself."""
    return isinstance(without_context(cell), LinearCell) and is_linear(cell)


def _add_to_h(tree: Carry, noise: Array) -> Carry:
    """Add noise to the part h, or to the single leaf, of a carry."""
    h = hidden_of(tree)
    noisy = jnp.asarray(h, noise.dtype) + noise
    if h is tree:
        return noisy
    whole: Any = tree
    if isinstance(tree, tuple):
        return whole._replace(h=noisy)
    return dataclasses.replace(whole, h=noisy)


@dataclasses.dataclass(frozen=True)
class Averaged(AbstractWrappedCell):
    """A cell with the expectation of `ZonedOut`."""

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
    """Apply ``mix(share, old, new)`` to floating-point parts; the others are new."""
    remaining = iter(shares)
    return jax.tree.map(
        lambda a, b: mix(next(remaining), a, b) if is_real(a) else b, old, new
    )


def is_real(leaf: Array) -> bool:
    """Return whether noise applies to a leaf: it is floating-point (or complex)."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
