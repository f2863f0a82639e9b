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

import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jax

from jaxrnn.matrix import block

from ..cpu import matrix
from ..harness.host import where
from ..harness.options import Parser, command, one_of
from ..harness.report import content, table, write
from .kernels import device_of, needed

# What the compiled program does without a kernel of its own.
NO_KERNEL = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "while",
    "call",
    "conditional",
    "iota",
}
OPERATION = re.compile(r"[\])}]\s+([a-z][\w\-]*)\(")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def launches(text: str) -> tuple[int, int]:
    """Count the launches of a compiled program, from its text.

    Returns:
        Those one after another, and those that run beside them.

    Raises:
        ValueError: if the iterations of a loop are not known.
    """
    computations, entry = computations_of(text)

    @functools.cache
    def count(name: str) -> tuple[int, int]:
        alone, beside = zip(*map(of_line, computations[name]), strict=True)
        return sum(alone), sum(beside)

    def of_line(line: str) -> tuple[int, int]:
        found = OPERATION.search(line)
        operation = found[1] if found else ""
        if operation == "while":
            trips = TRIPS.search(line)
            if trips is None:
                raise ValueError(
                    f"a loop of the program does not say how often it runs: {line[:99]}"
                )
            alone, beside = count(called(line, "body"))
            return int(trips[1]) * alone, int(trips[1]) * beside
        if operation == "call":
            return count(called(line, "to_apply"))
        if operation.endswith("-start"):
            return 0, 1
        return operation not in NO_KERNEL and not operation.endswith("-done"), 0

    return count(entry)


def computations_of(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the operations of each computation of a compiled program, and its entry.

    An operation is what stands behind the name of its result.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        begins = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if begins:
            lines = computations[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        elif " = " in line:
            lines.append(line.split(" = ", 1)[1])
    return computations, entry


def called(line: str, role: str) -> str:
    """Return the computation that an operation calls."""
    found = re.search(rf"{role}=%?([\w.\-]+)", line)
    if found is None:
        raise ValueError(f"an operation names no {role}: {line[:99]}")
    return found[1]


def measure(rule: str, entry: str, run: Callable, steps: int, at: Any) -> dict:
    """Compile the gradient of a rule for the described device, and count."""
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
    inputs = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at), inputs
    )
    traced = jax.jit(matrix.gradient(run)).trace(*inputs)
    compiled = traced.lower(lowering_platforms=("cuda",)).compile()
    alone, beside = launches(compiled.as_text())
    return {
        "rule": rule,
        "entry": entry,
        "launches": alone,
        "overlapped": beside,
        "temporaries_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
    }


def rows_of(rule: str, steps: int, chunks: tuple[int, ...], at: Any) -> list[dict]:
    """Rows of a rule: steps, chunks one after another, and blocks of chunks."""
    rows = [measure(rule, matrix.STEPS, matrix.by_steps, steps, at)]
    chosen = block.BLOCK_BYTES
    for chunk in chunks:
        for most in (1, chosen):
            block.BLOCK_BYTES = most
            S = jax.ShapeDtypeStruct(
                (matrix.B, matrix.N, matrix.K, matrix.K), "float32"
            )
            together = block.chunks_in_block(steps // chunk, chunk, S)
            entry = f"chunks of {chunk}, {together} together"
            rows.append(measure(rule, entry, matrix.by_chunks(chunk), steps, at))
            print(rows[-1], flush=True)
    block.BLOCK_BYTES = chosen
    return rows


def on_h100(parser: Parser) -> Any:
    """Return the sharding of a described H100, or end where no compiler is."""
    # The plugin would look for the libraries of a GPU, of which compiling needs none.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.config.update("jax_platforms", "cpu")
    try:
        device = device_of("H100")
    except Exception as error:
        parser.exit(
            2,
            f"nothing was compiled: the compiler is not here ({needed('H100')}): "
            f"{str(error).splitlines()[0]}\n",
        )
    return jax.sharding.SingleDeviceSharding(device)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("accelerator.launches", __doc__ or "", devices=False)
    parser.add_argument(
        "--rules",
        nargs="+",
        metavar="RULE",
        type=one_of(matrix.RULES, "rule"),
        default=["gdn", "mamba2", "gla"],
        help=f"of {', '.join(matrix.RULES)} (gdn mamba2 gla)",
    )
    args = parser.parse_args(argv)
    at = on_h100(parser)
    steps, chunks = (256, (32,)) if args.quick else (matrix.T, matrix.CHUNKS)
    rows = [row for rule in args.rules for row in rows_of(rule, steps, chunks, at)]
    name = args.out or f"launches_compiled_jax{jax.__version__}"
    if args.quick and not args.out:
        return 0
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
