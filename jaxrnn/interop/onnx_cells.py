"""Elman, LSTM and GRU as ONNX's operators RNN, LSTM and GRU: weights in their
packing, and attributes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import cells
from ..core.cell import Params

ACTIVATIONS: dict[Any, str] = {
    jnp.tanh: "Tanh",
    jax.nn.relu: "Relu",
    jax.nn.sigmoid: "Sigmoid",
}


def converted(
    cell: Any, params: Params
) -> tuple[str, list[np.ndarray], np.ndarray | None, dict[str, Any]]:
    """Operator; W ``(1, G H, D)``, R ``(1, G H, H)``, B ``(1, 2 G H)``; peepholes
    ``(1, 3 H)``; attributes.
    """
    convert: Any = {cells.Elman: _elman, cells.LSTM: _lstm, cells.GRU: _gru}.get(
        type(cell)
    )
    if convert is None:
        raise TypeError(
            f"to_onnx: {type(cell).__name__} has no operator in ONNX, whose recurrent "
            f"ones are LSTM, GRU and RNN (Elman here)"
        )
    for option, what in (
        ("layer_norm", "layer normalization"),
        ("projection_size", "a projection of h"),
    ):
        if getattr(cell, option, None):
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
    """The blocks of a packed kernel or bias in another order, output features first:
    ``(1, G H, D)`` or ``(1, G H)``.
    """
    return np.concatenate([blocks[k] * sign for k, sign in zip(order, signs)], -1).T[
        None
    ]


def _elman(cell: cells.Elman, params: dict[str, np.ndarray]):
    if cell.activation not in ACTIVATIONS:
        raise ValueError(
            f"to_onnx: the activation {cell.activation} of this Elman has no name in "
            f"ONNX; those of jnp.tanh, jax.nn.relu and "
            "jax.nn.sigmoid are known here"
        )
    weights = [
        params["input_kernel"].T[None],
        params["recurrent_kernel"].T[None],
        _biases(params["bias"][None]),
    ]
    return "RNN", weights, None, {"activations": [ACTIVATIONS[cell.activation]]}


def _lstm(cell: cells.LSTM, params: dict[str, np.ndarray]):
    """ONNX packs i, o, f, g, its peepholes i, o, f. Where gates are coupled, ``i = 1
    - sigmoid(a) = sigmoid(-a)``.
    """
    order, signs = (
        ([0, 2, 0, 1], (-1, 1, 1, 1))
        if cell.coupled_gates
        else ([0, 3, 1, 2], (1, 1, 1, 1))
    )

    def packed(name, blocks=cell.gates, order=order):
        return _packed(np.split(params[name], blocks, -1), order, signs)

    seen = [0, 1, 0] if cell.coupled_gates else [0, 2, 1]
    peephole = (
        packed("peephole_kernel", cell.gates - 1, seen) if cell.peephole else None
    )
    return (
        "LSTM",
        [packed("input_kernel"), packed("recurrent_kernel"), _biases(packed("bias"))],
        peephole,
        {},
    )


def _gru(cell: cells.GRU, params: dict[str, np.ndarray]):
    """ONNX packs z, r, n; its ``linear_before_reset`` is reset after, whose b_hn is
    the n block of the recurrent bias.
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


def _biases(inputs: np.ndarray, recurrent: np.ndarray | None = None) -> np.ndarray:
    """Those of x, then those of h."""
    return np.concatenate(
        [inputs, np.zeros_like(inputs) if recurrent is None else recurrent], -1
    )
