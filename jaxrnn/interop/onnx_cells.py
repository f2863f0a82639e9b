"""Elman, LSTM, GRU and MGU cells as the operators RNN, LSTM and GRU of ONNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import cells
from ..core.cell import Cell
from ..core.layer import Layer
from ..core.records import fields_of
from ..core.types import Params

ACTIVATIONS: dict[Any, str] = {
    jnp.tanh: "Tanh",
    jax.nn.relu: "Relu",
    jax.nn.sigmoid: "Sigmoid",
}


def converted(
    cell: Cell | Layer, params: Params
) -> tuple[str, list[np.ndarray], np.ndarray | None, dict[str, Any]]:
    """Return the operator, its weights in ONNX's packing, peepholes and attributes.

    The weights are W ``(1, G H, D)``, R ``(1, G H, H)`` and B ``(1, 2 G H)`` for G
    gates, the peepholes ``(1, 3 H)``.
    """
    convert: Any = CONVERTERS.get(type(cell))
    if convert is None:
        raise TypeError(
            f"to_onnx: {type(cell).__name__} has no operator in ONNX, whose recurrent "
            f"operators are LSTM, GRU and RNN (Elman in jaxrnn)"
        )
    for option, what in (
        ("layer_norm", "layer normalization"),
        ("projection_size", "a projection of h"),
    ):
        if fields_of(cell).get(option):
            raise ValueError(
                f"to_onnx: ONNX's {type(cell).__name__} has no "
                f"{what.removeprefix('a ')}, and this cell has {what}"
            )
    return convert(
        cell,
        {
            name: np.asarray(leaf)
            for name, leaf in params.items()
            if name != "initial_carry"
        },
    )


def _packed(
    blocks: list[np.ndarray], order: list[int], signs: tuple[int, ...] = (1, 1, 1)
) -> np.ndarray:
    """Reorder the blocks of a packed kernel or bias and put output features first.

    The result is ``(1, G H, D)`` or ``(1, G H)``.
    """
    return np.concatenate([blocks[k] * sign for k, sign in zip(order, signs)], -1).T[
        None
    ]


def _elman(cell: Any, params: dict[str, np.ndarray]):
    """Convert an Elman cell, or another with its step and its activation."""
    if cell.activation not in ACTIVATIONS:
        raise ValueError(
            f"to_onnx: the activation {cell.activation} of this "
            f"{type(cell).__name__} has no name in ONNX; supported are jnp.tanh, "
            f"jax.nn.relu and jax.nn.sigmoid"
        )
    weights = [
        params["input_kernel"].T[None],
        params["recurrent_kernel"].T[None],
        _biases(params["bias"][None]),
    ]
    return "RNN", weights, None, {"activations": [ACTIVATIONS[cell.activation]]}


def _lstm(cell: cells.LSTM, params: dict[str, np.ndarray]):
    """Convert an LSTM. ONNX packs the gates i, o, f, g and the peepholes i, o, f.

    With coupled gates, ``i = 1 - sigmoid(a) = sigmoid(-a)``, where a is the
    pre-activation of f: the block of f is used twice, once negated.
    """
    order, signs = (
        ([0, 2, 0, 1], (-1, 1, 1, 1))
        if cell.coupled_gates
        else ([0, 3, 1, 2], (1, 1, 1, 1))
    )

    def packed(name, blocks=cell.gates, order=order):
        return _packed(np.split(params[name], blocks, -1), order, signs)

    peephole_order = [0, 1, 0] if cell.coupled_gates else [0, 2, 1]
    peephole = (
        packed("peephole_kernel", cell.gates - 1, peephole_order)
        if cell.peephole
        else None
    )
    return (
        "LSTM",
        [packed("input_kernel"), packed("recurrent_kernel"), _biases(packed("bias"))],
        peephole,
        {},
    )


def _gru(cell: cells.GRU, params: dict[str, np.ndarray]):
    """Convert a GRU. ONNX packs the gates z, r, n.

    ``linear_before_reset`` is `GRU`'s ``reset_after``, whose b_hn is the block n of the
    recurrent bias.
    """
    packed = [
        _packed(np.split(params[name], 3, -1), [1, 0, 2])
        for name in ("input_kernel", "recurrent_kernel", "bias")
    ]
    recurrent = np.zeros_like(packed[2])
    if cell.reset_after:
        recurrent[:, 2 * cell.hidden_size :] = params["recurrent_bias"]
    return (
        "GRU",
        [*packed[:2], _biases(packed[2], recurrent)],
        None,
        {"linear_before_reset": int(cell.reset_after)},
    )


def _mgu(cell: cells.MGU, params: dict[str, np.ndarray]):
    """Convert an MGU to a GRU with reset before U_n, r = f and z = 1 - f.

    ``1 - sigmoid(a) = sigmoid(-a)``: the block of f is used twice, once negated.
    """
    packed = [
        _packed(np.split(params[name], 2, -1), [0, 0, 1], (-1, 1, 1))
        for name in ("input_kernel", "recurrent_kernel", "bias")
    ]
    return (
        "GRU",
        [*packed[:2], _biases(packed[2])],
        None,
        {"linear_before_reset": 0},
    )


def _orthogonal(cell: cells.OrthogonalRNN, params: dict[str, np.ndarray]):
    """Convert an orthogonal network to an Elman cell with the matrix that it has."""
    if cell.modrelu:
        raise ValueError(
            "to_onnx: modReLU, the activation of this OrthogonalRNN, has no name in "
            "ONNX; supported are the activations of OrthogonalRNN(modrelu=False)"
        )
    W = np.asarray(cell.recurrent_weights(params))
    return _elman(cell, params | {"recurrent_kernel": W})


def _biases(inputs: np.ndarray, recurrent: np.ndarray | None = None) -> np.ndarray:
    """Concatenate the biases of x and of h; the latter default to zeros."""
    return np.concatenate(
        [inputs, np.zeros_like(inputs) if recurrent is None else recurrent], -1
    )


CONVERTERS: dict[Any, Any] = {
    cells.Elman: _elman,
    cells.LSTM: _lstm,
    cells.GRU: _gru,
    cells.MGU: _mgu,
    cells.OrthogonalRNN: _orthogonal,
}
