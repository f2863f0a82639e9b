"""The definition of a synthetic task, and the options that all of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...core.cell import Cell
from ...core.layer import Layer
from ...core.types import PyTree
from ...training import InputError
from ..models.cell_registry import make_cell
from ..models.own_cell import CellLike
from ..models.sequence_model import Batch

LONGEST = 10**6  # upper bound (exclusive) of the number of steps of a sequence


class Stored(NamedTuple):
    """Sequences that are stored data and not drawn.

    ``train(position)`` is the batch of a step; ``held_out`` batches are never used for
    training.
    """

    train: Callable[[int], Batch]
    held_out: list[Batch]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task with given options.

    Args:
        input_size: the number of input features.
        classes: the number of classes of the targets; 0 if the target is a number.
        length: the number of steps of a training sequence.
        score: the name of the main score: ``"accuracy"``, ``"mse"`` or ``"loss"``
            (nats).
        baseline: ``(name, f)``, where ``f(length)`` is the score of a predictor without
            memory.
        draw: ``draw(key, length, batch) -> Batch``, a pure function of its key, which
            is called inside `jax.jit`; None with ``stored``.
        least: the smallest possible length.
        other_lengths: lengths at which the model is also scored.
        stored: loads the data of a task that is not drawn.
        references: returns further scores for comparison by name, on request.
        pooled: the readout gets the mean over all steps (see `SequenceModel`).
        make_cell: ``make_cell(spec, hidden, length)`` makes the cell that the option
            names.
        read, say: for `predict`: convert a line of text to inputs ``(T, D)``, and
            outputs ``(T, O)`` to text.
        tokens: if it is not 0, the inputs are numbers of tokens below it, which the
            model embeds in ``input_size`` features.
        parts: names of the parts of the data that ``Batch.part`` numbers, each of which
            is scored apart.
        asks_last: whether the last step of a sequence has a target, which the
            diagnostics need.
        values: the length of targets that are vectors; 0 for numbers.
        held: inputs ``(D,)`` by name under which ``jaxrnn dynamics`` looks for fixed
            points.
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
    tokens: int = 0
    parts: tuple[str, ...] = ()
    asks_last: bool = True
    values: int = 0
    held: Callable[[], dict[str, np.ndarray]] = dict
    make_cell: Callable[[CellLike, int, int], Cell | Layer] = make_cell


def last_step(length: int, batch: int) -> Bool[Array, "T B"]:
    """Return a mask that is True at the last of ``length`` steps."""
    return jnp.broadcast_to(
        (jnp.arange(length) == length - 1)[:, None], (length, batch)
    )


def at_every_step(targets: PyTree, length: int) -> Any:
    """Broadcast targets ``(B,)`` to ``(T, B)``."""
    return jnp.broadcast_to(targets[None], (length, *targets.shape))


def one_hot(symbols: Int[Array, "*TB"], count: int) -> Float[Array, "*TB K"]:
    """Convert tokens to one-hot vectors of JAX's default float."""
    return jax.nn.one_hot(symbols, count, dtype=jnp.result_type(float))


def read_tokens(line: str, count: int, example: str) -> np.ndarray:
    """Read numbers of tokens below ``count``, such as those of ``example``."""
    words = line.split()
    if not words or not all(w.isdecimal() and int(w) < count for w in words):
        raise InputError(
            f"predict needs numbers of tokens from 0 to {count - 1}, such as "
            f'"{example}", but got {line!r}'
        )
    return np.asarray([int(word) for word in words])
