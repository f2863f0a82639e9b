"""Checks of a cell's methods, made when an unroll is traced."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arrays import is_array
from ..core.cell import Cell, ContextCell, without_context
from ..core.engine import AbstractEngine
from ..core.failing_method import name_failing_method
from ..core.layer import Layer
from ..core.records import is_namedtuple
from ..core.row_axes import check_rows
from ..core.types import Carry, Inputs, Params, PyTree
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_carry, describe_tree
from .step_hints import NO_CARRY, batch_of, has_default_carry, hint_of, part_name


def check_step(cell: Cell, params: Params, carry: Carry, xs: Inputs) -> None:
    """Check that a cell's ``step`` returns a carry like the one it is given.

    The step is traced, and nothing is computed.

    Raises:
        TypeError, ValueError: if it does not.
    """
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    own = without_context(cell)

    def naming(method: str, **given: Any):
        hint = functools.partial(hint_of, cell, params, carry, xs, method)
        return name_failing_method(own, method, hint, **given)

    def once(p, s, x):
        given = p[0] if isinstance(cell, ContextCell) else p
        with naming("project", params=given, x=x):
            z = cell.project(p, x)
        with naming("step", params=given, carry=s, z=z):
            return cell.step(p, s, z)

    new = jax.eval_shape(once, params, carry, x)
    name = type(own).__name__
    like, made = _kind_of(carry), _kind_of(new)
    if like != made and is_array(carry) and has_default_carry(own) and _has_parts(new):
        raise TypeError(
            f"{name}.step returns {describe_tree(new)}, but the carry is one array of "
            f"zeros, {tuple(carry.shape)}, because {name} defines no initial_carry: "
            f"for a carry of several parts {NO_CARRY}"
        )
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
            f"{_or_a_carry_of_two(own)}"
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
                and batch_of(cell, xs)[: len(batch)] == batch
            ):
                raise ValueError(
                    f"{name}.initial_carry: {part_name(path)} has shape "
                    f"{tuple(want.shape)}, without the batch axes {batch}, and "
                    f"step makes {tuple(got.shape)} of it: begin its shape with "
                    f"batch_shape, "
                    f"(*batch_shape, {', '.join(map(str, want.shape))})"
                )
    check_carry(name, new, carry, "the carry that step returns")


def _has_parts(new: Any) -> bool:
    """Whether what a step returned names its parts, or has more of them than two."""
    leaves = len(jax.tree.leaves(new))
    plain = isinstance(new, (tuple, list)) and not is_namedtuple(new)
    return leaves > 1 and (not plain or leaves > 2)


def _or_a_carry_of_two(cell: Cell) -> str:
    return f". If the pair is the carry, {NO_CARRY}" if has_default_carry(cell) else ""


def _kind_of(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


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
