"""What the report and the model card of a run say, read from its directory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ...core.types import Params
from ...training import Run
from ..about import ABOUT, About, about_of, next_commands, resume_command
from ..catalog import result_of, state_of
from ..introduction import parameter_count
from ..pictures import data_of, model_of
from ..run_info import shapes_of
from ..score_table import Row, score_rows


class Facts(NamedTuple):
    """A run in words and numbers.

    Attributes:
        run: the run.
        about: what its task is.
        model, data: in words.
        state: ``finished``, ``running`` or ``unfinished``.
        step: the last step with a record.
        rows: the final scores, or those of the newest evaluation.
        part: what they are scores of.
        result: what ``result.json`` holds; empty before the end.
        parameters: their number; 0 where no checkpoint can be read.
        samples: pairs of a step and a sample.
        next: commands.
    """

    run: Run
    about: About
    model: str
    data: str
    state: str
    step: int
    rows: list[Row]
    part: str
    result: dict[str, Any]
    parameters: int
    samples: list[tuple[int, str]]
    next: list[str]

    @property
    def title(self) -> str:
        """Return the task, and its data."""
        on = f" on {self.data}" if self.data else ""
        return f"{self.run.config['task']}{on}"


def facts_of(run: Run, params: Params = None) -> Facts:
    """Read the facts of a run; its cell is not imported.

    Args:
        run: the run.
        params: its parameters, if they are at hand; only their number is used.
    """
    task, result = run.config["task"], result_of(run)
    about, records = about_of(run.config), run.records("metrics.jsonl")
    state = "finished" if result else state_of(run)
    evaluated = [r for r in records if any(name.startswith("held_out_") for name in r)]
    newest = {
        name.removeprefix("held_out_"): value
        for name, value in (evaluated[-1] if evaluated else {}).items()
        if name.startswith("held_out_")
    }
    rows = score_rows(task, result or newest) if task in ABOUT else []
    during = "validation" if about.labeled else about.scored_on
    return Facts(
        run=run,
        about=about,
        model=model_of(run.config),
        data=data_of(run.config),
        state=state,
        step=max((record["step"] for record in records), default=0),
        rows=rows,
        part=about.scored_on if result else during,
        result=result,
        parameters=_count(run, params),
        samples=[(r["step"], str(r["sample"])) for r in records if r.get("sample")],
        next=_next(run, state),
    )


def _count(run: Run, params: Params) -> int:
    """Return the number of parameters."""
    if params is not None:
        return parameter_count(params)
    return sum(math.prod(shape) for shape in shapes_of(run)[0].values())


def _next(run: Run, state: str) -> list[str]:
    """Return what to do with a run."""
    if run.config["task"] not in ABOUT:
        return []
    return next_commands(run) if state == "finished" else [resume_command(run)]
