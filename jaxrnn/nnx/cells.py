"""flax's cells as jaxrnn cells: the parameters stay flax's and are packed at each call.

``nnx.LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` and ``SimpleCell`` become `LSTM`,
`GRU` and `Elman`, so that every engine supports them. Any other module with
``__call__(carry, x) -> (carry, y)`` and ``initialize_carry`` is called step by step
as it is: user-defined cells, and flax's cells with another activation, with
``residual=True``, with their own initial carry or with replaced linear maps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import Array

from ..cells import GRU, LSTM, Elman, LSTMState
from ..core.cell import Carry, Cell, Layer, Params
from ..core.exported import register_for_export


class Walkable(NamedTuple):
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


def walkable(
    cell: nnx.Module, dtype: Any = None, features: int | None = None
) -> Walkable:
    """Convert a flax cell, for inputs of ``dtype`` and ``features`` where known."""
    packed = _packed(cell)
    return (
        _own(cell, dtype, features)
        if packed is None
        else _builtin(cell, *packed, dtype)
    )


def _builtin(cell: Any, layer: Cell, params: dict[str, Array], dtype: Any) -> Walkable:
    """Convert a flax cell that equals a jaxrnn cell.

    Parameters and inputs are cast to one dtype, the cell's or the wider of the two. The
    carry has flax's layout.
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

    return Walkable(
        layer,
        params,
        dtype,
        enter,
        lambda carry: (carry.c, carry.h) if isinstance(carry, LSTMState) else carry,
    )


def _cast(leaf: Array, dtype: Any, stored: Any) -> Array:
    """Cast a leaf in the parameters' dtype, as ``initialize_carry`` returns it.

    A leaf of another dtype is left as it is, so that `unroll` refuses it.
    """
    return leaf.astype(dtype) if leaf.dtype == stored else leaf


def _packed(cell: Any) -> tuple[Cell, dict[str, Array]] | None:
    """Return the jaxrnn cell that equals a built-in flax cell, and its parameters.

    None for any other cell.
    """
    kind = next((k for k in _FORMS if isinstance(cell, k)), None)
    if kind is None or any(
        getattr(type(cell), name) is not getattr(kind, name)
        for name in ("__call__", "initialize_carry")
    ):
        return None
    if (
        getattr(cell, "residual", False)
        or getattr(cell, "gate_fn", jax.nn.sigmoid) is not jax.nn.sigmoid
    ):
        return None
    if kind is not nnx.SimpleCell and cell.activation_fn is not jnp.tanh:
        return None
    inputs, recurrent = (
        [getattr(cell, name) for name in names] for names in _FORMS[kind]
    )
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


# The names of the linear maps of x and of h, in the order in which they are packed.
_FORMS: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    nnx.LSTMCell: (("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")),
    nnx.OptimizedLSTMCell: (("dense_i",), ("dense_h",)),
    nnx.GRUCell: (("dense_i",), ("dense_h",)),
    nnx.SimpleCell: (("dense_i",), ("dense_h",)),
}


@register_for_export
class Shown(NamedTuple):
    """The carry of a user-defined cell, and its last output."""

    carry: Carry
    y: Array


@dataclasses.dataclass(frozen=True)
class FlaxCell(Cell):
    """A user-defined flax cell as a jaxrnn cell.

    Its parameters are the state that ``nnx.split`` returns beside ``graph``.
    """

    graph: Any
    name: str
    features: int | None
    dtype: Any

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Shown:
        """Return the cell's ``initialize_carry``, and zeros as the last output.

        ``initialize_carry`` gets a key stream of seed 0, as in ``nnx.RNN``.
        """
        if self.features is None:
            raise ValueError(
                f"RNN: the carry of {self.name} may depend on its inputs, which are "
                f"not known here: call the cell itself, "
                "rnn.cell.initialize_carry((*B, D), rngs)"
            )
        x = jax.ShapeDtypeStruct((*batch_shape, self.features), self.dtype)
        carry = self.merged(params).initialize_carry(x.shape, nnx.Rngs(carry=0).carry)
        y = jax.eval_shape(lambda carry, x: self.merged(params)(carry, x)[1], carry, x)
        if not isinstance(y, jax.ShapeDtypeStruct):
            raise TypeError(
                f"RNN: the output of a cell must be one array, but that of {self.name} "
                f"is {jax.tree.structure(y)}"
            )
        return Shown(carry, jnp.zeros(y.shape, y.dtype))

    def step(self, params: Params, carry: Shown, z: Array) -> Shown:
        """Call the module once."""
        module = self.merged(params)
        after = Shown(*module(carry.carry, z))
        state = jax.tree.leaves(nnx.split(module)[1])
        if any(
            new is not old
            for new, old in zip(state, jax.tree.leaves(params), strict=True)
        ):
            raise TypeError(
                f"RNN: {self.name} changes its own variables while it steps (it draws "
                f"random numbers or keeps statistics), but a step must be a function "
                f"of the carry and the input: use jaxrnn.recurrent_dropout or "
                f"jaxrnn.zoneout around a jaxrnn cell, or flax's nnx.RNN"
            )
        return after

    def output(self, params: Params, carry: Shown, x: Any) -> Array:
        """Return the output of the last step."""
        return carry.y

    def merged(self, params: Params) -> Any:
        """Build the module with new variables.

        Variables of an outer trace could not be written to, and a write to them could
        not be detected.
        """
        return nnx.merge(self.graph, jax.tree.map(lambda leaf: leaf, params))


def _own(cell: Any, dtype: Any, features: int | None) -> Walkable:
    """Convert a user-defined flax cell."""
    if getattr(cell, "num_feature_axes", 1) != 1:
        raise ValueError(
            f"RNN: {type(cell).__name__} has {cell.num_feature_axes} feature axes, but "
            f"jaxrnn's sequences have one, (*B, T, D): use flax's nnx.RNN"
        )
    graph, state = nnx.split(cell)
    layer = FlaxCell(graph, type(cell).__name__, features, dtype and jnp.dtype(dtype))

    def enter(carry: Carry, batch: tuple[int, ...]) -> Shown:
        y = jax.eval_shape(lambda s: layer.initial_carry(s, batch), state).y
        return Shown(carry, jnp.zeros(y.shape, y.dtype))

    return Walkable(layer, state, None, enter, lambda shown: shown.carry)
