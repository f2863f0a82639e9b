"""squares: the next frame of a moving picture of bouncing squares.

Squares of 3 by 3 pixels move on a board, one pixel a step along each axis or not at
all, and bounce off its edges. The input at step t is frame t, ``(size, size, 1)`` with
pixels 0 and 1, and the target is frame t + 1. One frame shows where the squares are and
two show where they go, so that the loss counts from the second step on.

Baseline: the last frame shown again, whose error is twice the share of pixels that
the squares enter, on average over the positions and directions.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...cells import ConvGRU, ConvLSTM
from ...core.cell import Cell
from ...core.layer import Layer
from ...training import Budget
from ..config import convolutional_cell_field, option
from ..models.cell_registry import make_cell
from ..models.own_cell import CellLike
from ..models.sequence_model import Batch
from .options import (
    SyntheticOptions,
    batch_field,
    hidden_field,
    learning_rate_field,
    length_field,
)
from .problem import Problem
from .task import SyntheticTask

SIDE = 3  # pixels of a square
CELLS: dict[str, Any] = {"conv-gru": ConvGRU, "conv-lstm": ConvLSTM}


@dataclasses.dataclass(frozen=True)
class Options(SyntheticOptions):
    """The options of the task; the field names are the flags of the command line."""

    length: int = length_field(20, 2)
    size: int = option(10, "pixels along each side of the board", least=SIDE + 1)
    squares: int = option(2, "number of squares", least=1)
    cell: str = convolutional_cell_field("conv-gru", CELLS)
    hidden: int = hidden_field(12)
    batch: int = batch_field(16)
    learning_rate: float = learning_rate_field(3e-3)

    QUICK: ClassVar[dict[str, Any]] = {
        "length": 8,
        "size": 8,
        "squares": 1,
        "hidden": 8,
    }


def bounced(position: Int[Array, "..."], span: int) -> Int[Array, "..."]:
    """Fold positions on a line back into [0, span], as a ball bounces off two walls."""
    return span - jnp.abs(position % (2 * span) - span)


def draw(size: int, squares: int, key: Array, length: int, batch: int) -> Batch:
    """Draw ``batch`` moving pictures of ``length`` steps, and the frames after them."""
    films = frames(size, squares, key, length + 1, batch)
    counts = jnp.arange(length).reshape(-1, 1, 1, 1) > 0
    return Batch(
        films[:-1, ..., None], films[1:], jnp.broadcast_to(counts, films[1:].shape)
    )


def frames(
    size: int, squares: int, key: Array, length: int, batch: int
) -> Float[Array, "T B Y X"]:
    """Draw moving pictures: pixels are 1 where at least one square is."""
    k_place, k_move = jax.random.split(key)
    span, shape = size - SIDE, (batch, squares, 2)
    start = jax.random.randint(k_place, shape, 0, span + 1)
    # One of the eight directions: all pairs from {-1, 0, 1} but (0, 0), number 4.
    number = jax.random.randint(k_move, shape[:2], 0, 8)
    number = number + (number >= 4).astype(number.dtype)
    velocity = jnp.stack([number // 3 - 1, number % 3 - 1], axis=-1)
    time = jnp.arange(length).reshape(-1, 1, 1, 1)
    corner = bounced(start[None] + velocity[None] * time, span)[..., None]
    pixel = jnp.arange(size).reshape(1, 1, 1, 1, -1)
    inside = (pixel >= corner) & (pixel < corner + SIDE)  # (T, B, squares, 2, size)
    covered = inside[..., 0, :, None] & inside[..., 1, None, :]
    return covered.any(2).astype(jnp.result_type(float))


def last_frame_error(size: int, squares: int, length: int) -> float:
    """Return the mean squared error of showing the last frame again."""
    return _last_frame_error(size, squares, min(length, 50))


@functools.cache
def _last_frame_error(size: int, squares: int, length: int) -> float:
    batch = draw(size, squares, jax.random.key(0), length, 2000)
    error = jnp.square(batch.targets - batch.inputs[..., 0])
    return float(error[1:].mean())


def make(size: int, spec: CellLike, hidden: int, length: int) -> Cell | Layer:
    """Make a convolutional cell for the board, or a cell of one's own."""
    if isinstance(spec, str) and spec in CELLS:
        return CELLS[spec](hidden, spatial_shape=(size, size))
    return make_cell(spec, hidden, length)


def problem(options: Options) -> Problem:
    """Return the `Problem` of these options."""
    return Problem(
        input_size=1,
        classes=0,
        length=options.length,
        score="mse",
        baseline=(
            "last frame",
            lambda length: last_frame_error(options.size, options.squares, length),
        ),
        draw=lambda key, length, batch: draw(
            options.size, options.squares, key, length, batch
        ),
        least=2,
        make_cell=functools.partial(make, options.size),
    )


TASK = SyntheticTask(
    "squares", Options, Budget(steps=600, report_every=50, evaluate_every=200), problem
)
