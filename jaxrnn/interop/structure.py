"""The subset of jaxrnn layers that other libraries can represent.

These are stacks and bidirectional layers of plain Elman, LSTM and GRU cells, which
the converters visit cell by cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..cells import GRU, LSTM, Elman, LSTMState
from ..core.cell import Cell
from ..core.dtypes import accumulator
from ..core.layer import Layer
from ..core.records import fields_of
from ..core.types import Carry, Params
from ..core.validation import describe
from ..layers import BidirectionalCarry
from ..layers.compose import Bidirectional, Stack
from ..layers.stochastic import Dropout

BLOCKS: dict[Any, int] = {Elman: 1, GRU: 3, LSTM: 4}  # gate blocks of a packed kernel
ACTIVATIONS: dict[str, Any] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
}


def cells_of(layer: Cell | Layer, where: str) -> list[Any]:
    """Return the cells of ``layer``: layer by layer, forward before backward.

    What has no counterpart in other libraries is refused.
    """
    if isinstance(layer, Stack):
        return [cell for part in layer.layers for cell in cells_of(part, where)]
    if isinstance(layer, Bidirectional):
        return cells_of(layer.forward, where) + cells_of(layer.backward, where)
    if isinstance(layer, Dropout):
        return []
    if type(layer) not in BLOCKS:
        raise TypeError(
            f"{where}: supported are jaxrnn.stack, bidirectional and dropout of Elman, "
            f"LSTM and GRU cells, but got "
            f"{describe(layer) if isinstance(layer, type) else type(layer).__name__}"
        )
    options = fields_of(layer)  # not every kind of cell has all of these
    for option in ("layer_norm", "peephole", "coupled_gates", "learned_initial_carry"):
        if options.get(option):
            raise ValueError(
                f"{where}: {type(layer).__name__} has {option}=True, which no cell "
                f"of the other library has"
            )
    if isinstance(layer, Elman):
        activation_name(layer, where)
    return [layer]


def activation_name(cell: Elman, where: str) -> str:
    """Return the name of the activation of an Elman cell."""
    for name, function in ACTIVATIONS.items():
        if cell.activation is function:
            return name
    raise ValueError(
        f"{where}: the activation of Elman must be jnp.tanh, jax.nn.relu or "
        f"jax.nn.sigmoid, not {cell.activation!r}"
    )


def forward_size(cell: Any) -> int:
    """Return the number of features of the cell's h."""
    return cell.output_size if isinstance(cell, LSTM) else cell.hidden_size


def summary(layer: Any) -> str:
    """Describe what ``layer`` computes.

    The description is equal for layers that compute the same from the same parameters.
    """
    if isinstance(layer, Stack):
        parts = [summary(part) for part in layer.layers]
        return parts[0] if len(parts) == 1 else f"stack({', '.join(parts)})"
    if isinstance(layer, Bidirectional):
        return (
            f"bidirectional({summary(layer.forward)}, {summary(layer.backward)}, "
            f"merge={layer.merge!r})"
        )
    if isinstance(layer, Dropout):
        variational = ", variational=True" if layer.variational else ""
        return f"dropout({layer.rate:g}{variational})"
    words = [str(layer.hidden_size)]
    if isinstance(layer, Elman):
        words.append(activation_name(layer, "interop"))
    if isinstance(layer, LSTM) and layer.projection_size is not None:
        words.append(f"projection_size={layer.projection_size}")
    if isinstance(layer, GRU) and not layer.reset_after:
        words.append("reset_after=False")
    return f"{type(layer).__name__}({', '.join(words)})"


def check_same(where: str, layer: Any, other: Any) -> None:
    """Check that ``layer`` computes the same as ``other``.

    ``other`` describes the object into which the weights of ``layer`` are loaded.
    """
    if summary(layer) != summary(other):
        raise ValueError(
            f"{where}: the layer is {summary(layer)}, but the object to load is "
            f"{summary(other)}"
        )


def check_distinct(where: str, variables: Sequence[Any]) -> None:
    """Check that no variable to load occurs twice.

    Otherwise the weights written last would be used for both cells.
    """
    if len({id(variable) for variable in variables}) != len(variables):
        raise ValueError(
            f"{where}: into holds one object twice, but each cell has weights of its "
            f"own: make two"
        )


