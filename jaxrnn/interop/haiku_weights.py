"""Conversion of weights from and to Haiku: VanillaRNN, LSTM and GRU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..cells import GRU, LSTM, Elman
from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Params
from ..core.validation import describe
from .arithmetic import (
    add_biases,
    check_dtypes,
    check_matrix,
    check_names,
    check_shapes,
    concatenate_gates,
    on_device,
    reorder,
    split_gates,
    unfold_biases,
)
from .structure import (
    BLOCKS,
    activation_name,
    cells_of,
    checked_cell_params,
    set_cell_params,
    summary,
)

MODULES: dict[Any, str] = {Elman: "vanilla_rnn", LSTM: "lstm", GRU: "gru"}
# Haiku packs the gates i, g, f, o of an LSTM, and z, r, a of a GRU. Both orders are
# their own inverses.
LSTM_ORDER = (0, 2, 1, 3)
GRU_ORDER = (1, 0, 2)


def from_haiku(
    params: Params, layer: Cell | Layer, *, names: str | Sequence[str] | None = None
) -> tuple[Cell | Layer, Params]:
    """Convert Haiku's parameters of recurrent cores to those of ``layer``.

    Haiku's modules exist inside a transformed function and hold no weights, so there is
    no object to convert: the input is the dict of dicts of parameters, and ``layer``
    says what they are for. The conversions are:

    - LSTM: the kernel of [x; h] is split, the gates i, g, f, o become i, f, g, o, and
      the 1 that Haiku adds to f when it applies the core is added to the bias, rounded
      to its dtype. In bfloat16 this changes the bias by up to 2^-8 of it, and again in
      the other direction.
    - GRU, which resets before the matrix product: the gates z, r, a become r, z, n, and
      z, which in Haiku is the share of the new state, is negated.
    - VanillaRNN: the activation is relu, and the two biases are added.

    Args:
        params: the parameters of the whole model, or of the cores alone.
        layer: the jaxrnn layer: `LSTM`, ``GRU(H, reset_after=False)``, ``Elman(H,
            activation=jax.nn.relu)``, a `bidirectional` of these, or a stack.
        names: the module of each cell, layer by layer, forward before backward, such as
            ``["net/~/lstm", "net/~/lstm_1"]``; other modules are then ignored. The
            default is Haiku's names at the top of a function, ``lstm``, ``lstm_1``,
            ``gru``, and then other modules are refused.

    Returns:
        ``(layer, params)``.

    Raises:
        TypeError: if ``params`` is not a dict of dicts of arrays of one dtype.
        ValueError: if Haiku has no such cell, or names or shapes do not fit.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.LSTM(2)
        >>> arrays = jaxrnn.interop.to_haiku(layer, layer.init(jax.random.key(0), 3))
        >>> layer, params = jaxrnn.interop.from_haiku(arrays, layer)
        >>> print(params["input_kernel"].shape, params["recurrent_kernel"].shape)
        (3, 8) (2, 8)
    """
    where = "from_haiku"
    if not isinstance(params, Mapping) or not all(
        isinstance(own, Mapping) for own in params.values()
    ):
        raise TypeError(
            f"{where}: expected Haiku's params, a dict of dicts of arrays, but it is "
            f"{describe(params)}"
        )
    cells = cells_of(layer, where)
    modules = _names(where, layer, cells, names)
    flat = {
        f"{module}/{name}": value
        for module, own in params.items()
        for name, value in own.items()
    }
    if names is None:
        expected = {
            f"{place}/{name}"
            for cell, place in zip(cells, modules)
            for name in (*_slots(cell, True), "linear_1/b")
        }
        extra = sorted(flat.keys() - expected)
        if extra and all(
            any(name.startswith(f"{place}/") for name in flat) for place in modules
        ):
            raise ValueError(
                f"{where}: not expected {', '.join(extra)}: pass names= to take some "
                f"cores out of a larger model"
            )
    return layer, set_cell_params(
        layer,
        [
            _read(where, cell, flat, place)
            for cell, place in zip(cells, modules, strict=True)
        ],
        where,
    )


def to_haiku(
    layer: Cell | Layer,
    params: Params,
    *,
    names: str | Sequence[str] | None = None,
    double_bias: bool = True,
) -> Any:
    """Convert the parameters of a layer to Haiku's: inverse of `from_haiku`.

    Args:
        layer: as for `from_haiku`.
        params: the parameters of ``layer``.
        names: as for `from_haiku`. To merge the result into the params of a larger
            model use ``params | to_haiku(...)``.
        double_bias: the option of VanillaRNN: True writes a second bias, of zeros.

    Returns:
        A dict of dicts of arrays.

    Raises:
        TypeError, ValueError: if Haiku has no such cell, or ``params`` do not fit.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.LSTM(2)
        >>> arrays = jaxrnn.interop.to_haiku(cell, cell.init(jax.random.key(0), 3))
        >>> print(jax.tree.map(lambda array: array.shape, arrays))
        {'lstm/linear': {'b': (8,), 'w': (5, 8)}}
    """
    where = "to_haiku"
    result: dict[str, dict[str, Any]] = {}
    pairs = checked_cell_params(layer, params, where)
    for (cell, own), place in zip(
        pairs, _names(where, layer, [cell for cell, _ in pairs], names), strict=True
    ):
        arrays = _write(where, cell, own, double_bias)
        check_dtypes(where, arrays)
        for name, value in on_device(arrays).items():
            *inner, last = f"{place}/{name}".split("/")
            result.setdefault("/".join(inner), {})[last] = value
    return result


def _names(
    where: str, layer: Cell | Layer, cells: list[Any], names: str | Sequence[str] | None
) -> list[str]:
    """Return the module of each cell; refuse cells that Haiku does not have."""
    for cell in cells:
        if isinstance(cell, GRU) and cell.reset_after:
            raise ValueError(
                f"{where}: Haiku's GRU resets before the matrix product, and "
                f"{summary(cell)} after it: different functions, "
                "whose weights do not convert. GRU(H, reset_after=False) is Haiku's"
            )
        if isinstance(cell, Elman) and activation_name(cell, where) != "relu":
            raise ValueError(
                f"{where}: Haiku's VanillaRNN is relu, but the layer has "
                f"{summary(cell)}"
            )
        if isinstance(cell, LSTM) and cell.projection_size is not None:
            raise ValueError(
                f"{where}: Haiku's LSTM has no projection, but the layer has "
                f"{summary(cell)}"
            )
    if names is None:
        kinds = [MODULES[type(cell)] for cell in cells]
        counts = [kinds[:k].count(kind) for k, kind in enumerate(kinds)]
        return [
            kind if count == 0 else f"{kind}_{count}"
            for kind, count in zip(kinds, counts)
        ]
    names = [names] if isinstance(names, str) else list(names)
    if len(names) != len(cells) or len(set(names)) != len(names):
        raise ValueError(
            f"{where}: {summary(layer)} has cells: {len(cells)}; give as many "
            f"different names, not {names}"
        )
    return names


def _slots(cell: Cell | Layer, double_bias: bool) -> list[str]:
    """Return the names of the arrays of one core."""
    if isinstance(cell, GRU):
        return ["w_i", "w_h", "b"]
    if isinstance(cell, LSTM):
        return ["linear/w", "linear/b"]
    return [
        "linear/w",
        "linear/b",
        "linear_1/w",
        *(["linear_1/b"] if double_bias else []),
    ]


def _read(where: str, cell: Any, flat: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Convert the arrays of one core to the parameters of its cell."""
    arrays = {
        name.removeprefix(f"{place}/"): value
        for name, value in flat.items()
        if name.startswith(f"{place}/")
    }
    slots = _slots(cell, "linear_1/b" in arrays)
    modules = ", ".join(sorted({name.rsplit("/", 1)[0] for name in flat})) or "none"
    where = f"{where}: {place}"
    check_names(where, arrays, slots, f"The params have the modules {modules}")
    check_dtypes(where, arrays)
    H, G = cell.hidden_size, BLOCKS[type(cell)] * cell.hidden_size
    check_matrix(where, slots[0], arrays[slots[0]])
    input_size = arrays[slots[0]].shape[0]
    if isinstance(cell, LSTM):
        check_shapes(
            where,
            arrays,
            {"linear/w": (max(input_size, H + 1), G), "linear/b": (G,)},
            "The kernel's rows are D + H",
        )
        W, bias = (
            reorder(arrays["linear/w"], LSTM_ORDER),
            split_gates(reorder(arrays["linear/b"], LSTM_ORDER), 4),
        )
        bias[1] = bias[1] + bias[1].dtype.type(1)
        return on_device(
            {
                "input_kernel": W[:-H],
                "recurrent_kernel": W[-H:],
                "bias": concatenate_gates(bias),
            }
        )
    if isinstance(cell, GRU):
        check_shapes(where, arrays, {"w_i": (input_size, G), "w_h": (H, G), "b": (G,)})
        W, U, bias = (_z_negated(reorder(arrays[name], GRU_ORDER)) for name in slots)
        return on_device({"input_kernel": W, "recurrent_kernel": U, "bias": bias})
    shapes = {
        "linear/w": (input_size, H),
        "linear/b": (H,),
        "linear_1/w": (H, H),
        "linear_1/b": (H,),
    }
    check_shapes(where, arrays, {name: shapes[name] for name in slots})
    bias = (
        add_biases(where, arrays["linear/b"], arrays["linear_1/b"])
        if "linear_1/b" in arrays
        else arrays["linear/b"]
    )
    return on_device(
        {
            "input_kernel": arrays["linear/w"],
            "recurrent_kernel": arrays["linear_1/w"],
            "bias": bias,
        }
    )


