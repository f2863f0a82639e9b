"""Readers of data files: labeled texts as CSV or TSV, tagged sentences as CoNLL."""

from __future__ import annotations

import csv
import itertools
import json
import pathlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from ...training import InputError
from .packed import Packed, PackedSentences
from .series import Series
from .splits import NAMES, Split, by_name, split_by, with_validation
from .text_lines import utf8_lines


class Example(NamedTuple):
    """A text and its label, and the part of the split that it belongs to, or ""."""

    text: str
    label: str
    split: str = ""


class Tagged(NamedTuple):
    """A sentence and the tag of each word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


T = TypeVar("T", Example, Tagged, Series)


COLUMNS = "text,label"


def read_table(source: str, columns: str = COLUMNS) -> Sequence[Example]:
    """Read the examples of a CSV or TSV file.

    The first line names the columns: that of the text, that of the label, and
    optionally ``split``. Quoted fields may contain separators, quotes (doubled) and
    line breaks; blank lines are skipped and other columns ignored. The separator is a
    tab if the name of the file ends in ``.tsv`` or ``.tab`` or the first line contains
    one, and a semicolon if the first line contains one but no comma.

    Args:
        source: the path of the file.
        columns: the names of the two columns, with a comma between.

    Raises:
        InputError: with file and line, for a missing column, a row with too few or too
            many fields, an empty text or label, an unknown split, unbalanced quotes, a
            file that is not UTF-8 or has no rows.
    """
    names = column_names(columns)
    wanted = f"a CSV or TSV file with the columns {columns}"
    rows = read_named_rows(
        source,
        wanted,
        lambda row, line, delimiter: _header(row, source, line, delimiter, names),
    )
    examples = Packed(
        Example, (_example(values, source, line, names) for line, values in rows)
    )
    if not examples:
        raise InputError(
            f"{source} has no examples; --data must be {wanted}, one row per example"
        )
    return examples


def read_named_rows(
    source: str, wanted: str, header: Callable[[list[str], int, str], list[str]]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV or TSV file with their lines, as fields by column.

    Args:
        source: the path of the file.
        wanted: what ``--data`` must be, for error messages.
        header: checks the first row, given with its line and the separator, and
            returns the names of the columns.

    Raises:
        InputError: with file and line, for a row with too few or too many fields,
            unbalanced quotes, or a file that is not UTF-8.
    """
    lines = utf8_lines(source, wanted, ends="")
    first = next(lines)
    delimiter = _delimiter(source, first)
    names: list[str] | None = None
    for line, row in read_rows(source, itertools.chain([first], lines), delimiter):
        if names is None:
            names = header(row, line, delimiter)
            continue
        if len(row) != len(names):
            raise InputError(
                f"{source}:{line}: expected {len(names)} fields "
                f"({', '.join(names)}), but this row has {len(row)}; a field that "
                f'contains a {_DELIMITERS[delimiter]} needs quotes: "..."'
            )
        yield line, dict(zip(names, row, strict=True))


def column_names(columns: str) -> tuple[str, str]:
    """Return the names of the columns of the text and of the label, in lower case.

    Raises:
        InputError: unless there are two different names.
    """
    names = [name.strip().lower() for name in columns.split(",")]
    if len(set(names)) != 2 or len(names) != 2 or not all(names):
        raise InputError(
            f"--columns takes the names of two columns, of the text and of the label, "
            f"such as review,sentiment, but it is {columns!r}"
        )
    return names[0], names[1]


_DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon"}


def _delimiter(source: str, first: str) -> str:
    """Return what separates the fields of a file with this first line."""
    if pathlib.Path(source).suffix.lower() in (".tsv", ".tab") or "\t" in first:
        return "\t"
    if first.startswith("{") and _is_json(first):
        raise InputError(
            f"{source}:1: this line is JSON; --data must be a CSV or TSV file: "
            f"pandas.read_json({source!r}, lines=True).to_csv('NEW.csv', index=False) "
            f"makes one in Python"
        )
    return ";" if ";" in first and "," not in first else ","


def _is_json(line: str) -> bool:
    """Return whether a line is JSON."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def read_rows(
    source: str, lines: Iterable[str], delimiter: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """Yield the nonblank rows of a CSV or TSV file with their first line numbers.

    Args:
        source: the path of the file, for error messages.
        lines: its lines, as `utf8_lines` gives them with ``ends=""``.
        delimiter: what separates the fields.

    Raises:
        InputError: with file and line, for unbalanced quotes.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{source}:{line}: the row that begins here has a field that cannot be "
                f"read ({error}); a quote at the "
                "beginning of a field needs one at its end, and quotes inside are "
                'doubled: ""'
            ) from None
        if row is None:
            return
        if any(field.strip() for field in row):
            yield line, row


def _header(
    row: list[str], source: str, line: int, delimiter: str, names: tuple[str, str]
) -> list[str]:
    """Check the header, and return the names of the columns in lower case."""
    header = [name.strip().lower() for name in row]
    for name in names:
        if header.count(name) == 1:
            continue
        first = delimiter.join(row[:8])
        if name in header:
            problem = f"{header.count(name)} columns are called {name}"
            repair = "rename all but one"
        else:
            problem = f"no column is called {name}"
            wanted = delimiter.join(names).replace("\t", "<TAB>")
            repair = f"write {wanted} as the first line"
            if len(header) > 1:
                yours = shlex.quote(f"{row[0]},{row[1]}")
                repair += f", or, if these are names, add --columns {yours}"
        raise InputError(
            f"{source}:{line}: the first line must name the columns, but {problem} in "
            f"{first!r}: {repair}"
        )
    return header


