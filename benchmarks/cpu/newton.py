"""Newton's method in time: iterations against the leading Lyapunov exponent, chunks,
and times beside the loop.

    python -m benchmarks.cpu.newton [--quick] [--rounds N] [--parts PART ...]

Four parts. *exponent*: iterations until the change is 1e-12 in float64, all T 512
steps at once, for cells whose recurrent weights or forget bias grow; with the whole
Jacobian and with its blocks by units. *chunks*: an Elman network far from and near
the edge of chaos, in chunks of 16 and 64 and all at once; the work is the iterations
a step. *initial*: iterations at initialization to a change of 1e-4, float32. *time*:
forward pass and gradient beside `Scan`, float32, interleaved in one process.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn import GRU, LSTM, DiagonalGRU, DiagonalLSTM, Elman, Newton, Scan
from jaxrnn.diagnostics import newton_report

from ..harness import host, report
from ..harness.options import Parser, command, one_of, positive
from ..harness.timing import compiled, interleave, statistics
from .linear import difference

PARTS = ("exponent", "chunks", "initial", "time")
D = 4  # features of the inputs
KEY = jax.random.key


@dataclasses.dataclass(frozen=True)
class Growing:
    """A cell, and a parameter that is changed: multiplied, or something added to a
    part of it.
    """

    cell: Any
    leaf: str
    values: tuple[float, ...]
    bias: bool = False

    def params(self, value: float) -> Any:
        params = self.cell.init(KEY(0), D)
        if self.bias:
            H = self.cell.hidden_size
            params[self.leaf] = params[self.leaf].at[H : 2 * H].add(value)
        else:
            params[self.leaf] = value * params[self.leaf]
        return params


def growing(size: int, quick: bool) -> list[Growing]:
    kernel, vector = "recurrent_kernel", "recurrent_vector"
    if quick:
        return [Growing(Elman(size), kernel, (0.6, 1.6))]
    return [
        Growing(Elman(size), kernel, (0.3, 0.6, 0.9, 1.2, 1.6, 2.0)),
        Growing(GRU(size), kernel, (1.0, 2.0, 4.0)),
        Growing(LSTM(size), "bias", (0.0, 2.0, 4.0), bias=True),
        Growing(DiagonalGRU(size), vector, (1.0, 4.0)),
        Growing(DiagonalLSTM(size), vector, (1.0, 4.0)),
    ]


def inputs(steps: int, batch: tuple[int, ...] = ()) -> Any:
    return jax.random.normal(KEY(100), (steps, *batch, D))


def measured(cell: Any, params: Any, xs: Any, engine: Newton) -> dict:
    """What Newton's method does, and how far its outputs are from the loop's."""
    (layer,) = newton_report(cell, params, xs, key=KEY(5), engine=engine).layers
    unchecked = dataclasses.replace(engine, fallback="nan")
    ys, want = (
        jax.jit(lambda e=e: jaxrnn.unroll(cell, params, xs, engine=e)[1])()
        for e in (unchecked, Scan())
    )
    return {
        "structure": layer.structure,
        "exponent": layer.exponent,
        "iterations": float(layer.iterations.mean()),
        "most_iterations": int(layer.iterations.max()),
        "converged": bool(layer.converged.all()),
        "amplification": layer.amplification,
        "difference": float(jnp.abs(ys - want).max()),
    }


def measure_exponent(quick: bool) -> list[dict]:
    steps, size, rows = (64, 8, []) if quick else (512, 16, [])
    with jax.enable_x64(True):
        xs = inputs(steps)
        for each in growing(size, quick):
            for value in each.values:
                for jacobian in ("auto", "units"):
                    engine = Newton(
                        None, jacobian, max_iterations=steps, tolerance=1e-12
                    )
                    row = measured(each.cell, each.params(value), xs, engine)
                    is_units = row["structure"].startswith("units")
                    rows.append(
                        {
                            "cell": str(each.cell),
                            "changed": f"{each.leaf} {'+' if each.bias else 'x'}",
                            "value": value,
                            **row,
                        }
                    )
                    if jacobian == "auto" and is_units:
                        break  # the same again
    return rows


def measure_chunks(quick: bool) -> list[dict]:
    steps, cell, rows = (64 if quick else 512), Elman(8), []
    with jax.enable_x64(True):
        xs = inputs(steps)
        for gain in (1.3, 2.2):
            params = Growing(cell, "recurrent_kernel", ()).params(gain)
            for chunk in (16, 64, None):
                engine = Newton(chunk, max_iterations=chunk or steps, tolerance=1e-12)
                row = measured(cell, params, xs, engine)
                rows.append({"gain": gain, "chunk": chunk or steps, **row})
    return rows


def measure_initial(quick: bool) -> list[dict]:
    rows, xs = [], inputs(128 if quick else 1024, (4,))
    for cell in (DiagonalGRU(32), DiagonalLSTM(32)):
        params = cell.init(KEY(0), D)
        row = measured(cell, params, xs, Newton(None, tolerance=1e-4))
        rows.append({"cell": str(cell), "steps": len(xs), **row})
    return rows


def measure_time(quick: bool, rounds: int) -> list[dict]:
    cells: list[tuple[Any, int]] = [(DiagonalGRU(1), 10_000), (GRU(8), 2_000)]
    if quick:
        cells = [(DiagonalGRU(1), 200)]
    else:
        cells.append((DiagonalLSTM(64), 2_000))
    engines = {
        "Scan()": Scan(),
        "Newton()": Newton(tolerance=1e-5),
        "Newton(64)": Newton(64, tolerance=1e-5),
    }
    rows = []
    for cell, steps in cells:
        params, xs = cell.init(KEY(0), D), inputs(steps, (1,))
        for mode, program in (("forward", forward), ("gradient", gradient)):
            made = {
                name: compiled(program(cell, engine), params, xs)
                for name, engine in engines.items()
            }
            want = made["Scan()"].run()
            off = {name: difference(each.run(), want) for name, each in made.items()}
            runs: dict = {name: each.run for name, each in made.items()}
            rows += [
                {
                    "cell": str(cell),
                    "steps": steps,
                    "mode": mode,
                    "entry": name,
                    "ms": statistics(seconds, 1e3),
                    "compile_seconds": made[str(name)].compile_seconds,
                    "relative_difference": off[str(name)],
                }
                for name, seconds in interleave(runs, rounds).items()
            ]
    return rows


def forward(cell: Any, engine: Any) -> Callable:
    return lambda params, xs: jaxrnn.unroll(cell, params, xs, engine=engine)[1]


def gradient(cell: Any, engine: Any) -> Callable:
    def loss(params, xs):
        return (forward(cell, engine)(params, xs) ** 2).sum()

    return jax.grad(loss, (0, 1))


HEADS = {
    "exponent": (
        "cell changed value structure exponent iterations converged amplification "
        "difference"
    ),
    "chunks": "gain chunk exponent iterations most_iterations converged difference",
    "initial": "cell steps structure exponent iterations difference",
    "time": "cell steps mode entry ms compile_seconds relative_difference",
}


def markdown(result: dict) -> str:
    """A table for each part."""
    lines = [f"# Newton's method in time: {host.where(result['machine'])}", ""]
    lines.append(f"`{result['command']}`, {result['rounds']} rounds.")
    for part, head in HEADS.items():
        rows = [row for row in result["rows"] if row["part"] == part]
        if rows:
            body = [[shown(row[name]) for name in head.split()] for row in rows]
            names = [name.replace("_", " ") for name in head.split()]
            lines += ["", f"## {part}", "", report.table(names, body)]
    times = [row["ms"] for row in result["rows"] if row["part"] == "time"]
    return "\n".join(
        [*lines, "", *(f"- {x}" for x in report.disturbed_lines({"time": times}))]
    )


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return report.number(value["median"])
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        small = value != 0 and abs(value) < 1e-3
        return f"{value:.0e}" if small else report.number(value)
    return str(value)


def parse(argv: list[str] | None) -> Any:
    parser = Parser("cpu.newton", __doc__ or "", devices=False)
    parser.add_argument(
        "--parts",
        nargs="*",
        type=one_of(PARTS, "part"),
        default=PARTS,
        metavar="PART",
        help=f"of {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        help="interleaved samples of each (default: 7, quick: 3)",
    )
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (3 if args.quick else 7)
    return args


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 0."""
    args = parse(argv)
    host.prepare(1)
    result = report.content(
        "newton", command("cpu.newton", argv), rounds=args.rounds, rows=[]
    )
    measures: dict[str, Callable[[], list[dict]]] = {
        "exponent": lambda: measure_exponent(args.quick),
        "chunks": lambda: measure_chunks(args.quick),
        "initial": lambda: measure_initial(args.quick),
        "time": lambda: measure_time(args.quick, args.rounds),
    }
    for part in args.parts:
        print(part, file=sys.stderr, flush=True)
        result["rows"] += [{"part": part, **row} for row in measures[part]()]
    name = report.result_name("newton", args.out, args.quick)
    report.write(name, result, markdown(result), None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
