"""`unroll`, which applies a cell or layer over a sequence, and `truncated_unroll`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..core.cell import Cell
from ..core.dtypes import weaken_scalars
from ..core.engine import AbstractEngine
from ..core.explicit_mesh import under_auto_axes
from ..core.layer import Layer, check_cell
from ..core.masked_inputs import fill_masked_inputs
from ..core.types import Carry, Context, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import (
    check_all_ours,
    check_carry,
    check_context,
    check_flags,
    check_inputs,
    check_key,
    check_scale,
    describe_tree,
)
from .observing import current_observer
from .parts import unroll_unchecked, zero_where_masked
from .step_checks import check_all_carries, initial_carry_of
from .step_hints import looks_swapped
from .time_placement import placed
from .truncation_scope import check_truncated


def unroll(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    engine: AbstractEngine | None = None,
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
            platform: mostly `Scan`; `Associative` for cells whose steps join in chunks,
            such as a `MatrixCell`, unless ``return_carries``. An engine that is named
            runs, or raises an error.
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
            them and raise an error: `CuDNN`, and `Associative` for cells whose steps
            join in chunks. The default engine then takes one step after another.

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
    engine: AbstractEngine | None = None,
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
        cell, params, xs, carry, engine, mask, resets, reverse: as in `unroll`.
        key, context, return_carries: as in `unroll`.
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


def validate(
    cell: Cell | Layer, params: Params, xs: Inputs, carry: Carry, spec: UnrollSpec
) -> tuple[Params, Any]:
    """Check the arguments of `unroll`, and return the parameters and the inputs.

    Args:
        cell, params, xs, carry: as in `unroll`.
        spec: everything else that `unroll` was asked for.

    Returns:
        The parameters, in which NumPy scalars have become Python ones, and the inputs,
        in which NumPy arrays have become JAX arrays.

    Raises:
        TypeError, ValueError: as `unroll`.
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


def _unroll(
    what: str,
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry,
    spec: UnrollSpec,
) -> tuple[Carry, Any] | tuple[Carry, Any, Carry]:
    """Check the arguments and unroll; ``what`` is the name of the public function."""
    try:
        params, xs = validate(cell, params, xs, carry, spec)
    except (TypeError, ValueError):
        if looks_swapped(cell, params, xs, carry):
            raise TypeError(
                f"{what}: xs and carry look swapped: xs is {describe_tree(xs)}, which "
                f"is a carry of this {type(cell).__name__}, and carry is "
                f"{describe_tree(carry)}, which fits as its inputs: write {what}(cell, "
                f"params, xs, carry)"
            ) from None
        raise
    check_truncated(what, cell, params, spec.window, spec.gradient_scale)
    spec = placed(cell, params, xs, carry, spec)
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
    """Run `unroll` with arguments that `validate` has checked.

    Args:
        cell, params, xs, carry: as `validate` returns them, or was given them.
        spec: everything else that `unroll` was asked for.

    Returns:
        The last carry, the outputs, and the carries after every step, or None where
        ``spec`` does not ask for them.
    """
    if carry is None:
        batch = check_inputs(xs, cell.feature_ndim)[1:]
        carry = initial_carry_of(cell, params, batch)
    if spec.gradient_scale is not None:
        scale = jnp.asarray(spec.gradient_scale)
        spec = spec.replace(gradient_scale=jax.lax.stop_gradient(scale))
    if spec.context is not None:
        spec = spec.replace(context=fill_context(spec.context, spec.mask))
    carry, ys, carries = unroll_unchecked(
        cell, params, jax.tree.map(jnp.asarray, carry), xs, spec
    )
    if isinstance(cell, Layer):
        ys = zero_where_masked(cell, ys, spec.mask)
    if spec.all_carries and current_observer() is None:
        check_all_carries(cell, spec.engine, carry, carries)
    return carry, ys, carries if spec.all_carries else None


def fill_context(context: Context, mask: Bool[Array, "T *B"] | None) -> Any:
    """Replace the context of rows without any valid step, which may hold anything."""
    context = jax.tree.map(jnp.asarray, context)
    if mask is None:
        return context
    rows = jax.tree.map(lambda leaf: leaf[None], context)
    filled = fill_masked_inputs(rows, mask.any(0)[None])
    return jax.tree.map(lambda leaf: leaf[0], filled)
