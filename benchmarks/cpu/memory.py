"""Memory of full backpropagation through time against the number of steps, for jaxrnn's
engines, a naive scan and flax.

    python -m benchmarks.cpu.memory [--quick]
        [--entries jaxrnn jaxrnn-checkpoint "Scan(hoist=False)" ...]
    python -m benchmarks.cpu.memory --million

`temp` is what XLA says that the compiled gradient program (weights and input, float32)
allocates beside its arguments and results (``memory_analysis().temp_size_in_bytes``);
nothing is run for it. It stands in bytes and in units of T B H floats, which are what
one stored state of every step costs. For one shape each program also runs once, in a
process of its own, and `resident` is how far the process's peak resident memory (on a
GPU: the device's peak) rose above what it held before the run, results included.
``--million`` does that, and only that, for an LSTM of 1,048,576 steps, B 1, I = H 128,
and a loss of the last state alone: full BPTT over all steps whose outputs nobody
stores.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

from jaxrnn.diagnostics.style import label_lines

from ..harness import host, report
from ..harness.options import Parser, Shape, command, one_of, positive, shape
from ..harness.peak_rss import MARK
from ..harness.workload import CELLS, Work
from ..peers.adapters import JaxModel, SkipEntryError
from ..peers.registry import ENTRIES, engine_named, find

SIZE = (12.5, 5)  # of the picture, in inches

CURVES = ((8, 64), (1, 128))  # B, H = I
STEPS = {False: (256, 512, 1024, 2048, 4096, 8192), True: (256, 1024)}  # by --quick
RESIDENT = {False: Shape(8, 8192, 64, 64), True: Shape(8, 1024, 64, 64)}
MILLION = Shape(1, 1 << 20, 128, 128)
OF_MILLION = ("jaxrnn", "Scan(save='carries')", "jaxrnn-checkpoint", "naive")
QUICK = ("jaxrnn", "jaxrnn-checkpoint", "naive", "flax")
DEFAULT = (
    "jaxrnn",
    "jaxrnn-checkpoint",
    "Scan(hoist=False)",
    "user-cell",
    "naive",
    "naive-hoisted",
    "flax",
)


def parse(argv: list[str] | None) -> Any:
    parser = Parser("cpu.memory", __doc__, devices=False)
    parser.add_argument(
        "--cell",
        type=one_of(CELLS, "cell"),
        default="LSTM",
        metavar="CELL",
        help=", ".join(CELLS),
    )
    parser.add_argument(
        "--steps", nargs="+", type=positive, metavar="T", help="default: 256 to 8192"
    )
    entries = one_of(
        [n for n in ENTRIES if n not in ("torch", "onnxruntime", "jaxrnn-sharded")],
        "entry",
        engine_named,
    )
    parser.add_argument(
        "--entries",
        nargs="+",
        type=entries,
        metavar="ENTRY",
        help="or an engine such as 'Scan(hoist=False)'",
    )
    parser.add_argument(
        "--resident",
        type=shape,
        metavar="B,T,H",
        help="shape of the runs in processes of their own",
    )
    parser.add_argument(
        "--million",
        action="store_true",
        help="T = 1,048,576 once, each entry in a process of its own",
    )
    args = parser.parse_args(argv)
    if args.million and args.resident:
        parser.error("--million has its own shape: leave --resident out")
    if args.million and set(args.entries or ()) & (
        set(ENTRIES) - {"jaxrnn", "jaxrnn-checkpoint", "naive"}
    ):
        parser.error(
            "--million takes jaxrnn, jaxrnn-checkpoint, naive and engines such as "
            "'Scan(chunk=64)'"
        )
    args.entries = args.entries or list(
        OF_MILLION if args.million else QUICK if args.quick else DEFAULT
    )
    args.steps = sorted(args.steps or STEPS[args.quick])
    args.resident = MILLION if args.million else args.resident or RESIDENT[args.quick]
    return args


def compile_all(args: Any) -> tuple[list[dict], list[dict]]:
    """`temp` of every entry and shape, from compilation alone."""
    rows, left_out = [], []
    shapes = [Shape(B, T, H, H) for B, H in CURVES for T in args.steps]
    for name in args.entries:
        for size in shapes:
            work, entry = Work(args.cell, size), find(name)
            if work.kind not in entry.cells:
                break
            try:
                rows.append(_analysis(name, work, entry.build(work)))
            except SkipEntryError as reason:
                left_out.append(
                    {"entry": name, "cell": work.kind, "reason": str(reason)}
                )
                break
            except Exception as error:
                if entry.own:
                    raise
                left_out.append(
                    {
                        "entry": name,
                        "cell": work.kind,
                        "reason": f"{type(error).__name__}: {error}",
                    }
                )
                break
        print(f"compiled: {name}", file=sys.stderr, flush=True)
    return rows, left_out


def _analysis(name: str, work: Work, model: JaxModel) -> dict:
    sizes = model.compile_for_memory(work).memory_analysis()
    B, T, _, H = work.shape
    return {
        "cell": work.kind,
        "shape": work.shape._asdict(),
        "entry": name,
        "temp_bytes": sizes.temp_size_in_bytes,
        "temp_in_TBH_floats": sizes.temp_size_in_bytes / (4 * T * B * H),
        "argument_bytes": sizes.argument_size_in_bytes,
        "output_bytes": sizes.output_size_in_bytes,
    }


def run_alone(name: str, kind: str, size: Shape, last: bool = False) -> dict:
    """The gradient of one entry, once, in a process of its own; a process that dies
    is a row with its last words.
    """
    words = [
        sys.executable,
        "-m",
        "benchmarks.harness.peak_rss",
        name,
        kind,
        ",".join(map(str, size)),
        *(["last"] if last else []),
    ]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
        check=False,
    )
    row = {"cell": kind, "shape": size._asdict(), "entry": name}
    found = [
        line.removeprefix(MARK)
        for line in done.stdout.splitlines()
        if line.startswith(MARK)
    ]
    if found:
        return row | json.loads(found[-1])
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return row | {"failed": f"exit status {done.returncode}: {last}"}


def markdown(result: dict) -> str:
    number, mb = report.number, lambda count: report.number(count / 1e6)
    lines = [
        f"# Memory: {host.where(result['machine'])}",
        "",
        f"`{result['command']}`",
    ]
    for cell, B, H in dict.fromkeys(
        (r["cell"], r["shape"]["B"], r["shape"]["H"]) for r in result["compiled"]
    ):
        rows = [
            r
            for r in result["compiled"]
            if (r["shape"]["B"], r["shape"]["H"]) == (B, H)
        ]
        steps = sorted({r["shape"]["T"] for r in rows})
        lines += [
            "",
            f"## {cell}, B {B}, I = H {H}: temporaries in MB (in T B H floats)",
            "",
        ]
        cells = {
            (
                r["entry"],
                r["shape"]["T"],
            ): f"{mb(r['temp_bytes'])} ({r['temp_in_TBH_floats']:.1f})"
            for r in rows
        }
        names = dict.fromkeys(r["entry"] for r in rows)
        lines.append(
            report.table(
                ["entry", *(f"T {T}" for T in steps)],
                [[n, *(cells[n, T] for T in steps)] for n in names],
            )
        )
    if result["resident"]:
        size = Shape(**result["resident"][0]["shape"])
        lines += [
            "",
            f"## {result['resident'][0]['cell']}, {size}: run once, each in a process "
            f"of its own",
            "",
        ]
        head = [
            "entry",
            "seconds (first run)",
            "compile s",
            "temporaries MB",
            "T B H floats",
            "peak above start MB",
        ]
        lines.append(
            report.table(
                head,
                [
                    [r["entry"], r["failed"], *["-"] * 4]
                    if "failed" in r
                    else [
                        r["entry"],
                        number(r["seconds"]),
                        number(r["compile_seconds"], 2),
                        mb(r["temp_bytes"]),
                        f"{r['temp_in_TBH_floats']:.2f}",
                        mb(r["resident_bytes"]),
                    ]
                    for r in result["resident"]
                ],
            )
        )
    return "\n".join(
        [
            *lines,
            "",
            *(f"- {line}" for line in report.left_out_lines(result["left_out"])),
        ]
    ).rstrip()


def draw(result: dict, figure: Any) -> None:
    """Temporaries against T, a panel for each batch size."""
    groups = list(
        dict.fromkeys((r["shape"]["B"], r["shape"]["H"]) for r in result["compiled"])
    )
    # A user's cell needs what the built-in one needs: its line would hide that.
    names = [r["entry"] for r in result["compiled"] if r["entry"] != "user-cell"]
    palette = report.colors(names)
    styles = {"ours": "o-", "baseline": "s--", "theirs": "^:"}
    for axes, (B, H) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True
    ):
        here = [
            r
            for r in result["compiled"]
            if (r["shape"]["B"], r["shape"]["H"]) == (B, H)
        ]
        for name, color in palette.items():
            points = [
                (r["shape"]["T"], r["temp_bytes"] / 1e6)
                for r in here
                if r["entry"] == name
            ]
            axes.loglog(
                *zip(*points, strict=True),
                styles[report.family(name)],
                color=color,
                label=report.said(name),
            )
        steps = sorted({r["shape"]["T"] for r in here})
        axes.set_xlim(steps[0] * 0.9, steps[-1] * 1.1)
        axes.set_xticks(steps, [f"{T:,}" for T in steps], minor=False)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("steps T")
        axes.set_ylabel("temporaries (MB)")
        axes.set_title(f"{result['compiled'][0]['cell']}, batch {B}, {H} units")
        axes.grid(alpha=0.3)
        label_lines(axes)
    figure.suptitle(
        "Memory of a gradient by full backpropagation through time, float32\n"
        f"{host.where(result['machine'])}",
        x=0.01,
        ha="left",
    )


def draw_resident(result: dict, figure: Any) -> None:
    """Bars of the memory that one run took and of its seconds."""
    rows = [r for r in result["resident"] if "failed" not in r][::-1]
    size = Shape(**result["resident"][0]["shape"])
    palette = report.colors(r["entry"] for r in rows[::-1])
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, scale, form, what in (
        (left, "temp_bytes", 1e9, "{:.2f}", "temporaries (GB)"),
        (right, "seconds", 1, "{:.1f}", "seconds, one run"),
    ):
        values = [r[key] / scale for r in rows]
        bars = axes.barh(
            [report.said(r["entry"]) for r in rows],
            values,
            0.7,
            color=[palette[r["entry"]] for r in rows],
        )
        axes.bar_label(bars, [form.format(v) for v in values], padding=3)
        axes.margins(x=0.15)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(what)
    figure.suptitle(
        f"A gradient through {size.T:,} steps at once: "
        f"{rows[0]['cell'] if rows else ''}, batch {size.B}, {size.H} units\n"
        f"{host.where(result['machine'])}",
        x=0.01,
        ha="left",
    )


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 0."""
    args = parse(argv)
    host.prepare(1)
    rows, left_out = ([], []) if args.million else compile_all(args)
    resident = []
    for name in args.entries:
        if args.cell in find(name).cells and name not in {
            item["entry"] for item in left_out
        }:
            print(
                f"in a process of its own: {name}, {args.resident}",
                file=sys.stderr,
                flush=True,
            )
            resident.append(run_alone(name, args.cell, args.resident, args.million))
    result = report.content(
        "memory",
        command("cpu.memory", argv),
        compiled=rows,
        resident=resident,
        left_out=left_out,
    )
    name = report.result_name(
        "memory_million" if args.million else "memory", args.out, args.quick
    )
    picture = draw_resident if args.million else draw
    report.write(
        name,
        result,
        markdown(result),
        lambda figure: picture(result, figure),
        SIZE,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
