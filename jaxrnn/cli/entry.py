"""The entry point: arguments, errors as one line, and the exit status.

The exit status is 0; 2 with one line on standard error for invalid arguments, data or
run directories; or 130 after Ctrl-C, which saves a run first.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys

from ..training import InputError
from ..training.errors import unwritable
from .commands import INTERRUPTED
from .parser import parse


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the arguments (default: those of the process).
    """
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character must not end a run.
        sys.stdout.reconfigure(errors="replace")
    try:
        arguments = parse(argv)
        status = arguments.command(arguments)
        # Flush here, so that an error such as a full disk is reported below.
        sys.stdout.flush()
    except InputError as error:
        print(f"jaxrnn: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:  # after --help or --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("jaxrnn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe, as head does
        sys.stderr.close()
        return 0
    except Exception as error:
        reason = unwritable(error)
        if reason is None:
            raise
        _silence_stdout()
        file = error.filename if isinstance(error, OSError) else None
        print(
            f"jaxrnn: {file or 'the output'} could not be written: {reason}",
            file=sys.stderr,
        )
        return 2
    return status or 0


def _silence_stdout() -> None:
    """Redirect standard output, if it cannot be flushed, to the null device.

    Otherwise the interpreter would try to write the rest again when it exits.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
