"""The rules by which a schedule's open options are chosen, and their constants.

`jaxrnn.engines.recurrence.schedule.resolve_schedule` applies them. They count bytes and
operations of the traced step; the figures behind the constants are in
benchmarks/NOTES.md. A *chunk* is a number of consecutive steps that run together. (A
*window* is something else: the length of truncated backpropagation.)

**What the forward pass saves** (``save``), where the caller leaves it open. The first
rule that applies decides:

1. ``"everything"``, which is ``jax.lax.scan`` with JAX's own derivative, where the
   pullback of the step cannot be traced. A ``while_loop``, for example, has no reverse
   mode.
2. ``"everything"`` where our own derivative would save nothing: no weight gradient is a
   product of the carry and a cotangent, which one matmul could sum over time, and the
   bytes to be saved exceed 0.8 times (`LITTLE_LESS`) those that ``lax.scan`` saves.
3. ``"carries"`` where ``lax.scan`` would save more than 13 MB (`WHOLE_BYTES`) and at
   most 4 operations (`OPERATIONS_A_BYTE`) recompute a saved byte: recomputing is then
   faster than memory.
4. ``"dots"`` otherwise: no matmul is computed twice.

With ``"dots"`` and ``"carries"``, only those leaves of the carry are saved that the
pullback reads. A leaf of which it reads a smaller part, such as one row of a ring
buffer, is replaced by that part.

**How many steps a chunk has** (``chunk``). It depends on the platform, so it is chosen
when the program is compiled for one.

- On a CPU, one chunk of all T steps where at most 13 MB are saved, and where the
  backward pass holds at most 1.4 times (`MOST_HELD`) the bytes of ``lax.scan``, and is
  given at most 32 MiB (`LARGEST_REUSED`): the matmuls are the fewest and largest, and
  the values stay in the caches anyway. A program has its temporaries in one piece of
  memory, and a larger one is fetched anew from the operating system at every call, page
  by page: a GRU's gradient of 36 MB, (8, 1024, 64), took 22 ms so, and 12 ms in chunks.
- On a CPU otherwise, as many steps as hold 1.5 MB (`CHUNK_BYTES`), so that the
  residuals of a chunk stay in the cache.
- On other platforms, one chunk of all T steps: every chunk costs a dozen kernel
  launches more. This has not been measured yet.
- On every platform, where only the carries are saved, at most T / 16 steps
  (`LEAN_SHARE`), since the recomputed values of a chunk are what takes memory.

A chunk has 8 to 256 steps, or more where that many hold less than 64 kB
(`SMALL_CHUNK_BYTES`). Where a divisor of T is near, it is taken, so that no shorter
chunk is left over. What counts as held is the carry and the values that
`StepVJP.matmul_values` names, or, without a derivative, the carry and what was computed
before the loop.

**Whether inputs are projected before the loop** (``hoist``). They are, except on a CPU
with jax 0.10, where they are projected inside the loop unless they are small; see
`choose_hoist`.

**How many steps an iteration has** (``unroll``). One on a CPU. On other platforms two,
because one alone ends with a copy of the carry wherever it cannot be overwritten while
it is read, and because an iteration counts itself in a launch of its own: an LSTM's
gradient has 3,087 launches instead of 4,111 over 512 steps on an H100, and libtpu
expects 1,584 cycles a step instead of 4,349 for an Elman network's on a v5e (compiled,
not run). There is one where two do not divide the steps, which JAX would copy, and
where a step has more equations than `MOST_UNROLLED`, for the sake of compile time.

**Which loop runs a linear cell** (`jaxrnn.LinearCell`). Such a cell saves the carries
only, and computes its factors before the loop.

- On a CPU the loop is sequential: parallel prefixes move each state about ten times
  (benchmarks/results/linear_*). Where the user names `jaxrnn.Associative`, its chunks
  hold 0.5 MB of state (`PREFIX_CHUNK_BYTES`), which stay in the cache.
- On other platforms it runs by parallel prefixes, in chunks of 16 MB of state
  (`PREFIX_CHUNK_BYTES_ELSEWHERE`), because each step of a loop costs a launch there.
  This has not been measured yet.

**How many steps Newton's method solves for at once**, under `jaxrnn.Newton`: as many as
keep 32 MB of the Jacobian's blocks (`NEWTON_CHUNK_BYTES`), at most 256 where the
Jacobian is whole or falls into heads, and 4096 where it falls into units
(`MOST_NEWTON_STEPS`). A chunk of K steps takes K iterations at most, and near the edge
of chaos the number of iterations grows with K; a shorter chunk costs nothing elsewhere
but depth.

**Kernels**, those of `jaxrnn.Fused`, are chosen nowhere: `KERNELS` is empty until they
have been timed on a chip. On a platform named in it, a loop becomes a kernel if its
body is supported and fits in on-chip memory; every other loop there is one loop over
all of T.
"""

