"""What `benchmarks.accelerator` found, as tables and a picture; what others published stands beside, marked as quoted."""

from __future__ import annotations

from typing import Any

from . import machine, report
from .accelerator_measure import REFERENCE, TOLERANCE
from .accelerator_work import QUOTED, Config
from .work import MODES

MODE = {"forward": "forward", "train": "forward and backward"}
HEAD = ["entry", "ms (median)", "quartiles", "min", "us/step", "tokens/s", "of matmul", "of copy", "x lax.scan"]
HEAD += ["temporaries, MB", "compile s", "difference"]


def markdown(result: dict) -> str:
    """A table for each configuration and mode, then what was left out."""
    where = machine.where(result["machine"]) if result["machine"] else "nothing measured"
    lines = [f"# On the accelerator: {where}", "", f"`{result['command']}`"]
    if result["machine"] and result["machine"]["backend"] == "cpu":
        lines += ["", "**On a CPU, with tiny sizes: this shows that the program runs, and nothing about an accelerator.**"]
    if result["ceilings"]:
        lines += [
            "",
            "Ceilings of the same run: " + ", ".join(f"{k} {report.number(v)}" for k, v in result["ceilings"].items()),
        ]
    lines += ["", f"Differences are from {REFERENCE}; rows in italics are quoted, not measured here."]
    for values in result["configs"]:
        config = Config(**values)
        for mode in MODES:
            rows = [r for r in result["rows"] if (r["config"], r["mode"]) == (config.name, mode)]
            quoted = [q for q in result["quoted"] if (q["config"], q["mode"]) == (config.name, mode)]
            if rows or quoted:
                lines += ["", f"## {config.name} ({config}): {MODE[mode]}", ""]
                lines.append(report.table(HEAD, [*map(_cells, rows), *(_quoted_cells(q, config) for q in quoted)]))
    return "\n".join([*lines, "", *(f"- {line}" for line in tail(result))])


def tail(result: dict) -> list[str]:
    """Sources, warnings and everything that is not in the tables, with its reason."""
    lines = [
        f"quoted: {q['entry']}, {q['config']}, {MODE[q['mode']]}: {q['ms']} ms ({q['source']}; {q['note']})"
        for q in result["quoted"]
    ]
    lines += [
        f"WARNING: {r['entry']} ({r['config']}, {MODE[r['mode']]}) is {max(r['relative_difference'].values()):.0e} from the "
        f"reference, more than {TOLERANCE[r['dtype']]}: another function, or precision lost"
        for r in result["rows"]
        if not r["same_function"]
    ]
    times = {name: [r["ms"] for r in result["rows"] if r["entry"] == name] for name in {r["entry"] for r in result["rows"]}}
    return lines + sorted(report.disturbed_lines(times)) + [left_out_line(item) for item in result["left_out"]]


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
    cells = [f"{quote['entry']} (quoted)", number(ms), "-", "-", number(per_step), number(tokens)]
    return [f"*{cell}*" for cell in cells] + ["-"] * (len(HEAD) - len(cells))


def draw(result: dict, figure: Any) -> None:
    """us a step, of every entry by configuration: a panel for each mode; what is quoted is hatched."""
    measured, quoted = result["rows"], result["quoted"]
    names = list(dict.fromkeys([r["entry"] for r in measured] + [f"{q['entry']} (quoted)" for q in quoted]))
    palette = dict(zip(names, (_colour(name, k) for k, name in enumerate(names)), strict=True))
    configs = [Config(**values) for values in result["configs"]]
    for axes, mode in zip(figure.subplots(2, 1), MODES, strict=True):
        value = {(r["entry"], r["config"]): r["us_per_step"] for r in measured if r["mode"] == mode}
        value |= {(f"{q['entry']} (quoted)", q["config"]): _us(q, configs) for q in quoted if q["mode"] == mode}
        series = {name: [value.get((name, c.name)) for c in configs] for name in names}
        series = {name: values for name, values in series.items() if any(v is not None for v in values)}
        labels = [f"{c.name}\nB {c.B}, T {c.T:,}\nH {c.H}" for c in configs]
        report.grouped_bars(axes, labels, series, palette, label="{:.2g}")
        for container in axes.containers:
            if str(container.get_label()).endswith("(quoted)"):
                for bar in container:
                    bar.set(hatch="//", fill=False, edgecolor=palette[container.get_label()])
        if series:
            axes.set_yscale("log")
        axes.set_ylabel("us per step")
        axes.set_title(MODE[mode])
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)
    figure.suptitle(f"On the accelerator (less is better)\n{machine.where(result['machine'])}")


def _us(quote: dict, configs: list[Config]) -> float:
    return 1e3 * quote["ms"] / next(c.T for c in configs if c.name == quote["config"])


def _colour(name: str, k: int) -> str:
    family = "ours" if name.startswith("jaxrnn") else "baseline" if "scan" in name.split(" (")[0].split("-") else "theirs"
    palette = report.COLOURS["baseline" if name.startswith("lax.scan") else family]
    return palette[k % len(palette)]


def quoted_for(configs: list[Config]) -> list[dict]:
    """The published figures of configurations that are here in the size that was published."""
    names = {c.name for c in configs}
    return [quote for quote in QUOTED if quote["config"] in names]
