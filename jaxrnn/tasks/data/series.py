"""Series of numbers: their type, how they are scaled, and how time splits them."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ...training import InputError

# A series is irregular if a gap differs from the usual one by more than this share;
# months, which have 28 to 31 days, do not.
REGULAR = 0.2
MISSING = {"", "nan", "na", "n/a", "null", "none", "?"}


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One series of real-valued vectors.

    Attributes:
        name: what it is called in its file.
        values: the values, NaN where one is missing, ``(T, D)``.
        times: when they were taken, in seconds or in the unit of the file; None if
            nothing is known.
        label: its class, or "".
        split: the part that it belongs to, or "".
    """

    name: str
    values: Float[np.ndarray, "T D"]
    times: Float[np.ndarray, " T"] | None = None
    label: str = ""
    split: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @functools.cached_property
    def key(self) -> str:
        """Return a hash of the numbers, for the split and for resumed runs."""
        times = b"" if self.times is None else self.times.tobytes()
        return hashlib.sha256(self.values.tobytes() + times).hexdigest()


class SeriesTable(NamedTuple):
    """What a file holds.

    Attributes:
        columns: the names of the D values.
        series: the series.
        dated: whether its times are dates, in seconds since 1970.
    """

    columns: tuple[str, ...]
    series: list[Series]
    dated: bool = False


@dataclasses.dataclass(frozen=True)
class Scaler:
    """The means and scales of the columns, and the usual gap between samples.

    They are those of the training part alone.

    Attributes:
        mean, scale: by column, ``(D,)``; the scale is the standard deviation, or 1
            where the column is constant.
        gap: the median time between samples, or 1.
        irregular: whether some gap differs from it by more than a fifth.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    gap: float = 1.0
    irregular: bool = False

    @classmethod
    def of(cls, parts: Sequence[Series]) -> Scaler:
        """Measure the training part."""
        values = np.concatenate([series.values for series in parts])
        seen = np.isfinite(values)
        count = np.maximum(seen.sum(0), 1)
        mean = np.where(seen, values, 0).sum(0) / count
        variance = np.where(seen, np.square(values - mean), 0).sum(0) / count
        scale = np.sqrt(variance)
        # A constant column has a variance of rounding errors.
        is_constant = scale <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
        gap, irregular = _gaps_of(parts)
        return cls(
            tuple(mean.tolist()),
            tuple(np.where(is_constant, 1.0, scale).tolist()),
            gap,
            irregular,
        )

    def stored_values(self) -> dict[str, Any]:
        """Return what a run's config holds."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def stored(cls, values: dict[str, Any]) -> Scaler:
        """Return the scaler that a run's config holds."""
        return cls(
            tuple(values["mean"]),
            tuple(values["scale"]),
            values["gap"],
            values["irregular"],
        )

    def scaled(self, values: Float[np.ndarray, "*N D"]) -> Float[np.ndarray, "*N D"]:
        """Return values with mean 0 and standard deviation 1 in the training part."""
        return (values - np.array(self.mean)) / np.array(self.scale)


def _gaps_of(parts: Sequence[Series]) -> tuple[float, bool]:
    """Return the median gap, and whether the gaps differ."""
    known = [np.diff(series.times) for series in parts if series.times is not None]
    gaps = np.concatenate(known) if known else np.zeros(0)
    if not len(gaps):
        return 1.0, False
    usual = float(np.median(gaps))
    return usual, bool((np.abs(gaps / usual - 1) > REGULAR).any())


class Filled(NamedTuple):
    """A scaled series without gaps in its values.

    Attributes:
        values: the last value that was seen, or the mean before the first, ``(T, D)``.
        seen: where there is a value.
        gaps: the time since the sample before, in units of the usual gap; 1 at first.
    """

    values: Float[np.ndarray, "T D"]
    seen: Bool[np.ndarray, "T D"]
    gaps: Float[np.ndarray, " T"]


def filled(series: Series, scaler: Scaler) -> Filled:
    """Scale a series, and put the last value where one is missing."""
    values = scaler.scaled(series.values)
    seen = np.isfinite(values)
    last = np.maximum.accumulate(
        np.where(seen, np.arange(len(values))[:, None], -1), axis=0
    )
    held = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    gaps = np.ones(len(values))
    if series.times is not None:
        gaps[1:] = np.diff(series.times) / scaler.gap
    return Filled(np.where(last >= 0, held, 0.0), seen, gaps)


def refuse_missing(table: SeriesTable, source: str) -> None:
    """Refuse missing values, which only ``--missing mask`` allows.

    Raises:
        InputError: with the first of them and their number.
    """
    for series in table.series:
        rows, columns = np.nonzero(~np.isfinite(series.values))
        if len(rows):
            total = sum(int(np.isnan(each.values).sum()) for each in table.series)
            raise InputError(
                f"{source}: the value of {table.columns[columns[0]]} is missing in row "
                f"{rows[0] + 1} of series {series.name!r}, as are {total - 1} others: "
                f"fill them in, or let --missing mask hold the last value, tell the "
                f"model where it did, and leave these values out of loss and scores"
            )


class Cuts(NamedTuple):
    """Where the validation and the test part of a series begin."""

    validation: int
    test: int


def cuts_of(
    length: int, horizon: int, shares: tuple[float, float] = (0.7, 0.15)
) -> Cuts:
    """Split a series by time: training, then validation, then test.

    A series whose later parts would be shorter than the horizon is for training.
    """
    validation, test = int(shares[0] * length), int(sum(shares) * length)
    if min(test - validation, length - test) < horizon or validation < 2:
        return Cuts(length, length)
    return Cuts(validation, test)


def until(series: Series, end: int) -> Series:
    """Return the first ``end`` samples of a series."""
    times = None if series.times is None else series.times[:end]
    return dataclasses.replace(series, values=series.values[:end], times=times)


def as_time(text: str) -> tuple[float, bool]:
    """Return a time as a number, and whether it is a date, in seconds since 1970.

    Raises:
        ValueError: if it is neither a finite number nor a date.

    Example:
        >>> as_time("2.5"), as_time("1970/01/02")
        ((2.5, False), (86400.0, True))
    """
    try:
        value = float(text)
    except ValueError:
        date = datetime.datetime.fromisoformat(text.replace("/", "-"))
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        return date.timestamp(), True
    if not np.isfinite(value):
        raise ValueError("the time is not finite")
    return value, False
