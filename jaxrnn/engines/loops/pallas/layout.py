"""Conversion of a loop's arrays to the padded layout of a kernel, and back.

In a kernel's layout all batch axes are one axis of *rows*, which is cut into tiles, and
each block of H units is padded to ``width`` lanes.
"""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.extend.core import Var
from jax.typing import DTypeLike

from .block_form import ROWS, SCALAR, BlockProgram

DTYPES = {jnp.dtype(d) for d in (jnp.float32, jnp.bfloat16, jnp.int32)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes of a kernel's blocks.

    Attributes:
        width: H, padded: the lanes of a block of units.
        rows: the examples in a tile.
        padded_rows: the number of examples, padded to whole tiles.
        steps: the steps in a block of time, or copied together.
    """

    width: int
    rows: int
    padded_rows: int
    steps: int

    @property
    def tiles(self) -> int:
        return self.padded_rows // self.rows


def round_up(size: int, multiple: int) -> int:
    """Return the smallest multiple that is not less than ``size``."""
    return -(-size // multiple) * multiple


def stored(dtype: DTypeLike | None) -> Any:
    """Return the dtype in which a kernel stores a value: int32 for flags."""
    return jnp.dtype(jnp.int32) if dtype == jnp.bool_ else jnp.dtype(dtype)


def stored_on_gpu(dtype: DTypeLike | None) -> Any:
    """Return the same for the kernels of GPUs, whose flags are float32."""
    return jnp.dtype(jnp.float32) if dtype == jnp.bool_ else jnp.dtype(dtype)


def check_dtypes(form: BlockProgram, chip: str) -> None:
    """Check that a chip's kernels support all dtypes."""
    strange = [
        v.aval.dtype
        for v in [*form.consts, *form.carry, *form.given]
        if stored(v.aval.dtype) not in DTYPES
    ]
    if strange:
        raise ValueError(
            f"Fused: a {chip}'s kernels take float32 and bfloat16, but there are "
            f"{strange[0]} parameters or inputs"
        )


def as_rows(
    a: Array, var: Var, form: BlockProgram, layout: Layout, *, time: bool
) -> Any:
    """Convert an array to rows of padded blocks.

    Args:
        a: the array, with a leading axis T if ``time``.
        var: its variable in ``form``.
        form: the block program.
        layout: the sizes of the kernel.
        time: whether there is a value for every step.

    Returns:
        ``(T, padded rows, k width)``, or ``(T, padded rows, 1)`` for a number per
        example; without T unless ``time``. A constant that all examples share has one
        row.
    """
    lead = a.shape[:1] if time else ()
    kind, units = form.kinds[var], form.units
    a = a.astype(stored(a.dtype))
    if kind.name == SCALAR:
        return jnp.broadcast_to(
            a.reshape(*lead, 1, 1),
            (*lead, *((layout.padded_rows, 1) if time else (1, layout.width))),
        )
    if kind.name == ROWS:
        a = a.reshape(*lead, form.rows, 1)
    else:
        *batch, last = a.shape[len(lead) :]
        shared = all(d == 1 for d in batch) and form.rows != 1
        if not shared:
            a = jnp.broadcast_to(
                a.reshape(*lead, *[1] * (len(form.batch) - len(batch)), *batch, last),
                (*lead, *form.batch, last),
            )
        a = a.reshape(*lead, 1 if shared else form.rows, kind.blocks, units)
        a = jnp.pad(a, [*[(0, 0)] * (a.ndim - 1), (0, layout.width - units)]).reshape(
            *a.shape[:-2], -1
        )
        if shared:
            return (
                jnp.broadcast_to(a, (*lead, layout.padded_rows, a.shape[-1]))
                if time
                else a
            )
    return jnp.pad(
        a, [*[(0, 0)] * len(lead), (0, layout.padded_rows - form.rows), (0, 0)]
    )


def every_row(
    a: Any, var: Any, form: BlockProgram, layout: Layout, *, time: bool
) -> Any:
    """Convert as `as_rows`, for GPUs: everything has a row for every example.

    Numbers per example are broadcast to a block.
    """
    wide = as_rows(a, var, form, layout, time=time).astype(
        stored_on_gpu(var.aval.dtype)
    )
    width = layout.width if wide.shape[-1] == 1 else wide.shape[-1]
    return jnp.broadcast_to(wide, (*wide.shape[:-2], layout.padded_rows, width))


def from_rows(
    a: Any, var: Any, form: BlockProgram, layout: Layout, *, time: bool
) -> Any:
    """Invert `as_rows` for a result of the loop.

    Returns an array of the shape and dtype of ``var``, with a leading T if ``time``.
    """
    lead = a.shape[:1] if time else ()
    a = a[..., : form.rows, :].reshape(*lead, form.rows, -1, layout.width)
    kind = form.shown(var).name
    a = a[..., :1, :1] if kind in (ROWS, SCALAR) else a[..., : form.units]
    if math.prod(var.aval.shape) < math.prod(a.shape[len(lead) :]):
        a = a[..., :1, :, :]  # the same for every example
    return a.reshape(*lead, *var.aval.shape).astype(var.aval.dtype)


def padded_matrix(matrix: Any, over: int, form: BlockProgram, width: int) -> Any:
    """Pad every block ``(H, H)`` of a matrix with zeros.

    Returns ``(k width, m width)``, whose first axis is the contracted one; ``over`` is
    the contracted axis of ``matrix``.
    """
    matrix = matrix if over == 0 else matrix.T
    blocks = matrix.reshape(
        matrix.shape[0] // form.units,
        form.units,
        matrix.shape[1] // form.units,
        form.units,
    )
    more = (0, width - form.units)
    blocks = jnp.pad(blocks, [(0, 0), more, (0, 0), more])
    return blocks.reshape(blocks.shape[0] * width, blocks.shape[2] * width)


def put(plgpu: ModuleType, ref: Any, value: object) -> None:
    """Write to the global memory of a GPU, in pieces of any size.

    jax 0.12 requires ``optimized=False`` for that.
    """
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:
        ref[...] = value


def transposed(plgpu: ModuleType, ref: Any) -> Any:
    """Return a reference to the transpose, by a method in jax 0.12."""
    return (
        ref.transpose((1, 0))
        if hasattr(ref, "transpose")
        else plgpu.transpose_ref(ref, (1, 0))
    )
