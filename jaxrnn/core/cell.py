"""The contract: what a cell and a layer are, how a sequence is asked to be walked, and
the worded checks.

Shape letters, here and everywhere: T time, B batch (any number of axes, written
``*B``), D input features, H hidden units, V vocabulary. Time leads, batch axes follow,
features come last: ``(T, *B, D)``.

A cell is a frozen, hashable dataclass that holds static configuration only, with pure
methods::

    z_t = cell.project(params, x_t)          knows no time: all T at once, one matmul
    s_t = cell.step(params, s_{t-1}, z_t)    the recurrence: returns the carry and nothing else
    y_t = cell.output(params, s_t, x_t)      knows no time

``cell(params, carry, x) -> (carry, y)`` is one streaming step, in ``jax.lax.scan``'s
order.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Shaped

from .exported import register_for_export
from .pickling import Static
from .validation import check_carry, check_inputs, check_key, describe

Params = Any  # a pytree of arrays: a dict with words for keys
# a pytree of arrays (*B, ...): an array, or a NamedTuple when it has several parts
Carry = Any


@register_for_export
class Gate(NamedTuple):
    """What a gate or unit of a step let through: its ``value (*B, H)``, the range it
    lies in, and whether it keeps the state.

    A unit whose gate keeps a share v of its state at every step forgets with a time
    constant of -1/log v steps.
    """

    value: Array
    low: float = 0.0
    high: float = 1.0
    keeps: bool = False


class Cell(Static):
    """One step of a recurrence, as static configuration and pure functions.

    A subclass is a ``@dataclasses.dataclass(frozen=True)`` and must define ``init`` and
    ``step``. ``project`` defaults to the identity, ``output`` to the carry's ``h`` (or
    to the carry itself when it is a single array), ``initial_carry`` to zeros of shape
    ``(*B, hidden_size)``. Every method takes any number of leading batch axes.
    """

    requires_key: ClassVar[bool] = (
        False  # a cell is deterministic; only layers draw random numbers
    )

    def init(self, key: Array, input_size: int) -> Params:
        """Draw parameters for inputs of ``input_size`` features: a dict of arrays,
        words for keys.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define init(self, key, input_size) -> params"
        )

    def check(self, params: Params) -> None:
        """Raise where ``params`` are not this cell's. Called at trace time; by
        default nothing is checked.
        """

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Carry:
        """The carry before the first step, ``(*batch_shape, H)`` per leaf: zeros, or
        learned when params hold one.

        ``dtype`` is the dtype of the state as it is computed with (default: that of the
        parameters).
        """
        hidden_size = getattr(self, "hidden_size", None)
        if hidden_size is None:
            raise TypeError(
                f"{type(self).__name__} has no hidden_size, so its initial carry is "
                f"not known: "
                "give it a hidden_size field, or define initial_carry(self, params, "
                "batch_shape=(), dtype=None)"
            )
        return jnp.zeros((*batch_shape, hidden_size), dtype or floating_dtype(params))

    def project(self, params: Params, x: Inexact[Array, "*TB D"]) -> Any:
        """The part of a step that needs no carry, for any leading axes (all of time
        at once). Default: x itself.
        """
        return x

    def step(self, params: Params, carry: Carry, z: Any) -> Carry:
        """One step of the recurrence: s_t from s_{t-1} and z_t = project(params,
        x_t).
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define step(self, params, carry, z) -> carry"
        )

    def output(self, params: Params, carry: Carry, x: Any) -> Inexact[Array, "*TB H"]:
        """What the cell shows of its carry. Default: ``carry.h``, or the carry itself
        where it is a single array.

        Any number of leading axes comes in, all of time at once, so write ``carry @
        kernel``, not ``kernel @ carry``.
        """
        if not hasattr(carry, "h") and len(jax.tree.leaves(carry)) != 1:
            raise TypeError(
                f"{type(self).__name__}: the carry has several parts and none is named "
                f"h, so what it shows is not known: "
                "define output(self, params, carry, x), or name the part h (where step "
                "returned (carry, y): it returns the "
                "carry alone, and output says what the cell shows)"
            )
        return carry.h if hasattr(carry, "h") else jax.tree.leaves(carry)[0]

    def gate_values(self, params: Params, carry: Carry, z: Any) -> dict[str, Gate]:
        """What the gates of a step let through, by name, for
        `jaxrnn.diagnostics.gate_statistics`. Optional.

        Arguments are those of ``step``, with any number of leading axes.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not tell its gates: define gate_values(self, "
            f"params, "
            "carry, z) -> a dict of jaxrnn.core.cell.Gate"
        )

    def __call__(
        self, params: Params, carry: Carry, x: Inexact[Array, "*B D"]
    ) -> tuple[Carry, Any]:
        """One streaming step: ``(carry, y)`` after input ``x``."""
        params = weaken_scalars(params)
        carry = self.step(params, carry, self.project(params, x))
        return carry, self.output(params, carry, x)


