"""Unrolls of cells and layers without the checks of `unroll`, as layers call them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.cell import (
    Cell,
    bind_context,
    is_chunkwise,
    unsupported_chunkwise_reason,
    without_context,
)
from ..core.engine import AbstractEngine, Request
from ..core.failing_method import name_failing_method
from ..core.flags import expand_flags, select
from ..core.gradient_scale import ScaledCell
from ..core.layer import Layer
from ..core.masked_inputs import fill_masked_inputs
from ..core.parts_in_errors import naming_part
from ..core.types import Carry, Inputs, Params, PyTree
from ..core.unroll_spec import UnrollSpec
from ..core.validation import describe_tree
from ..engines import Associative
from ..engines.engine import DefaultEngine
from ..engines.recurrence.chunks import run_in_windows
from ..engines.recurrence.run import unsupported_arrays_reason
from .observing import current_observer, observer_set_to
from .step_checks import check_row_axes, check_step
from .truncation_scope import truncation_scope


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

    Example:
        >>> import jax, jaxrnn
        >>> from jaxrnn.extending import UnrollSpec, unroll_unchecked
        >>> cell = jaxrnn.Elman(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
        >>> carry, spec = cell.initial_carry(params, (2,)), UnrollSpec(engine=None)
        >>> last, ys, carries = unroll_unchecked(cell, params, carry, xs, spec)
        >>> carries.shape, bool((carries[-1] == last).all())
        ((5, 2, 4), True)
    """
    if isinstance(cell, Layer):
        with truncation_scope(cell, spec, xs), jax.named_scope(type(cell).__name__):
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
    with truncation_scope(None, spec, xs), observer_set_to(None):
        check_step(cell, params, carry, xs)
        check_row_axes(cell, params, carry, spec)
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
        # The names that a profile shows: of the cell, and of the engine that runs it.
        name = type(without_context(cell)).__name__
        with jax.named_scope(name), jax.named_scope(type(engine).__name__):
            last, carries = _unroll_windows(run, cell, params, carry, xs, spec)
        known: Any = jax.tree.structure(carries)
        with name_failing_method(
            without_context(cell),
            "output",
            "It is given all of time at once: any leading axes"
            if known == jax.tree.structure(carry)
            else "Of the carries of a chunk only h is known, the rest is None: set "
            "shows_h_alone = False in the class, whose output reads more of them",
            carry=carries,
            x=xs,
        ):
            ys = cell.output(params, carries, xs)
    return last, zero_where_masked(cell, ys, spec.mask), carries


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
    where = f"part {index} of the layer around it"
    with jax.named_scope(f"part_{index}"), naming_part(where, cell):
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


def zero_where_masked(cell: Cell | Layer, ys: PyTree, mask: Any) -> Any:
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


def _default_engine(
    cell: Cell, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec
) -> tuple[Any, str]:
    """Choose the engine where the user named none, and say why.

    It is `DefaultEngine`, or `Associative` for a cell with ``run_chunks``, unless the
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
