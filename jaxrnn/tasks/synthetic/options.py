"""The options that every synthetic task has.

The Options of each task begin from `SyntheticOptions`, have their own defaults and add
their own options.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..config import cell_field, check_options, option
from ..models.own_cell import CellLike
from ..optimizers import optimizer_field, schedule_field
from .online import gradient_method_field
from .problem import LONGEST


def length_field(
    default: int, least: int, help: str = "number of steps of a sequence"
) -> Any:
    """Return the option for the length of the sequences."""
    return option(default, help, least=least, below=LONGEST)


def hidden_field(default: int) -> Any:
    """Return the option for the number of units."""
    return option(default, "number of units of each recurrent layer", least=1)


def batch_field(default: int) -> Any:
    """Return the option for the batch size."""
    return option(default, "number of sequences per update", least=1)


def learning_rate_field(default: float) -> Any:
    """Return the option for the learning rate."""
    return option(default, "peak learning rate", above=0)


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
    """The options of every synthetic task; the field names are the flags."""

    cell: CellLike = cell_field("lstm")
    hidden: int = hidden_field(64)
    layers: int = option(1, "number of recurrent layers", least=1)
    batch: int = batch_field(64)
    tbptt: int = option(
        0,
        "k1 = k2 of truncated BPTT: gradients stop at the ends of windows of this many "
        "steps; 0 is full BPTT. With --gradient-method rtrl or uoro no gradient stops: "
        "it is k1, and 0 takes as many steps as there are units",
        least=0,
    )
    gradient_method: str = gradient_method_field()
    learning_rate: float = learning_rate_field(1e-3)
    optimizer: str = optimizer_field()
    schedule: str = schedule_field("constant")
    clip: float = option(1.0, "largest global norm of the gradient", above=0)
    gradients: bool = option(
        False,
        "record the gradient norm at every lag during training, in gradients.jsonl and "
        "gradients.png",
    )
    seed: int = option(0, "random seed", least=0, below=2**31)

    def __post_init__(self):
        check_options(self)
