"""Checks of the arguments of `TBPTT`, and of online gradients with its words.

Each error says what was expected, what was given and how to mend it, and begins with
the name of the method that was called, ``who``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.cell import Cell
from ..core.foreign import varying_axes
from ..core.layer import Layer
from ..core.types import Carry, Flags, Params, PyTree
from ..core.validation import describe
from ..core.written import written
from .artbp import Truncation


def check_differentiable(params: Params, who: str = "TBPTT") -> None:
    """Check that every parameter is floating-point, so that it has a gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{who}: params{jax.tree_util.keystr(path)} is "
                f"{jnp.result_type(leaf)}, which has no gradient: params must "
                "be floating-point; pass other arrays to the losses in a closure"
            )


def check_losses_function(losses: object, who: str = "TBPTT") -> None:
    """Check that ``losses`` is a function, and no cell or layer."""
    layer = isinstance(losses, Cell | Layer)
    if layer or not callable(losses):
        wrap = ", which calls jaxrnn.unroll of it with return_carries=True"
        raise TypeError(
            f"{who}: losses must be a function losses(params, carry, window) that "
            f"returns the losses and the carries of all steps, but it is "
            f"{written(losses) if layer else describe(losses)}: write such a "
            f"function{wrap if layer else ''}"
        )


def check_axis(name: str | None, flags: Flags | None) -> None:
    """Check that ``axis_name`` is mapped here, and that `TBPTT` does the sums."""
    if name is None:
        return
    try:
        jax.lax.axis_size(name)
    except NameError:
        raise ValueError(
            f"TBPTT: axis_name={name!r}, but no mapped axis has that name here: call "
            f"it inside jax.shard_map over a mesh with "
            f"the axis {name!r}, or leave axis_name out"
        ) from None
    # With check_vma=True jax sums the gradient itself, and TBPTT would do so again.
    if name in varying_axes(jax.typeof(flags)):
        raise ValueError(
            f"TBPTT: with axis_name={name!r} TBPTT itself sums the gradients over the "
            f"axis, so jax.shard_map must not: pass check_vma=False"
        )


def check_untracked(arrays: PyTree, who: str) -> None:
    """Check that JAX does not track over which devices of a mesh the arrays vary."""
    avals = [
        leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        for leaf in jax.tree.leaves(arrays)
    ]
    axes = sorted({str(axis) for aval in avals for axis in varying_axes(aval)})
    if axes:
        raise ValueError(
            f"{who}: inside jax.shard_map it is supported with check_vma=False only, "
            f"but with check_vma=True arrays vary over {axes}: pass check_vma=False, "
            f"and sum the gradients over the devices by jax.lax.psum"
        )


def check_steps(sequence: PyTree, who: str = "TBPTT") -> int:
    """Return T of a sequence, after a check that all its arrays share it."""
    steps = {
        jnp.shape(leaf)[0] if jnp.ndim(leaf) else None
        for leaf in jax.tree.leaves(sequence._replace(key=None, context=None))
    }
    if len(steps) != 1 or None in steps:
        raise ValueError(
            f"{who}: inputs, targets, mask and resets must share their leading axis T, "
            f"but it is {steps}"
        )
    return int(steps.pop() or 0)


def check_streams(
    sequence: PyTree, batch: tuple[int, ...], steps: int, who: str = "TBPTT"
) -> None:
    """Check that the arrays of a sequence have the batch axes of the state."""
    for name, flags in (("mask", sequence.mask), ("resets", sequence.resets)):
        if flags is not None and (
            jnp.shape(flags) != (steps, *batch) or flags.dtype != bool
        ):
            raise ValueError(
                f"{who}: {name} must be bool of shape (T, *B) = {(steps, *batch)}, but "
                f"it is {describe(flags)}; the state was made by init() with "
                f"batch_shape={batch}"
            )
    for leaf in jax.tree.leaves((sequence.inputs, sequence.targets)):
        if jnp.shape(leaf)[1 : 1 + len(batch)] != batch:
            raise ValueError(
                f"{who}: inputs and targets must be (T, *B, ...), but one has shape "
                f"{jnp.shape(leaf)}, and the state was made with batch_shape={batch}: "
                f"call init() with the batch axes of the sequence"
            )
    for leaf in jax.tree.leaves(sequence.context):
        if jnp.shape(leaf)[: len(batch)] != batch:
            raise ValueError(
                f"{who}: the context must be arrays (*B, ...), the same at every step, "
                f"but one has shape {jnp.shape(leaf)}, and the state was made with "
                f"batch_shape={batch}"
            )


