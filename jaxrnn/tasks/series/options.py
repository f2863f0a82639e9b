"""The options of the task ``series``, and the data that they name."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, ClassVar, NamedTuple

from ...training import InputError
from ..config import cell_field, check_with_sources, choice, option
from ..data.series import SeriesTable, refuse_missing
from ..data.series_sets import SETS, VOWELS, WEATHER, files_of
from ..data.series_tables import Roles, read_series
from ..optimizers import optimizer_field, schedule_field

GOALS = ("auto", "forecast", "label")
LOSSES = ("absolute", "squared")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the task; the field names are the flags of the command line."""

    data: tuple[str, ...] = option(
        (WEATHER,),
        f"a CSV, TSV or .ts file, or {WEATHER} or {VOWELS} (packages); a second file "
        f"is the test part",
    )
    columns: str = option(
        "", "names of the columns of values, such as a,b; empty: all others"
    )
    time: str = option(
        "",
        "the column of times, numbers or dates; empty: time or date, if there is one",
    )
    series: str = option(
        "",
        "the column that names a row's series; empty: series, if there is one",
    )
    label: str = option(
        "", "the column of a series' label; empty: label, if there is one"
    )
    goal: str = choice(
        "auto", GOALS, "what is learned; auto: the label where there are labels"
    )
    target: str = option(
        "", "names of the columns to forecast; empty: all columns of values"
    )
    horizon: int = option(1, "number of future samples that are forecast", least=1)
    season: int = option(
        0,
        "number of samples of a season, for its naive forecast; 0: none, or the data "
        "set's own",
        least=0,
    )
    length: int = option(32, "number of samples that a forecast is made from", least=1)
    missing: str = choice(
        "refuse", ("refuse", "mask"), "what to do about missing values"
    )
    loss: str = choice("absolute", LOSSES, "the loss of forecasts, in scaled units")
    cell: Any = cell_field("gru")
    hidden: int = option(32, "number of units of each layer", least=1)
    layers: int = option(1, "number of recurrent layers", least=1)
    dropout: float = option(0.2, "dropout rate after each layer", least=0, below=1)
    batch: int = option(64, "number of windows or series per update", least=1)
    learning_rate: float = option(3e-3, "peak learning rate", above=0)
    optimizer: str = optimizer_field()
    schedule: str = schedule_field()
    clip: float = option(1.0, "largest global norm of the gradient", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay", least=0)
    seed: int = option(0, "random seed", least=0, below=2**31)

    QUICK: ClassVar[dict[str, Any]] = {"hidden": 16}

    def __post_init__(self):
        check_with_sources(self, "file")

    @property
    def is_of_package(self) -> bool:
        """Whether the data is a set out of a package, since no file is called so."""
        return self.data[0] in SETS and not os.path.exists(self.data[0])

    @property
    def roles(self) -> Roles:
        """What the columns mean, as far as it was said."""
        said = Roles(self.columns, self.time, self.series, self.label)
        if not self.is_of_package:
            return said
        known = SETS[self.data[0]].roles
        return Roles(*(a or b for a, b in zip(said, known, strict=True)))


class Data(NamedTuple):
    """What ``--data`` names.

    Attributes:
        tables: one or two files.
        names: what they are called.
        season: the number of samples of a season, or 0.
    """

    tables: list[SeriesTable]
    names: tuple[str, ...]
    season: int


def read_data(options: Options) -> Data:
    """Read the files, or a set out of a package.

    Raises:
        InputError: for files that cannot be read, that have other columns than the
            first, or missing values that nothing was said about.
    """
    first, season, files = options.data[0], options.season, options.data
    if options.is_of_package:
        if len(options.data) > 1:
            raise InputError(
                f"--data {first} has a test part of its own: leave {options.data[1]} "
                f"out, and score it with jaxrnn evaluate"
            )
        files, season = files_of(first), season or SETS[first].season
    data = Data([read_series(file, options.roles) for file in files], files, season)
    for table, name in zip(data.tables, data.names, strict=True):
        check_table(table, name, data.tables[0].columns, options)
    return data


def check_table(
    table: SeriesTable, source: str, columns: tuple[str, ...], options: Options
) -> None:
    """Check that a table has the columns of training, and no missing values."""
    if table.columns != columns:
        raise InputError(
            f"{source} has the columns {', '.join(table.columns)}, and the model reads "
            f"{', '.join(columns)}: name them in the first line, in this order"
        )
    if options.missing == "refuse":
        refuse_missing(table, source)


def forecasts(options: Options, data: Data) -> bool:
    """Return whether the series are forecast, rather than their labels learned."""
    labeled = all(one.label for table in data.tables for one in table.series)
    if options.goal == "label" and not labeled:
        raise InputError(
            f"--goal label: {data.names[0]} has no labels; name their column with "
            f"--label, and that of the series with --series"
        )
    return options.goal == "forecast" or (options.goal == "auto" and not labeled)


def numbers_of(names: str, columns: tuple[str, ...]) -> tuple[int, ...]:
    """Return the numbers of the columns to forecast; all, if none is named.

    Raises:
        InputError: for a name that is no column of values, or comes twice.
    """
    wanted = [name.strip().lower() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in columns or wanted.count(name) > 1:
            raise InputError(
                f"--target {names}: {name!r} must be one of the columns of values, "
                f"once: {', '.join(columns)}"
            )
    return tuple(map(columns.index, wanted)) or tuple(range(len(columns)))