def _example(
    row: dict[str, str], source: str, line: int, names: tuple[str, str]
) -> Example:
    """Convert a row to an example."""
    text, label = (row[name].strip() for name in names)
    split = row.get("split", "").strip().lower()
    for name, value in zip(names, (text, label), strict=True):
        if not value:
            raise InputError(
                f"{source}:{line}: the {name} is empty; fill it in, or remove the row"
            )
    if "split" in row and split not in NAMES:
        raise InputError(
            f"{source}:{line}: the split {split!r} is none of {', '.join(NAMES)}"
        )
    return Example(text, label, NAMES.get(split, ""))


def read_tagged(source: str) -> Sequence[Tagged]:
    """Read the sentences of a CoNLL-U file (``.conllu``), or else ``FORM<TAB>TAG``.

    A blank line ends a sentence. Lines that begin with ``#`` and contain no tab are
    comments.

    Raises:
        InputError: with file and line, for a line with too few or too many columns, an
            empty word or tag, a file that is not UTF-8 or has no sentences.
    """
    if pathlib.Path(source).suffix.lower() == ".conllu":
        return read_conllu(source)
    return _sentences(
        source, _conll_line, "a CoNLL file of lines FORM<TAB>TAG, or a .conllu file"
    )


def read_conllu(source: str) -> Sequence[Tagged]:
    """Read words (column FORM) and tags (UPOS) of a CoNLL-U file.

    Ranges of several words (1-2) and empty nodes (1.1) are skipped.
    """
    return _sentences(source, _conllu_line, "a CoNLL-U file")


def _conll_line(line: str) -> tuple[str, str] | str | None:
    """Return word and tag of a line, None for a comment, or a message for a mistake."""
    fields = line.split("\t")
    if len(fields) == 1 and line.startswith("#"):
        return None
    if len(fields) != 2:
        return (
            f"expected a word and its tag with a tab between (FORM<TAB>TAG), but this "
            f"line has {columns_in_words(len(fields))}"
        )
    return fields[0].strip(), fields[1].strip()


def columns_in_words(count: int) -> str:
    """Return a number of columns in words."""
    return f"{count} column{'' if count == 1 else 's'}"


def _conllu_line(line: str) -> tuple[str, str] | str | None:
    """Return word and tag of a line, None to skip it, or a message for a mistake."""
    if line.startswith("#"):
        return None
    fields = line.split("\t")
    if len(fields) != 10:
        return (
            f"expected the 10 columns of CoNLL-U with tabs between, but this line has "
            f"{len(fields)}"
        )
    return (
        None
        if "-" in fields[0] or "." in fields[0]
        else (fields[1].strip(), fields[3].strip())
    )


def _sentences(
    source: str, read: Callable[[str], tuple[str, str] | str | None], wanted: str
) -> Sequence[Tagged]:
    """Read sentences with ``read``, which parses one line."""
    sentences = PackedSentences(Tagged, _pairs(source, read, wanted))
    if not sentences:
        raise InputError(f"{source} has no examples; --data must be {wanted}")
    return sentences


def _pairs(
    source: str, read: Callable[[str], tuple[str, str] | str | None], wanted: str
) -> Iterator[list[tuple[str, str]]]:
    """Yield the words and tags of each sentence."""
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(itertools.chain(utf8_lines(source, wanted), [""]), 1):
        line = line.removesuffix("\n")
        if not line.strip():
            if pairs:
                yield pairs
            pairs = []
            continue
        parsed = read(line)
        if isinstance(parsed, str):
            raise InputError(
                f"{source}:{number}: {parsed}; a blank line separates sentences"
            )
        if parsed is not None:
            if not all(parsed):
                raise InputError(
                    f"{source}:{number}: the {'tag' if parsed[0] else 'word'} is empty"
                )
            pairs.append(parsed)


def split_files(
    sources: Sequence[str],
    read: Callable[[str], Sequence[T]],
    key: Callable[[Any], str],
) -> tuple[Split, tuple[str, ...]]:
    """Split one or two files, and return a note on how it was done.

    A second file is the test part, and so are the rows whose column ``split`` is test;
    otherwise a hash of the example selects a tenth as the test part. If no validation
    part is named, a hash selects a tenth of the training part.

    Raises:
        InputError: if a part is empty, or a second file and a column ``split``
            contradict each other.
    """
    examples, note = read(sources[0]), ""
    named = any(
        isinstance(example, (Example, Series)) and example.split for example in examples
    )
    if named and len(sources) > 1:
        raise InputError(
            f"{sources[0]} has a column split, and {sources[1]} is a held-out file: "
            f"give one or the other"
        )
    if len(sources) > 1:
        split = with_validation(Split(examples, [], read(sources[1])), key)
        note = (
            f"test part: {sources[1]}; a hash chose {len(split.validation)} of "
            f"{sources[0]} to validate on"
        )
    elif named:
        split = by_name(
            examples,
            (
                each.split if isinstance(each, (Example, Series)) else ""
                for each in examples
            ),
        )
        note = f"test part: the {len(split.test)} rows whose column split says test"
        if not split.validation:
            split = with_validation(split, key)
            note += (
                f"; a hash chose {len(split.validation)} of the others to validate on"
            )
    else:
        split = split_by(examples, key)
        note = (
            f"{sources[0]} names no test part: a hash of each example chose "
            f"{len(split.train)} to train on, "
            f"{len(split.validation)} to validate on, {len(split.test)} to test on"
        )
    for name, part in split._asdict().items():
        if not part:
            raise InputError(
                f"{sources[0]}: its {len(examples)} examples leave none for the {name} "
                f"part; give more, or name the parts: a "
                "second --data file is held out, and so are rows whose column split "
                "says test"
            )
    return split, (note,)