def check_sequence(
    sequence: PyTree, state: PyTree, k1: int, k2: int, steps: int
) -> None:
    """Check that the sequence and the state fit each other, and the state k1 and k2.

    The arrays of the sequence must have the batch axes, shapes and dtypes for which the
    state was made.
    """
    check_streams(sequence, state.fresh.shape, steps)

    def shapes_and_dtypes(tree: PyTree, length: int | None = None) -> Any:
        return jax.tree.map(
            lambda a: (
                jnp.shape(a)[0] if length is None else length,
                *jnp.shape(a)[1:],
                str(jnp.result_type(a)),
            ),
            tree,
        )

    expected = shapes_and_dtypes((sequence.inputs, sequence.targets), k2 - k1)
    got = shapes_and_dtypes((state.history.inputs, state.history.targets))
    if got != expected:
        raise ValueError(
            f"TBPTT: the state holds a history of {got}, but k1 = {k1}, k2 = {k2} "
            f"and this sequence need {expected}: make the state with init() of the "
            f"same TBPTT, and with a sequence of the same shapes and dtypes"
        )


def check_losses(
    losses: PyTree, carries: Carry, carry: Carry, mask: Any, who: str = "TBPTT"
) -> None:
    """Check that ``losses`` returned one loss and one carry for every step."""
    if losses.shape != mask.shape:
        raise ValueError(
            f"{who}: losses must return one loss per step, (T, *B) = {mask.shape}, but "
            f"they have shape {losses.shape}: "
            "average over features, not over time or batch"
        )
    expected = jax.tree.map(lambda c: (mask.shape[0], *jnp.shape(c)), carry)
    got = jax.tree.map(jnp.shape, carries)
    if got != expected:
        raise ValueError(
            f"{who}: losses must return the carries after every step, (T, *B, ...), as "
            "unroll(..., return_carries=True) "
            f"gives them, of shapes {expected}, but got {got}"
        )


def check_truncation(
    truncation: object, sequence: PyTree = None, key: Array | None = None
) -> None:
    """Check that gradient scales come from the truncation, and that it has a key."""
    if truncation is None:
        if sequence is not None and sequence.gradient_scale is not None:
            raise ValueError(
                "TBPTT: the sequence holds a gradient_scale, which would be ignored: "
                "leave it out, and have one drawn for each window with "
                "TBPTT(..., truncation=jaxrnn.ARTBP(mean_length))"
            )
        return
    if isinstance(truncation, type) or not isinstance(truncation, Truncation):
        raise TypeError(
            f"TBPTT: truncation must be None or a jaxrnn.ARTBP(mean_length), but it is "
            f"{describe(truncation)}"
        )
    if sequence is None:
        return
    if sequence.gradient_scale is not None:
        raise ValueError(
            "TBPTT: its truncation draws the gradient_scale, but the sequence holds "
            "one: leave one of them out"
        )
    if key is None:
        raise ValueError(
            f"TBPTT: {truncation!r} draws random numbers, so it needs "
            f"key=jax.random.key(...)"
        )


def check_window_is_read(
    losses: Callable, params: Params, carry: Carry, sequence: PyTree, overlap: bool
) -> None:
    """Check that ``losses`` use the fields of the window that only TBPTT knows.

    These are the mask, if windows overlap, and the gradient scale, if one is drawn. The
    check traces ``losses`` and looks whether any operation reads the field.
    """

    def reads(field):
        jaxpr = jax.make_jaxpr(
            lambda a: losses(params, carry, sequence._replace(**{field: a}))
        )(sequence._asdict()[field])
        (variable,) = jaxpr.jaxpr.invars
        return any(
            variable is v for equation in jaxpr.jaxpr.eqns for v in equation.invars
        )

    if overlap and not reads("mask"):
        raise ValueError(
            "TBPTT: with k2 > k1 the losses must pass window.mask on, unroll(..., "
            "mask=window.mask): it is False at the steps before the sequence begins, "
            "where the carry must not change"
        )
    if sequence.gradient_scale is not None and not reads("gradient_scale"):
        raise ValueError(
            "TBPTT: with a truncation the losses must pass window.gradient_scale on, "
            "truncated_unroll(..., gradient_scale=window.gradient_scale) in place of "
            "unroll(...), or nothing would be cut"
        )
