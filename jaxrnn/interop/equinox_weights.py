"""Weights from Equinox and back: LSTMCell and GRUCell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from ..cells import GRU, LSTM
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


def from_equinox(source: Any, layer: Any = None) -> Any:
    """The weights of Equinox cells as a jaxrnn layer and its parameters. Only kernels
    are transposed.

    Args:
        source: an ``eqx.nn.LSTMCell`` or ``GRUCell``; or its arrays, a dict of
            weight_ih, weight_hh, bias and, of a GRU, bias_n (no biases for
            ``use_bias=False``); or a list of either, cell by cell.
        layer: the jaxrnn layer that the cells make up. Default: the cell, or a `stack`
            of the list.

    Returns:
        ``(layer, params)``. Where Equinox calls ``cell(x, state)`` without a batch,
        jaxrnn walks ``(T, *B, D)``.
    """
    where = "from_equinox"
    each = [
        _read(f"{where}: cell {k}", one)
        for k, one in enumerate(
            source if isinstance(source, (list, tuple)) else [source]
        )
    ]
    if not each:
        raise ValueError(f"{where}: an empty list of cells came")
    found = [cell for cell, _ in each]
    made = (
        layer if layer is not None else found[0] if len(found) == 1 else stack(*found)
    )
    for cell, other in zip(found, cells_of(made, where)):
        if summary(cell) != summary(other):
            raise ValueError(
                f"{where}: the layer is {summary(made)}, but the arrays are those of "
                f"{', '.join(map(summary, found))}"
            )
    return made, set_cell_params(made, [own for _, own in each], where)


def to_equinox(layer: Any, params: Any, *, into: Any = None) -> Any:
    """The parameters of a layer in Equinox's layout: the inverse of `from_equinox`.

    Args:
        layer: `LSTM`, `GRU` (reset after), `bidirectional` ones and stacks of these.
        into: nothing: return a dict of arrays, or a list of one a cell where the layer
            has several. An Equinox cell, or a list: return copies that hold these
            weights.
    """
    where = "to_equinox"
    dicts = [
        _write(where, cell, own)
        for cell, own in checked_cell_params(layer, params, where)
    ]
    alone = len(dicts) == 1
    if into is None:
        return dicts[0] if alone else dicts
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
    """An Equinox cell's arrays by name."""
    kind = type(cell)
    if not kind.__module__.startswith("equinox.") or kind.__name__ not in KINDS:
        raise TypeError(
            f"{where}: expected eqx.nn.LSTMCell, eqx.nn.GRUCell or a dict of their "
            f"arrays, but it is {describe(cell)}; of a "
            "class of your own that computes the same, pass the arrays"
        )
    return {
        name: getattr(cell, name)
        for name in NAMES
        if getattr(cell, name, None) is not None
    }


def _expected(cell: Any, inputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
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
    """The cell, told by its gate blocks, and its parameters."""
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


def _write(where: str, cell: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """One cell's arrays."""
    if (
        type(cell) not in KINDS.values()
        or getattr(cell, "projection_size", None) is not None
    ):
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
    """A copy of ``cell`` with these arrays."""
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
