"""One gradient in a process of its own, for `benchmarks.memory`: ``python -m benchmarks.resident ENTRY CELL B,T,I,H``.

Prints one line of JSON: seconds, what XLA allocates, and how far the peak memory rose during the run.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import resource
import sys
import time

import jax

from . import machine
from .entries import find
from .models import LeftOut
from .options import Shape, shape
from .work import Work

MARK = "resident: "
STATUS, RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def resident_bytes(peak: bool) -> int:
    """Resident memory of this process, or its peak.

    Where the system has no /proc, both are ``ru_maxrss``. It is the second choice because a process that is started by a
    larger one inherits that one's peak.
    """
    try:
        lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines())
        return 1024 * int(lines["VmHWM" if peak else "VmRSS"].split()[0])
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Let the peak start at what is resident now (Linux), so that it does not show what compiling took."""
    with contextlib.suppress(OSError):
        RESET.write_text("5", encoding="ascii")


def device_peak(device) -> int | None:
    """The peak of the device's own allocator, on backends that have one."""
    statistics = device.memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def measure(name: str, work: Work) -> dict:
    """Compile, run once, and say what it took."""
    model, device = find(name).build(work), jax.devices()[0]
    arguments = jax.block_until_ready(model.arguments(work))
    start = time.perf_counter()
    program = jax.jit(model.function("train")).lower(*arguments).compile()
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
        "resident_bytes": (device_after - (device_before or 0)) if on_device else after - before,
        "resident_before_bytes": before,
        "resident_peak_bytes": after,
        "resident_of": "device" if on_device else "process",
    }


def main(argv: list[str]) -> int:
    name, kind, size = argv
    machine.prepare(1)
    try:
        print(MARK + json.dumps(measure(name, Work(kind, Shape(*shape(size))))))
    except LeftOut as reason:
        print(MARK + json.dumps({"failed": str(reason)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
