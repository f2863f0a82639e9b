"""Series out of CSV and TSV files: a row a sample, in the order of time."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np

from ...training import InputError
from .series import MISSING, Series, SeriesTable, as_time
from .splits import NAMES
from .tables import read_named_rows
from .ts_files import read_ts

WANTED = "a CSV or TSV file with a row for each sample, or a .ts file"
# Columns that have a meaning by their names, unless another is named.
KNOWN = {
    "time": ("time", "date"),
    "series": ("series",),
    "label": ("label",),
    "split": ("split",),
}


class Roles(NamedTuple):
    """Which columns of a table mean what, by name; empty where none was named.

    Attributes:
        columns: the values, with commas between; empty for all other columns.
        time: when a sample was taken: a number or a date.
        series: the series that it belongs to.
        label: the class of that series.
    """

    columns: str = ""
    time: str = ""
    series: str = ""
    label: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """Return the names of the values in lower case."""
        names = [name.strip().lower() for name in self.columns.split(",")]
        return tuple(name for name in names if name)


class _Sample(NamedTuple):
    """What a row holds."""

    line: int
    values: list[float]
    time: float | None
    label: str
    split: str


def read_series(source: str, roles: Roles = Roles()) -> SeriesTable:
    """Read the series of a ``.ts`` file, or else of a CSV or TSV file.

    The first line of a CSV file names the columns. ``time`` (or ``date``), ``series``,
    ``label`` and ``split`` have a meaning by their names, or ``roles`` names others.
    All further columns, or those that are named, are values. Separators and quotes are
    as for `read_table`. A value may be missing: the field is empty, or one of ``NaN``,
    ``NA``, ``null``, ``?``.

    Args:
        source: the path of the file.
        roles: the names of the columns.

    Raises:
        InputError: with file and line, for a column that is not there, a value that is
            no number, a time that is none or goes back, a label that changes within a
            series, an unknown split, or a file without samples.
    """
    if pathlib.Path(source).suffix.lower() == ".ts":
        return read_ts(source)
    found: dict[str, str] = {}
    names: list[str] = []

    def header(row: list[str], line: int, delimiter: str) -> list[str]:
        fields = [name.strip().lower() for name in row]
        found.update(_meanings(fields, roles, f"{source}:{line}"))
        names.extend(_value_names(fields, found, roles, f"{source}:{line}"))
        return fields

    samples: dict[str, list[_Sample]] = {}
    dated, only = False, pathlib.Path(source).stem
    for line, row in read_named_rows(source, WANTED, header):
        where = f"{source}:{line}"
        time, is_date = _time_of(row, found, where)
        dated = dated or is_date
        name = row[found["series"]].strip() if "series" in found else only
        group = samples.setdefault(name, [])
        group.append(
            _Sample(
                line,
                [_number(row[column], column, where) for column in names],
                time,
                row[found["label"]].strip() if "label" in found else "",
                _split_of(row, found, where),
            )
        )
        _check_follows(group, found, name, source)
    if not samples:
        raise InputError(f"{source} has no samples; --data must be {WANTED}")
    return SeriesTable(
        tuple(names),
        [_series(name, group) for name, group in samples.items()],
        dated,
    )


def _meanings(fields: list[str], roles: Roles, where: str) -> dict[str, str]:
    """Return the columns that mean something, by what they mean."""
    found = {}
    for meaning, known in KNOWN.items():
        asked = roles._asdict().get(meaning, "").strip().lower()
        if asked and fields.count(asked) != 1:
            count = fields.count(asked) or "no"
            raise InputError(
                f"{where}: --{meaning} {asked}: {count} columns are called so; there "
                f"are {', '.join(fields)}"
            )
        present = [asked] if asked else [name for name in known if name in fields]
        if present and present[0] not in roles.values:
            found[meaning] = present[0]
    if "label" in found and "series" not in found:
        raise InputError(
            f"{where}: the column {found['label']} gives each series a label, but no "
            f"column says which series a row belongs to: name it with --series COLUMN, "
            f"or leave the label out of --data to forecast"
        )
    return found


def _value_names(
    fields: list[str], found: dict[str, str], roles: Roles, where: str
) -> list[str]:
    """Return the names of the columns of values."""
    names = list(roles.values) or [x for x in fields if x not in found.values()]
    for name in names:
        if fields.count(name) != 1:
            raise InputError(
                f"{where}: the first line must name the columns, but "
                f"{fields.count(name) or 'no'} columns are called {name!r} in "
                f"{', '.join(fields)}: rename them, or choose with --columns"
            )
    if not names:
        raise InputError(
            f"{where}: no column holds values, since {', '.join(fields)} have other "
            f"meanings: add one, or name it with --columns"
        )
    return names


def _number(field: str, column: str, where: str) -> float:
    """Return a value, NaN where it is missing."""
    text = field.strip()
    if text.lower() in MISSING:
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = float("inf")
    if not np.isfinite(value):
        mend = (
            "write a decimal point"
            if text.replace(",", "", 1).lstrip("+-").isdigit()
            else f"name the columns that hold numbers with --columns, or say what this "
            f"one is: --time {column}, --series {column} or --label {column}"
        )
        raise InputError(
            f"{where}: the value of {column} must be a finite number, but it is "
            f"{text!r}: {mend}"
        )
    return value


def _time_of(
    row: dict[str, str], found: dict[str, str], where: str
) -> tuple[float | None, bool]:
    """Return the time of a sample, and whether it is a date."""
    if "time" not in found:
        return None, False
    text = row[found["time"]].strip()
    try:
        value, is_date = as_time(text)
    except ValueError:
        raise InputError(
            f"{where}: the {found['time']} must be a number, or a date such as "
            f"2026-11-05 or 2026-11-05 14:30, but it is {text!r}"
        ) from None
    return value, is_date


def _split_of(row: dict[str, str], found: dict[str, str], where: str) -> str:
    """Return the part of the split that a row belongs to."""
    if "split" not in found:
        return ""
    split = row[found["split"]].strip().lower()
    if split not in NAMES:
        raise InputError(f"{where}: the split {split!r} is none of {', '.join(NAMES)}")
    return NAMES[split]


def _check_follows(
    group: list[_Sample], found: dict[str, str], name: str, source: str
) -> None:
    """Check that a sample fits to the one before it in its series."""
    now = group[-1]
    if "label" in found and not now.label:
        raise InputError(
            f"{source}:{now.line}: the {found['label']} is empty; fill it in, or "
            f"remove the row"
        )
    if len(group) < 2:
        return
    before = group[-2]
    for what, old, new in (
        ("label", before.label, now.label),
        ("split", before.split, now.split),
    ):
        if old != new:
            raise InputError(
                f"{source}:{now.line}: the {what} of series {name!r} was {old!r} in "
                f"line {before.line} and is {new!r} here; a series has one {what}"
            )
    if now.time is not None and before.time is not None and now.time <= before.time:
        raise InputError(
            f"{source}:{now.line}: the {found['time']} does not come after that of "
            f"line {before.line} of series {name!r}: sort the rows, remove doubles, "
            f"or, if there are several series, name their column with --series"
        )


def _series(name: str, group: list[_Sample]) -> Series:
    """Join the samples of a series."""
    times = [sample.time for sample in group if sample.time is not None]
    return Series(
        name,
        np.array([sample.values for sample in group]),
        np.array(times) if times else None,
        group[0].label,
        group[0].split,
    )
