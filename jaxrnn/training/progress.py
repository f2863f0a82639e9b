"""Progress of a run: a bar and the newest numbers on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from . import processes


class Report:
    """The output of a run: lines, and a progress bar if there is a terminal."""

    def __init__(self, progress: Progress | None = None):
        self.progress = progress
        self.task = (
            progress.add_task("compiling", total=1.0, numbers=()) if progress else None
        )

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

    def advance(
        self, fraction: float, step: str, seconds: float, numbers: Sequence[str]
    ) -> None:
        """Show how far the run is: on the bar, or as a line.

        Args:
            fraction: the share of the budget that is used.
            step: which step it is, such as ``step 20/100``.
            seconds: the time of the run so far; a bar shows its own.
            numbers: names with values, such as ``loss 1.25``.
        """
        if self.progress and self.task is not None:
            self.progress.update(
                self.task,
                completed=min(fraction, 1.0),
                description=step,
                numbers=tuple(numbers),
            )
        else:
            self.line("  ".join([step, f"{seconds:.0f} s", *numbers]))


class Numbers:
    """Numbers side by side, in as many lines as the width of the terminal asks for.

    A name and its value stay on one line.
    """

    def __init__(self, numbers: Sequence[str]):
        self.numbers = numbers

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Text]:
        for line in packed(self.numbers, options.max_width):
            yield Text(line, no_wrap=True, overflow="ellipsis")


def packed(words: Sequence[str], width: int) -> list[str]:
    """Join words by two spaces in lines of at most ``width`` characters.

    A word that is longer than that has a line of its own.
    """
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 2 + len(word) <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return lines


class Bar(Progress):
    """A bar that takes what its line leaves, with the newest numbers below it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bar, and the numbers."""
        for task in self.tasks:
            yield self.make_tasks_table([task])
            yield Numbers(task.fields["numbers"])


def make_bar(console: Console) -> Bar:
    """Return a `Bar` as wide as the terminal."""
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        expand=True,
    )


@contextlib.contextmanager
def reporting() -> Iterator[Report]:
    """Provide a `Report` on standard output; of several processes the first prints."""
    if not processes.is_first():
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield Report()
        return
    if not sys.stdout.isatty():
        yield Report()
        return
    with make_bar(Console()) as progress:
        yield Report(progress)
