"""Errors in a user's own cell or layer, with the method at fault and its arguments."""

from __future__ import annotations

import contextlib
import pathlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from .validation import describe_tree

HERE = pathlib.Path(__file__).parents[1]
# Subclasses may carry meaning of their own, so only exact types are worded anew.
_PLAIN = (TypeError, ValueError, KeyError, IndexError, AttributeError)


@contextlib.contextmanager
def name_failing_method(
    cell: Any,
    method: str,
    hint: str | Callable[[Exception], str] = "",
    **given: object,
) -> Iterator[None]:
    """Add the method and its arguments to an error from a user's own cell or layer.

    Errors that the library raises itself, and those of other types than the usual
    built-in ones, pass unchanged.

    Args:
        cell: the cell or layer.
        method: the name of the method that is called in the context.
        hint: what may mend the error, or a function that says it of the error.
        **given: the arguments of the method, whose shapes the error shows.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if type(error) not in _PLAIN or _is_ours(cell, error):
            raise
        kind = ValueError if isinstance(error, ValueError) else TypeError
        arguments = ", ".join(
            f"{name} {_shortened(describe_tree(tree), 100)}"
            for name, tree in given.items()
        )
        repair = hint if isinstance(hint, str) else hint(error)
        raise kind(
            f"{type(cell).__name__}.{method} fails on {arguments}: "
            f"{first_line(error).removesuffix('.')}{repair and '. ' + repair}"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, shortened."""
    text = f"{error!r}" if isinstance(error, KeyError) else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    return _shortened(lines[0], 240)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 5]} [...]"


def _is_ours(cell: Any, error: Exception) -> bool:
    """Return whether an error is worded by the library already.

    Either a raise statement of the library raised it, or it came from one of the
    library's own cells, which check their inputs themselves.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raised = pathlib.Path(frame.filename).is_relative_to(HERE) and (
        frame.line or ""
    ).startswith("raise")
    return raised or type(cell).__module__.partition(".")[0] == "jaxrnn"
