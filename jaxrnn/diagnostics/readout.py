"""The step that a loss reads, the steps before it, and the cotangent of the loss."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..core.arrays import is_array
from ..core.cell import Cell
from ..core.flags import expand_flags, select
from ..core.layer import Layer
from ..core.types import Carry, Inputs, Params
from ..core.validation import describe
from .transition import Trajectory


class LossReadout(NamedTuple):
    """The steps that lead to a loss, and the state that the loss reads.

    Attributes:
        part: the steps, ``(K, *B, ...)``. Ragged sequences are shifted, so that each
            ends with its own last step.
        carry: the state that the loss reads.
        x: the input of its step.
        read: whether the loss depends on this batch element at all, ``(*B,)``.
        exists: whether there is a state k steps before the one read, ``(K + 1, *B)``.
        whole: whether ``part`` starts at the first step of every sequence.
    """

    part: Trajectory
    carry: Carry
    x: Inputs
    read: Bool[Array, "*B"]
    exists: Bool[Array, "K *B"]
    whole: Bool[Array, ""]


def select_readout(
    what: str, trajectory: Trajectory, at: int | None, lags: int | None
) -> LossReadout:
    """Select the last ``lags`` steps before the output of step ``at``.

    ``at=None`` selects the last valid step of each sequence, ``lags=None`` all steps up
    to there.
    """
    at, lags = _check_range(what, trajectory, at, lags)
    if trajectory.mask is None or at is not None:
        at = trajectory.steps - 1 if at is None else at
        part = jax.tree.map(lambda a: a[at + 1 - lags : at + 1], trajectory)
        carry, x = jax.tree.map(
            lambda a: a[at], (trajectory.carries_after, trajectory.xs)
        )
        read = (
            jnp.ones(trajectory.batch, bool)
            if trajectory.mask is None
            else trajectory.mask[at]
        )
        return LossReadout(
            part,
            carry,
            x,
            read,
            jnp.ones((lags + 1, *trajectory.batch), bool),
            jnp.asarray(lags == at + 1),
        )
    return _last_valid_readout(trajectory, trajectory.mask, lags)


def _last_valid_readout(trajectory: Trajectory, mask: Array, lags: int) -> LossReadout:
    """Select the last ``lags`` steps before the last valid one of each sequence."""
    steps = jnp.arange(trajectory.steps, dtype=jnp.int32).reshape(
        -1, *[1] * len(trajectory.batch)
    )
    last = jnp.where(mask, steps, -1).max(0)
    row_indices = last[None] - jnp.arange(lags - 1, -1, -1, dtype=jnp.int32).reshape(
        -1, *[1] * len(trajectory.batch)
    )
    in_sequence = row_indices >= 0

    def take(leaf, index):
        index = jnp.maximum(index, 0)
        return jnp.take_along_axis(
            leaf, index.reshape(index.shape + (1,) * (leaf.ndim - index.ndim)), axis=0
        )

    part = jax.tree.map(lambda leaf: take(leaf, row_indices), trajectory)
    # Rows before the first step of a sequence are masked, so that they pass the
    # cotangent on unchanged.
    part = dataclasses.replace(
        part,
        mask=part.mask & in_sequence,
        resets=None if part.resets is None else part.resets & in_sequence,
    )
    carry, x = jax.tree.map(
        lambda leaf: take(leaf, last[None])[0],
        (trajectory.carries_after, trajectory.xs),
    )
    lag = jnp.arange(lags + 1, dtype=jnp.int32).reshape(
        -1, *[1] * len(trajectory.batch)
    )
    return LossReadout(
        part,
        carry,
        x,
        last >= 0,
        (lag <= last[None] + 1) & (last[None] >= 0),
        (last < lags).all(),
    )


def readout_loss(
    cell: Cell | Layer,
    loss: Callable,
    readout: LossReadout,
    params: Params,
    carry: Carry,
) -> Array:
    """Return the loss of the output at ``carry``; elements not read output zero."""
    y = cell.output(params, carry, readout.x)
    return loss(jnp.where(expand_flags(readout.read, y), y, jnp.zeros_like(y)))


def loss_cotangent(
    cell: Cell | Layer, params: Params, loss: Callable, readout: LossReadout
) -> Carry:
    """Return the gradient of the loss with respect to the state it reads."""
    cotangent = jax.grad(
        lambda carry: readout_loss(cell, loss, readout, params, carry)
    )(readout.carry)
    return select(readout.read, cotangent, jax.tree.map(jnp.zeros_like, cotangent))


def check_loss(
    what: str,
    cell: Cell | Layer,
    params: Params,
    loss: Callable,
    carry: Carry,
    x: Inputs,
) -> None:
    """Check that the loss is callable and returns a real scalar for one output."""
    if not callable(loss):
        raise TypeError(
            f"{what}: loss must be a function (y) -> scalar, but it is {describe(loss)}"
        )
    y = jax.eval_shape(cell.output, params, carry, x)
    result = jax.eval_shape(loss, y)
    if (
        not is_array(result)
        or result.shape != ()
        or not jnp.issubdtype(result.dtype, jnp.floating)
    ):
        raise ValueError(
            f"{what}: loss must return a real scalar for outputs {y.shape}, but it "
            f"returns {describe(result)}: sum it over the "
            "batch"
        )


def _check_range(
    what: str, trajectory: Trajectory, at: int | None, lags: int | None
) -> tuple[int | None, int]:
    """Check that ``at`` is a step and ``lags`` at most the number of steps up to it."""
    if trajectory.steps == 0:
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
    if at is not None and not -trajectory.steps <= at < trajectory.steps:
        raise ValueError(
            f"{what}: at must be one of the {trajectory.steps} steps, but it is {at}"
        )
    if at is not None:
        at = int(at) % trajectory.steps
    most = trajectory.steps if at is None else at + 1
    if lags is not None and not 0 <= lags <= most:
        raise ValueError(
            f"{what}: lags must lie between 0 and the {most} steps that lead to the "
            f"loss, but it is {lags}: there is no state "
            "before the carry that goes into the first step"
        )
    return at, most if lags is None else int(lags)
