"""Cells of flax as jaxrnn cells: the arguments of `jaxrnn.unroll`, and the carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from ..cells import LSTM, LSTMState
from ..core.cell import Cell
from ..core.exported import register_for_export
from ..core.layer import Layer
from ..core.types import Carry, Inputs, Params


class Form(NamedTuple):
    """The arguments of `jaxrnn.unroll` for a module, and conversions of its carry.

    Attributes:
        layer, params: the jaxrnn cell or layer and its parameters.
        dtype: the dtype to which inputs are cast; None leaves them as they are.
        enter: converts the module's carry to the layer's, given the batch shape.
        leave: converts the layer's carry to the module's.
    """

    layer: Cell | Layer
    params: Params
    dtype: Any = None
    enter: Callable[[Carry, tuple[int, ...]], Carry] = lambda carry, batch: carry
    leave: Callable[[Carry], Carry] = lambda carry: carry


def built_in_form(
    cell: Any, layer: Cell, params: dict[str, Array], dtype: DTypeLike | None
) -> Form:
    """Return the form of a flax cell that equals a jaxrnn cell.

    Parameters and inputs are cast to one dtype, the cell's or the wider of the two. The
    carry has flax's layout.

    Args:
        cell: flax's cell.
        layer: the jaxrnn cell.
        params: the parameters of the jaxrnn cell.
        dtype: the dtype of the inputs, or None.

    Returns:
        The form.
    """
    stored = params["input_kernel"].dtype
    if cell.dtype is not None or dtype is None:
        dtype = jnp.dtype(cell.dtype or stored)
    elif dtype != stored:
        dtype = (
            jnp.promote_types(dtype, stored)
            if jnp.issubdtype(dtype, jnp.floating)
            else stored
        )
    params = {name: leaf.astype(dtype) for name, leaf in params.items()}

    def enter(carry: Carry, batch: tuple[int, ...]) -> Carry:
        if isinstance(layer, LSTM):
            if (
                not isinstance(carry, (tuple, list))
                or isinstance(carry, LSTMState)
                or len(carry) != 2
            ):
                raise TypeError(
                    f"RNN: the carry of flax's {type(cell).__name__} is a pair (c, h), "
                    f"in this order, but got "
                    f"{type(carry).__name__}"
                )
            carry = LSTMState(h=carry[1], c=carry[0])
        expected = jax.eval_shape(lambda: layer.initial_carry(params, batch))
        structure: Any = jax.tree.structure(carry)
        if structure != jax.tree.structure(expected):
            return carry  # `unroll` raises an error that describes it
        return jax.tree.map(
            lambda a, like: _cast(a, like.dtype, stored), carry, expected
        )

    return Form(
        layer,
        params,
        dtype,
        enter,
        lambda carry: (carry.c, carry.h) if isinstance(carry, LSTMState) else carry,
    )


def _cast(leaf: Array, dtype: DTypeLike | None, stored: object) -> Array:
    """Cast a leaf in the parameters' dtype, as ``initialize_carry`` returns it.

    A leaf of another dtype is left as it is, so that `unroll` refuses it.
    """
    return leaf.astype(dtype) if leaf.dtype == stored else leaf


@register_for_export
class Shown(NamedTuple):
    """The carry of a user-defined cell, and its last output."""

    carry: Carry
    y: Any


@dataclasses.dataclass(frozen=True)
class ModuleCell(Cell):
    """A flax cell that is a pure function, as a jaxrnn cell.

    A subclass defines ``call`` and ``first``. The carry is a `Shown`, because the
    output of such a cell need not be a function of its carry.

    Attributes:
        feature_axes: the number of feature axes of an input.
        features: the sizes of these axes; None if they are not known.
        dtype: the dtype of the inputs.
    """

    feature_axes: int
    features: tuple[int, ...] | None
    dtype: Any

    @property
    def feature_ndim(self) -> int:  # type: ignore[override]
        return self.feature_axes

    def call(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Any]:
        """Call the module once: return ``(carry, y)``."""
        raise NotImplementedError

    def first(self, params: Params, input_shape: tuple[int, ...]) -> Carry:
        """Return the module's initial carry for inputs of shape ``(*B, D)``."""
        raise NotImplementedError

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Shown:
        """Return the module's initial carry, and zeros as the last output."""
        if self.features is None:
            raise ValueError(
                "RNN: the carry of a flax cell may depend on its inputs, which are "
                "not known here: call the cell itself, "
                "rnn.cell.initialize_carry((*B, D), rngs)"
            )
        x = jax.ShapeDtypeStruct((*batch_shape, *self.features), self.dtype)
        carry = self.first(params, x.shape)
        return Shown(carry, _zeros_like_output(self, params, carry, x))

    def step(self, params: Params, carry: Shown, z: Array) -> Shown:
        """Call the module once."""
        return Shown(*self.call(params, carry.carry, z))

    def output(self, params: Params, carry: Shown, x: Inputs) -> Any:
        """Return the output of the last step."""
        return carry.y


def _zeros_like_output(
    cell: ModuleCell, params: Params, carry: Carry, x: Inputs
) -> Any:
    """Return zeros in the shapes of a cell's output."""
    ys = jax.eval_shape(lambda p, c, x: cell.call(p, c, x)[1], params, carry, x)
    return jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), ys)


def module_form(cell: ModuleCell, params: Params) -> Form:
    """Return the form of a flax cell that is a pure function."""

    def enter(carry: Carry, batch: tuple[int, ...]) -> Shown:
        shown = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)
        zeros = jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), shown.y)
        return Shown(carry, zeros)

    return Form(cell, params, None, enter, lambda shown: shown.carry)
