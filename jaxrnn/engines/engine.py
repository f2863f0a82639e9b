"""Engines that are schedules of this library's recurrence."""

from __future__ import annotations

import abc
import dataclasses

import jax
from jaxtyping import Array, Bool

from ..core.cell import Cell, is_linear
from ..core.engine import AbstractEngine
from ..core.types import Carry, Inputs, Params, Size
from .loops.kinds import AutoLoop
from .recurrence.heuristics import CARRIES
from .recurrence.run import Sequence, run_schedule
from .recurrence.schedule import LoopSchedule


class LoopEngine(AbstractEngine):
    """An engine that is a schedule: which loop, which chunks, what is saved.

    A subclass is a frozen dataclass of options that defines ``schedule``.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.extending import LoopEngine, LoopSchedule, Sequential
        >>> @dataclasses.dataclass(frozen=True)
        ... class Pairs(LoopEngine):
        ...     def schedule(self, cell, length):
        ...         return LoopSchedule(Sequential(unroll=2), save="carries")
        >>> cell, xs = jaxrnn.Elman(4), jax.random.normal(jax.random.key(1), (5, 3))
        >>> params = cell.init(jax.random.key(0), 3)
        >>> _, ys = jaxrnn.unroll(cell, params, xs, engine=Pairs())
        >>> bool(jnp.allclose(ys, jaxrnn.unroll(cell, params, xs)[1], atol=1e-6))
        True
    """

    @abc.abstractmethod
    def schedule(self, cell: Cell, length: Size | None) -> LoopSchedule:
        """Return the schedule for a cell over ``length`` steps.

        Options that are ``"auto"`` in it are chosen later, for the platform.

        Args:
            cell: the cell.
            length: T; a symbolic size under ``jax.export``.

        Raises:
            TypeError, ValueError: for a cell that the engine does not support.
        """

    def check(
        self, cell: Cell, params: Params, carry: Carry, sequence: Sequence
    ) -> None:
        """Raise an error if an option cannot apply to the cell and its arrays.

        By default nothing is checked.

        Args:
            cell: the cell.
            params: its parameters.
            carry: the carry before the first step.
            sequence: the inputs, the mask and the resets of all steps.
        """

    def run(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Inputs,
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """Run the recurrence by the engine's schedule; see `AbstractEngine.run`."""
        sequence = (xs, mask, resets)
        self.check(cell, params, carry, sequence)
        schedule = self.schedule(cell, jax.tree.leaves(sequence)[0].shape[0])
        return run_schedule(
            cell, params, carry, sequence, schedule.replace(reverse=reverse)
        )


@dataclasses.dataclass(frozen=True)
class DefaultEngine(LoopEngine):
    """The engine of ``engine=None``, which leaves all options to be chosen."""

    def schedule(self, cell: Cell, length: Size | None) -> LoopSchedule:
        if is_linear(cell):
            return LoopSchedule(
                AutoLoop(prefix=True, kernel=True), hoist=True, save=CARRIES
            )
        return LoopSchedule(AutoLoop(kernel=True))
