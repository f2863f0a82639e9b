"""Checks of a cell's methods, made when an unroll is traced."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arrays import is_array
from ..core.cell import Cell, without_context
from ..core.engine import AbstractEngine
from ..core.layer import Layer
from ..core.types import Carry, Inputs, Params, PyTree
from ..core.unroll_spec import UnrollSpec
from ..core.validation import (
    check_carry,
    check_rows,
    name_failing_method,
)


def check_step(cell: Cell, params: Params, carry: Carry, xs: Inputs) -> None:
    """Check that a cell's ``step`` returns a carry like the one it is given.

    The step is traced, and nothing is computed.

    Raises:
        TypeError, ValueError: if it does not.
    """
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    hint = _hint(cell, carry, xs)

    def once(p, s, x):
        with name_failing_method(without_context(cell), "project", hint, x=x):
            z = cell.project(p, x)
        with name_failing_method(without_context(cell), "step", hint, carry=s, z=z):
            return cell.step(p, s, z)

    new = jax.eval_shape(once, params, carry, x)
    name = type(without_context(cell)).__name__
    like, made = _kind_of(carry), _kind_of(new)
    if (
        isinstance(new, tuple)
        and len(new) == 2
        and like != made
        and like == _kind_of(new[0])
    ):
        raise TypeError(
            f"{name}.step returns a pair, (carry, y) it seems, but a step returns the "
            f"carry alone: return the carry, and say "
            "in output(self, params, carry, x) what the cell shows"
        )
    if like == made:
        for (path, got), want in zip(
            jax.tree_util.tree_leaves_with_path(new),
            jax.tree.leaves(carry),
            strict=True,
        ):
            batch = tuple(got.shape)[: len(got.shape) - len(want.shape)]
            if (
                batch
                and tuple(got.shape) == (*batch, *want.shape)
                and _batch_of(cell, xs)[: len(batch)] == batch
            ):
                raise ValueError(
                    f"{name}.initial_carry: {_part(path)} has shape "
                    f"{tuple(want.shape)}, without the batch axes {batch}, and "
                    f"step makes {tuple(got.shape)} of it: begin its shape with "
                    f"batch_shape, "
                    f"(*batch_shape, {', '.join(map(str, want.shape))})"
                )
    check_carry(name, new, carry, "the carry that step returns")


def _hint(cell: Cell, carry: Carry, xs: Inputs) -> str:
    """Say what may be wrong where a step fails.

    Likely causes are a carry without batch axes, pictures whose axes are taken for
    batch axes, and parameters of another input size.
    """
    batch = _batch_of(cell, xs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if batch and tuple(leaf.shape[: len(batch)]) != batch:
            return (
                f"{type(without_context(cell)).__name__}.initial_carry made "
                f"{_part(path)} without the batch axes {batch}"
            )
    if len(batch) > 1:
        return (
            f"With feature_ndim = {cell.feature_ndim} {batch} are batch axes: for "
            f"pictures (T, *B, Y, X, C) set feature_ndim = 3 in the cell"
        )
    if cell.feature_ndim != 1:
        return ""
    features = {leaf.shape[-1] for leaf in jax.tree.leaves(xs) if leaf.shape}
    return (
        f"Parameters for these inputs come of init(key, input_size={features.pop()})"
        if len(features) == 1
        else ""
    )


def _kind_of(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


def _batch_of(cell: Cell, xs: Inputs) -> tuple[int, ...]:
    """Return the batch axes of inputs that are one array; () for other inputs."""
    ndim = cell.feature_ndim
    if not is_array(xs) or not isinstance(ndim, int):
        return ()
    return tuple(xs.shape[1 : xs.ndim - ndim])


def _part(path: Any) -> str:
    return f"part {jax.tree_util.keystr(path)} of the carry" if path else "the carry"


def check_row_axes(cell: Cell, params: Params, carry: Carry, spec: UnrollSpec) -> None:
    """Check that a mask, resets and scales can be applied to each row of the carry."""
    flags = {
        "mask=": spec.mask,
        "resets=": spec.resets,
        "gradient_scale=": spec.gradient_scale,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    batch = next((tuple(value.shape[1:]) for value in given.values()), ())
    if batch:
        # The carry of a larger batch tells batch axes from others of the same size.
        wider = _with_more_rows(cell, params, carry, batch)
        why = " and ".join(given)
        check_rows(
            type(without_context(cell)).__name__,
            carry,
            wider,
            batch,
            why,
            floats="mask=" not in given and "resets=" not in given,
        )


def _with_more_rows(
    cell: Cell, params: Params, carry: Carry, batch: tuple[int, ...]
) -> Carry:
    """Return the shapes of the carry of a batch that is larger by one in every axis.

    A cell whose parameters contain a state for each row cannot make such a carry. Its
    floating-point leaves are then assumed to have batch axes if their shape begins with
    those of the batch.
    """
    more = tuple(n + 1 for n in batch)
    try:
        return jax.eval_shape(lambda p: cell.initial_carry(p, more), params)
    except Exception:

        def leaf(a: Array) -> Any:
            of_rows = (
                jnp.issubdtype(a.dtype, jnp.inexact) and a.shape[: len(batch)] == batch
            )
            return jax.ShapeDtypeStruct(
                (*more, *a.shape[len(batch) :]) if of_rows else a.shape, a.dtype
            )

        return jax.tree.map(leaf, carry)


def initial_carry_of(
    cell: Cell | Layer, params: Params, batch: tuple[int, ...]
) -> Carry:
    """Return ``cell.initial_carry(params, batch)``; errors in it name the method."""
    with name_failing_method(
        without_context(cell),
        "initial_carry",
        "Define initial_carry(self, params, batch_shape=(), dtype=None)",
        batch_shape=batch,
    ):
        return cell.initial_carry(params, batch)


def check_all_carries(
    cell: Cell | Layer, engine: AbstractEngine | None, carry: Carry, carries: Carry
) -> None:
    """Check that the engine returned whole carries after every step.

    Raises:
        ValueError: if it returned only some of their leaves.
    """
    if len(jax.tree.leaves(carries)) < len(jax.tree.leaves(carry)):
        raise ValueError(
            f"{type(cell).__name__}: {engine!r} runs whole chunks and knows the whole "
            f"carry at their ends only, but "
            "return_carries asks for it after every step: use engine=jaxrnn.Scan(), or "
            "leave return_carries out"
        )
