"""temporal-order: the order of symbols X and Y among distractors.

This is task 6 of Hochreiter & Schmidhuber 1997. A sequence of distractors a, b, c, d
contains symbols X or Y at random positions, and the target at its end is the class: XX,
XY, YX or YY. Task 6a has two symbols, one in [T/10, 2T/10) and one in [4T/10, 5T/10),
as in Pascanu, Mikolov & Bengio (2013) (in Hochreiter & Schmidhuber, and in Pascanu's
program, the latter is in [5T/10, 6T/10)). Task 6b has three symbols and eight classes,
with the symbols in the intervals of Hochreiter & Schmidhuber: [10, 20), [33, 43) and
[66, 76) hundredths of T. The input is one-hot over the six letters.

Baseline: chance, 1/4 or 1/8.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...training import Budget, InputError
from ..config import choice
from ..models.sequence_model import Batch
from .options import SyntheticOptions, batch_field, hidden_field, length_field
from .problem import Problem, at_every_step, last_step, one_hot
from .task import SyntheticTask

SYMBOLS = "abcdXY"
DISTRACTORS = 4
# The intervals of the symbols, in hundredths of the sequence.
PLACES = {
    "6a": ((10, 20), (40, 50)),
    "6b": ((10, 20), (33, 43), (66, 76)),
}


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    length: int = length_field(50, 10)
    variant: str = choice("6a", PLACES, "two symbols (4 classes) or three (8 classes)")
    hidden: int = hidden_field(50)
    batch: int = batch_field(50)

    QUICK: ClassVar[dict[str, Any]] = {"length": 20, "hidden": 32}


def intervals(variant: str, length: int) -> list[tuple[int, int]]:
    """Return the half-open interval of steps of each symbol.

    The intervals are disjoint and contain at least one step.
    """
    return [
        (low * length // 100, max(high * length // 100, low * length // 100 + 1))
        for low, high in PLACES[variant]
    ]


def draw(variant: str, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` sequences of ``length`` steps.

    The target, at the last step, is the symbols as a binary number, with X 0 and Y 1.
    """
    places = intervals(variant, length)
    k_noise, k_symbols, k_places = jax.random.split(key, 3)
    codes = jax.random.randint(k_noise, (length, batch), 0, DISTRACTORS)
    bits = jax.random.randint(k_symbols, (len(places), batch), 0, 2)
    label = jnp.zeros_like(bits[0])
    for i, (low, high) in enumerate(places):
        place = jax.random.randint(jax.random.fold_in(k_places, i), (batch,), low, high)
        codes = jnp.where(
            jnp.arange(length)[:, None] == place[None],
            DISTRACTORS + bits[i][None],
            codes,
        )
        label = 2 * label + bits[i]
    return Batch(
        one_hot(codes, len(SYMBOLS)),
        at_every_step(label, length),
        last_step(length, batch),
    )


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    count = len(PLACES[options.variant])

    def read(line: str) -> np.ndarray:
        line = line.strip()
        if not line or set(line) - set(SYMBOLS):
            raise InputError(
                f"predict needs letters out of {SYMBOLS}, such as abXcdbYad, but got "
                f"{line!r}"
            )
        return np.eye(len(SYMBOLS))[[SYMBOLS.index(letter) for letter in line]]

    return Problem(
        input_size=len(SYMBOLS),
        classes=2**count,
        length=options.length,
        score="accuracy",
        baseline=("chance", lambda length: 0.5**count),
        draw=lambda key, length, batch: draw(options.variant, key, length, batch),
        least=10,
        read=read,
        say=lambda outputs: f"{outputs[-1].argmax():0{count}b}".replace(
            "0", "X"
        ).replace("1", "Y"),
    )


TASK = SyntheticTask(
    "temporal-order",
    Options,
    Budget(steps=1500, report_every=50, evaluate_every=100),
    problem,
)
