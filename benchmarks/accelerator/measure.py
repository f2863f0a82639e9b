"""One configuration of `benchmarks.accelerator`, in the process that calls: compiled,
checked, and timed interleaved.

As a program, ``python -m benchmarks.accelerator.measure CONFIG SECONDS ROUNDS [quick]
[--without ENTRY ...]``, it is what `benchmarks.accelerator` starts for every
configuration: a kernel that kills or hangs its process takes one configuration along,
not the run. It prints what it is about to do, so that the culprit is known, and at last
its result, all as lines of JSON.
"""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..cpu.linear import copy_bandwidth
from ..harness import host
from ..harness.timing import Program, sample, statistics
from ..harness.workload import MODES
from ..peers.adapters import SkipEntryError
from . import torch_peer
from .workload import (
    BASELINE,
    BF16,
    F32,
    LSTM,
    Config,
    Data,
    Entry,
    config_named,
    draw,
    entries_of,
)

MARK = "accelerator> "
COMPILING, CHECKED = (
    0.6,
    0.8,
)  # of a configuration's seconds, when no compilation and no first run is waited for any more  # noqa: E501
OVER = "not measured: the seconds given were over"
LOST = 3  # the exit status of a process whose accelerator answers no more
# of the same function: TF32 and bfloat16 round factors to 10 and 7 bits
TOLERANCE = {
    F32: 2e-2,
    BF16: 1e-1,
}
REFERENCE = "lax.scan in float32 with float32 matmuls"
Tell = Callable[[str], None]


class DeviceLostError(Exception):
    """The accelerator answers no more in this process, as after a kernel's access
    out of bounds.
    """


def measure(
    config: Config,
    seconds: float,
    rounds: int,
    without: tuple[str, ...] = (),
    tell: Tell = lambda what: None,
) -> dict:
    """Rows of all that runs, and what was left out and why, in about ``seconds``."""
    begun = time.monotonic()
    tell("the ceilings")
    small = config.B * config.T * config.H < 100_000
    ceilings = measure_ceilings(256 if small else 8192, 8 if small else 1024)
    tell("the reference")
    data = draw(config)
    expected = reference(config, data)
    made, left_out = prepare(config, data, without, begun + COMPILING * seconds, tell)
    differences: dict[tuple[str, str], dict[str, float]] = {}
    for key in list(made):
        entry, mode, mapping, program = made[key]
        if time.monotonic() > begun + CHECKED * seconds:
            left_out.append(
                {
                    "config": config.name,
                    "entry": entry.key,
                    "mode": mode,
                    "reason": OVER,
                }
            )
            del made[key]
            continue
        tell(f"{entry.key}: the first run, {mode}")
        try:
            found = parts_of(entry, mode, mapping, data, program.run())
            differences[key] = {
                name: difference(value, expected[name]) for name, value in found.items()
            }
            del found
        except Exception as error:
            left_out.append(
                {
                    "config": config.name,
                    "entry": entry.key,
                    "mode": mode,
                    "reason": worded(error),
                }
            )
            del made[key]
            check_alive(error)
    del expected
    samples = interleave(made, rounds, begun + seconds, left_out, config, tell)
    rows = [
        row(config, made[key], times, differences[key])
        for key, times in samples.items()
        if times
    ]
    base = {
        r["mode"]: r["ms"]["median"]
        for r in rows
        if r["entry"] == BASELINE[config.kind]
    }
    for each in rows:
        of = base.get(each["mode"])
        each["times_as_fast_as_lax_scan"] = of / each["ms"]["median"] if of else None
    return {
        "config": config._asdict(),
        "rows": rows,
        "left_out": left_out,
        "ceilings": ceilings,
        "machine": host.describe(),
    }


def measure_ceilings(size: int, megabytes: int) -> dict[str, float]:
    """GFLOP/s of the best of 8 products of two ``size x size`` matrices of random
    numbers, and GB/s of copying.
    """
    found = {}
    for name, dtype, precision in (
        ("bfloat16", BF16, None),
        ("TF32", F32, "tensorfloat32"),
        ("float32", F32, "highest"),
    ):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        with jax.default_matmul_precision(precision):
            product = jax.jit(lambda a: a @ a).lower(a).compile()
        times = []
        for _ in range(9):
            start = time.perf_counter()
            jax.block_until_ready(product(a))
            times.append(time.perf_counter() - start)
        found[f"{name} GFLOP/s"] = 2 * size**3 / min(times[1:]) / 1e9
    return found | {"copy GB/s": copy_bandwidth(megabytes) / 1e9}


