"""Which engine walks each cell of a layer, where and why: `explain`. Nothing is
computed, and no choice is made here: the layer is traced, and the engines' own
functions are asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval as pe

from ..core.cell import Carry, Cell, Layer, Params, weaken_scalars
from ..core.engine import AbstractEngine, AbstractNetworkEngine
from ..engines import Associative, Fused, Scan
from ..engines.engine import DefaultEngine, LoopEngine
from ..engines.jaxpr.evaluate import is_differentiable
from ..engines.loops.kinds import Chunkwise
from ..engines.recurrence.heuristics import EVERYTHING, choose_save
from ..engines.recurrence.run import run_plain_scan, trace_for_recurrence
from ..engines.recurrence.schedule import LoopSchedule
from ..unrolling import (
    check_all_carries,
    observed_by,
    unroll_validated,
    validate,
)
from .execution import (
    PLATFORMS,
    ExecutionPath,
    format_error,
    lowering_error,
    path_of,
    recurrences_in,
)
from .table import Explanation, Row, brief, places_of


def explain(
    cell: Cell | Layer,
    params: Params,
    xs: Any,
    carry: Carry = None,
    *,
    engine: Any = None,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
    key: Any = None,
    return_carries: bool = False,
) -> Explanation:
    """Which engine `unroll` with these arguments walks with, cell by cell and platform
    by platform, and why::

        print(jaxrnn.explain(cell, params, xs))

    Nothing is computed: all arrays may be ``jax.ShapeDtypeStruct``. The layer and its
    gradient are traced, and compiled as far as that goes without the platform where a
    kernel, or an engine that is not this library's, is asked about: a second or so for
    each cell that is unlike the others. The gradient is that of the last carry and the
    outputs with respect to the cell's parameters, first carry and inputs.

    Args:
        cell, params, xs, carry, engine, mask, resets, reverse, key, return_carries: as
            for `unroll`.

    Returns:
        An `Explanation`: a table to print, and its ``rows``, one a cell and platform
            ("cpu", "gpu" for NVIDIA's, "tpu"). Of an
        engine that was named each row says that it runs, or the error that it raises
        (``row.error``).

    Raises:
        TypeError, ValueError: for inputs that `unroll` refuses whatever the engine.
    """
    params = weaken_scalars(params)
    seen: list[_Seen] = []
    traced: dict[Any, _Traced] = {}

    def shapes(params, xs, carry, mask, resets, key):
        given = validate(
            cell, params, xs, carry, mask, resets, None, key, engine, reverse
        )
        with observed_by(_Observer(places_of(params), seen, traced, return_carries)):
            unroll_validated(*given, None, return_carries)  # type: ignore[call-arg]

    jax.eval_shape(shapes, params, xs, carry, mask, resets, key)
    rows = {each.traced.number: _rows(each.traced) for each in seen}
    title = (
        f"{brief(cell)} over xs {xs.dtype.name}{list(xs.shape)}, jax {jax.__version__}"
    )
    asked = "the default engine" if engine is None else f"engine={brief(engine)}"
    found = [
        dataclasses.replace(row, place=each.place, number=i)
        for i, each in enumerate(seen)
        for row in rows[each.traced.number]
    ]
    return Explanation(f"{title}, {asked}", tuple(found))


@dataclasses.dataclass
class _Traced:
    """What a walk of an engine came to, once for all cells that are walked alike:
    jaxprs, or the errors instead.
    """

    number: int
    name: str
    engine: Any
    why: str
    forward: Any
    gradient: Any
    kernel: tuple[Any, Any] | None  # forward and gradient by `Fused`
    plain: str | None = None  # why JAX's own loop walks it, where that is so
    # why JAX's own derivative is taken, where that alone is so
    plain_gradient: str | None = None
    chunks: int | None = None  # steps in a chunk that the cell joins itself


@dataclasses.dataclass
class _Seen:
    place: str
    traced: _Traced


@dataclasses.dataclass(frozen=True, eq=False)
class _Observer:
    """Records where engines run, and the traced programs of what they do there."""

    places: Callable[[Any], str]
    seen: list[_Seen]
    traced: dict[Any, _Traced]
    return_carries: bool

    def run(
        self,
        engine: AbstractEngine,
        why: str,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Any,
        mask: Any = None,
        resets: Any = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """Record a run, and return what any engine returns: the shapes are the same."""
        given = (params, carry, xs, mask, resets)
        key = (
            cell,
            engine,
            why,
            reverse,
            jax.tree.structure(given),
            *map(jax.typeof, jax.tree.leaves(given)),
        )
        if key not in self.traced:
            self.traced[key] = self._trace(engine, why, cell, given, reverse)
        self.seen.append(_Seen(self.places(params), self.traced[key]))
        plain = LoopSchedule(hoist=True, reverse=reverse)
        return run_plain_scan(cell, params, carry, (xs, mask, resets), plain)

    def _trace(
        self, engine: AbstractEngine, why: str, cell: Cell, given: tuple, reverse: bool
    ) -> _Traced:
        def by(engine, check):
            def run(params, carry, xs, mask, resets):
                last, carries = engine.run(
                    cell, params, carry, xs, mask, resets, reverse
                )
                if check:
                    check_all_carries(cell, engine, carry, carries)
                return (
                    last,
                    cell.output(params, carries, xs),
                    carries if check else None,
                )

            return _both(run, given)

        params, carry, *sequence = given
        length = jax.tree.leaves(sequence)[0].shape[0]
        forward, gradient = by(engine, self.return_carries)
        kernel = None if isinstance(engine, Fused) else by(Fused(), False)
        reason, step, _ = trace_for_recurrence(cell, params, carry, tuple(sequence))
        plain, plain_gradient = reason or "", None
        if not plain and step is not None and engine in (Scan(), DefaultEngine()):
            save, save_reason = choose_save(step, length)
            plain_gradient = save_reason if save == EVERYTHING else None
        if not plain and length <= 1:
            plain = "a step alone, or none, needs no loop"
        return _Traced(
            len(self.traced),
            brief(cell),
            engine,
            why,
            forward,
            gradient,
            kernel,
            plain or None,
            plain_gradient,
            chunks=_own_chunks(engine, cell, length),
        )

    def run_network(
        self,
        engine: AbstractNetworkEngine,
        params: Params,
        carries: list[Any],
        xs: Any,
        mask: Any,
        reverse: bool,
        bidirectional: bool,
    ) -> tuple[list[Any], Any]:
        """Record a call in which the engine runs several cells at once."""

        def run(params, carries, xs, mask):
            return engine.run_network(params, carries, xs, mask, reverse, bidirectional)

        forward, gradient = _both(run, (params, carries, xs, mask))
        name = f"{len(carries)} cells in one call"
        traced = _Traced(
            len(self.traced), name, engine, "asked for", forward, gradient, None
        )
        self.traced[id(traced)] = traced
        self.seen.append(_Seen(self.places(params), traced))
        features = carries[0].h.shape[-1] * (2 if bidirectional else 1)
        return carries, jnp.zeros((*xs.shape[:-1], features), xs.dtype)


def _own_chunks(engine: AbstractEngine, cell: Cell, length: int) -> int | None:
    """Steps in a chunk where the engine runs chunks that the cell joins itself."""
    if not isinstance(engine, LoopEngine):
        return None
    try:
        schedule = engine.schedule(cell, length)
    except (TypeError, ValueError):  # the traced programs hold the error
        return None
    return schedule.chunk if isinstance(schedule.loop, Chunkwise) else None  # type: ignore[return-value]


def _both(walk: Callable, given: Any) -> tuple[Any, Any]:
    """The jaxprs of a walk and of its gradient, or the words of the error that came
    instead.
    """
    leaves, tree = jax.tree.flatten(given)
    moving = [i for i, leaf in enumerate(leaves) if is_differentiable(jax.typeof(leaf))]

    def flat(*leaves):
        return jax.tree.leaves(walk(*jax.tree.unflatten(tree, leaves)))

    def pulled(*leaves):
        def moved(*values):
            full = dict(enumerate(leaves)) | dict(zip(moving, values, strict=True))
            return [
                out
                for out in flat(*(full[i] for i in range(len(leaves))))
                if is_differentiable(jax.typeof(out))
            ]

        outs, pull = jax.vjp(moved, *(leaves[i] for i in moving))
        return outs, pull(
            outs
        )  # cotangents of the outputs' own types: nothing is computed

    return _or_error(flat, leaves), _or_error(pulled, leaves)


def _or_error(function: Callable, leaves: list) -> Any:
    try:
        closed = jax.make_jaxpr(function)(*leaves)
    except Exception as error:
        return format_error(error)
    # As compilation does: what nobody reads is not stored, nor given room in a kernel.
    jaxpr, _ = pe.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.out_avals), instantiate=True
    )
    return core.ClosedJaxpr(jaxpr, closed.consts)


def _rows(traced: _Traced) -> list[Row]:
    return [_row(traced, platform) for platform in PLATFORMS]


def _row(traced: _Traced, platform: str) -> Row:
    forward = _way(traced, traced.forward, "forward", platform)
    recording, backward = (
        _way(traced, traced.gradient, direction, platform)
        for direction in ("forward", "backward")
    )
    ways = [recording, backward]
    if traced.kernel is not None:
        by_kernel = dataclasses.replace(traced, engine=Fused())
        ways = [
            _way(by_kernel, traced.kernel[1], direction, platform)
            for direction in ("forward", "backward")
        ]
    kernel = next(
        (way for way in ways if way.kind == "error"),
        max(ways, key=lambda way: way.bytes_required or 0),
    )
    return Row(
        "",
        traced.name,
        platform,
        _engine_of(traced, forward),
        forward,
        recording,
        backward,
        kernel,
        traced.why,
    )


def _engine_of(traced: _Traced, way: ExecutionPath) -> str:
    """The engine in a user's words: the default is one of those that can be named."""
    if not isinstance(traced.engine, DefaultEngine):
        return brief(traced.engine)
    return brief({"kernel": Fused(), "prefixes": Associative()}.get(way.kind, Scan()))


def _way(traced: _Traced, closed: Any, direction: str, platform: str) -> ExecutionPath:
    if closed is traced.gradient and traced.plain_gradient is not None:
        raises = (
            "; the gradient of everything raises, as under lax.scan"
            if isinstance(closed, str)
            else ""
        )
        return ExecutionPath("lax.scan", reason=traced.plain_gradient + raises)
    if isinstance(closed, str):
        return ExecutionPath("error", reason=closed)
    found = [path_of(eqn, platform) for eqn in recurrences_in(closed)[direction]]
    if not isinstance(traced.engine, LoopEngine):
        error = lowering_error(
            core.jaxpr_as_fun(closed), list(closed.in_avals), PLATFORMS[platform]
        )
        if error is not None:
            return ExecutionPath("error", reason=error)
        return found[0] if found else ExecutionPath("own", reason="it compiles for it")
    if found:
        return next((way for way in found if way.kind == "error"), found[0])
    if direction == "backward" and recurrences_in(closed)["forward"]:
        return ExecutionPath("none", reason="nothing of it can be differentiated")
    if traced.plain is not None or traced.chunks is None:
        return ExecutionPath("lax.scan", reason=traced.plain or "asked for")
    return ExecutionPath("chunks", traced.chunks, reason="its steps join so")
