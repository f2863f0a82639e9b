"""Sentence pairs: dates in two languages, made by Babel, and TSV files."""

from __future__ import annotations

import datetime
import pathlib
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...training import InputError
from .packed import Packed, joined
from .splits import NAMES, Split, by_name, split_by, with_validation
from .tables import columns_in_words, read_rows
from .text import NAMED, WANTED
from .text_lines import utf8_lines

# The number of days, drawn from a hundred years, so that two digits determine a year.
DAYS = 6000
FIRST, HUNDRED_YEARS = datetime.date(1950, 1, 1), 36_524
STYLES = ("short", "medium", "long", "full")
SKELETONS = ("yMMMEd", "yMEd")  # such as "Thu, Nov 5, 2026" and "Thu, 11/5/2026"


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


def read_pairs(data: tuple[str, ...]) -> tuple[Split, tuple[str, ...]]:
    """Read the split pairs of ``--data``, and notes on how they were split.

    The data are ``dates:SOURCE:TARGET``, split by date; a TSV file, split by its third
    column or by a hash of the source; or two TSV files, of which the second is the test
    part.

    Raises:
        InputError: if files or lines cannot be read, a language is unknown, or a part
            has no pairs.
    """
    if data[0].startswith("dates:"):
        if len(data) > 1:
            raise InputError(
                f"--data {data[0]} has held-out dates of its own: leave out {data[1]}, "
                f"or give two TSV files"
            )
        return dates(data[0]), ()
    rows = read_tsv(data[0])
    pairs = rows.made(_pair)
    if any(split for _, split in rows):
        parts = by_name(pairs, (part for _, part in rows))
        notes: tuple[str, ...] = ()
    else:
        parts = split_by(pairs, lambda pair: pair.source)
        if len(data) > 1:
            parts = Split(joined(parts.train, parts.test), parts.validation, [])
        notes = (
            f"{data[0]} names no parts: split by a hash of the source (third column: "
            f"train, validation or test)",
        )
    if len(data) > 1:
        parts = parts._replace(test=read_tsv(data[1]).made(_pair))
        notes = (
            f"{data[1]} is the test part; a tenth of {data[0]}, by a hash of the "
            f"source, chooses the best parameters",
        )
    elif not parts.validation and parts.train:
        parts = with_validation(parts, lambda pair: pair.source)
        notes = (
            f"{data[0]} has no validation part: a tenth of the training part, by a "
            f"hash of the source",
        )
    for name, part in zip(Split._fields, parts, strict=True):
        if not part:
            raise InputError(
                f"{data[0]}: the {name} part has no pairs; give more pairs, or name "
                f"the parts in a third column"
            )
    return parts, notes


def _pair(source: str, target: str, part: str) -> Pair:
    """Return a pair without its part."""
    return Pair(source, target)


def read_tsv(source: str) -> Packed[tuple[Pair, str]]:
    """Read pairs, each with the part that its third column names, or "".

    Empty lines and a first line ``source<TAB>target`` are skipped; quotes have no
    special meaning. A file whose name ends in ``.csv`` has commas instead of tabs, and
    quotes as in `tables.read_rows`.
    """
    if not pathlib.Path(source).exists():
        raise InputError(
            f"{source} cannot be read: no such file; --data must be a TSV file, or "
            f"dates:en:ko"
        )
    rows = Packed(
        lambda source, target, part: (Pair(source, target), part),
        _fields_of_pairs(source),
        long=2,
    )
    if not rows:
        raise InputError(
            f"{source} has no pairs; --data must have lines of source<TAB>target"
        )
    return rows


def _fields_of_pairs(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield source, target and part of each line, as `read_tsv` reads them."""
    is_csv = pathlib.Path(source).suffix.lower() == ".csv"
    lines = utf8_lines(source, WANTED, NAMED, ends="" if is_csv else "\n")
    for number, fields in (
        read_rows(source, lines)
        if is_csv
        else enumerate((line.rstrip("\n").split("\t") for line in lines), start=1)
    ):
        cells = [cell.strip() for cell in fields]
        if not any(cells) or (
            number == 1 and [cell.lower() for cell in cells[:2]] == ["source", "target"]
        ):
            continue
        where, separator = f"{source}:{number}", "," if is_csv else "<TAB>"
        if not 2 <= len(cells) <= 3:
            raise InputError(
                f"{where}: expected source{separator}target, with or without a third "
                f"column, but this line has {columns_in_words(len(cells))}"
            )
        if not cells[0] or not cells[1]:
            raise InputError(
                f"{where}: the {'target' if cells[0] else 'source'} is empty; fill it "
                f"in, or remove the line"
            )
        part = cells[2].lower() if len(cells) == 3 else ""
        if part and part not in NAMES:
            raise InputError(
                f"{where}: {cells[2]!r} is not the name of a part; the third column "
                f"must be train, validation or test"
            )
        yield cells[0], cells[1], NAMES.get(part, "")


def dates(name: str) -> Split:
    """Make pairs of the same date in the same style in two languages.

    The name is ``dates:SOURCE:TARGET``, and the formats are those of Unicode's CLDR.
    The split is by date: all styles of a date are in one part. Where two styles write a
    date in the same way, as English does in May, the translation is that of the shorter
    style.
    """
    try:
        from babel import Locale, UnknownLocaleError
        from babel.dates import format_date, format_skeleton
    except ImportError:
        raise InputError(
            f"--data {name} needs the package babel: pip install 'jaxrnn[cli]'"
        ) from None
    try:
        _, *languages = name.split(":")
        source, target = (
            Locale.parse(language.replace("-", "_")) for language in languages
        )
    except (UnknownLocaleError, ValueError, TypeError):
        raise InputError(
            f"--data {name}: expected two languages, such as dates:en:ko or dates:de:fr"
        ) from None
    days = random.Random(0).sample(range(HUNDRED_YEARS), DAYS)
    split = split_by([FIRST + datetime.timedelta(days=day) for day in days], str)

    def pairs(days: Sequence[datetime.date]) -> list[Pair]:
        translations: dict[str, str] = {}
        for day in days:
            for style in STYLES:
                translations.setdefault(
                    format_date(day, style, source), format_date(day, style, target)
                )
            for skeleton in SKELETONS:
                translations.setdefault(
                    *(
                        format_skeleton(skeleton, day, locale=locale)
                        for locale in (source, target)
                    )
                )
        return [Pair(*pair) for pair in translations.items()]

    return Split(*map(pairs, split))
