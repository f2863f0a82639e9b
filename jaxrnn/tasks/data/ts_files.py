"""The ``.ts`` format of the UCR and UEA archives of labeled series."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

import numpy as np

from ...training import InputError
from .series import MISSING, Series, SeriesTable, as_time
from .text import read_utf8

WANTED = "a .ts file: lines that begin with @, then @data, then a series in each line"
_PAIR = re.compile(r"\(([^(),]+),([^(),]+)\)")


class _Header(NamedTuple):
    """What the lines that begin with ``@`` say."""

    labels: tuple[str, ...] | None
    timed: bool
    dimensions: int | None


def read_ts(source: str) -> SeriesTable:
    """Read a ``.ts`` file: dimensions between colons, values between commas.

    The last field of a line is the label if ``@classLabel`` is true. Series may differ
    in length; ``?`` and ``NaN`` are missing values; with ``@timeStamps true`` samples
    are ``(time,value)``. Lines that begin with ``#`` or ``%`` are comments.

    Args:
        source: the path of the file.

    Raises:
        InputError: with file and line, for a header that is incomplete or of a
            regression problem, a series with other dimensions, of unequal lengths in
            its dimensions or with an unknown label, and a value that is no number.
    """
    header: dict[str, str] = {}
    series: list[Series] = []
    known: _Header | None = None
    dated = False
    for number, line in enumerate(read_utf8(source, WANTED).split("\n"), 1):
        text, where = line.strip(), f"{source}:{number}"
        if not text or text[0] in "#%":
            continue
        if known is None:
            if not text.startswith("@"):
                raise InputError(
                    f"{where}: this line stands before @data, so it must begin with @ "
                    f"or #; --data must be {WANTED}"
                )
            name, _, value = text[1:].partition(" ")
            if name.lower() == "data":
                known = _read_header(header, where)
            header[name.lower()] = value.strip()
            continue
        one, has_dates = _read_line(text, known, len(series) + 1, where)
        if series and one.values.shape[1] != series[0].values.shape[1]:
            raise InputError(
                f"{where}: this series has {one.values.shape[1]} dimensions, and the "
                f"first has {series[0].values.shape[1]}; a colon separates dimensions"
            )
        series.append(one)
        dated = dated or has_dates
    if not series:
        raise InputError(f"{source} has no series; --data must be {WANTED}")
    width = series[0].values.shape[1]
    names = ["value"] if width == 1 else [f"dim{i + 1}" for i in range(width)]
    return SeriesTable(tuple(names), series, dated)


def _read_header(header: dict[str, str], where: str) -> _Header:
    """Check the header."""
    if header.get("targetlabel", "").lower().startswith("true"):
        raise InputError(
            f"{where}: @targetLabel true says that the labels are numbers to be "
            f"regressed on, but series learns classes (@classLabel true) or forecasts"
        )
    flag, *labels = header.get("classlabel", "").split() or [""]
    if flag.lower() not in ("true", "false"):
        raise InputError(
            f"{where}: the lines above must say whether series have labels: "
            f"@classLabel false, or @classLabel true and the labels"
        )
    dimensions = header.get("dimensions", header.get("dimension", ""))
    return _Header(
        tuple(labels) if flag.lower() == "true" else None,
        header.get("timestamps", "").lower() == "true",
        int(dimensions) if dimensions.isdecimal() else None,
    )


def _read_line(
    text: str, header: _Header, number: int, where: str
) -> tuple[Series, bool]:
    """Read one series, and say whether its times are dates."""
    # Colons also stand inside times of day.
    fields = re.split(r":(?![^()]*\))", text)
    label = ""
    if header.labels is not None:
        label = fields.pop().strip()
        if not label or (header.labels and label not in header.labels):
            raise InputError(
                f"{where}: the label {label!r} after the last colon is none of "
                f"{', '.join(header.labels) or 'any text'}, which @classLabel names"
            )
    if not fields or (header.dimensions and len(fields) != header.dimensions):
        raise InputError(
            f"{where}: expected {header.dimensions or 'some'} dimensions with colons "
            f"between, but this line has {len(fields)}"
        )
    parts = [_dimension(field, header.timed, where) for field in fields]
    lengths = {len(values) for _, values, _ in parts}
    if len(lengths) > 1 or any((times != parts[0][0]) for times, _, _ in parts):
        raise InputError(
            f"{where}: the dimensions of a series must have the same samples, but "
            f"they have {', '.join(map(str, sorted(lengths)))} of them or other "
            f"times: write ? where a value is missing"
        )
    times = parts[0][0]
    if any(b <= a for a, b in itertools.pairwise(times)):
        raise InputError(f"{where}: the times of a series must increase")
    values = np.array([values for _, values, _ in parts]).T
    return (
        Series(str(number), values, np.array(times) if times else None, label),
        parts[0][2],
    )


def _dimension(
    field: str, timed: bool, where: str
) -> tuple[list[float], list[float], bool]:
    """Return the times, the values, and whether the times are dates."""
    if not field.strip():
        raise InputError(f"{where}: a dimension has no values")
    pairs = _PAIR.findall(field) if timed else [("", x) for x in field.split(",")]
    if timed and not pairs:
        raise InputError(
            f"{where}: @timeStamps true asks for samples (time,value) with commas "
            f"between, but this dimension is {field[:40]!r}"
        )
    times, values, dated = [], [], False
    for time, value in pairs:
        try:
            if timed:
                at, dated = as_time(time.strip())
                times.append(at)
            text = value.strip()
            values.append(float("nan" if text.lower() in MISSING else text))
            if np.isinf(values[-1]):
                raise ValueError("the value is infinite")
        except ValueError:
            raise InputError(
                f"{where}: {f'({time},{value})' if timed else value.strip()!r} is no "
                f"sample: values are finite numbers, or ? where one is missing"
            ) from None
    return times, values, dated