def _write(
    where: str, cell: Cell | Layer, params: Mapping[str, Any], double_bias: bool
) -> dict[str, Any]:
    """Convert the parameters of one cell to the arrays of its core."""
    W, U, bias = params["input_kernel"], params["recurrent_kernel"], params["bias"]
    if isinstance(cell, LSTM):
        parts = split_gates(bias, 4)
        parts[1] = parts[1] - parts[1].dtype.type(1)
        return {
            "linear/w": reorder(concatenate_gates([W, U], 0), LSTM_ORDER),
            "linear/b": reorder(concatenate_gates(parts), LSTM_ORDER),
        }
    if isinstance(cell, GRU):
        W, U, bias = (reorder(_z_negated(packed), GRU_ORDER) for packed in (W, U, bias))
        return {"w_i": W, "w_h": U, "b": bias}
    bias, zeros = unfold_biases(params)
    return {"linear/w": W, "linear/b": bias, "linear_1/w": U} | (
        {"linear_1/b": zeros} if double_bias else {}
    )


def _z_negated(packed: Any) -> Any:
    """Negate the block z of r, z, n.

    Haiku's gate is the share of the new state and jaxrnn's that of the old one:
    1 - sigmoid(a) = sigmoid(-a).
    """
    r, z, n = split_gates(packed, 3)
    return concatenate_gates([r, -z, n])
