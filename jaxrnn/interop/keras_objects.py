"""Recognition of Keras layers and cells, and refusal of options without counterpart."""

from __future__ import annotations

import types
from typing import Any

from ..cells import GRU, LSTM, Elman
from ..core.validation import describe
from ..layers import bidirectional, stack
from .structure import ACTIVATIONS

LAYERS = {"SimpleRNN": Elman, "LSTM": LSTM, "GRU": GRU}
REPAIR = "pass its get_weights() with layer=, if the weights are what you want"


def kind_of(source: object) -> str:
    """Return the class name of one of Keras's own objects; "" for anything else."""
    module = type(source).__module__
    return type(source).__name__ if module.startswith("keras.") else ""


def converted(where: str, source: Any, inside: bool = False) -> tuple[Any, list[Any]]:
    """Return the equivalent jaxrnn layer, and Keras's cells.

    The cells have the order of `structure.cells_of`.
    """
    kind = kind_of(source)
    if isinstance(source, (list, tuple)) or kind == "Sequential":
        return _stacked(where, list(source.layers if kind == "Sequential" else source))
    if kind == "StackedRNNCells":
        return _stacked(where, list(source.cells))
    if kind == "Bidirectional":
        return _both_directions(where, source)
    if kind in LAYERS or kind == "RNN":
        _check_layer(where, source, inside)
        return converted(where, source.cell)
    if kind.removesuffix("Cell") in LAYERS and kind.endswith("Cell"):
        return _cell(where, kind.removesuffix("Cell"), source), [source]
    raise TypeError(
        f"{where}: expected keras.layers SimpleRNN, LSTM, GRU, Bidirectional, RNN, one "
        f"of their cells, StackedRNNCells, a "
        f"Sequential or a list of these, but it is {describe(source)}; for a class of "
        f"your own that computes the same, {REPAIR}"
    )


def _stacked(where: str, sources: list[Any]) -> tuple[Any, list[Any]]:
    """Convert a list of layers to a stack."""
    if not sources:
        raise ValueError(f"{where}: the list of layers is empty")
    for source in sources[:-1]:
        is_layer = kind_of(source) in (*LAYERS, "RNN", "Bidirectional")
        if is_layer and source.return_sequences is False:
            raise ValueError(
                f"{where}: {source.name} has return_sequences=False, so the layer "
                f"above it sees its last output only, but a "
                "jaxrnn stack passes on every step"
            )
    pairs = [converted(where, source) for source in sources]
    cells = [cell for _, own in pairs for cell in own]
    return (
        pairs[0][0] if len(pairs) == 1 else stack(*[layer for layer, _ in pairs])
    ), cells


def _both_directions(where: str, source: Any) -> tuple[Any, list[Any]]:
    """Convert a Bidirectional."""
    if source.merge_mode not in ("concat", "sum"):
        raise ValueError(
            f"{where}: {source.name} has merge_mode={source.merge_mode!r}; "
            f"jaxrnn.bidirectional has 'concat' and 'sum': "
            f"{REPAIR}"
        )
    if source.forward_layer.go_backwards:
        raise ValueError(
            f"{where}: the forward layer of {source.name} goes backwards: exchange the "
            f"two"
        )
    (forward, forward_cells), (backward, backward_cells) = (
        converted(where, s, True) for s in (source.forward_layer, source.backward_layer)
    )
    return bidirectional(
        forward, backward, merge=source.merge_mode
    ), forward_cells + backward_cells


def _check_layer(where: str, source: Any, inside: bool) -> None:
    """Refuse options of a layer that change what its cell computes."""
    if source.go_backwards and not inside:
        raise ValueError(
            f"{where}: {source.name} has go_backwards=True, which in jaxrnn is an "
            f"option of the call, unroll(..., reverse=True), whose outputs keep the "
            f"order of the inputs, while Keras's are reversed: {REPAIR}"
        )
    if source.stateful:
        raise ValueError(
            f"{where}: {source.name} is stateful, but in jaxrnn the state is not part "
            f"of the layer: {REPAIR}, and pass its "
            "states to unroll as the carry"
        )


def _cell(where: str, kind: str, source: Any) -> Any:
    """Return the jaxrnn cell with the options of a Keras cell, or refuse an option."""
    if not source.built:
        raise ValueError(
            f"{where}: {source.name} has no weights yet: build it, or call it once"
        )
    rates = {"dropout": source.dropout, "recurrent_dropout": source.recurrent_dropout}
    for option, rate in rates.items():
        if rate:
            raise ValueError(
                f"{where}: {source.name} has {option}={rate}, which "
                f"draws differently from jaxrnn.dropout and "
                f"recurrent_dropout: {REPAIR}"
            )
    if source.compute_dtype != source.variable_dtype:
        raise TypeError(
            f"{where}: {source.name} holds {source.variable_dtype} and computes in "
            f"{source.compute_dtype}; jaxrnn computes "
            f"in the dtype of the parameters: {REPAIR}, cast to one"
        )
    activation = _name(source.activation)
    gate = "sigmoid" if kind == "SimpleRNN" else _name(source.recurrent_activation)
    allowed = ACTIVATIONS if kind == "SimpleRNN" else ("tanh",)
    if activation not in allowed or gate != "sigmoid":
        supported = (
            "one of tanh, relu, sigmoid"
            if kind == "SimpleRNN"
            else "tanh, and sigmoid for its gates"
        )
        raise ValueError(
            f"{where}: {source.name} has the activation {activation} and the recurrent "
            f"activation {gate}; "
            f"jaxrnn's {LAYERS[kind].__name__} has {supported}"
        )
    if kind == "SimpleRNN":
        return Elman(source.units, activation=ACTIVATIONS[activation])
    return (
        GRU(source.units, reset_after=bool(source.reset_after))
        if kind == "GRU"
        else LSTM(source.units)
    )


def _name(function: Any) -> str:
    """Return the name of one of Keras's own functions.

    Any other function is shown by its repr, because its name proves nothing.
    """
    is_function = isinstance(function, types.FunctionType)
    own = is_function and function.__module__.startswith("keras.")
    return function.__name__ if own else repr(function)
