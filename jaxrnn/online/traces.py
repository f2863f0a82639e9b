"""Eligibility traces: gradients of a stream, step by step.

For a carry of m parts of H units, let u(p) be the one unit that parameter p moves
within a step. A trace M holds the derivative of that unit's m numbers by p::

    D[u, i, k] = ds'_i,u / ds_k,u     F[i, p] = ds'_i,u(p) / dp  with s constant
    M[i, p] <- sum_k D[u(p), i, k] M[k, p] + F[i, p]
    gradient[p] = sum_i dl/ds_i,u(p) M[i, p]

Where no unit sees another, this is real-time recurrent learning, exact with m numbers a
parameter. Where units see each other through a matrix U, D has its diagonal only: what
a parameter does to other units is dropped (SnAp-1, Menick et al. 2021,
arXiv:2006.07232).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.cell import Cell, without_context
from ..core.dtypes import weaken_scalars
from ..core.engine import AbstractEngine, Supports
from ..core.exported import register_for_export
from ..core.flags import expand_flags, select
from ..core.layer import Layer, check_cell
from ..core.pickling import Static
from ..core.types import Carry, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import (
    batch_of_step,
    check_carry,
    check_flags,
    check_key,
    check_positive,
    checked_reset,
    describe_tree,
)
from ..truncation.validation import check_differentiable, check_untracked
from ..unrolling.parts import unroll_unchecked
from .memory import check_bytes
from .unit_step import Given, UnitStep, unit_step


@register_for_export
class TracesState(NamedTuple):
    """The state of `Traces` between steps.

    Attributes:
        carry: the carry of the layer, ``(*B, ...)`` per leaf.
        traces: for each cell of the layer, in the order in which they are computed, the
            traces of its parameters: ``(*B, m, *p)``, or ``(*B, 0, *p)`` for a
            parameter that does not reach the cell's carry.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.online
        >>> traces = jaxrnn.online.Traces(jaxrnn.DiagonalLSTM(4))
        >>> params = traces.layer.init(jax.random.key(0), input_size=3)
        >>> state = traces.init(params, jnp.ones((2, 3)))
        >>> state.carry.c.shape
        (2, 4)
        >>> state.traces[0]["bias"].shape  # batch, the parts h and c of a unit, bias
        (2, 2, 12)
    """

    carry: Carry
    traces: tuple[Any, ...]


class Units(NamedTuple):
    """How a cell of a layer divides into units.

    Attributes:
        cell: the name of its class.
        units: H.
        parts: m, the real numbers of the carry a unit.
        exact: whether the step has no path between units, so that the traces are
            exact for this cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.online
        >>> def units(cell):
        ...     params, x = cell.init(jax.random.key(0), input_size=3), jnp.ones((2, 3))
        ...     return jaxrnn.online.Traces(cell).units(params, x)[0]
        >>> units(jaxrnn.GRU(4))
        Units(cell='GRU', units=4, parts=1, exact=False)
        >>> units(jaxrnn.DiagonalLSTM(4))
        Units(cell='DiagonalLSTM', units=4, parts=2, exact=True)
    """

    cell: str
    units: int
    parts: int
    exact: bool


@dataclasses.dataclass(frozen=True)
class Traces(Static):
    """Online gradients of a stream, step by step, by a few numbers a parameter.

    The output of `step` has the online gradient as its derivative by ``params``. So a
    loss of it, with a readout or anything else on top, is differentiated by
    ``jax.grad`` as if there were this one step only::

        M[i, p] <- sum_k D[u(p), i, k] M[k, p] + F[i, p]
        gradient[p] = sum_i dl/ds_i,u(p) M[i, p]

    where u(p) is the unit that parameter p moves, D are the step's derivatives within
    each unit, (m, m), and F those by the parameters. A stream takes m P numbers,
    however long it is. The sum of the gradients of all steps is

    - the full gradient, exactly, for a cell whose units do not see each other
      (`jaxrnn.cells.RTU`, `jaxrnn.IndRNN`, `jaxrnn.DiagonalLSTM`, `jaxrnn.MinGRU`, a
      cell of your own): it is found from the step, and `units` tells it;
    - SnAp-1 for a cell whose units see each other through one matrix (`jaxrnn.LSTM`,
      `jaxrnn.GRU`, `jaxrnn.Elman`): biased, because what a parameter does to other
      units is dropped;
    - e-prop with ``through=None``, which drops the matrix's diagonal, too.

    In a stack the gradient of a lower layer passes through the layers above at this
    step only; what it does to their past is dropped. So it is exact for the last
    recurrent layer, and biased below. `jaxrnn.diagnostics.online_error` measures the
    bias of any of them.

    Args:
        layer: a cell or a layer that is causal.
        through: ``"unit"``: traces pass through a unit's own recurrent weight; None:
            through no recurrent matrix.
        max_bytes: the largest traces that `init` may make, in bytes.

    Raises:
        TypeError: if ``layer`` is no cell or layer.
        ValueError: for another ``through``, or a layer that is not causal. `init` and
            `step` refuse cells that have no traces by units: a gated recurrent unit
            with ``reset_after=False``, a projection, layer norm, a matrix state.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.online
        >>> traces = jaxrnn.online.Traces(jaxrnn.cells.RTU(4))
        >>> params = traces.layer.init(jax.random.key(0), input_size=3)
        >>> x, target = jnp.ones((2, 3)), jnp.zeros((2, 8))
        >>> state = traces.init(params, x)
        >>> def loss(params, state, x):
        ...     state, y = traces.step(params, state, x)
        ...     return jnp.square(y - target).mean(), state
        >>> value_and_grad = jax.value_and_grad(loss, has_aux=True)
        >>> (value, state), gradient = value_and_grad(params, state, x)
        >>> gradient["nu"].shape, state.traces[0]["nu"].shape
        ((4,), (2, 2, 4))
        >>> traces.units(params, x)[0].exact
        True
    """

    layer: Cell | Layer
    through: str | None = "unit"
    _: dataclasses.KW_ONLY
    max_bytes: int = 2**32

    def __post_init__(self):
        check_cell(self.layer)
        check_positive(self, max_bytes=self.max_bytes)
        if self.through not in ("unit", None):
            raise ValueError(
                f"Traces: through must be 'unit' or None, but it is {self.through!r}"
            )
        if not self.layer.causal:
            raise ValueError(
                f"Traces: {type(self.layer).__name__} depends on inputs that have not "
                f"come yet, so it has no gradient online: use a causal layer"
            )

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def init(self, params: Params, x: Inputs) -> TracesState:
        """Return the state before the first step.

        Args:
            params: the parameters of the layer, floating-point.
            x: one input ``(*B, D)``, of which only the shape and dtype are used.

        Returns:
            A `TracesState` with the initial carry, and the traces of the parameters
            that it depends on.

        Raises:
            TypeError, ValueError: if the layer has no traces by units, or if they take
                more than ``max_bytes``.
        """
        batch, steps = self._found(params, x)
        names = [type(without_context(step.step.cell)).__name__ for step, _ in steps]
        check_bytes(
            "Traces",
            [
                jax.ShapeDtypeStruct((*batch, *row.shape), row.dtype)
                for step, part in steps
                for row in step.zero_rows(part)
            ],
            batch,
            self.max_bytes,
            f"the traces of {' and '.join(dict.fromkeys(names))}",
            "a smaller layer",
        )
        carry = self.layer.initial_carry(params, batch)
        # What the parameters of each cell are is known inside the layer only.
        traces: list[Any] = []
        first = _First(traces, self.through, batch)
        key = jax.random.key(0) if self.layer.requires_key else None
        _call(self.layer, params, carry, x, first, None, None, key)
        return jax.lax.stop_gradient(TracesState(carry, tuple(traces)))

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def step(
        self,
        params: Params,
        state: TracesState,
        x: Inputs,
        *,
        mask: Bool[Array, "*B"] | None = None,
        reset: Bool[Array, "*B"] | None = None,
        key: Array | None = None,
    ) -> tuple[TracesState, Any]:
        """Apply one step, whose output has the online gradient as its derivative.

        No gradient flows to ``state``, nor to what is returned as the new one.

        Args:
            params: the parameters of the layer.
            state: from `init`, or from the step before.
            x: one input ``(*B, D)``.
            mask: where False, carry and traces hold and the output is zero.
            reset: where True, a new sequence begins: the carry becomes the initial one
                before the step, and the traces begin anew.
            key: a key of this step's own for a layer that draws random numbers.

        Returns:
            ``(state, y)``: the new state, and the output ``(*B, ...)``.

        Raises:
            TypeError, ValueError: as `init`, and if the arguments do not fit the state.
        """
        if not isinstance(state, TracesState):
            raise TypeError(
                f"Traces: the state must be a TracesState, but it is "
                f"{describe_tree(state)}: make it by Traces(layer).init(params, x)"
            )
        check_differentiable(params, "Traces")
        check_untracked((params, state, x, mask, reset), "Traces")
        check_key(self.layer, key)
        batch = batch_of_step(x, self.layer.feature_ndim)
        expected = jax.eval_shape(lambda p: self.layer.initial_carry(p, batch), params)
        check_carry(self.layer, state.carry, expected, "the carry of the state")
        if mask is not None:
            check_flags("mask", mask, batch, "(*B)")
        reset = None if reset is None else checked_reset(reset, batch)
        carry, traces = jax.lax.stop_gradient(state)
        rows: list[Any] = []
        engine = _Step(rows, self.through, traces)
        carry, y = _call(self.layer, params, carry, x, engine, mask, reset, key)
        return jax.lax.stop_gradient(TracesState(carry, tuple(rows))), y

    def value_and_grad(
        self,
        params: Params,
        state: TracesState,
        x: Inputs,
        loss: Callable[[Any], Float[Array, ""]],
        **options: Any,
    ) -> tuple[Float[Array, ""], Params, TracesState]:
        """Apply one step, and compute the gradient of a loss of its output.

        Args:
            params, state, x: as for `step`.
            loss: ``loss(y)``, a scalar; for a batch a sum or mean over its streams.
            **options: ``mask``, ``reset`` and ``key``, as for `step`.

        Returns:
            ``(loss, gradient, state)``: its value, its online gradient by ``params``,
            and the new state.

        Raises:
            TypeError, ValueError: as `step`.
        """

        def of(params):
            new, y = self.step(params, state, x, **options)
            return loss(y), new

        (value, new), gradient = jax.value_and_grad(of, has_aux=True)(params)
        return value, gradient, new

    def units(self, params: Params, x: Inputs) -> tuple[Units, ...]:
        """Return how each cell of the layer divides into units. Nothing is computed.

        Args:
            params: the parameters of the layer, or their shapes and dtypes.
            x: one input ``(*B, D)``, or its shape and dtype.
        """
        return tuple(
            Units(
                type(without_context(step.step.cell)).__name__,
                step.units,
                step.parts,
                step.form.products == 0,
            )
            for step, _ in self._found(params, x)[1]
        )

    def _found(
        self, params: Params, x: Inputs
    ) -> tuple[tuple[int, ...], list[tuple[UnitStep, Params]]]:
        """Return the batch axes, and each cell's step by units with its parameters."""
        check_differentiable(params, "Traces")
        check_untracked((params, x), "Traces")
        batch = batch_of_step(x, self.layer.feature_ndim)
        engine = _Find([], self.through)

        def call(params, x):
            carry = self.layer.initial_carry(params, batch)
            key = jax.random.key(0) if self.layer.requires_key else None
            return _call(self.layer, params, carry, x, engine, None, None, key)[1]

        jax.eval_shape(call, params, x)
        if not engine.found:
            raise ValueError(
                f"Traces: {type(self.layer).__name__} has no recurrent cell, so its "
                f"gradient needs no traces"
            )
        return batch, engine.found


