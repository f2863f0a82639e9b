"""The parts of `benchmarks.accelerator.first_light` that measure something themselves,
each in a process of its own: ``python -m benchmarks.accelerator.parts PART [quick]``.

A part tells its rows and the device (`benchmarks.harness.processes`). What cannot run
on the device is a row with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn.cells import DiagonalGRU, MinGRU

from ..cpu import matrix
from ..cpu.linear import difference
from ..harness import host, processes
from ..harness.timing import compiled, interleave, statistics
from .measure import measure_ceilings, worded

Row = dict[str, Any]


def device(quick: bool) -> list[Row]:
    """What there is, whether it computes, and its ceilings."""
    found = jax.devices()[0]
    size = 128 if quick else 2048
    a = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    expected = a.astype(np.float64) @ a
    rows: list[Row] = [{"what": "kind", "value": found.device_kind}]
    for precision in ("default", "highest"):
        product = jnp.matmul(
            a, a, precision=None if precision == "default" else "highest"
        )
        off = np.abs(np.asarray(product) - expected).max() / np.abs(expected).max()
        rows.append({"what": f"error of a matmul, {precision}", "value": float(off)})
    ceilings = measure_ceilings(*((128, 4) if quick else (8192, 1024)))
    rows += [{"what": name, "value": value} for name, value in ceilings.items()]
    rows += [
        {"what": f"memory: {name}", "value": value}
        for name, value in (found.memory_stats() or {}).items()
        if name in ("bytes_limit", "bytes_in_use")
    ]
    return rows


def engines_for(cell: Any) -> dict[str, Any]:
    """The engines that are held against float64, by name."""
    engines: dict[str, Any] = {
        "lax.scan": jaxrnn.Scan(save="everything"),
        "default": None,
        "Fused()": jaxrnn.Fused(),
    }
    if isinstance(cell, jaxrnn.LSTM):
        engines["CuDNN('highest')"] = jaxrnn.CuDNN("highest")
    if isinstance(cell, MinGRU):
        engines["Associative()"] = jaxrnn.Associative()
    return engines


def gradients(cell: Any, engine: Any) -> Callable:
    """Outputs, and the gradient of their random projection."""

    def run(params, xs, weights):
        def loss(params, xs):
            ys = jaxrnn.unroll(cell, params, xs, engine=engine)[1]
            return (ys * weights).sum(), ys

        (_, ys), found = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)
        return ys, found

    return run


def correct(quick: bool) -> list[Row]:
    """Errors of each engine against float64 steps, relative to the largest number."""
    shapes = ((2, 9, 16),) if quick else ((16, 128, 64), (3, 37, 128))
    cells = (jaxrnn.LSTM, jaxrnn.GRU, jaxrnn.Elman, MinGRU)
    return [
        row
        for B, T, H in shapes
        for cell in (cells[:1] if quick else cells)
        for dtype in ("float32", "bfloat16")
        for row in errors(cell(H), B, T, H, dtype)
    ]


def errors(cell: Any, B: int, T: int, H: int, dtype: str) -> Iterator[Row]:
    """Rows of one cell, all engines."""
    params = cell.init(jax.random.key(0), H)
    keys = jax.random.split(jax.random.key(1))
    xs, weights = (jax.random.normal(key, (T, B, H)) for key in keys)
    given = jax.tree.map(lambda a: a.astype(dtype), (params, xs, weights))
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda a: a.astype(jnp.float64), given)
        steps = gradients(cell, jaxrnn.Scan(save="everything"))
        expected = jax.tree.map(np.asarray, jax.jit(steps)(*exact))
    for name, engine in engines_for(cell).items():
        row: Row = {"cell": str(cell), "B": B, "T": T, "dtype": dtype, "engine": name}
        try:
            with jax.default_matmul_precision("highest"):
                found = jax.jit(gradients(cell, engine))(*given)
            values, slopes = map(relative, found, expected)
            yield row | {"values": values, "gradients": slopes, "reason": ""}
        except Exception as error:
            yield row | {"values": None, "gradients": None, "reason": worded(error)}


def relative(found: Any, expected: Any) -> float:
    """The largest difference of two trees, each leaf beside its largest number."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(
        float(
            np.abs(np.asarray(a, np.float64) - e).max() / max(np.abs(e).max(), 1e-300)
        )
        for a, e in pairs
    )


