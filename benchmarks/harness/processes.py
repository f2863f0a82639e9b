"""Parts of a benchmark in processes of their own, each with a limit, so that one that
fails or hangs takes no other along: `run` starts one, and the part itself says what it
found by `tell`, a line of JSON with `MARK` before it.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

MARK = "found> "
ROOT = pathlib.Path(__file__).parents[2]
PYTHON = (sys.executable, "-m")
TAIL = 3000  # characters of a part's output that are kept
DONE, FAILED, OVER, LEFT = "done", "failed", "over time", "left out"


def tell(found: dict[str, Any]) -> None:
    """Print what a part found, for `measure` in the process that started it."""
    print(MARK + json.dumps(found), flush=True)


def run(words: list[str], seconds: float, left_out: int | None = None) -> tuple:
    """Run a command in a session of its own, at most so long.

    Args:
        words: the command.
        seconds: its limit.
        left_out: an exit status that says that there was nothing to do.

    Returns:
        ``(status, output)``.
    """
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # What it started, as torch's workers, ends with it.
        os.killpg(process.pid, signal.SIGKILL)
        return OVER, process.communicate()[0]
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode == 0:
        return DONE, output
    if process.returncode == left_out:
        return LEFT, output
    return FAILED, f"{output}\nended with status {process.returncode}"


def measure(
    words: list[str], seconds: float, left_out: int | None = None
) -> dict[str, Any]:
    """Run a part, and return what came of it and what it told.

    The output is kept where the part did not end well, or told nothing.
    """
    began = time.monotonic()
    status, output = run(words, seconds, left_out)
    found: dict[str, Any] = {
        "status": status,
        "command": " ".join(["python", *words[1:]]),
        "limit": round(seconds),
        "seconds": round(time.monotonic() - began, 1),
    }
    lines = output.splitlines()
    marked = [line for line in lines if line.startswith(MARK)]
    if marked:
        found |= json.loads(marked[-1].removeprefix(MARK))
    rest = "\n".join(line for line in lines if not line.startswith(MARK))
    return found | {"output": rest[-TAIL:] if status != DONE or not marked else ""}
