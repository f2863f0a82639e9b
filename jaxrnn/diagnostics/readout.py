"""The step that a loss reads, the steps that lead there, and the loss's own
gradient.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..core.cell import Carry, Params, expand_flags, select
from ..core.validation import describe
from .transition import Trajectory


class LossReadout(NamedTuple):
    """The steps ``part (K, *B, ...)`` that lead to a loss, ragged sequences moved so
    that each ends with its own last step.

    ``exists (K + 1, *B)``: there is a state k steps before the one read; ``whole``: no
    step before ``part`` was left out.
    """

    part: Trajectory
    carry: Carry  # the state that the loss reads, and the input of its step
    x: Array
    read: Bool[Array, "*B"]  # whether the loss depends on this element at all
    exists: Bool[Array, "K *B"]
    whole: Bool[Array, ""]


def select_readout(
    what: str, path: Trajectory, at: int | None, lags: int | None
) -> LossReadout:
    """The last ``lags`` steps before the output of step ``at`` (None: all; each
    sequence's last valid step).
    """
    at, lags = _check_range(what, path, at, lags)
    if path.mask is None or at is not None:
        at = path.steps - 1 if at is None else at
        part = jax.tree.map(lambda a: a[at + 1 - lags : at + 1], path)
        carry, x = jax.tree.map(lambda a: a[at], (path.afters, path.xs))
        read = jnp.ones(path.batch, bool) if path.mask is None else path.mask[at]
        return LossReadout(
            part,
            carry,
            x,
            read,
            jnp.ones((lags + 1, *path.batch), bool),
            jnp.asarray(lags == at + 1),
        )
    steps = jnp.arange(path.steps, dtype=jnp.int32).reshape(-1, *[1] * len(path.batch))
    last = jnp.where(path.mask, steps, -1).max(0)
    rows = last[None] - jnp.arange(lags - 1, -1, -1, dtype=jnp.int32).reshape(
        -1, *[1] * len(path.batch)
    )
    there = rows >= 0

    def take(leaf, index):
        index = jnp.maximum(index, 0)
        return jnp.take_along_axis(
            leaf, index.reshape(index.shape + (1,) * (leaf.ndim - index.ndim)), axis=0
        )

    part = jax.tree.map(lambda leaf: take(leaf, rows), path)
    # Steps before a sequence's first hold the cotangent as it is.
    part = part._replace(
        mask=part.mask & there,
        resets=None if part.resets is None else part.resets & there,
    )
    carry, x = jax.tree.map(
        lambda leaf: take(leaf, last[None])[0], (path.afters, path.xs)
    )
    lag = jnp.arange(lags + 1, dtype=jnp.int32).reshape(-1, *[1] * len(path.batch))
    return LossReadout(
        part,
        carry,
        x,
        last >= 0,
        (lag <= last[None] + 1) & (last[None] >= 0),
        (last < lags).all(),
    )


def readout_loss(
    cell: Any, loss: Callable, end: LossReadout, params: Params, carry: Carry
) -> Array:
    """The loss of what the state shows; sequences that it does not read show zeros."""
    y = cell.output(params, carry, end.x)
    return loss(jnp.where(expand_flags(end.read, y), y, jnp.zeros_like(y)))


def loss_cotangent(
    cell: Any, params: Params, loss: Callable, end: LossReadout
) -> Carry:
    """The loss's gradient with respect to the state it reads."""
    seed = jax.grad(lambda carry: readout_loss(cell, loss, end, params, carry))(
        end.carry
    )
    return select(end.read, seed, jax.tree.map(jnp.zeros_like, seed))


def check_loss(
    what: str, cell: Any, params: Params, loss: Callable, carry: Carry, x: Array
) -> None:
    """The loss of one step's output is a function, and a real scalar."""
    if not callable(loss):
        raise TypeError(
            f"{what}: loss must be a function (y) -> scalar, but it is {describe(loss)}"
        )
    y = jax.eval_shape(cell.output, params, carry, x)
    result = jax.eval_shape(loss, y)
    if (
        not hasattr(result, "shape")
        or result.shape != ()
        or not jnp.issubdtype(result.dtype, jnp.floating)
    ):
        raise ValueError(
            f"{what}: loss must return a real scalar for outputs {y.shape}, but it "
            f"returns {describe(result)}: sum it over the "
            "batch"
        )


def _check_range(
    what: str, path: Trajectory, at: int | None, lags: int | None
) -> tuple[int | None, int]:
    """``at`` is a step, and ``lags`` at most the number of steps that lead there."""
    if path.steps == 0:
        raise ValueError(
            f"{what}: the sequence has no step (T = 0), so there is no output for a "
            f"loss to read"
        )
    for name, value in (("at", at), ("lags", lags)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, numbers.Integral)
        ):
            raise TypeError(
                f"{what}: {name} must be an int or None, but it is {value!r}"
            )
    if at is not None and not -path.steps <= at < path.steps:
        raise ValueError(
            f"{what}: at must be one of the {path.steps} steps, but it is {at}"
        )
    if at is not None:
        at = int(at) % path.steps
    most = path.steps if at is None else at + 1
    if lags is not None and not 0 <= lags <= most:
        raise ValueError(
            f"{what}: lags must lie between 0 and the {most} steps that lead to the "
            f"loss, but it is {lags}: there is no state "
            "before the carry that goes into the first step"
        )
    return at, most if lags is None else int(lags)