def _call(
    layer: Cell | Layer,
    params: Params,
    carry: Carry,
    x: Inputs,
    engine: AbstractEngine,
    mask: Array | None = None,
    reset: Array | None = None,
    key: Array | None = None,
) -> tuple[Carry, Any]:
    """Apply one step of a layer, each of whose cells is computed by ``engine``."""
    mask, reset = (None if flag is None else flag[None] for flag in (mask, reset))
    spec = UnrollSpec(engine=engine, mask=mask, resets=reset, key=key)
    layer.check(params)
    xs = jax.tree.map(lambda a: a[None], x)
    carry, ys, _ = unroll_unchecked(layer, weaken_scalars(params), carry, xs, spec)
    return carry, jax.tree.map(lambda a: a[0], ys)


class _OneStep(AbstractEngine):
    """An engine of one step of each cell of a layer, one after another.

    It lives while one step is traced, and collects what it finds of each cell.
    """

    supports = Supports.EVERYTHING & ~Supports.GRADIENT_SCALE
    through: str | None

    def run(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Inputs,
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        x, keep, reset = jax.tree.map(lambda a: a[0], (xs, mask, resets))
        given = Given(params, x, keep)
        step = unit_step(cell, params, carry, given, self.through)
        new = self.take_step(step, carry, given, reset)
        return new, jax.tree.map(lambda a: a[None], new)

    @abc.abstractmethod
    def take_step(
        self, step: UnitStep, carry: Carry, given: Given, reset: Any
    ) -> Carry:
        """Return the new carry of one cell, where ``reset`` after a reset."""


class _Find(_OneStep):
    """Collects the steps of all cells, with the shapes of their parameters."""

    def __init__(self, found: list[Any], through: str | None):
        self.found, self.through = found, through

    def take_step(
        self, step: UnitStep, carry: Carry, given: Given, reset: Any
    ) -> Carry:
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), given.params
        )
        self.found.append((step, shapes))
        return carry


