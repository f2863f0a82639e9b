"""Tokenizers for translation: characters, or subwords by sentencepiece.

One more token marks the beginning and the end of each text.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...training import InputError
from ..models.decoder import UNKNOWN
from .text import Vocabulary


@dataclasses.dataclass(frozen=True)
class Characters:
    """The characters of the training texts; 0 is any other character."""

    known: str

    @classmethod
    def of(cls, texts: Iterable[str]) -> Characters:
        """Collect the characters of texts."""
        every = sorted(set(itertools.chain.from_iterable(texts)))
        return cls(Vocabulary.of("".join(every)).characters)

    @property
    def boundary(self) -> int:
        """Return the token before and after each text."""
        return len(self.known)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        """Return the numbers of the characters but the unknown one."""
        return {character: i for i, character in enumerate(self.known) if i}

    def encode(self, text: str) -> np.ndarray:
        """Convert a text to numbers."""
        return np.array([self._numbers.get(c, UNKNOWN) for c in text], np.int32)

    def pieces(self, text: str) -> list[str]:
        """Return the piece of text of each number."""
        return list(text)

    def decode(self, numbers: Iterable[Any]) -> str:
        """Convert numbers to a text."""
        return "".join(self.known[int(n)] for n in numbers if n != UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Subwords:
    """The pieces of a sentencepiece model, stored as base64; 0 is the unknown piece."""

    model: str

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Subwords:
        """Train a unigram model (Kudo 2018) of at most ``size`` pieces."""
        out = io.BytesIO()
        try:
            _sentencepiece().SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=out,
                vocab_size=size,
                hard_vocab_limit=False,
                character_coverage=1.0,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                max_sentence_length=1_000_000,
                num_threads=1,
                bos_id=-1,
                eos_id=-1,
                minloglevel=3,
            )
        except RuntimeError as error:
            reason = str(error).replace("\n", " ")
            raise InputError(
                f"--subwords {size}: sentencepiece cannot train a model of that size "
                f"on these texts: {reason}"
            ) from None
        return cls(base64.b64encode(out.getvalue()).decode())

    @functools.cached_property
    def _processor(self) -> Any:
        """Load the model."""
        return _sentencepiece().SentencePieceProcessor(
            model_proto=base64.b64decode(self.model)
        )

    @property
    def boundary(self) -> int:
        """Return the token before and after each text."""
        return self._processor.get_piece_size()

    def encode(self, text: str) -> np.ndarray:
        """Convert a text to numbers."""
        return np.asarray(self._processor.encode(text), np.int32)

    def pieces(self, text: str) -> list[str]:
        """Return the piece of text of each number."""
        return self._processor.encode(text, out_type=str)

    def decode(self, numbers: Iterable[Any]) -> str:
        """Convert numbers to a text."""
        return self._processor.decode([int(n) for n in numbers if n != UNKNOWN])


def _sentencepiece() -> Any:
    """Import the optional package sentencepiece."""
    try:
        import sentencepiece
    except ImportError:
        raise InputError(
            "--subwords needs the package sentencepiece: pip install 'jaxrnn[cli]'"
        ) from None
    return sentencepiece


def symbols_of(config: dict[str, Any], side: str) -> Characters | Subwords:
    """Return the tokenizer of the ``source`` or ``target`` side of a run's config."""
    vocabulary = config["vocabulary"]
    return (
        Subwords(vocabulary["sentencepiece"])
        if "sentencepiece" in vocabulary
        else Characters(vocabulary[side])
    )
