"""Progress of a run: a rich progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Report:
    """The output of a run: lines, and a progress bar if there is a terminal."""

    def __init__(self, progress: Progress | None = None):
        self.progress = progress
        self.task = progress.add_task("compiling", total=1.0) if progress else None

    def line(self, text: str) -> None:
        """Print a line."""
        if self.progress:
            self.progress.console.print(text, markup=False, highlight=False)
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            # The reader has closed the pipe, as head does; the training continues.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def advance(self, fraction: float, text: str) -> None:
        """Move the progress bar, if there is one."""
        if self.progress and self.task is not None:
            self.progress.update(
                self.task, completed=min(fraction, 1.0), description=text
            )


@contextlib.contextmanager
def reporting() -> Iterator[Report]:
    """Provide a `Report` on standard output."""
    if not sys.stdout.isatty():
        yield Report()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console()) as progress:
        yield Report(progress)
