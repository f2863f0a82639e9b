"""flax's cells as jaxrnn cells: the parameters stay flax's and are packed at each call.

``nnx.LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` and ``SimpleCell`` become `LSTM`,
`GRU` and `Elman`, so that every engine supports them. Any other module with
``__call__(carry, x) -> (carry, y)`` and ``initialize_carry`` is called step by step
as it is: user-defined cells, and flax's cells with another activation, with
``residual=True``, with their own initial carry or with replaced linear maps. A cell
that draws random numbers or writes to its variables runs in flax's own scan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import Array

from ..cells import GRU, LSTM, Elman
from ..core.cell import Cell
from ..core.foreign import optional_attribute
from ..core.types import Carry, Inputs, Params, PyTree
from ..modules.forms import Form, ModuleCell, built_in_form, module_form


@runtime_checkable
class CellOfFlax(Protocol):
    """What tells a cell of flax from another module of flax."""

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any) -> Any:
        """Return the first carry."""


def form_of(cell: nnx.Module, x: jax.ShapeDtypeStruct | None = None) -> Form:
    """Convert a flax cell, for inputs ``x (*B, ...)`` where they are known."""
    packed = _packed(cell)
    if packed is not None:
        return built_in_form(cell, *packed, None if x is None else x.dtype)
    (graph, state), axes = nnx.split(cell), feature_axes(cell)
    features, dtype = (None, None) if x is None else (x.shape[-axes:], x.dtype)
    return module_form(FlaxCell(axes, features, dtype, graph), state)


def _packed(cell: Any) -> tuple[Cell, dict[str, Array]] | None:
    """Return the jaxrnn cell that equals a built-in flax cell, and its parameters.

    None for any other cell.
    """
    kind = next((k for k in _FORMS if isinstance(cell, k)), None)
    if (
        kind is None
        or type(cell).__call__ is not kind.__call__
        or type(cell).initialize_carry is not kind.initialize_carry
    ):
        return None
    if kind is nnx.SimpleCell:
        if cell.residual:
            return None
    elif cell.gate_fn is not jax.nn.sigmoid or cell.activation_fn is not jnp.tanh:
        return None
    inputs, recurrent = _FORMS[kind](cell)
    if not all(_plain(linear, cell) for linear in (*inputs, *recurrent)):
        return None
    biased, bare = (
        (inputs, recurrent)
        if kind in (nnx.GRUCell, nnx.SimpleCell)
        else (recurrent, inputs)
    )
    if any(linear.bias is None for linear in biased) or any(
        linear.bias is not None for linear in bare
    ):
        return None
    params = {
        "input_kernel": jnp.concatenate([linear.kernel[...] for linear in inputs], -1),
        "recurrent_kernel": jnp.concatenate(
            [linear.kernel[...] for linear in recurrent], -1
        ),
        "bias": jnp.concatenate([linear.bias[...] for linear in biased]),
    }
    if kind is nnx.SimpleCell:
        return Elman(cell.hidden_features, activation=cell.activation_fn), params
    if kind is nnx.GRUCell:  # it has no recurrent bias, contrary to its documentation
        return GRU(cell.hidden_features), params | {
            "recurrent_bias": jnp.zeros_like(params["bias"][: cell.hidden_features])
        }
    return LSTM(cell.hidden_features), params


def _plain(linear: Any, cell: Any) -> bool:
    """Return whether a linear map is ``nnx.Linear`` with the options that a cell sets.

    False for a map that the user has put in its place.
    """
    return (
        type(linear) is nnx.Linear
        and linear.dot_general is jax.lax.dot_general
        and linear.precision is linear.preferred_element_type is None
        and linear.promote_dtype is promote_dtype
        and linear.dtype == cell.dtype
    )


# The linear maps of x and of h, in the order in which they are packed.
_FORMS: dict[Any, Callable[[Any], tuple[list[Any], list[Any]]]] = {
    nnx.LSTMCell: lambda cell: (
        [cell.ii, cell.if_, cell.ig, cell.io],
        [cell.hi, cell.hf, cell.hg, cell.ho],
    ),
    nnx.OptimizedLSTMCell: lambda cell: ([cell.dense_i], [cell.dense_h]),
    nnx.GRUCell: lambda cell: ([cell.dense_i], [cell.dense_h]),
    nnx.SimpleCell: lambda cell: ([cell.dense_i], [cell.dense_h]),
}


@dataclasses.dataclass(frozen=True)
class FlaxCell(ModuleCell):
    """A user-defined nnx cell that is a pure function, as a jaxrnn cell.

    Its parameters are the state that ``nnx.split`` returns beside ``graph``.
    """

    graph: Any

    def first(self, params: Params, input_shape: tuple[int, ...]) -> Carry:
        """Return the cell's ``initialize_carry``.

        It gets a key stream of seed 0, as in ``nnx.RNN``.
        """
        return initialized_carry(self.merged(params), input_shape)

    def call(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Any]:
        """Call the module once."""
        return self.merged(params)(carry, x)

    def merged(self, params: Params) -> Any:
        """Build the module with new variables.

        Variables of an outer trace could not be written to.
        """
        return nnx.merge(self.graph, jax.tree.map(lambda leaf: leaf, params))


def initialized_carry(cell: Any, input_shape: tuple[int, ...]) -> Carry:
    """Return a cell's ``initialize_carry``, with a key stream of seed 0."""
    return cell.initialize_carry(input_shape, nnx.Rngs(carry=0).carry)


def feature_axes(cell: Any) -> int:
    """Return the number of feature axes of a cell's inputs; by default 1."""
    return optional_attribute(cell, "num_feature_axes", 1)


def why_impure(cell: Any, x: jax.ShapeDtypeStruct) -> str | None:
    """Say why a cell is no pure function of its carry and its input, or None.

    The cell is only traced, with its own initial carry, and keeps its variables.

    Args:
        cell: a flax cell.
        x: the shape of an input.

    Returns:
        The reason why flax's own scan must run it.
    """
    if _packed(cell) is not None:
        return None
    graph, state = nnx.split(cell)
    writes = False

    def once(state: PyTree, x: Inputs) -> None:
        nonlocal writes
        # The module writes to the variables that it is made of, so they are copied.
        module = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
        module(initialized_carry(module, x.shape), x)
        after = nnx.split(module)[1]
        one: Any = jax.tree.structure(after)
        writes = one != jax.tree.structure(state) or any(
            new is not old
            for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state))
        )

    jax.eval_shape(once, state, x)
    name = type(cell).__name__
    return f"{name} draws random numbers or keeps variables" if writes else None
