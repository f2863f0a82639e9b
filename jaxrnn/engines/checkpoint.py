"""Sequential time in little memory: segments whose insides are computed again on the
way back.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool

from ..core.cell import Carry, Cell, Params
from ..core.validation import check_positive
from .recurrence.heuristics import STARTS, choose_segment
from .recurrence.passes import Pace
from .recurrence.primitives import Plan
from .recurrence.run import run_recurrence


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Walk time in segments, keeping only the carries at their ends for the backward
    pass (Gruslys et al. 2016, arXiv:1606.03401, with one level).

    What happens inside a segment is computed again when its gradient is wanted: one
    more forward pass, for memory that grows with ``T / segment + segment`` steps
    instead of T. Values are those of `Scan`, gradients equal to rounding.

    Args:
        segment: steps in a segment; default near ``sqrt(T) / 2``, see
            `jaxrnn.engines.recurrence.heuristics`. One longer than T is all of T; one
            that divides T saves a copy of the inputs.
    """

    segment: int | None = None

    def __post_init__(self):
        if self.segment is not None:
            check_positive(self, segment=self.segment)

    def walk(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Any,
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """As `Scan.walk`."""
        sequence = (xs, mask, resets)
        steps = jax.tree.leaves(sequence)[0].shape[0]
        segment = min(self.segment or choose_segment(steps), max(steps, 1))
        return run_recurrence(
            cell, params, carry, sequence, Plan(Pace(segment, reverse=reverse), STARTS)
        )
