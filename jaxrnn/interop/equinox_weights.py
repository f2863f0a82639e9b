"""Conversion of weights from and to Equinox: LSTMCell and GRUCell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from ..cells import GRU, LSTM
from ..core.cell import Cell
from ..core.layer import Layer
from ..core.records import fields_of
from ..core.types import Params
from ..core.validation import describe
from ..layers import stack
from .arithmetic import (
    check_dtypes,
    check_matrix,
    check_names,
    check_shapes,
    check_zero,
    on_device,
    zero_biases,
)
from .structure import BLOCKS, cells_of, checked_cell_params, set_cell_params, summary

KINDS = {"LSTMCell": LSTM, "GRUCell": GRU}
NAMES = {
    "weight_ih": "input_kernel",
    "weight_hh": "recurrent_kernel",
    "bias": "bias",
    "bias_n": "recurrent_bias",
}


def from_equinox(
    source: Any, layer: Cell | Layer | None = None
) -> tuple[Cell | Layer, Params]:
    """Convert the weights of Equinox cells to a jaxrnn layer and its parameters.

    Only the kernels are transposed; the order of the gates is the same. Equinox calls
    ``cell(x, state)`` without a batch; jaxrnn takes sequences ``(T, *B, D)``.

    Args:
        source: an ``eqx.nn.LSTMCell`` or ``GRUCell``; or its arrays, a dict of
            weight_ih, weight_hh, bias and, for a GRU, bias_n (no biases for
            ``use_bias=False``); or a list of either, one per cell.
        layer: the jaxrnn layer that the cells belong to. The default is the cell, or a
            `stack` of the list.

    Returns:
        ``(layer, params)``.

    Raises:
        TypeError: if ``source`` is not an Equinox cell or a dict of arrays, or dtypes
            are mixed.
        ValueError: if names or shapes do not fit.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.LSTM(2)
        >>> arrays = jaxrnn.interop.to_equinox(layer, layer.init(jax.random.key(0), 3))
        >>> layer, params = jaxrnn.interop.from_equinox(arrays)
        >>> print(type(layer).__name__, params["input_kernel"].shape)
        LSTM (3, 8)
    """
    where = "from_equinox"
    read = [
        _read(f"{where}: cell {k}", one)
        for k, one in enumerate(
            source if isinstance(source, (list, tuple)) else [source]
        )
    ]
    if not read:
        raise ValueError(f"{where}: the list of cells is empty")
    cells = [cell for cell, _ in read]
    result = (
        layer if layer is not None else cells[0] if len(cells) == 1 else stack(*cells)
    )
    for cell, other in zip(cells, cells_of(result, where)):
        if summary(cell) != summary(other):
            raise ValueError(
                f"{where}: the layer is {summary(result)}, but the arrays are those of "
                f"{', '.join(map(summary, cells))}"
            )
    return result, set_cell_params(result, [own for _, own in read], where)


def to_equinox(layer: Cell | Layer, params: Params, *, into: Any = None) -> Any:
    """Convert the parameters of a layer to Equinox's layout.

    This is the inverse of `from_equinox`.

    Args:
        layer: `LSTM` or `GRU` (with reset_after), a `bidirectional` of these, or a
            stack.
        params: the parameters of ``layer``.
        into: None returns a dict of arrays, or a list with one dict per cell if the
            layer has several. An Equinox cell, or a list of cells, returns copies that
            hold these weights.

    Returns:
        The dict or dicts, or the cell or cells.

    Raises:
        TypeError, ValueError: if Equinox has no such cell, or ``into`` does not fit.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.LSTM(2)
        >>> arrays = jaxrnn.interop.to_equinox(cell, cell.init(jax.random.key(0), 3))
        >>> print({name: array.shape for name, array in sorted(arrays.items())})
        {'bias': (8,), 'weight_hh': (8, 2), 'weight_ih': (8, 3)}
    """
    where = "to_equinox"
    dicts = [
        _write(where, cell, own)
        for cell, own in checked_cell_params(layer, params, where)
    ]
    single = len(dicts) == 1
    if into is None:
        return dicts[0] if single else dicts
    cells = list(into) if isinstance(into, (list, tuple)) else [into]
    if len(cells) != len(dicts):
        raise ValueError(
            f"{where}: {summary(layer)} has {len(dicts)} cells, but into holds "
            f"{len(cells)}"
        )
    loaded = [
        _load(f"{where}: cell {k}", *pair)
        for k, pair in enumerate(zip(cells, dicts, strict=True))
    ]
    return loaded if isinstance(into, (list, tuple)) else loaded[0]


def _fields(where: str, cell: Any) -> dict[str, Any]:
    """Return the arrays of an Equinox cell by name."""
    kind = type(cell)
    if not kind.__module__.startswith("equinox.") or kind.__name__ not in KINDS:
        raise TypeError(
            f"{where}: expected eqx.nn.LSTMCell, eqx.nn.GRUCell or a dict of their "
            f"arrays, but it is {describe(cell)}; for a class of your own that "
            f"computes the same, pass the arrays"
        )
    fields = fields_of(cell)  # Equinox's modules are dataclasses
    return {name: fields[name] for name in NAMES if fields.get(name) is not None}


def _expected(cell: Any, inputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of a cell."""
    rows, H = BLOCKS[type(cell)] * cell.hidden_size, cell.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (rows, inputs),
        "weight_hh": (rows, H),
    }
    if bias:
        shapes["bias"] = (rows,)
        if isinstance(cell, GRU):
            shapes["bias_n"] = (H,)
    return shapes


