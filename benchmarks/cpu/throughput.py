"""Throughput of one recurrent layer: jaxrnn against flax, haiku, equinox, keras and
torch, interleaved in one process.

    python -m benchmarks.cpu.throughput [--quick] [--cells LSTM GRU]
        [--shapes 16,512,128 ...] [--entries jaxrnn flax ...]

Equal work: the same weights, inputs and shapes, float32; `forward` computes the
outputs, `train` also the gradients of a fixed random projection of them with respect to
weights AND input. Every answer is held against a naive scan; the relative differences
stand beside the times. Compile time is taken apart. GFLOP/s counts the matmuls of the
recurrence once (2 gates B H (H + I) a step forward, three times that for training),
also for engines that compute some of them twice; the share is of the fastest large
float32 matmul that jax reached on one device in the same run.
"""

from __future__ import annotations

import sys
from typing import Any

from ..harness import host, report
from ..harness.options import Parser, Shape, command, one_of, positive, shape
from ..harness.timing import interleave, statistics
from ..harness.workload import CELLS, MODES, Work, tolerance
from ..peers.registry import ENTRIES, Ready, engine_named, prepare_entries

GRID = {
    "LSTM": [
        "1,1024,128",
        "8,1024,64",
        "16,512,128",
        "32,256,128",
        "32,128,256",
        "64,64,512",
    ],
    "GRU": ["16,512,128", "8,1024,64"],
    "Elman": ["16,512,128", "8,1024,64"],
}
QUICK = {"LSTM": ["8,128,64"], "GRU": ["8,128,64"]}
BASELINE = "flax"
# What the picture shows; the tables have all.
PICTURED = ("jaxrnn", "jaxrnn-sharded", "torch", "haiku", "equinox", "keras", "naive")
SIZE = (11.5, 5.4)


def parse(argv: list[str] | None) -> Any:
    parser = Parser("cpu.throughput", __doc__)
    parser.add_argument(
        "--cells",
        nargs="+",
        type=one_of(CELLS, "cell"),
        metavar="CELL",
        help=", ".join(CELLS),
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        metavar="B,T,H",
        help="or B,T,I,H; default: a grid for each cell",
    )
    entries = one_of(ENTRIES, "entry", engine_named)
    parser.add_argument(
        "--entries",
        nargs="+",
        type=entries,
        metavar="ENTRY",
        help="or an engine such as 'Scan(unroll=4)'",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        help="interleaved samples of each (default: 15, quick: 3)",
    )
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (3 if args.quick else 15)
    args.entries = args.entries or list(ENTRIES)
    grid = QUICK if args.quick else GRID
    args.work = [
        Work(kind, size)
        for kind in args.cells or (CELLS if args.shapes else grid)
        for size in args.shapes or map(shape, grid.get(kind, QUICK["GRU"]))
    ]
    return args


def measure(work: Work, ready: dict[str, Ready], rounds: int) -> list[dict]:
    """Time all entries and modes of one piece of work together; a row for each."""
    runs = {
        (name, mode): program.run
        for name, entry in ready.items()
        for mode, program in entry.programs.items()
    }
    rows = []
    for (name, mode), seconds in interleave(runs, rounds).items():
        ms, entry = statistics(seconds, 1e3), ready[name]
        rows.append(
            {
                "cell": work.kind,
                "shape": Shape(*work.shape)._asdict(),
                "entry": name,
                "mode": mode,
                "ms": ms,
                "us_per_step": 1e3 * ms["median"] / work.shape.T,
                "tokens_per_second": 1e3 * work.shape.B * work.shape.T / ms["median"],
                "gflops": work.flops(mode) / ms["median"] / 1e6,
                "compile_seconds": entry.programs[mode].compile_seconds,
                "relative_difference": entry.differences,
                "same_function": max(entry.differences.values()) <= tolerance(),
                "note": entry.model.note,
            }
        )
    for row in rows:
        base = next(
            (r for r in rows if (r["entry"], r["mode"]) == (BASELINE, row["mode"])),
            None,
        )
        for key, of in (
            ("speedup_over_flax", "median"),
            ("speedup_over_flax_of_minima", "min"),
        ):
            row[key] = base["ms"][of] / row["ms"][of] if base else None
    return rows


