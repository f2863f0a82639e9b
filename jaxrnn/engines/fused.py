"""The whole loop inside one kernel, on GPUs and TPUs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool

from ..cell import Carry, Cell, Params, is_linear
from ..checks import check_positive
from .kernels.blocks import Unfit
from .recurrence import CARRIES, GATES, Plan
from .step import walk_by_plan
from .walks import Pace


@dataclasses.dataclass(frozen=True)
class Fused:
    interpret: str | None = None
    memory: int | None = None
    residuals: str | None = None

    def walk(self, cell, params, carry, xs, mask=None, resets=None, reverse=False):
        residuals = self.residuals or (CARRIES if is_linear(cell) else GATES)
        plan = Plan(Pace(None, hoist=True, reverse=reverse, kernel=self), residuals)
        return walk_by_plan(cell, params, carry, (xs, mask, resets), plan)
