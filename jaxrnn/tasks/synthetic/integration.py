"""integration: sum the evidence that a context says matters, and tell its sign.

The task is that of Mante, Sussillo, Shenoy & Newsome 2013. Two streams of noisy
evidence, called motion and color, arrive together; a context, one-hot and the same at
all steps, says which of them counts. The target, at the last step, is whether its sum
is positive. Each stream has a mean, its coherence, that is drawn anew for every
sequence, normally with standard deviation s, and noise of standard deviation n at every
step.

Baselines: chance, 1/2; and a predictor that sees the last step only, whose evidence u
and the sum S are jointly normal, so that their signs agree with probability

    1/2 + arcsin(r) / pi,   r = (T s^2 + n^2) / sqrt((s^2 + n^2) (T^2 s^2 + T n^2)).

The sum is what a perfect integrator knows, so an accuracy of 1 is possible.
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
from ..optimizers import schedule_field
from .options import SyntheticOptions, hidden_field, learning_rate_field, length_field
from .problem import Problem, at_every_step, last_step
from .task import SyntheticTask

STREAMS = ("motion", "color")


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    length: int = length_field(40, 2)
    coherence: float = option(0.15, "s, spread of the mean evidence", above=0)
    noise: float = option(1.0, "n, spread of the evidence at a step", above=0)
    cell: CellLike = cell_field("gru")
    hidden: int = hidden_field(48)
    learning_rate: float = learning_rate_field(3e-3)
    schedule: str = schedule_field("cosine")

    QUICK: ClassVar[dict[str, Any]] = {"length": 10, "hidden": 16}


def draw(s: float, n: float, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` sequences: inputs ``(T, B, 4)``, the evidence and the context."""
    k_mean, k_noise, k_context = jax.random.split(key, 3)
    mean = s * jax.random.normal(k_mean, (1, batch, 2))
    evidence = mean + n * jax.random.normal(k_noise, (length, batch, 2))
    context = jax.random.randint(k_context, (batch,), 0, 2)
    told = at_every_step(jax.nn.one_hot(context, 2, dtype=evidence.dtype), length)
    relevant = jnp.where(told > 0, evidence, 0).sum(-1)
    return Batch(
        jnp.concatenate([evidence, told], -1),
        at_every_step((relevant.sum(0) > 0).astype(context.dtype), length),
        last_step(length, batch),
    )


def last_evidence(s: float, n: float, length: int) -> float:
    """Return the accuracy of a predictor that sees the last step only."""
    of_last, of_sum = s**2 + n**2, length**2 * s**2 + length * n**2
    together = length * s**2 + n**2
    return 0.5 + math.asin(together / math.sqrt(of_last * of_sum)) / math.pi


def read(line: str) -> np.ndarray:
    """Read ``"color 0.3/-0.2 0.1/-0.4"``: the context, and motion/color at steps."""
    context, *steps = line.split() or [""]
    try:
        rows = [[float(number) for number in step.split("/")] for step in steps]
    except ValueError:
        rows = []
    if context not in STREAMS or not rows or any(len(row) != 2 for row in rows):
        raise InputError(
            f"predict needs motion or color, and then the evidence of both at each "
            f'step, such as "color 0.3/-0.2 0.1/-0.4", but got {line!r}'
        )
    told = [float(context == stream) for stream in STREAMS]
    return np.asarray([[*row, *told] for row in rows])


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    s, n, T = options.coherence, options.noise, options.length
    return Problem(
        input_size=4,
        classes=2,
        length=T,
        score="accuracy",
        baseline=("chance", lambda length: 0.5),
        references=lambda: {"last_evidence": last_evidence(s, n, T)},
        draw=lambda key, length, batch: draw(s, n, key, length, batch),
        least=2,
        read=read,
        say=lambda outputs: ("negative", "positive")[int(outputs[-1].argmax())],
        held=lambda: {
            f"context {name}": np.eye(4)[2 + i] for i, name in enumerate(STREAMS)
        },
    )


TASK = SyntheticTask(
    "integration",
    Options,
    Budget(steps=2000, report_every=100, evaluate_every=500),
    problem,
)