class _First(_OneStep):
    """Collects the traces of the initial carry of all cells."""

    def __init__(self, traces: list[Any], through: str | None, batch: tuple[int, ...]):
        self.traces, self.through, self.batch = traces, through, batch

    def take_step(
        self, step: UnitStep, carry: Carry, given: Given, reset: Any
    ) -> Carry:
        rows = [
            jnp.broadcast_to(row, (*self.batch, *row.shape))
            for row in step.first_rows(given.params)
        ]
        structure: Any = jax.tree.structure(given.params)
        self.traces.append(structure.unflatten(rows))
        return carry


class _Step(_OneStep):
    """Computes a step of each cell and its traces, and ties its carry to these."""

    def __init__(self, rows: list[Any], through: str | None, traces: tuple[Any, ...]):
        self.rows, self.through, self.traces = rows, through, traces

    def _before(self, step: UnitStep, params: Params) -> list[Any]:
        """Return the traces of a cell before the step, which must be its own."""
        batch, place = step.carry[0].shape[:-1], len(self.rows)
        wanted = [(*batch, *row.shape) for row in step.zero_rows(params)]
        old = self.traces[place] if place < len(self.traces) else None
        rows = jax.tree.leaves(old)
        found: Any = jax.tree.structure(old)
        if found != jax.tree.structure(params) or wanted != [
            jnp.shape(row) for row in rows
        ]:
            name = type(without_context(step.step.cell)).__name__
            raise ValueError(
                f"Traces: the traces of {name} in the state are {describe_tree(old)}, "
                f"but the shapes {wanted} are expected for its parameters: is the "
                f"state another layer's? init(params, x) makes the right one"
            )
        return rows

    def take_step(
        self, step: UnitStep, carry: Carry, given: Given, reset: Any
    ) -> Carry:
        structure: Any = jax.tree.structure(given.params)
        params = jax.tree.leaves(given.params)
        before = self._before(step, given.params)
        fixed = jax.lax.stop_gradient(given)
        carry = jax.lax.stop_gradient(carry)
        if reset is not None:
            initial = step.step.cell.initial_carry(fixed.params, reset.shape)
            carry = select(reset, initial, carry)
            before = [
                jnp.where(expand_flags(reset, old), first, old)
                for first, old in zip(
                    step.first_rows(fixed.params), before, strict=True
                )
            ]
        rows = step.advance(before, carry, fixed)
        self.rows.append(structure.unflatten(rows))
        # Through the input a gradient flows to the layers below, at this step only.
        leaves = step.step(jax.tree.leaves(carry), fixed._replace(x=given.x))
        if any(axis is not None for axis in step.axes):
            leaves = _tied(step, rows, leaves, params)
        return step.step.structure.unflatten(leaves)


def _tied(
    step: UnitStep, rows: list[Any], leaves: list[Any], params: list[Any]
) -> list[Any]:
    """Return the leaves, with the traces as their derivative by the parameters."""

    @jax.custom_jvp
    def tie(params, leaves, rows):
        return leaves

    @tie.defjvp
    def _(primals, tangents):
        changes, moved, _ = tangents
        added = step.to_carry(step.contract(primals[2], changes))
        return primals[1], [
            a + b.astype(a.dtype) for a, b in zip(moved, added, strict=True)
        ]

    return tie(params, leaves, rows)
