"""Conversion of weights from and to flax, linen and nnx.

The cells are SimpleCell, LSTMCell, OptimizedLSTMCell and GRUCell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..cells import GRU, LSTM
from ..core.arrays import is_array
from ..core.cell import Cell
from ..core.import_path import own_place
from ..core.layer import Layer
from ..core.types import Params, PyTree
from ..core.validation import describe
from ..layers.compose import Bidirectional, Stack
from ..layers.stochastic import Dropout
from .arithmetic import (
    check_dtypes,
    check_matrix,
    check_names,
    check_shapes,
    check_zero,
    concatenate_gates,
    on_device,
    split_gates,
)
from .flax_objects import NNX, Layout, converted, layout_of
from .structure import (
    BLOCKS,
    cells_of,
    check_distinct,
    check_same,
    checked_cell_params,
    set_cell_params,
    summary,
)


def from_flax(
    source: Any, layer: Cell | Layer | None = None
) -> tuple[Cell | Layer, Params]:
    """Convert the weights of flax cells to a jaxrnn layer and its parameters.

    flax's carry (c, h) corresponds to `LSTMState` (h, c). linen's GRUCell has the bias
    b_hn, as the equations of its docstring and of `GRU` do; nnx's GRUCell has none, so
    it becomes zeros.

    Args:
        source: an nnx cell, RNN or Bidirectional; the same of linen, bound by
            ``module.bind(variables)``; or a list of these (a `stack`). Or plain arrays:
            the dict of the parameters of one cell or RNN (with or without ``"params"``
            and ``"cell"`` around them; also the ``nnx.state`` of either), of the two of
            a Bidirectional, or a list of these for a stack.
        layer: for plain arrays, the jaxrnn layer that they are for.

    Returns:
        ``(layer, params)``.

    Raises:
        TypeError, ValueError: for options that compute something else (other
            activations, residual, reverse, a merge_fn), and arrays that do not fit.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.GRU(2)
        >>> arrays = jaxrnn.interop.to_flax(layer, layer.init(jax.random.key(0), 3))
        >>> layer, params = jaxrnn.interop.from_flax(arrays, layer)
        >>> print(params["input_kernel"].shape)
        (3, 6)
    """
    where = "from_flax"
    if layer is not None:
        return layer, set_cell_params(layer, _read_tree(where, layer, source), where)
    if isinstance(source, Mapping):
        raise TypeError(
            f"{where}: plain arrays do not tell what they are for: pass layer=, such "
            f"as jaxrnn.LSTM(16)"
        )
    layer, modules = converted(where, source)
    trees = [_tree(where, module) for module in modules]
    return layer, set_cell_params(
        layer,
        [
            _read(where, cell, tree)
            for cell, tree in zip(cells_of(layer, where), trees, strict=True)
        ],
        where,
    )


def to_flax(layer: Cell | Layer, params: Params, *, into: Any = None) -> Any:
    """Convert the parameters of a layer to flax's layout: inverse of `from_flax`.

    Args:
        layer: `Elman`, `LSTM` or `GRU` (with reset_after), a `bidirectional` of these,
            or a stack.
        params: the parameters of ``layer``.
        into: None returns linen's dict: for a cell ``{"ii": {"kernel": ...}, ...}``
            (for ``nn.RNN`` put it under ``"cell"``); for a bidirectional layer the dict
            of ``nn.Bidirectional``; for a stack a list. An nnx module, or a list of
            modules, is loaded and returned; an nnx GRUCell has no b_hn, which must then
            be zero.

    Returns:
        The dict or list of arrays, or ``into``.

    Raises:
        TypeError, ValueError: if flax has no such cell, or ``into`` does not fit.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.Elman(2)
        >>> arrays = jaxrnn.interop.to_flax(cell, cell.init(jax.random.key(0), 3))
        >>> print(jax.tree.map(lambda array: array.shape, arrays))
        {'h': {'kernel': (2, 2)}, 'i': {'bias': (2,), 'kernel': (3, 2)}}
    """
    where = "to_flax"
    pairs = checked_cell_params(layer, params, where)
    if into is None:
        return _build(layer, iter([_write(where, *pair, Layout()) for pair in pairs]))
    other, modules = converted(where, into)
    if any(type(module).__module__ != NNX for module in modules):
        raise TypeError(
            f"{where}: linen modules hold no weights: leave out into, and apply the "
            f"module to the returned dict"
        )
    check_same(where, layer, other)
    check_distinct(
        where,
        [part for module in modules for part in _maps(where, module).values()],
    )
    planned = []
    for k, (pair, module) in enumerate(zip(pairs, modules, strict=True)):
        new, current = (
            _flat(_write(where, *pair, layout_of(module))),
            _flat(_tree(where, module)),
        )
        check_names(f"{where}: cell {k}", new, current)
        shapes = {name: tuple(value.shape) for name, value in current.items()}
        check_shapes(
            f"{where}: cell {k}", new, shapes, "The nnx module's are the expected ones"
        )
        check_dtypes(
            f"{where}: cell {k}",
            {f"{name} of the parameters": value for name, value in new.items()}
            | current,
        )
        planned += [(module, name, value) for name, value in new.items()]
    # All checks come before the first write, so that a refused conversion leaves the
    # modules unchanged.
    for module, name, value in planned:
        map_name, part = name.split(".")
        linear = _maps(where, module)[map_name]
        (linear.kernel if part == "kernel" else linear.bias)[...] = value
    return into


def _tree(where: str, module: Any) -> dict[str, Any]:
    """Return the arrays of a flax cell."""
    if type(module).__module__ != NNX:
        if module.scope is None:
            raise ValueError(
                f"{where}: a linen module holds no weights: bind it, "
                f"module.bind(variables), or pass the dict, with layer="
            )
        return module.variables["params"]
    maps = _maps(where, module)
    for name, linear in maps.items():
        own = (type(linear).__module__, type(linear).__name__) == (
            "flax.nnx.nn.linear",
            "Linear",
        )
        promotes = own and own_place(linear.promote_dtype)[0] == "flax.nnx.nn.dtypes"
        if not promotes or linear.dot_general is not jax.lax.dot_general:
            raise ValueError(
                f"{where}: {name} of {type(module).__name__} is not the nnx.Linear "
                f"that the cell makes, but has another class, dot_general "
                "or promote_dtype, which no jaxrnn cell has"
            )
    parts = {
        name: {"kernel": linear.kernel, "bias": linear.bias}
        for name, linear in maps.items()
    }
    return {
        name: {part: value[...] for part, value in own.items() if value is not None}
        for name, own in parts.items()
    }


def _maps(where: str, module: Any) -> dict[str, Any]:
    """Return the linear maps of an nnx cell, which are its attributes, by name."""
    names = layout_of(module).maps(converted(where, module)[0])
    return {name: vars(module)[name] for each in names for name in each}


def _unwrapped(tree: PyTree) -> Any:
    """Remove the wrappers around the parameters of a cell.

    These are ``params``, the name of the cell in an RNN, and the key streams that
    ``nnx.state`` returns beside parameters.
    """
    if isinstance(tree, Mapping) and len(tree) > 1 and "rngs" in tree:
        tree = {name: own for name, own in tree.items() if name != "rngs"}
    if (
        isinstance(tree, Mapping)
        and len(tree) == 1
        and next(iter(tree)) in ("params", "cell")
    ):
        (tree,) = tree.values()
        return _unwrapped(tree)
    return tree


def _read_tree(where: str, layer: Cell | Layer, tree: PyTree) -> list[dict[str, Any]]:
    """Convert plain arrays, structured as the layer, to the parameters of each cell."""
    if isinstance(layer, Stack) and len(cells_of(layer, where)) > 1:
        parts = [part for part in layer.layers if not isinstance(part, Dropout)]
        if not isinstance(tree, (list, tuple)) or len(tree) != len(parts):
            received = (
                f"a list of {len(tree)}"
                if isinstance(tree, (list, tuple))
                else describe(tree)
            )
            raise TypeError(
                f"{where}: for {summary(layer)} give a list of {len(parts)} dicts, not "
                f"{received}"
            )
        return [
            own
            for part, each in zip(parts, tree, strict=True)
            for own in _read_tree(where, part, each)
        ]
    if isinstance(layer, Stack):
        (layer,) = [part for part in layer.layers if not isinstance(part, Dropout)]
    tree = _unwrapped(
        tree[0] if isinstance(tree, (list, tuple)) and len(tree) == 1 else tree
    )
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"{where}: for {summary(layer)} give a dict of arrays, not {describe(tree)}"
        )
    if isinstance(layer, Bidirectional):
        check_names(where, tree, ("forward_rnn", "backward_rnn"), _numbered(tree))
        return _read_tree(where, layer.forward, tree["forward_rnn"]) + _read_tree(
            where, layer.backward, tree["backward_rnn"]
        )
    return [_read(where, layer, tree)]


def _numbered(tree: Mapping[str, Any]) -> str:
    """Return a hint for cells made in a compact linen module.

    Their numbers tell the order in which they were made, not their direction.
    """
    numbered = [name for name in sorted(tree) if name.rpartition("_")[2].isdigit()]
    if len(numbered) != 2 or len(tree) != 2:
        return ""
    one, other = numbered
    return (
        "A compact linen module numbers its cells as they are made: if forward was "
        "first, pass "
        f"{{'forward_rnn': tree[{one!r}], 'backward_rnn': tree[{other!r}]}}"
    )


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten to ``{"ii.kernel": array}``; leaves may be arrays or nnx variables."""
    flat = {}
    for name, own in tree.items():
        for part, value in own.items() if isinstance(own, Mapping) else [("", own)]:
            flat[f"{name}.{part}".rstrip(".")] = (
                value[...] if is_array(value) else value
            )
    return flat


