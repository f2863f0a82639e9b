"""Option fields of the tasks, with help text and range, and their validation."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
from collections.abc import Iterable
from typing import Any

from ..core.records import fields_of
from ..core.validation import describe
from ..training import InputError
from .models.cell_registry import KNOWN, check_cell_name

CONVOLUTIONAL = "convolutional"  # in a field's metadata: names of cells for pictures


def option(
    default: object,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    before: object = None,
) -> Any:
    """Return a dataclass field with help text and range.

    The command line and `check_options` read them. ``least`` is inclusive, ``above``
    and ``below`` are exclusive. ``before`` is the value of runs that are older than the
    option, where that is not the default.
    """
    bounds = {"least": least, "above": above, "below": below}
    return dataclasses.field(
        default=default, metadata={"help": help, "before": before, **bounds}
    )


def choice(
    default: str, known: Iterable[str], help: str, *, before: str | None = None
) -> Any:
    """Return a dataclass field whose value is one of the names ``known``.

    ``before`` is as for `option`.
    """
    known = tuple(known)
    help = f"{help}: {', '.join(known)}"
    return dataclasses.field(
        default=default, metadata={"help": help, "names": known, "before": before}
    )


def cell_field(default: str) -> Any:
    """Return the field that names a cell, as `cell_registry.make_cell` reads it.

    From Python it may also hold a cell or layer.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": f"the cell: {', '.join(KNOWN)}, some with a variant such as "
            f"lstm:chrono (jaxrnn list cells); or one of your own, module:Name or "
            f"'module:Name(arguments)', such as mine:Mine for class Mine of mine.py",
            "cell": True,
        },
    )


def convolutional_cell_field(default: str, known: Iterable[str]) -> Any:
    """Return the field that names a cell for pictures, or one of one's own."""
    names = tuple(known)
    return dataclasses.field(
        default=default,
        metadata={
            "help": f"the cell: {', '.join(names)}; or one of your own for inputs "
            f"(T, B, Y, X, 1), module:Name",
            "cell": True,
            CONVOLUTIONAL: names,
        },
    )


def ordered_fields(kind: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of an options class, its own before those that it inherits."""
    inherited = {
        field.name
        for base in kind.__bases__
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
    }
    return sorted(dataclasses.fields(kind), key=lambda field: field.name in inherited)


def check_options(options: Any) -> None:
    """Check that every field is in its range and every name is known.

    Raises:
        InputError: with the flag, what was expected and what was received; for a name,
            with the most similar known one.
    """
    values = fields_of(options)
    for field in dataclasses.fields(options):
        value, metadata = values[field.name], field.metadata
        flag = "--" + field.name.replace("_", "-")
        if "cell" in metadata:
            if not (
                isinstance(value, str) and value in metadata.get(CONVOLUTIONAL, ())
            ):
                check_cell_name(flag, value)
        elif "names" in metadata:
            check_name(flag, value, metadata["names"])
        elif {"least", "above", "below"} & {
            name for name, bound in metadata.items() if bound is not None
        } and not _is_number(value):
            raise InputError(
                f"{flag} must be a number, but it is "
                f"{value if isinstance(value, str) else describe(value)}"
            )
        elif metadata.get("least") is not None and not value >= metadata["least"]:
            raise InputError(
                f"{flag} must be at least {metadata['least']}, but it is {value}"
            )
        elif metadata.get("above") is not None and not value > metadata["above"]:
            raise InputError(
                f"{flag} must be more than {metadata['above']}, but it is {value}"
            )
        if metadata.get("below") is not None and not value < metadata["below"]:
            raise InputError(
                f"{flag} must be less than {metadata['below']}, but it is {value}"
            )


def _is_number(value: object) -> bool:
    """Return whether ``value`` is a real number."""
    return isinstance(value, numbers.Real)


def check_with_sources(options: Any, noun: str) -> None:
    """Apply `check_options` to a task whose ``data`` are one or two sources.

    The second source is the held-out one. ``data`` becomes a tuple.
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
    """Check that ``name`` is one of ``known``.

    The error suggests the most similar one.
    """
    known = tuple(known)
    if not isinstance(name, str):
        raise InputError(
            f"{what} must be one of {', '.join(known)}, but it is {describe(name)}: "
            f"pass its name"
        )
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise InputError(f"{what}: there is no {name!r}; {hint}")
