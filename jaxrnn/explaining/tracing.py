"""`explain`: which engine runs each cell of a layer, on which platform, and why.

Nothing is computed, and nothing is chosen here. The layer is traced while an observer
takes the place of every engine, and what the engines traced is then resolved for each
platform by the functions that resolve it when it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval as pe

from ..core.arrays import is_array
from ..core.cell import Cell
from ..core.dtypes import weaken_scalars
from ..core.engine import AbstractEngine, AbstractNetworkEngine, Request
from ..core.explicit_mesh import under_auto_axes
from ..core.layer import Layer
from ..core.types import Carry, Context, Flags, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_inputs
from ..engines import Associative, Fused, Scan
from ..engines.across.on_mesh import AcrossMesh
from ..engines.engine import DefaultEngine, LoopEngine
from ..engines.jaxpr.evaluate import is_differentiable
from ..engines.loops.kinds import Chunkwise
from ..engines.recurrence.heuristics import AUTO, EVERYTHING, choose_save
from ..engines.recurrence.run import run_plain_scan, trace_for_recurrence
from ..engines.recurrence.schedule import LoopSchedule
from ..unrolling import (
    check_all_carries,
    check_supported,
    observed_by,
    placed,
    unroll_validated,
    validate,
)
from .chips import platform_of
from .compiled_cost import chips_to_compile_for, cost_on
from .execution import (
    PLATFORMS,
    ExecutionPath,
    format_error,
    lowering_error,
    path_of,
    recurrences_in,
)
from .splits import described_split, inner_engine
from .table import Explanation, Row, brief, places_of

# Why `Across` runs where nobody has asked for it.
BY_TYPE = "because the type of the inputs splits time"


def explain(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    engine: Any = None,
    mask: Flags | None = None,
    resets: Flags | None = None,
    reverse: bool = False,
    key: Any = None,
    context: Context = None,
    return_carries: bool = False,
    compile: bool | Sequence[str] = False,
) -> Explanation:
    """Explain which engine `unroll` uses for each cell and platform, and why.

    Nothing is computed, and all arrays may be ``jax.ShapeDtypeStruct``. The layer and
    its gradient are traced. Kernels, and engines that are not schedules, are lowered
    for each platform, which needs no device of it; that takes about a second for each
    distinct cell. The gradient is that of the last carry and the outputs with respect
    to the cell's parameters, first carry and inputs.

    Args:
        cell, params, xs, carry, engine, mask, resets, reverse: as for `unroll`.
        key, context, return_carries: as for `unroll`.
        compile: whether to compile each cell's run and its gradient, too, and say how
            many kernels they launch, which bytes they move, which temporaries they
            keep, and, for TPUs, how many cycles libtpu expects. True stands for this
            machine's CPU, an H100 and a TPU v5e; a list names chips: "cpu", "H100",
            "A100", "v4", "v5e", "v5p", "v6e". No chip is needed, only its compiler:
            ``pip install 'jaxrnn[compilers]'``. Where that is missing, the row says so.

    Returns:
        An `Explanation`, which prints as a table. It has one row per cell and platform
        ("cpu", "gpu" for NVIDIA GPUs, "tpu"). If an engine was named, each row says
        that it runs, or the error that it raises (``row.error``).

    Raises:
        TypeError, ValueError: for inputs that `unroll` refuses with every engine, and
            for a chip whose name is not known.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.GRU(8)
        >>> params = cell.init(jax.random.key(0), 4)
        >>> xs = jax.ShapeDtypeStruct((20, 2, 4), "float32")
        >>> row = jaxrnn.explain(cell, params, xs).rows[0]
        >>> row.platform, row.engine, row.forward.kind
        ('cpu', 'Scan()', 'loop')
    """
    chips = chips_to_compile_for(compile)
    params = weaken_scalars(params)
    seen: list[_Seen] = []
    traced: dict[Any, _Traced] = {}

    def shapes(params, xs, carry, arrays):
        mask, resets, key, context = arrays
        spec = UnrollSpec(
            engine,
            mask,
            resets,
            reverse,
            key=key,
            all_carries=return_carries,
            context=context,
        )
        params, xs = validate(cell, params, xs, carry, spec)
        spec = placed(cell, params, xs, carry, spec)
        batch_ndim = len(check_inputs(xs, cell.feature_ndim)) - 1

        def observed(xs, params, carry, spec):
            seen.clear()  # on a mesh of explicit axes this is traced twice
            with observed_by(_Observer(places_of(params), seen, traced)):
                return unroll_validated(cell, params, xs, carry, spec)

        under_auto_axes(observed, batch_ndim, xs, params, carry, spec)

    jax.eval_shape(shapes, params, xs, carry, (mask, resets, key, context))
    distinct = {run.traced.number: run.traced for run in seen}
    rows = {number: _rows(found, chips) for number, found in distinct.items()}
    title = f"{brief(cell)} over xs {_shapes(xs)}, jax {jax.__version__}"
    asked = "the default engine" if engine is None else f"engine={brief(engine)}"
    placed_rows = [
        dataclasses.replace(row, place=run.place, number=i)
        for i, run in enumerate(seen)
        for row in rows[run.traced.number]
    ]
    return Explanation(f"{title}, {asked}", tuple(placed_rows))


def _shapes(xs: Inputs) -> str:
    """Return dtypes and shapes of inputs, an array or a pytree of arrays."""
    leaves = [f"{x.dtype.name}{list(x.shape)}" for x in jax.tree.leaves(xs)]
    return leaves[0] if is_array(xs) else f"({', '.join(leaves)})"


@dataclasses.dataclass
class _Traced:
    """What tracing an engine's run gave, once for all equal cells and arrays.

    Attributes:
        number: the position among all distinct runs.
        name: the cell, as one would write it.
        engine: the engine.
        why: why this engine runs.
        forward, gradient: the jaxprs of the run and of its gradient, or the text of the
            error that tracing raised.
        kernel: the same two under `Fused`; None if the engine is `Fused` itself, or one
            that splits time.
        plain: why ``jax.lax.scan`` runs, or None.
        plain_gradient: why only the derivative is that of ``jax.lax.scan``, or None.
        chunks: the steps in a chunk where the cell's ``run_chunks`` runs, and how it
            runs, of each platform, or None.
        across: how time is split over devices, or "".
    """

    number: int
    name: str
    engine: Any
    why: str
    forward: Any
    gradient: Any
    kernel: tuple[Any, Any] | None
    plain: str | None = None
    plain_gradient: str | None = None
    chunks: dict[str, tuple[int, str]] | None = None
    across: str = ""


@dataclasses.dataclass
class _Seen:
    """A run of an engine, and the place of the cell's parameters."""

    place: str
    traced: _Traced


