"""Which engine walks each cell of a layer, where and why: `explain`. Nothing is
computed, and no choice is made here: the layer is traced, and the engines' own
functions are asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval as pe

from ..core.cell import Carry, Cell, Layer, Params, weaken_scalars
from ..engines import Associative, Checkpoint, Fused, Scan
from ..engines.jaxpr.evaluate import is_differentiable
from ..engines.recurrence.heuristics import ALL, choose_save
from ..engines.recurrence.run import run_plain_scan, trace_for_recurrence
from ..engines.scan import Default
from ..unrolling import check_all_carries, unroll_validated, validate
from .execution import (
    PLATFORMS,
    ExecutionPath,
    format_error,
    lowering_error,
    path_of,
    recurrences_in,
)
from .table import Explanation, Row, brief, places_of

OWN = (
    Scan,
    Checkpoint,
    Associative,
    Fused,
)  # engines whose walks this library knows from inside


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
        validate(cell, params, xs, carry, mask, resets, None, key, engine, reverse)
        places = places_of(params)

        def watch(engine, why):
            return (
                engine
                if isinstance(engine, _Watched)
                else _Watched(engine, why, places, seen, traced, return_carries)
            )

        given = None if engine is None else watch(engine, "asked for")
        unroll_validated(
            cell,
            params,
            xs,
            carry,
            mask,
            resets,
            None,
            key,
            given,
            reverse,
            None,
            return_carries,
            watch,
        )

    with contextlib.suppress(_Stopped):
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
    plain_gradient: str | None = (
        None  # why JAX's own derivative is taken, where that alone is so
    )


@dataclasses.dataclass
class _Seen:
    place: str
    traced: _Traced


class _Stopped(Exception):
    """A whole network was to be one call, and is an error: what comes after it is
    not known.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class _Watched:
    """An engine that notes where it is asked to walk, and what comes of it."""

    engine: Any
    why: str
    places: Callable[[Any], str]
    seen: list[_Seen]
    traced: dict[Any, _Traced]
    return_carries: bool

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.engine, name)
        return self._network(found) if name == "walk_network" else found

    def walk(self, cell, params, carry, xs, mask=None, resets=None, reverse=False):
        given = (params, carry, xs, mask, resets)
        key = (
            cell,
            self.engine,
            self.why,
            reverse,
            jax.tree.structure(given),
            *map(jax.typeof, jax.tree.leaves(given)),
        )
        if key not in self.traced:
            self.traced[key] = self._trace(cell, given, reverse)
        self.seen.append(_Seen(self.places(params), self.traced[key]))
        try:
            last, carries = self.engine.walk(cell, *given, reverse)
            if self.return_carries:
                check_all_carries(cell, self.engine, carry, carries)
            return last, carries
        except Exception:  # noted; shapes go on as any engine would give them
            return run_plain_scan(
                cell, params, carry, (xs, mask, resets), True, reverse, 1
            )

    def _trace(self, cell: Cell, given: tuple, reverse: bool) -> _Traced:
        def by(engine, check):
            def walk(params, carry, xs, mask, resets):
                last, carries = engine.walk(
                    cell, params, carry, xs, mask, resets, reverse
                )
                if check:
                    check_all_carries(cell, engine, carry, carries)
                return (
                    last,
                    cell.output(params, carries, xs),
                    carries if check else None,
                )

            return _both(walk, given)

        params, carry, *sequence = given
        forward, gradient = by(self.engine, self.return_carries)
        kernel = None if isinstance(self.engine, Fused) else by(Fused(), False)
        reason, step, _ = trace_for_recurrence(cell, params, carry, tuple(sequence))
        plain, plain_gradient = reason or "", None
        if not plain and step is not None and self.engine in (Scan(), Default()):
            residuals, why = choose_save(step, jax.tree.leaves(sequence)[0].shape[0])
            plain_gradient = why if residuals == ALL else None
        if (
            not plain
            and sequence[0] is not None
            and jax.tree.leaves(sequence)[0].shape[0] <= 1
        ):
            plain = "a step alone, or none, needs no loop"
        return _Traced(
            len(self.traced),
            brief(cell),
            self.engine,
            self.why,
            forward,
            gradient,
            kernel,
            plain or None,
            plain_gradient,
        )

    def _network(self, function: Callable) -> Callable:
        """A call in which the engine walks several cells at once."""

        def walk_network(params, carries, *rest):
            arrays = [leaf for leaf in jax.tree.leaves(rest) if hasattr(leaf, "dtype")]
            leaves, tree = jax.tree.flatten(rest)

            def walk(params, carries, arrays):
                these = iter(arrays)
                again = [
                    next(these) if hasattr(leaf, "dtype") else leaf for leaf in leaves
                ]
                return function(params, carries, *jax.tree.unflatten(tree, again))

            forward, gradient = _both(walk, (params, carries, arrays))
            name = f"{len(carries)} cells in one call"
            traced = _Traced(
                len(self.traced), name, self.engine, self.why, forward, gradient, None
            )
            self.traced[id(traced)] = traced
            self.seen.append(_Seen(self.places(params), traced))
            if isinstance(forward, str):
                raise _Stopped
            return function(params, carries, *rest)

        return walk_network


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
        (way for way in ways if way.how == "error"),
        max(ways, key=lambda way: way.needed or 0),
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
    if not isinstance(traced.engine, Default):
        return brief(traced.engine)
    return brief({"kernel": Fused(), "prefixes": Associative()}.get(way.how, Scan()))


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
    if not isinstance(traced.engine, OWN):
        error = lowering_error(
            core.jaxpr_as_fun(closed), list(closed.in_avals), PLATFORMS[platform]
        )
        if error is not None:
            return ExecutionPath("error", reason=error)
        return found[0] if found else ExecutionPath("own", reason="it compiles for it")
    if found:
        return next((way for way in found if way.how == "error"), found[0])
    if direction == "backward" and recurrences_in(closed)["forward"]:
        return ExecutionPath("none", reason="nothing of it can be differentiated")
    if traced.plain is not None or not isinstance(traced.engine, Associative):
        return ExecutionPath("lax.scan", reason=traced.plain or "asked for")
    return ExecutionPath("chunks", traced.engine.own_chunk, reason="its steps join so")
