"""flip-flop: keep N bits, each of which pulses set.

The task is that of Sussillo & Barak 2013. Each of N channels is zero but for pulses of
+1 or -1, which come at random steps; the target of a channel is its last pulse. All
channels have a pulse at the first step, so that every target is known. A trained
network keeps the 2^N combinations in as many attractors, with saddles between them:
``jaxrnn dynamics`` finds them.

Baseline: the best predictor without memory says the pulse where there is one, and 0
elsewhere, where its squared error is 1: ``(1 - p) (T - 1) / T`` for pulses of
probability p.
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
from .options import SyntheticOptions, hidden_field, learning_rate_field, length_field
from .problem import Problem
from .task import SyntheticTask


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    bits: int = option(3, "N, number of channels", least=1, below=17)
    length: int = length_field(64, 2)
    pulses: float = option(
        0.1, "probability of a pulse, at a step of a channel", above=0, below=1
    )
    cell: CellLike = cell_field("gru")
    hidden: int = hidden_field(32)
    learning_rate: float = learning_rate_field(3e-3)
    schedule: str = schedule_field("cosine")

    QUICK: ClassVar[dict[str, Any]] = {"bits": 2, "length": 20, "hidden": 16}


def draw(bits: int, pulses: float, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` sequences of ``length`` steps, and the last pulse of each channel.

    Inputs and targets are ``(T, B, N)``.
    """
    k_when, k_sign = jax.random.split(key)
    shape = (length, batch, bits)
    when = jax.random.bernoulli(k_when, pulses, shape).at[0].set(True)
    sign = jax.random.rademacher(k_sign, shape, jnp.result_type(float))
    steps = jnp.arange(length).reshape(-1, 1, 1)
    last = jax.lax.cummax(jnp.where(when, steps, 0), axis=0)
    return Batch(
        jnp.where(when, sign, 0),
        jnp.take_along_axis(sign, last, axis=0),
        jnp.ones(shape, bool),
    )


PULSES = {"+": 1.0, "-": -1.0, ".": 0.0}


def read(bits: int, line: str) -> np.ndarray:
    """Read steps such as ``"+-+ ... ..-"``: a pulse, or a dot, for each channel."""
    words = line.split()
    if not words or any(len(w) != bits or set(w) - set(PULSES) for w in words):
        example = f"{('+-' * bits)[:bits]} {'.' * bits}"
        raise InputError(
            f"predict needs steps of {bits} channels, each + or - for a pulse and . "
            f'for none, such as "{example}", but got {line!r}'
        )
    return np.asarray([[PULSES[character] for character in word] for word in words])


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    N, p = options.bits, options.pulses
    return Problem(
        input_size=N,
        classes=0,
        length=options.length,
        score="mse",
        baseline=("memoryless", lambda length: (1 - p) * (length - 1) / length),
        draw=lambda key, length, batch: draw(N, p, key, length, batch),
        least=2,
        read=lambda line: read(N, line),
        say=lambda outputs: "".join("+" if y > 0 else "-" for y in outputs[-1]),
        values=N,
        held=lambda: {"no pulse": np.zeros(N)},
    )


TASK = SyntheticTask(
    "flip-flop",
    Options,
    Budget(steps=1500, report_every=100, evaluate_every=500),
    problem,
)
