"""What a cell costs: parameters, time and memory of values and gradients."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Inputs, Params
from ..unrolling import unroll

MINIMUM_SECONDS = 0.02  # a sample lasts at least so long, or the clock would show


class Cost(NamedTuple):
    """The cost of an unroll and its gradient, compiled for one shape.

    Attributes:
        parameters: the number of parameters.
        milliseconds: of the values and the gradients, the median of all rounds.
        temporary_bytes: memory besides arguments and results; None where the compiler
            does not say.
        compile_seconds: of tracing and compiling.
    """

    parameters: int
    milliseconds: float
    temporary_bytes: int | None
    compile_seconds: float


class _Program(NamedTuple):
    run: Callable[[], Any]
    temporary_bytes: int | None
    compile_seconds: float


def measure_costs(
    cells: Mapping[str, Cell | Layer],
    *,
    steps: int,
    batch: int,
    input_size: int,
    rounds: int = 7,
) -> dict[str, Cost]:
    """Measure forward and backward passes of several cells, interleaved.

    The gradient is that of the sum of the outputs, weighted by random numbers, by the
    parameters and the inputs. All cells get the same inputs.

    Args:
        cells: cells and layers by name.
        steps: T.
        batch: B.
        input_size: D.
        rounds: the number of samples of each.

    Returns:
        The cost of each, by name.
    """
    xs = jax.random.normal(jax.random.key(0), (steps, batch, input_size))
    params = {
        name: cell.init(jax.random.key(1), input_size) for name, cell in cells.items()
    }
    programs = {name: _compiled(cells[name], params[name], xs) for name in cells}
    seconds = _interleave({name: p.run for name, p in programs.items()}, rounds)
    return {
        name: Cost(
            sum(np.size(leaf) for leaf in jax.tree.leaves(params[name])),
            1e3 * statistics.median(seconds[name]),
            program.temporary_bytes,
            program.compile_seconds,
        )
        for name, program in programs.items()
    }


def _compiled(cell: Cell | Layer, params: Params, xs: Inputs) -> _Program:
    """Compile the values and gradients of one cell."""

    def loss(params: Params, xs: Inputs) -> Any:
        ys = unroll(cell, params, xs)[1]
        leaves = jax.tree.leaves(ys)
        keys = jax.random.split(jax.random.key(2), len(leaves))
        terms = [
            (leaf * jax.random.normal(key, leaf.shape, leaf.real.dtype)).real.sum()
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        return jnp.stack(terms).sum()

    start = time.perf_counter()
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, xs).compile()
    seconds, memory = time.perf_counter() - start, run.memory_analysis()
    return _Program(
        lambda: jax.block_until_ready(run(params, xs)),
        None if memory is None else int(memory.temp_size_in_bytes),
        seconds,
    )


def _interleave(
    runs: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Return seconds per call; a round takes one sample of each, in turning order."""
    for run in runs.values():
        run()
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_sample(runs[name]))
    return seconds


def _sample(run: Callable[[], Any]) -> float:
    """Return the mean of as many calls as fill `MINIMUM_SECONDS`."""
    calls, start, elapsed = 0, time.perf_counter(), 0.0
    while elapsed < MINIMUM_SECONDS:
        run()
        calls += 1
        elapsed = time.perf_counter() - start
    return elapsed / calls
