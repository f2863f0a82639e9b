"""Series to forecast: split by time, and scaled by the training part alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...training import InputError
from ..data.series import Cuts, Scaler, Series, cuts_of, until
from ..data.windows import Features
from ..metrics.forecasts import Origin, naive_errors
from ..models.series_model import takes_elapsed_time
from ..supervised import digest
from .options import Data, Options, numbers_of


class Parts(NamedTuple):
    """Series with the places where their validation and test parts begin."""

    series: list[Series]
    cuts: list[Cuts]

    @property
    def training(self) -> list[Series]:
        """Return the training part of each series."""
        return [
            until(one, cuts.validation)
            for one, cuts in zip(self.series, self.cuts, strict=True)
        ]

    def origins(self, part: str, horizon: int, length: int) -> list[Origin]:
        """Return the places in a part whose next ``horizon`` samples are all in it.

        Where a series is of this part from its beginning, ``length`` samples come
        before the first, if there are as many.
        """
        found = []
        for number, (one, cuts) in enumerate(zip(self.series, self.cuts, strict=True)):
            begin, end = (
                (cuts.validation, cuts.test)
                if part == "validation"
                else (cuts.test, len(one))
            )
            begin = begin or max(min(length, len(one) - horizon), 1)
            found += [Origin(number, t) for t in range(begin - 1, end - horizon)]
        return found


def split_by_time(data: Data, horizon: int) -> tuple[Parts, str]:
    """Split series by time, or take a second file as the test part.

    Raises:
        InputError: if no series is long enough, or a column names the parts.
    """
    first, *second = [table.series for table in data.tables]
    if any(one.split for table in data.tables for one in table.series):
        raise InputError(
            f"{data.names[0]} has a column split, but forecasts are split by time: "
            f"leave it out, or give the test part as a second file"
        )
    if second:
        cuts = [_cut_without_test(len(one), horizon) for one in first]
        parts = Parts([*first, *second[0]], [*cuts, *[Cuts(0, 0)] * len(second[0])])
        note = f"test part: {data.names[1]}; the last 15 % of each other series"
    else:
        cuts = [cuts_of(len(one), horizon) for one in first]
        parts = Parts(first, cuts)
        note = "split by time: the last 15 % of each series is the test part, and the "
        note += "15 % before it"
    for part in ("validation", "test"):
        if not parts.origins(part, horizon, 1):
            longest = max(len(one) for one in parts.series)
            raise InputError(
                f"{data.names[0]}: the longest series has {longest} samples, which "
                f"leaves none for the {part} part: the last and the second last 15 % "
                f"of a series must hold --horizon {horizon}; give longer series, or a "
                f"smaller --horizon"
            )
    short = sum(
        cut.validation == len(one) for one, cut in zip(first, cuts, strict=True)
    )
    also = f"; {short} short series are for training alone" if short else ""
    return parts, f"{note} validates{also}"


def _cut_without_test(length: int, horizon: int) -> Cuts:
    """Split a series into training and validation."""
    validation = length - max(horizon, int(0.15 * length))
    return Cuts(length if validation < 2 else validation, length)


def described(options: Options, data: Data) -> tuple[Parts, str, dict[str, Any]]:
    """Return the parts, a note on the split, and what config.json holds of the data."""
    parts, note = split_by_time(data, options.horizon)
    columns = data.tables[0].columns
    targets = numbers_of(options.target, columns)
    training = [one for one in parts.training if len(one)]
    errors = naive_errors(
        [one.values[:, list(targets)] for one in training], data.season
    )
    if not (errors > 0).any() and data.season:
        raise InputError(
            f"--season {data.season}: no training part is longer than that, or all "
            f"seasons are alike; leave it out"
        )
    if not (errors > 0).any():
        raise InputError(
            f"{data.names[0]}: the columns to forecast never change in the training "
            f"part, so there is nothing to learn"
        )
    config = {
        "text": digest([one.key for one in parts.series]),
        "series": {
            "goal": "forecast",
            "columns": list(columns),
            "targets": list(targets),
            "season": data.season,
            "naive_errors": [float(x) if x == x else None for x in errors],
            **Scaler.of(training).stored_values(),
        },
    }
    return parts, note, config


def features_of(options: Options, config: dict[str, Any]) -> Features:
    """Return what the network reads of a sample."""
    irregular = config["series"]["irregular"]
    return Features(
        len(config["series"]["columns"]),
        options.missing == "mask",
        options.horizon if irregular else 0,
        elapsed=irregular and takes_elapsed_time(options.cell, options.hidden),
    )