def reference(config: Config, data: Data) -> dict[str, Any]:
    """Outputs and gradients by the baseline, in float32 with float32 matmuls."""
    entry = next(e for e in entries_of(config) if e.key == BASELINE[config.kind])
    forward, _ = entry.build(config, F32)

    with jax.default_matmul_precision("highest"):
        ys, gradients = jax.jit(training(forward))(*data)
    return {
        "outputs": ys,
        "weight_gradient": gradients[0],
        "input_gradient": gradients[1],
    }


def training(forward: Callable) -> Callable:
    """``(weights, xs, cotangent) -> (ys, (weight gradients, input gradient))``, as
    torch's ``ys.backward(cotangent)``.
    """

    def train(weights, xs, cotangent):
        ys, pullback = jax.vjp(forward, weights, xs)
        return ys, pullback(cotangent)

    return train


def prepare(
    config: Config, data: Data, without: tuple[str, ...], deadline: float, tell: Tell
) -> tuple[dict, list[dict]]:
    """``(entry, mode, mapping, program)`` of all that compiles: traced one after
    another, compiled side by side.
    """
    cast = {F32: data, BF16: data.cast(BF16)} if config.kind == LSTM else {F32: data}
    made, left_out, waiting = {}, [], {}

    def leave_out(entry, reason, mode=None):
        left_out.append(
            {"config": config.name, "entry": entry.key, "mode": mode, "reason": reason}
        )

    entries = [entry for entry in entries_of(config) if entry.key not in without]
    pool = concurrent.futures.ThreadPoolExecutor(min(8, host.cores()))
    for entry in sorted(entries, key=lambda entry: entry.risky):
        if time.monotonic() > deadline:
            leave_out(entry, OVER)
            continue
        try:
            forward, mapping = entry.build(config, entry.dtype)
            if entry.runner == "torch":
                tell(f"{entry.key}: building")
                for mode, program in torch_peer.programs(
                    config, entry, cast[entry.dtype]
                ).items():
                    made[entry.key, mode] = (entry, mode, mapping, program)
                continue
            for mode in MODES:
                tell(f"{entry.key}: tracing, {mode}")
                lowered, args, traced = lower(
                    forward, mapping, mode, entry, cast[entry.dtype]
                )
                future = pool.submit(compile_one, lowered, entry)
                waiting[entry.key, mode] = (entry, mode, mapping, args, traced, future)
                if entry.risky:
                    tell(f"{entry.key}: compiling, {mode}")
                    concurrent.futures.wait(
                        [future], max(deadline - time.monotonic(), 1)
                    )
        except Exception as error:
            leave_out(entry, worded(error))
    for key, (entry, mode, mapping, args, traced, future) in waiting.items():
        tell(f"{entry.key}: compiling, {mode}")
        try:
            executable, seconds = future.result(
                timeout=max(deadline - time.monotonic(), 1)
            )
        except concurrent.futures.TimeoutError:
            leave_out(entry, f"{OVER}, while it was compiled", mode)
        except Exception as error:
            leave_out(entry, worded(error), mode)
        else:
            memory = getattr(executable.memory_analysis(), "temp_size_in_bytes", None)
            made[key] = (
                entry,
                mode,
                mapping,
                Program(
                    functools.partial(_run, executable, args), traced + seconds, memory
                ),
            )
    pool.shutdown(wait=False, cancel_futures=True)
    return made, left_out


def lower(
    forward: Callable, mapping: Callable, mode: str, entry: Entry, data: Data
) -> tuple[Any, tuple, float]:
    """The program traced, its arguments, and the seconds that took."""
    begun = time.monotonic()
    args = (mapping(data.weights), data.xs, data.cotangent)
    args, function = (
        (args[:2], forward) if mode == "forward" else (args, training(forward))
    )
    with jax.default_matmul_precision(entry.precision):
        return jax.jit(function).lower(*args), args, time.monotonic() - begun


def compile_one(lowered: Any, entry: Entry) -> tuple[Any, float]:
    begun = time.monotonic()
    return lowered.compile(compiler_options=entry.options), time.monotonic() - begun


def _run(executable: Any, args: tuple) -> Any:
    return jax.block_until_ready(executable(*args))


def parts_of(
    entry: Entry, mode: str, mapping: Callable, data: Data, result: Any
) -> dict[str, Any]:
    """What a program returned, in float32 and our layout."""
    if entry.runner == "torch":
        return torch_peer.parts(mode, result)
    if mode == "forward":
        return {"outputs": result}
    # behind ys
    weights, inputs = jax.tree.map(lambda a: a.astype(jnp.float32), result[1])
    return {
        "weight_gradient": jax.vjp(mapping, data.weights)[1](weights)[0],
        "input_gradient": inputs,
    }


