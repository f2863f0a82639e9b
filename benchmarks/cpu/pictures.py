"""Gradients of convolutional cells, in and beside `lax.scan`, interleaved in one
process.

    python -m benchmarks.cpu.pictures [--quick] [--rounds N]

Float32: the gradient of the squared outputs with respect to the parameters and the
inputs, by the default engine and by `lax.scan` over the cell's own step. XLA:CPU has a
fast convolution for one layout. It converts to it at the top of a program, and not in a
loop, where `lax.scan` computes the gradients of its kernels. The largest relative
difference from the gradients of `lax.scan` stands beside the times.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn import cells

from ..harness import host, report
from ..harness.options import Parser, command, positive
from ..harness.timing import compiled
from .matrix import FIGURES, figures, rows_of

# The cell, the axes of a picture, T, B, channels in, channels of the state, the kernel.
SIZES = (
    ("ConvLSTM", (16, 16), 20, 8, 3, 16, 3),
    ("ConvLSTM", (32, 32), 10, 4, 1, 32, 3),
    ("ConvGRU", (32, 32), 10, 4, 8, 16, 5),
    ("ConvGRU", (32,), 50, 16, 4, 16, 5),
)
QUICK = (("ConvGRU", (8,), 4, 2, 2, 4, 3),)
OURS, PLAIN = "jaxrnn", "lax.scan"


def measure(size: tuple, rounds: int) -> list[dict]:
    """Rows of one cell: by the default engine, and by `lax.scan`."""
    name, places, steps, batch, channels, hidden, kernel = size
    cell = getattr(cells, name)(hidden, spatial_shape=places, kernel_size=kernel)
    params = cell.init(jax.random.key(0), channels)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, *places, channels))

    def by_engine(params: Any, xs: Any) -> Any:
        return jaxrnn.unroll(cell, params, xs)[1]

    def by_scan(params: Any, xs: Any) -> Any:
        def step(carry: Any, x: Any) -> tuple:
            carry = cell.step(params, carry, cell.project(params, x))
            return carry, cell.output(params, carry, x)

        return jax.lax.scan(step, cell.initial_carry(params, (batch,)), xs)[1]

    def gradient(run: Any) -> Any:
        return jax.grad(lambda *args: jnp.square(run(*args)).sum(), (0, 1))

    made = {
        OURS: compiled(gradient(by_engine), params, xs),
        PLAIN: compiled(gradient(by_scan), params, xs),
    }
    sizes = {
        "spatial_shape": list(places),
        "T": steps,
        "B": batch,
        "channels": channels,
        "hidden_size": hidden,
        "kernel_size": kernel,
    }
    rows = rows_of("pictures", name, made, made[PLAIN].run(), rounds)
    return [sizes | row for row in rows]


def markdown(result: dict) -> str:
    """One table of all rows."""
    head = ["cell", "pictures", "T", "B", "C", "H", "K", "entry", *FIGURES]
    sizes = ("T", "B", "channels", "hidden_size", "kernel_size")
    table = [
        [
            row["name"],
            " x ".join(map(str, row["spatial_shape"])),
            *(str(row[size]) for size in sizes),
            row["entry"],
            *figures(row),
        ]
        for row in result["rows"]
    ]
    return "\n".join(
        [
            f"# Convolutional cells: {host.where(result['machine'])}",
            "",
            f"`{result['command']}`, {result['rounds']} rounds. Gradients, float32.",
            "",
            report.table(head, table),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run, print, write."""
    parser = Parser("cpu.pictures", __doc__ or "", devices=False)
    parser.add_argument(
        "--rounds",
        type=positive,
        help="interleaved samples of each (default: 11, quick: 3)",
    )
    args = parser.parse_args(argv)
    host.prepare(1)
    rounds = args.rounds or (3 if args.quick else 11)
    result = report.content(
        "pictures", command("cpu.pictures", argv), rounds=rounds, rows=[]
    )
    for size in QUICK if args.quick else SIZES:
        print(*size, file=sys.stderr, flush=True)
        result["rows"] += measure(size, rounds)
    out = report.result_name("pictures", args.out, args.quick)
    report.write(out, result, markdown(result), None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