class LinearCell(Cell):
    """A cell whose state enters its step as a factor alone: ``s_t = a_t * s_{t-1} +
    b_t``, elementwise.

    A subclass defines ``affine`` in place of ``step``; a and b may depend on the inputs
    and the parameters, not on the state. `jaxrnn.Associative` walks such cells in
    parallel; there products of many a's are made, which must be finite: |a| <= 1 is
    safe.
    """

    def affine(self, params: Params, z: Any) -> tuple[Any, Any]:
        """``(a, b)``, each like the carry or broadcasting to it, from ``z =
        project(params, x)`` with any leading axes.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define affine(self, params, z) -> (a, b)"
        )

    def step(self, params: Params, carry: Carry, z: Any) -> Carry:
        """``a * carry + b``."""
        a, b = self.affine(params, z)
        return jax.tree.map(
            lambda a, b, s: jnp.asarray(a, s.dtype) * s + jnp.asarray(b, s.dtype),
            a,
            b,
            carry,
        )


@dataclasses.dataclass(frozen=True)
class AbstractWrappedCell(Cell):
    """A cell around another one, which changes its step; engines see the whole.

    ``purpose`` says in an error message what the wrapper is for, where the user has not
    written it: the scaled gradients of ``gradient_scale``, for example.
    """

    cell: Cell
    purpose: ClassVar[str] = ""

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Carry:
        return self.cell.initial_carry(params, batch_shape, dtype)

    def project(self, params: Params, x: Any) -> Any:
        return self.cell.project(params, x)

    def output(self, params: Params, carry: Carry, x: Any) -> Any:
        return self.cell.output(params, carry, x)


def unwrap(cell: Cell) -> Cell:
    """The cell inside a wrapper, or the cell itself."""
    return cell.cell if isinstance(cell, AbstractWrappedCell) else cell


def is_linear(cell: Any) -> bool:
    """Whether ``cell`` is a `LinearCell` whose step is the one that its ``affine``
    says.
    """
    return isinstance(cell, LinearCell) and type(cell).step is LinearCell.step


def is_chunkwise(cell: Any) -> bool:
    """Whether ``cell``'s class brings ``walk_chunks``, its steps joined in another
    way.
    """
    return _owner(cell, "walk_chunks") is not None


def unsupported_chunkwise_reason(cell: Any) -> str | None:
    """Why the ``walk_chunks`` that a cell inherits are not those of its steps, if
    so: a class below overrides these.
    """
    kinds = type(cell).__mro__
    chunks = _owner(cell, "walk_chunks")
    for name in (
        "step",
        "output",
    ):  # the chunks call all others; of an output they know that it shows h
        owner = _owner(cell, name)
        if (
            chunks is not None
            and owner is not None
            and kinds.index(owner) < kinds.index(chunks)
        ):
            return (
                f"{owner.__name__} has its own {name}, of which "
                f"{chunks.__name__}.walk_chunks knows nothing"
            )
    return None


def _owner(cell: Any, name: str) -> Any:
    """The class that defines a method."""
    return next((kind for kind in type(cell).__mro__ if name in vars(kind)), None)


@dataclasses.dataclass(frozen=True)
class UnrollSpec:
    """How a sequence is walked: what `unroll` was asked for, handed down through layers
    to the engine.

    ``mask`` and ``resets`` are ``(T, *B)`` bool or None; ``window`` is the truncation
    length or None; ``gradient_scale`` ``(T, *B)`` or None multiplies the cotangent of
    the carry that enters each step. ``turned_resets`` and ``turned_scale`` remember
    those of the other direction. ``all_carries``: the carries after every step are
    wanted, not the outputs alone.
    """

    engine: Any
    mask: Any = None
    resets: Any = None
    reverse: bool = False
    window: int | None = None
    key: Any = None
    turned_resets: Any = None
    gradient_scale: Any = None
    turned_scale: Any = None
    all_carries: bool = True

    def replace(self, **changes) -> UnrollSpec:
        return dataclasses.replace(self, **changes)

    def reversed(self) -> UnrollSpec:
        """The same sequences walked the other way.

        What happens before step t in one direction, a reset or a scale of the gradient,
        happens in the other before the step on the far side of that edge. What belongs
        to the first carry's edge falls away, there is none at the other end.
        """
        return self.replace(
            reverse=not self.reverse,
            resets=self._across(self.resets, self.turned_resets, False),
            turned_resets=self.resets,
            gradient_scale=self._across(self.gradient_scale, self.turned_scale, 1),
            turned_scale=self.gradient_scale,
        )

    def _across(self, before: Any, turned: Any, at_end: Any) -> Any:
        """``before (T, *B)`` on the far side of each step's edge, and ``at_end``
        where the other direction begins.
        """
        if before is None or turned is not None:
            return turned
        last = 0 if self.reverse else before.shape[0] - 1
        is_end = (jnp.arange(before.shape[0]) == last).reshape(
            -1, *[1] * (before.ndim - 1)
        )
        return jnp.where(
            is_end,
            jnp.asarray(at_end, before.dtype),
            jnp.roll(before, 1 if self.reverse else -1, axis=0),
        )


class Layer(Static):
    """Cells and engines composed over whole sequences, with the same ``init`` and
    ``initial_carry`` as a cell.

    A subclass is a frozen dataclass that defines ``init``, ``initial_carry`` and
    ``unroll``; the streaming call is the unroll of one step. With ``output`` as well,
    `jaxrnn.diagnostics` can look inside. Outputs at masked steps become zero outside,
    whatever ``unroll`` makes of them.
    """

    reads_inputs: ClassVar[bool] = (
        # whether ``unroll`` computes with its inputs, and does not only hand them on
        True
    )

    @property
    def requires_key(self) -> bool:
        """Whether it needs a key: True for dropout, and for what contains it.
        Default: whether a field of it does.
        """
        return any(part.requires_key for part in parts_of(self))

    @property
    def causal(self) -> bool:
        """Whether output t depends on inputs up to t only. Default: whether those of
        all its fields do.
        """
        return all(part.causal for part in parts_of(self) if isinstance(part, Layer))

    def init(self, key: Array, input_size: int, dtype: Any = None) -> Params:
        """Draw parameters for inputs of ``input_size`` features."""
        raise NotImplementedError

    def check(self, params: Params) -> None:
        """Raise where ``params`` are not this layer's. Called at trace time; by
        default nothing is checked.
        """

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Carry:
        """The carry before the first step."""
        raise NotImplementedError

    def unroll(
        self, params: Params, carry: Carry, xs: Array, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        """Walk ``xs (T, *B, D)``; return the last carry, the outputs ``(T, *B, D')``
        and the carries after every step.
        """
        raise NotImplementedError

    def output(self, params: Params, carry: Carry, x: Any) -> Inexact[Array, "*TB H"]:
        """What the layer shows of its carry after inputs ``x``, for any leading axes:
        the outputs of ``unroll`` are ``output(params, carries, xs)``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it shows of its carry: define "
            f"output(self, params, carry, x)"
        )

    def __call__(
        self, params: Params, carry: Carry, x: Inexact[Array, "*B D"], key=None
    ) -> tuple[Carry, Any]:
        """One streaming step: ``(carry, y)`` after input ``x``. ``key`` as for
        `unroll`: demanded if the layer draws.
        """
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__} cannot take one step at a time: its output "
                f"depends on inputs that have not come "
                "yet. Use jaxrnn.unroll over the whole sequence."
            )
        check_key(self, key)
        check_inputs(x[None])
        self.check(params)
        return _one_step(self, weaken_scalars(params), carry, x, key)