@dataclasses.dataclass(frozen=True, eq=False)
class _Observer:
    """Records where engines run, and traces what they do there.

    Attributes:
        places: finds the path of a cell's parameters.
        seen: the runs, in their order.
        traced: the distinct runs.
    """

    places: Callable[[Any], str]
    seen: list[_Seen]
    traced: dict[Any, _Traced]

    def run(
        self,
        engine: AbstractEngine,
        why: str,
        all_carries: bool,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Inputs,
        mask: Flags | None = None,
        resets: Flags | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """Record a run; return results of the right shapes, by ``jax.lax.scan``."""
        given = (params, carry, xs, mask, resets)
        key = (
            cell,
            engine,
            why,
            all_carries,
            reverse,
            jax.tree.structure(given),
            *map(jax.typeof, jax.tree.leaves(given)),
        )
        if key not in self.traced:
            self.traced[key] = self._trace(
                engine, why, all_carries, cell, given, reverse
            )
        self.seen.append(_Seen(self.places(params), self.traced[key]))
        plain = LoopSchedule(hoist=False, reverse=reverse)
        return run_plain_scan(cell, params, carry, (xs, mask, resets), plain)

    def _trace(
        self,
        engine: AbstractEngine,
        why: str,
        all_carries: bool,
        cell: Cell,
        given: tuple,
        reverse: bool,
    ) -> _Traced:
        """Trace a run and its gradient, by its engine and by `Fused`."""

        def by(engine, check):
            def run(params, carry, xs, mask, resets):
                request = Request(resets is not None, False, check)
                check_supported(engine, cell, request)
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
        forward, gradient = by(engine, all_carries)
        across = described_split(engine, forward)
        with_kernel = not isinstance(engine, Fused) and not across
        kernel = by(Fused(), False) if with_kernel else None
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
            BY_TYPE if isinstance(engine, AcrossMesh) else why,
            forward,
            gradient,
            kernel,
            plain or None,
            plain_gradient,
            chunks=_own_chunks(inner_engine(engine, cell), cell, length),
            across=across,
        )

    def run_network(
        self,
        engine: AbstractNetworkEngine,
        params: Params,
        carries: list[Any],
        xs: Inputs,
        mask: Flags | None,
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


def _own_chunks(
    engine: AbstractEngine, cell: Cell, length: int
) -> dict[str, tuple[int, str]] | None:
    """Return the steps in a chunk where the cell's ``run_chunks`` runs, or None.

    They are those of each platform, each with how such a chunk is computed there.
    """
    if not isinstance(engine, LoopEngine):
        return None
    try:
        schedule = engine.schedule(cell, length)
    except (TypeError, ValueError):  # the traced programs hold the error
        return None
    if not isinstance(schedule.loop, Chunkwise):
        return None
    return {
        platform: (
            cell.chunk_on(platform) if schedule.chunk == AUTO else schedule.chunk,
            cell.describe_chunks(platform),
        )
        for platform in PLATFORMS
    }


def _both(run: Callable, operands: Any) -> tuple[Any, Any]:
    """Trace a function and its gradient with respect to all floating operands.

    Returns the two jaxprs, each replaced by the text of the error if tracing raises.
    """
    leaves, tree = jax.tree.flatten(operands)
    float_ids = [
        i for i, leaf in enumerate(leaves) if is_differentiable(jax.typeof(leaf))
    ]

    def flat(*leaves):
        return jax.tree.leaves(run(*jax.tree.unflatten(tree, leaves)))

    def gradient(*leaves):
        def of_floats(*values):
            full = dict(enumerate(leaves)) | dict(zip(float_ids, values, strict=True))
            return [
                out
                for out in flat(*(full[i] for i in range(len(leaves))))
                if is_differentiable(jax.typeof(out))
            ]

        # The outputs serve as cotangents, of the right types: nothing is computed.
        outs, pull = jax.vjp(of_floats, *(leaves[i] for i in float_ids))
        return outs, pull(outs)

    return _or_error(flat, leaves), _or_error(gradient, leaves)


def _or_error(function: Callable, leaves: list) -> Any:
    """Trace a function; return its jaxpr, or the text of the error."""
    try:
        closed = jax.make_jaxpr(function)(*leaves)
    except Exception as error:
        return format_error(error)
    # As in compilation, results that are not read are neither stored nor given memory
    # in a kernel.
    jaxpr, _ = pe.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.out_avals), instantiate=True
    )
    return core.ClosedJaxpr(jaxpr, closed.consts)


