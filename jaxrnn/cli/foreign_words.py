"""What XLA's libraries print: away from standard output, and without Gloo's greetings.

Gloo connects the CPUs of several processes, and prints a line on standard output, where
results stand, whenever a group of them is connected. No option silences it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

import jax

GREETING = b"[Gloo] "  # how each of its lines begins
LAST_SECONDS = 1.0  # how long the last words are waited for


def move() -> None:
    """Let what libraries print go to standard error, and Python's words stay."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        own = os.fdopen(os.dup(sys.stdout.fileno()), "w", errors="replace")
        os.dup2(sys.stderr.fileno(), 1)
        sys.stdout = own


@contextlib.contextmanager
def without_greetings():
    """Leave out the lines of Gloo that would go to standard error.

    `move` comes before. On accelerators, whose devices other libraries connect, nothing
    is changed: what those print, such as ``NCCL_DEBUG`` asks for, is not held up.
    """
    if jax.default_backend() != "cpu":
        yield
        return
    ours, theirs = os.pipe()
    before = os.dup(1)
    os.dup2(theirs, 1)
    os.close(theirs)
    reader = threading.Thread(target=_pass_on, args=(ours, before), daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(before, 1)  # nobody holds the other end of the pipe now
        reader.join(LAST_SECONDS)


def _pass_on(source: int, target: int) -> None:
    """Write the lines of a pipe to a file, but for the greetings, until it ends."""
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            if not line.startswith(GREETING):
                with contextlib.suppress(OSError):
                    os.write(target, line)