def parts_of(layer: Layer) -> list[Cell | Layer]:
    """The cells and layers among a layer's fields, those in tuples included."""

    def found(value):
        if isinstance(value, tuple):
            return [part for each in value for part in found(each)]
        return [value] if isinstance(value, (Cell, Layer)) else []

    fields: Any = dataclasses.fields(layer) if dataclasses.is_dataclass(layer) else ()
    return found(tuple(getattr(layer, field.name) for field in fields))


@functools.partial(
    jax.jit, static_argnums=0, inline=True
)  # or called eagerly it would compile at every step
def _one_step(
    layer: Layer, params: Params, carry: Carry, x: Array, key: Any
) -> tuple[Carry, Any]:
    check_carry(
        layer,
        carry,
        jax.eval_shape(lambda p: layer.initial_carry(p, x.shape[:-1]), params),
        "the carry passed in",
    )
    carry, ys, _ = layer.unroll(
        params, carry, x[None], UnrollSpec(engine=None, key=key)
    )
    return carry, jax.tree.map(lambda leaf: leaf[0], ys)


def floating_dtype(params: Params) -> Any:
    """The widest real dtype among the leaves of ``params`` (jax's default float where
    there is none).

    Numbers of Python's and numpy's, and arrays made of them, take others' dtypes and
    have no say.
    """
    real = [
        jnp.finfo(leaf.dtype)
        for leaf in jax.tree.leaves(params)
        if not _weak(leaf) and _inexact(leaf)
    ]
    return (
        max(real, key=lambda info: info.bits).dtype if real else jnp.result_type(float)
    )


