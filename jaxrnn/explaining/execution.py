"""How a traced recurrence runs on each platform, and why.

Nothing is chosen here. The jaxpr of an unroll contains the recurrence with its
schedule, and `resolve_schedule` resolves that for a platform. Whether a loop is a
kernel is found by lowering it for the platform, which needs no such device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from ..engines.jaxpr.carry_blocks import (
    blocks_of_step,
    describe,
    program_of_step,
)
from ..engines.jaxpr.evaluate import all_equations, split_by_sizes
from ..engines.loops.kinds import ParallelPrefix
from ..engines.loops.newton import NewtonIteration
from ..engines.loops.pallas.block_form import KernelUnsupportedError
from ..engines.loops.pallas.primitive import (
    PallasKernel,
    loop_p,
    memory_budget,
    unsupported_reason,
)
from ..engines.recurrence import primitives
from ..engines.recurrence.schedule import LoopSchedule, resolve_schedule

# What users call a platform, and what programs are lowered for.
PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
# What is printed for each kind of `ExecutionPath`.
WORDS = {
    "loop": "step by step",
    "prefixes": "parallel prefixes",
    "newton": "Newton's method, parallel in time",
    "kernel": "one kernel",
    "lax.scan": "jax.lax.scan with JAX's own derivative",
    "chunks": "chunks of steps",
    "own": "the engine's own loop",
    "none": "nothing: there is no gradient",
    "error": "does not run",
}


@dataclasses.dataclass(frozen=True)
class ExecutionPath:
    """How the steps of a cell run on a platform, forwards or backwards.

    Attributes:
        kind: one of

            ``"loop"``      step by step, with our derivative
            ``"prefixes"``  parallel prefixes
            ``"newton"``    Newton's method
            ``"kernel"``    one Pallas kernel
            ``"lax.scan"``  ``jax.lax.scan`` with JAX's own derivative
            ``"chunks"``    the cell's own ``run_chunks``
            ``"own"``       an engine that is not a schedule
            ``"none"``      nothing, since there is no gradient
            ``"error"``     an error, whose text is ``reason``

        steps: the number of steps in a chunk; None for all of T.
        hoisted: whether inputs are projected before the loop; None where that does not
            apply.
        reason: why this is what runs.
        bytes_required: the on-chip memory that a kernel needs.
        bytes_available: the on-chip memory that a kernel may use.
        across: how time is split over devices, each of which runs its part so; "" where
            it is not.

    Example:
        >>> import jaxrnn
        >>> path = jaxrnn.ExecutionPath("loop", steps=32, hoisted=True)
        >>> print(path)
        step by step, 32 steps in a chunk, inputs projected before the loop
        >>> print(jaxrnn.ExecutionPath("chunks", steps=64))
        chunks of steps, 64 steps in a chunk
    """

    kind: str
    steps: int | None = None
    hoisted: bool | None = None
    reason: str = ""
    bytes_required: int | None = None
    bytes_available: int | None = None
    across: str = ""

    def __str__(self) -> str:
        text = WORDS[self.kind]
        if self.across:
            text = f"{self.across}; on each {text}"
        if self.steps is not None:
            text += f", {self.steps} steps in a chunk"
        if self.kind == "loop" and self.hoisted is not None:
            text += (
                f", inputs projected {'before' if self.hoisted else 'inside'} the loop"
            )
        return text


def recurrences_in(closed: ClosedJaxpr) -> dict[str, list[Any]]:
    """Find the equations of a jaxpr, also nested ones, that run a recurrence.

    Returns them in two lists, under ``"forward"`` and ``"backward"``.
    """
    names = {primitives.recurrence_p: "forward", primitives.adjoint_p: "backward"}
    found: dict[str, list[Any]] = {"forward": [], "backward": []}
    for eqn in all_equations(closed.jaxpr):
        if eqn.primitive in names:
            found[names[eqn.primitive]].append(eqn)
    return found


def path_of(eqn: JaxprEqn, platform: str) -> ExecutionPath:
    """Say how a platform runs the recurrence of an equation from `recurrences_in`."""
    avals: list[Any] = [v.aval for v in eqn.invars]
    with jax.sharding.use_abstract_mesh(avals[0].sharding.mesh):
        return _path_there(eqn, avals, platform)


def _path_there(eqn: JaxprEqn, avals: list[Any], platform: str) -> ExecutionPath:
    """Say it in the mesh in which the equation was traced."""
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
    if isinstance(schedule.loop, NewtonIteration):
        if not forward:
            return ExecutionPath("newton", chunk, reason="one linear solve a chunk")
        structure = describe(
            blocks_of_step(step, schedule.loop.jacobian),
            program_of_step(step).part_avals,
        )
        reason = "; ".join(filter(None, (structure, why)))
        return ExecutionPath("newton", chunk, reason=reason)
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
    eqn: JaxprEqn, schedule: LoopSchedule, platform: str
) -> tuple[bool | None, str, tuple[int, int]]:
    """Find out whether the loops of a recurrence are kernels on a platform.

    Returns:
        Three values: True if all loops are kernels, False if some loop is not
        supported, None if lowering a kernel raises an error; the reason in words; and
        the bytes of on-chip memory needed and available.
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
    loops = [
        inner for inner in all_equations(traced.jaxpr) if inner.primitive is loop_p
    ]
    if not loops:
        # No loop became a kernel. With a named kernel, tracing raises the reason.
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
    # The first loop that is not a kernel, or else the kernel that needs most memory.
    results = [_loop_as_kernel(inner, target) for inner in loops]
    return next(
        (result for result in results if not result[0]),
        max(results, key=lambda result: result[2]),
    )


def _loop_as_kernel(
    eqn: JaxprEqn, platform: str
) -> tuple[bool | None, str, tuple[int, int]]:
    """Find out whether one loop is a kernel; returns what `kernel_of` returns."""
    params = eqn.params
    body, steps, kernel = params["body"], params["steps"], params["kernel"]
    reason = unsupported_reason(body, steps, platform, kernel)
    if reason is not None:
        return False, f"ValueError: {reason}" if kernel.named else reason, (0, 0)
    error = _loop_error(_Loop(f"{body.closed} {params}", eqn), platform)
    if error is not None:
        return None, error, (0, 0)
    required, available = memory_budget(body, steps, platform, kernel)
    text = (
        f"{required:,} of {available:,} bytes on chip"
        if required
        else "no matrix to keep on chip"
    )
    return True, text, (required, available)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """A loop that equals all loops of the same equations, so each is lowered once."""

    text: str
    eqn: Any = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=64)
def _loop_error(loop: _Loop, platform: str) -> str | None:
    """Return the error of lowering a loop for a platform, or None."""
    params = loop.eqn.params
    return lowering_error(
        lambda *args: loop_p.bind(*args, **params),
        [v.aval for v in loop.eqn.invars],
        platform,
    )


def lowering_error(
    function: Callable[..., Any], avals: list[Any], platform: str
) -> str | None:
    """Return the error of lowering a function for a platform, or None.

    No device of the platform is needed.
    """
    try:
        jax.jit(function).trace(*avals).lower(lowering_platforms=(platform,))
    except Exception as error:
        return format_error(error)
    return None


def format_error(error: Exception) -> str:
    """Return the type and the message of an error."""
    return f"{type(error).__name__}: {error}"
