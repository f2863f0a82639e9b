"""Images with captions: glyphs of matplotlib's fonts, and folders of image files.

The captions of glyphs are their Unicode names.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from ...training import InputError
from ...training.announced import announced
from .splits import NAMES, Split, by_name, split_by, with_validation
from .tables import read_rows
from .text import NAMED, WANTED
from .text_lines import utf8_lines

SANS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique")
TRAIN = (*SANS, "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique")
# Each is of a family that the other parts do not contain.
VALIDATION, TEST = ("STIXGeneral",), ("DejaVuSerif",)
SCRIPTS = ("LATIN", "GREEK", "CYRILLIC")
TABLE = "captions.csv"


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A grayscale image, dark on light stored as bright on dark, and its caption."""

    picture: UInt8[np.ndarray, "S S"]
    caption: str
    name: str


def pillow() -> Any:
    """Return Pillow's module Image, or raise an error that says how to install it."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError(
            "images need the package pillow: pip install 'jaxrnn[cli]'"
        ) from None
    return Image


def read_captioned(source: str, size: int) -> tuple[Split, tuple[str, ...]]:
    """Read the split images of ``--data``, and notes on how they were split.

    ``glyphs`` are split by typeface, and ``glyphs:N`` are those whose names have at
    most N words. A folder is split by the column ``split`` of its captions.csv, or by a
    hash of the file names.
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
    examples = read_folder(source, size)
    if any(part for _, part in examples):
        split = by_name([row for row, _ in examples], (part for _, part in examples))
        notes: tuple[str, ...] = ()
        if not split.validation and split.train:
            split = with_validation(split, lambda row: row.name)
            notes = (
                f"{source}/{TABLE} has no validation part: a tenth of the training "
                f"part, by a hash of the file's name",
            )
    else:
        split = split_by([row for row, _ in examples], lambda row: row.name)
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
    return split, notes


def embedded(source: str) -> bool:
    """Return whether ``source`` is ``glyphs`` or ``glyphs:N``, and not a folder."""
    return (
        re.fullmatch(r"glyphs(:\d{1,2})?", source) is not None
        and not pathlib.Path(source).exists()
    )


def glyphs(face: str, size: int, most: int = 99) -> list[Captioned]:
    """Draw the Latin, Greek and Cyrillic letters of a typeface of matplotlib.

    The captions are their Unicode names, of at most ``most`` words. In every typeface
    the height of a capital H is 0.59 of the side of the image.
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
    examples = []
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
            # All letters are on one baseline, because otherwise some lower-case letters
            # would look like their capitals.
            ImageDraw.Draw(canvas).text(
                (size / 2, size * 0.77), chr(code), fill=255, font=font, anchor="ms"
            )
            examples.append(
                Captioned(np.asarray(canvas), " ".join(words), f"{face}:{code:04X}")
            )
    return examples


def read_picture(
    path: pathlib.Path, size: int, where: str = ""
) -> UInt8[np.ndarray, "S S"]:
    """Read an image of any size and mode as grayscale, bright on dark.

    Transparent pixels are white. The longer side is scaled to ``size`` and the rest is
    filled with white, before dark on light is inverted.

    Raises:
        InputError: if the file does not exist or is not an image.
    """
    image, prefix = pillow(), f"{where}: " if where else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            with image.open(path) as file:
                # `convert` would clip images of 16 bits at 255.
                deep = file.mode.startswith("I")
                picture = (
                    image.fromarray((np.asarray(file) // 257).astype(np.uint8))
                    if deep
                    else file
                ).convert("RGBA")
    except FileNotFoundError:
        raise InputError(f"{prefix}there is no image {path}") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        image.DecompressionBombError,
        image.DecompressionBombWarning,
    ) as error:
        raise InputError(
            f"{prefix}{path} is not an image that Pillow can read: {error}; use PNG"
        ) from None
    gray = image.alpha_composite(
        image.new("RGBA", picture.size, "white"), picture
    ).convert("L")
    if gray.size != (size, size):
        scale = size / max(gray.size)
        width, height = (max(round(side * scale), 1) for side in gray.size)
        canvas = image.new("L", (size, size), "white")
        canvas.paste(
            gray.resize((width, height), image.Resampling.LANCZOS),
            ((size - width) // 2, (size - height) // 2),
        )
        gray = canvas
    return 255 - np.asarray(gray)


def read_folder(source: str, size: int) -> list[tuple[Captioned, str]]:
    """Read the images and captions of a folder with captions.csv.

    Its columns are ``file,caption`` and optionally ``split``. Each example comes with
    the name of its part, or "".
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise InputError(
            f"{source} is not a folder; --data must be a folder with PNG files and "
            f"{TABLE}, or the word glyphs"
        )
    table = str(folder / TABLE)
    if not (folder / TABLE).exists():
        raise InputError(
            f"{source} has no {TABLE}: write one with the columns file,caption"
        )
    numbered = read_rows(table, utf8_lines(table, WANTED, NAMED, ends=""))
    first, header = next(numbered, (1, []))
    columns = [name.strip().lower() for name in header]
    if not {"file", "caption"} <= set(columns):
        raise InputError(
            f"{table}:{first}: expected the columns file,caption, but got "
            f"{','.join(columns)}"
        )
    rows: list[tuple[str, str, str, str]] = []
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
                f"or remove the line"
            )
        if part and part.lower() not in NAMES:
            raise InputError(
                f"{where}: {part!r} is not the name of a part; the column split must "
                f"be train, validation or test"
            )
        rows.append((where, file, caption, NAMES.get(part.lower(), "")))
    if not rows:
        raise InputError(
            f"{table} has no rows under its header; write lines of file,caption"
        )
    pictures = np.empty((len(rows), size, size), np.uint8)
    found = []
    with announced(f"reading {source}", len(rows), "pictures") as work:
        for picture, (where, file, caption, part) in zip(pictures, rows, strict=True):
            picture[:] = read_picture(folder / file, size, where)
            found.append((Captioned(picture, caption, file), part))
            work.done += 1
    return found


def as_input(pictures: list[np.ndarray]) -> Float32[np.ndarray, "B S S 1"]:
    """Stack images as a batch of floats in [0, 1] for the network."""
    return np.stack(pictures)[..., None].astype(np.float32) / np.float32(255)


TOGETHER = 4096  # training pictures that are compared at a time


def nearest(train: Sequence[Captioned], test: Sequence[Captioned]) -> list[str]:
    """Return the caption of the nearest training image of each test image.

    The distance is the Euclidean one between pixels; of equally near images the first
    counts.
    """
    if not test:
        return []
    looked_at = np.stack([row.picture.ravel() for row in test]).astype(np.float32)
    least = np.full(len(test), np.inf, np.float32)
    found = np.zeros(len(test), np.int64)
    for begin in range(0, len(train), TOGETHER):
        part = [row.picture.ravel() for row in train[begin : begin + TOGETHER]]
        shown = np.stack(part).astype(np.float32)
        squares = (shown**2).sum(1)
        for first in range(0, len(test), 256):
            rows = slice(first, first + 256)
            distances = squares - 2 * (looked_at[rows] @ shown.T)
            nearest_here = distances.argmin(1)
            here = np.take_along_axis(distances, nearest_here[:, None], 1)[:, 0]
            is_nearer = here < least[rows]
            least[rows] = np.where(is_nearer, here, least[rows])
            found[rows] = np.where(is_nearer, begin + nearest_here, found[rows])
    return [train[i].caption for i in found.tolist()]
