"""Worded checks of `TBPTT`: each says what was expected, what came and how to mend
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.validation import describe


def check_differentiable(params: Any) -> None:
    """Every parameter has a gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"TBPTT: params{jax.tree_util.keystr(path)} is "
                f"{jnp.result_type(leaf)}, which has no gradient: params must "
                "be floating-point; hand other arrays to the losses in a closure"
            )


def check_axis(name: str | None, flags: Any) -> None:
    """The axis over which the streams are split is mapped here, in a way that leaves
    the sums to `TBPTT`.
    """
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
    kind = getattr(jax.typeof(flags), "manual_axis_type", None)
    if name in getattr(
        kind, "varying", ()
    ):  # jax would then sum the gradient by itself, and TBPTT a second time
        raise ValueError(
            f"TBPTT: with axis_name={name!r} the gradients are summed over the axis "
            f"here, which jax.shard_map must leave to "
            "it: pass check_vma=False"
        )


def check_steps(sequence: Any) -> int:
    """T of a sequence, the same for all its arrays."""
    steps = {
        jnp.shape(leaf)[0] if jnp.ndim(leaf) else None
        for leaf in jax.tree.leaves(sequence._replace(key=None))
    }
    if len(steps) != 1 or None in steps:
        raise ValueError(
            f"TBPTT: inputs, targets, mask and resets must share their leading axis T, "
            f"but it is {steps}"
        )
    return int(steps.pop() or 0)


def check_sequence(sequence: Any, state: Any, k1: int, k2: int, steps: int) -> None:
    """The sequence's arrays have the batch axes and the kinds for which the state
    was made, and the state this k1 and k2.
    """
    batch = state.fresh.shape
    for name, flags in (("mask", sequence.mask), ("resets", sequence.resets)):
        if flags is not None and (
            jnp.shape(flags) != (steps, *batch) or flags.dtype != bool
        ):
            raise ValueError(
                f"TBPTT: {name} must be bool of shape (T, *B) = {(steps, *batch)}, but "
                f"it is {describe(flags)}; the state was "
                f"started with batch_shape={batch}"
            )
    for leaf in jax.tree.leaves((sequence.inputs, sequence.targets)):
        if jnp.shape(leaf)[1 : 1 + len(batch)] != batch:
            raise ValueError(
                f"TBPTT: inputs and targets are (T, *B, ...), but one has shape "
                f"{jnp.shape(leaf)}, and the state was started "
                f"with batch_shape={batch}: start() with the batch axes of the sequence"
            )

    def kinds(tree: Any, first: int | None = None) -> Any:
        return jax.tree.map(
            lambda a: (
                jnp.shape(a)[0] if first is None else first,
                *jnp.shape(a)[1:],
                str(jnp.result_type(a)),
            ),
            tree,
        )

    expected = kinds((sequence.inputs, sequence.targets), k2 - k1)
    found = kinds((state.history.inputs, state.history.targets))
    if found != expected:
        raise ValueError(
            f"TBPTT: the state holds a history of {found}, but k1 = {k1}, k2 = {k2} "
            f"and this sequence want {expected}: make "
            "the state with start() of the same TBPTT, and a sequence of the same kind"
        )


def check_losses(losses: Any, carries: Any, carry: Any, mask: Any) -> None:
    """There is one loss a step, and a carry after every step."""
    if losses.shape != mask.shape:
        raise ValueError(
            f"TBPTT: losses must return one loss per step, (T, *B) = {mask.shape}, but "
            f"they have shape {losses.shape}: "
            "average over features, not over time or batch"
        )
    every = jax.tree.map(lambda c: (mask.shape[0], *jnp.shape(c)), carry)
    found = jax.tree.map(jnp.shape, carries)
    if found != every:
        raise ValueError(
            "TBPTT: losses must return the carries after every step, (T, *B, ...), as "
            "unroll(..., return_carries=True) "
            f"gives them, of shapes {every}, but got {found}"
        )


def check_truncation(truncation: Any, sequence: Any = None, key: Any = None) -> None:
    """A truncation draws gradient scales, from a key; nobody else gives them."""
    if truncation is None:
        if sequence is not None and sequence.gradient_scale is not None:
            raise ValueError(
                "TBPTT: the sequence holds a gradient_scale, which would be passed "
                "over: leave it out, and have one drawn for "
                "each window with TBPTT(..., truncation=jaxrnn.ARTBP(mean_length))"
            )
        return
    if isinstance(truncation, type) or not hasattr(truncation, "sample"):
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
    losses: Callable, params: Any, carry: Any, sequence: Any, overlap: bool
) -> None:
    """The losses read what is told to them by the window alone: the mask where
    windows overlap, a drawn gradient scale.
    """

    def reads(field):
        jaxpr = jax.make_jaxpr(
            lambda a: losses(params, carry, sequence._replace(**{field: a}))
        )(getattr(sequence, field))
        (variable,) = jaxpr.jaxpr.invars
        return any(
            variable is v for equation in jaxpr.jaxpr.eqns for v in equation.invars
        )

    if overlap and not reads("mask"):
        raise ValueError(
            "TBPTT: with k2 > k1 the losses must hand window.mask on, unroll(..., "
            "mask=window.mask): it marks the steps "
            "before the sequence begins, over which the carry must hold"
        )
    if sequence.gradient_scale is not None and not reads("gradient_scale"):
        raise ValueError(
            "TBPTT: with a truncation the losses must hand window.gradient_scale on, "
            "truncated_unroll(..., "
            "gradient_scale=window.gradient_scale) in place of unroll(...), or nothing "
            "would be cut"
        )
