"""What `benchmarks.accelerator` found, as tables and a picture; what others
published stands beside, marked as quoted.
"""

from __future__ import annotations

from typing import Any

from ..harness import host, report
from ..harness.workload import MODES
from .measure import REFERENCE, TOLERANCE
from .workload import QUOTED, Config

MODE = {"forward": "forward", "train": "forward and backward"}
HEAD = [
    "entry",
    "ms (median)",
    "quartiles",
    "min",
    "us/step",
    "tokens/s",
    "of matmul",
    "of copy",
    "x lax.scan",
]
HEAD += ["temporaries, MB", "compile s", "difference"]


def markdown(result: dict) -> str:
    """A table for each configuration and mode, then what was left out."""
    where = host.where(result["machine"]) if result["machine"] else "nothing measured"
    lines = [f"# On the accelerator: {where}", "", f"`{result['command']}`"]
    if result["machine"] and result["machine"]["backend"] == "cpu":
        lines += [
            "",
            "**On a CPU, with tiny sizes: this shows that the program runs, and "
            "nothing about an accelerator.**",
        ]
    if result["ceilings"]:
        lines += [
            "",
            "Ceilings of the same run: "
            + ", ".join(
                f"{k} {report.number(v)}" for k, v in result["ceilings"].items()
            ),
        ]
    lines += [
        "",
        f"Differences are from {REFERENCE}; rows in italics are quoted, not measured "
        f"here.",
    ]
    for values in result["configs"]:
        config = Config(**values)
        for mode in MODES:
            rows = [
                r
                for r in result["rows"]
                if (r["config"], r["mode"]) == (config.name, mode)
            ]
            quoted = [
                q
                for q in result["quoted"]
                if (q["config"], q["mode"]) == (config.name, mode)
            ]
            if rows or quoted:
                lines += ["", f"## {config.name} ({config}): {MODE[mode]}", ""]
                lines.append(
                    report.table(
                        HEAD,
                        [
                            *map(_cells, rows),
                            *(_quoted_cells(q, config) for q in quoted),
                        ],
                    )
                )
    return "\n".join([*lines, "", *(f"- {line}" for line in tail(result))])


def tail(result: dict) -> list[str]:
    """Sources, warnings and everything that is not in the tables, with its reason."""
    lines = [
        f"quoted: {q['entry']}, {q['config']}, {MODE[q['mode']]}: {q['ms']} ms "
        f"({q['source']}; {q['note']})"
        for q in result["quoted"]
    ]
    lines += [
        f"WARNING: {r['entry']} ({r['config']}, {MODE[r['mode']]}) is "
        f"{max(r['relative_difference'].values()):.0e} from the "
        f"reference, more than {TOLERANCE[r['dtype']]}: another function, or precision "
        f"lost"
        for r in result["rows"]
        if not r["same_function"]
    ]
    times = {
        name: [r["ms"] for r in result["rows"] if r["entry"] == name]
        for name in {r["entry"] for r in result["rows"]}
    }
    return (
        lines
        + sorted(report.disturbed_lines(times))
        + [left_out_line(item) for item in result["left_out"]]
    )


def left_out_line(item: dict) -> str:
    mode = f", {MODE[item['mode']]}" if item.get("mode") else ""
    return f"left out: {item['entry']} ({item['config']}{mode}): {item['reason']}"


def _cells(row: dict) -> list[str]:
    number, ms = report.number, row["ms"]

    def share(value):
        return "-" if value is None else f"{100 * value:.0f} %"

    times, memory = row["times_as_fast_as_lax_scan"], row["temporary_bytes"]
    return [
        row["entry"],
        number(ms["median"]),
        f"{number(ms['q1'])} - {number(ms['q3'])}",
        number(ms["min"]),
        number(row["us_per_step"]),
        number(row["tokens_per_second"]),
        share(row["share_of_matmul"]),
        share(row["share_of_copy"]),
        number(times),
        number(None if memory is None else memory / 1e6),
        number(row["compile_seconds"]),
        f"{max(row['relative_difference'].values()):.0e}",
    ]


def _quoted_cells(quote: dict, config: Config) -> list[str]:
    number, ms = report.number, quote["ms"]
    per_step, tokens = 1e3 * ms / config.T, 1e3 * config.B * config.T / ms
    cells = [
        f"{quote['entry']} (quoted)",
        number(ms),
        "-",
        "-",
        number(per_step),
        number(tokens),
    ]
    return [f"*{cell}*" for cell in cells] + ["-"] * (len(HEAD) - len(cells))


def draw(result: dict, figure: Any) -> None:
    """us a step: a row of panels for each configuration that has numbers, a panel
    for each mode; what is quoted is hatched.
    """
    configs = _pictured(result)
    grid = figure.subplots(len(configs), len(MODES), squeeze=False)
    for config, panels in zip(configs, grid, strict=True):
        for axes, mode in zip(panels, MODES, strict=True):
            rows = [
                r
                for r in result["rows"]
                if (r["config"], r["mode"]) == (config.name, mode)
            ]
            quoted = [
                q
                for q in result["quoted"]
                if (q["config"], q["mode"]) == (config.name, mode)
            ]
            bars = [
                (r["entry"], r["us_per_step"], _color(r["entry"]), None) for r in rows
            ]
            bars += [
                (f"{q['entry']} (quoted)", 1e3 * q["ms"] / config.T, "white", "//")
                for q in quoted
            ]
            for place, (_, value, color, hatch) in enumerate(bars):
                bar = axes.barh(
                    place,
                    value,
                    0.8,
                    color=color,
                    hatch=hatch,
                    edgecolor="black" if hatch else color,
                )
                axes.bar_label(bar, [report.number(value)], fontsize=7, padding=2)
            axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=7)
            axes.invert_yaxis()
            axes.margins(x=0.12)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(f"{config.name} ({config}): {MODE[mode]}", fontsize=9)
            axes.set_xlabel("us per step", fontsize=8)
    figure.suptitle(
        f"On the accelerator, less is better\n{host.where(result['machine'])}"
    )


def _pictured(result: dict) -> list[Config]:
    names = {r["config"] for r in result["rows"]}
    return [Config(**values) for values in result["configs"] if values["name"] in names]


def picture_size(result: dict) -> tuple[float, float]:
    """Inches."""
    return 14.0, 1.0 + 3.2 * max(len(_pictured(result)), 1)


def _color(name: str) -> str:
    ours, naive = report.COLORS["ours"], report.COLORS["baseline"]
    if name.startswith("jaxrnn"):
        return ours[3] if "Fused" in name else ours[5] if "CuDNN" in name else ours[1]
    return naive[1] if "scan" in name else report.COLORS["theirs"][0]


def quoted_for(configs: list[Config]) -> list[dict]:
    """The published figures of configurations that are here in the size that was
    published.
    """
    names = {c.name for c in configs}
    return [quote for quote in QUOTED if quote["config"] in names]
