"""``jaxrnn report``: the page of a run, made anew."""

from __future__ import annotations

import os
import pathlib

from ..training import InputError, Run
from .models.own_cell import CellLike
from .report import write_report
from .runner import load


def report(
    path: str | os.PathLike, *, cell: CellLike | None = None, trust_code: bool = False
) -> tuple[pathlib.Path, list[str]]:
    """Write the report and the model card of a run.

    Code outside jaxrnn is imported only as for `load`. Where the model cannot be
    loaded, the report is made without what needs it, and says why.

    Args:
        path: the run directory, of a run that may be unfinished.
        cell: the cell of the run, if it is code outside jaxrnn.
        trust_code: whether to import whatever code the run names.

    Returns:
        The path of ``report.html``, and notes.

    Raises:
        InputError: if there is no run, or its directory cannot be written.
    """
    run, trained = Run.open(path), None
    notes: list[str] = []
    try:
        trained, notes = load(path, cell=cell, trust_code=trust_code)
        why = ""
    except InputError as error:
        why = str(error)
        notes.append(f"the report is made without the model: {why}")
    try:
        written = write_report(run, trained, why)
    except OSError as error:
        raise InputError(
            f"the report of {run.path} cannot be written: {error.strerror}"
        ) from None
    return written, notes
