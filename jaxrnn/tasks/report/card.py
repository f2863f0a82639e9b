"""The model card of a run: ``README.md`` in its directory."""

from __future__ import annotations

import pathlib
import re
import urllib.parse

from ...training.run import write_whole
from ...version import __version__
from .facts import Facts
from .sections import number, pictures_of

NAME = "README.md"


def plain(text: object) -> str:
    """Return text as one line of Markdown without markup or HTML.

    Example:
        >>> plain("a|b <script>")
        'a\\\\|b \\\\<script\\\\>'
    """
    return re.sub(r"([\\\\`*_{}\[\]<>#|~&!])", r"\\\1", " ".join(str(text).split()))


def code(text: object) -> str:
    """Return text as code in Markdown."""
    line = " ".join(str(text).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    room = " " if "`" in line else ""
    return f"{ticks}{room}{line}{room}{ticks}"


def card(facts: Facts) -> str:
    """Return the model card of a run as Markdown."""
    options = facts.run.config.get("options", {})
    lines = [
        f"# {plain(facts.title)}",
        "",
        f"A recurrent network that learns {plain(facts.about.sentence)}.",
        "",
        f"- model: {plain(facts.model)}, {facts.parameters:,} parameters",
        f"- data: {plain(facts.data or 'sequences that the task draws itself')}",
        f"- training: {facts.step:,} steps, batch {options.get('batch', 1)}, "
        f"{plain(options.get('optimizer', 'adam'))}, learning rate "
        f"{options.get('learning_rate', '?')}, seed {options.get('seed', '?')}; "
        f"{facts.state}",
        f"- made with jaxrnn {__version__}"
        + "".join(
            f", {name} {plain(facts.result[name])}"
            for name in ("jax", "python", "device")
            if name in facts.result
        ),
        "",
        "## Scores",
        "",
        *_scores(facts),
        "",
        *_pictures(facts),
        "## Use",
        "",
        *(f"    {' '.join(command.split())}" for command in facts.next),
        "",
        "`report.html` shows learning curves, samples and more; `config.json` holds "
        "all options.",
        "",
        "## Limits",
        "",
        "The scores are those of one run on the data named above. They say nothing "
        "about other data.",
        "",
    ]
    return "\n".join(lines)


def _scores(facts: Facts) -> list[str]:
    """Return the table of scores."""
    if not facts.rows:
        return ["There is no score yet."]
    rows = [
        f"| {plain(row.name)} | {number(row.value)} | "
        + ", ".join(f"{plain(name)} {number(x)}" for name, x in row.baselines.items())
        + " |"
        for row in facts.rows
    ]
    return [f"| score | {plain(facts.part)} | baselines |", "|---|---|---|", *rows]


def _pictures(facts: Facts) -> list[str]:
    """Return the pictures beside the card, each with what one sees."""
    lines = [
        f"![{plain(alt)}]({urllib.parse.quote(file.name)})\n"
        for file, _, alt in pictures_of(facts)
    ]
    return ["## Pictures", "", *lines] if lines else []


def write_card(facts: Facts) -> pathlib.Path:
    """Write ``README.md``.

    Args:
        facts: the facts of the run.

    Returns:
        The path of the file.
    """
    path = facts.run.path / NAME
    write_whole(path, card(facts))
    return path
