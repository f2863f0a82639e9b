"""Lines that say what a program is busy with, when that takes longer than a moment."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from .processes import coordinator

FIRST = 1.5  # seconds of silence before the first line of the outermost work
LEAST = 0.3  # and before the first line of any
NEXT = (4.0, 10.0, 30.0)  # and between the next ones; the last is repeated


class Work:
    """What is being done, and how much of it.

    Attributes:
        done: how much has been done, which the worker sets: it may do so at every row,
            because nothing else happens then.
    """

    def __init__(self, what: str, total: float | None, unit: str):
        self.what, self.total, self.unit = what, total, unit
        self.done: float = 0
        self.began, self.last = time.monotonic(), ""

    def line(self) -> str:
        """Return what is done, how far it is and the seconds so far."""
        if self.total:
            far = f" {self.done / self.total:.0%} of {self.total:,.0f} {self.unit},"
        elif self.done:
            far = f" {self.done:,.0f} {self.unit},"
        else:
            far = ""
        return f"{self.what}:{far} {time.monotonic() - self.began:.0f} s"


# What is being done now: only the innermost speaks.
_DOING: list[Work] = []


@contextlib.contextmanager
def announced(what: str, total: float | None = None, unit: str = "") -> Iterator[Work]:
    """Say on standard error what is being done, once it takes a while.

    Then come a line every few seconds and one at the end. What is over sooner says
    nothing. Within another one only the inner speaks.

    Args:
        what: what is being done, such as ``reading book.txt``.
        total: how much there is to do, if that is known.
        unit: what ``total`` and `Work.done` count.

    Yields:
        The `Work`, whose ``done`` the caller sets.

    Example:
        >>> with announced("counting", 3, "rows") as work:
        ...     for _ in range(3):
        ...         work.done += 1
        >>> work.line()
        'counting: 100% of 3 rows, 0 s'
    """
    work, is_over, is_done = Work(what, total, unit), threading.Event(), False
    speaker = threading.Thread(target=_speak, args=(work, is_over), daemon=True)
    _DOING.append(work)
    speaker.start()
    try:
        yield work
        is_done = True
    finally:
        is_over.set()
        speaker.join()
        _DOING.remove(work)
        if is_done and work.last:  # what goes wrong is said elsewhere
            _say(work)


def _speak(work: Work, is_over: threading.Event) -> None:
    """Print lines until the work is over."""
    quiet = time.monotonic() - _DOING[0].began if _DOING else 0.0
    waits = [max(FIRST - quiet, LEAST), *NEXT]
    while not is_over.wait(waits.pop(0) if len(waits) > 1 else waits[0]):
        if _DOING and _DOING[-1] is work:
            _say(work)


def _say(work: Work) -> None:
    """Print a line, unless nobody can read it any more.

    Of several processes, which all do the same, the first one speaks.
    """
    if coordinator()[1]:
        return
    line = work.line()
    if line != work.last:  # the end may come at once behind a line
        work.last = line
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