def _read(where: str, source: Any) -> tuple[Any, dict[str, Any]]:
    """Infer the cell from the number of gate blocks, and convert its parameters."""
    arrays = dict(source) if isinstance(source, Mapping) else _fields(where, source)
    check_names(
        where, arrays.keys() & {"weight_ih", "weight_hh"}, ("weight_ih", "weight_hh")
    )
    check_dtypes(where, arrays)
    for name in ("weight_ih", "weight_hh"):
        check_matrix(where, name, arrays[name])
    rows, H = arrays["weight_hh"].shape
    kind = {3 * H: GRU, 4 * H: LSTM}.get(rows)
    if kind is None:
        raise ValueError(
            f"{where}: weight_hh has shape {(rows, H)}; expected 3H rows (GRUCell) or "
            f"4H (LSTMCell) for H = {H} columns"
        )
    cell = kind(H)
    expected = _expected(
        cell,
        arrays["weight_ih"].shape[1],
        any(name.startswith("bias") for name in arrays),
    )
    check_names(where, arrays, expected)
    check_shapes(where, arrays, expected)
    params = {NAMES[name]: arrays[name].T for name in expected}
    if "bias" not in params:
        params |= zero_biases(cell, params["recurrent_kernel"])
    return cell, on_device(params)


def _write(where: str, cell: Cell | Layer, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays of one cell."""
    projected = isinstance(cell, LSTM) and cell.projection_size is not None
    if type(cell) not in KINDS.values() or projected:
        raise ValueError(
            f"{where}: Equinox has LSTMCell and GRUCell, and neither is {summary(cell)}"
        )
    if isinstance(cell, GRU) and not cell.reset_after:
        raise ValueError(
            f"{where}: {summary(cell)} resets before the matrix product and Equinox's "
            f"GRUCell after it: different functions, "
            "whose weights do not convert"
        )
    arrays = on_device(
        {name: params[own].T for name, own in NAMES.items() if own in params}
    )
    check_dtypes(where, params)
    return arrays


def _load(where: str, cell: Any, arrays: Mapping[str, Any]) -> Any:
    """Return a copy of ``cell`` with these arrays."""
    fields = _fields(where, cell)
    for name in arrays.keys() - fields.keys():
        check_zero(where, name, arrays[name], "the Equinox cell has none")
    check_names(
        where,
        [name for name in fields if name in arrays],
        fields,
        "The Equinox cell's are the expected ones",
    )
    expected = {name: tuple(value.shape) for name, value in fields.items()}
    check_shapes(where, arrays, expected, "The Equinox cell's are the expected ones")
    check_dtypes(
        where, {f"{name} of the parameters": arrays[name] for name in fields} | fields
    )
    leaves, structure = jax.tree_util.tree_flatten_with_path(cell)
    named = [(path[-1].name, leaf) for path, leaf in leaves]
    return jax.tree.unflatten(
        structure, [arrays.get(name, leaf) for name, leaf in named]
    )
