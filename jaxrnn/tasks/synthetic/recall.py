"""recall: the first symbol of a sequence, asked for after a delay.

The task tests how far back credit reaches. The first input is a cue, one of K symbols;
then come random distractors out of another alphabet, and the last input is a question
mark, ``delay`` steps after the cue, at which the target is the cue. All inputs are
one-hot. It is the memory chain of studies of online learning (delays 2 to 128),
supervised.

The distractors matter: without them a network of random weights holds the cue in its
state, and a readout finds it there. A state that adds up its inputs holds one cue among
``delay`` distractors, so a readout of n outputs tells two cues apart by about
``sqrt(2 n / delay)`` standard deviations. With few units and a long delay, such as
``--hidden 4 --delay 128``, that is next to nothing: the input weights have to learn to
leave the distractors out, and the error that teaches them is ``delay`` steps away. The
units have to begin with memories that long, as those of ``--cell rtu:slow`` do.

Baseline: chance, 1/K.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...training import Budget, InputError
from ..config import cell_field, option
from ..models.own_cell import CellLike
from ..models.sequence_model import Batch
from .options import SyntheticOptions, batch_field, hidden_field, learning_rate_field
from .problem import LONGEST, Problem, at_every_step, last_step, one_hot
from .task import SyntheticTask

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    delay: int = option(
        16, "number of steps from the cue to the question", least=1, below=LONGEST
    )
    symbols: int = option(2, "K, number of different cues", least=2, below=11)
    distractors: int = option(16, "number of different distractors", least=1, below=27)
    cell: CellLike = cell_field("rtu")
    hidden: int = hidden_field(8)
    batch: int = batch_field(32)
    learning_rate: float = learning_rate_field(1e-2)

    QUICK: ClassVar[dict[str, Any]] = {"delay": 4, "distractors": 4}


def draw(symbols: int, distractors: int, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` sequences of ``length`` steps, so of a delay of one less.

    Inputs are one-hot: K cues, the distractors, and the question mark.
    """
    k_cue, k_between = jax.random.split(key)
    cue = jax.random.randint(k_cue, (batch,), 0, symbols)
    between = symbols + jax.random.randint(
        k_between, (length - 2, batch), 0, distractors
    )
    question = jnp.full((1, batch), symbols + distractors, cue.dtype)
    codes = jnp.concatenate([cue[None], between, question])
    return Batch(
        one_hot(codes, symbols + distractors + 1),
        at_every_step(cue, length),
        last_step(length, batch),
    )


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    K, N = options.symbols, options.distractors
    known = "".join(map(str, range(K))) + LETTERS[:N] + "?"

    def read(line: str) -> np.ndarray:
        line = line.strip()
        if set(line) - set(known) or len(line) < 2 or line[-1:] != "?":
            raise InputError(
                f"predict needs a cue out of {known[:K]}, letters out of "
                f"{known[K:-1]} and a question mark, such as "
                f"1{(LETTERS[:N] * 3)[:3]}?, but got {line!r}"
            )
        return np.eye(len(known))[[known.index(symbol) for symbol in line]]

    return Problem(
        input_size=K + N + 1,
        classes=K,
        length=options.delay + 1,
        score="accuracy",
        baseline=("chance", lambda length: 1 / K),
        draw=lambda key, length, batch: draw(K, N, key, length, batch),
        least=2,
        read=read,
        say=lambda outputs: str(outputs[-1].argmax()),
    )


TASK = SyntheticTask(
    "recall", Options, Budget(steps=2000, report_every=50, evaluate_every=200), problem
)
