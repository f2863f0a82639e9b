"""The table of defaults: how `Scan` walks where its options leave that open.

What is kept for a gradient is counted on the traced step, where nobody has said it. The
first of these that applies:

1. ``"everything"``, by ``jax.lax.scan``, where the pullback cannot be traced: a
   ``while_loop`` has no reverse mode.
2. ``"everything"`` again, where there is nothing to save: no weight gradient is a
   product of the carry and a cotangent, which one matmul over time could sum, and over
   0.8 of the bytes that ``lax.scan`` holds would have to be kept too.
3. ``"carries"``, where ``lax.scan`` would hold over 13 MB and at most 4 operations make
   a kept byte again: memory is dearer.
4. ``"dots"``: no matmul is done twice.

Of the carry only those leaves are kept that the pullback reads, unless what it reads of
them is smaller. The window depends on the platform, and is chosen when the program is
compiled for one:

| platform | sequence | window | why |
|---|---|---|---|
| CPU | at most 13 MB kept | all of T | fewest and largest matmuls; all of it stays in the caches anyway |
| CPU | more, or 1.4 times the bytes of ``lax.scan`` | what holds 1.5 MB | its residuals stay in the cache |
| others | any | all of T | not measured yet; a window more is a dozen kernel launches more |
| any, carries only | any | at most T / 16, on a CPU as above | what is made again is where the memory goes |

A window has 8 to 256 steps, or more where those hold less than 64 kB.

Inputs are projected before the loop, but on a CPU with jax 0.10 inside it unless they
are small, see `choose_hoist`.

A linear cell (`jaxrnn.LinearCell`) keeps carries only, makes its factors before the
loop, and is walked

| platform | how | why |
|---|---|---|
| CPU | step by step | parallel prefixes move each state some ten times; benchmarks/results/linear_* |
| others | by parallel prefixes, in chunks of 16 MB of state | a loop's step costs a launch there; not measured yet |

Kernels, those of `jaxrnn.Fused`, are used nowhere by default: `KERNELS` is empty until
they have been timed on a chip. On a platform that it names, a loop whose body fits and
that on-chip memory holds would be one, any other one loop over all of T.

`Associative()` on a CPU takes chunks of 0.5 MB of state, which stay in the cache.

What is kept of a step is its carry and the values its matmuls gave, as
`Adjoint.matmul_values` finds them (without a gradient: the carry and what was hoisted).
The figures behind the table are in benchmarks/NOTES.md. Where a divisor of T lies near
the window, it is taken, so that no shorter one is left over.
"""  # noqa: E501

from __future__ import annotations

import math
from typing import Any

import jax

from ...core.fusion_barrier import LEAST_BYTES
from ..jaxpr.evaluate import nbytes
from ..jaxpr.step_program import EXPENSIVE, INPUT, StepJaxpr
from .backward import bytes_saved

AUTO = "auto"  # to be chosen
# what the forward pass saves for the backward one
DOTS, CARRIES, STARTS, EVERYTHING = "dots", "carries", "starts", "everything"

KERNELS: frozenset[str] = (
    frozenset()
)  # platforms, "cuda" and "tpu", where a loop that fits is a kernel, as in `Fused`
WHOLE_BYTES = 13_000_000
CHUNK_BYTES = 1_500_000
LEAST_CHUNK, MOST_CHUNK = 8, 256
LEAN_SHARE = 16
PREFIX_CHUNK_BYTES, PREFIX_CHUNK_BYTES_ELSEWHERE = (
    500_000,
    16_000_000,
)  # of state, on a CPU and on others
LEAST_PREFIX_CHUNK = 16
# the share of the bytes of jax.lax.scan above which a plan of our own saves no memory
LITTLE_LESS = 0.8
# floating-point operations that take no longer than to write a byte to memory and to
# read it again
OPERATIONS_A_BYTE = 4
MOST_HELD = 1.4  # times what jax.lax.scan keeps: more is not held at once
SMALL_CHUNK_BYTES = (
    65_536  # kept by a window of at least so many, however many steps that are
)