@jax.jit
def _difference(a: Any, b: Any) -> Any:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(b)), 1e-30)


def difference(actual: Any, expected: Any) -> float:
    """The largest difference of any array, relative to its largest number; NaN where
    there is one.
    """
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    found = [float(_difference(a, b)) for a, b in pairs]
    return max(found, key=lambda d: (d != d, d), default=0.0)


def interleave(
    made: dict, rounds: int, deadline: float, left_out: list, config: Config, tell: Tell
) -> dict[tuple, list[float]]:
    """Seconds a call: a round takes one sample of each, in an order shuffled anew;
    no sample begins after the deadline.
    """
    # each has run once, when it was checked
    samples: dict[tuple, list[float]] = {key: [] for key in made}
    shuffle = random.Random(0).shuffle
    gc.collect()
    for _ in range(rounds):
        if time.monotonic() > deadline:
            break
        order = list(samples)
        shuffle(order)
        for key in order:
            tell(f"{made[key][0].key}: timing, {key[1]}")
            try:
                if time.monotonic() > deadline:
                    break
                samples[key].append(sample(made[key][-1].run, 0.02))
            except (
                Exception
            ) as error:  # memory that others have filled since the first run
                left_out.append(
                    {
                        "config": config.name,
                        "entry": key[0],
                        "mode": key[1],
                        "reason": worded(error),
                    }
                )
                del samples[key]
                check_alive(error)
    for key in [key for key, times in samples.items() if not times]:
        left_out.append(
            {"config": config.name, "entry": key[0], "mode": key[1], "reason": OVER}
        )
    return samples


def check_alive(error: Exception) -> None:
    """Raise `DeviceLostError` where after ``error`` not even the smallest program
    runs.
    """
    try:
        jax.block_until_ready(jnp.arange(3) + 1)
    except Exception:
        raise DeviceLostError(worded(error)) from error


def row(
    config: Config, made: tuple, times: list[float], differences: dict[str, float]
) -> dict:
    entry, mode, _, program = made
    ms = statistics(times, 1e3)
    seconds, worst = (
        ms["median"] / 1e3,
        max(differences.values(), key=lambda d: (d != d, d)),
    )
    exact = entry.precision == "highest" or "highest" in entry.name
    return {
        "config": config.name,
        "entry": entry.key,
        "dtype": entry.dtype,
        "mode": mode,
        "rounds": len(times),
        "ms": ms,
        "us_per_step": 1e6 * seconds / config.T,
        "tokens_per_second": config.B * config.T / seconds,
        "gflops": config.flops(mode) / seconds / 1e9,
        "gigabytes_per_second": config.bytes(mode, entry.dtype) / seconds / 1e9,
        "ceiling": (
            f"{'bfloat16' if entry.dtype == BF16 else 'float32' if exact else 'TF32'} "
            f"GFLOP/s"
        ),
        "compile_seconds": program.compile_seconds,
        "temporary_bytes": program.temporary_bytes,
        "relative_difference": differences,
        "same_function": worst <= TOLERANCE[entry.dtype],
    }


def worded(error: Exception) -> str:
    """The first line of an error, with its kind unless it is one of our own words."""
    line = (str(error).strip().splitlines() or [""])[0][:400]
    return (
        line if isinstance(error, SkipEntryError) else f"{type(error).__name__}: {line}"
    )


def main(argv: list[str]) -> int:
    """As the module's text says."""
    name, seconds, rounds, *rest = argv
    without = tuple(rest[rest.index("--without") + 1 :]) if "--without" in rest else ()
    quick = "quick" in rest[: len(rest) - len(without)]

    def say(what: dict) -> None:
        print(MARK + json.dumps(what), flush=True)

    host.prepare(1)
    if jax.default_backend() == "cpu" and not quick:
        say(
            {
                "refused": (
                    "there is no accelerator here, JAX computes on a CPU: --quick runs "
                    "tiny sizes on it"
                )
            }
        )
        return 2
    try:
        result = measure(
            config_named(name, quick),
            float(seconds),
            int(rounds),
            without,
            lambda what: say({"at": what}),
        )
    except DeviceLostError as error:
        print(error, file=sys.stderr)
        return LOST
    say({"result": result})
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    # a compilation that nobody waits for any more would hold the process
    os._exit(status)
