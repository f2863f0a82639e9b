"""The sections of a report that need no model."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from ..score_table import Row
from .facts import Facts
from .markup import Markup, element, joined, picture, section, table

SAMPLES = 8  # the largest number of samples that are shown
SIGNATURE = b"\x89PNG\r\n\x1a\n"
LOSSES = ("loss", "mse", "bits", "mase", "mae", "rmse")  # the less, the better
LARGEST = 8_000_000  # bytes of a picture
# Known pictures in their order: title, and what one sees.
PICTURES = {
    "curves": ("Learning curve", "The score in training and on held-out data by step"),
    "distribution": (
        "Next letters",
        "The probability of each next letter after each letter of the word",
    ),
    "forecast": (
        "Forecast",
        "The forecasts of the test part beside what was measured and simpler forecasts",
    ),
    "confusion": ("Confusion", "How often each label is predicted for each true label"),
    "f1": ("F1 of each tag", "The F1 score of each tag"),
    "attention": (
        "Attention",
        "The weight of each source symbol while each symbol is written",
    ),
    "captions": ("Captions", "Pictures of the test part with the captions written"),
    "gradients": (
        "Gradients while training",
        "The gradient norm at the state by lag, from the first to the last update",
    ),
}


def number(value: object) -> str:
    """Return a number as text."""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def headline(facts: Facts) -> Markup:
    """Return the task in a sentence, the model, its data, and the main score."""
    parameters = f", {facts.parameters:,} parameters" if facts.parameters else ""
    length = f"{facts.step:,} steps"
    if facts.result.get("seconds"):
        length += f" in {facts.result['seconds']:,g} s"
    state = "" if facts.state == "finished" else f" ({facts.state})"
    lines = [
        element("h1", facts.title),
        element("p", f"{facts.about.sentence[:1].upper()}{facts.about.sentence[1:]}."),
        element("p", f"{facts.model}{parameters}. {length}{state}.", class_="soft"),
    ]
    if facts.rows:
        row = facts.rows[0]
        beside = "".join(f", {name} {number(x)}" for name, x in row.baselines.items())
        score = element("small", f" {row.name}, {facts.part}{beside}")
        lines.append(element("p", number(row.value), score, class_="score"))
    return element("header", *lines)


def score_section(facts: Facts) -> Markup:
    """Return the scores with their baselines, the first as bars."""
    if not facts.rows:
        return Markup("")
    rows = [
        (
            row.name,
            element("span", number(row.value), class_="number"),
            ", ".join(f"{name} {number(x)}" for name, x in row.baselines.items()),
        )
        for row in facts.rows
    ]
    return section(
        "Scores",
        _bars(facts.rows[0]),
        element("p", _better(facts.rows[0].name), class_="soft"),
        table(("score", facts.part, "baselines"), rows),
    )


def _better(name: str) -> str:
    """Return which values of a score are the better ones."""
    is_loss = name.startswith(LOSSES)
    return f"{name}: {'lower' if is_loss else 'higher'} is better."


def _bars(row: Row) -> Markup:
    """Return a score and its baselines as bars; empty without baselines."""
    values = {"this model": row.value, **row.baselines}
    largest = max(values.values())
    if not row.baselines or not 0 < largest < float("inf") or min(values.values()) < 0:
        return Markup("")
    cells = []
    for name, value in values.items():
        fill = element(
            "i",
            style=f"width:{100 * value / largest:.1f}%",
            class_="own" if name == "this model" else None,
        )
        cells += [
            element("span", name),
            element("span", fill, class_="bar"),
            element("span", number(value)),
        ]
    return element("div", *cells, class_="bars")


def pictures_of(facts: Facts) -> list[tuple[pathlib.Path, str, str]]:
    """Return the pictures in the run directory, the known ones first.

    Returns:
        The file, its title, and what one sees, of each.
    """
    known = list(PICTURES)
    files = sorted(
        facts.run.path.glob("*.png"),
        key=lambda file: (
            known.index(file.stem) if file.stem in known else len(known),
            file.name,
        ),
    )
    found = []
    for file in files:
        title, alt = PICTURES.get(file.stem, (file.stem, f"The picture {file.name}"))
        if _png(file):
            found.append((file, title, f"{alt}: {facts.title}, {facts.model}"))
    return found


def picture_sections(facts: Facts) -> Iterator[Markup]:
    """Yield a section for each picture in the run directory, the known ones first."""
    for file, title, alt in pictures_of(facts):
        yield section(title, picture(_png(file), alt))


def _png(file: pathlib.Path) -> bytes:
    """Return a PNG file; empty for any other file, or one that is too large."""
    if not file.is_file() or file.stat().st_size > LARGEST:
        return b""
    data = file.read_bytes()
    return data if data.startswith(SIGNATURE) else b""


def sample_section(facts: Facts) -> Markup:
    """Return samples from the first evaluation to the last."""
    count = len(facts.samples)
    if not count:
        return Markup("")
    shown = min(count, SAMPLES)
    places = [i * (count - 1) // max(shown - 1, 1) for i in range(shown)]
    rows = [
        (f"step {step:,}", text) for step, text in (facts.samples[i] for i in places)
    ]
    return section(
        "Samples while it learned",
        *(
            joined([element("p", step, class_="soft"), element("pre", text)])
            for step, text in rows
        ),
    )


def option_section(facts: Facts) -> Markup:
    """Return the options of the run, and what it ran on."""
    config = facts.run.config
    options = {**config.get("options", {}), **config.get("budget", {})}
    machine = {
        name: facts.result[name]
        for name in ("device", "devices", "cores", "jax", "python")
        if name in facts.result
    }
    rows: list[tuple[Any, str]] = [
        (element("code", f"--{name.replace('_', '-')}"), _said(value))
        for name, value in options.items()
        if value is not None and value != ""
    ]
    rows += [(name, _said(value)) for name, value in machine.items()]
    return section("Options", table(("option", "value"), rows) if rows else "")


def _said(value: object) -> str:
    """Return the value of an option as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)


def command_section(facts: Facts) -> Markup:
    """Return the commands that go on from here."""
    return section("Next", *(element("pre", command) for command in facts.next))
