"""copy: remember S tokens over T steps.

The task is that of Hochreiter & Schmidhuber 1997 and Arjovsky et al. 2016. Input: S
tokens out of K, T - 1 blanks, one delimiter, S blanks; length T + 2S. Target: T + S
blanks, then the tokens. (The task of this name in the TCN repository repeats the
delimiter, and is a different one.)

Baseline: the best predictor without memory predicts blank until the delimiter, and
then every token with probability 1/K: S ln K / (T + 2S) nats per step. ``accuracy`` is
that of the last S steps alone, 1/K by chance.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...training import Budget, InputError
from ..config import cell_field, option
from ..models.own_cell import CellLike
from ..models.sequence_model import Batch
from .options import SyntheticOptions, batch_field, hidden_field, length_field
from .problem import Problem, one_hot
from .task import SyntheticTask


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    length: int = length_field(50, 1, "T, number of steps to remember the tokens")
    symbols: int = option(10, "S, number of tokens to remember", least=1)
    alphabet: int = option(8, "K, number of different tokens", least=2, below=11)
    cell: CellLike = cell_field("lstm:chrono")
    hidden: int = hidden_field(128)
    batch: int = batch_field(50)

    QUICK: ClassVar[dict[str, Any]] = {"length": 5, "symbols": 3, "hidden": 32}


def draw(count: int, alphabet: int, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` sequences of ``length + 2 count`` steps.

    The blank is class K, and the delimiter is input K + 1.
    """
    symbols = jax.random.randint(key, (count, batch), 0, alphabet)
    blank = jnp.full((length + count, batch), alphabet, symbols.dtype)
    codes = jnp.concatenate([symbols, blank.at[length - 1].set(alphabet + 1)])
    steps = jnp.arange(length + 2 * count)[:, None]
    recall = jnp.broadcast_to(steps >= length + count, codes.shape)
    targets = jnp.concatenate([blank, symbols])
    return Batch(
        one_hot(codes, alphabet + 2), targets, jnp.ones_like(recall), answers=recall
    )


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    S, K = options.symbols, options.alphabet

    def read(line: str) -> np.ndarray:
        digits = [ord(c) - ord("0") for c in line.strip()]
        if len(digits) != S or not all(0 <= digit < K for digit in digits):
            raise InputError(
                f"predict needs {S} digits below {K}, such as "
                f"{'0123456789'[: min(K, S)]}, but got {line!r}"
            )
        blank = [K] * (options.length - 1)
        return np.eye(K + 2)[[*digits, *blank, K + 1, *[K] * S]]

    def say(outputs: np.ndarray) -> str:
        return "".join("_" if c == K else str(c) for c in outputs[-S:].argmax(-1))

    return Problem(
        input_size=K + 2,
        classes=K + 1,
        length=options.length,
        score="loss",
        baseline=("memoryless", lambda length: S * math.log(K) / (length + 2 * S)),
        draw=lambda key, length, batch: draw(S, K, key, length, batch),
        read=read,
        say=say,
    )


TASK = SyntheticTask(
    "copy", Options, Budget(steps=5000, report_every=100, evaluate_every=500), problem
)
