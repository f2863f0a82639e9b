"""Kernel launches and memory of matrix states on an H100, no chip at hand: ``python -m
benchmarks.accelerator.launches [--rules gdn gla ...] [--quick]``.

XLA compiles the gradient of a recurrence on a matrix state (T 2048, B 4, four heads of
64 x 64, its terms given) for a GPU that is described to it, by `lax.scan` over steps
and by chunks of several sizes, one after another or prepared side by side. What is
counted is the compiled program: a launch is a fusion, a library call, a copy or another
operation of the GPU, times the iterations of the loops around it; those that XLA starts
beside others are counted apart. Compiled, not run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import jax

from jaxrnn.explaining.chips import MissingCompilerError, compile_for, place_on
from jaxrnn.explaining.compiled_program import CompiledProgram, temporaries_of
from jaxrnn.matrix import block

from ..cpu import matrix
from ..harness.host import where
from ..harness.options import Parser, command, one_of
from ..harness.report import RESULTS, content, table, write

CHIP = "H100"
RULES = ("gdn", "mamba2", "gla", "kda", "rwkv7", "delta")


def measure(rule: str, entry: str, run: Callable, steps: int) -> dict:
    """Compile the gradient of a rule for the described chip, and count."""
    jax.clear_caches()
    shape = (matrix.B, matrix.N, matrix.K, matrix.K)
    key = jax.random.key(1)
    inputs = jax.eval_shape(
        lambda: (
            matrix.terms_of(rule, steps),
            matrix.draw(key, *shape),
            matrix.draw(key, steps, matrix.B, matrix.N, matrix.K),
        )
    )
    compiled = compile_for(CHIP, matrix.gradient(run), *inputs)
    alone, beside = CompiledProgram(compiled.as_text()).launches()
    return {
        "rule": rule,
        "entry": entry,
        "launches": alone,
        "overlapped": beside,
        "temporaries_mb": temporaries_of(compiled) / 1e6,
    }


def rows_of(rule: str, steps: int, chunks: tuple[int, ...]) -> list[dict]:
    """Rows of a rule: steps, chunks one after another, and blocks of chunks."""
    rows = [measure(rule, matrix.STEPS, matrix.by_steps, steps)]
    chosen = block.BLOCK_BYTES
    for chunk in chunks:
        for most in (1, chosen):
            block.BLOCK_BYTES = most
            S = jax.ShapeDtypeStruct(
                (matrix.B, matrix.N, matrix.K, matrix.K), "float32"
            )
            together = block.chunks_in_block(steps // chunk, chunk, S)
            entry = f"chunks of {chunk}, {together} together"
            rows.append(measure(rule, entry, matrix.by_chunks(chunk), steps))
            print(rows[-1], flush=True)
    block.BLOCK_BYTES = chosen
    return rows


def check_compiler(parser: Parser, chip: str) -> None:
    """End where the compiler of a described chip is not."""
    # Or JAX would look for the chips.
    jax.config.update("jax_platforms", "cpu")
    try:
        place_on(chip)
    except (MissingCompilerError, ValueError) as error:
        parser.exit(2, f"nothing was compiled: {error}\n")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("accelerator.launches", __doc__ or "", devices=False)
    parser.add_argument(
        "--rules",
        nargs="+",
        metavar="RULE",
        type=one_of(matrix.RULES, "rule"),
        default=list(RULES[:-1]),
        help=f"of {', '.join(matrix.RULES)} ({' '.join(RULES[:-1])})",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep the rows of an earlier result that are not counted now",
    )
    args = parser.parse_args(argv)
    check_compiler(parser, CHIP)
    steps, chunks = (256, (32,)) if args.quick else (matrix.T, matrix.CHUNKS)
    rows = [row for rule in args.rules for row in rows_of(rule, steps, chunks)]
    name = args.out or f"launches_compiled_jax{jax.__version__}"
    if args.quick and not args.out:
        return 0
    earlier = RESULTS / f"{name}.json"
    if args.add and earlier.exists():
        known = json.loads(earlier.read_text(encoding="utf-8"))["rows"]
        rows += [row for row in known if row["rule"] not in args.rules]
        rows.sort(key=lambda row: RULES.index(row["rule"]))
    result = content("launches", command("accelerator.launches", argv), rows=rows)
    lines = [
        [
            r["rule"],
            r["entry"],
            f"{r['launches']:,}",
            f"{r['overlapped']:,}",
            f"{r['temporaries_mb']:.0f}",
        ]
        for r in rows
    ]
    head = ["rule", "entry", "launches", "overlapped", "temporaries, MB"]
    text = table(head, lines)
    title = "# Matrix states compiled for a described H100, not run"
    host = f"Compiled on {where(result['machine'])}, {steps:,} steps."
    write(name, result, f"{title}\n\n{host}\n\n{text}", None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
