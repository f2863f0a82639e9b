"""The table of defaults: how `Scan` walks where its options leave that open.

What is kept: ``"gates"`` everywhere. The window depends on the platform, and is chosen when the program is compiled for one:

| platform | sequence | window | why |
|---|---|---|---|
| CPU | at most 13 MB kept | all of T | fewest and largest matmuls; all of it stays in the caches anyway |
| CPU | more | what holds 1.5 MB, 8 to 256 steps | a window's residuals stay in the cache; else memory is paged in |
| others | any | all of T | not measured yet; a window more is a dozen kernel launches more |
| any, ``residuals="carries"`` | any | 8 to T / 16 steps, on a CPU those that 1.5 MB hold | what is made again is what memory goes to |

What is kept of a step is its carry and the values its matmuls gave, as `Adjoint.matmul_values` finds them (without a
gradient: the carry and what was hoisted). The figures behind the table are in benchmarks/NOTES.md. Where a divisor of T lies
near the window, it is taken, so that no shorter one is left over.
"""

from __future__ import annotations

import math

from .programs import EXPENSIVE, INPUT, Step, nbytes

WHOLE_BYTES = 13_000_000
WINDOW_BYTES = 1_500_000
LEAST_WINDOW, MOST_WINDOW = 8, 256
LEAN_SHARE = 16


def window_for(step: Step, steps: int, platform: str | None, *, backward: bool, lean: bool = False) -> int | None:
    """Steps in a window by the table above; None is all of T.

    Args:
        backward: whether the walk keeps values for a gradient.
        lean: whether it keeps the carries only.
    """
    if platform != "cpu" and not lean:
        return None
    if backward:
        stored = step.adjoint.matmul_values
    else:  # nothing is kept, but what was hoisted lies in memory too
        eqns = step.program.eqns
        hoisted = [eqn for eqn in eqns if step.program.kind[eqn.outvars[0]] == INPUT and eqn.primitive.name in EXPENSIVE]
        stored = [v for eqn in hoisted for v in eqn.outvars]
    kept = sum(map(nbytes, stored)) + sum(a.size * a.dtype.itemsize for a in step.carry_avals)
    if kept * steps <= WHOLE_BYTES and not lean:
        return None
    most = min(MOST_WINDOW, steps // LEAN_SHARE) if lean else MOST_WINDOW
    held = WINDOW_BYTES // max(kept, 1) if platform == "cpu" else most
    return near_divisor(steps, max(min(held, most), LEAST_WINDOW))


def near_divisor(steps: int, window: int) -> int:
    """The divisor of ``steps`` nearest to ``window`` in ratio, if one lies between half and double of it; else ``window``."""
    near = [d for d in range(-(-window // 2), min(2 * window, steps) + 1) if steps % d == 0]
    return min(near, key=lambda d: abs(math.log(d / window)), default=window)


def default_segment(steps: int) -> int:
    """``sqrt(T) / 2``, or a divisor of T near it: a step inside a segment takes some four to eight times the memory of a
    carry at its start, so the two together are least below ``sqrt(T)``.
    """
    return near_divisor(steps, math.isqrt(max(steps - 1, 0)) // 2 + 1)
