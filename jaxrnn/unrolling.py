"""`unroll`, which applies a cell or layer over a sequence, and `truncated_unroll`."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Bool, Float, Integer

from .core.arrays import is_array
from .core.cell import (
    Cell,
    bind_context,
    is_chunkwise,
    unsupported_chunkwise_reason,
    without_context,
)
from .core.dtypes import weaken_scalars
from .core.engine import AbstractEngine, AbstractNetworkEngine, Request
from .core.explicit_mesh import under_auto_axes
from .core.flags import expand_flags, select
from .core.gradient_scale import ScaledCell
from .core.layer import Layer, check_cell
from .core.masked_inputs import fill_masked_inputs
from .core.types import Carry, Context, Inputs, Params
from .core.unroll_spec import UnrollSpec
from .core.validation import (
    check_all_ours,
    check_carry,
    check_context,
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
    xs: Inputs,
    carry: Carry = None,
    *,
    engine: Any = None,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    reverse: bool = False,
    key: Array | None = None,
    context: Context = None,
    return_carries: bool = False,
) -> tuple[Carry, Any] | tuple[Carry, Any, Carry]:
    """Apply a cell or layer at every step of a sequence.

    It computes ``carry_t, y_t = cell(params, carry_{t-1}, x_t)`` for t = 1, ..., T.
    Calls with equal cells, engines and shapes share one compilation.

    Args:
        cell: a cell or a layer.
        params: its parameters, from ``cell.init``.
        xs: the inputs, ``(T, *B, D)`` with any number of batch axes, in the dtype of
            the parameters. For T = 0 the carry is returned as it is. A cell of one's
            own may take any pytree of arrays ``(T, *B, ...)``, integers and flags
            included; its ``feature_ndim`` says how many axes are features.
        carry: the carry before the first step. The default is
            ``cell.initial_carry(params, B)``.
        engine: the engine that runs the steps. The default chooses for the cell and the
            platform: mostly `Scan`; `Associative` for `MLSTM`, unless
            ``return_carries``. An engine that is named runs, or raises an error.
        mask: ``(T, *B)`` bool. Where False, the carry is held (after a reset there, if
            any) and the output is zero. Padding may contain anything, NaN included, and
            affects neither values nor gradients: at a masked step the cell is given the
            first valid input of its row, or of another row if its row has none. The
            cell must be finite, with finite derivatives, at that input and the held
            carry. `mask_from_lengths` makes a mask from lengths.
        resets: ``(T, *B)`` bool. Where True, the carry becomes the initial one before
            step t, so that neither values nor gradients cross, and sequences can be
            packed into one. With ``reverse``, "before" is in the order in which the
            steps run.
        reverse: run from the last step to the first. Outputs stay at the index of their
            inputs, in ragged batches, too.
        key: a random key. Layers that draw random numbers (dropout, zoneout) require
            it; all others must not get one.
        context: a pytree of arrays ``(*B, ...)`` that are the same at every step, for
            cells with ``takes_context``: the memory that attention reads, a vector that
            conditions the sequence. Gradients reach it. With a mask, a row without any
            valid step is given the context of another row.
        return_carries: also return the carry after every step. Some engines do not know
            them and raise an error (`CuDNN`, and `Associative` for `MLSTM`).

    Returns:
        ``(carry, ys)``, or ``(carry, ys, carries)`` with ``return_carries``: the carry
        after the step that ran last; the outputs ``(T, *B, H)``, or the pytree of them
        that the cell's ``output`` returns; and the carries after every step,
        ``(T, *B, ...)`` per leaf.

    Raises:
        TypeError, ValueError: at trace time, if the rank, features, dtype, mask, carry
            or key do not fit, or if the engine does not support the cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.LSTM(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jnp.ones((10, 2, 3))
        >>> mask = jaxrnn.mask_from_lengths(jnp.array([10, 7]), 10)
        >>> carry, ys = jaxrnn.unroll(cell, params, xs, mask=mask)
        >>> carry.h.shape, ys.shape
        ((2, 4), (10, 2, 4))
    """
    spec = UnrollSpec(
        engine,
        mask,
        resets,
        reverse,
        key=key,
        all_carries=return_carries,
        context=context,
    )
    return _unroll("unroll", cell, params, xs, carry, spec)


def truncated_unroll(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    window: int | None = None,
    gradient_scale: Float[Array, "T *B"] | None = None,
    engine: Any = None,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    reverse: bool = False,
    key: Array | None = None,
    context: Context = None,
    return_carries: bool = False,
) -> tuple[Carry, Any] | tuple[Carry, Any, Carry]:
    """Apply `unroll` with truncated gradients: truncated BPTT inside any loss.

    The values are those of `unroll`. Its gradients are cut or scaled between steps.

    With ``window``, time is divided, in the order in which the steps run, into windows
    of that many steps; the last may be shorter. No gradient passes from a window into
    the one before, so the gradient of step j of a window (counted from 1) reaches at
    most j - 1 earlier steps. The carry that is passed in gets a gradient from the first
    window, and the returned carry passes its gradient to the last one. In a stack the
    carry of each layer is cut. For a loss on the newest k1 steps with gradients over
    the last k2, see `TBPTT`.

    With ``gradient_scale``, the cotangent of the carry that enters step t is multiplied
    by ``gradient_scale[t]``: 1 lets it pass and 0 cuts it. `ARTBP` draws scales for
    which the expected gradient is that of full BPTT. In a stack the carry of each layer
    is scaled. With ``reverse`` the carry enters step t from step t + 1. In a
    `bidirectional` layer both directions scale the edge between two steps alike.

    Args:
        cell, params, xs, carry, engine, mask, resets, reverse, key, context,
            return_carries: as in `unroll`.
        window: the number of steps in a window, at least 1; ``window >= T`` is full
            BPTT. Exactly one of ``window`` and ``gradient_scale`` must be given.
        gradient_scale: ``(T, *B)`` floating-point, a constant in derivatives. It also
            applies at masked steps, where the carry is held. A reset comes after it, so
            of all initial carries only the one that is passed in has a scaled gradient.

    Returns:
        As `unroll`.

    Raises:
        TypeError, ValueError: as `unroll`, and for a window that is not a size, or if
            not exactly one of ``window`` and ``gradient_scale`` is given.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.Elman(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> def loss(xs):
        ...     _, ys = jaxrnn.truncated_unroll(cell, params, xs, window=2)
        ...     return ys[-1].sum()
        >>> gradient = jax.grad(loss)(jnp.ones((6, 3)))
        >>> print((gradient != 0).any(axis=1))
        [False False False False  True  True]
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
    spec = UnrollSpec(
        engine,
        mask,
        resets,
        reverse,
        None if window is None else int(window),
        key,
        gradient_scale=gradient_scale,
        all_carries=return_carries,
        context=context,
    )
    return _unroll("truncated_unroll", cell, params, xs, carry, spec)


def mask_from_lengths(lengths: Integer[Array, "*B"], steps: int) -> Bool[Array, "T *B"]:
    """Make the mask of sequences that are padded at their end.

    Args:
        lengths: ``(*B,)`` integers in [0, T]. A sequence of length 0 returns its
            initial carry.
        steps: T.

    Returns:
        ``(T, *B)`` bool: True at step t (counted from 0) where ``t < lengths``.

    Raises:
        TypeError: for lengths that are not integers.
        ValueError: for concrete lengths outside [0, T]. Inside ``jit`` they are not
            checked.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> print(jaxrnn.mask_from_lengths(jnp.array([3, 1]), 3))
        [[ True  True]
         [ True False]
         [ True False]]
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
        # jnp would trace the minimum when this runs inside a compiled function.
        concrete = np.asarray(lengths)
        low, high = int(concrete.min()), int(concrete.max())
        if low < 0 or high > steps:
            raise ValueError(
                f"lengths must lie between 0 and T = {steps}, but they run from {low} "
                f"to {high}: T is xs.shape[0], since time comes first in xs (T, *B, D)"
            )
    return (
        jnp.arange(steps, dtype=jnp.int32).reshape(-1, *[1] * lengths.ndim)
        < jnp.asarray(lengths, jnp.int32)[None]
    )


def validate(
    cell: Cell | Layer, params: Params, xs: Inputs, carry: Carry, spec: UnrollSpec
) -> tuple[Params, Any]:
    """Check the arguments of `unroll`, and return the parameters and the inputs.

    NumPy inputs become JAX arrays, and NumPy scalars in ``params`` Python ones.
    """
    check_cell(cell)
    xs = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, xs
    )
    lead = check_inputs(xs, cell.feature_ndim)
    for name, flags in (("mask", spec.mask), ("resets", spec.resets)):
        if flags is not None:
            check_flags(name, flags, lead)
    if spec.gradient_scale is not None:
        check_scale(spec.gradient_scale, lead)
    if not isinstance(spec.reverse, bool):
        raise TypeError(f"reverse must be True or False, but it is {spec.reverse!r}")
    check_key(cell, spec.key)
    check_context(cell, spec.context, lead[1:])
    check_all_ours("params", params)
    cell.check(params)
    if spec.engine is not None and not isinstance(spec.engine, AbstractEngine):
        raise TypeError(
            f"engine must be an engine such as jaxrnn.Scan(), but it is {spec.engine!r}"
        )
    if carry is not None:
        expected = jax.eval_shape(lambda p: initial_carry_of(cell, p, lead[1:]), params)
        check_carry(cell, carry, expected, "the carry passed in", lead)
    return weaken_scalars(params), xs


@runtime_checkable
class Observer(Protocol):
    """What runs in place of every engine while `jaxrnn.explain` traces.

    It records the calls. Its results need only have the shapes of the engine's.
    """

    def run(
        self,
        engine: AbstractEngine,
        why: str,
        all_carries: bool,
        cell: Cell,
        *args: Any,
    ) -> tuple[Carry, Carry]:
        """Record ``engine.run(cell, *args)``.

        ``why`` says why this engine runs; ``all_carries``, whether the whole carry
        after every step is asked for.
        """

    def run_network(
        self, engine: AbstractNetworkEngine, params: Params, carries: list, *args: Any
    ) -> tuple[list, Any]:
        """Record ``engine.run_network(params, carries, *args)``."""


_OBSERVER: contextvars.ContextVar[Observer | None] = contextvars.ContextVar(
    "jaxrnn_observer", default=None
)
_OBSERVATIONS = itertools.count()


@contextlib.contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Put an observer in the place of every engine, inside layers too.

    The XLA metadata are part of the key of jit's cache: a compiled function in a
    layer's code is traced anew for every observation, and what was traced for an
    observation is never run.
    """
    metadata = set_xla_metadata(jaxrnn_observation=str(next(_OBSERVATIONS)))
    with _observer_set_to(observer), metadata:
        yield


@contextlib.contextmanager
def _observer_set_to(observer: Observer | None) -> Iterator[None]:
    """Set the observer. None lets engines run as they are: in a cell's step, and where
    an observer traces.
    """
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def current_observer() -> Observer | None:
    """Return the observer of the `jaxrnn.explain` that is tracing, or None."""
    return _OBSERVER.get()


def run_network(
    engine: AbstractNetworkEngine, params: Params, carries: list, *args: Any
) -> tuple[list, Any]:
    """Run several cells in one call of an engine, so that `jaxrnn.explain` sees it.

    Args:
        engine: the engine.
        params: the parameters of the network.
        carries: the carry of every cell.
        args: what else `AbstractNetworkEngine.run_network` takes.

    Returns:
        The last carries, and the outputs of the last layer.
    """
    observer = current_observer()
    if observer is None:
        return engine.run_network(params, carries, *args)
    with _observer_set_to(None):
        return observer.run_network(engine, params, carries, *args)


def _unroll(
    what: str,
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry,
    spec: UnrollSpec,
) -> tuple[Carry, Any] | tuple[Carry, Any, Carry]:
    """Check the arguments and unroll; ``what`` is the name of the public function."""
    params, xs = validate(cell, params, xs, carry, spec)
    _check_truncated(what, cell, params, spec.window, spec.gradient_scale)
    # Under an observer nothing is compiled: a compiled unroll would not be traced
    # again, and the observer would miss it.
    run = _unroll_jit if current_observer() is None else unroll_validated
    carry, ys, carries = run(cell, params, xs, carry, spec)
    return (carry, ys, carries) if spec.all_carries else (carry, ys)


@functools.partial(jax.jit, static_argnames="cell", inline=True)
def _unroll_jit(
    cell: Cell | Layer, params: Params, xs: Inputs, carry: Carry, spec: UnrollSpec
) -> tuple[Carry, Any, Carry]:
    """Run `unroll_validated`, compiled once for equal cells and equal shapes."""

    def run(xs, params, carry, spec):
        return unroll_validated(cell, params, xs, carry, spec)

    batch_ndim = len(check_inputs(xs, cell.feature_ndim)) - 1
    return under_auto_axes(run, batch_ndim, xs, params, carry, spec)


def unroll_validated(
    cell: Cell | Layer, params: Params, xs: Inputs, carry: Carry, spec: UnrollSpec
) -> tuple[Carry, Any, Carry]:
    """Run `unroll` with arguments that `validate` has checked."""
    if carry is None:
        batch = check_inputs(xs, cell.feature_ndim)[1:]
        carry = initial_carry_of(cell, params, batch)
    if spec.gradient_scale is not None:
        scale = jnp.asarray(spec.gradient_scale)
        spec = spec.replace(gradient_scale=jax.lax.stop_gradient(scale))
    if spec.context is not None:
        spec = spec.replace(context=_fill_context(spec.context, spec.mask))
    carry, ys, carries = unroll_unchecked(
        cell, params, jax.tree.map(jnp.asarray, carry), xs, spec
    )
    if isinstance(cell, Layer):
        ys = _zero_where_masked(cell, ys, spec.mask)
    if spec.all_carries and current_observer() is None:
        check_all_carries(cell, spec.engine, carry, carries)
    return carry, ys, carries if spec.all_carries else None


def _fill_context(context: Any, mask: Bool[Array, "T *B"] | None) -> Any:
    """Replace the context of rows without any valid step, which may hold anything."""
    context = jax.tree.map(jnp.asarray, context)
    if mask is None:
        return context
    rows = jax.tree.map(lambda leaf: leaf[None], context)
    filled = fill_masked_inputs(rows, mask.any(0)[None])
    return jax.tree.map(lambda leaf: leaf[0], filled)


def initial_carry_of(
    cell: Cell | Layer, params: Params, batch: tuple[int, ...]
) -> Carry:
    """Return ``cell.initial_carry(params, batch)``; errors in it name the method."""
    with name_failing_method(
        without_context(cell),
        "initial_carry",
        "Define initial_carry(self, params, batch_shape=(), dtype=None)",
        batch_shape=batch,
    ):
        return cell.initial_carry(params, batch)


def check_all_carries(
    cell: Cell | Layer, engine: Any, carry: Carry, carries: Carry
) -> None:
    """Check that the engine returned whole carries after every step.

    Raises:
        ValueError: if it returned only some of their leaves.
    """
    if len(jax.tree.leaves(carries)) < len(jax.tree.leaves(carry)):
        raise ValueError(
            f"{type(cell).__name__}: {engine!r} runs whole chunks and knows the whole "
            f"carry at their ends only, but "
            "return_carries asks for it after every step: use engine=jaxrnn.Scan(), or "
            "leave return_carries out"
        )


def unroll_unchecked(
    cell: Cell | Layer, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec
) -> tuple[Carry, Any, Carry]:
    """Apply a cell or layer over a sequence, without the checks of `unroll`.

    Layers call it for the cells and layers that they contain.

    Args:
        cell: the cell or layer.
        params: its parameters.
        carry: the carry before the first step.
        xs: the inputs, ``(T, *B, D)``.
        spec: the other arguments of `unroll`.

    Returns:
        The last carry, the outputs ``(T, *B, H)``, and the carries after every step,
        ``(T, *B, ...)`` per leaf.

    Raises:
        TypeError: if a layer's ``unroll`` or a cell's ``step`` returns something else
            than it should.
    """
    if isinstance(cell, Layer):
        with _truncation_scope(cell, spec, xs):
            result = cell.unroll(
                params,
                carry,
                fill_masked_inputs(xs, spec.mask) if cell.reads_inputs else xs,
                spec,
            )
        if not isinstance(result, tuple) or len(result) != 3:
            raise TypeError(
                f"{type(cell).__name__}.unroll must return (carry, ys, carries): the "
                f"last carry, the outputs (T, *B, H) and "
                f"the carries after every step, but it returns {describe_tree(result)}"
            )
        return result
    # Also in a stack, where the outputs of lower layers are zero at masked steps: a
    # cell need not be differentiable at zero, and 0 * NaN is NaN in a gradient.
    xs = fill_masked_inputs(xs, spec.mask)
    observer = current_observer()
    cell, params = bind_context(cell, params, spec.context)
    with _truncation_scope(None, spec, xs), _observer_set_to(None):
        check_step(cell, params, carry, xs)
        _check_rows(cell, params, carry, spec)
        engine, why = (
            (spec.engine, "asked for")
            if spec.engine is not None
            else _default_engine(cell, params, carry, xs, spec)
        )
        request = Request(
            resets=spec.resets is not None,
            gradient_scale=spec.gradient_scale is not None,
            all_carries=spec.all_carries,
        )
        if observer is None:
            check_supported(engine, cell, request)
        run = (
            engine.run
            if observer is None
            else functools.partial(observer.run, engine, why, spec.all_carries)
        )
        last, carries = _unroll_windows(run, cell, params, carry, xs, spec)
        with name_failing_method(
            without_context(cell),
            "output",
            "It is given all of time at once: any leading axes",
            carry=carries,
            x=xs,
        ):
            ys = cell.output(params, carries, xs)
    return last, _zero_where_masked(cell, ys, spec.mask), carries


def unroll_part(
    cell: Cell | Layer,
    params: Params,
    carry: Carry,
    xs: Inputs,
    spec: UnrollSpec,
    index: int = 0,
) -> tuple[Carry, Any, Carry]:
    """Apply a cell or layer inside a layer of one's own.

    It runs with everything that was asked of `unroll`: the mask, resets, truncation,
    scaled gradients, the engine, the context, and a random key of its own if it draws
    random numbers.

    Args:
        cell: the part, a field of the layer.
        params: its parameters.
        carry: its carry before the first step.
        xs: its inputs, ``(T, *B, ...)``.
        spec: what the layer's ``unroll`` was given.
        index: the number of the part in the layer. Parts with different numbers draw
            different random numbers.

    Returns:
        The last carry, the outputs ``(T, *B, H)``, and the carries after every step,
        ``(T, *B, ...)`` per leaf.

    Raises:
        TypeError, ValueError: as `jaxrnn.unroll`.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.extending import unroll_part
        >>> @dataclasses.dataclass(frozen=True)
        ... class Gated(jaxrnn.Layer):
        ...     value: jaxrnn.Cell
        ...     gate: jaxrnn.Cell
        ...
        ...     def init(self, key, input_size, dtype=None):
        ...         keys = jax.random.split(key)
        ...         parts = (self.value, self.gate)
        ...         return [p.init(k, input_size) for p, k in zip(parts, keys)]
        ...
        ...     def initial_carry(self, params, batch_shape=(), dtype=None):
        ...         parts = zip((self.value, self.gate), params)
        ...         return [c.initial_carry(p, batch_shape, dtype) for c, p in parts]
        ...
        ...     def unroll(self, params, carry, xs, spec):
        ...         v, g = (
        ...             unroll_part(part, params[i], carry[i], xs, spec, i)
        ...             for i, part in enumerate((self.value, self.gate))
        ...         )
        ...         ys = v[1] * jax.nn.sigmoid(g[1])
        ...         return [v[0], g[0]], ys, [v[2], g[2]]
        >>> layer = Gated(jaxrnn.GRU(4), jaxrnn.zoneout(jaxrnn.GRU(4), 0.1))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> _, ys = jaxrnn.unroll(
        ...     layer, params, jnp.ones((10, 2, 3)), key=jax.random.key(1)
        ... )
        >>> ys.shape
        (10, 2, 4)
    """
    return unroll_unchecked(cell, params, carry, xs, for_part(spec, cell, index))


def for_part(spec: UnrollSpec, part: Cell | Layer, index: int) -> UnrollSpec:
    """Return ``spec`` for part ``index`` of a layer.

    The part gets a key of its own if it draws random numbers, and none otherwise.
    """
    key = None
    if part.requires_key:
        if spec.key is None:
            raise ValueError(
                f"{type(part).__name__} draws random numbers, but the layer around it "
                f"was given no key: its requires_key must be True. By default it is "
                f"True where a field of the layer, or of a tuple among its fields, "
                f"requires a key"
            )
        key = jax.random.fold_in(spec.key, index)
    return spec.replace(key=key)


def check_supported(engine: AbstractEngine, cell: Cell, request: Request) -> None:
    """Check that an engine declares what is asked of it."""
    if reason := engine.unsupported_reason(cell, request):
        raise ValueError(f"{reason}: use engine=jaxrnn.Scan(), or leave that out")


def _zero_where_masked(cell: Cell | Layer, ys: Any, mask: Any) -> Any:
    """Set the outputs at masked steps to zero.

    Args:
        cell: what computed them, for errors.
        ys: an array ``(T, *B, ...)`` or a pytree of such arrays.
        mask: ``(T, *B)`` or None.
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
    """Check that a mask, resets and scales can be applied to each row of the carry."""
    flags = {
        "mask=": spec.mask,
        "resets=": spec.resets,
        "gradient_scale=": spec.gradient_scale,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    batch = next((tuple(value.shape[1:]) for value in given.values()), ())
    if batch:
        # The carry of a larger batch tells batch axes from others of the same size.
        wider = _with_more_rows(cell, params, carry, batch)
        why = " and ".join(given)
        check_rows(
            type(without_context(cell)).__name__,
            carry,
            wider,
            batch,
            why,
            floats="mask=" not in given and "resets=" not in given,
        )


def _with_more_rows(
    cell: Cell, params: Params, carry: Carry, batch: tuple[int, ...]
) -> Carry:
    """Return the shapes of the carry of a batch that is larger by one in every axis.

    A cell whose parameters contain a state for each row cannot make such a carry. Its
    floating-point leaves are then assumed to have batch axes if their shape begins with
    those of the batch.
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
def _truncation_scope(
    layer: Layer | None, spec: UnrollSpec, xs: Inputs
) -> Iterator[None]:
    """Note that a layer runs under truncation, for calls of `unroll` inside it.

    Such a call would not know of the truncation; see `_check_truncated`. For a cell
    (``layer`` is None) nothing is noted: an `unroll` in its step runs over another
    sequence.

    The XLA metadata are part of the key of jit's cache. So a function in the layer's
    code that was compiled without truncation is traced again.
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
    """Check that a call of `unroll` inside a truncated layer truncates, too.

    Raises:
        ValueError: if the cell has a carry, and the call does not cut its gradient as
            the enclosing `truncated_unroll` does.
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
        f"run by truncated_unroll with {asked}, so the gradient would not be cut: "
        f"where spec.{name} is not None call "
        f"jaxrnn.truncated_unroll(..., {name}=spec.{name}) there"
    )


def _default_engine(
    cell: Cell, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec
) -> tuple[Any, str]:
    """Choose the engine where the user named none, and say why.

    It is `DefaultEngine`, or `Associative` for a cell with ``walk_chunks``, unless the
    carries inside its chunks are needed.
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


def check_step(cell: Cell, params: Params, carry: Carry, xs: Inputs) -> None:
    """Check that a cell's ``step`` returns a carry like the one it is given.

    The step is traced, and nothing is computed.

    Raises:
        TypeError, ValueError: if it does not.
    """
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    hint = _hint(cell, carry, xs)

    def once(p, s, x):
        with name_failing_method(without_context(cell), "project", hint, x=x):
            z = cell.project(p, x)
        with name_failing_method(without_context(cell), "step", hint, carry=s, z=z):
            return cell.step(p, s, z)

    new = jax.eval_shape(once, params, carry, x)
    name = type(without_context(cell)).__name__
    like, made = _kind_of(carry), _kind_of(new)
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
                and _batch_of(cell, xs)[: len(batch)] == batch
            ):
                raise ValueError(
                    f"{name}.initial_carry: {_part(path)} has shape "
                    f"{tuple(want.shape)}, without the batch axes {batch}, and "
                    f"step makes {tuple(got.shape)} of it: begin its shape with "
                    f"batch_shape, "
                    f"(*batch_shape, {', '.join(map(str, want.shape))})"
                )
    check_carry(name, new, carry, "the carry that step returns")


def _hint(cell: Cell, carry: Carry, xs: Inputs) -> str:
    """Say what may be wrong where a step fails.

    Likely causes are a carry without batch axes, pictures whose axes are taken for
    batch axes, and parameters of another input size.
    """
    batch = _batch_of(cell, xs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if batch and tuple(leaf.shape[: len(batch)]) != batch:
            return (
                f"{type(without_context(cell)).__name__}.initial_carry made "
                f"{_part(path)} without the batch axes {batch}"
            )
    if len(batch) > 1:
        return (
            f"With feature_ndim = {cell.feature_ndim} {batch} are batch axes: for "
            f"pictures (T, *B, Y, X, C) set feature_ndim = 3 in the cell"
        )
    if cell.feature_ndim != 1:
        return ""
    features = {leaf.shape[-1] for leaf in jax.tree.leaves(xs) if leaf.shape}
    return (
        f"Parameters for these inputs come of init(key, input_size={features.pop()})"
        if len(features) == 1
        else ""
    )


def _kind_of(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _batch_of(cell: Cell, xs: Inputs) -> tuple[int, ...]:
    """Return the batch axes of inputs that are one array; () for other inputs."""
    ndim = cell.feature_ndim
    if not is_array(xs) or not isinstance(ndim, int):
        return ()
    return tuple(xs.shape[1 : xs.ndim - ndim])


def _part(path: Any) -> str:
    return f"part {jax.tree_util.keystr(path)} of the carry" if path else "the carry"


def _unroll_windows(
    run: Callable,
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Inputs,
    spec: UnrollSpec,
) -> tuple[Carry, Carry]:
    """Apply an engine's ``run`` with the truncation of ``spec``.

    It runs over the whole sequence, with scaled gradients if there is a
    ``gradient_scale``; or window after window, with gradients stopped between.
    """
    steps, window = jax.tree.leaves(xs)[0].shape[0], spec.window
    parts = (xs, spec.mask, spec.resets)
    if spec.gradient_scale is not None:
        cell, parts = ScaledCell(cell), ((spec.gradient_scale, *parts), None, None)
    if window is None or window >= steps:
        return run(cell, params, carry, *parts, spec.reverse)

    def run_window(carry, part, start):
        # The carry that was passed in gets the gradient of the first window.
        is_first = (
            start + jax.tree.leaves(part)[0].shape[0] == steps
            if spec.reverse
            else start == 0
        )
        carry = select(is_first, carry, jax.lax.stop_gradient(carry))
        return run(cell, params, carry, *part, spec.reverse)

    return run_in_windows(run_window, carry, parts, window, spec.reverse)
