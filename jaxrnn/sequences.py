"""Packed sequences, and the last output of every sequence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from .core.arrays import is_array
from .core.cell import Cell, bind_context
from .core.engine import AbstractEngine
from .core.explicit_mesh import under_auto_axes
from .core.flags import expand_flags, select
from .core.layer import Layer, parts_of
from .core.masked_inputs import fill_masked_inputs
from .core.types import Carry, Context, Inputs, Params
from .core.unroll_spec import UnrollSpec
from .core.validation import check_inputs, check_ours, describe
from .unrolling import current_observer, fill_context, placed, unroll, validate


def resets_from_segment_ids(
    segment_ids: Integer[Array, "T *B"],
    *,
    previous: Integer[Array, "*B"] | None = None,
    reverse: bool = False,
) -> Bool[Array, "T *B"]:
    """Make the resets of sequences that are packed one after another.

    A step begins a new sequence where its id is not that of the step before it. The
    carry is then reset, so that no value and no gradient crosses. Where id 0 stands for
    padding, the mask is ``segment_ids != 0``.

    Args:
        segment_ids: ``(T, *B)`` integers, equal at all steps of a sequence and
            different at neighboring sequences.
        previous: the ids ``(*B,)`` of the step before the first one, if the carry that
            is passed to `unroll` comes from there. By default the first step begins a
            sequence, so no carry that is passed in is seen.
        reverse: whether the steps run from the last to the first, as in `unroll`. A
            reset then comes before the last step of a sequence, and ``previous`` is the
            id after the last step. A `bidirectional` layer turns the resets of the
            forward direction by itself.

    Returns:
        ``(T, *B)`` bool, the ``resets`` of `unroll`.

    Raises:
        TypeError: for ids that are not an integer array with time first.
        ValueError: if ``previous`` does not have the shape ``(*B,)``.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> resets = jaxrnn.resets_from_segment_ids(jnp.array([1, 1, 2, 2, 2, 3]))
        >>> print(resets.astype(int))
        [1 0 1 0 0 1]
    """
    ids = _checked_ids("segment_ids", segment_ids)
    if ids.ndim < 1:
        raise TypeError("segment_ids must have time first, (T, *B), but it is a number")
    if previous is None:
        first = jnp.ones(ids.shape[1:], bool)
    elif jnp.shape(previous) != ids.shape[1:]:
        raise ValueError(
            f"previous must have the batch axes of segment_ids, {ids.shape[1:]}, but "
            f"its shape is {jnp.shape(previous)}"
        )
    else:
        before = _checked_ids("previous", previous).astype(ids.dtype)
        first = ids[-1 if reverse else 0] != before
    changes = ids[1:] != ids[:-1]
    parts = [changes, first[None]] if reverse else [first[None], changes]
    return jnp.concatenate(parts)[: ids.shape[0]]


def _checked_ids(name: str, ids: Any) -> Array:
    """Check that ids are an array of integers, and return it."""
    check_ours(name, ids)
    if not is_array(ids) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"{name} must be an array of integers, but it is {describe(ids)}"
        )
    return jnp.asarray(ids)


def last_output(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    engine: AbstractEngine | None = None,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    reverse: bool = False,
    key: Array | None = None,
    context: Context = None,
) -> tuple[Carry, Any]:
    """Apply a cell or layer over a sequence, and return the last output of each row.

    It computes ``ys[t]`` of `unroll` for the last step t that is valid, in the order in
    which the steps run: for a batch padded at its end, ``ys[length - 1]`` of each row.
    A row without any valid step has zeros. For a cell, and for a layer whose output is
    a function of its carry and the input, only the last carry is kept and the output
    is computed once: the outputs ``(T, *B, H)`` are never in memory. Other layers are
    unrolled as a whole, and the last outputs are picked: `bidirectional` ones, those
    that draw random numbers or take a context, and those that do not define ``output``.

    Args:
        cell, params, xs, carry, engine, mask, resets, reverse, key, context: as for
            `unroll`.

    Returns:
        ``(carry, y)``: the last carry, as from `unroll`, and the last output
        ``(*B, H)``, or the pytree of them that the cell's ``output`` returns. Of a
        `bidirectional` layer it is the output at the last valid step, where the
        backward direction has seen one input only; its state after the whole sequence
        is ``carry.backward``.

    Raises:
        TypeError, ValueError: as `unroll`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.GRU(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (10, 2, 3))
        >>> mask = jaxrnn.mask_from_lengths(jnp.array([10, 7]), 10)
        >>> _, y = jaxrnn.last_output(cell, params, xs, mask=mask)
        >>> _, ys = jaxrnn.unroll(cell, params, xs, mask=mask)
        >>> bool(jnp.allclose(y, jnp.stack([ys[9, 0], ys[6, 1]])))
        True
    """
    spec = UnrollSpec(
        engine, mask, resets, reverse, key=key, all_carries=False, context=context
    )
    params, xs = validate(cell, params, xs, carry, spec)
    spec = placed(cell, params, xs, carry, spec)
    if spec.time_split is not None:
        raise ValueError(
            "last_output: time is split over devices by Across, and one of them has "
            "the last step: use unroll, and pick its outputs on the device that has it"
        )
    # Under an observer nothing is compiled, as in `unroll`.
    run = _last_output_jit if current_observer() is None else _last_output
    return run(cell, params, xs, carry, spec)


def _last_output(
    cell: Cell | Layer, params: Params, xs: Inputs, carry: Carry, spec: UnrollSpec
) -> tuple[Carry, Any]:
    """Compute `last_output` with arguments that `validate` has checked."""
    lead = check_inputs(xs, cell.feature_ndim)
    of_carry = not _is_empty(lead) and _shows_its_carry(cell)
    compute = _from_last_carry if of_carry else _from_all_outputs

    def run(xs, params, carry, spec):
        return (compute(cell, params, xs, carry, spec, lead),)

    return under_auto_axes(run, len(lead) - 1, xs, params, carry, spec)[0]


# Compiled once for equal cells and equal shapes.
_last_output_jit = jax.jit(_last_output, static_argnames="cell", inline=True)


def _is_empty(lead: tuple) -> bool:
    """Return whether T = 0; a symbolic T counts as at least 1."""
    return isinstance(lead[0], int) and lead[0] == 0


def _shows_its_carry(cell: Cell | Layer) -> bool:
    """Return whether the output is a function of the carry and the input at a step."""
    if isinstance(cell, Cell):
        return True
    return (
        cell.causal
        and not cell.requires_key
        and not cell.takes_context
        and type(cell).output is not Layer.output
        and all(map(_shows_its_carry, parts_of(cell)))
    )


def _from_last_carry(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry,
    spec: UnrollSpec,
    lead: tuple,
) -> tuple[Carry, Any]:
    """Compute the last output from the last carry."""
    resets, mask = spec.resets, spec.mask
    last = _last_valid(mask, lead, spec.reverse)
    dropped = None
    if resets is not None and mask is not None:
        # A reset at a masked step after the last valid one changes the carry, but the
        # last output was before it.
        step = jnp.arange(lead[0], dtype=jnp.int32).reshape(-1, *[1] * len(lead[1:]))
        after = step < last[None] if spec.reverse else step > last[None]
        dropped, resets = (resets & after).any(0), resets & ~after
    carry = _unrolled(cell, params, xs, carry, spec.replace(resets=resets))[0]
    x = jax.tree.map(lambda leaf: _pick(leaf, last), xs)
    if mask is not None:
        # A row without a valid step may hold anything.
        x = jax.tree.map(lambda leaf: leaf[None], x)
        x = fill_masked_inputs(x, mask.any(0)[None])
        x = jax.tree.map(lambda leaf: leaf[0], x)
    shown, its_params = cell, params
    if isinstance(cell, Cell):
        context = fill_context(spec.context, mask)
        shown, its_params = bind_context(cell, params, context)
    y = _zero_without_valid(shown.output(its_params, carry, x), mask)
    if dropped is not None:
        carry = select(dropped, cell.initial_carry(params, lead[1:]), carry)
    return carry, y


def _from_all_outputs(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry,
    spec: UnrollSpec,
    lead: tuple,
) -> tuple[Carry, Any]:
    """Compute all outputs, and pick the last ones."""
    carry, ys = _unrolled(cell, params, xs, carry, spec)
    if _is_empty(lead):
        return carry, jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf, shape=leaf.shape[1:]), ys
        )
    last = _last_valid(spec.mask, lead, spec.reverse)
    y = jax.tree.map(lambda leaf: _pick(leaf, last), ys)
    return carry, _zero_without_valid(y, spec.mask)


def _unrolled(
    cell: Cell | Layer, params: Params, xs: Inputs, carry: Carry, spec: UnrollSpec
) -> tuple[Carry, Any]:
    """Call `unroll` with the arguments in ``spec``."""
    return unroll(
        cell,
        params,
        xs,
        carry,
        engine=spec.engine,
        mask=spec.mask,
        resets=spec.resets,
        reverse=spec.reverse,
        key=spec.key,
        context=spec.context,
    )  # type: ignore[return-value]


def _last_valid(mask: Any, lead: tuple, reverse: bool) -> Any:
    """Return the step that runs last: an int, or with a mask one for each row.

    A row without a valid step gets any step.
    """
    if mask is None:
        return 0 if reverse else -1
    if reverse:
        return jnp.argmax(mask, axis=0).astype(jnp.int32)
    return (lead[0] - 1 - jnp.argmax(mask[::-1], axis=0)).astype(jnp.int32)


def _pick(leaf: Array, step: Any) -> Array:
    """Return an array ``(T, *B, ...)`` at one step, or at one step for each row."""
    if isinstance(step, int):
        return leaf[step]
    index = expand_flags(step[None], leaf)
    return jnp.take_along_axis(leaf, index, axis=0, mode="promise_in_bounds")[0]


def _zero_without_valid(y: Any, mask: Any) -> Any:
    """Set the outputs of rows without a valid step to zero."""
    if mask is None:
        return y
    valid = mask.any(0)
    return jax.tree.map(
        lambda leaf: jnp.where(expand_flags(valid, leaf), leaf, jnp.zeros_like(leaf)), y
    )
