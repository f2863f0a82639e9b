"""A thread that ends this process with one line when another one is lost.

Without it, a process whose partner is gone would wait in a collective operation, until
JAX ends it with a stack trace. Every process tells JAX's coordinator again and again
that it lives; one that stays silent for most of the heartbeat time is lost. A process
that ends by an error says so to the others, which then end at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import NamedTuple, NoReturn

from ..training import processes
from ..training.members import record_loss

LOST = 3  # the exit status of a process after another one was lost
SHARE = 0.6  # of the heartbeat time, within which all processes end
ALIVE, FAILED = "jaxrnn/alive/", "jaxrnn/failed/"
_ending = threading.Lock()  # whoever has it ends the process, or has ended a command
_voice = threading.Lock()  # whoever has it speaks, so that "ended" is the last word
_times: list[Times] = []  # those of the thread, when it has begun


class Times(NamedTuple):
    """Seconds.

    Attributes:
        limit: the silence after which a process is lost.
        interval: the time between two signs of life.
    """

    limit: float
    interval: float


def begin(heartbeat: float) -> None:
    """Begin to watch the other processes, or go on after an earlier command.

    Args:
        heartbeat: the seconds within which all end after one of them was lost.
    """
    if _times:  # a program that connects the processes may call several commands
        if _ending.locked():
            _ending.release()
        return
    times = Times(SHARE * heartbeat, min(1.0, heartbeat / 20))
    _times.append(times)
    threading.Thread(target=_watch, args=(times,), daemon=True).start()


def wait_for_loss() -> None:
    """Wait until it is known whether a process was lost, which ends this one."""
    for times in _times:
        time.sleep(times.limit + 3 * times.interval)


def end() -> None:
    """Say that this process ends in order, so that its silence is no loss."""
    _claim()
    with _voice:
        _say(ALIVE, "ended")


def fail(message: str, status: int) -> NoReturn:
    """End this process, and the others, after an error.

    JAX would wait for the others, which wait for this one.

    Args:
        message: the error in one line, which the others print.
        status: the exit status.
    """
    _claim()
    _say(FAILED, f"{status} {message}")
    _exit(status)


def _claim() -> None:
    """Take the right to end this process; the thread may be about to end it."""
    if not _ending.acquire(blocking=False):
        threading.Event().wait()


def _watch(times: Times) -> None:
    """Give signs of life and look for those of the others, for ever."""
    last: dict[int, tuple[str, float]] = {}
    for number in range(sys.maxsize):
        with _voice:
            if not _ending.locked():
                _say(ALIVE, str(number))
        with contextlib.suppress(Exception):  # without a coordinator JAX ends us
            for process, words in _heard(FAILED).items():
                status, _, message = words.partition(" ")
                _stop(f"process {process} failed: {message}", int(status))
            silent = _silent(last, times.limit)
            if silent is not None:
                record_loss(silent)
                _stop(
                    f"process {silent} was lost: it has given no sign of life for "
                    f"{times.limit:.0f} seconds; start all again with --resume",
                    LOST,
                )
        time.sleep(times.interval)


def _silent(last: dict[int, tuple[str, float]], limit: float) -> int | None:
    """Return a process whose sign of life has not changed for long, or None.

    Args:
        last: the last sign of each process and when it was new, which is updated.
        limit: how long, in seconds.
    """
    now = time.monotonic()
    for process, sign in _heard(ALIVE).items():
        before, since = last.get(process, ("", now))
        last[process] = (sign, now if sign != before else since)
        if sign != "ended" and now - last[process][1] > limit:
            return process
    return None


def _stop(message: str, status: int) -> None:
    """End this process with a line, unless it is ending anyway."""
    if _ending.acquire(blocking=False):
        print(f"jaxrnn: {message}", file=sys.stderr)
        _exit(status)


def _exit(status: int) -> NoReturn:
    """End the process without JAX's barrier at its end."""
    # With process 0 the coordinator ends; the others have heard by then what happened.
    if processes.coordinator()[1] == 0:
        time.sleep(3 * _times[-1].interval)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def _say(key: str, words: str) -> None:
    """Tell the coordinator something of this process."""
    client, process, _ = processes.coordinator()
    with contextlib.suppress(Exception):  # without a coordinator JAX ends us
        client.key_value_set(f"{key}{process}", words, allow_overwrite=True)


def _heard(key: str) -> dict[int, str]:
    """Return what all processes have told the coordinator, by their numbers."""
    client, _, _ = processes.coordinator()
    return {
        int(name.rsplit("/", 1)[1]): words
        for name, words in client.key_value_dir_get(key)
    }
