"""What the engines choose, asked of them: how a traced walk goes on each platform, and
why.

Nothing is chosen here. A walk's jaxpr holds the recurrence with its plan; `settled`
says at which pace a platform takes it, and whether a loop is a kernel is found by
lowering it for that platform, which needs no such device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

from ..engines.jaxpr.evaluate import split_by_sizes
from ..engines.loops.kinds import ParallelPrefix
from ..engines.loops.pallas.block_form import KernelUnsupportedError
from ..engines.loops.pallas.primitive import (
    PallasKernel,
    loop_p,
    memory_budget,
    unsupported_reason,
)
from ..engines.recurrence import primitives
from ..engines.recurrence.schedule import LoopSchedule, resolve_schedule

PLATFORMS = {
    "cpu": "cpu",
    "gpu": "cuda",
    "tpu": "tpu",
}  # as people say it, and as programs are lowered for it
WORDS = {
    "loop": "step by step",
    "prefixes": "parallel prefixes",
    "kernel": "one kernel",
    "lax.scan": "jax.lax.scan with JAX's own derivative",
    "chunks": "chunks as matrix products",
    "own": "the engine's own walk",
    "none": "nothing: there is no gradient",
    "error": "does not run",
}


@dataclasses.dataclass(frozen=True)
class ExecutionPath:
    """How a cell's steps are walked on a platform.

    ``kind``: ``"loop"``, ``"prefixes"`` (parallel prefixes), ``"kernel"``,
    ``"lax.scan"`` (JAX's own loop and derivative), ``"chunks"`` (of a cell that joins
    its steps itself), ``"own"`` (an engine that is none of these), ``"none"`` (no
    gradient to walk for), or ``"error"``, whose text is ``reason``. ``steps`` at a
    time, None being all of T; ``hoisted``: whether inputs are projected before the
    loop. ``reason``: why so. Of a kernel, ``bytes_required`` on chip, and
    ``bytes_available``.
    """

    kind: str
    steps: int | None = None
    hoisted: bool | None = None
    reason: str = ""
    bytes_required: int | None = None
    bytes_available: int | None = None

    def __str__(self) -> str:
        text = WORDS[self.kind]
        if self.steps is not None:
            text += f", {self.steps} steps in a chunk"
        if self.kind == "loop" and self.hoisted is not None:
            text += (
                f", inputs projected {'before' if self.hoisted else 'inside'} the loop"
            )
        return text


def recurrences_in(closed: Any) -> dict[str, list[Any]]:
    """The equations of a jaxpr, however deep, that walk a recurrence: ``"forward"``
    and ``"backward"``.
    """
    names = {primitives.recurrence_p: "forward", primitives.adjoint_p: "backward"}
    found: dict[str, list[Any]] = {"forward": [], "backward": []}
    for eqn in equations(closed.jaxpr):
        if eqn.primitive in names:
            found[names[eqn.primitive]].append(eqn)
    return found


def equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def path_of(eqn: Any, platform: str) -> ExecutionPath:
    """How a platform walks the recurrence of an equation that `recurrences_in`
    found.
    """
    avals = [v.aval for v in eqn.invars]
    step, schedule = eqn.params["step"], eqn.params["schedule"]
    forward = eqn.primitive is primitives.recurrence_p
    steps = split_by_sizes(avals, (step.params, step.carry))[2][0].shape[0]
    backward = not forward or eqn.params["keep"] is not None
    resolved = resolve_schedule(
        schedule, step, steps, PLATFORMS[platform], backward=backward
    )
    schedule, why = resolved.schedule, resolved.reason
    whole = schedule.chunk is None or schedule.chunk >= steps
    chunk = None if whole else schedule.chunk
    if not isinstance(schedule.loop, PallasKernel):
        parallel = isinstance(schedule.loop, ParallelPrefix)
        return ExecutionPath(
            "prefixes" if parallel else "loop",
            chunk,
            None if parallel else schedule.hoist,
            why or "as asked for",
        )
    fits, reason, size = kernel_of(eqn, schedule, platform)
    if fits:
        return ExecutionPath(
            "kernel",
            chunk,
            reason=f"{why}; {reason}" if why else reason,
            bytes_required=size[0],
            bytes_available=size[1],
        )
    if schedule.loop.named or fits is None:
        return ExecutionPath("error", reason=reason)
    return ExecutionPath("loop", chunk, schedule.hoist, reason)


def kernel_of(
    eqn: Any, schedule: LoopSchedule, platform: str
) -> tuple[bool | None, str, tuple[int, int]]:
    """Whether the loops of a walk are kernels on a platform, why not, and the bytes
    needed and there. None: neither a kernel nor, nobody having named it, JAX's own loop
    comes of it, but an error.
    """
    function = primitives.FUNCTIONS[eqn.primitive]
    params, avals, target = (
        eqn.params,
        [v.aval for v in eqn.invars],
        PLATFORMS[platform],
    )
    traced = jax.make_jaxpr(functools.partial(function, platform=target, **params))(
        *avals
    )
    loops = [inner for inner in equations(traced.jaxpr) if inner.primitive is loop_p]
    if (
        not loops
    ):  # no kernel was named, and none fits: with one that is named comes the reason
        kernel: Any = schedule.loop
        named = schedule.replace(loop=dataclasses.replace(kernel, named=True))
        try:
            jax.make_jaxpr(
                functools.partial(
                    function, platform=target, **{**params, "schedule": named}
                )
            )(*avals)
        except KernelUnsupportedError as reason:
            return False, str(reason), (0, 0)
    found = [_loop_as_kernel(inner, target) for inner in loops]
    return next(
        (each for each in found if not each[0]), max(found, key=lambda each: each[2])
    )


def _loop_as_kernel(
    eqn: Any, platform: str
) -> tuple[bool | None, str, tuple[int, int]]:
    """`kernel_of` one loop."""
    params = eqn.params
    body, steps, kernel = params["body"], params["steps"], params["kernel"]
    reason = unsupported_reason(body, steps, platform, kernel)
    if reason is not None:
        return False, f"ValueError: {reason}" if kernel.named else reason, (0, 0)
    error = _compiles(_Loop(f"{body.closed} {params}", eqn), platform)
    if error is not None:
        return None, error, (0, 0)
    needed, there = memory_budget(body, steps, platform, kernel)
    text = (
        f"{needed:,} of {there:,} bytes on chip"
        if needed
        else "no matrix to keep on chip"
    )
    return True, text, (needed, there)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """A loop, equal to those of the same equations: a stack's cells have one kernel."""

    text: str
    eqn: Any = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=64)
def _compiles(loop: _Loop, platform: str) -> str | None:
    params = loop.eqn.params
    return lowering_error(
        lambda *args: loop_p.bind(*args, **params),
        [v.aval for v in loop.eqn.invars],
        platform,
    )


def lowering_error(function: Any, avals: list[Any], platform: str) -> str | None:
    """The error of compiling for a platform as far as that goes without one, if
    there is one.
    """
    try:
        jax.jit(function).trace(*avals).lower(lowering_platforms=(platform,))
    except Exception as error:
        return format_error(error)
    return None


def format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
