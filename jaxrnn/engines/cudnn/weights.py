"""Conversion of LSTM parameters to the flat weight vector of cuDNN, and back.

The vector contains, for every layer and every direction in it, the matrices
``W_ih (4H, D)`` and ``W_hh (4H, H)``, row by row. After all matrices come, in the same
order, the biases ``b_ih (4H,)`` and ``b_hh (4H,)``. The gates are ordered i, f, g, o,
as in `LSTM`. cuDNN adds its two biases, so the bias of `LSTM` is their sum: it is
packed as the first, and the second is zero.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core.types import Params
from ...core.validation import check_int, describe

NAMES = ("input_kernel", "recurrent_kernel", "bias")
DIRECTIONS = ("forward", "backward")


def pack_lstm(params: Params) -> Float[Array, " N"]:
    """Pack LSTM parameters into the flat weight vector of cuDNN.

    The function is linear, so its transpose unpacks gradients. A learned initial carry
    is left out, because cuDNN has no such weight.

    Args:
        params: the parameters of an `LSTM`, of a ``bidirectional`` pair, or of a
            ``stack`` of either.

    Raises:
        TypeError, ValueError: for parameters that are not those of plain LSTMs, of one
            number of units.
    """
    layers = _layers(params)
    _check_sizes(layers)
    parts = [part for layer in layers for part in layer]
    matrices = [part[name].T.ravel() for part in parts for name in NAMES[:2]]
    biases = [b for part in parts for b in (part["bias"], jnp.zeros_like(part["bias"]))]
    return jnp.concatenate([*matrices, *biases])


def unpack_lstm(
    weights: Float[Array, " N"],
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
) -> Params:
    """Unpack the flat weight vector of cuDNN; the inverse of `pack_lstm`.

    Args:
        weights: the flat vector.
        input_size: D.
        hidden_size: H.
        num_layers: the number of layers.
        bidirectional: whether each layer has two directions.

    Returns:
        The parameters of an `LSTM` or, if ``bidirectional``, of a bidirectional pair;
        for more than one layer, those of a ``stack``.

    Raises:
        ValueError: for a vector of another length, or sizes that are not positive.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.LSTM(4).init(jax.random.key(0), 3)
        >>> weights = pack_lstm(params)
        >>> weights.shape == (weight_count(3, 4),)
        True
        >>> sorted(unpack_lstm(weights, 3, 4))
        ['bias', 'input_kernel', 'recurrent_kernel']
    """
    expected = weight_count(input_size, hidden_size, num_layers, bidirectional)
    if tuple(weights.shape) != (expected,):
        raise ValueError(
            f"unpack_lstm: {num_layers} layer(s) of {hidden_size} units for "
            f"{input_size} features, "
            f"{'both directions' if bidirectional else 'one direction'}, have "
            f"({expected},) weights, but got {weights.shape}"
        )
    shapes = _shapes(input_size, hidden_size, num_layers, bidirectional)
    found: list[Any] = []
    start = 0
    for shape in shapes:
        size = math.prod(shape)
        found.append(weights[start : start + size].reshape(shape))
        start += size
    count = len(shapes) // 4
    matrices, biases = (
        [group[i : i + 2] for i in range(0, len(group), 2)]
        for group in (found[: 2 * count], found[2 * count :])
    )
    parts = [
        {"input_kernel": W.T, "recurrent_kernel": U.T, "bias": b + also}
        for (W, U), (b, also) in zip(matrices, biases, strict=True)
    ]
    layers: list[Params] = list(parts)
    if bidirectional:
        layers = [
            dict(zip(DIRECTIONS, pair, strict=True))
            for pair in zip(parts[::2], parts[1::2], strict=True)
        ]
    return (
        layers[0]
        if num_layers == 1
        else {f"layer_{i}": layer for i, layer in enumerate(layers)}
    )


def weight_count(
    input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = False
) -> int:
    """Return the length of the flat weight vector."""
    for name, size in {
        "input_size": input_size,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
    }.items():
        check_int("unpack_lstm", name, size, 1, 2**31 - 1, "cuDNN's sizes")
    return sum(
        map(math.prod, _shapes(input_size, hidden_size, num_layers, bidirectional))
    )


def _shapes(
    input_size: int, hidden_size: int, num_layers: int, bidirectional: bool
) -> list[tuple[int, ...]]:
    """Return the shapes of the arrays in the vector, in their order."""
    directions, G = (2 if bidirectional else 1), 4 * hidden_size
    matrices: list[tuple[int, ...]] = []
    for layer in range(num_layers):
        features = directions * hidden_size if layer else input_size
        matrices += [(G, features), (G, hidden_size)] * directions
    return matrices + [(G,)] * len(matrices)


def _layers(params: Params) -> list[list[Params]]:
    """Return the parameters of each LSTM, layer by layer, forward before backward."""
    names = set(params) if isinstance(params, dict) else set()
    if names and names == {f"layer_{i}" for i in range(len(names))}:
        layers = [
            _directions(params[f"layer_{i}"], f"params['layer_{i}']")
            for i in range(len(names))
        ]
    else:
        layers = [_directions(params, "params")]
    if len({len(layer) for layer in layers}) > 1:
        raise ValueError(
            "pack_lstm: some layers are bidirectional and some are not, but cuDNN's "
            "network is all the one or the other"
        )
    return layers


def _directions(params: Params, where: str) -> list[Params]:
    if isinstance(params, dict) and set(params) == set(DIRECTIONS):
        return [_lstm(params[name], f"{where}[{name!r}]") for name in DIRECTIONS]
    return [_lstm(params, where)]


def _lstm(params: Params, where: str) -> Params:
    names = set(params) if isinstance(params, dict) else set()
    if names - {"initial_carry"} == set(NAMES):
        return params
    came = f"a dict of {sorted(names)}" if names else describe(params)
    raise TypeError(
        f"pack_lstm: {where} are not an LSTM's (a dict of {sorted(NAMES)}), nor those "
        f"of a stack or bidirectional pair that "
        f"cuDNN has, but {came}: LSTMs with options, dropout between layers and other "
        f"cells have no place there"
    )


def _check_sizes(layers: list[list[Params]]) -> None:
    """Check that all LSTMs have one H, and fit the outputs of the layer below."""
    H, features = (
        layers[0][0]["recurrent_kernel"].shape[0],
        layers[0][0]["input_kernel"].shape[0],
    )
    for layer in layers:
        for part in layer:
            shapes = {
                "input_kernel": (features, 4 * H),
                "recurrent_kernel": (H, 4 * H),
                "bias": (4 * H,),
            }
            for name, shape in shapes.items():
                if tuple(part[name].shape) != shape:
                    raise ValueError(
                        f"pack_lstm: {name} has shape {tuple(part[name].shape)}, "
                        f"expected {shape}: cuDNN's layers and "
                        f"directions have one number of units, {H} here, four gates "
                        f"each, and the features of the layer below"
                    )
        features = len(layer) * H
