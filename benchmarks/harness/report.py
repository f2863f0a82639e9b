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

from jaxrnn.diagnostics.style import BLUE, GREEN, RED, save, styled

from . import host
from .save_run import RESULTS

# The colors of Okabe and Ito, which people who see few colors can tell apart: cold ones
# for what is ours, grays for plain loops, warm ones for other libraries.
COLORS = {
    "ours": (BLUE, "#56B4E9", GREEN, "#004C78", "#7FD4B8", "#A9D6F2", "#005C43"),
    "baseline": ("#444444", "#9A9A9A"),
    "theirs": (RED, "#E69F00", "#CC79A7", "#8C4A00", "#F0C870", "#7A3F63", "#B8860B"),
}
# What an entry is called in pictures, where its name in the tables does not say it.
SAID = {
    "jaxrnn-sharded": "jaxrnn, two devices",
    "jaxrnn-checkpoint": "jaxrnn, Checkpoint()",
    "jaxrnn-loop": "jaxrnn, in a compiled loop",
    "jaxrnn-vmap": "jaxrnn, under vmap",
    "Scan(residuals='carries')": "jaxrnn, Scan(save='carries')",
    "Scan(save='carries')": "jaxrnn, Scan(save='carries')",
    "user-cell": "the same cell by a user",
    "naive": "lax.scan",
    "naive-hoisted": "lax.scan, inputs projected first",
    "haiku": "Haiku",
    "equinox": "Equinox",
    "keras": "Keras",
    "onnxruntime": "ONNX Runtime",
    "default": "jaxrnn, as you get it",
    "chunked": "jaxrnn, joined in chunks",
    "whole": "jaxrnn, joined over all steps",
}
MARKS = {
    "jaxrnn": ("o", BLUE),
    "jaxrnn-sharded": ("D", "#56B4E9"),
    "torch": ("s", RED),
    "haiku": ("^", "#E69F00"),
    "equinox": ("v", "#CC79A7"),
    "keras": ("P", GREEN),
    "naive": ("|", "#000000"),
    "default": ("o", BLUE),
    "chunked": ("D", "#56B4E9"),
    "whole": ("s", GREEN),
    "lax.scan": ("|", "#000000"),
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
        picture(base.with_name(base.name + ".png"), draw, size)
    print(
        f"\nwritten: {base.name}.json{', .md and .png' if draw else ' and .md'} in "
        f"{path.parent.name}/"
    )
    return path


def picture(
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


def colors(names: Iterable[str]) -> dict[str, str]:
    """A color for each name: blues and greens for what is ours, grays for naive
    scans, warm ones for peers.
    """
    seen: dict[str, int] = {}
    found = {}
    for name in dict.fromkeys(names):
        palette = COLORS[family(name)]
        found[name] = palette[seen.setdefault(family(name), 0) % len(palette)]
        seen[family(name)] += 1
    return found


def said(name: str) -> str:
    """What an entry is called in a picture."""
    return SAID.get(name, name)


def dots(axes: Any, labels: list[str], series: dict[str, list[float | None]]) -> None:
    """A row for each label, and a mark for each series, on a logarithmic axis on which
    1 is a line.
    """
    for name, values in series.items():
        points = [(v, i) for i, v in enumerate(values) if v is not None]
        if not points:
            continue
        mark, color = MARKS[name]
        ours = name in ("jaxrnn", "default")
        axes.plot(
            *zip(*points, strict=True),
            mark,
            color=color,
            label=said(name),
            ms=9 if ours else 7,
            mew=2 if mark == "|" else 1,
            alpha=1 if ours else 0.85,
            zorder=3 if ours else 2,
        )
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(alpha=0.3)


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
    """Bars in groups, one color a series; a missing value leaves a gap."""
    width = 0.84 / max(len(series), 1)
    for k, (name, values) in enumerate(series.items()):
        places = [
            g + (k - (len(series) - 1) / 2) * width
            for g, value in enumerate(values)
            if value is not None
        ]
        shown = [value for value in values if value is not None]
        bars = axes.bar(
            places, shown, width * 0.94, color=palette[name], label=said(name)
        )
        axes.bar_label(bars, [label.format(v) for v in shown], fontsize=8, padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.margins(y=0.16)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
