"""adding: the sum of the two marked numbers out of T.

This is task 4 of Hochreiter & Schmidhuber 1997. The input is ``(u_t, mark_t)``, with
u uniform in [0, 1]. Two tasks have this name: ``halves`` marks one number in each half
of the sequence (Arjovsky et al. 2016, Tallec & Ollivier 2018), ``anywhere`` any two
(Bai et al. 2018, the TCN repository).

Baseline: the constant 1, which has a mean squared error of 1/6 = 2/12, the variance of
a sum of two independent uniform numbers. The positions of the marks do not matter,
because they are independent of the numbers. The value 0.1767 that is often quoted is
an error.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...training import Budget, InputError
from ..config import cell_field, choice
from ..models.own_cell import CellLike
from ..models.sequence_model import Batch
from .options import SyntheticOptions, batch_field, length_field
from .problem import Problem, at_every_step, last_step
from .task import SyntheticTask


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    length: int = length_field(200, 2)
    variant: str = choice(
        "halves", ("halves", "anywhere"), "positions of the two marks"
    )
    cell: CellLike = cell_field("lstm:chrono")
    batch: int = batch_field(50)

    QUICK: ClassVar[dict[str, Any]] = {"length": 20, "hidden": 32}


def draw(variant: str, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` sequences of ``length`` steps.

    The target, at the last step, is the sum of the two marked numbers.
    """
    k_values, k_first, k_second = jax.random.split(key, 3)
    values = jax.random.uniform(k_values, (length, batch))
    if variant == "halves":
        first = jax.random.randint(k_first, (batch,), 0, length // 2)
        second = jax.random.randint(k_second, (batch,), length // 2, length)
    else:
        first = jax.random.randint(k_first, (batch,), 0, length)
        other = jax.random.randint(k_second, (batch,), 0, length - 1)
        # Uniform over all positions but the first mark's.
        second = jnp.where(other >= first, other + 1, other)
    steps = jnp.arange(length)[:, None]
    marks = (steps == first[None]) | (steps == second[None])
    inputs = jnp.stack([values, marks.astype(values.dtype)], -1)
    sums = jnp.where(marks, values, 0).sum(0)
    return Batch(inputs, at_every_step(sums, length), last_step(length, batch))


def read(line: str) -> np.ndarray:
    """Read ``"0.5 0.25* 0.1 0.4*"``, where stars mark the two numbers to add."""
    words = line.split()
    try:
        rows = [
            [float(word.removesuffix("*")), float(word.endswith("*"))] for word in words
        ]
    except ValueError:
        rows = []
    if not rows or sum(mark for _, mark in rows) != 2:
        raise InputError(
            f'predict needs numbers of which two have a star, such as "0.5 0.25* 0.1 '
            f'0.4*", but got {line!r}'
        )
    return np.asarray(rows)


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    return Problem(
        input_size=2,
        classes=0,
        length=options.length,
        score="mse",
        baseline=("constant 1", lambda length: 1 / 6),
        draw=lambda key, length, batch: draw(options.variant, key, length, batch),
        least=2,
        read=read,
        say=lambda outputs: f"{outputs[-1, 0]:.4f}",
    )


TASK = SyntheticTask(
    "adding", Options, Budget(steps=4000, report_every=100, evaluate_every=200), problem
)
