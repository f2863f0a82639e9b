"""Texts as numbers for translation: characters, or subwords by sentencepiece; one
more symbol stands before and after.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...training import InputError
from ..models.decoder import UNKNOWN
from .text import Vocabulary


@dataclasses.dataclass(frozen=True)
class Characters:
    """Characters that training showed; 0 is any other."""

    known: str

    @classmethod
    def of(cls, texts: Iterable[str]) -> Characters:
        return cls(Vocabulary.of("".join(sorted(set().union(*texts)))).characters)

    @property
    def boundary(self) -> int:
        """The symbol before and after each text."""
        return len(self.known)

    def encode(self, text: str) -> np.ndarray:
        return Vocabulary(self.known).encode(text)

    def pieces(self, text: str) -> list[str]:
        """What stands behind each number."""
        return list(text)

    def decode(self, numbers: Iterable[Any]) -> str:
        return "".join(self.known[int(n)] for n in numbers if n != UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Subwords:
    """Pieces of a sentencepiece model, which is kept as base64 text; 0 is any
    character it does not know.
    """

    model: str

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Subwords:
        """A unigram model (Kudo 2018) of at most ``size`` pieces."""
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
                f"--subwords {size}: sentencepiece makes no model of that size of "
                f"these texts: {reason}"
            ) from None
        return cls(base64.b64encode(out.getvalue()).decode())

    @functools.cached_property
    def _processor(self) -> Any:
        return _sentencepiece().SentencePieceProcessor(
            model_proto=base64.b64decode(self.model)
        )

    @property
    def boundary(self) -> int:
        return self._processor.get_piece_size()

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._processor.encode(text), np.int32)

    def pieces(self, text: str) -> list[str]:
        return self._processor.encode(text, out_type=str)

    def decode(self, numbers: Iterable[Any]) -> str:
        return self._processor.decode([int(n) for n in numbers if n != UNKNOWN])


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise InputError(
            "--subwords needs the package sentencepiece: pip install 'jaxrnn[cli]'"
        ) from None
    return sentencepiece


def symbols_of(config: dict[str, Any], side: str) -> Characters | Subwords:
    """The numbering of the ``source`` or ``target`` side, out of a run's config."""
    vocabulary = config["vocabulary"]
    return (
        Subwords(vocabulary["sentencepiece"])
        if "sentencepiece" in vocabulary
        else Characters(vocabulary[side])
    )
