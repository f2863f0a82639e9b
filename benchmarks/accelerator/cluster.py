"""A prototype of one kernel of several blocks: ``python -m
benchmarks.accelerator.cluster [--hidden 256 --blocks 4 --rows 16 --steps 1024]``.

The recurrence of an LSTM in bfloat16 whose matrix is too large for one block of a
Hopper GPU. A *cluster* of blocks has the matrix in its shared memories, each block the
four gates of its share of the units::

    a^T = U_k^T h_{t-1}^T + z_t^T     block k: units k S to (k + 1) S, S = H / blocks
    c_t, h_t                          in registers, for these units alone
    h_t                               stored into the shared memory of every block

After each step the blocks meet at a barrier of the cluster; two buffers of h let a
block write the next state while another one still reads the last. XLA and ptxas compile
the kernel for an H100 that is described to them, and say how many registers, spilled
bytes and bytes of shared memory it takes. **Compiled, not run**: no part of it has been
proved on a chip or in an interpreter, and nothing in the library uses it.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxrnn.engines.loops.pallas.mosaic_gpu import SHARED, mosaic
from jaxrnn.explaining.chips import MissingCompilerError, compile_for

from ..harness.options import Parser, positive
from .kernels import of_ptxas

UNITS = 64  # of a block at least: the tile of the matrix unit
GATES = 4
CLUSTER = "part"


def shared_bytes(hidden: int, blocks: int, rows: int) -> int:
    """Return the bytes of shared memory of a block: its matrix, and two states."""
    return GATES * (hidden // blocks) * hidden * 2 + 2 * rows * hidden * 2


def kernel_of(hidden: int, blocks: int, rows: int, steps: int) -> Any:
    """Return ``(matrix (blocks, 4, S, H), z (T, blocks, 4, S, rows)) -> h`` of all steps,
    ``(T, blocks, S, rows)``.
    """
    plgpu = mosaic()
    share = hidden // blocks
    swizzled = (plgpu.TilingTransform((8, UNITS)), plgpu.SwizzleTransform(128))
    scratch = [
        plgpu.SMEM((GATES, share, hidden), jnp.bfloat16, transforms=swizzled),
        plgpu.SMEM((2, blocks, rows, share), jnp.bfloat16, transforms=swizzled),
        plgpu.Barrier(num_arrivals=GATES),
        plgpu.Barrier(num_arrivals=blocks, num_barriers=2),
        plgpu.ClusterBarrier(collective_axes=(CLUSTER,)),
    ]
    return plgpu.kernel(
        functools.partial(
            _kernel, plgpu=plgpu, blocks=blocks, rows=rows, share=share, steps=steps
        ),
        out_type=jax.ShapeDtypeStruct((steps, blocks, share, rows), jnp.bfloat16),
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
    rows: int,
    share: int,
    steps: int,
) -> None:
    """Run all steps for the units of one block."""
    part = jax.lax.axis_index(CLUSTER)
    shape = (share, rows)
    for gate in range(GATES):
        plgpu.copy_gmem_to_smem(matrix.at[part, gate], resident.at[gate], fetched)
    plgpu.barrier_wait(fetched)

    def zeros() -> Any:
        return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)

    def share_state(h: Any, slot: Any) -> None:
        """Store this block's units into the state of every block."""
        for peer in range(blocks):
            plgpu.async_store_smem(
                h.astype(jnp.bfloat16),
                state.at[slot, part].transpose((1, 0)),
                arrived.at[slot],
                cluster_idx=jnp.int32(peer),
                cluster_dim=CLUSTER,
                optimized=False,
            )

    def step(t: Any, c: Any) -> Any:
        slot = jax.lax.rem(t, 2)
        plgpu.barrier_wait(arrived.at[slot])
        plgpu.commit_smem()

        def multiply(*sums: Any) -> Any:
            for gate, total in enumerate(sums):
                for k in range(blocks):
                    plgpu.wgmma(
                        total,
                        resident.at[gate, :, pl.ds(k * share, share)],
                        state.at[slot, k].transpose((1, 0)),
                    )
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
        plgpu.store(out.at[t, part], h.astype(jnp.bfloat16), optimized=False)
        share_state(h, 1 - slot)
        return c

    share_state(zeros(), jnp.int32(0))
    jax.lax.fori_loop(0, steps, step, zeros())
    plgpu.barrier_wait(arrived.at[steps % 2])
    plgpu.barrier_arrive(met)
    plgpu.barrier_wait(met)  # a block must not end while others store into it
