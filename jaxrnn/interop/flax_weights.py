"""Weights from flax and back: SimpleCell, LSTMCell, OptimizedLSTMCell and GRUCell,
of linen and of nnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..cells import GRU, LSTM
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


def from_flax(source: Any, layer: Any = None) -> Any:
    """The weights of flax cells as a jaxrnn layer and its parameters. flax's (c, h) is
    `LSTMState` (h, c).

    linen's GRUCell has the bias b_hn that its docstring and ours have; nnx's has none,
    so it becomes zeros.

    Args:
        source: an nnx cell, RNN or Bidirectional; the same of linen, bound:
            ``module.bind(variables)``; a list of these (a `stack`). Or plain arrays:
            the dict of one cell's or RNN's parameters (with or without ``"params"`` and
            ``"cell"`` around them; also ``nnx.state`` of either), of a Bidirectional's
            two, or a list of these for a stack.
        layer: for plain arrays, the jaxrnn layer they are for.

    Returns:
        ``(layer, params)``.

    Raises:
        ValueError, TypeError: options that compute something else (other activations,
            residual, reverse, a merge_fn), arrays that do not fit.
    """
    where = "from_flax"
    if layer is not None:
        return layer, set_cell_params(layer, _read_tree(where, layer, source), where)
    if isinstance(source, Mapping):
        raise TypeError(
            f"{where}: plain arrays do not tell what they are for: say layer=, such as "
            f"jaxrnn.LSTM(16)"
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


def to_flax(layer: Any, params: Any, *, into: Any = None) -> Any:
    """The parameters of a layer in flax's layout: the inverse of `from_flax`.

    Args:
        layer: `Elman`, `LSTM`, `GRU` (reset after), `bidirectional` ones, stacks of
            these.
        into: nothing: return linen's dict: of a cell, ``{"ii": {"kernel": ...}, ...}``,
            for ``nn.RNN`` put under ``"cell"``; of a bidirectional layer, that of
            ``nn.Bidirectional``; of a stack, a list. An nnx module, or a list: load
            them, return it; an nnx GRUCell has no b_hn, which must then be zero.
    """
    where = "to_flax"
    pairs = checked_cell_params(layer, params, where)
    if into is None:
        return _build(layer, iter([_write(where, *pair, Layout()) for pair in pairs]))
    other, modules = converted(where, into)
    if any(type(module).__module__ != NNX for module in modules):
        raise TypeError(
            f"{where}: linen modules hold no weights: leave into out, and apply the "
            f"module to the dict that comes back"
        )
    check_same(where, layer, other)
    check_distinct(
        where,
        [getattr(module, name) for module in modules for name in _maps(where, module)],
    )
    planned = []
    for k, (pair, module) in enumerate(zip(pairs, modules, strict=True)):
        new, held = (
            _flat(_write(where, *pair, layout_of(module))),
            _flat(_tree(where, module)),
        )
        check_names(f"{where}: cell {k}", new, held)
        shapes = {name: tuple(value.shape) for name, value in held.items()}
        check_shapes(
            f"{where}: cell {k}", new, shapes, "The nnx module's are the expected ones"
        )
        check_dtypes(
            f"{where}: cell {k}",
            {f"{name} of the parameters": value for name, value in new.items()} | held,
        )
        planned += [(module, name, value) for name, value in new.items()]
    for module, name, value in planned:
        map_name, part = name.split(".")
        getattr(getattr(module, map_name), part)[...] = value
    return into


def _tree(where: str, module: Any) -> dict[str, Any]:
    """A flax cell's arrays."""
    if type(module).__module__ != NNX:
        if module.scope is None:
            raise ValueError(
                f"{where}: a linen module holds no weights: bind it, "
                f"module.bind(variables), or hand in the dict, with layer="
            )
        return module.variables["params"]
    maps = {name: getattr(module, name) for name in _maps(where, module)}
    for name, each in maps.items():
        own = (type(each).__module__, type(each).__name__) == (
            "flax.nnx.nn.linear",
            "Linear",
        )
        promotes = (
            own
            and getattr(each.promote_dtype, "__module__", "") == "flax.nnx.nn.dtypes"
        )
        if not promotes or each.dot_general is not jax.lax.dot_general:
            raise ValueError(
                f"{where}: {name} of {type(module).__name__} is no nnx.Linear as the "
                f"cell makes it: another class, dot_general "
                "or promote_dtype, which no jaxrnn cell has"
            )
    parts = {
        name: {"kernel": each.kernel, "bias": each.bias} for name, each in maps.items()
    }
    return {
        name: {part: value[...] for part, value in own.items() if value is not None}
        for name, own in parts.items()
    }


def _maps(where: str, module: Any) -> list[str]:
    """The names of an nnx cell's linear maps."""
    return [
        name
        for each in layout_of(module).maps(converted(where, module)[0])
        for name in each
    ]


def _unwrapped(tree: Any) -> Any:
    """Without ``params``, the cell's name in an RNN, and the streams of keys that
    ``nnx.state`` gives beside parameters.
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


def _read_tree(where: str, layer: Any, tree: Any) -> list[dict[str, Any]]:
    """Plain arrays, walked as the layer is built: the parameters of each cell."""
    if isinstance(layer, Stack) and len(cells_of(layer, where)) > 1:
        parts = [part for part in layer.layers if not isinstance(part, Dropout)]
        if not isinstance(tree, (list, tuple)) or len(tree) != len(parts):
            came = (
                f"a list of {len(tree)}"
                if isinstance(tree, (list, tuple))
                else describe(tree)
            )
            raise TypeError(
                f"{where}: for {summary(layer)} give a list of {len(parts)} dicts, not "
                f"{came}"
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
    """A hint for cells made in a compact linen module, whose numbers tell the order
    they were made in, not their direction.
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
    """``{"ii.kernel": array}``, whether leaves are arrays or nnx variables."""
    flat = {}
    for name, own in tree.items():
        for part, value in own.items() if isinstance(own, Mapping) else [("", own)]:
            flat[f"{name}.{part}".rstrip(".")] = (
                value[...] if hasattr(value, "shape") else value
            )
    return flat


def _shapes(cell: Any, layout: Layout, inputs: int) -> dict[str, tuple[int, ...]]:
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
    """One cell's parameters."""
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
    """One cell's arrays."""
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


def _build(layer: Any, each: Any) -> Any:
    """linen's parameters: a list for a stack, ``forward_rnn`` and ``backward_rnn``
    for two directions, else a cell's dict.
    """
    if isinstance(layer, Stack):
        return [
            _build(part, each) for part in layer.layers if not isinstance(part, Dropout)
        ]
    if isinstance(layer, Bidirectional):
        parts = {"forward_rnn": layer.forward, "backward_rnn": layer.backward}
        return {name: {"cell": _build(part, each)} for name, part in parts.items()}
    return next(each)
