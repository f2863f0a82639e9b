"""Kernels a step of recurrent loops on an H100, no chip at hand: ``python -m
benchmarks.accelerator.compiled [--cells LSTM GRU ...] [--quick]``.

XLA compiles layers (T 512, B 16, 128 features and units, float32) for a GPU that is
described to it: without a gradient, and with it, where the first loop goes forwards and
records, and the second backwards. What is counted is one iteration of each loop, by
kind; kernels that XLA starts beside others are counted apart. A step of such a loop
does little but launch, at two to three microseconds each. Beside the default engine
stand JAX's own `lax.scan` and flax's layers. Compiled, not run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

import jaxrnn
from jaxrnn.cells import DiagonalGRU, DiagonalLSTM

from ..harness.host import where
from ..harness.options import Parser, command, one_of
from ..harness.report import content, table, write
from ..peers.registry import UserLSTM
from .launches import (
    NO_KERNEL,
    OPERATION,
    TRIPS,
    called,
    computations_of,
    launches,
    on_h100,
)

T, B, H = 512, 16, 128
CELLS: dict[str, Callable[[int], Any]] = {
    "LSTM": jaxrnn.LSTM,
    "a user's LSTM": UserLSTM,
    "GRU": jaxrnn.GRU,
    "Elman": jaxrnn.Elman,
    "SLSTM": jaxrnn.SLSTM,
    "DiagonalGRU": DiagonalGRU,
    "DiagonalLSTM": DiagonalLSTM,
}
FLAX = {"LSTM": "OptimizedLSTMCell", "GRU": "GRUCell", "Elman": "SimpleCell"}
Forward = Callable[[Any, Any], Any]


def entries(name: str) -> Iterator[tuple[str, Forward, Any]]:
    """Who takes part: ``(entry, function of params and inputs, shapes of params)``."""
    cell = CELLS[name](H)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), H))
    for entry, engine in (
        ("jaxrnn default", None),
        ("lax.scan", jaxrnn.Scan(save="everything")),
    ):

        def forward(params, xs, engine=engine):
            return jaxrnn.unroll(cell, params, xs, engine=engine)[1]

        yield entry, forward, params
    if name in FLAX:
        import flax.linen as nn

        layer = nn.RNN(getattr(nn, FLAX[name])(H), time_major=True)
        xs = jax.ShapeDtypeStruct((T, B, H), "float32")
        yield (
            f"flax {FLAX[name]}",
            layer.apply,
            jax.eval_shape(layer.init, jax.random.key(0), xs),
        )


def loops(text: str) -> list[dict[str, Any]]:
    """Count one iteration of every loop of a compiled program, from its text."""
    computations, _ = computations_of(text)
    found = []
    for line in (line for lines in computations.values() for line in lines):
        if re.search(r"\bwhile\(", line):
            trips = TRIPS.search(line)
            kinds = [kind_of(each) for each in computations[called(line, "body")]]
            found.append(
                {
                    "trips": int(trips[1]) if trips else None,
                    "alone": sum(kind not in ("", "beside") for kind in kinds),
                    "beside": kinds.count("beside"),
                    "kinds": {k: kinds.count(k) for k in sorted({*kinds} - {""})},
                }
            )
    return found


def kind_of(line: str) -> str:
    """Return what an operation of the compiled program launches; "" for nothing."""
    operation = OPERATION.search(line)
    name = operation[1] if operation else ""
    if name in NO_KERNEL or name.endswith("-done"):
        return ""
    if name.endswith("-start"):
        return "beside"
    if name == "custom-call" or "gemm" in line.split("(")[0] or "kCustom" in line:
        return "matmul"
    return "copy" if name == "copy" else "arithmetic"


def measure(name: str, at: Any) -> Iterator[dict[str, Any]]:
    """Rows of one cell."""
    xs = jax.ShapeDtypeStruct((T, B, H), "float32", sharding=at)
    for entry, forward, params in entries(name):
        params = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at), params
        )

        def gradient(params, xs, forward=forward):
            def loss(params, xs):
                return (forward(params, xs) ** 2).sum()

            return jax.value_and_grad(loss, (0, 1))(params, xs)

        for mode, program in (("forward", forward), ("gradient", gradient)):
            traced = jax.jit(program).trace(params, xs)
            made = traced.lower(lowering_platforms=("cuda",)).compile()
            text = made.as_text()
            alone, beside = launches(text)
            found = loops(text)
            yield {
                "cell": name,
                "entry": entry,
                "mode": mode,
                "loops": found,
                "step": step_of(found),
                "launches": alone,
                "overlapped": beside,
                "temporaries_mb": made.memory_analysis().temp_size_in_bytes / 1e6,
            }


def step_of(found: list[dict[str, Any]]) -> str:
    """Return the kernels a step of each loop: ``alone (+beside)``."""
    each = [f"{loop['alone']} (+{loop['beside']})" for loop in found]
    return ", ".join(each) or "no loop"


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    head = ["cell", "entry", "mode", "kernels a step", "launches", "overlapped", "MB"]
    rows = [
        [
            row["cell"],
            row["entry"],
            row["mode"],
            row["step"],
            f"{row['launches']:,}",
            f"{row['overlapped']:,}",
            f"{row['temporaries_mb']:.1f}",
        ]
        for row in result["rows"]
    ]
    lines = ["# Kernels a step, compiled for a described H100, not run", ""]
    lines.append(f"Compiled on {where(result['machine'])}; T {T}, B {B}, H {H}.")
    return "\n".join([*lines, "", table(head, rows)])


def main(argv: list[str] | None = None) -> int:
    """Compile, count, print, write; 0."""
    parser = Parser("accelerator.compiled", __doc__ or "", devices=False)
    parser.add_argument(
        "--cells",
        nargs="+",
        metavar="CELL",
        type=one_of(CELLS, "cell"),
        default=list(CELLS),
        help=f"of {', '.join(CELLS)} (default: all; --quick: Elman)",
    )
    args = parser.parse_args(argv)
    at = on_h100(parser)
    rows = []
    for name in ["Elman"] if args.quick else args.cells:
        for row in measure(name, at):
            rows.append(row)
            print(f"{name}, {row['entry']}, {row['mode']}: {row['step']}", flush=True)
    result = content("compiled", command("accelerator.compiled", argv), rows=rows)
    name = args.out or f"steps_compiled_jax{jax.__version__}"
    if args.quick and args.out is None:
        print(markdown(result))
        return 0
    write(name, result, markdown(result), None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
