"""sine: generate a sine wave, whose frequency a constant input tells.

The task is that of Sussillo & Barak 2013. The input is the same number at all steps,
``j / N + 1/4`` for the frequency number j of N = 51; the target at step t = 1, 2, ...
is ``sin(w t)`` with w from 0.1 to 0.6 radians a step. A trained network has an unstable
fixed point under each input, around which its state turns: ``jaxrnn dynamics`` shows
its complex eigenvalues.

Baseline: the best predictor without memory knows w and not t, and says the mean of the
wave: its error is the variance of the wave over time, averaged over the frequencies.
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
from ..optimizers import schedule_field
from .options import SyntheticOptions, learning_rate_field, length_field
from .problem import Problem
from .task import SyntheticTask

OFFSET = 0.25  # added to the input, so that it is never zero


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    length: int = length_field(64, 2)
    frequencies: int = option(51, "N, number of frequencies", least=2)
    slowest: float = option(0.1, "the lowest frequency, in radians a step", above=0)
    fastest: float = option(0.6, "the highest frequency", above=0, below=3.1415)
    cell: CellLike = cell_field("gru")
    learning_rate: float = learning_rate_field(3e-3)
    schedule: str = schedule_field("cosine")

    QUICK: ClassVar[dict[str, Any]] = {"length": 20, "frequencies": 5, "hidden": 32}

    def __post_init__(self):
        super().__post_init__()
        if self.slowest >= self.fastest:
            raise InputError(
                f"--slowest must be below --fastest, but they are {self.slowest} and "
                f"{self.fastest}"
            )


def waves(options: Options, numbers: Array, length: int) -> tuple[Array, Array]:
    """Return inputs and targets ``(T, B)`` of frequency numbers ``(B,)``."""
    dtype = jnp.result_type(float)
    share = numbers.astype(dtype) / (options.frequencies - 1)
    w = options.slowest + (options.fastest - options.slowest) * share
    time = jnp.arange(1, length + 1, dtype=dtype)[:, None]
    told = numbers.astype(dtype) / options.frequencies + OFFSET
    return jnp.broadcast_to(told[None], (length, len(numbers))), jnp.sin(time * w[None])


def draw(options: Options, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` frequencies, and their waves of ``length`` steps."""
    numbers = jax.random.randint(key, (batch,), 0, options.frequencies)
    inputs, targets = waves(options, numbers, length)
    return Batch(inputs[..., None], targets, jnp.ones(targets.shape, bool))


def constant_error(options: Options, length: int) -> float:
    """Return the error of the best constant of each frequency."""
    _, targets = waves(options, jnp.arange(options.frequencies), length)
    return float(jnp.var(targets, axis=0).mean())


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""

    def read(line: str) -> np.ndarray:
        try:
            share = float(line)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise InputError(
                f"predict needs a number from 0, the lowest frequency, to 1, the "
                f"highest, but got {line!r}"
            )
        return np.full((options.length, 1), held(share))

    def held(share: float) -> float:
        return share * (options.frequencies - 1) / options.frequencies + OFFSET

    names = {"lowest frequency": 0.0, "middle frequency": 0.5, "highest frequency": 1.0}
    return Problem(
        input_size=1,
        classes=0,
        length=options.length,
        score="mse",
        baseline=("constant", lambda length: constant_error(options, length)),
        draw=lambda key, length, batch: draw(options, key, length, batch),
        least=2,
        read=read,
        say=lambda outputs: " ".join(f"{y:.2f}" for y in outputs[:, 0]),
        held=lambda: {name: np.array([held(share)]) for name, share in names.items()},
    )


TASK = SyntheticTask(
    "sine", Options, Budget(steps=2000, report_every=100, evaluate_every=500), problem
)
