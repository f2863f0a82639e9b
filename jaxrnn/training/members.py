"""Which processes train a run, and how they ended: ``processes.json`` of the run.

The file exists while several processes train, and after one of them was lost. The next
process that resumes the run says what it finds.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from . import processes
from .errors import InputError
from .run import MEMBERS, write_whole

# Run directories that this process trains together with others.
_trained: list[pathlib.Path] = []


@contextlib.contextmanager
def recorded(directory: pathlib.Path) -> Iterator[None]:
    """Record which processes train a run, until they end, in order or by an error."""
    file = pathlib.Path(directory) / MEMBERS
    hosts = processes.gather(socket.gethostname(), "the start of the run")
    _remove(file)
    if processes.is_first() and len(hosts) > 1:
        _write(file, {"hosts": hosts, "lost": None})
    _trained.append(pathlib.Path(directory))
    # After another error the directory stays in the list: it may be the first that is
    # heard of a lost process, which `record_loss` will name.
    try:
        yield
    except InputError:  # which the other processes are told: none is lost
        _trained.pop()
        _remove(file)
        raise
    _trained.pop()
    _remove(file)


def record_loss(process: int) -> None:
    """Record that a process of the run was lost, if this one writes the files."""
    if not (_trained and processes.is_first()):
        return
    file = _trained[-1] / MEMBERS
    with contextlib.suppress(OSError, ValueError):
        _write(file, json.loads(file.read_text(encoding="utf-8")) | {"lost": process})


def last_end(directory: pathlib.Path) -> str | None:
    """Return how the processes of a run ended, in words; None if they ended in order.

    Args:
        directory: the run directory.
    """
    try:
        text = (pathlib.Path(directory) / MEMBERS).read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text)
        hosts, lost = found["hosts"], found["lost"]
    except (OSError, ValueError, KeyError):
        return None
    if lost is None:
        return (
            f"the {len(hosts)} processes of the last start did not end in order: one "
            f"of them failed, all were killed, or process 0 on {hosts[0]} was lost"
        )
    return f"process {lost} of {len(hosts)}, on {hosts[lost]}, was lost"


def _remove(file: pathlib.Path) -> None:
    """Remove the file, which the first process does."""
    if processes.is_first():
        file.unlink(missing_ok=True)


def _write(file: pathlib.Path, contents: dict[str, Any]) -> None:
    """Write the file."""
    write_whole(file, json.dumps(contents) + "\n")
