"""flax's own cells, as `jaxrnn.unroll` walks them: the parameters stay flax's, and are
packed when a sequence is walked.

``nnx.LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` and ``SimpleCell`` become `LSTM`,
`GRU` and `Elman`. Whatever else has ``__call__(carry, x) -> (carry, y)`` and
``initialize_carry``, a cell of one's own, those with other activations, with
``residual=True``, a first carry of their own or linear maps that were exchanged, is
called step by step as it stands.
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
    """What `jaxrnn.unroll` takes, and how its carry looks from outside."""

    layer: Cell | Layer
    params: Params
    dtype: Any = None  # to cast the inputs to; None leaves them
    enter: Callable[[Carry, tuple[int, ...]], Carry] = lambda carry, batch: carry
    leave: Callable[[Carry], Carry] = lambda carry: carry


def walkable(
    cell: nnx.Module, dtype: Any = None, features: int | None = None
) -> Walkable:
    """A flax cell for inputs of ``dtype`` with so many features, as far as they are
    known.
    """
    packed = _packed(cell)
    return (
        _own(cell, dtype, features)
        if packed is None
        else _builtin(cell, *packed, dtype)
    )


def _builtin(cell: Any, layer: Cell, params: dict[str, Array], dtype: Any) -> Walkable:
    """Parameters and inputs are cast to one dtype, the cell's or the wider of the
    two; the carry is laid out as flax's.
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
        found: Any = jax.tree.structure(carry)
        if found != jax.tree.structure(expected):
            return carry  # unroll says what is wrong with it
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
    """What ``initialize_carry`` makes, in the parameters' dtype, becomes the
    carry's; another dtype is left to be refused.
    """
    return leaf.astype(dtype) if leaf.dtype == stored else leaf


def _packed(cell: Any) -> tuple[Cell, dict[str, Array]] | None:
    """The `LSTM`, `GRU` or `Elman` that computes what a built-in flax cell does, and
    its parameters; None for any other.
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
    if kind is nnx.GRUCell:  # has no recurrent bias, whatever its documentation says
        return GRU(cell.hidden_features), params | {
            "recurrent_bias": jnp.zeros_like(params["bias"][: cell.hidden_features])
        }
    return LSTM(cell.hidden_features), params


def _plain(linear: Any, cell: Any) -> bool:
    """One of flax's own linear maps with its own options: those that a cell makes,
    and not one put in their place.
    """
    return (
        type(linear) is nnx.Linear
        and linear.dot_general is jax.lax.dot_general
        and linear.precision is linear.preferred_element_type is None
        and linear.promote_dtype is promote_dtype
        and linear.dtype == cell.dtype
    )


_FORMS: dict[
    Any, tuple[tuple[str, ...], tuple[str, ...]]
] = {  # linear maps of x, and of h, in the order they are packed
    nnx.LSTMCell: (("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")),
    nnx.OptimizedLSTMCell: (("dense_i",), ("dense_h",)),
    nnx.GRUCell: (("dense_i",), ("dense_h",)),
    nnx.SimpleCell: (("dense_i",), ("dense_h",)),
}


@register_for_export
class Shown(NamedTuple):
    """The carry of a cell of one's own, and what it put out last."""

    carry: Carry
    y: Array


@dataclasses.dataclass(frozen=True)
class FlaxCell(Cell):
    """A cell of one's own: its parameters are the state that ``nnx.split`` gives
    beside ``graph``.
    """

    graph: Any
    name: str
    features: int | None
    dtype: Any

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Shown:
        """``initialize_carry``, handed a stream of seed 0 as ``nnx.RNN`` does, and
        zeros for what no step has put out yet.
        """
        if self.features is None:
            raise ValueError(
                f"RNN: the carry of {self.name} may depend on its inputs, which are "
                f"not known here: ask the cell itself, "
                "rnn.cell.initialize_carry((*B, D), rngs)"
            )
        x = jax.ShapeDtypeStruct((*batch_shape, self.features), self.dtype)
        carry = self.merged(params).initialize_carry(x.shape, nnx.Rngs(carry=0).carry)
        y = jax.eval_shape(lambda carry, x: self.merged(params)(carry, x)[1], carry, x)
        if not isinstance(y, jax.ShapeDtypeStruct):
            raise TypeError(
                f"RNN: a cell must put out one array, but {self.name} puts out "
                f"{jax.tree.structure(y)}"
            )
        return Shown(carry, jnp.zeros(y.shape, y.dtype))

    def step(self, params: Params, carry: Shown, z: Array) -> Shown:
        """The cell's own call."""
        module = self.merged(params)
        after = Shown(*module(carry.carry, z))
        state = jax.tree.leaves(nnx.split(module)[1])
        if any(
            new is not old
            for new, old in zip(state, jax.tree.leaves(params), strict=True)
        ):
            raise TypeError(
                f"RNN: {self.name} changes its own variables while it steps (it draws "
                f"random numbers or keeps statistics), and "
                "what is walked here is a function of the carry and the inputs: use "
                "jaxrnn.recurrent_dropout or "
                "jaxrnn.zoneout around a jaxrnn cell, or flax's nnx.RNN"
            )
        return after

    def output(self, params: Params, carry: Shown, x: Any) -> Array:
        """What the step put out."""
        return carry.y

    def merged(self, params: Params) -> Any:
        """The module, with variables made anew: those of an outer trace could not be
        written to, nor the writing be found.
        """
        return nnx.merge(self.graph, jax.tree.map(lambda leaf: leaf, params))


def _own(cell: Any, dtype: Any, features: int | None) -> Walkable:
    if getattr(cell, "num_feature_axes", 1) != 1:
        raise ValueError(
            f"RNN: {type(cell).__name__} has {cell.num_feature_axes} feature axes, and "
            f"sequences here have one, (*B, T, D): "
            "use flax's nnx.RNN"
        )
    graph, state = nnx.split(cell)
    layer = FlaxCell(graph, type(cell).__name__, features, dtype and jnp.dtype(dtype))

    def enter(carry: Carry, batch: tuple[int, ...]) -> Shown:
        y = jax.eval_shape(lambda s: layer.initial_carry(s, batch), state).y
        return Shown(carry, jnp.zeros(y.shape, y.dtype))

    return Walkable(layer, state, None, enter, lambda shown: shown.carry)