def _rows(traced: _Traced, chips: Sequence[str]) -> list[Row]:
    """Return the rows of a run, one for each platform."""
    return [
        _row(
            traced,
            platform,
            [chip for chip in chips if platform_of(chip) == platform],
        )
        for platform in PLATFORMS
    ]


def _row(traced: _Traced, platform: str, chips: Sequence[str]) -> Row:
    """Return the row of a run on one platform, compiled for some of its chips."""
    forward = _path(traced, traced.forward, "forward", platform)
    recording, backward = (
        _path(traced, traced.gradient, direction, platform)
        for direction in ("forward", "backward")
    )
    paths = [recording, backward]
    if traced.kernel is not None:
        by_kernel = dataclasses.replace(traced, engine=Fused())
        paths = [
            _path(by_kernel, traced.kernel[1], direction, platform)
            for direction in ("forward", "backward")
        ]
    kernel = next(
        (path for path in paths if path.kind == "error"),
        max(paths, key=lambda path: path.bytes_required or 0),
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
        compiled=tuple(
            cost_on(program, chip)
            for chip in chips
            for program in (traced.forward, traced.gradient)
        ),
    )


def _engine_of(traced: _Traced, path: ExecutionPath) -> str:
    """Return the engine as one would write it.

    The default engine is shown as the named engine that does the same.
    """
    if isinstance(traced.engine, AcrossMesh):
        return brief(traced.engine.across)
    if not isinstance(traced.engine, DefaultEngine):
        return brief(traced.engine)
    return brief({"kernel": Fused(), "prefixes": Associative()}.get(path.kind, Scan()))


def _path(traced: _Traced, closed: Any, direction: str, platform: str) -> ExecutionPath:
    """Say how a traced run goes on a platform.

    Args:
        traced: the run.
        closed: its jaxpr, or that of its gradient, or the text of an error.
        direction: ``"forward"`` or ``"backward"``.
        platform: a key of `PLATFORMS`.
    """
    path = _path_of_one_device(traced, closed, direction, platform)
    return (
        path
        if path.kind == "error"
        else dataclasses.replace(path, across=traced.across)
    )


def _path_of_one_device(
    traced: _Traced, closed: Any, direction: str, platform: str
) -> ExecutionPath:
    """Say how a traced run goes on each of the devices that take part in it."""
    if closed is traced.gradient and traced.plain_gradient is not None:
        raises = (
            "; the gradient of everything raises, as under lax.scan"
            if isinstance(closed, str)
            else ""
        )
        return ExecutionPath("lax.scan", reason=traced.plain_gradient + raises)
    if isinstance(closed, str):
        return ExecutionPath("error", reason=closed)
    paths = [path_of(eqn, platform) for eqn in recurrences_in(closed)[direction]]
    if not isinstance(traced.engine, LoopEngine) and not traced.across:
        error = lowering_error(
            core.jaxpr_as_fun(closed), list(closed.in_avals), PLATFORMS[platform]
        )
        if error is not None:
            return ExecutionPath("error", reason=error)
        return paths[0] if paths else ExecutionPath("own", reason="it compiles for it")
    if paths:
        return next((path for path in paths if path.kind == "error"), paths[0])
    if direction == "backward" and recurrences_in(closed)["forward"]:
        return ExecutionPath("none", reason="nothing of it can be differentiated")
    if traced.plain is not None or traced.chunks is None:
        return ExecutionPath("lax.scan", reason=traced.plain or "asked for")
    steps, how = traced.chunks[platform]
    return ExecutionPath("chunks", steps, reason=how)
