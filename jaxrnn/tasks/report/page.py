"""``report.html``: all that a run shows, in one file that loads nothing."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ...training import Run
from ...training.run import write_whole
from ...version import __version__
from ..pictures import draw_run_curves
from .card import write_card
from .decay import decay_section
from .facts import Facts, facts_of
from .look import SCRIPT, STYLE
from .markup import Markup, element
from .sections import (
    command_section,
    headline,
    option_section,
    picture_sections,
    sample_section,
    score_section,
)
from .units import unit_section

NAME = "report.html"
# The sections that need the model: each is given the facts and the trained model.
INSIDE: tuple[Callable[[Facts, Any], Markup], ...] = (unit_section, decay_section)


def write_report(
    run: Run, trained: Any = None, why: str = "", *, is_whole: bool = True
) -> pathlib.Path:
    """Write the report of a run and its model card, from one reading of its files.

    Args:
        run: the run, which may be unfinished.
        trained: its trained model; None if it cannot be loaded.
        why: why it cannot be loaded, which the report says.
        is_whole: whether to add what has to be computed by the model.

    Returns:
        The path of ``report.html``.
    """
    facts = facts_of(run, None if trained is None else trained.params)
    if facts.state != "finished" or not (run.path / "curves.png").exists():
        draw_run_curves(run)
    path = run.path / NAME
    write_whole(path, page(facts, trained, why, INSIDE if is_whole else ()))
    write_card(facts)
    return path


def page(
    facts: Facts,
    trained: object = None,
    why: str = "",
    parts: Sequence[Callable[[Facts, Any], Markup]] = INSIDE,
) -> str:
    """Return the report as HTML.

    Args:
        facts: the facts of the run.
        trained: its trained model, or None.
        why: why there is no model.
        parts: the sections that need it.
    """
    notes = _notes(trained, why)
    inside: list[Markup] = []
    for part in parts if trained is not None else ():
        try:
            inside.append(part(facts, trained))
        except Exception as error:  # a report never fails because of one part
            name = part.__name__.replace("_", " ")
            notes.append(f"the {name} is left out: {type(error).__name__}: {error}")
    body = element(
        "main",
        headline(facts),
        *(element("p", note, class_="note") for note in notes),
        score_section(facts),
        *picture_sections(facts),
        sample_section(facts),
        *inside,
        option_section(facts),
        command_section(facts),
        element("footer", f"Written by jaxrnn {__version__}."),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{facts.title}: {facts.run.path.name}"),
        Markup(f"<style>{STYLE}</style>"),
    )
    script = Markup(f"<script>{SCRIPT}</script>")
    whole = element("html", head, element("body", body, script), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _notes(trained: Any, why: str) -> list[str]:
    """Return what is left out of the report, and why."""
    notes = []
    if trained is None and why:
        notes.append(f"The parts that need the model are left out: {why}")
    if importlib.util.find_spec("matplotlib") is None:
        notes.append(
            "The report is without pictures, because matplotlib is not installed: "
            "pip install 'jaxrnn[plot]'"
        )
    return notes
