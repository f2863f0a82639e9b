"""Timing: what is compared runs interleaved in one process, round after round in
shuffled order, each call blocking on its result; compile time is taken apart.
"""

from __future__ import annotations

import dataclasses
import gc
import random
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

# a sample shorter than this is the mean of several calls, or the clock and the caches
# would show
MINIMUM_SECONDS = 0.02


@dataclasses.dataclass
class Program:
    """Something to time: ``run()`` returns when its result is there.

    ``compile_seconds`` and ``temporary_bytes``, what it takes besides inputs and
    outputs, are None where nothing compiles.
    """

    run: Callable[[], Any]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


def compiled(function: Callable, *args: Any) -> Program:
    """``jax.jit(function)`` compiled for ``args`` (not donated), with the seconds
    that tracing and compiling took.
    """
    start = time.perf_counter()
    executable = jax.jit(function).lower(*args).compile()
    seconds, memory = time.perf_counter() - start, executable.memory_analysis()
    return Program(
        lambda: jax.block_until_ready(executable(*args)),
        seconds,
        getattr(memory, "temp_size_in_bytes", None),
    )


def interleave(
    runs: dict[Hashable, Callable[[], Any]],
    rounds: int,
    seed: int = 0,
    minimum: float = MINIMUM_SECONDS,
) -> dict[Hashable, list[float]]:
    """Seconds per call of every run: ``rounds`` samples each, after two calls to warm
    up.

    A round takes one sample of each, in an order shuffled anew, so that a neighbor's
    load and a warming processor meet all of them alike.
    """
    for run in runs.values():
        run()
        run()
    order, shuffle = list(runs), random.Random(seed).shuffle
    seconds: dict[Hashable, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                seconds[name].append(sample(runs[name], minimum))
    finally:
        gc.enable()
    return seconds


def sample(run: Callable[[], Any], minimum: float) -> float:
    """Mean seconds of as many calls in a row as fill ``minimum`` seconds, one at
    least.
    """
    calls, start = 0, time.perf_counter()
    while True:
        run()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= minimum:
            return elapsed / calls


def statistics(values: list[float], scale: float = 1.0) -> dict[str, float]:
    """Median, quartiles and minimum of ``values`` times ``scale``."""
    low, middle, high = (float(q) * scale for q in np.percentile(values, [25, 50, 75]))
    return {"median": middle, "q1": low, "q3": high, "min": float(min(values)) * scale}