def memory(quick: bool) -> list[Row]:
    """Bytes that a gradient takes: those that the compiler says, and the device's."""
    H, B = (16, 2) if quick else (256, 64)
    cell, rows = jaxrnn.LSTM(H), []
    params = cell.init(jax.random.key(0), H)
    for T in (32,) if quick else (1024, 4096):
        xs = jnp.zeros((T, B, H))
        for name, engine in {
            "lax.scan": jaxrnn.Scan(save="everything"),
            "default": None,
            "Scan(save='carries')": jaxrnn.Scan(save="carries"),
            "Checkpoint()": jaxrnn.Checkpoint(),
        }.items():
            program = compiled(gradients(cell, engine), params, xs, xs)
            program.run()
            stats = jax.devices()[0].memory_stats() or {}
            rows.append(
                {
                    "engine": name,
                    "T": T,
                    "temporary_bytes": program.temporary_bytes,
                    "peak_bytes_so_far": stats.get("peak_bytes_in_use"),
                }
            )
    return rows


def matrix_states(quick: bool) -> list[Row]:
    """A gated delta rule by steps and in chunks, value and gradient."""
    steps, rounds = (64, 2) if quick else (matrix.T, 5)
    shape = (matrix.B, matrix.N, matrix.K, matrix.K)
    weights = matrix.draw(jax.random.key(1), steps, *shape[:-1])
    args = (matrix.terms_of("gdn", steps), jnp.zeros(shape), weights)
    sizes = (32,) if quick else (32, 64, 128)
    entries = {matrix.STEPS: matrix.by_steps}
    entries |= {f"chunks of {size}": matrix.by_chunks(size) for size in sizes}
    made = {
        name: compiled(matrix.gradient(run), *args) for name, run in entries.items()
    }
    return timed(made, made[matrix.STEPS].run(), rounds)


def newton(quick: bool) -> list[Row]:
    """The loop, one kernel, and Newton's method, forwards: what a step costs."""
    rows: list[Row] = []
    sizes = ((DiagonalGRU(1), 1, 256),)
    if not quick:
        sizes = (
            (jaxrnn.GRU(1), 16, 10_000),
            (DiagonalGRU(8), 16, 10_000),
            (DiagonalGRU(1024), 8, 4_096),
        )
    for cell, B, T in sizes:
        params = cell.init(jax.random.key(0), 4)
        xs = jax.random.normal(jax.random.key(1), (T, B, 4))
        made, engines = (
            {},
            {
                "Scan()": jaxrnn.Scan(),
                "Fused()": jaxrnn.Fused(),
                "Newton()": jaxrnn.Newton(tolerance=1e-5),
                "Newton(None)": jaxrnn.Newton(None, tolerance=1e-5),
            },
        )
        named = {"cell": str(cell), "B": B, "T": T}
        for name, engine in engines.items():

            def forward(params, xs, engine=engine, cell=cell):
                return jaxrnn.unroll(cell, params, xs, engine=engine)[1]

            try:
                made[name] = compiled(forward, params, xs)
                made[name].run()
            except Exception as error:
                made.pop(name, None)
                rows.append(named | {"entry": name, "reason": worded(error)})
        rows += [
            named | row for row in timed(made, made["Scan()"].run(), 2 if quick else 7)
        ]
    return rows


def timed(made: dict, expected: Any, rounds: int) -> list[Row]:
    """Rows of programs that ran interleaved."""
    off = {name: difference(each.run(), expected) for name, each in made.items()}
    runs: dict = {name: each.run for name, each in made.items()}
    return [
        {
            "entry": name,
            "ms": statistics(seconds, 1e3),
            "temporary_bytes": made[name].temporary_bytes,
            "compile_seconds": made[name].compile_seconds,
            "relative_difference": off[str(name)],
            "reason": "",
        }
        for name, seconds in interleave(runs, rounds).items()
    ]


PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "device": device,
    "correct": correct,
    "memory": memory,
    "matrix": matrix_states,
    "newton": newton,
}


def main(words: list[str]) -> int:
    """Run one part and print its rows; 0."""
    name, quick = words[0], "quick" in words[1:]
    rows = PARTS[name](quick)
    processes.tell({"rows": rows, "machine": host.describe()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