def get_cell_params(layer: Cell | Layer, params: Params) -> list[Params]:
    """Return the parameters of each cell, in the order of `cells_of`."""
    if isinstance(layer, Stack):
        return [
            each
            for i, part in enumerate(layer.layers)
            for each in get_cell_params(part, params[f"layer_{i}"])
        ]
    if isinstance(layer, Bidirectional):
        return get_cell_params(layer.forward, params["forward"]) + get_cell_params(
            layer.backward, params["backward"]
        )
    return [] if isinstance(layer, Dropout) else [params]


def checked_cell_params(
    layer: Cell | Layer, params: Params, where: str
) -> list[tuple[Any, Params]]:
    """Return every cell with its parameters, after checking those of the layer."""
    cells = cells_of(layer, where)
    layer.check(params)
    return list(zip(cells, get_cell_params(layer, params), strict=True))


def set_cell_params(layer: Cell | Layer, each: Sequence[Params], where: str) -> Params:
    """Build the layer's parameters from those of its cells.

    This is the inverse of `get_cell_params`.
    """
    expected = len(cells_of(layer, where))
    if len(each) != expected:
        raise ValueError(
            f"{where}: {summary(layer)} has {expected} cells, but got weights for "
            f"{len(each)}"
        )
    params = _put(layer, iter(each))
    layer.check(params)
    _check_sizes(layer, params, None, where)
    return params


def _put(layer: Cell | Layer, each: Iterator[Params]) -> Params:
    """Build the parameters of a layer from an iterator over those of its cells."""
    if isinstance(layer, Stack):
        return {f"layer_{i}": _put(part, each) for i, part in enumerate(layer.layers)}
    if isinstance(layer, Bidirectional):
        return {
            "forward": _put(layer.forward, each),
            "backward": _put(layer.backward, each),
        }
    return {} if isinstance(layer, Dropout) else next(each)


def _check_sizes(
    layer: Any, params: Params, features: int | None, where: str
) -> int | None:
    """Check that the input size of every cell is the output size of the layer below.

    Returns the number of output features; None for as many as the layer gets.
    """
    if isinstance(layer, Stack):
        for i, part in enumerate(layer.layers):
            features = _check_sizes(
                part,
                params[f"layer_{i}"],
                features,
                f"{where}: layer_{i}" if i else where,
            )
        return features
    if isinstance(layer, Bidirectional):
        input_size = (
            features
            if features is not None
            else _takes(layer.forward, params["forward"])
        )
        sizes = [
            _check_sizes(part, params[name], input_size, f"{where}: {name}")
            for name, part in (("forward", layer.forward), ("backward", layer.backward))
        ]
        return (
            sizes[0]
            if layer.merge == "sum"
            else sum(size for size in sizes if size is not None)
        )
    if isinstance(layer, Dropout):
        return features
    input_size = _takes(layer, params)
    if features is not None and input_size != features:
        raise ValueError(
            f"{where}: its weights take {input_size} features, but the layer below has "
            f"{features}: do they belong to this layer?"
        )
    return forward_size(layer)


def _takes(layer: Cell | Layer, params: Params) -> int:
    """Return the number of input features of a layer's first cell."""
    return get_cell_params(layer, params)[0]["input_kernel"].shape[0]


def set_cell_carries(layer: Cell | Layer, each: Iterator[tuple[Any, ...]]) -> Carry:
    """Build the layer's carry from the ``(h,)`` or ``(h, c)`` of each cell.

    The cells are in the order of `cells_of`.
    """
    if isinstance(layer, Stack):
        return tuple(set_cell_carries(part, each) for part in layer.layers)
    if isinstance(layer, Bidirectional):
        return BidirectionalCarry(
            set_cell_carries(layer.forward, each),
            set_cell_carries(layer.backward, each),
        )
    if isinstance(layer, Dropout):
        return ()
    state = next(each)
    if isinstance(layer, LSTM):
        return LSTMState(state[0], state[1].astype(accumulator(state[1].dtype)))
    return (
        state[0].astype(accumulator(state[0].dtype))
        if isinstance(layer, GRU)
        else state[0]
    )


def get_cell_carries(layer: Cell | Layer, carry: Carry) -> list[tuple[Any, ...]]:
    """Return the ``(h,)`` or ``(h, c)`` of each cell: inverse of `set_cell_carries`."""
    if isinstance(layer, Stack):
        return [
            each
            for part, own in zip(layer.layers, carry, strict=True)
            for each in get_cell_carries(part, own)
        ]
    if isinstance(layer, Bidirectional):
        return get_cell_carries(layer.forward, carry.forward) + get_cell_carries(
            layer.backward, carry.backward
        )
    if isinstance(layer, Dropout):
        return []
    return [tuple(carry)] if isinstance(layer, LSTM) else [(carry,)]
