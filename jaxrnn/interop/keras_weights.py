"""Conversion of weights from and to Keras 3.

Supported are SimpleRNN, LSTM, GRU in both forms, their cells, Bidirectional, and
stacks of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..cells import GRU, LSTM
from ..core.arrays import is_array
from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Params
from ..core.validation import describe
from .arithmetic import (
    check_concrete,
    check_dtypes,
    check_matrix,
    check_no_biases,
    check_shapes,
    fold_biases,
    on_device,
    reorder,
    unfold_biases,
    zero_biases,
)
from .keras_objects import converted, kind_of
from .structure import (
    BLOCKS,
    cells_of,
    check_distinct,
    check_same,
    checked_cell_params,
    set_cell_params,
    summary,
)

NAMES = ("kernel", "recurrent_kernel", "bias")
# Keras packs the gates z, r, h of a GRU; the order is its own inverse.
TURNED = (1, 0, 2)


def from_keras(
    source: Any, layer: Cell | Layer | None = None
) -> tuple[Cell | Layer, Params]:
    """Convert the weights of Keras layers to a jaxrnn layer and its parameters.

    The gate blocks of an LSTM have jaxrnn's order (i, f, c, o). A GRU's z, r, h become
    r, z, n, and its two biases of r and z are added. Sequences are ``(T, *B, D)``. The
    layer returns every step, whatever ``return_sequences`` is. The state is the carry,
    in the order h, c.

    Args:
        source: a layer, a cell, a Bidirectional (concat or sum), a Sequential or a list
            of these; or plain weights, the flat list of ``get_weights()``: kernel,
            recurrent_kernel and bias of each cell (without any bias for
            ``use_bias=False``).
        layer: for plain weights, the jaxrnn layer that they are for.

    Returns:
        ``(layer, params)``.

    Raises:
        TypeError, ValueError: for options that compute something else (other
            activations, go_backwards, stateful, dropout, other merges), layers that are
            not built, and weights that do not fit.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.LSTM(2)
        >>> weights = jaxrnn.interop.to_keras(layer, layer.init(jax.random.key(0), 3))
        >>> layer, params = jaxrnn.interop.from_keras(weights, layer)
        >>> print(params["input_kernel"].shape)
        (3, 8)
    """
    where = "from_keras"
    if layer is None:
        if _holds_arrays(source):
            raise TypeError(
                f"{where}: plain weights do not tell which layer they are for: pass "
                f"layer=, such as jaxrnn.LSTM(16)"
            )
        layer, own = converted(where, source)
        groups = [
            [np.asarray(variable) for variable in _variables(cell)] for cell in own
        ]
    else:
        groups = _grouped(where, source, layer)
    cells = cells_of(layer, where)
    return layer, set_cell_params(
        layer,
        [
            _read(where, *pair, k)
            for k, pair in enumerate(zip(cells, groups, strict=True))
        ],
        where,
    )


def to_keras(
    layer: Cell | Layer, params: Params, *, into: Any = None, bias: bool | None = None
) -> Any:
    """Convert the parameters of a layer to Keras's layout: inverse of `from_keras`.

    Args:
        layer: `Elman`, `LSTM` or `GRU` of either form, a `bidirectional` of these, or a
            stack.
        params: the parameters of ``layer``.
        into: None returns the flat list of NumPy arrays that ``set_weights`` takes. A
            built Keras object, of a kind that `from_keras` takes, is loaded and
            returned.
        bias: False leaves out the biases, which must then be zero. Not allowed with
            ``into``, which determines it.

    Returns:
        The list of arrays, or ``into``.

    Raises:
        TypeError, ValueError: if Keras has no such layer, or ``into`` does not fit.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.GRU(2)
        >>> weights = jaxrnn.interop.to_keras(cell, cell.init(jax.random.key(0), 3))
        >>> print([array.shape for array in weights])
        [(3, 6), (2, 6), (2, 6)]
    """
    where = "to_keras"
    check_concrete(where, params)
    pairs = checked_cell_params(layer, params, where)
    if into is None:
        return [
            array for pair in pairs for array in _write(where, *pair, bias is not False)
        ]
    if bias is not None:
        raise ValueError(
            f"{where}: the object to load determines whether there are biases: leave "
            f"out bias"
        )
    other, cells = converted(where, into)
    check_same(where, layer, other)
    planned: list[tuple[Any, Any]] = []
    for k, (pair, cell) in enumerate(zip(pairs, cells, strict=True)):
        arrays, variables = _write(where, *pair, cell.use_bias), _variables(cell)
        named, expected = (
            dict(zip(NAMES, arrays)),
            {name: tuple(v.shape) for name, v in zip(NAMES, variables)},
        )
        check_shapes(
            f"{where}: cell {k}",
            named,
            expected,
            "The Keras object's are the expected ones",
        )
        for name, array, variable in zip(NAMES, arrays, variables):
            if str(array.dtype) != variable.dtype:
                raise TypeError(
                    f"{where}: the Keras object is {variable.dtype}, the parameters "
                    f"are {array.dtype} ({name}): cast one"
                )
        planned += zip(variables, arrays)
    check_distinct(where, [variable for variable, _ in planned])
    # All checks come before the first write, so that a refused conversion leaves the
    # object unchanged.
    for variable, array in planned:
        variable.assign(array)
    return into


def _variables(cell: Any) -> list[Any]:
    """Return kernel, recurrent_kernel and, unless use_bias is False, bias."""
    return [cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else [])]


def _holds_arrays(source: Any) -> bool:
    """Return whether ``source`` is a list of plain arrays."""
    return (
        isinstance(source, (list, tuple))
        and bool(source)
        and not any(map(kind_of, source))
        and is_array(source[0])
    )


def _grouped(where: str, source: Any, layer: Cell | Layer) -> list[list[Any]]:
    """Split the flat list of plain weights into one list per cell."""
    if not isinstance(source, (list, tuple)) or any(map(kind_of, source)):
        received = (
            "Keras objects" if isinstance(source, (list, tuple)) else describe(source)
        )
        raise TypeError(
            f"{where}: with layer=, give the plain weights, a list as of "
            f"get_weights(), not {received}"
        )
    num_cells = len(cells_of(layer, where))
    per_cell = len(source) / max(num_cells, 1)
    if per_cell not in (2, 3):
        raise ValueError(
            f"{where}: {summary(layer)} has cells: {num_cells}; each has kernel, "
            f"recurrent_kernel and bias, or all are without "
            f"bias: {3 * num_cells} or {2 * num_cells} arrays, but got {len(source)}"
        )
    return [
        list(source[k * int(per_cell) : (k + 1) * int(per_cell)])
        for k in range(num_cells)
    ]


def _read(where: str, cell: Any, arrays: Sequence[Any], place: int) -> dict[str, Any]:
    """Convert the arrays of one cell to its parameters."""
    where, named = f"{where}: cell {place}", dict(zip(NAMES, arrays))
    _check_cell(where, cell)
    check_dtypes(where, named)
    check_matrix(where, "kernel", named["kernel"])
    H, rows = cell.hidden_size, BLOCKS[type(cell)] * cell.hidden_size
    two_biases = isinstance(cell, GRU) and cell.reset_after
    expected = {
        "kernel": (named["kernel"].shape[0], rows),
        "recurrent_kernel": (H, rows),
        "bias": (2, rows) if two_biases else (rows,),
    }
    hint = (
        "A GRU's bias is (2, 3H) with reset_after=True and (3H,) without; the two "
        "forms do not convert into each other"
    )
    check_shapes(
        where,
        named,
        {name: expected[name] for name in named},
        hint if isinstance(cell, GRU) else "",
    )
    named = {name: _turned(cell, array) for name, array in named.items()}
    params = {
        "input_kernel": named["kernel"],
        "recurrent_kernel": named["recurrent_kernel"],
    }
    if "bias" not in named:
        return on_device(params | zero_biases(cell, params["recurrent_kernel"]))
    return on_device(
        params
        | (
            fold_biases(where, cell, named["bias"][0], named["bias"][1])
            if two_biases
            else {"bias": named["bias"]}
        )
    )


def _write(
    where: str, cell: Cell | Layer, params: Mapping[str, Any], bias: bool
) -> list[Any]:
    """Convert the parameters of one cell to Keras's arrays."""
    _check_cell(where, cell)
    arrays = [params["input_kernel"], params["recurrent_kernel"]]
    if bias:
        two_biases = isinstance(cell, GRU) and cell.reset_after
        arrays.append(
            np.stack([np.asarray(b) for b in unfold_biases(params)])
            if two_biases
            else params["bias"]
        )
    else:
        check_no_biases(where, params, "the Keras layer")
    arrays = [_turned(cell, np.array(array)) for array in arrays]
    check_dtypes(where, dict(zip(NAMES, arrays)))
    return arrays


def _turned(cell: Cell | Layer, packed: Any) -> Any:
    """Exchange the gates r and z of a GRU."""
    return reorder(packed, TURNED) if isinstance(cell, GRU) else packed


def _check_cell(where: str, cell: Cell | Layer) -> None:
    """Refuse a cell that Keras does not have."""
    if isinstance(cell, LSTM) and cell.projection_size is not None:
        raise ValueError(f"{where}: {summary(cell)}: no Keras LSTM has a projection")
