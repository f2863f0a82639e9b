"""Schedules of a recurrence, and the one function that resolves them.

An engine returns a `LoopSchedule`, in which ``"auto"`` marks an option that is still
open. `resolve_schedule` chooses these options for a step, a length and a platform, by
the rules of `jaxrnn.engines.recurrence.heuristics`, and says why. Engines,
primitives and `jaxrnn.explain` all call it, so that what is printed is what runs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from ..jaxpr.step_program import StepJaxpr
from ..loops.kinds import AutoLoop, Loop, ParallelPrefix, Sequential
from ..loops.newton import NewtonIteration
from ..loops.pallas.primitive import PallasKernel
from .heuristics import (
    AUTO,
    CARRIES,
    DOTS,
    EVERYTHING,
    KERNELS,
    STARTS,
    choose_hoist,
    choose_newton_chunk,
    choose_prefix_chunk,
    choose_save,
    choose_unroll,
    explain_chunk,
)


@dataclasses.dataclass(frozen=True)
class LoopSchedule:
    """How the loops of a recurrence run, and what the forward pass saves.

    Args:
        loop: how the steps of a chunk are run.
        chunk: consecutive steps that run together; None for all of T; ``"auto"``.
        save: what the forward pass saves for the backward pass besides the carries
            that it reads: ``"dots"``, the results of the step's matmuls;
            ``"carries"``, nothing; ``"starts"``, the carries at chunk starts only;
            ``"everything"``, what JAX's own derivative of ``jax.lax.scan`` saves;
            ``"auto"``.
        hoist: whether what does not depend on the carry is computed before the loop;
            ``"auto"``.
        reverse: whether the steps run from the last input to the first.

    Raises:
        ValueError: if ``save`` is ``"starts"`` and ``chunk`` is left open.

    Example:
        >>> import jaxrnn
        >>> schedule = jaxrnn.Checkpoint(chunk=16).schedule(jaxrnn.LSTM(8), 1000)
        >>> schedule.loop, schedule.chunk, schedule.save
        (Sequential(unroll='auto', parts='auto'), 16, 'starts')
        >>> schedule.replace(reverse=True).reverse
        True
    """

    loop: Loop = Sequential()
    chunk: Any = AUTO
    save: str = AUTO
    hoist: Any = AUTO
    reverse: bool = False

    def __post_init__(self):
        if self.save == STARTS and self.chunk == AUTO:
            raise ValueError(
                "LoopSchedule: save='starts' saves the carries at chunk starts, so it "
                "needs a chunk, but chunk is 'auto': give a number of steps"
            )

    def steps_of_chunk(self, steps: int) -> int:
        """Return how many steps a chunk has; the last one may be shorter."""
        return steps if self.chunk is None else min(self.chunk, steps)

    @property
    def leaves_loop_open(self) -> bool:
        """Whether the loop is not named, and parallel prefixes may be chosen."""
        return isinstance(self.loop, AutoLoop) and self.loop.prefix

    @property
    def is_open(self) -> bool:
        """Whether the caller asked for nothing that ``jax.lax.scan`` does not have."""
        return self.chunk == AUTO and (self.save == AUTO or self.leaves_loop_open)

    def replace(self, **changes) -> LoopSchedule:
        """Return the schedule with some fields changed."""
        return dataclasses.replace(self, **changes)


class ResolvedSchedule(NamedTuple):
    """A schedule without open options, and the reasons for what was chosen.

    Attributes:
        schedule: the `LoopSchedule`, in which nothing is ``"auto"``.
        reasons: texts, of which some may be empty; ``reason`` joins them.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.engines.recurrence.run import flat_step
        >>> from jaxrnn.extending import resolve_schedule
        >>> cell, xs = jaxrnn.GRU(8), jnp.ones((1000, 3))
        >>> params = cell.init(jax.random.key(0), 3)
        >>> carry = cell.initial_carry(params)
        >>> step, _ = flat_step(cell, params, carry, (xs, None, None))
        >>> asked = jaxrnn.Scan().schedule(cell, 1000)
        >>> resolved = resolve_schedule(asked, step, 1000, "cpu", backward=True)
        >>> asked.save, resolved.schedule.save
        ('auto', 'dots')
        >>> resolved.reason
        'one chunk: its ... bytes stay in the caches'
    """

    schedule: LoopSchedule
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """The reasons as one text."""
        return "; ".join(filter(None, self.reasons))


def resolve_save(schedule: LoopSchedule, step: StepJaxpr, length: int) -> LoopSchedule:
    """Choose what the forward pass saves, once a derivative is wanted.

    Args:
        schedule: the schedule that the engine asks for.
        step: the traced step.
        length: T.

    Returns:
        The schedule with ``save`` resolved.

    Raises:
        ValueError: if the pullback of the step cannot be traced, but the caller
            asked for something that needs it.
    """
    is_open = schedule.save in (AUTO, EVERYTHING)
    chosen = choose_save(step, length)[0] if is_open else schedule.save
    return _with_save(schedule, step, chosen)


def _with_save(schedule: LoopSchedule, step: StepJaxpr, chosen: str) -> LoopSchedule:
    """Put what `choose_save` chose into a schedule that leaves it open.

    Raises:
        ValueError: as `resolve_save`.
    """
    reason = step.reason_against_pullback
    if schedule.save in (AUTO, EVERYTHING):
        if chosen != EVERYTHING or schedule.chunk == AUTO:
            return schedule.replace(save=chosen)
        save = DOTS
    elif reason is not None and schedule.chunk == AUTO and schedule.leaves_loop_open:
        return schedule.replace(save=EVERYTHING)
    else:
        save = schedule.save
    if reason is not None:
        raise ValueError(
            f"{reason}: only jax.lax.scan with JAX's own derivative takes that, so "
            "leave save, chunk and Checkpoint out; forward mode works then, and the "
            "gradient of all that does not go through it"
        )
    return schedule.replace(save=save)


def resolve_schedule(
    schedule: LoopSchedule,
    step: StepJaxpr,
    length: int,
    platform: str | None,
    *,
    backward: bool,
) -> ResolvedSchedule:
    """Choose all options that a schedule leaves open.

    Args:
        schedule: the schedule that the engine asks for.
        step: the traced step of the recurrence.
        length: T.
        platform: ``"cpu"``, ``"cuda"`` or ``"tpu"``; an unknown one is treated
            as a CPU.
        backward: whether a derivative is wanted, so that something must be saved.

    Returns:
        The resolved schedule, and the reasons for it.

    Raises:
        ValueError: as `resolve_save`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.engines.recurrence.run import flat_step
        >>> from jaxrnn.extending import resolve_schedule
        >>> cell, xs = jaxrnn.MinGRU(8), jnp.ones((1000, 3))
        >>> params = cell.init(jax.random.key(0), 3)
        >>> carry = cell.initial_carry(params)
        >>> step, _ = flat_step(cell, params, carry, (xs, None, None))
        >>> asked = jaxrnn.Scan().schedule(cell, 1000)
        >>> for platform in ("cpu", "cuda"):
        ...     found = resolve_schedule(asked, step, 1000, platform, backward=False)
        ...     print(platform, found.schedule.loop)
        cpu Sequential(unroll=1, parts=False)
        cuda ParallelPrefix()
    """
    save_reason, reason = "", ""
    if backward and schedule.chunk == AUTO:
        chosen, why = choose_save(step, length)
        if schedule.save == AUTO:
            schedule = _with_save(schedule, step, chosen)
        save_reason = why if chosen == schedule.save else ""
    loop = schedule.loop
    if isinstance(loop, AutoLoop) and loop.kernel and platform in KERNELS:
        schedule = schedule.replace(
            loop=PallasKernel(named=False), chunk=None, hoist=True
        )
        reason = "heuristics.KERNELS names the platform"
    elif isinstance(loop, AutoLoop):
        parallel = loop.prefix and platform != "cpu"
        schedule = schedule.replace(loop=ParallelPrefix() if parallel else Sequential())
    loop = schedule.loop
    if isinstance(loop, NewtonIteration):
        if loop.prefix == AUTO:
            loop = dataclasses.replace(loop, prefix=platform not in ("cpu", None))
        schedule = schedule.replace(loop=loop)
        if schedule.chunk == AUTO:
            chunk, reason = choose_newton_chunk(step, length, loop.jacobian)
            schedule = schedule.replace(chunk=chunk)
    if schedule.hoist == AUTO:
        schedule = schedule.replace(hoist=choose_hoist(platform, step))
    if schedule.chunk == AUTO and isinstance(schedule.loop, ParallelPrefix):
        chunk, reason = choose_prefix_chunk(step, length, platform)
        schedule = schedule.replace(chunk=chunk)
    if schedule.chunk == AUTO:
        chunk_or_all, reason = explain_chunk(
            step,
            length,
            platform,
            backward=backward,
            lean=schedule.save == CARRIES,
            hoist=bool(schedule.hoist),
        )
        schedule = schedule.replace(chunk=chunk_or_all)
    if isinstance(schedule.loop, Sequential):
        loop = schedule.loop
        if loop.unroll == AUTO:
            steps = length if schedule.chunk is None else min(schedule.chunk, length)
            loop = dataclasses.replace(
                loop, unroll=choose_unroll(platform, step, steps)
            )
        if loop.parts == AUTO:
            loop = dataclasses.replace(loop, parts=platform == "cuda")
        schedule = schedule.replace(loop=loop)
    return ResolvedSchedule(schedule, (save_reason, reason))
