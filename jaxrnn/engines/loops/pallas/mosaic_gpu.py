"""The loop as one kernel for NVIDIA's Hopper GPUs, in Pallas for Mosaic GPU.

A block of the grid runs all steps of one tile of rows. From the first step to the last,
the matrices are in shared memory and the carry is in registers; only the inputs and
outputs of a step are copied. Products are transposed, ``a^T = U^T h^T``: units lie
along the long side of the matrix unit (64 to 256) and the few rows of the tile along
its short side (8 or 16).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ...jaxpr.evaluate import split_by_sizes
from . import mosaic_gpu_elementwise
from .block_eval import evaluate
from .block_form import BlockProgram, LoopBody
from .layout import (
    Layout,
    check_dtypes,
    from_rows,
    put,
    round_up,
    stored,
    stored_on_gpu,
    transposed,
)
from .lowering_rules import ROUGH, RULES
from .mosaic_gpu_arrays import (
    from_tiles,
    num_bf16_splits,
    split_bf16,
    to_tiles,
    transposed_blocks,
)

# Bytes of shared memory of a block on Hopper, without those for barriers.
SHARED = 232_448 - 2_048
UNITS = 64  # the tile of the matrix unit
MOST_UNITS = 256  # the most elements of a bulk copy along an axis
MOST_ROWS = 16  # examples in a block of the grid
BLOCKS = 128  # blocks that run at once, on 132 processors
MOST_AHEAD = 4  # steps whose inputs are being copied or in shared memory


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
    plgpu = mosaic()
    form = body.form
    if not form.matrices:
        memory = kernel.memory or SHARED
        return mosaic_gpu_elementwise.run_loop(
            plgpu,
            body,
            consts,
            carry,
            given,
            steps,
            reverse,
            bool(kernel.interpret),
            memory,
        )
    terms = [num_bf16_splits(form, v) for v, _ in form.matrices]
    layout = plan_layout(form, kernel.memory or SHARED)
    of = dict(zip(form.consts, consts, strict=True))
    matrices = [
        jnp.stack(split_bf16(transposed_blocks(of[v], over, form, layout.width), n))
        for (v, over), n in zip(form.matrices, terms, strict=True)
    ]
    cut = functools.partial(to_tiles, form=form, layout=layout)
    constants = [cut(of[v], v, time=False) for v in form.vectors]
    start = [cut(a, v, time=False) for a, v in zip(carry, form.carry, strict=True)]
    stream = [cut(a, v, time=True) for a, v in zip(given, form.given, strict=True)]
    call = functools.partial(
        _call, plgpu, form, layout, steps, reverse, kernel, matrices
    )
    if kernel.interpret and layout.tiles > 1:  # the interpreter runs one block
        made = [
            call(
                *(
                    [a[i : i + 1] for a in arrays]
                    for arrays in (constants, start, stream)
                ),
                tiles=1,
            )
            for i in range(layout.tiles)
        ]
        last, outs = (
            [
                jnp.concatenate(parts)
                for parts in zip(*(m[i] for m in made), strict=True)
            ]
            for i in (0, 1)
        )
    else:
        last, outs = call(constants, start, stream, tiles=layout.tiles)
    back = functools.partial(from_rows, form=form, layout=layout)
    return (
        [
            back(from_tiles(a), v, time=False)
            for a, v in zip(last, form.new, strict=True)
        ],
        [
            back(from_tiles(a), v, time=True)
            for a, v in zip(outs, form.outs, strict=True)
        ],
    )


def mosaic() -> Any:
    """Import Pallas for Mosaic GPU, in the form that it has since jax 0.11."""
    if jax.__version_info__ < (0, 11):
        raise ValueError(
            f"Fused: its GPU kernels need jax 0.11 or newer, and this is "
            f"{jax.__version__}: use engine=jaxrnn.Scan() or "
            "update jax (Python 3.12)"
        )
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu


def plan_layout(form: BlockProgram, memory: int) -> Layout:
    """Choose the tile of rows, and the number of steps whose inputs are copied ahead.

    Raises:
        ValueError: if the matrices do not fit in shared memory.
    """
    width = round_up(form.units, UNITS)
    if not form.matrices:
        return mosaic_gpu_elementwise.plan_layout(form, memory)
    check_dtypes(form, "GPU")
    needed, layout = 0, Layout(width, 8, round_up(form.rows, 8), 1)
    # Fewer rows in a block are less work per step, but more blocks.
    for rows in (8,) if form.rows <= 8 * BLOCKS else (MOST_ROWS, 8):
        layout = Layout(width, rows, round_up(form.rows, rows), 1)
        needed = bytes_needed(form, layout)
        if needed <= memory:
            break
    else:
        raise ValueError(
            f"Fused: the kernel's matrices and their operands need {needed:,} bytes of "
            f"shared memory, but a block has "
            f"{memory:,}: use engine=jaxrnn.Scan(), a smaller hidden_size (padded here "
            f"from {form.units} to {width}) or "
            "bfloat16 parameters"
        )
    if width > MOST_UNITS:
        raise ValueError(
            f"Fused: a GPU's kernel with a matrix takes at most {MOST_UNITS} units, "
            f"but there are {form.units}: use "
            "engine=jaxrnn.Scan()"
        )
    a_step = sum(
        form.blocks(v) * width * layout.rows * stored(v.aval.dtype).itemsize
        for v in form.given
    )
    ahead = min(MOST_AHEAD, (memory - needed) // a_step) if a_step else 1
    return dataclasses.replace(layout, steps=ahead if ahead > 1 else 1)


def bytes_needed(form: BlockProgram, layout: Layout) -> int:
    """Count the bytes of shared memory for the matrices and their operands."""
    size = 0
    for v, over in form.matrices:
        k, m = (v.aval.shape[i] // form.units for i in (over, 1 - over))
        size += (
            num_bf16_splits(form, v)
            * (k * m * layout.width + k * layout.rows)
            * layout.width
            * 2
        )
    return size


def _call(
    plgpu,
    form,
    layout,
    steps,
    reverse,
    kernel,
    matrices,
    constants,
    start,
    stream,
    *,
    tiles,
):
    """Call the kernel over a grid of tiles of rows."""
    width, rows = layout.width, layout.rows
    shapes = [jax.ShapeDtypeStruct((tiles, 1, width, rows), a.dtype) for a in start]
    shapes += [
        jax.ShapeDtypeStruct(
            (tiles, steps, form.shown(v).blocks, width, rows),
            stored_on_gpu(v.aval.dtype),
        )
        for v in form.outs
    ]
    swizzled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    scratch: list[Any] = []
    for a in matrices:
        terms, _, k = a.shape[:3]
        scratch.append(plgpu.SMEM(a.shape, a.dtype, transforms=swizzled))
        scratch.append(
            plgpu.SMEM((terms, k, rows, width), a.dtype, transforms=swizzled)
        )
    scratch.append(
        plgpu.Barrier(num_arrivals=sum(math.prod(a.shape[:3]) for a in matrices))
    )
    if layout.steps > 1:
        scratch += [plgpu.SMEM((layout.steps, *a.shape[2:]), a.dtype) for a in stream]
        scratch.append(
            plgpu.Barrier(num_arrivals=len(stream), num_barriers=layout.steps)
        )
    interpret = (
        {"interpret": plgpu.InterpretGPUParams(detect_races=True)}
        if kernel.interpret
        else {}
    )
    grid = {} if tiles == 1 else {"grid": (tiles,), "grid_names": ("tile",)}
    quick = all(v.aval.dtype == jnp.bfloat16 for v, _ in form.matrices)
    rough = quick and bool(kernel.interpret)
    body = functools.partial(
        _kernel,
        plgpu=plgpu,
        form=form,
        layout=layout,
        steps=steps,
        reverse=reverse,
        tiles=tiles,
        rough=rough,
    )
    more = plgpu.CompilerParams(approx_math=quick)
    out = plgpu.kernel(
        body,
        out_type=shapes,
        scratch_types=scratch,
        compiler_params=more,
        **grid,
        **interpret,
    )(*matrices, *constants, *start, *stream)
    return list(out[: len(start)]), list(out[len(start) :])


def _kernel(
    *refs,
    plgpu,
    form: BlockProgram,
    layout: Layout,
    steps: int,
    reverse: bool,
    tiles: int,
    rough: bool,
):
    """Run all steps of one tile of rows."""
    n = len(form.matrices)
    sizes = (
        n,
        len(form.vectors),
        len(form.carry),
        len(form.given),
        len(form.carry),
        len(form.outs),
    )
    sources, constants, start, stream, last, outs, scratch = split_by_sizes(refs, sizes)
    tile = 0 if tiles == 1 else jax.lax.axis_index("tile")
    shape = (layout.width, layout.rows)
    resident, operands = scratch[0 : 2 * n : 2], scratch[1 : 2 * n : 2]
    _fetch(plgpu, sources, resident, scratch[2 * n])
    ahead = scratch[2 * n + 1 :]
    where = {
        matrix: (a, b)
        for matrix, a, b in zip(form.matrices, resident, operands, strict=True)
    }
    product = functools.partial(
        _product, plgpu=plgpu, where=where, form=form, shape=shape
    )

    def full(value, dtype):
        return plgpu.layout_cast(jnp.full(shape, value, dtype), plgpu.Layout.WGMMA)

    def load(ref, at, var):
        blocks = [
            plgpu.load(ref.at[(*at, k)], layout=plgpu.Layout.WGMMA, optimized=False)
            for k in range(form.blocks(var))
        ]
        return [b != 0 for b in blocks] if var.aval.dtype == jnp.bool_ else blocks

    def store(ref, at, blocks):
        for k, each in enumerate(blocks):
            put(plgpu, ref.at[(tile, *at, k)], each.astype(ref.dtype))

    def fetch(i):
        *buffers, arrived = ahead
        slot = jax.lax.rem(i, layout.steps)
        for source, buffer in zip(stream, buffers, strict=True):
            plgpu.copy_gmem_to_smem(
                source.at[tile, steps - 1 - i if reverse else i],
                buffer.at[slot],
                arrived.at[slot],
            )

    def staged(i):
        *buffers, arrived = ahead
        slot = jax.lax.rem(i, layout.steps)

        @pl.when(jnp.logical_and(i > 0, i + layout.steps - 1 < steps))
        def _():  # into the buffer of the previous step, which has been read
            fetch(i + layout.steps - 1)

        plgpu.barrier_wait(arrived.at[slot])
        return [
            load(buffer, (slot,), v)
            for v, buffer in zip(form.given, buffers, strict=True)
        ]

    def step(i, carry):
        t = steps - 1 - i if reverse else i
        given = (
            staged(i)
            if ahead
            else [
                load(r, (tile, t), v) for v, r in zip(form.given, stream, strict=True)
            ]
        )
        known = {
            v: load(r, (tile,), v) for v, r in zip(form.vectors, constants, strict=True)
        }
        new, made = evaluate(
            form,
            known,
            [[c] for c in carry],
            given,
            product,
            full,
            ROUGH if rough else RULES,
        )
        for ref, blocks in zip(outs, made, strict=True):
            store(ref, (t,), blocks)
        return [blocks[0] for blocks in new]

    if ahead:
        for i in range(min(layout.steps, steps)):
            fetch(jnp.int32(i))
    first = [load(r, (tile,), v)[0] for v, r in zip(form.carry, start, strict=True)]
    final = jax.lax.fori_loop(0, steps, step, first)
    for ref, value in zip(last, final, strict=True):
        store(ref, (), [value])


def _fetch(
    plgpu: ModuleType, sources: Sequence[Any], resident: Sequence[Any], barrier: Any
) -> None:
    """Copy the matrices into shared memory, once."""
    for source, target in zip(sources, resident, strict=True):
        for at in itertools.product(*map(range, target.shape[:3])):
            plgpu.copy_gmem_to_smem(source.at[at], target.at[at], barrier)
    plgpu.barrier_wait(barrier)


def _product(
    eqn,
    blocks: list[Any],
    matrix: tuple[Any, int],
    *,
    plgpu,
    where: dict,
    form: BlockProgram,
    shape: tuple[int, int],
):
    """Multiply blocks by a matrix: ``U^T [blocks]``, in blocks.

    The transposes of the blocks are in shared memory, as ``(rows, width)``.
    """
    weights, operands = where[matrix]
    terms = operands.shape[0]
    # The padding of a block need not be finite, and 0 * inf is NaN.
    if shape[0] != form.units:
        unit = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=plgpu.Layout.WGMMA)
        blocks = [jnp.where(unit < form.units, b, 0.0) for b in blocks]
    for k, block in enumerate(blocks):
        for i, term in enumerate(
            [block.astype(jnp.bfloat16)] if terms == 1 else split_bf16(block, terms)
        ):
            transposed(plgpu, operands.at[i, k])[...] = term
    plgpu.commit_smem()
    pairs = [(i, j) for i in range(terms) for j in range(terms - i)]

    def multiply(*sums):
        for m, total in enumerate(sums):
            for k in range(len(blocks)):
                for i, j in reversed(pairs):  # the smallest products first
                    plgpu.wgmma(
                        total, weights.at[i, m, k], transposed(plgpu, operands.at[j, k])
                    )
        plgpu.wgmma_wait(0)
        return tuple(total[...] for total in sums)

    count = form.blocks(eqn.outvars[0])
    made = pl.run_scoped(multiply, *[plgpu.ACC(shape, jnp.float32)] * count)
    return [a.astype(eqn.outvars[0].aval.dtype) for a in made]
