"""A prototype of one kernel of several blocks: ``python -m
benchmarks.accelerator.cluster [--steps 1024] [--quick]``.

The recurrence of an LSTM in bfloat16 whose matrix is too large for one block of a
Hopper GPU. A *cluster* of blocks has the matrix in its shared memories, each block the
four gates of its share of the units::

    a = z_t + h_{t-1} U_k     block k: units k S to (k + 1) S, S = H / blocks
    c_t, h_t                  in registers, for these units and 64 rows of the batch
    h_t                       stored into the shared memory of every block

A store signals a barrier of the block that receives it, which begins the next step when
the units of all blocks are there. Of two buffers of h one is written while the other is
read: a block sends its units of the next step only after it has read the last state, so
what it overwrites then has been read by all. XLA and ptxas compile
the kernel for an H100 that is described to them, and say how many registers, spilled
bytes and bytes of shared memory it takes. **Compiled, not run**: no part of it has been
proved on a chip or in an interpreter, and nothing in the library uses it.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxrnn.engines.loops.pallas.layout import put, transposed
from jaxrnn.engines.loops.pallas.mosaic_gpu import mosaic
from jaxrnn.explaining.chips import compile_for

from ..harness.host import where
from ..harness.options import Parser, command, positive
from ..harness.report import content, table, write
from .kernels import of_ptxas
from .launches import CHIP, check_compiler

# Units, and blocks in a cluster.
CASES = ((128, 2), (192, 3), (256, 4), (256, 8), (384, 6))
ROWS = 64  # of the batch, in a tile: the matrix unit takes as many
GATES = 4
CLUSTER = "part"


def shared_bytes(hidden: int, blocks: int) -> int:
    """Return the bytes of shared memory of a block: its matrix, and two states."""
    return GATES * (hidden // blocks) * hidden * 2 + 2 * ROWS * hidden * 2


def kernel_of(hidden: int, blocks: int, steps: int) -> Any:
    """Return a function of the matrix ``(blocks, 4, S, H)`` and the projected inputs
    ``(T, blocks, 4, rows, S)``, which gives h of all steps, ``(T, blocks, rows, S)``.
    """
    plgpu = mosaic()
    share = hidden // blocks
    swizzled = (plgpu.TilingTransform((8, share)), plgpu.SwizzleTransform(2 * share))
    scratch = [
        plgpu.SMEM((GATES, blocks, share, share), jnp.bfloat16, transforms=swizzled),
        plgpu.SMEM((2, blocks, ROWS, share), jnp.bfloat16, transforms=swizzled),
        plgpu.Barrier(num_arrivals=GATES * blocks),
        plgpu.Barrier(num_arrivals=blocks, num_barriers=2),
        plgpu.ClusterBarrier(collective_axes=(CLUSTER,)),
    ]
    return plgpu.kernel(
        functools.partial(
            _kernel, plgpu=plgpu, blocks=blocks, share=share, steps=steps
        ),
        out_type=jax.ShapeDtypeStruct((steps, blocks, ROWS, share), jnp.bfloat16),
        scratch_types=scratch,
        grid=(1,),
        grid_names=("tile",),
        cluster=(blocks,),
        cluster_names=(CLUSTER,),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def _kernel(
    matrix: Any,
    z: Any,
    out: Any,
    resident: Any,
    state: Any,
    fetched: Any,
    arrived: Any,
    met: Any,
    *,
    plgpu: Any,
    blocks: int,
    share: int,
    steps: int,
) -> None:
    """Run all steps for the units of one block."""
    part = jax.lax.axis_index(CLUSTER)
    shape = (ROWS, share)
    for gate, k in itertools.product(range(GATES), range(blocks)):
        columns = pl.ds(k * share, share)
        plgpu.copy_gmem_to_smem(
            matrix.at[part, gate, :, columns], resident.at[gate, k], fetched
        )
    plgpu.barrier_wait(fetched)

    def zeros() -> Any:
        return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)

    def send(h: Any, slot: Any) -> None:
        """Store this block's units into the state of every block."""
        for peer in range(blocks):
            plgpu.async_store_smem(
                h.astype(jnp.bfloat16),
                state.at[slot, part],
                arrived.at[slot],
                cluster_idx=jnp.int32(peer),
                cluster_dim=CLUSTER,
            )

    def step(t: Any, c: Any) -> Any:
        slot = jax.lax.rem(t, 2)
        plgpu.barrier_wait(arrived.at[slot])
        plgpu.commit_smem()

        def multiply(*sums: Any) -> Any:
            for gate, k in itertools.product(range(GATES), range(blocks)):
                weights = transposed(plgpu, resident.at[gate, k])
                plgpu.wgmma(sums[gate], state.at[slot, k], weights)
            plgpu.wgmma_wait(0)
            return tuple(total[...] for total in sums)

        sums = pl.run_scoped(multiply, *[plgpu.ACC(shape, jnp.float32)] * GATES)
        i, f, g, o = (
            total
            + plgpu.load(
                z.at[t, part, gate], layout=plgpu.Layout.WGMMA, optimized=False
            ).astype(jnp.float32)
            for gate, total in enumerate(sums)
        )
        sigmoid = jax.nn.sigmoid
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        put(plgpu, out.at[t, part], h.astype(jnp.bfloat16))
        send(h, 1 - slot)
        return c

    send(zeros(), jnp.int32(0))
    jax.lax.fori_loop(0, steps, step, zeros())
    plgpu.barrier_wait(arrived.at[steps % 2])
    plgpu.barrier_arrive(met)
    plgpu.barrier_wait(met)  # a block must not end while others store into it


