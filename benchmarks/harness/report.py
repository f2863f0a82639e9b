"""Results as files: ``NAME.json`` with everything, ``NAME.md`` with the tables,
``NAME.png`` with the picture.
"""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxrnn.diagnostics.style import save, styled

from . import host
from .save_run import RESULTS

COLOURS = {
    "ours": (
        "#1b4f8f",
        "#2f7fd0",
        "#7db4ea",
        "#12806a",
        "#6dbb8f",
        "#7a4fb0",
        "#b79be0",
    ),
    "baseline": ("#444444", "#9a9a9a"),
    "theirs": (
        "#c26a1b",
        "#e0a84e",
        "#c9544d",
        "#8c5a3c",
        "#d98cb3",
        "#e6c9a8",
        "#a3a33a",
    ),
}
DISTURBED = (
    1.5  # a median this many times the minimum tells of other load on the machine
)


def result_name(benchmark: str, out: str | None, quick: bool) -> str:
    """``--out``, or the benchmark's name with backend and jax version; quick runs
    never replace full ones.
    """
    default = f"{benchmark}_{jax.default_backend()}_jax{jax.__version__}" + (
        "_quick" if quick else ""
    )
    return out or default


def content(benchmark: str, command: str, **more: Any) -> dict:
    """The head of every result: what was run, when, and on which machine."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "benchmark": benchmark,
        "command": command,
        "measured": now,
        "machine": host.describe(),
        "dtype": "float32",
        **more,
    }


def table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    lines = [
        head,
        ["---"] + ["---:"] * (len(head) - 1),
        *([str(cell) for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """``value`` to ``digits`` significant digits, never in scientific notation; a
    dash for None.
    """
    if value is None:
        return "-"
    return (
        f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"
    )


def left_out_lines(left_out: list[dict]) -> list[str]:
    """What did not run and why, each reason once."""
    reasons: dict[tuple, list[str]] = {}
    for item in left_out:
        reasons.setdefault((item["entry"], item["reason"]), []).append(
            item.get("cell", "")
        )
    return [
        f"left out: {entry} ({', '.join(sorted(set(cells)))}): {why}"
        for (entry, why), cells in reasons.items()
    ]


def write(
    name: str, result: dict, text: str, draw: Callable[[Any], None] | None, size=(14, 9)
) -> pathlib.Path:
    """Write and print the three files; without matplotlib, two. Returns the path of
    the JSON.
    """
    base = RESULTS / name  # a NAME that is a path stands for itself
    base.parent.mkdir(parents=True, exist_ok=True)
    path = base.with_name(base.name + ".json")
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    base.with_name(base.name + ".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    if draw is not None:
        _picture(base.with_name(base.name + ".png"), draw, size)
    print(
        f"\nwritten: {base.name}.json{', .md and .png' if draw else ' and .md'} in "
        f"{path.parent.name}/"
    )
    return path


def _picture(
    path: pathlib.Path, draw: Callable[[Any], None], size: tuple[float, float]
) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no picture: matplotlib is not installed: pip install '.[plot]'")
        return
    figure = Figure(figsize=size, layout="constrained")
    styled(draw)(figure)
    save(figure, path)


def family(name: str) -> str:
    """Whose an entry is: "ours", a hand-written "baseline", or "theirs"."""
    if name.startswith("naive") or name == "user-cell-naive":
        return "baseline"
    return (
        "ours" if name.startswith(("jaxrnn", "user-cell")) or "(" in name else "theirs"
    )


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: blues and greens for what is ours, greys for naive
    scans, warm ones for peers.
    """
    seen: dict[str, int] = {}
    found = {}
    for name in dict.fromkeys(names):
        palette = COLOURS[family(name)]
        found[name] = palette[seen.setdefault(family(name), 0) % len(palette)]
        seen[family(name)] += 1
    return found


def disturbed_lines(timings: dict[str, list[dict]]) -> list[str]:
    """A warning for every entry some of whose medians stand far above their minima."""
    worst = {
        name: max(t["median"] / t["min"] for t in times)
        for name, times in timings.items()
    }
    return [
        f"disturbed: {name}, a median {ratio:.1f} times its minimum; other load on the "
        f"machine? Measure again when it is idle"
        for name, ratio in worst.items()
        if ratio > DISTURBED
    ]


def grouped_bars(
    axes: Any,
    groups: list[str],
    series: dict[str, list[float | None]],
    palette: dict[str, str],
    label: str = "{:.1f}",
) -> None:
    """Bars in groups, one colour a series; a missing value leaves a gap."""
    width = 0.84 / max(len(series), 1)
    for k, (name, values) in enumerate(series.items()):
        places = [
            g + (k - (len(series) - 1) / 2) * width
            for g, value in enumerate(values)
            if value is not None
        ]
        shown = [value for value in values if value is not None]
        bars = axes.bar(places, shown, width * 0.94, color=palette[name], label=name)
        axes.bar_label(
            bars, [label.format(v) for v in shown], fontsize=6.5, rotation=90, padding=2
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.margins(y=0.16)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
