"""Series in the data files of packages, which are not imported."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import NamedTuple

from ...training import InputError
from .series_tables import Roles

WEATHER, VOWELS = "seattle-weather", "japanese-vowels"


class SeriesSet(NamedTuple):
    """Series that can be named instead of a file.

    Attributes:
        package: the package that holds them.
        files: the files in its folder, the second for the test.
        install: the command that installs it.
        roles: what the columns mean.
        season: the number of steps of a season, or 0.
    """

    package: str
    files: tuple[str, ...]
    install: str
    roles: Roles = Roles()
    season: int = 0


_VOWELS = "datasets/data/JapaneseVowels/JapaneseVowels"
SETS = {
    # 1,461 days of precipitation (mm), temperatures (C) and wind (m/s), from public
    # data of NOAA; the package is under the MIT license, 0.2 MB.
    WEATHER: SeriesSet(
        "vega_datasets",
        ("_data/seattle-weather.csv",),
        "pip install --no-deps vega-datasets==0.9.0",
        Roles("precipitation,temp_max,temp_min,wind"),
        365,
    ),
    # 640 utterances of 9 speakers, 12 coefficients in 7 to 29 steps: Kudo, Toyama &
    # Shimbo (1999), from the UCI archive under CC BY 4.0; the package is under the BSD
    # license, 6 MB to download and 33 MB on the disk.
    VOWELS: SeriesSet(
        "aeon",
        (f"{_VOWELS}_TRAIN.ts", f"{_VOWELS}_TEST.ts"),
        "pip install --no-deps aeon==1.6.0",
    ),
}


def files_of(name: str) -> tuple[str, ...]:
    """Return the paths of the files of a set.

    Raises:
        InputError: if its package is not installed or has no such files.
    """
    known = SETS[name]
    package = importlib.util.find_spec(known.package)
    if package is None or package.origin is None:
        raise InputError(
            f"--data {name} is in the package {known.package.replace('_', '-')}: "
            f"{known.install}"
        )
    paths = [pathlib.Path(package.origin).parent / file for file in known.files]
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"--data {name}: this version of {known.package.replace('_', '-')} has "
                f"no file {path}: {known.install}"
            )
    return tuple(map(str, paths))