def measure(hidden: int, blocks: int, steps: int) -> dict[str, Any]:
    """Compile the kernel for the described chip; return a row of the table."""
    share = hidden // blocks
    matrix = jax.ShapeDtypeStruct((blocks, GATES, share, hidden), jnp.bfloat16)
    z = jax.ShapeDtypeStruct((steps, blocks, GATES, ROWS, share), jnp.bfloat16)
    row: dict[str, Any] = {
        "units": hidden,
        "blocks": blocks,
        "needed_bytes": shared_bytes(hidden, blocks),
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
        try:
            compile_for(CHIP, kernel_of(hidden, blocks, steps), matrix, z)
        except Exception as error:  # whatever the compilers raise is the answer
            first = (str(error).splitlines() or [""])[0]
            return row | {
                "compiled": False,
                "reason": f"{type(error).__name__}: {first}",
            }
        finally:
            del os.environ["MOSAIC_GPU_DUMP_TO"], os.environ["MOSAIC_GPU_DUMP_PTXAS"]
        said = of_ptxas(pathlib.Path(folder))
    return row | {"compiled": True} | {key: sum(found) for key, found in said.items()}


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    keys = ("registers", "spilled_bytes", "shared_bytes")
    rows = [
        [
            *(f"{row[key]:,}" for key in ("units", "blocks", "needed_bytes")),
            "yes" if row["compiled"] else row["reason"],
            *(f"{row[key]:,}" if key in row else "" for key in keys),
        ]
        for row in result["rows"]
    ]
    head = ["units", "blocks", "bytes needed", "compiled"]
    head += ["registers a thread", "bytes spilled", "bytes of shared memory"]
    title = (
        f"# An LSTM over a cluster of blocks, compiled for a described {CHIP}, not run"
    )
    here, steps = where(result["machine"]), result["steps"]
    text = f"Compiled on {here}; bfloat16, {ROWS} rows, {steps:,} steps."
    return "\n".join([title, "", text, "", table(head, rows)])


def main(argv: list[str] | None = None) -> int:
    """Compile, print, write; 0."""
    options = Parser("accelerator.cluster", __doc__ or "", devices=False)
    options.add_argument(
        "--steps", type=positive, default=1024, help="steps of the loop (1024)"
    )
    args = options.parse_args(argv)
    check_compiler(options, CHIP)
    rows = []
    for hidden, blocks in CASES[:1] if args.quick else CASES:
        rows.append(measure(hidden, blocks, args.steps))
        print(rows[-1], flush=True)
    result = content(
        "cluster", command("accelerator.cluster", argv), rows=rows, steps=args.steps
    )
    if args.quick and args.out is None:
        print(markdown(result))
        return 0
    name = args.out or f"cluster_compiled_jax{jax.__version__}"
    write(name, result, markdown(result), None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
