"""Sequences through an engine, or through a loop of flax where a cell needs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.engine import AbstractEngine
from ..core.flags import expand_flags, select
from ..core.masked_inputs import fill_masked_inputs
from ..core.types import Carry, Context
from ..engines import Scan
from ..unrolling import unroll
from .forms import Form
from .sequences import Order, Sequences


class Ran(NamedTuple):
    """What a run returns: the last carry, the outputs, and all carries or None."""

    carry: Carry
    ys: Any
    carries: Any


def run_in_engine(
    form: Form,
    sequences: Sequences,
    carry: Carry,
    order: Order,
    *,
    engine: AbstractEngine | None,
    key: Array | None = None,
    context: Context = None,
    return_carries: bool = False,
) -> Ran:
    """Run sequences by `jaxrnn.unroll`.

    Args:
        form: the cell.
        sequences: the inputs.
        carry: the carry before the first step, in the module's layout, or None.
        order: the options of the call.
        engine, key, context, return_carries: as for `jaxrnn.unroll`.

    Returns:
        The last carry and the carries in the module's layout; the outputs in the axes
        of the inputs.
    """
    xs = sequences.xs if form.dtype is None else sequences.xs.astype(form.dtype)
    last, ys, *carries = unroll(
        form.layer,
        form.params,
        xs,
        None if carry is None else form.enter(carry, sequences.batch),
        engine=engine,
        mask=sequences.mask,
        resets=sequences.resets,
        reverse=order.reverse,
        key=key,
        context=context,
        return_carries=return_carries,
    )
    return Ran(
        form.leave(last),
        sequences.laid_out(ys, order.reverse and not order.keep_order),
        form.leave(carries[0]) if return_carries else None,
    )


def run_in_loop(
    loop: Callable[[Callable, Carry, Any], tuple[Carry, Any]],
    sequences: Sequences,
    carry: Carry,
    initial: Carry,
    order: Order,
    *,
    return_carries: bool = False,
) -> Ran:
    """Run sequences in a loop of flax, for a cell that is no pure function.

    The rules for padding and resets are those of `jaxrnn.unroll`.

    Args:
        loop: ``loop(step, carry, inputs) -> (carry, outputs)``, where
            ``step(cell, carry, inputs) -> (carry, outputs)`` is one step of a scan over
            the first axis of ``inputs``.
        sequences: the inputs.
        carry: the carry before the first step.
        initial: the carry after a reset.
        order: the options of the call.
        return_carries: whether the carries after all steps are returned.

    Returns:
        The last carry, the outputs in the axes of the inputs, and the carries.
    """
    inputs = sequences.flipped() if order.reverse else sequences
    masked = inputs.mask is not None

    def step(cell: Any, carry: Carry, given: Any) -> tuple[Carry, Any]:
        x, valid, reset = given
        if reset is not None:
            carry = select(reset, initial, carry)
        new, y = cell(carry, x)
        if masked:
            new = select(valid, new, carry)
            y = jax.tree.map(
                lambda leaf: jnp.where(
                    expand_flags(valid, leaf), leaf, jnp.zeros_like(leaf)
                ),
                y,
            )
        return new, (y, new if return_carries else None)

    xs = fill_masked_inputs(inputs.xs, inputs.mask)
    last, (ys, carries) = loop(step, carry, (xs, inputs.mask, inputs.resets))
    if order.reverse:
        ys, carries = sequences.flip((ys, carries))
    if order.reverse and sequences.flips_within_lengths and return_carries:
        # The padding of a sequence comes first in a reversed `jaxrnn.unroll`.
        before = jax.tree.map(lambda leaf: leaf[None], carry)
        carries = select(sequences.mask, carries, before)
    return Ran(
        last,
        sequences.laid_out(ys, order.reverse and not order.keep_order),
        carries,
    )


def steps_per_iteration(engine: AbstractEngine | None, why: str) -> int:
    """Return ``unroll`` of a loop of flax, which runs in place of an engine.

    Args:
        engine: the engine that was asked for, or None.
        why: why a loop of flax runs, for the error.

    Raises:
        ValueError: if the engine is another one than `Scan` with ``unroll`` alone.
    """
    if engine is None:
        return 1
    if isinstance(engine, Scan) and engine == Scan(unroll=engine.unroll):
        return 1 if isinstance(engine.unroll, str) else engine.unroll
    raise ValueError(
        f"RNN: {why}, so flax's own scan runs it, and not {engine!r}: leave the engine "
        f"out, or pass unroll="
    )
