"""What one step costs where no chip is at hand: ``python -m
benchmarks.accelerator.compiled [--chips H100 v5e ...] [--cells LSTM ...] [--quick]``.

Layers (T 512, B 16, as many features as units) are compiled for accelerators that are
described to their makers' compilers: without a gradient, and with it, where the first
loop goes forwards and records, and the second backwards. For GPUs the kernels of each
loop are counted, by kind, and divided by the steps; kernels that XLA starts beside
others are counted apart. A step of such a loop does little but launch, at two to three
microseconds each. For TPUs libtpu says how many cycles it expects of each operation;
their sum over the whole program, matmuls outside of the loops included, is divided by
T. Beside the default engine stand JAX's own `lax.scan` and other libraries. Compiled,
not run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn.cells import DiagonalGRU, DiagonalLSTM
from jaxrnn.explaining.chips import CHIPS, compile_for
from jaxrnn.explaining.compiled_program import CompiledProgram, Loop, temporaries_of

from ..harness.host import where
from ..harness.options import Parser, Shape, command, one_of
from ..harness.report import content, table, write
from ..harness.save_run import RESULTS
from ..harness.workload import CELLS as CLASSICAL
from ..harness.workload import Work
from ..peers.adapters import SkipEntryError
from ..peers.registry import ENTRIES, UserLSTM
from .launches import check_compiler

T, B = 512, 16
CELLS: dict[str, Callable[[int], Any]] = {
    "LSTM": jaxrnn.LSTM,
    "a user's LSTM": UserLSTM,
    "GRU": jaxrnn.GRU,
    "Elman": jaxrnn.Elman,
    "SLSTM": jaxrnn.SLSTM,
    "DiagonalGRU": DiagonalGRU,
    "DiagonalLSTM": DiagonalLSTM,
    "LRU": jaxrnn.LRU,
}
ENGINES = {
    "jaxrnn default": None,
    "lax.scan": jaxrnn.Scan(save="everything"),
    "Scan()": jaxrnn.Scan(),
    "Fused()": jaxrnn.Fused(),
}
FLAX = {"LSTM": "OptimizedLSTMCell", "GRU": "GRUCell", "Elman": "SimpleCell"}
PEERS = ("haiku", "equinox", "keras")  # in float32 only
DEFAULT_ENTRIES = ("jaxrnn default", "lax.scan", "flax")
DTYPES = ("float32", "bfloat16")
Forward = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled: a layer by one entry for one chip."""

    chip: str
    cell: str
    units: int
    dtype: str
    entry: str

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((T, B, self.units), self.dtype)


def layer_of(case: Case) -> tuple[Forward, Any, Any] | None:
    """Return ``(function of params and inputs, shapes of both)``, or None where an
    entry has no such cell or dtype.

    Raises:
        SkipEntryError: if a library is not installed.
    """
    if case.entry in ENGINES:
        cell, engine = CELLS[case.cell](case.units), ENGINES[case.entry]
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), case.units))

        def forward(params, xs):
            return jaxrnn.unroll(cell, params, xs, engine=engine)[1]

        return forward, cast(params, case.dtype), case.inputs
    if case.cell not in CLASSICAL:
        return None
    if case.entry == "flax":
        return *flax_layer(case), case.inputs
    if case.dtype != "float32":
        return None
    work = Work(case.cell, Shape(B, T, case.units, case.units))
    model: Any = ENTRIES[case.entry].build(work)
    reference = work.cell if model.reference is None else model.reference
    steps, batch, features = case.inputs.shape
    lead = (batch, steps) if model.batch_first else (steps, batch)
    inputs = jax.ShapeDtypeStruct((*lead, features), case.dtype)
    weights = jax.eval_shape(model.mapping, work.weights_of(reference))
    return model.forward, weights, inputs


def flax_layer(case: Case) -> tuple[Forward, Any]:
    """Return flax's layer in the case's dtype."""
    import flax.linen as nn

    cell = getattr(nn, FLAX[case.cell])(case.units, dtype=jnp.dtype(case.dtype))
    layer = nn.RNN(cell, time_major=True)
    # Its initializers make float32 only, as does its first carry.
    key, x = jax.random.key(0), jax.ShapeDtypeStruct((B, case.units), "float32")
    carry = jax.eval_shape(lambda: cell.initialize_carry(key, x.shape))
    plain = nn.RNN(getattr(nn, FLAX[case.cell])(case.units), time_major=True)
    params = jax.eval_shape(
        plain.init, key, jax.ShapeDtypeStruct(case.inputs.shape, "float32")
    )

    def forward(params, xs):
        first = jax.tree.map(lambda a: jnp.zeros(a.shape, case.dtype), carry)
        return layer.apply(params, xs, initial_carry=first)

    return forward, cast(params, case.dtype)


