"""Latency of streaming, and inference over whole sequences: jaxrnn beside torch, ONNX
Runtime and flax, forward only.

    python -m benchmarks.cpu.streaming [--quick] [--cells LSTM GRU]
        [--hidden 32 128 256]

*One step*: B 1, I = H; the state goes in and comes out at every call, and every call
waits for its result. Median and 99th percentile are over single steps. `jaxrnn` is the
jitted streaming call, `jaxrnn-loop` the same call inside one compiled loop of many
steps, so that the difference is what dispatching a step costs. Between them stands what
may make a call cheaper: compiled ahead of time, the carry donated, the weights as
constants of the program, and several steps in a call. *Whole sequences* are
forward passes of an LSTM, B 8, T 1000, I = H 64, interleaved as in
`benchmarks.cpu.throughput`. Outputs are held against a naive scan, to 1e-5.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..harness import host, report
from ..harness.options import Parser, Shape, command, one_of, positive, shape
from ..harness.timing import interleave, statistics
from ..harness.workload import Work, difference, tolerance
from ..peers.adapters import SkipEntryError
from ..peers.registry import prepare_entries
from ..peers.streaming_adapters import STREAMS, Stream

CELLS = ("LSTM", "GRU")
WHOLE = (
    "jaxrnn",
    "jaxrnn-sharded",
    "Scan(hoist=False)",
    "naive",
    "torch",
    "onnxruntime",
    "flax",
)
TOLERANCE = 1e-5
SIZE = (13, 3.6)  # of the picture, in inches


def parse(argv: list[str] | None) -> Any:
    parser = Parser("cpu.streaming", __doc__)
    parser.add_argument(
        "--cells",
        nargs="+",
        type=one_of(CELLS, "cell"),
        default=list(CELLS),
        metavar="CELL",
    )
    parser.add_argument(
        "--hidden", nargs="+", type=positive, metavar="H", help="default: 32 128 256"
    )
    parser.add_argument(
        "--shapes",
        nargs="*",
        type=shape,
        metavar="B,T,H",
        help="of whole sequences (default: 8,1000,64)",
    )
    text = (
        "run JAX's programs in the calling thread "
        "(jax_cpu_enable_async_dispatch=False): a lower latency on CPUs"
    )
    parser.add_argument("--inline", action="store_true", help=text)
    parser.add_argument(
        "--steps",
        type=positive,
        help="streaming steps in a round (default: 300, quick: 50)",
    )
    parser.add_argument(
        "--rounds", type=positive, help="interleaved rounds (default: 15, quick: 3)"
    )
    args = parser.parse_args(argv)
    args.hidden = args.hidden or ([32, 128] if args.quick else [32, 128, 256])
    args.steps = args.steps or (50 if args.quick else 300)
    args.rounds = args.rounds or (3 if args.quick else 15)
    args.shapes = [shape("8,1000,64")] if args.shapes is None else args.shapes
    return args


def stream_all(work: Work, rounds: int) -> tuple[list[dict], list[dict]]:
    """The latency of a step for every way to stream ``work``'s sequence, a round of
    steps of each in turn.
    """
    streams: dict[str, Stream] = {}
    left_out = []
    for name, make in STREAMS.items():
        try:
            streams[name] = make(work)
        except SkipEntryError as reason:
            left_out.append({"entry": name, "cell": work.kind, "reason": str(reason)})
        except Exception as error:
            if name.startswith("jaxrnn"):
                raise
            left_out.append(
                {
                    "entry": name,
                    "cell": work.kind,
                    "reason": f"{type(error).__name__}: {error}",
                }
            )
    expected = work.answer(work.cell)["outputs"][:, 0]
    latencies: dict[str, list[float]] = {name: [] for name in streams}
    runs = {
        name: _recorder(stream, work.xs[:, 0], latencies[name])
        for name, stream in streams.items()
    }
    outputs = {name: run() for name, run in runs.items()}
    interleave(runs, rounds, minimum=0.0)
    rows = []
    for name, stream in streams.items():
        # three passes warm up
        warm = latencies[name][3 * stream.records(work.shape.T) :]
        us = statistics(warm, 1e6) | {"p99": float(np.percentile(warm, 99)) * 1e6}
        rows.append(_row(work, name, us, difference(outputs[name], expected)))
    return rows, left_out


def _recorder(
    stream: Stream, xs: np.ndarray, latencies: list[float]
) -> Callable[[], np.ndarray]:
    """A run over ``xs (T, I)`` that appends the seconds of each step to
    ``latencies``, and returns the outputs (T, H).
    """

    def run():
        if stream.whole is not None:  # every step inside one call: its mean
            start = time.perf_counter()
            ys = stream.whole()
            latencies.append((time.perf_counter() - start) / len(xs))
            return np.asarray(ys)
        state, ys = stream.start, []
        for x in stream.inputs:
            start = time.perf_counter()
            state, y = stream.step(state, x)
            latencies.append(time.perf_counter() - start)
            ys.append(y)
        return np.stack(
            [np.asarray(y.cpu() if hasattr(y, "cpu") else y).reshape(-1) for y in ys]
        )

    return run


def whole_all(work: Work, rounds: int) -> tuple[list[dict], list[dict]]:
    """Microseconds a step of forward passes over whole sequences."""
    ready, left_out = prepare_entries(WHOLE, work, modes=("forward",))
    seconds = interleave(
        {name: entry.programs["forward"].run for name, entry in ready.items()}, rounds
    )
    us = {
        name: statistics(values, 1e6 / work.shape.T) for name, values in seconds.items()
    }
    return [
        _row(work, name, us[name], ready[name].differences["outputs"]) for name in ready
    ], left_out


def _row(work: Work, name: str, us: dict, found: float) -> dict:
    agrees = found <= max(
        TOLERANCE, tolerance() if jax.default_backend() != "cpu" else 0
    )
    size = Shape(*work.shape)._asdict()
    return {
        "cell": work.kind,
        "shape": size,
        "entry": name,
        "us_per_step": us,
        "relative_difference": found,
        "agrees": agrees,
    }


def markdown(result: dict) -> str:
    lines = [
        f"# Streaming: {host.where(result['machine'])}",
        "",
        f"`{result['command']}`, {result['rounds']} rounds.",
    ]
    for part, title in (
        ("streaming", "one streaming step"),
        ("whole", "whole sequences, forward"),
    ):
        for cell, size in dict.fromkeys(
            (r["cell"], Shape(**r["shape"])) for r in result[part]
        ):
            rows = [
                r
                for r in result[part]
                if (r["cell"], Shape(**r["shape"])) == (cell, size)
            ]
            lines += ["", f"## {cell}, {size}: {title}", ""]
            head = [
                "entry",
                "us/step (median)",
                "quartiles",
                "min",
                "99th percentile",
                "difference",
            ]
            lines.append(report.table(head, [_cells(r) for r in rows]))
    rows = result["streaming"] + result["whole"]
    wrong = dict.fromkeys(
        f"WARNING: {r['entry']} ({r['cell']}) differs" for r in rows if not r["agrees"]
    )
    times = {
        r["entry"]: [
            q["us_per_step"] for q in result["whole"] if q["entry"] == r["entry"]
        ]
        for r in result["whole"]
    }
    tail = [
        *wrong,
        *report.disturbed_lines(times),
        *report.left_out_lines(result["left_out"]),
    ]
    return "\n".join([*lines, "", *(f"- {line}" for line in tail)]).rstrip()


def _cells(row: dict) -> list[str]:
    us, number = row["us_per_step"], report.number
    quartiles = f"{number(us['q1'])} - {number(us['q3'])}"
    difference_found = f"{row['relative_difference']:.0e}"
    return [
        row["entry"],
        number(us["median"]),
        quartiles,
        number(us["min"]),
        number(us.get("p99")),
        difference_found,
    ]


def draw(result: dict, figure: Any) -> None:
    """Microseconds a step, a panel for each cell and size: single steps of a stream
    first, then whole sequences.
    """
    panels = [
        (part, cell, Shape(**sizes))
        for part in ("streaming", "whole")
        for cell, sizes in {
            (r["cell"], tuple(r["shape"].items())): (r["cell"], r["shape"])
            for r in result[part]
        }.values()
    ]
    palette = report.colors(
        r["entry"] for part in ("streaming", "whole") for r in result[part]
    )
    for axes, (part, cell, size) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        rows = [
            r
            for r in result[part][::-1]
            if (r["cell"], Shape(**r["shape"])) == (cell, size)
        ]
        values = [r["us_per_step"]["median"] for r in rows]
        bars = axes.barh(
            [report.said(r["entry"]) for r in rows],
            values,
            0.7,
            color=[palette[r["entry"]] for r in rows],
        )
        axes.bar_label(bars, [f"{v:.1f}" for v in values], padding=3)
        axes.margins(x=0.2)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("microseconds a step")
        what = "a stream, step by step" if part == "streaming" else "whole sequences"
        axes.set_title(f"{cell}, {size.H} units, batch {size.B}\n{what}", fontsize=10)
    figure.suptitle(
        f"Time of a step of inference, float32; less is better\n"
        f"{host.where(result['machine'])}",
        x=0.01,
        ha="left",
    )


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 0."""
    args = parse(argv)
    host.prepare(args.devices)
    if args.inline:
        # read when JAX starts
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    result = report.content(
        "streaming",
        command("cpu.streaming", argv),
        rounds=args.rounds,
        tolerance=TOLERANCE,
    )
    result |= {
        "inline_dispatch": args.inline,
        "streaming": [],
        "whole": [],
        "left_out": [],
    }
    works = [
        (Work(kind, Shape(1, args.steps, H, H)), "streaming", stream_all)
        for kind in args.cells
        for H in args.hidden
    ]
    works += [(Work("LSTM", size), "whole", whole_all) for size in args.shapes]
    for work, part, measure in works:
        print(f"{part}: {work.kind}, {work.shape}", file=sys.stderr, flush=True)
        rows, left_out = measure(work, args.rounds)
        result[part] += rows
        result["left_out"] += left_out
    name = report.result_name(
        "streaming_inline" if args.inline else "streaming", args.out, args.quick
    )
    report.write(
        name, result, markdown(result), lambda figure: draw(result, figure), SIZE
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
