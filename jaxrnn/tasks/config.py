"""What the tasks' options share: fields that know their help text, their range or
their names, and the check of them all.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
from collections.abc import Iterable
from typing import Any

from ..core.validation import describe
from ..training import InputError
from .models.cell_registry import KNOWN, check_cell_name


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with help text and range, for `check_options` and for the
    command line.
    """
    return dataclasses.field(
        default=default,
        metadata={"help": help, "least": least, "above": above, "below": below},
    )


def choice(default: str, known: Iterable[str], help: str) -> Any:
    """A dataclass field that holds one of the names ``known``."""
    known = tuple(known)
    return dataclasses.field(
        default=default,
        metadata={"help": f"{help}: {', '.join(known)}", "names": known},
    )


def cell_field(default: str) -> Any:
    """The field that names a cell, as `cells.make_cell` understands it."""
    kinds = "; ".join(f"{name} ({text})" for name, text in KNOWN.items())
    return dataclasses.field(
        default=default, metadata={"help": f"the cell: {kinds}", "cell": True}
    )


def check_options(options: Any) -> None:
    """Every field lies in its range, and every name is known, cells with their variant.

    Raises:
        BadInput: naming the flag, what was expected and what came; for a name, the
            nearest one.
    """
    for field in dataclasses.fields(options):
        value, known = getattr(options, field.name), field.metadata
        flag = "--" + field.name.replace("_", "-")
        if "cell" in known:
            check_cell_name(flag, value)
        elif "names" in known:
            check_name(flag, value, known["names"])
        elif {"least", "above", "below"} & {
            name for name, bound in known.items() if bound is not None
        } and not _is_number(value):
            raise InputError(
                f"{flag} must be a number, but it is "
                f"{value if isinstance(value, str) else describe(value)}"
            )
        elif known.get("least") is not None and not value >= known["least"]:
            raise InputError(
                f"{flag} must be at least {known['least']}, but it is {value}"
            )
        elif known.get("above") is not None and not value > known["above"]:
            raise InputError(
                f"{flag} must be more than {known['above']}, but it is {value}"
            )
        if known.get("below") is not None and not value < known["below"]:
            raise InputError(
                f"{flag} must be less than {known['below']}, but it is {value}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def check_with_sources(options: Any, noun: str) -> None:
    """`check_options` for a task whose ``data`` is one source, or two of which the
    second is held out; it becomes a tuple.
    """
    data = (
        (options.data,)
        if isinstance(options.data, (str, os.PathLike))
        else options.data
    )
    object.__setattr__(options, "data", tuple(map(str, data)))
    check_options(options)
    if not 1 <= len(options.data) <= 2:
        raise InputError(
            f"--data takes one {noun}, or two of which the second is held out, but got "
            f"{len(options.data)}"
        )


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """``name`` is one of ``known``; the error offers the nearest."""
    known = tuple(known)
    if not isinstance(name, str):
        raise InputError(
            f"{what} is one of {', '.join(known)}, but it is {describe(name)}: give "
            f"its name"
        )
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise InputError(f"{what}: there is no {name!r}; {hint}")