from __future__ import annotations

import math
from typing import Any

import jax

from ...core.fusion_barrier import LEAST_BYTES
from ..jaxpr.carry_blocks import (
    FULL,
    HEADS,
    UNITS,
    blocks_of_step,
    bytes_of_blocks,
    kind_of_blocks,
    program_of_step,
)
from ..jaxpr.dependency_graph import EXPENSIVE, INPUT
from ..jaxpr.evaluate import nbytes
from ..jaxpr.step_program import StepJaxpr
from .backward import whole_plan

AUTO = "auto"  # an option that is left open
# What the forward pass saves for the backward pass.
DOTS, CARRIES, STARTS, EVERYTHING = "dots", "carries", "starts", "everything"

# Platforms, "cuda" and "tpu", on which a supported loop becomes a kernel by default.
KERNELS: frozenset[str] = frozenset()
WHOLE_BYTES = 13_000_000  # saved bytes up to which a CPU runs all of T as one chunk
# Bytes up to which glibc's malloc keeps a piece of memory that was freed, at most.
LARGEST_REUSED = 32 * 2**20
CHUNK_BYTES = 1_500_000  # held by a chunk on a CPU
LEAST_CHUNK, MOST_CHUNK = 8, 256  # steps in a chunk
LEAN_SHARE = 16  # a chunk has at most T / LEAN_SHARE steps where only carries are saved
MOST_UNROLLED = 256  # equations of a step of which an iteration has two
# Bytes of state in a chunk of the parallel prefix, on a CPU and on other platforms.
PREFIX_CHUNK_BYTES, PREFIX_CHUNK_BYTES_ELSEWHERE = 500_000, 16_000_000
LEAST_PREFIX_CHUNK = 16  # steps
NEWTON_CHUNK_BYTES = 32_000_000  # of the blocks of the Jacobian in a chunk
MOST_NEWTON_STEPS = {FULL: 256, HEADS: 256, UNITS: 4096}  # in a chunk
# The share of the bytes saved by jax.lax.scan above which our derivative saves too
# little memory to be worth it.
LITTLE_LESS = 0.8
# Floating-point operations that take no longer than writing a byte to memory and
# reading it again.
OPERATIONS_A_BYTE = 4
MOST_HELD = 1.4  # times the bytes that jax.lax.scan saves; a chunk holds no more
SMALL_CHUNK_BYTES = 65_536  # a chunk may hold so many bytes, whatever its steps


def choose_chunk(
    step: StepJaxpr,
    steps: int,
    platform: str | None,
    *,
    backward: bool,
    lean: bool = False,
    hoist: bool = True,
) -> int | None:
    """Choose the number of steps in a chunk; None is all of T.

    The arguments are those of `explain_chunk`.
    """
    return explain_chunk(
        step, steps, platform, backward=backward, lean=lean, hoist=hoist
    )[0]