def choose_chunk(
    step: StepJaxpr,
    steps: int,
    platform: str | None,
    *,
    backward: bool,
    lean: bool = False,
    hoist: bool = True,
) -> int | None:
    """Steps in a window by the table above; None is all of T. Arguments are those of
    `explain_chunk`.
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
    """`choose_chunk`, and the reason in words.

    Args:
        backward: whether the walk keeps values for a gradient.
        lean: whether it keeps the carries only.
        hoist: whether inputs are projected before the loop.
    """
    if platform != "cpu" and not lean:
        return None, "one chunk: each more is a dozen launches more"
    # Where nothing is kept, what was hoisted lies in memory all the same.
    stored = (
        step.adjoint.matmul_values
        if backward
        else hoistable_equations(step)
        if hoist
        else []
    )
    kept = sum(map(nbytes, stored)) + sum(
        a.size * a.dtype.itemsize for a in step.carry_avals
    )
    fits = not backward or bytes_saved(step, lean) <= MOST_HELD * scan_residual_bytes(
        step
    )
    if kept * steps <= WHOLE_BYTES and not lean and fits:
        return None, f"one chunk: its {kept * steps:,} bytes stay in the caches"
    most = max(MOST_CHUNK, SMALL_CHUNK_BYTES // max(kept, 1))
    most = min(most, steps // LEAN_SHARE) if lean else most
    held = CHUNK_BYTES // max(kept, 1) if platform == "cpu" else most
    window = nearest_divisor(steps, max(min(held, most), LEAST_CHUNK))
    return window, f"{min(window, steps) * kept:,} of {steps * kept:,} bytes at a time"


def choose_save(step: StepJaxpr, steps: int) -> tuple[str, str]:
    """What is kept of a step for its derivative over ``steps`` steps, where nobody
    has said it, and the reason in words.
    """
    if step.reason_against_pullback is not None:
        return EVERYTHING, step.reason_against_pullback
    program = step.adjoint
    kept, all_of_it = sum(map(nbytes, program.matmul_values)), scan_residual_bytes(step)
    carries = sum(
        nbytes(v) for i, v in enumerate(program.carry) if i not in program.dropped
    )
    if not program.sums_products and kept + carries > LITTLE_LESS * all_of_it:
        return EVERYTHING, (
            "no weight gradient of it is a product with the carry, which one matmul "
            "could sum, and of the "
            f"{all_of_it:,} bytes a step that jax.lax.scan holds {kept + carries:,} "
            f"would have to be kept too"
        )
    if (
        kept
        and steps * all_of_it > WHOLE_BYTES
        and program.remade_operations <= OPERATIONS_A_BYTE * kept
    ):
        return CARRIES, (
            f"carries are kept: {program.remade_operations:,.0f} operations a step "
            f"make {kept:,} bytes again sooner than "
            "memory gives them back"
        )
    return DOTS, ""


def scan_residual_bytes(step: StepJaxpr) -> int:
    """Bytes a step that ``jax.lax.scan`` and its derivative hold, counted: what the
    pullback reads of the forward pass, and what is projected before the loop with its
    cotangent.
    """
    return sum(map(nbytes, step.adjoint.residuals)) + 2 * sum(
        map(nbytes, hoistable_equations(step))
    )


def choose_prefix_chunk(
    step: StepJaxpr, steps: int, platform: str | None
) -> tuple[int, str]:
    """Steps that are joined in parallel at a time, one chunk after another, and why
    as many.
    """
    state = sum(a.size * a.dtype.itemsize for a in step.carry_avals)
    held = (
        PREFIX_CHUNK_BYTES if platform == "cpu" else PREFIX_CHUNK_BYTES_ELSEWHERE
    ) // max(state, 1)
    chunk = nearest_divisor(steps, max(min(held, steps), LEAST_PREFIX_CHUNK))
    return (
        chunk,
        f"{min(chunk, steps) * state:,} of {steps * state:,} bytes of state at a time",
    )


def choose_hoist(platform: str | None, step: StepJaxpr) -> bool:
    """Whether inputs are projected before the loop by default: everywhere but on a CPU
    with jax 0.10.

    Its XLA fuses the slice of what was hoisted into the step's arithmetic, which is
    then not vectorized, and no fence helps (`jaxrnn.core.fusion_barrier`): a GRU
    forwards at (8, 1024, 64) took 12.1 ms hoisted and 5.1 in the loop. A small slice is
    no matter there either: a DiagonalGRU forwards at (1, 100000, 8) took 109 ms in the
    loop and 32 hoisted.
    """
    if platform != "cpu" or jax.__version_info__ >= (0, 11):
        return True
    return all(nbytes(v) < LEAST_BYTES for v in hoistable_equations(step))


def hoistable_equations(step: StepJaxpr) -> list[Any]:
    """What the matmuls of a step give that need no carry."""
    program = step.program
    eqns = [
        eqn
        for eqn in program.eqns
        if program.kind[eqn.outvars[0]] == INPUT and eqn.primitive.name in EXPENSIVE
    ]
    return [v for eqn in eqns for v in eqn.outvars]


def nearest_divisor(steps: int, window: int) -> int:
    """The divisor of ``steps`` nearest to ``window`` in ratio, if one lies between
    half and double of it; else ``window``.
    """
    near = [
        d for d in range(-(-window // 2), min(2 * window, steps) + 1) if steps % d == 0
    ]
    return min(near, key=lambda d: abs(math.log(d / window)), default=window)


def choose_segment(steps: int) -> int:
    """``sqrt(T) / 2``, or a divisor of T near it: a step inside a segment takes some
    four to eight times the memory of a carry at its start, so the two together are
    least below ``sqrt(T)``.
    """
    return nearest_divisor(steps, math.isqrt(max(steps - 1, 0)) // 2 + 1)