def markdown(result: dict) -> str:
    """A table for each cell, shape and mode."""
    head = [
        "entry",
        "ms (median)",
        "quartiles",
        "min",
        "us/step",
        "tokens/s",
        "GFLOP/s",
        "of ceiling",
    ]
    head += ["x flax", "(minima)", "compile s", "difference"]
    lines = [
        f"# Throughput: {host.where(result['machine'])}",
        "",
        f"`{result['command']}`, {result['rounds']} rounds.",
    ]
    lines += [
        f"Matmul ceiling {result['ceiling']['gflops']:.0f} GFLOP/s (float32, one "
        f"device)."
    ]
    number, rows = report.number, result["rows"]
    for cell, size, mode in dict.fromkeys(
        (r["cell"], Shape(**r["shape"]), r["mode"]) for r in rows
    ):
        these = [
            r
            for r in rows
            if (r["cell"], Shape(**r["shape"]), r["mode"]) == (cell, size, mode)
        ]
        lines += [
            "",
            f"## {cell}, {size}: "
            f"{'forward' if mode == 'forward' else 'forward and backward'}",
            "",
        ]
        lines.append(report.table(head, [_cells(r, number) for r in these]))
    notes = dict.fromkeys(
        f"{r['entry']} ({r['cell']}): {r['note']}" for r in rows if r["note"]
    )
    wrong = dict.fromkeys(
        f"WARNING: {r['entry']} ({r['cell']}) computes another function"
        for r in rows
        if not r["same_function"]
    )
    times = {
        name: [r["ms"] for r in rows if r["entry"] == name]
        for name in dict.fromkeys(r["entry"] for r in rows)
    }
    tail = [
        *notes,
        *wrong,
        *report.disturbed_lines(times),
        *report.left_out_lines(result["left_out"]),
    ]
    return "\n".join(lines + ([""] + [f"- {line}" for line in tail] if tail else []))


def _cells(row: dict, number: Any) -> list[str]:
    ms = row["ms"]
    return [
        row["entry"],
        number(ms["median"]),
        f"{number(ms['q1'])} - {number(ms['q3'])}",
        number(ms["min"]),
        number(row["us_per_step"]),
        number(row["tokens_per_second"]),
        number(row["gflops"]),
        f"{100 * row['share_of_ceiling']:.0f} %",
        *(
            "-" if row[k] is None else f"{row[k]:.2f}"
            for k in ("speedup_over_flax", "speedup_over_flax_of_minima")
        ),
        number(row["compile_seconds"], 2),
        f"{max(row['relative_difference'].values()):.0e}",
    ]


def draw(result: dict, figure: Any) -> None:
    """Draw speed relative to flax: a panel for each mode, a row for each shape, and a
    mark for each library.
    """
    rows = [r for r in result["rows"] if r["speedup_over_flax"]]
    groups = list(dict.fromkeys((r["cell"], Shape(**r["shape"])) for r in rows))
    labels = [f"{cell} ({s.B}, {s.T}, {s.H})" for cell, s in groups]
    value = {
        (r["entry"], r["mode"], r["cell"], Shape(**r["shape"])): r["speedup_over_flax"]
        for r in rows
    }
    panels = figure.subplots(1, 2, sharey=True)
    for axes, mode in zip(panels, reversed(MODES), strict=True):
        series = {
            name: [value.get((name, mode, *group)) for group in groups]
            for name in PICTURED
        }
        report.dots(axes, labels, series)
        axes.set_xlabel("times as fast as flax")
        axes.set_title("Gradients" if mode == "train" else "The forward pass alone")
    panels[0].set_ylabel("cell (batch, steps, units)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=7, frameon=False)
    figure.suptitle(
        "Speed of one recurrent layer, float32: right of the line is faster than flax\n"
        f"{host.where(result['machine'])}",
        x=0.01,
        ha="left",
    )


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 0."""
    args = parse(argv)
    host.prepare(args.devices)
    result = report.content(
        "throughput",
        command("cpu.throughput", argv),
        rounds=args.rounds,
        tolerance=tolerance(),
    )
    size = 512 if args.quick else None
    result |= {"ceiling": host.ceiling(size), "rows": [], "left_out": []}
    for work in args.work:
        ready, left_out = prepare_entries(args.entries, work)
        print(
            f"{work.kind}, {work.shape}: {', '.join(ready)}",
            file=sys.stderr,
            flush=True,
        )
        result["rows"] += measure(work, ready, args.rounds)
        result["left_out"] += left_out
        result["ceiling"] = max(
            result["ceiling"], host.ceiling(size), key=lambda c: c["gflops"]
        )
    for row in result["rows"]:
        row["share_of_ceiling"] = row["gflops"] / result["ceiling"]["gflops"]
    name = report.result_name("throughput", args.out, args.quick)
    report.write(
        name, result, markdown(result), lambda figure: draw(result, figure), SIZE
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
