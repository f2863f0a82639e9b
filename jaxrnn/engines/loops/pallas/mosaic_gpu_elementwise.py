"""Kernels without a matrix for NVIDIA's Hopper GPUs, limited by memory bandwidth.

A block of the grid runs all steps of 128 units of one example. Inputs are read by bulk
copies of up to 16 steps, several of which are in flight at once; that keeps memory busy
with so few threads. Outputs are written row by row. Everything is read once and written
once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.extend.core import Var

from ...jaxpr.evaluate import split_by_sizes
from .block_eval import evaluate
from .block_form import BlockProgram, LoopBody
from .layout import (
    Layout,
    check_dtypes,
    every_row,
    from_rows,
    put,
    round_up,
    stored,
    stored_on_gpu,
)
from .lowering_rules import RULES

CHUNK = 128  # units of a block of the grid, one per thread
STEPS, COPIES = 16, 4  # the most steps in a bulk copy, and copies in flight


def run_loop(
    plgpu: ModuleType,
    body: LoopBody,
    consts: Sequence,
    carry: Sequence,
    given: Sequence,
    steps: int,
    reverse: bool,
    interpret: bool,
    memory: int,
) -> tuple[list, list]:
    """Run the loop; return the last carry and the outputs of all steps."""
    form = body.form
    layout = plan_layout(form, memory)
    rows = functools.partial(_by_row, form=form, layout=layout)
    constants = [
        rows(a, v, time=False) for a, v in zip(consts, form.consts, strict=True)
    ]
    start = [rows(a, v, time=False) for a, v in zip(carry, form.carry, strict=True)]
    stream = [rows(a, v, time=True) for a, v in zip(given, form.given, strict=True)]
    call = functools.partial(_call, plgpu, form, layout, steps, reverse, interpret)
    chunks = layout.width // CHUNK
    if interpret and form.rows * chunks > 1:  # the interpreter runs one block
        arrays = constants, start, stream
        made = [
            [
                call(*([_piece(a, r, c) for a in part] for part in arrays), grid=(1, 1))
                for c in range(chunks)
            ]
            for r in range(form.rows)
        ]
        last, outs = (_together([[m[i] for m in row] for row in made]) for i in (0, 1))
    else:
        last, outs = call(
            constants, start, stream, grid=(chunks, form.rows)
        )  # the last axis may have 2^31 blocks
    back = functools.partial(from_rows, form=form, layout=layout)
    return (
        [back(_flat(a), v, time=False) for a, v in zip(last, form.new, strict=True)],
        [back(_flat(a), v, time=True) for a, v in zip(outs, form.outs, strict=True)],
    )


def plan_layout(form: BlockProgram, memory: int) -> Layout:
    """Choose the number of steps in a bulk copy, so that several copies fit.

    Raises:
        ValueError: if copies of one step do not fit in shared memory.
    """
    check_dtypes(form, "GPU")
    a_step = sum(
        form.blocks(v) * CHUNK * stored(v.aval.dtype).itemsize for v in form.given
    )
    fitting = [
        s for s in (STEPS, STEPS // 2, STEPS // 4, 1) if COPIES * s * a_step <= memory
    ]
    if not fitting:
        raise ValueError(
            f"Fused: the inputs of {COPIES} steps need {COPIES * a_step:,} bytes of "
            f"shared memory, but a block has {memory:,}: "
            "use engine=jaxrnn.Scan()"
        )
    return Layout(round_up(form.units, CHUNK), 1, form.rows, fitting[0])


def _by_row(
    a: Array, var: Var, form: BlockProgram, layout: Layout, *, time: bool
) -> Any:
    """Split the last axis into blocks: ``(T, rows, k, width)``.

    Unless ``time`` there is no T. Nothing is copied if H needs no padding and k is 1.
    """
    wide = every_row(a, var, form, layout, time=time)
    return wide.reshape(*wide.shape[:-1], -1, layout.width)


def _flat(a: Array) -> Any:
    return a.reshape(*a.shape[:-2], -1)


def _piece(a: Array, row: int, chunk: int) -> Any:
    return a[..., row : row + 1, :, chunk * CHUNK : (chunk + 1) * CHUNK]


def _together(pieces: list[list[list[Any]]]) -> list[Any]:
    """Concatenate the pieces of `_piece`."""
    by_row = [
        [jnp.concatenate(parts, -1) for parts in zip(*row, strict=True)]
        for row in pieces
    ]
    return [jnp.concatenate(parts, -3) for parts in zip(*by_row, strict=True)]


def _call(
    plgpu, form, layout, steps, reverse, interpret, constants, start, stream, *, grid
):
    """Call the kernel over a grid of (chunks of units, examples)."""
    count, width = grid[1], grid[0] * CHUNK
    shapes = [jax.ShapeDtypeStruct((count, 1, width), a.dtype) for a in start]
    shapes += [
        jax.ShapeDtypeStruct(
            (steps, count, form.shown(v).blocks, width), stored_on_gpu(v.aval.dtype)
        )
        for v in form.outs
    ]
    scratch = [
        plgpu.SMEM((COPIES, layout.steps, a.shape[2], CHUNK), a.dtype) for a in stream
    ]
    scratch.append(plgpu.Barrier(num_arrivals=max(len(stream), 1), num_barriers=COPIES))
    body = functools.partial(
        _kernel,
        plgpu=plgpu,
        form=form,
        steps=steps,
        together=layout.steps,
        reverse=reverse,
        alone=grid == (1, 1),
    )
    axes = {} if grid == (1, 1) else {"grid": grid, "grid_names": ("chunk", "row")}
    more = (
        {"interpret": plgpu.InterpretGPUParams(detect_races=True)} if interpret else {}
    )
    out = plgpu.kernel(body, out_type=shapes, scratch_types=scratch, **axes, **more)(
        *constants, *start, *stream
    )
    return list(out[: len(start)]), list(out[len(start) :])


def _kernel(
    *refs,
    plgpu,
    form: BlockProgram,
    steps: int,
    together: int,
    reverse: bool,
    alone: bool,
):
    """Run all steps of 128 units of one example, with ``together`` steps in a copy."""
    sizes = (
        len(form.consts),
        len(form.carry),
        len(form.given),
        len(form.carry),
        len(form.outs),
        len(form.given),
    )
    constants, start, stream, last, outs, buffers, (barrier,) = split_by_sizes(
        refs, sizes
    )
    row, chunk = (
        (0, 0) if alone else (jax.lax.axis_index("row"), jax.lax.axis_index("chunk"))
    )
    here = pl.ds(chunk * CHUNK, CHUNK)
    layout = plgpu.Layout.WG_STRIDED((CHUNK,), vec_size=1)
    load = functools.partial(_load, plgpu=plgpu, form=form, layout=layout)

    def full(value, dtype):
        return plgpu.layout_cast(jnp.full((CHUNK,), value, dtype), layout)

    known = {
        v: load(r, lambda k: (row, k, here), v)
        for v, r in zip(form.consts, constants, strict=True)
    }

    def step(t, carry, given):
        new, made = evaluate(
            form, known, [[c] for c in carry], given, None, full, RULES
        )
        for ref, blocks in zip(outs, made, strict=True):
            for k, each in enumerate(blocks):
                put(plgpu, ref.at[t, row, k, here], each.astype(ref.dtype))
        return [blocks[0] for blocks in new]

    def alone_step(t, carry):
        return step(
            t,
            carry,
            [
                load(r, lambda k: (t, row, k, here), v)
                for v, r in zip(form.given, stream, strict=True)
            ],
        )

    whole = steps // together if stream else 0
    rest = steps - whole * together  # read step by step, at the end of time

    def fetch(number, slot):
        first = (whole - 1 - number if reverse else number) * together
        for ref, buffer in zip(stream, buffers, strict=True):
            plgpu.copy_gmem_to_smem(
                ref.at[pl.ds(first, together), row, :, here],
                buffer.at[slot],
                barrier.at[slot],
            )

    def block(number, carry):
        slot = jax.lax.rem(number, COPIES)

        @pl.when(jnp.logical_and(number > 0, number + COPIES - 1 < whole))
        def _():  # copy into the buffer that the previous block has read
            fetch(number + COPIES - 1, jax.lax.rem(number + COPIES - 1, COPIES))

        plgpu.barrier_wait(barrier.at[slot])
        first = (whole - 1 - number if reverse else number) * together

        def one(j, carry):
            j = together - 1 - j if reverse else j
            given = [
                load(b, lambda k: (slot, j, k), v)
                for v, b in zip(form.given, buffers, strict=True)
            ]
            return step(first + j, carry, given)

        carry = jax.lax.fori_loop(0, together, one, carry)
        plgpu.commit_smem()  # all threads have read before the buffer is overwritten
        return carry

    def staged(carry):
        for i in range(min(COPIES, whole)):
            fetch(i, i)
        return jax.lax.fori_loop(0, whole, block, carry)

    def one_by_one(carry):
        def one(i, carry):
            return alone_step(steps - 1 - i if reverse else whole * together + i, carry)

        return jax.lax.fori_loop(0, rest, one, carry)

    carry = [
        load(r, lambda k: (row, k, here), v)[0]
        for v, r in zip(form.carry, start, strict=True)
    ]
    for part in (one_by_one, staged) if reverse else (staged, one_by_one):
        carry = part(carry) if (rest if part is one_by_one else whole) else carry
    for ref, value in zip(last, carry, strict=True):
        put(plgpu, ref.at[row, 0, here], value.astype(ref.dtype))


def _load(
    ref: Any, at: Any, var: Any, *, plgpu: Any, form: BlockProgram, layout: Any
) -> list[Any]:
    """Read the blocks of a value; ``at(k)`` is the index of block k."""
    blocks = [
        plgpu.load(ref.at[at(k)], layout=layout, optimized=False)
        for k in range(form.blocks(var))
    ]
    return [b != 0 for b in blocks] if var.aval.dtype == jnp.bool_ else blocks
