"""Pictures with captions: glyphs of matplotlib's fonts, named by Unicode, and
folders of the user's own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import re
import unicodedata
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from ...training import InputError
from .splits import NAMES, Split, by_name, split_by, with_validation
from .tables import read_rows
from .text import read_text

SANS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique")
TRAIN = (*SANS, "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique")
VALIDATION, TEST = (
    ("STIXGeneral",),
    ("DejaVuSerif",),
)  # each of a family that the other parts do not show
SCRIPTS = ("LATIN", "GREEK", "CYRILLIC")
TABLE = "captions.csv"


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A picture, dark on light as 1 on 0, and its caption."""

    picture: UInt8[np.ndarray, "S S"]
    caption: str
    name: str


def pillow() -> Any:
    """Pillow's Image module, or an error that says how to get it."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError(
            "pictures need the package pillow: pip install 'jaxrnn[cli]'"
        ) from None
    return Image


def read_captioned(source: str, size: int) -> tuple[Split, tuple[str, ...]]:
    """The pictures of ``--data``, split, and notes on how: ``glyphs`` by typeface,
    ``glyphs:N`` those whose names have at most N words; a folder by the column
    ``split`` of its captions.csv, else by a hash of the files' names.
    """
    if embedded(source):
        faces = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
        most = int(source.partition(":")[2] or 99)
        if most < 4:
            raise InputError(
                f"--data {source}: the shortest names have 4 words, such as LATIN "
                f"SMALL LETTER A"
            )
        rows = (
            [glyph for face in faces[part] for glyph in glyphs(face, size, most)]
            for part in Split._fields
        )
        return Split(*rows), ()
    found = read_folder(source, size)
    if any(part for _, part in found):
        split = by_name(found)
        notes: tuple[str, ...] = ()
        if not split.validation and split.train:
            split = with_validation(split, lambda row: row.name)
            notes = (
                f"{source}/{TABLE} has no validation part: a tenth of the training "
                f"part, by a hash of the file's name",
            )
    else:
        split = split_by([row for row, _ in found], lambda row: row.name)
        notes = (
            f"{source}/{TABLE} has no column split: split by a hash of the file's "
            f"name, 80/10/10",
        )
    for name, part in zip(Split._fields, split, strict=True):
        if not part:
            raise InputError(
                f"{source}: the {name} part has no pictures; give more, or name the "
                f"parts in a column split"
            )
    sizes = (
        f"pictures: {len(split.train)} train, {len(split.validation)} validation, "
        f"{len(split.test)} test"
    )
    return split, (*notes, sizes)


def embedded(source: str) -> bool:
    """Whether ``source`` is ``glyphs`` or ``glyphs:N``, and no folder of that name."""
    return (
        re.fullmatch(r"glyphs(:\d{1,2})?", source) is not None
        and not pathlib.Path(source).exists()
    )


def glyphs(face: str, size: int, most: int = 99) -> list[Captioned]:
    """The Latin, Greek and Cyrillic letters of a typeface that matplotlib brings along,
    and their Unicode names, those of at most ``most`` words. A capital H is 0.59 of the
    picture's side tall, in whatever typeface.
    """
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        raise InputError(
            "--data glyphs needs the package matplotlib, for its fonts: pip install "
            "'jaxrnn[cli]'"
        )
    from matplotlib.ft2font import FT2Font

    pillow()
    from PIL import Image, ImageDraw, ImageFont

    path = str(
        pathlib.Path(package.origin).parent
        / "mpl-data"
        / "fonts"
        / "ttf"
        / f"{face}.ttf"
    )
    layout = ImageFont.Layout.BASIC
    capital = (
        -ImageFont.truetype(path, size=1000, layout_engine=layout).getbbox(
            "H", anchor="ls"
        )[1]
        / 1000
    )
    font = ImageFont.truetype(
        path, size=round(size * 0.59 / capital), layout_engine=layout
    )
    found = []
    for code in sorted(FT2Font(path).get_charmap()):
        words = unicodedata.name(chr(code), "").split()
        if (
            not unicodedata.category(chr(code)).startswith("L")
            or words[:1] == []
            or words[0] not in SCRIPTS
        ):
            continue
        if "LETTER" in words and len(words) <= most:
            canvas = Image.new("L", (size, size))
            # on one base line, or a small letter would look like its capital
            ImageDraw.Draw(canvas).text(
                (size / 2, size * 0.77), chr(code), fill=255, font=font, anchor="ms"
            )
            found.append(
                Captioned(np.asarray(canvas), " ".join(words), f"{face}:{code:04X}")
            )
    return found


def read_picture(
    path: pathlib.Path, size: int, where: str = ""
) -> UInt8[np.ndarray, "S S"]:
    """A picture of any size and mode as grey, dark on light becoming bright on dark:
    transparent is white, the longer side fits into ``size`` and the rest is white.

    Raises:
        BadInput: for a file that is missing or no picture.
    """
    image, prefix = pillow(), f"{where}: " if where else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            with image.open(path) as file:
                deep = file.mode.startswith(
                    "I"
                )  # 16 bits, which convert would cut off at 255
                picture = (
                    image.fromarray((np.asarray(file) // 257).astype(np.uint8))
                    if deep
                    else file
                ).convert("RGBA")
    except FileNotFoundError:
        raise InputError(f"{prefix}there is no picture {path}") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        image.DecompressionBombError,
        image.DecompressionBombWarning,
    ) as error:
        raise InputError(
            f"{prefix}{path} is no picture that Pillow can read: {error}; PNG is sure"
        ) from None
    grey = image.alpha_composite(
        image.new("RGBA", picture.size, "white"), picture
    ).convert("L")
    if grey.size != (size, size):
        scale = size / max(grey.size)
        width, height = (max(round(side * scale), 1) for side in grey.size)
        canvas = image.new("L", (size, size), "white")
        canvas.paste(
            grey.resize((width, height), image.Resampling.LANCZOS),
            ((size - width) // 2, (size - height) // 2),
        )
        grey = canvas
    return 255 - np.asarray(grey)


def read_folder(source: str, size: int) -> list[tuple[Captioned, str]]:
    """Pictures and captions of a folder with captions.csv (columns ``file,caption``, if
    wanted ``split``), and the part that each is in, or "".
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise InputError(
            f"{source} is no folder; --data wants one with PNG files and {TABLE}, or "
            f"the word glyphs"
        )
    table = str(folder / TABLE)
    if not (folder / TABLE).exists():
        raise InputError(
            f"{source} has no {TABLE}: write one with the columns file,caption"
        )
    numbered = read_rows(table, read_text(table))
    first, header = next(numbered, (1, []))
    columns = [name.strip().lower() for name in header]
    if not {"file", "caption"} <= set(columns):
        raise InputError(
            f"{table}:{first}: expected the columns file,caption, but got "
            f"{','.join(columns)}"
        )
    rows = []
    for line, fields in numbered:
        where, row = f"{table}:{line}", dict(zip(columns, fields, strict=False))
        if len(fields) != len(columns):
            raise InputError(
                f"{where}: expected {len(columns)} columns, {','.join(columns)}; a "
                f"comma in a caption needs quotes"
            )
        file, caption, part = (
            " ".join(row.get(name, "").split()) for name in ("file", "caption", "split")
        )
        if not file or not caption:
            raise InputError(
                f"{where}: the {'caption' if file else 'file'} is empty; fill it in, "
                f"or drop the line"
            )
        if part and part.lower() not in NAMES:
            raise InputError(
                f"{where}: {part!r} names no part; the column split holds train, "
                f"validation or test"
            )
        rows.append(
            (
                Captioned(read_picture(folder / file, size, where), caption, file),
                NAMES.get(part.lower(), ""),
            )
        )
    if not rows:
        raise InputError(
            f"{table} has no rows under its header; write lines of file,caption"
        )
    return rows


def as_input(pictures: list[np.ndarray]) -> Float32[np.ndarray, "B S S 1"]:
    """Pictures as a batch for the network."""
    return np.stack(pictures)[..., None].astype(np.float32) / np.float32(255)
