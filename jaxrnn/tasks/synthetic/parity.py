"""parity: whether the number of ones is odd, trained on short and tested on long words.

The task is that of Delétang et al. 2023 and Grazzi et al. 2025. The inputs are random
bits, one-hot. The lengths of training words are uniform in 1..``length`` (40); the
target is at the last step of each word, or with ``--answers every`` at all of its
steps. ``accuracy`` is that of new words of the training lengths, ``accuracy_256`` that
of words longer than any in training, uniform in 41..256.

Baseline: chance, 1/2. A linear recurrence whose factors are all positive cannot do
better on long words (Grazzi et al.).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...training import Budget, InputError
from ...unrolling import mask_from_lengths
from ..config import choice
from ..models.sequence_model import Batch
from .options import (
    SyntheticOptions,
    batch_field,
    hidden_field,
    learning_rate_field,
    length_field,
)
from .problem import Problem, one_hot
from .task import SyntheticTask


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    length: int = length_field(40, 1, "length of the longest training word")
    test_length: int = length_field(256, 1, "length of the longest test word")
    answers: str = choice(
        "last", ("last", "every"), "steps whose target is the parity so far"
    )
    hidden: int = hidden_field(32)
    batch: int = batch_field(128)
    learning_rate: float = learning_rate_field(2e-3)

    QUICK: ClassVar[dict[str, Any]] = {
        "length": 6,
        "test_length": 24,
        "answers": "every",
    }


def draw(trained: int, answers: str, key: Array, length: int, batch: int) -> Batch:
    """Draw padded words of up to ``length`` bits.

    If ``length`` is more than ``trained``, all words are longer than ``trained``.
    """
    k_bits, k_lengths = jax.random.split(key)
    bits = jax.random.randint(k_bits, (length, batch), 0, 2)
    shortest = trained + 1 if length > trained else 1
    lengths = jax.random.randint(k_lengths, (batch,), shortest, length + 1)
    mask = mask_from_lengths(lengths, length)
    last = jnp.arange(length)[:, None] == lengths[None] - 1
    return Batch(
        one_hot(bits, 2),
        jnp.cumsum(bits, 0) % 2,
        mask if answers == "every" else last,
        mask=mask,
    )


def read(line: str) -> np.ndarray:
    """Read bits such as ``"10110"``."""
    line = line.strip()
    if not line or set(line) - set("01"):
        raise InputError(f"predict needs bits, such as 10110, but got {line!r}")
    return np.eye(2)[[int(bit) for bit in line]]


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    return Problem(
        input_size=2,
        classes=2,
        length=options.length,
        score="accuracy",
        baseline=("chance", lambda length: 0.5),
        draw=lambda key, length, batch: draw(
            options.length, options.answers, key, length, batch
        ),
        other_lengths=(options.test_length,)
        if options.test_length > options.length
        else (),
        read=read,
        say=lambda outputs: ("even", "odd")[int(outputs[-1].argmax())],
    )


TASK = SyntheticTask(
    "parity", Options, Budget(steps=3000, report_every=100, evaluate_every=200), problem
)
