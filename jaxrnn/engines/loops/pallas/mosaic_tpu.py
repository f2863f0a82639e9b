"""The loop as one Pallas kernel for TPUs.

The grid is (tiles of rows, blocks of time), and the blocks of time of a tile run one
after another. The matrices and the carry stay in VMEM. The inputs and outputs of a
block of time, ``(steps, rows, k width)``, are copied to and from it, two blocks at a
time (double buffering). Units lie along the lanes, rows along the sublanes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ....core.dtypes import accumulator
from ...jaxpr.evaluate import split_by_sizes
from .block_eval import evaluate
from .block_form import ROWS, SCALAR, UNITS, BlockProgram, LoopBody, precision_of
from .layout import Layout, as_rows, from_rows, padded_matrix, round_up, stored
from .lowering_rules import RULES

LANES = 128
# Bytes of VMEM. On every TPU from v4 on, 16 MiB are available by default.
MEMORY = 14 * 2**20
MOST_STEPS, MOST_ROWS = 64, 256
TEMPORARIES = 16  # blocks that are live within a step, an upper estimate


def run_loop(
    body: LoopBody,
    consts: Sequence,
    carry: Sequence,
    given: Sequence,
    steps: int,
    reverse: bool,
    kernel: Any,
):
    """Run the loop; return the last carry and the outputs of all steps."""
    form = body.form
    layout = plan_layout(form, steps, kernel.memory or MEMORY)
    of = dict(zip(form.consts, consts, strict=True))
    matrices = [
        padded_matrix(of[v], over, form, layout.width) for v, over in form.matrices
    ]
    rows = functools.partial(as_rows, form=form, layout=layout)
    constants = [rows(of[v], v, time=False) for v in form.vectors]
    start = [rows(a, v, time=False) for a, v in zip(carry, form.carry, strict=True)]
    stream = [rows(a, v, time=True) for a, v in zip(given, form.given, strict=True)]
    arrays = matrices, constants, start, stream
    last, outs = _call(
        form, layout, arrays, steps, reverse, bool(kernel.interpret), kernel.memory
    )
    back = functools.partial(from_rows, form=form, layout=layout)
    return (
        [back(a, v, time=False) for a, v in zip(last, form.new, strict=True)],
        [back(a, v, time=True) for a, v in zip(outs, form.outs, strict=True)],
    )


def plan_layout(form: BlockProgram, steps: int, memory: int) -> Layout:
    """Choose the largest tile of rows, and then the largest block of time, that fits.

    Raises:
        ValueError: if the smallest does not fit.
    """
    width = round_up(form.units, LANES)
    sublanes = (
        8
        * 4
        // min(
            stored(v.aval.dtype).itemsize
            for v in [*form.carry, *form.given]
            if form.kinds[v].name == UNITS
        )
    )
    everything = round_up(form.rows, sublanes)
    rows = min(everything, round_up(MOST_ROWS, sublanes))
    least = bytes_needed(form, Layout(width, sublanes, sublanes, 1))
    if least > memory:
        raise ValueError(
            f"Fused: the kernel's matrices and one step of it need {least:,} bytes of "
            f"VMEM, but {memory:,} are there: use "
            "engine=jaxrnn.Scan(), a smaller hidden_size or bfloat16 parameters, or "
            "Fused(memory=...) on a TPU that has more"
        )
    while (
        rows > sublanes
        and bytes_needed(form, Layout(width, rows, rows, min(steps, 8))) > memory
    ):
        rows = round_up(rows // 2, sublanes)
    block = min(steps, MOST_STEPS)
    while block > 1 and bytes_needed(form, Layout(width, rows, rows, block)) > memory:
        block //= 2
    return Layout(width, rows, round_up(everything, rows), block)


def bytes_needed(form: BlockProgram, layout: Layout) -> int:
    """Count the bytes of VMEM that the kernel needs.

    They are the matrices, two blocks of time of all inputs and outputs, the carry, and
    the temporaries of a step.
    """
    block = layout.rows * layout.width

    def lanes(var):
        return (
            LANES
            if form.kind(var).name in (ROWS, SCALAR)
            else form.blocks(var) * layout.width
        )

    size = sum(_matrix_size(v, form, layout.width) for v, _ in form.matrices)
    size += (
        2
        * layout.steps
        * layout.rows
        * sum(lanes(v) * stored(v.aval.dtype).itemsize for v in form.given)
    )
    size += (
        2
        * layout.steps
        * block
        * sum(form.shown(v).blocks * stored(v.aval.dtype).itemsize for v in form.outs)
    )
    size += 5 * block * sum(stored(v.aval.dtype).itemsize for v in form.carry)
    size += (
        2
        * layout.rows
        * sum(lanes(v) * stored(v.aval.dtype).itemsize for v in form.vectors)
    )
    return size + TEMPORARIES * block * 4


def _matrix_size(var: Any, form: BlockProgram, width: int) -> int:
    k, m = (d // form.units for d in var.aval.shape)
    return k * m * width * width * var.aval.dtype.itemsize


def _call(form, layout, arrays, steps, reverse, interpret, memory):
    """Call the kernel over a grid of (tiles of rows, blocks of time)."""
    matrices, constants, start, stream = arrays
    count = pl.cdiv(steps, layout.steps)

    def at(t):
        return count - 1 - t if reverse else t

    whole = [
        pl.BlockSpec(
            a.shape, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(buffer_count=1)
        )
        for a in matrices
    ]
    shared = [
        pl.BlockSpec((1, a.shape[1]), lambda b, t: (0, 0))
        if a.shape[0] == 1
        else pl.BlockSpec((layout.rows, a.shape[1]), lambda b, t: (b, 0))
        for a in constants
    ]
    states = [
        pl.BlockSpec((layout.rows, layout.width), lambda b, t: (b, 0)) for _ in start
    ]
    streams = [
        pl.BlockSpec(
            (layout.steps, layout.rows, a.shape[2]), lambda b, t: (at(t), b, 0)
        )
        for a in stream
    ]
    wide = [form.shown(v).blocks * layout.width for v in form.outs]
    results = [
        pl.BlockSpec((layout.steps, layout.rows, w), lambda b, t: (at(t), b, 0))
        for w in wide
    ]
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in start]
    shapes += [
        jax.ShapeDtypeStruct((steps, layout.padded_rows, w), stored(v.aval.dtype))
        for w, v in zip(wide, form.outs, strict=True)
    ]
    out = pl.pallas_call(
        functools.partial(
            _kernel, form=form, layout=layout, steps=steps, reverse=reverse
        ),
        grid=(layout.tiles, count),
        in_specs=[*whole, *shared, *states, *streams],
        out_specs=[*states, *results],
        out_shape=shapes,
        scratch_shapes=[
            pltpu.VMEM((layout.rows, layout.width), a.dtype) for a in start
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            **({"vmem_limit_bytes": memory + memory // 8} if memory else {}),
        ),
        interpret=interpret,
    )(*matrices, *constants, *start, *stream)
    return out[: len(start)], out[len(start) :]


def _kernel(*refs, form: BlockProgram, layout: Layout, steps: int, reverse: bool):
    """Run one block of time of one tile of rows."""
    groups = (
        len(form.matrices),
        len(form.vectors),
        len(form.carry),
        len(form.given),
        len(form.carry),
        len(form.outs),
    )
    matrices, constants, start, stream, last, outs, states = split_by_sizes(
        refs, groups
    )
    block = pl.program_id(1)

    @pl.when(block == 0)
    def _():
        for state, first in zip(states, start, strict=True):
            state[...] = first[...]

    shape = (layout.rows, layout.width)
    known = {
        v: _apart(r, (), v, form, shape)
        for v, r in zip(form.vectors, constants, strict=True)
    }
    where = dict(zip(form.matrices, matrices, strict=True))
    product = functools.partial(_product, where=where, form=form, layout=layout)
    first = (pl.num_programs(1) - 1 - block if reverse else block) * layout.steps
    here = jnp.minimum(layout.steps, steps - first)

    def step(j, _):
        t = here - 1 - j if reverse else j
        given = [
            _apart(r, (t,), v, form, shape)
            for v, r in zip(form.given, stream, strict=True)
        ]
        carry = [
            [s[...] != 0 if v.aval.dtype == jnp.bool_ else s[...]]
            for v, s in zip(form.carry, states, strict=True)
        ]
        new, made = evaluate(
            form,
            known,
            carry,
            given,
            product,
            lambda value, dtype: jnp.full(shape, value, dtype),
            RULES,
        )
        for state, blocks in zip(states, new, strict=True):
            state[...] = jnp.broadcast_to(blocks[0], shape).astype(state.dtype)
        for ref, blocks in zip(outs, made, strict=True):
            for k, each in enumerate(blocks):
                each = jnp.broadcast_to(each, shape).astype(ref.dtype)
                ref[t, :, k * layout.width : (k + 1) * layout.width] = each
        return 0

    jax.lax.fori_loop(0, here, step, 0)

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        for ref, state in zip(last, states, strict=True):
            ref[...] = state[...]


def _apart(
    ref: Any, at: tuple[Any, ...], var: Any, form: BlockProgram, shape: tuple[int, int]
) -> list[Any]:
    """Read the blocks of a value, one by one, each broadcast to ``shape``.

    Mosaic cannot broadcast over rows a slice of a wider row that is in registers.
    """
    width = shape[1]
    parts = (
        [slice(k * width, (k + 1) * width) for k in range(form.blocks(var))]
        if ref.shape[-1] > 1
        else [slice(None)]
    )
    blocks = [jnp.broadcast_to(ref[(*at, slice(None), part)], shape) for part in parts]
    return [b != 0 for b in blocks] if var.aval.dtype == jnp.bool_ else blocks


def _product(
    eqn: Any,
    blocks: list[Any],
    matrix: tuple[Any, int],
    *,
    where: dict,
    form: BlockProgram,
    layout: Layout,
) -> list[Any]:
    """Multiply blocks by a matrix, in blocks."""
    ref, width = where[matrix], layout.width
    # The padding of a block need not be finite, and 0 * inf is NaN.
    if width != form.units:
        lane = jax.lax.broadcasted_iota(jnp.int32, blocks[0].shape, 1)
        blocks = [jnp.where(lane < form.units, b, jnp.zeros_like(b)) for b in blocks]
    operand = jnp.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0]
    out = eqn.outvars[0].aval.dtype
    made = jnp.dot(
        operand.astype(ref.dtype),
        ref[...],
        precision=jax.lax.Precision.DEFAULT
        if precision_of(eqn) == "default"
        else jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulator(out),
    ).astype(out)
    return [
        made[:, k * width : (k + 1) * width] for k in range(form.blocks(eqn.outvars[0]))
    ]