def explain_chunk(
    step: StepJaxpr,
    steps: int,
    platform: str | None,
    *,
    backward: bool,
    lean: bool = False,
    hoist: bool = True,
) -> tuple[int | None, str]:
    """Choose the number of steps in a chunk, and say why.

    Args:
        step: the traced step.
        steps: T.
        platform: ``"cpu"``, ``"cuda"`` or ``"tpu"``.
        backward: whether values are saved for a derivative.
        lean: whether only the carries are saved.
        hoist: whether inputs are projected before the loop.

    Returns:
        The steps in a chunk, None for all of T, and the reason in words.
    """
    if platform != "cpu" and not lean:
        return None, "one chunk: each more is a dozen launches more"
    # Without a derivative nothing is saved, but hoisted values are in memory anyway.
    stored_values = (
        step.adjoint.matmul_values
        if backward
        else hoistable_equations(step)
        if hoist
        else []
    )
    step_bytes = sum(map(nbytes, stored_values)) + sum(
        a.size * a.dtype.itemsize for a in step.carry_avals
    )
    fits = True
    if backward:
        plan = whole_plan(step, lean)
        fits = plan.bytes_held <= MOST_HELD * scan_residual_bytes(step)
        fits = fits and plan.bytes_allocated * steps <= LARGEST_REUSED
    total_bytes = step_bytes * steps
    if total_bytes <= WHOLE_BYTES and not lean and fits:
        return None, f"one chunk: its {total_bytes:,} bytes stay in the caches"
    most = max(MOST_CHUNK, SMALL_CHUNK_BYTES // max(step_bytes, 1))
    most = min(most, steps // LEAN_SHARE) if lean else most
    in_cache = CHUNK_BYTES // max(step_bytes, 1) if platform == "cpu" else most
    chunk = nearest_divisor(steps, max(min(in_cache, most), LEAST_CHUNK))
    chunk_bytes = min(chunk, steps) * step_bytes
    return chunk, f"{chunk_bytes:,} of {total_bytes:,} bytes at a time"


def choose_save(step: StepJaxpr, steps: int) -> tuple[str, str]:
    """Choose what the forward pass saves for a derivative over ``steps`` steps.

    Returns:
        ``"everything"``, ``"carries"`` or ``"dots"``, and the reason in words, which is
        empty for ``"dots"``.
    """
    if step.reason_against_pullback is not None:
        return EVERYTHING, step.reason_against_pullback
    program = step.adjoint
    value_bytes = sum(map(nbytes, program.matmul_values))
    scan_bytes = scan_residual_bytes(step)
    carry_bytes = sum(
        nbytes(v) for i, v in enumerate(program.carry) if i not in program.dropped
    )
    saved_bytes = value_bytes + carry_bytes
    if not program.sums_products and saved_bytes > LITTLE_LESS * scan_bytes:
        return EVERYTHING, (
            "no weight gradient of it is a product with the carry, which one matmul "
            "could sum, and of the "
            f"{scan_bytes:,} bytes a step that jax.lax.scan holds {saved_bytes:,} "
            "would have to be kept too"
        )
    if (
        value_bytes
        and steps * scan_bytes > WHOLE_BYTES
        and program.remade_operations <= OPERATIONS_A_BYTE * value_bytes
    ):
        return CARRIES, (
            f"carries are kept: {program.remade_operations:,.0f} operations a step "
            f"make {value_bytes:,} bytes again sooner than "
            "memory gives them back"
        )
    return DOTS, ""


def scan_residual_bytes(step: StepJaxpr) -> int:
    """Count the bytes per step that ``jax.lax.scan`` and its derivative hold.

    These are the values of the forward pass that the pullback reads, and the inputs
    projected before the loop together with their cotangents.
    """
    return sum(map(nbytes, step.adjoint.residuals)) + 2 * sum(
        map(nbytes, hoistable_equations(step))
    )


def choose_prefix_chunk(
    step: StepJaxpr, steps: int, platform: str | None
) -> tuple[int, str]:
    """Choose the chunk size of the parallel prefix, and say why."""
    state = sum(a.size * a.dtype.itemsize for a in step.carry_avals)
    budget = PREFIX_CHUNK_BYTES if platform == "cpu" else PREFIX_CHUNK_BYTES_ELSEWHERE
    fitting = budget // max(state, 1)
    chunk = nearest_divisor(steps, max(min(fitting, steps), LEAST_PREFIX_CHUNK))
    return (
        chunk,
        f"{min(chunk, steps) * state:,} of {steps * state:,} bytes of state at a time",
    )


def choose_newton_chunk(step: StepJaxpr, steps: int, jacobian: str) -> tuple[int, str]:
    """Choose the chunk size of Newton's method, and say why.

    Args:
        step: the traced step.
        steps: T.
        jacobian: as for `jaxrnn.Newton`.
    """
    form = blocks_of_step(step, jacobian)
    block_bytes = bytes_of_blocks(form, program_of_step(step).part_avals)
    most = MOST_NEWTON_STEPS[kind_of_blocks(form)]
    fitting = max(min(NEWTON_CHUNK_BYTES // max(block_bytes, 1), most, steps), 1)
    chunk = nearest_divisor(steps, fitting)
    return chunk, f"{min(chunk, steps) * block_bytes:,} bytes of blocks at a time"


def choose_hoist(platform: str | None, step: StepJaxpr) -> bool:
    """Choose whether inputs are projected before the loop.

    They are, except on a CPU with jax 0.10. Its XLA fuses the slice of the projected
    inputs into the arithmetic of the step, which is then not vectorized, and no barrier
    prevents that (`jaxrnn.core.fusion_barrier`): the forward pass of a GRU at
    (B, T, H) = (8, 1024, 64) took 12.1 ms with projection before the loop and 5.1 ms
    with projection inside. Small slices are not affected: the forward pass of a
    DiagonalGRU at (1, 100000, 8) took 32 ms with projection before the loop and 109 ms
    with projection inside.
    """
    if platform != "cpu" or jax.__version_info__ >= (0, 11):
        return True
    return all(nbytes(v) < LEAST_BYTES for v in hoistable_equations(step))


def choose_unroll(platform: str | None, step: StepJaxpr, steps: int) -> int:
    """Choose how many steps an iteration of a sequential loop has.

    Args:
        platform: ``"cpu"``, ``"cuda"`` or ``"tpu"``.
        step: the traced step.
        steps: the number of steps in a chunk.
    """
    large = len(step.program.eqns) > MOST_UNROLLED
    return 1 if platform in ("cpu", None) or steps % 2 or large else 2


def hoistable_equations(step: StepJaxpr) -> list[Any]:
    """Return the results of the step's matmuls that do not depend on the carry."""
    program = step.program
    eqns = [
        eqn
        for eqn in program.eqns
        if program.kind[eqn.outvars[0]] == INPUT and eqn.primitive.name in EXPENSIVE
    ]
    return [v for eqn in eqns for v in eqn.outvars]


def nearest_divisor(steps: int, chunk: int) -> int:
    """Return the divisor of ``steps`` that is nearest to ``chunk`` in ratio.

    Without a divisor between half of ``chunk`` and twice ``chunk``, return ``chunk``.
    """
    half, double = -(-chunk // 2), min(2 * chunk, steps)
    divisors = [d for d in range(half, double + 1) if steps % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / chunk)), default=chunk)


def choose_segment(steps: int) -> int:
    """Choose the chunk of `jaxrnn.Checkpoint`: ``sqrt(T) / 2``, or a divisor near it.

    Memory is the carries at ``T / chunk`` starts and the values of ``chunk`` steps. A
    step takes about four to eight times the memory of a carry, so the sum is smallest
    below ``sqrt(T)``.
    """
    return nearest_divisor(steps, math.isqrt(max(steps - 1, 0)) // 2 + 1)