def weaken_scalars(params: Params) -> Params:
    """``params`` with numpy's numbers as Python's, which JAX casts to the dtype of
    what they meet.
    """
    return jax.tree.map(
        lambda leaf: leaf.item() if isinstance(leaf, np.generic) else leaf, params
    )


def _weak(leaf: Any) -> bool:
    return isinstance(leaf, (int, float, complex, np.generic)) or getattr(
        leaf, "weak_type", False
    )


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def accumulator(dtype: Any) -> Any:
    """The dtype in which a running sum of ``dtype`` values is kept: float32 for the
    half-precision ones, else itself.
    """
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def expand_flags(flags: Shaped[Array, "*B"], leaf: Array) -> Array:
    """``flags`` with trailing axes of size one, so that they broadcast against a
    carry leaf ``(*B, ...)``.
    """
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - flags.ndim))


def select(flags: Shaped[Array, "*B"], yes: Carry, no: Carry) -> Carry:
    """Leaf by leaf ``yes`` where ``flags`` is True, else ``no``."""
    return jax.tree.map(lambda a, b: jnp.where(expand_flags(flags, a), a, b), yes, no)


def check_cell(cell: Any) -> None:
    """``cell`` is a hashable, frozen Cell or Layer."""
    if not isinstance(cell, (Cell, Layer)):
        hint = (
            f"an instance: {cell.__name__}(...)"
            if isinstance(cell, type)
            else "a jaxrnn.Cell or a layer"
        )
        raise TypeError(f"expected {hint}, but got {describe(cell)}")
    frozen = getattr(type(cell), "__dataclass_params__", None)
    if frozen is None or not frozen.frozen:
        raise TypeError(
            f"{type(cell).__name__} must be decorated with "
            f"@dataclasses.dataclass(frozen=True): "
            "cells are static configuration, compared and hashed by value"
        )
    try:
        hash(cell)
    except TypeError as error:
        raise TypeError(
            f"{type(cell).__name__} is not hashable ({error}): its fields must be "
            f"sizes and options, "
            "never arrays or lists (arrays belong in params, sequences in tuples)"
        ) from None