def _shapes(cell: Any, layout: Layout, inputs: int) -> dict[str, tuple[int, ...]]:
    """Return the expected shape of each array of a cell."""
    H, (of_inputs, of_states) = cell.hidden_size, layout.maps(cell)
    width = BLOCKS[type(cell)] * H // len(of_inputs)
    shapes = {f"{name}.kernel": (inputs, width) for name in of_inputs} | {
        f"{name}.kernel": (H, width) for name in of_states
    }
    shapes |= {f"{name}.bias": (width,) for name in layout.biased(cell)}
    return shapes | (
        {"hn.bias": (H,)} if isinstance(cell, GRU) and not layout.packed else {}
    )


def _read(where: str, cell: Any, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the arrays of one cell to its parameters."""
    _check_cell(where, cell)
    arrays = _flat(tree)
    layout = Layout(packed="dense_i.kernel" in arrays, nnx="if_.kernel" in arrays)
    of_inputs, of_states = layout.maps(cell)
    first = f"{of_inputs[0]}.kernel"
    check_names(
        where,
        arrays,
        _shapes(cell, layout, 0),
        f"These are the names of {summary(cell)}",
    )
    check_dtypes(where, arrays)
    check_matrix(where, first, arrays[first])
    check_shapes(where, arrays, _shapes(cell, layout, arrays[first].shape[0]))
    params = {
        "input_kernel": concatenate_gates(
            [arrays[f"{name}.kernel"] for name in of_inputs]
        ),
        "recurrent_kernel": concatenate_gates(
            [arrays[f"{name}.kernel"] for name in of_states]
        ),
        "bias": concatenate_gates(
            [arrays[f"{name}.bias"] for name in layout.biased(cell)]
        ),
    }
    if isinstance(cell, GRU):
        params["recurrent_bias"] = arrays.get(
            "hn.bias", np.zeros(cell.hidden_size, params["bias"].dtype)
        )
    return on_device(params)


def _write(
    where: str, cell: Any, params: Mapping[str, Any], layout: Layout
) -> dict[str, Any]:
    """Convert the parameters of one cell to flax's arrays."""
    _check_cell(where, cell)
    check_dtypes(where, params)
    if isinstance(cell, GRU) and layout.packed:
        check_zero(
            where,
            "recurrent_bias",
            params["recurrent_bias"],
            "flax's nnx.GRUCell has no b_hn to hold it (linen's has)",
        )
    of_inputs, of_states = layout.maps(cell)
    tree: dict[str, Any] = {name: {} for name in (*of_inputs, *of_states)}
    sources = {
        "input_kernel": (of_inputs, "kernel"),
        "recurrent_kernel": (of_states, "kernel"),
        "bias": (layout.biased(cell), "bias"),
    }
    for entry, (names, part) in sources.items():
        for name, block in zip(
            names, split_gates(params[entry], len(names)), strict=True
        ):
            tree[name] |= on_device({part: block})
    if isinstance(cell, GRU) and not layout.packed:
        tree["hn"] |= on_device({"bias": params["recurrent_bias"]})
    return tree


def _check_cell(where: str, cell: Any) -> None:
    """Refuse a cell that flax does not have."""
    if isinstance(cell, GRU) and not cell.reset_after:
        raise ValueError(
            f"{where}: {summary(cell)} resets before the matrix product and flax's "
            f"GRUCell after it: different functions, "
            "whose weights do not convert"
        )
    if isinstance(cell, LSTM) and cell.projection_size is not None:
        raise ValueError(
            f"{where}: flax's LSTM cells have no projection, but the layer has "
            f"{summary(cell)}"
        )


def _build(layer: Cell | Layer, cell_params: Any) -> Any:
    """Structure the dicts of the cells as linen's parameters.

    A list for a stack, ``forward_rnn`` and ``backward_rnn`` for a bidirectional layer,
    else the dict of a cell.
    """
    if isinstance(layer, Stack):
        return [
            _build(part, cell_params)
            for part in layer.layers
            if not isinstance(part, Dropout)
        ]
    if isinstance(layer, Bidirectional):
        parts = {"forward_rnn": layer.forward, "backward_rnn": layer.backward}
        return {
            name: {"cell": _build(part, cell_params)} for name, part in parts.items()
        }
    return next(cell_params)
