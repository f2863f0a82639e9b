"""Splitting over devices: what one device sends, computes and keeps, read from compiled
programs for 1, 2, 4 and 8 devices of this computer; the time of two devices beside that
of one; and a prediction up to 4,096 chips.

    python -m benchmarks.scaling [--quick] [--no-times]

The counts are exact and hold on any device that XLA partitions for in the same way. The
times are those of two cores, one a device: the products of one device use one core.
What is predicted is arithmetic on an assumed chip (`benchmarks.scaling.prediction`);
nothing of it was measured. `Across`, which splits time, is counted where jaxrnn has it.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from jaxrnn.diagnostics.style import label_lines

from ..harness import host, report
from ..harness.options import Parser, command
from . import prediction
from .worker import MARK

DEVICES = (1, 2, 4, 8)
SIZE = (13, 5)  # of the picture, in inches
ROOT = pathlib.Path(__file__).parents[2]


def parse(argv: list[str] | None) -> Any:
    """Read the command line."""
    parser = Parser("scaling", __doc__, devices=False)
    parser.add_argument(
        "--no-times", action="store_true", help="count and predict, and time nothing"
    )
    return parser.parse_args(argv)


def rows_of(what: str, devices: int, quick: bool) -> list[dict[str, Any]]:
    """Return the rows of a worker with so many devices, each of one core."""
    print(f"{what}: {devices} devices", file=sys.stderr, flush=True)
    flags = (
        f"--xla_force_host_platform_device_count={devices} "
        f"--xla_cpu_multi_thread_eigen=false"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.scaling.worker", what, str(devices)),
            *(["--quick"] if quick else []),
        ],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return [
        json.loads(line.removeprefix(MARK))
        for line in done.stdout.splitlines()
        if line.startswith(MARK)
    ]


def markdown(result: dict[str, Any]) -> str:
    """Return the tables."""
    number = report.number
    lines = [f"# Scaling: {host.where(result['machine'])}", "", result["command"], ""]
    head = ["cell", "split", "devices", "collectives", "in loops", "bytes"]
    head += ["gradient bytes", "Mflop a device", "temporaries MB a device"]
    lines += [
        "## Counted: one device's part of a gradient",
        "",
        report.table(
            head,
            [
                [
                    *(row["cell"], row["split"], row["devices"]),
                    ", ".join(f"{n} {k}" for k, n in row["collectives"].items())
                    or "none",
                    *(row["looped"], f"{row['bytes']:,}", f"{row['gradient_bytes']:,}"),
                    number(row["flops"] / 1e6),
                    number(row["temp_bytes"] / 1e6),
                ]
                for row in result["counted"]
            ],
        ),
    ]
    if result["timed"]:
        lines += [
            "",
            "## Measured: two devices on two cores, each with the rows of one alone",
            "",
            report.table(
                ["cell", "ms of one", "ms of two", "efficiency (quartiles)"],
                [
                    [
                        row["cell"],
                        number(row["ms_one"]["median"]),
                        number(row["ms_all"]["median"]),
                        f"{row['efficiency']['median']:.2f} "
                        f"({row['efficiency']['q1']:.2f} to "
                        f"{row['efficiency']['q3']:.2f})",
                    ]
                    for row in result["timed"]
                ],
            ),
        ]
    shown = prediction.SHOWN
    by_what: dict[str, dict[int, float]] = {}
    for row in result["predicted"]:
        by_what.setdefault(row["what"], {})[row["chips"]] = row["efficiency"]
    lines += [
        "",
        "## Predicted, not measured: efficiency by the number of chips",
        "",
        report.table(
            ["what", *map(str, shown)],
            [
                [what, *(f"{found[chips]:.2f}" for chips in shown)]
                for what, found in by_what.items()
            ],
        ),
        "",
        "Assumed: "
        + ", ".join(
            f"{name.replace('_', ' ')} {value:g}"
            for name, value in result["assumed"].items()
        )
        + ".",
    ]
    return "\n".join(lines)


def draw(result: dict[str, Any], figure: Any) -> None:
    """Draw temporaries by devices, and the predicted curves."""
    left, right = figure.subplots(1, 2)
    cells = dict.fromkeys((row["cell"], row["split"]) for row in result["counted"])
    for cell, split in cells:
        points = [
            (row["devices"], row["temp_bytes"] / 1e6)
            for row in result["counted"]
            if (row["cell"], row["split"]) == (cell, split)
        ]
        left.loglog(*zip(*points, strict=True), "o-", base=2, label=f"{cell}, {split}")
    left.set_xticks(DEVICES, map(str, DEVICES))
    left.yaxis.set_major_formatter("{x:g}")
    left.set_xlabel("devices, the batch is the same")
    left.set_ylabel("temporaries of one device (MB)")
    left.set_title("Counted: 64 steps, 64 units, batch 16 in all")
    left.set_xlim(0.9, 1.1 * DEVICES[-1])
    for what in dict.fromkeys(row["what"] for row in result["predicted"]):
        points = [
            (row["chips"], row["efficiency"])
            for row in result["predicted"]
            if row["what"] == what
        ]
        right.semilogx(*zip(*points, strict=True), base=2, label=what)
    right.set_ylim(0, 1.05)
    right.set_xticks([1, 8, 64, 512, 4096], ["1", "8", "64", "512", "4,096"])
    right.set_xlabel("chips that are assumed")
    right.set_ylabel("efficiency")
    right.set_title("Predicted, and not measured: 1,024 units and more")
    right.text(
        *(0.5, 0.5, "predicted"),
        transform=right.transAxes,
        ha="center",
        va="center",
        fontsize=44,
        rotation=25,
        alpha=0.13,
    )
    right.set_xlim(1, 4096)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        label_lines(axes)
    figure.suptitle(
        f"Splitting a batch, or time, over devices\n{host.where(result['machine'])}",
        x=0.01,
        ha="left",
    )


def main(argv: list[str] | None = None) -> int:
    """Count, measure, predict and write; 0."""
    args = parse(argv)
    host.prepare(1)
    devices = DEVICES[:2] if args.quick else DEVICES
    counted = [row for n in devices for row in rows_of("counts", n, args.quick)]
    large = rows_of("large", devices[-1], args.quick)
    measured = [] if args.no_times else rows_of("times", 2, args.quick)
    result = report.content(
        "scaling",
        command("scaling", argv),
        counted=counted,
        large=large,
        timed=measured,
        predicted=prediction.predict(large),
        assumed=prediction.ASSUMED,
    )
    name = report.result_name("scaling", args.out, args.quick)
    report.write(
        name, result, markdown(result), lambda figure: draw(result, figure), SIZE
    )
    return 0
