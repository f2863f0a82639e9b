"""One gradient in a process of its own, for `benchmarks.cpu.memory`: ``python -m
benchmarks.harness.peak_rss ENTRY CELL B,T,I,H [last]``.

Prints one line of JSON: seconds, what XLA allocates, and how far the peak memory rose
    during the run.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn

from ..peers.adapters import SkipEntryError
from ..peers.registry import engine_named, find
from . import host
from .options import Shape, shape
from .workload import Work

MARK = "resident: "
ENGINES = {"jaxrnn": None, "jaxrnn-checkpoint": jaxrnn.Checkpoint()}
STATUS, RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def resident_bytes(peak: bool) -> int:
    """Resident memory of this process, or its peak.

    Where the system has no /proc, both are ``ru_maxrss``. It is the second choice
    because a process that is started by a larger one inherits that one's peak.
    """
    try:
        lines = dict(
            line.split(":", 1)
            for line in STATUS.read_text(encoding="ascii").splitlines()
        )
        return 1024 * int(lines["VmHWM" if peak else "VmRSS"].split()[0])
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Let the peak start at what is resident now (Linux), so that it does not show
    what compiling took.
    """
    with contextlib.suppress(OSError):
        RESET.write_text("5", encoding="ascii")


def device_peak(device) -> int | None:
    """The peak of the device's own allocator, on backends that have one."""
    statistics = device.memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def last_state_gradient(name: str, work: Work) -> tuple[Any, tuple]:
    """The gradient, of weights and input, of a loss of the state after the last step
    alone: full BPTT, no outputs stored.
    """
    cell, engine = (
        work.cell,
        ENGINES[name]
        if name in ENGINES
        else None
        if name == "naive"
        else engine_named(name),
    )

    def last(weights, xs):
        if name != "naive":
            return jaxrnn.unroll(cell, weights, xs, engine=engine)[0]
        start = cell.initial_carry(weights, xs.shape[1:-1])
        return jax.lax.scan(
            lambda s, x: (cell.step(weights, s, cell.project(weights, x)), None),
            start,
            xs,
        )[0]

    def loss(weights, xs, cotangent):
        return jnp.sum(cell.output(weights, last(weights, xs), None) * cotangent)

    return jax.value_and_grad(loss, argnums=(0, 1)), (
        work.weights,
        work.xs,
        work.cotangent[-1],
    )


def measure(name: str, work: Work, last: bool = False) -> dict:
    """Compile, run once, and say what it took; with ``last`` for a loss of the last
    state alone.
    """
    device = jax.devices()[0]
    if last:
        function, arguments = last_state_gradient(name, work)
    else:
        model = find(name).build(work)
        function, arguments = model.function("train"), model.arguments(work)
    arguments = jax.block_until_ready(jax.device_put(arguments, device))
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    compiled = time.perf_counter()
    forget_peak()
    before, device_before = resident_bytes(peak=False), device_peak(device)
    running = time.perf_counter()
    result = jax.block_until_ready(program(*arguments))
    seconds = time.perf_counter() - running
    after, device_after = resident_bytes(peak=True), device_peak(device)
    del result
    B, T, _, H = work.shape
    temp = program.memory_analysis().temp_size_in_bytes
    on_device = device_after is not None
    return {
        "seconds": seconds,
        "compile_seconds": compiled - start,
        "temp_bytes": temp,
        "temp_in_TBH_floats": temp / (4 * T * B * H),
        "resident_bytes": (device_after - (device_before or 0))
        if on_device
        else after - before,
        "resident_before_bytes": before,
        "resident_peak_bytes": after,
        "resident_of": "device" if on_device else "process",
    }


def main(argv: list[str]) -> int:
    name, kind, size, *last = argv
    host.prepare(1)
    try:
        print(
            MARK
            + json.dumps(
                measure(name, Work(kind, Shape(*shape(size))), last == ["last"])
            )
        )
    except SkipEntryError as reason:
        print(MARK + json.dumps({"failed": str(reason)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
