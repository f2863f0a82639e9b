"""What a synthetic task is, apart from the model that learns it; and the options
that all of them have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..config import choice, option
from ..models.sequence_model import Batch

LONGEST = 10**6  # steps: a sequence has fewer


class Stored(NamedTuple):
    """Sequences that are data, not drawn: ``train(position)`` is the batch of a
    step; ``held_out`` are never trained on.
    """

    train: Callable[[int], Batch]
    held_out: list[Batch]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One task with its options settled.

    Args:
        input_size: features of the inputs.
        classes: of the targets; 0: the target is a number.
        length: steps of a training sequence.
        score: the name of what counts: ``"accuracy"``, ``"mse"`` or ``"loss"`` (nats).
        baseline: ``(name, f)``: ``f(length)`` is the score of a predictor that
            remembers nothing.
        draw: ``draw(key, length, batch) -> Batch``: a pure function of its key, for use
            inside `jax.jit`; None with ``stored``.
        least: the shortest length there is.
        other_lengths: at which the model is scored besides ``length``.
        stored: loads the data of a task that is not drawn.
        references: further scores to compare with, by name, computed when asked for.
        pooled: the model reads the mean over all steps (see `SequenceModel`).
        read, say: for `predict`: the inputs ``(T, D)`` that a line of text stands for,
            and what outputs ``(T, O)`` say.
    """

    input_size: int
    classes: int
    length: int
    score: str
    baseline: tuple[str, Callable[[int], float]]
    draw: Callable[[Array, int, int], Batch] | None = None
    least: int = 1
    other_lengths: tuple[int, ...] = ()
    stored: Callable[[], Stored] | None = None
    references: Callable[[], dict[str, float]] = dict
    read: Callable[[str], np.ndarray] | None = None
    say: Callable[[np.ndarray], str] | None = None
    pooled: bool = False


def last_step(length: int, batch: int) -> Bool[Array, "T B"]:
    """True at the last of ``length`` steps."""
    return jnp.broadcast_to(
        (jnp.arange(length) == length - 1)[:, None], (length, batch)
    )


def at_every_step(targets: Any, length: int) -> Any:
    """``(B,)`` targets ``(T, B)``, the same at every step."""
    return jnp.broadcast_to(targets[None], (length, *targets.shape))


def one_hot(symbols: Int[Array, "*TB"], count: int) -> Float[Array, "*TB K"]:
    """Symbols as one-hot vectors, in jax's default float."""
    return jax.nn.one_hot(symbols, count, dtype=jnp.result_type(float))


# The options that every synthetic task has, with their words; each task's Options says
# its defaults.


def hidden_field(default: int) -> Any:
    return option(default, "units of each layer", least=1)


def length_field(default: int, least: int, help: str = "steps of a sequence") -> Any:
    return option(default, help, least=least, below=LONGEST)


def layers_field() -> Any:
    return option(1, "recurrent layers", least=1)


def batch_field(default: int) -> Any:
    return option(default, "sequences of an update", least=1)


def tbptt_field() -> Any:
    return option(
        0,
        "truncated BPTT with k1 = k2 = so many steps: gradients stop at the ends of "
        "windows; 0: full BPTT",
        least=0,
    )


def learning_rate_field(default: float) -> Any:
    return option(default, "of Adam (the peak, with a cosine)", above=0)


def schedule_field() -> Any:
    return choice(
        "constant",
        ("constant", "cosine"),
        "course of the learning rate, cosine with a warm-up",
    )


def clip_field() -> Any:
    return option(1.0, "largest global norm of a gradient", above=0)


def gradients_field() -> Any:
    return option(
        False,
        "record the gradient's norm at every lag as training goes on: gradients.jsonl "
        "and gradients.png",
    )


def seed_field() -> Any:
    return option(0, "of everything random", least=0, below=2**31)
