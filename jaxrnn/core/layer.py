"""The contract of layers: functions of whole sequences, composed of cells."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Inexact

from .cell import Cell
from .dtypes import weaken_scalars
from .pickling import Static
from .types import Carry, Context, Inputs, Params
from .unroll_spec import UnrollSpec
from .validation import (
    batch_of_step,
    check_carry,
    check_context,
    check_inputs,
    check_key,
    checked_reset,
    describe,
)


class Layer(Static):
    """A function of whole sequences with a carry, composed of cells and layers.

    A subclass is a frozen dataclass that defines ``init``, ``initial_carry`` and
    ``unroll``. The streaming call is an unroll of one step. If the layer also defines
    ``output``, `jaxrnn.diagnostics` can look inside it. `jaxrnn.unroll` sets the
    outputs at masked steps to zero, whatever the layer's ``unroll`` returns there.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.extending import unroll_part
        >>> @dataclasses.dataclass(frozen=True)
        ... class Doubled(jaxrnn.Layer):
        ...     cell: jaxrnn.Cell
        ...
        ...     def init(self, key, input_size, dtype=None):
        ...         return self.cell.init(key, input_size)
        ...
        ...     def initial_carry(self, params, batch_shape=(), dtype=None):
        ...         return self.cell.initial_carry(params, batch_shape, dtype)
        ...
        ...     def unroll(self, params, carry, xs, spec):
        ...         carry, ys, carries = unroll_part(
        ...             self.cell, params, carry, xs, spec
        ...         )
        ...         return carry, 2 * ys, carries
        >>> layer = Doubled(jaxrnn.Elman(4))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> _, ys = jaxrnn.unroll(layer, params, jnp.ones((10, 2, 3)))
        >>> ys.shape
        (10, 2, 4)
    """

    # Whether ``unroll`` computes with its inputs, rather than only passing them on.
    reads_inputs: ClassVar[bool] = True

    @property
    def requires_key(self) -> bool:
        """Whether the layer needs a random key, as dropout does.

        By default, whether one of its fields does.
        """
        return any(part.requires_key for part in parts_of(self))

    @property
    def feature_ndim(self) -> Any:
        """The number of feature axes of one input, as for a `Cell`.

        By default that of the first of its fields that has one. None stands for inputs
        of any kind, as of dropout.
        """
        known = (part.feature_ndim for part in parts_of(self))
        return next((ndim for ndim in known if ndim is not None), None)

    @property
    def takes_context(self) -> bool:
        """Whether the layer reads the ``context`` of `jaxrnn.unroll`.

        By default, whether one of its fields does.
        """
        return any(part.takes_context for part in parts_of(self))

    @property
    def causal(self) -> bool:
        """Whether the output at step t depends on no later input.

        By default, whether that holds for all its fields.
        """
        return all(part.causal for part in parts_of(self) if isinstance(part, Layer))

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        """Draw parameters for inputs of ``input_size`` features."""
        raise NotImplementedError

    def check(self, params: Params) -> None:
        """Raise an error if ``params`` are not those of this layer.

        It is called at trace time. By default nothing is checked.
        """

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        """Return the carry before the first step, ``(*batch_shape, ...)`` per leaf."""
        raise NotImplementedError

    def unroll(
        self, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        """Apply the layer over a sequence.

        Args:
            params: the parameters.
            carry: the carry before the first step.
            xs: the inputs, ``(T, *B, D)``, or a pytree.
            spec: the other arguments of `jaxrnn.unroll`; pass them on to
                `jaxrnn.extending.unroll_part`.

        Returns:
            The last carry, the outputs ``(T, *B, D')``, and the carries after every
            step, ``(T, *B, ...)`` per leaf.
        """
        raise NotImplementedError

    def output(
        self, params: Params, carry: Carry, x: Inputs
    ) -> Inexact[Array, "*TB H"]:
        """Compute the outputs from the carries and the inputs, for any leading axes.

        The outputs of ``unroll`` must be ``output(params, carries, xs)``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not define its output as a function of its "
            "carry: define output(self, params, carry, x)"
        )

    def output_features(self, params: Params, input_size: int) -> int | None:
        """Return the number of output features, or None if tracing must find it.

        It is as for a `Cell`; by default None.
        """
        return None

    def __call__(
        self,
        params: Params,
        carry: Carry,
        x: Inputs,
        *,
        reset: Bool[Array, "*B"] | None = None,
        context: Context = None,
        key: Array | None = None,
    ) -> tuple[Carry, Any]:
        """Apply one streaming step: return ``(carry, y)`` after input ``x``.

        The arguments are those of a `Cell`. ``key`` is required if the layer draws
        random numbers, as in `jaxrnn.unroll`.
        """
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__} cannot take one step at a time: its output "
                f"depends on inputs that have not come "
                "yet. Use jaxrnn.unroll over the whole sequence."
            )
        check_key(self, key)
        batch = batch_of_step(x, self.feature_ndim)
        check_context(self, context, batch)
        if reset is not None:
            reset = checked_reset(reset, batch)[None]
        self.check(params)
        xs = jax.tree.map(lambda leaf: leaf[None], x)
        spec = UnrollSpec(engine=None, resets=reset, key=key, context=context)
        return _one_step(self, weaken_scalars(params), carry, xs, spec)


def parts_of(layer: Layer) -> list[Cell | Layer]:
    """Return the cells and layers among a layer's fields, including those in tuples."""

    def parts(value):
        if isinstance(value, tuple):
            return [part for item in value for part in parts(item)]
        return [value] if isinstance(value, (Cell, Layer)) else []

    fields: Any = dataclasses.fields(layer) if dataclasses.is_dataclass(layer) else ()
    return parts(tuple(vars(layer)[field.name] for field in fields))


# Compiled once: called eagerly, `jax.lax.scan` would compile at every step.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _one_step(
    layer: Layer, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec
) -> tuple[Carry, Any]:
    batch = check_inputs(xs, layer.feature_ndim)[1:]
    expected = jax.eval_shape(lambda p: layer.initial_carry(p, batch), params)
    check_carry(layer, carry, expected, "the carry passed in")
    carry, ys, _ = layer.unroll(params, carry, xs, spec)
    return carry, jax.tree.map(lambda leaf: leaf[0], ys)


def check_cell(cell: object) -> None:
    """Check that ``cell`` is a frozen and hashable `Cell` or `Layer`.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(cell, (Cell, Layer)):
        what = "a jaxrnn.Cell or a layer"
        repair = ""
        if isinstance(cell, type):
            what = f"an instance: {cell.__name__}(...)"
        elif isinstance(cell, (list, tuple)):
            repair = (
                f" of {len(cell)}: jaxrnn.stack(*layers) makes one layer of several, "
                f"each of which is an argument of its own"
            )
        raise TypeError(f"expected {what}, but got {describe(cell)}{repair}")
    kind: Any = type(cell)
    dataclass: Any = kind if dataclasses.is_dataclass(kind) else None
    if dataclass is None or not dataclass.__dataclass_params__.frozen:
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
