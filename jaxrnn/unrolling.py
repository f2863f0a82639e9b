"""How time is walked: `unroll`, the one door for cells and layers, and
`truncated_unroll`, the same with gradients cut.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Bool, Float, Inexact, Integer

from .core.arrays import is_array
from .core.cell import (
    Carry,
    Cell,
    Layer,
    Params,
    UnrollSpec,
    check_cell,
    expand_flags,
    is_chunkwise,
    select,
    unsupported_chunkwise_reason,
    weaken_scalars,
)
from .core.engine import AbstractEngine, AbstractNetworkEngine
from .core.explicit_mesh import under_auto_axes
from .core.gradient_scale import ScaledCell
from .core.masked_inputs import fill_masked_inputs
from .core.validation import (
    check_all_ours,
    check_carry,
    check_flags,
    check_inputs,
    check_key,
    check_ours,
    check_rows,
    check_scale,
    describe,
    describe_tree,
    name_failing_method,
)
from .engines import Associative
from .engines.engine import DefaultEngine
from .engines.recurrence.chunks import run_in_windows
from .engines.recurrence.run import unsupported_arrays_reason


def unroll(
    cell: Cell | Layer,
    params: Params,
    xs: Inexact[Array, "T *B D"],
    carry: Carry = None,
    *,
    engine: Any = None,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    reverse: bool = False,
    key: Array | None = None,
    return_carries: bool = False,
) -> tuple[Carry, Any] | tuple[Carry, Any, Carry]:
    """Walk a cell or layer through a sequence: ``carry_t, y_t = cell(params,
    carry_{t-1}, x_t)`` for every t.

    Args:
        cell: a cell or a layer. Rebuilding an equal one does not compile again.
        params: from ``cell.init``.
        xs: ``(T, D)`` or ``(T, *B, D)``, in the parameters' dtype. T = 0 gives back the
            carry.
        carry: the state before the first step (default: ``cell.initial_carry(params,
            B)``).
        engine: how to walk (default: `Scan`; `Associative` for `MLSTM`, unless
            ``return_carries``). One that is named runs, or raises.
        mask: ``(T, *B)`` bool. Where False the carry holds (after a reset there, if
            any) and the output is zero; padding may hold anything, NaN included, and
            changes neither values nor gradients, for every cell that is finite, with
            finite derivatives, at a valid input of its batch and the held carry: the
            cell sees its row's first valid input there, of another row where the row
            has none. `mask_from_lengths` makes one from lengths.
        resets: ``(T, *B)`` bool. Where True the carry becomes the initial one before
            step t: no value and no gradient crosses, so that two sequences can be
            packed into one. With ``reverse``, "before" is in the order of walking.
        reverse: walk from the last step to the first; outputs stay beside their inputs,
            ragged batches included.
        key: demanded by layers that draw random numbers (dropout, zoneout), refused by
            all others.
        return_carries: also return the carry after every step, ``(T, *B, ...)`` per
            leaf. Refused where the engine does not know them (`MLSTM` under
            `Associative`, `CuDNN`).

    Returns:
        ``(carry, ys)`` or ``(carry, ys, carries)``: the carry after the last step
        walked, and the outputs ``(T, *B, H)``,
        or the pytree of them that the cell's ``output`` makes.

    Raises:
        TypeError, ValueError: at trace time, for inputs whose rank, features, dtype,
            mask, carry or key do not fit.
    """
    args = validate(cell, params, xs, carry, mask, resets, None, key, engine, reverse)
    _check_truncated("unroll", cell, params, None, None)
    return _unroll(*args, window=None, return_carries=return_carries)


def truncated_unroll(
    cell: Cell | Layer,
    params: Params,
    xs: Inexact[Array, "T *B D"],
    carry: Carry = None,
    *,
    window: int | None = None,
    gradient_scale: Float[Array, "T *B"] | None = None,
    engine: Any = None,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    reverse: bool = False,
    key: Array | None = None,
    return_carries: bool = False,
) -> tuple[Carry, Any] | tuple[Carry, Any, Carry]:
    """`unroll` with the same values, whose gradients are cut in time: truncated BPTT
    inside any loss.

    With ``window``, time is cut, in the order of walking, into windows of that many
    steps (the last may be shorter). Going backwards, no gradient passes from a window
    into the one before: step j of a window (from 1) sees at most j - 1 earlier steps.
    The carry that was passed in gets gradient from the first window, the returned carry
    gives it to the last one. In a stack each layer's carry is cut. For a loss on the
    newest k1 steps with gradients over the last k2, see `TBPTT`.

    With ``gradient_scale``, the cotangent of the carry that enters step t is multiplied
    by ``gradient_scale[t]``: 1 lets it pass, 0 cuts it. `ARTBP` draws scales under
    which the expected gradient is that of full BPTT. In a stack each layer's carry is
    scaled; with ``reverse`` the carry enters step t from step t + 1. The backward layer
    of a `bidirectional` one scales each edge between two steps as the forward layer
    does.

    Args:
        window: steps in a window, at least 1; ``window >= T`` is full BPTT. Give this
            or ``gradient_scale``.
        gradient_scale: ``(T, *B)`` floating-point, constant to derivatives. It counts
            where the mask is False and the carry is held, too; a reset comes after it,
            so that no initial carry's gradient is scaled but that of the one passed in.
            The rest is as in `unroll`.
    """
    if (window is None) == (gradient_scale is None):
        came = "neither came" if window is None else "both came"
        raise ValueError(
            f"truncated_unroll: give window (steps between cuts) or gradient_scale (T, "
            f"*B), but {came}; without truncation use "
            "unroll"
        )
    if window is not None and (
        isinstance(window, bool)
        or not isinstance(window, (int, np.integer))
        or window < 1
    ):
        raise ValueError(
            f"truncated_unroll: window must be an int of at least 1 step, but it is "
            f"{window!r}"
        )
    window = None if window is None else int(window)
    args = validate(
        cell, params, xs, carry, mask, resets, gradient_scale, key, engine, reverse
    )
    _check_truncated("truncated_unroll", cell, params, window, gradient_scale)
    return _unroll(*args, window=window, return_carries=return_carries)


def mask_from_lengths(lengths: Integer[Array, "*B"], steps: int) -> Bool[Array, "T *B"]:
    """The mask ``(T, *B)`` of sequences that are padded at their end: True at step t
    where ``t < lengths``.

    Args:
        lengths: ``(*B,)`` integers in [0, T]; 0 is an empty sequence, which gives back
            its initial carry.
        steps: T.

    Raises:
        TypeError: for lengths that are not integers. ValueError: for concrete lengths
            outside [0, T] (inside ``jit`` they cannot be read).
    """
    check_ours("lengths", lengths)
    if not is_array(lengths):
        if not isinstance(lengths, (list, tuple, int)):
            raise TypeError(
                f"lengths must be an array of integers (*B,), but it is "
                f"{describe(lengths)}"
            )
        lengths = np.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"lengths must be integers, but their dtype is {lengths.dtype}: pass "
            f"lengths.astype('int32')"
        )
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        concrete = np.asarray(
            lengths
        )  # jnp would trace its minimum when this runs inside a compiled function
        low, high = int(concrete.min()), int(concrete.max())
        if low < 0 or high > steps:
            raise ValueError(
                f"lengths must lie between 0 and T = {steps}, but they run from {low} "
                f"to {high}"
            )
    return (
        jnp.arange(steps, dtype=jnp.int32).reshape(-1, *[1] * lengths.ndim)
        < jnp.asarray(lengths, jnp.int32)[None]
    )


def validate(
    cell, params, xs, carry, mask, resets, gradient_scale, key, engine, reverse
):
    """Everything that was passed to `unroll`, in this order, once it has been
    checked.
    """
    check_cell(cell)
    if isinstance(xs, np.ndarray):
        xs = jnp.asarray(xs)
    check_inputs(xs)
    for name, flags in (("mask", mask), ("resets", resets)):
        if flags is not None:
            check_flags(name, flags, xs)
    if gradient_scale is not None:
        check_scale(gradient_scale, xs)
    if not isinstance(reverse, bool):
        raise TypeError(f"reverse must be True or False, but it is {reverse!r}")
    check_key(cell, key)
    check_all_ours("params", params)
    cell.check(params)
    if engine is not None and not isinstance(engine, AbstractEngine):
        raise TypeError(
            f"engine must be an engine such as jaxrnn.Scan(), but it is {engine!r}"
        )
    batch = tuple(xs.shape[1:-1])
    if carry is not None:
        expected = jax.eval_shape(lambda p: initial_carry_of(cell, p, batch), params)
        check_carry(cell, carry, expected, "the carry passed in")
    return (
        cell,
        weaken_scalars(params),
        xs,
        carry,
        mask,
        resets,
        gradient_scale,
        key,
        engine,
        reverse,
    )


@runtime_checkable
class Observer(Protocol):
    """What `jaxrnn.explain` puts in the place of every engine, to record its choices.

    Its results have the shapes of the engine's own and nothing else in common.
    """

    def run(
        self, engine: AbstractEngine, why: str, cell: Cell, *args: Any
    ) -> tuple[Carry, Carry]:
        """Record ``engine.run(cell, *args)``; ``why`` says who chose the engine."""

    def run_network(
        self, engine: AbstractNetworkEngine, params: Params, carries: list, *args: Any
    ) -> tuple[list, Any]:
        """Record ``engine.run_network(params, carries, *args)``."""


_OBSERVER: contextvars.ContextVar[Observer | None] = contextvars.ContextVar(
    "jaxrnn_observer", default=None
)


@contextlib.contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Let ``observer`` stand for every engine, in layers that call `unroll`, too."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def current_observer() -> Observer | None:
    """The observer of the `jaxrnn.explain` that is tracing, if one is."""
    return _OBSERVER.get()


def _unroll(*args, window, return_carries):
    # Under an observer: a compiled unroll would not be traced again, and so not be
    # seen.
    run: Any = _unroll_jit if current_observer() is None else unroll_validated
    carry, ys, carries = run(*args, window, return_carries)
    return (carry, ys, carries) if return_carries else (carry, ys)


@functools.partial(
    jax.jit,
    static_argnames=("cell", "engine", "reverse", "window", "return_carries"),
    inline=True,
)
def _unroll_jit(
    cell,
    params,
    xs,
    carry,
    mask,
    resets,
    gradient_scale,
    key,
    engine,
    reverse,
    window,
    return_carries,
):
    """Compiled once for equal cells and equal shapes."""

    def walk(xs, *arrays):
        params, carry, mask, resets, scale, key = arrays
        return unroll_validated(
            cell,
            params,
            xs,
            carry,
            mask,
            resets,
            scale,
            key,
            engine,
            reverse,
            window,
            return_carries,
        )

    return under_auto_axes(walk, xs, params, carry, mask, resets, gradient_scale, key)


def unroll_validated(
    cell,
    params,
    xs,
    carry,
    mask,
    resets,
    gradient_scale,
    key,
    engine,
    reverse,
    window,
    return_carries,
) -> tuple[Carry, Any, Carry]:
    """What `unroll` does with arguments that were checked."""
    if carry is None:
        carry = initial_carry_of(cell, params, tuple(xs.shape[1:-1]))
    scale = (
        None
        if gradient_scale is None
        else jax.lax.stop_gradient(jnp.asarray(gradient_scale))
    )
    spec = UnrollSpec(
        engine,
        mask,
        resets,
        reverse,
        window,
        key,
        gradient_scale=scale,
        all_carries=return_carries,
    )
    carry, ys, carries = unroll_unchecked(
        cell, params, jax.tree.map(jnp.asarray, carry), xs, spec
    )
    if isinstance(cell, Layer):
        ys = _zero_where_masked(cell, ys, mask)
    if return_carries and current_observer() is None:
        check_all_carries(cell, engine, carry, carries)
    return carry, ys, carries if return_carries else None


def initial_carry_of(
    cell: Cell | Layer, params: Params, batch: tuple[int, ...]
) -> Carry:
    """``cell.initial_carry``, an error in which names it."""
    with name_failing_method(
        cell,
        "initial_carry",
        "Define initial_carry(self, params, batch_shape=(), dtype=None)",
        batch_shape=batch,
    ):
        return cell.initial_carry(params, batch)


def check_all_carries(
    cell: Cell | Layer, engine: Any, carry: Carry, carries: Carry
) -> None:
    """The carries after every step have all the parts of a carry."""
    if len(jax.tree.leaves(carries)) < len(jax.tree.leaves(carry)):
        raise ValueError(
            f"{type(cell).__name__}: {engine!r} walks whole chunks and knows the whole "
            f"carry at their ends only, but "
            "return_carries asks for it after every step: use engine=jaxrnn.Scan(), or "
            "leave return_carries out"
        )


def unroll_unchecked(
    cell: Cell | Layer, params: Params, carry: Carry, xs: Any, spec: UnrollSpec
) -> tuple[Carry, Any, Carry]:
    """`unroll` without its checks, for layers: the last carry, the outputs and the
    carries after every step.
    """
    if isinstance(cell, Layer):
        with _truncation_scope(cell, spec, xs):
            walked = cell.unroll(
                params,
                carry,
                fill_masked_inputs(xs, spec.mask) if cell.reads_inputs else xs,
                spec,
            )
        if not isinstance(walked, tuple) or len(walked) != 3:
            raise TypeError(
                f"{type(cell).__name__}.unroll must return (carry, ys, carries): the "
                f"last carry, the outputs (T, *B, H) and "
                f"the carries after every step, but it returns {describe_tree(walked)}"
            )
        return walked
    xs = fill_masked_inputs(
        xs, spec.mask
    )  # in a stack, too, whose lower layers put out zeros there: 0 * NaN is NaN in a gradient  # noqa: E501
    with _truncation_scope(None, spec, xs):
        check_step(cell, params, carry, xs)
        _check_rows(cell, params, carry, spec)
        engine, why = (
            (spec.engine, "asked for")
            if spec.engine is not None
            else _default_engine(cell, params, carry, xs, spec)
        )
        observer = current_observer()
        run = (
            engine.run
            if observer is None
            else functools.partial(observer.run, engine, why)
        )
        last, carries = _unroll_windows(run, cell, params, carry, xs, spec)
        with name_failing_method(
            cell,
            "output",
            "It is given all of time at once: any leading axes",
            carry=carries,
            x=xs,
        ):
            ys = cell.output(params, carries, xs)
    return last, _zero_where_masked(cell, ys, spec.mask), carries


def _zero_where_masked(cell: Cell | Layer, ys: Any, mask: Any) -> Any:
    """Outputs, an array or a pytree of ``(T, *B, ...)``, as a masked step shows
    them.
    """
    if mask is None:
        return ys
    for path, leaf in jax.tree_util.tree_leaves_with_path(ys):
        if tuple(jnp.shape(leaf)[: mask.ndim]) != tuple(mask.shape):
            method = "unroll" if isinstance(cell, Layer) else "output"
            raise ValueError(
                f"{type(cell).__name__}.{method}: with a mask every output is zero at "
                f"masked steps, so its axes must begin "
                f"with time and batch, {tuple(mask.shape)}, but "
                f"{jax.tree_util.keystr(path) or 'it'} has {jnp.shape(leaf)}"
            )
    return jax.tree.map(
        lambda leaf: jnp.where(expand_flags(mask, leaf), leaf, jnp.zeros_like(leaf)), ys
    )


def _check_rows(cell: Cell, params: Params, carry: Carry, spec: UnrollSpec) -> None:
    """What is done to the carry of each row by itself can be done to all its parts."""
    flags = {
        "mask=": spec.mask,
        "resets=": spec.resets,
        "gradient_scale=": spec.gradient_scale,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    batch = next((tuple(value.shape[1:]) for value in given.values()), ())
    if batch:  # one more of each, to tell a batch axis from another of the same size
        wider = _with_more_rows(cell, params, carry, batch)
        why = " and ".join(given)
        check_rows(
            type(cell).__name__,
            carry,
            wider,
            batch,
            why,
            floats="mask=" not in given and "resets=" not in given,
        )


def _with_more_rows(
    cell: Cell, params: Params, carry: Carry, batch: tuple[int, ...]
) -> Carry:
    """Shapes of the carry of a batch that is larger by one in every axis. Where a cell
    makes none, since its parameters hold a state for each row, its floating-point parts
    are taken to be of rows if they are of such a shape.
    """
    more = tuple(n + 1 for n in batch)
    try:
        return jax.eval_shape(lambda p: cell.initial_carry(p, more), params)
    except Exception:

        def leaf(a: Any) -> Any:
            of_rows = (
                jnp.issubdtype(a.dtype, jnp.inexact) and a.shape[: len(batch)] == batch
            )
            return jax.ShapeDtypeStruct(
                (*more, *a.shape[len(batch) :]) if of_rows else a.shape, a.dtype
            )

        return jax.tree.map(leaf, carry)


_CUT: contextvars.ContextVar[tuple[Layer, UnrollSpec] | None] = contextvars.ContextVar(
    "jaxrnn_cut", default=None
)


@contextlib.contextmanager
def _truncation_scope(layer: Layer | None, spec: UnrollSpec, xs: Any) -> Iterator[None]:
    """While a layer walks under truncation, of which an `unroll` in its code would not
    know. None: a cell, in whose step one walks over another time.

    A function in its code that was compiled outside of truncation is traced anew: the
        metadata are part of what jit looks at.
    """
    cut = spec.gradient_scale is not None or (
        spec.window is not None and spec.window < jax.tree.leaves(xs)[0].shape[0]
    )
    token = _CUT.set((layer, spec) if layer is not None and cut else None)
    foreign = (
        layer is not None and cut and not type(layer).__module__.startswith("jaxrnn.")
    )
    asked = "gradient_scale" if spec.window is None else f"window={spec.window}"
    try:
        with (
            set_xla_metadata(jaxrnn_truncation=asked)
            if foreign
            else contextlib.nullcontext()
        ):
            yield
    finally:
        _CUT.reset(token)


def _check_truncated(
    what: str,
    cell: Cell | Layer,
    params: Params,
    window: int | None,
    gradient_scale: Any,
) -> None:
    """Within a layer that is walked under truncation the gradient is cut as it was
    told to be, where there is a carry.
    """
    if (cut := _CUT.get()) is None or not jax.tree.leaves(
        jax.eval_shape(cell.initial_carry, params)
    ):
        return
    layer, spec = cut
    asked = f"window={spec.window}" if spec.gradient_scale is None else "gradient_scale"
    if spec.window is not None and window is not None and window <= spec.window:
        return
    if spec.gradient_scale is not None and gradient_scale is not None:
        return
    name = asked.partition("=")[0]
    raise ValueError(
        f"{type(layer).__name__}.unroll calls jaxrnn.{what} on {type(cell).__name__}, "
        f"which does not know that the whole is "
        f"walked by truncated_unroll with {asked}, so the gradient would not be cut: "
        f"where spec.{name} is not None call "
        f"jaxrnn.truncated_unroll(..., {name}=spec.{name}) there"
    )


def _default_engine(
    cell: Cell, params: Params, carry: Carry, xs: Any, spec: UnrollSpec
) -> tuple[Any, str]:
    """`DefaultEngine`, but where a cell joins its steps in chunks and nobody asks for
    the carries inside them; and why.
    """
    if not is_chunkwise(cell):
        return DefaultEngine(), "the default"
    reason = unsupported_chunkwise_reason(cell) or unsupported_arrays_reason(
        jax.tree.leaves((params, carry, xs, spec.mask, spec.resets))
    )
    if spec.all_carries:
        reason = "the carries inside its chunks are asked for"
    if spec.gradient_scale is not None:
        reason = "gradient_scale needs its steps one by one"
    return (
        (Associative(), "the default: its steps join in chunks")
        if reason is None
        else (DefaultEngine(), f"the default: {reason}")
    )


def check_step(cell: Cell, params: Params, carry: Carry, xs: Any) -> None:
    """A cell's ``step`` returns a carry like the one it was given (abstractly:
    nothing is computed).
    """
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    hint = _hint(cell, carry, xs)

    def once(p, s, x):
        with name_failing_method(cell, "project", hint, x=x):
            z = cell.project(p, x)
        with name_failing_method(cell, "step", hint, carry=s, z=z):
            return cell.step(p, s, z)

    new = jax.eval_shape(once, params, carry, x)
    name, like, made = type(cell).__name__, _kind_of(carry), _kind_of(new)
    if (
        isinstance(new, tuple)
        and len(new) == 2
        and like != made
        and like == _kind_of(new[0])
    ):
        raise TypeError(
            f"{name}.step returns a pair, (carry, y) it seems, but a step returns the "
            f"carry alone: return the carry, and say "
            "in output(self, params, carry, x) what the cell shows"
        )
    if like == made:
        for (path, got), want in zip(
            jax.tree_util.tree_leaves_with_path(new),
            jax.tree.leaves(carry),
            strict=True,
        ):
            batch = tuple(got.shape)[: len(got.shape) - len(want.shape)]
            if (
                batch
                and tuple(got.shape) == (*batch, *want.shape)
                and _batch_of(xs)[: len(batch)] == batch
            ):
                raise ValueError(
                    f"{name}.initial_carry: {_part(path)} has shape "
                    f"{tuple(want.shape)}, without the batch axes {batch}, and "
                    f"step makes {tuple(got.shape)} of it: begin its shape with "
                    f"batch_shape, "
                    f"(*batch_shape, {', '.join(map(str, want.shape))})"
                )
    check_carry(cell, new, carry, "the carry that step returns")


def _hint(cell: Cell, carry: Carry, xs: Any) -> str:
    """What may be wrong where a step fails: batch axes that are none, or parameters
    of another size.
    """
    batch = _batch_of(xs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if batch and tuple(leaf.shape[: len(batch)]) != batch:
            return (
                f"{type(cell).__name__}.initial_carry made {_part(path)} without the "
                f"batch axes {batch}"
            )
    if len(batch) > 1:
        return (
            f"Of xs (T, *B, D) the last axis alone is features, so {batch} are batch "
            f"axes: hold a picture's in the last one, "
            "xs.reshape(T, B, -1), and unfold it in project"
        )
    features = {leaf.shape[-1] for leaf in jax.tree.leaves(xs) if leaf.shape}
    return (
        f"Parameters for these inputs come of init(key, input_size={features.pop()})"
        if len(features) == 1
        else ""
    )


def _kind_of(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _batch_of(xs: Any) -> tuple[int, ...]:
    return tuple(xs.shape[1:-1]) if is_array(xs) else ()


def _part(path: Any) -> str:
    return f"part {jax.tree_util.keystr(path)} of the carry" if path else "the carry"


def _unroll_windows(
    run: Callable, cell: Cell, params: Params, carry: Carry, xs: Any, spec: UnrollSpec
) -> tuple[Carry, Carry]:
    """The engine's ``run`` over the whole sequence, its gradients scaled if so told, or
    window after window with them stopped between.
    """
    steps, window = jax.tree.leaves(xs)[0].shape[0], spec.window
    parts = (xs, spec.mask, spec.resets)
    if spec.gradient_scale is not None:
        cell, parts = ScaledCell(cell), ((spec.gradient_scale, *parts), None, None)
    if window is None or window >= steps:
        return run(cell, params, carry, *parts, spec.reverse)

    def one(carry, part, begin):
        first = (
            begin + jax.tree.leaves(part)[0].shape[0] == steps
            if spec.reverse
            else begin == 0
        )
        carry = select(first, carry, jax.lax.stop_gradient(carry))
        return run(cell, params, carry, *part, spec.reverse)

    return run_in_windows(one, carry, parts, window, spec.reverse)