def cast(params: Any, dtype: str) -> Any:
    """Return the shapes of real params in another dtype."""

    def of_leaf(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        real = jnp.issubdtype(a.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(a.shape, dtype if real else a.dtype)

    return jax.tree.map(of_leaf, params)


def measure(case: Case) -> Iterator[dict[str, Any]]:
    """Yield the rows of a case: without a gradient, and with it."""
    layer = layer_of(case)
    if layer is None:
        return
    forward, params, inputs = layer

    def gradient(params, xs):
        def loss(params, xs):
            return jnp.square(forward(params, xs).astype("float32")).sum()

        return jax.value_and_grad(loss, (0, 1))(params, xs)

    for mode, program in (("forward", forward), ("gradient", gradient)):
        made = compile_for(case.chip, program, params, inputs)
        read = CompiledProgram(made.as_text())
        found = read.loops()
        alone, beside = read.launches()
        yield dataclasses.asdict(case) | {
            "mode": mode,
            "loops": [dataclasses.asdict(loop) for loop in found],
            "step": step_of(found),
            "launches": alone,
            "overlapped": beside,
            "kilobytes_a_step": round(read.bytes_moved() / T / 1e3, 1),
            "cycles_a_step": round(read.cycles() / T) or None,
            "temporaries_mb": (temporaries_of(made) or 0) / 1e6,
        }


def step_of(found: list[Loop], steps: int = T) -> str:
    """Return the kernels a step of each loop: ``alone (+beside)``."""

    def a_step(launches: int, loop: Loop) -> str:
        return f"{launches * loop.trips / steps:.3g}"

    each = [
        f"{a_step(loop.alone, loop)} (+{a_step(loop.beside, loop)})" for loop in found
    ]
    return ", ".join(each) or "no loop"


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    columns = {
        "chip": "chip",
        "cell": "cell",
        "units": "units",
        "dtype": "dtype",
        "entry": "entry",
        "mode": "mode",
        "step": "kernels a step",
        "launches": "launches",
        "overlapped": "overlapped",
        "kilobytes_a_step": "kB a step",
        "cycles_a_step": "cycles a step",
        "temporaries_mb": "temporaries, MB",
    }
    rows = [[_written(row[key]) for key in columns] for row in result["rows"]]
    lines = ["# One step, compiled for described chips, not run", ""]
    lines.append(f"Compiled on {where(result['machine'])}; T {T}, B {B}.")
    return "\n".join([*lines, "", table(list(columns.values()), rows)])


def _written(value: Any) -> str:
    """Return a value as the table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def parser() -> Parser:
    found = Parser("accelerator.compiled", __doc__ or "", devices=False)

    def several(flag: str, names: Any, default: Any, what: str) -> None:
        found.add_argument(
            f"--{flag}",
            nargs="+",
            metavar=what.upper().replace(" ", "_"),
            type=one_of(names, what),
            default=list(default),
            help=f"of {', '.join(names)} ({' '.join(default)})",
        )

    several("chips", CHIPS, ("H100",), "chip")
    several("cells", CELLS, CELLS, "cell")
    several("dtypes", DTYPES, ("float32",), "dtype")
    several("entries", (*ENGINES, "flax", *PEERS), DEFAULT_ENTRIES, "entry")
    found.add_argument(
        "--units", nargs="+", type=int, default=[128], help="units of a layer (128)"
    )
    found.add_argument(
        "--add",
        action="store_true",
        help="keep the rows of the result file that are not compiled again",
    )
    return found


def main(argv: list[str] | None = None) -> int:
    """Compile, count, print, write; 0."""
    args = (options := parser()).parse_args(argv)
    rows, left_out = [], []
    for chip in args.chips:
        check_compiler(options, chip)
        cases = (
            Case(chip, cell, units, dtype, entry)
            for cell in (["Elman"] if args.quick else args.cells)
            for units in args.units
            for dtype in args.dtypes
            for entry in args.entries
        )
        for case in cases:
            try:
                for row in measure(case):
                    rows.append(row)
                    print(told(row), flush=True)
            except (SkipEntryError, TypeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                left_out.append(dataclasses.asdict(case) | {"reason": reason})
                print(f"left out: {case}: {reason}", flush=True)
    name = args.out or f"steps_compiled_jax{jax.__version__}"
    if args.add:
        rows, left_out = added(name, rows, left_out)
    result = content(
        "compiled", command("accelerator.compiled", argv), rows=rows, left_out=left_out
    )
    if args.quick and args.out is None:
        print(markdown(result))
        return 0
    write(name, result, markdown(result), None)
    return 0


def added(name: str, rows: list[dict], left_out: list[dict]) -> tuple[list, list]:
    """Return the rows of the result file and new ones, in the order of the options."""
    before = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    new = {_case(row) for row in (*rows, *left_out)}

    def joined(kind: str, more: list[dict]) -> list[dict]:
        kept = [row for row in before[kind] if _case(row) not in new]
        return sorted((*kept, *more), key=_place)

    return joined("rows", rows), joined("left_out", left_out)


def _case(row: dict[str, Any]) -> tuple:
    return tuple(row[field.name] for field in dataclasses.fields(Case))


def _place(row: dict[str, Any]) -> tuple:
    """Return where a row stands in the table."""
    entries = (*ENGINES, "flax", *PEERS)
    return (
        CHIPS.index(row["chip"]),
        list(CELLS).index(row["cell"]),
        row["units"],
        DTYPES.index(row["dtype"]),
        entries.index(row["entry"]),
    )


def told(row: dict[str, Any]) -> str:
    """Return a line for the screen."""
    cycles = f", {row['cycles_a_step']:,} cycles a step" if row["cycles_a_step"] else ""
    return (
        f"{row['chip']}, {row['cell']}({row['units']}), {row['dtype']}, "
        f"{row['entry']}, {row['mode']}: {row['step']}{cycles}"
    )


if __name__ == "__main__":
    sys.exit(main())
