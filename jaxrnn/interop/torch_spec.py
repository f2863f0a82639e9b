"""Descriptions of torch's recurrent modules, by names, shapes and options.

A description is inferred from a state_dict, a module or a jaxrnn layer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ..cells import GRU, LSTM, Elman
from ..core.cell import Cell
from ..core.layer import Layer
from ..layers import bidirectional, dropout, stack
from ..layers.compose import Bidirectional, Stack
from ..layers.stochastic import Dropout
from .arithmetic import check_matrix, check_names
from .structure import BLOCKS, cells_of, forward_size, summary

NONLINEARITIES: dict[str, Any] = {"tanh": jnp.tanh, "relu": jax.nn.relu}
NUMBERED = re.compile(r"weight_ih_l(\d+)(_reverse)?$")
HINTS = {
    r"parametrizations\.": (
        "Some weights are parametrized: "
        "torch.nn.utils.parametrize.remove_parametrizations(module, name)"
    ),
    "_packed|_all_weight_values": (
        "These are packed, quantized weights: take the state_dict from before "
        "quantization"
    ),
    "(weight|bias)_.*_g$": (
        "Some weights are normed: torch.nn.utils.remove_weight_norm(module, name) first"
    ),
    "(weight|bias)_.*_u$": (
        "Some weights are normed: torch.nn.utils.remove_spectral_norm(module, name) "
        "first"
    ),
    "(weight|bias)_.*_mask$": (
        "Some weights are pruned: torch.nn.utils.prune.remove(module, name) first"
    ),
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A torch module of ``layers`` times ``directions`` cells of one kind.

    If ``numbered``, the names end in _l0, _l0_reverse and so on; those of a torch Cell
    do not.
    """

    cell: Any
    layers: int = 1
    directions: int = 1
    bias: bool = True
    numbered: bool = True
    dropout: float = 0.0

    def suffixes(self) -> list[str]:
        """Return one suffix per cell: layer by layer, forward before backward."""
        directions = ("", "_reverse")[: self.directions]
        return (
            [
                f"_l{k}{direction}"
                for k in range(self.layers)
                for direction in directions
            ]
            if self.numbered
            else [""]
        )

    def names(self, suffix: str) -> list[str]:
        """Return the names of the tensors of one cell."""
        words = [
            "weight_ih",
            "weight_hh",
            *(("bias_ih", "bias_hh") if self.bias else ()),
        ]
        projected = (
            isinstance(self.cell, LSTM) and self.cell.projection_size is not None
        )
        return [word + suffix for word in words + (["weight_hr"] if projected else [])]

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, for ``inputs`` features."""
        H, outputs, rows = (
            self.cell.hidden_size,
            forward_size(self.cell),
            BLOCKS[type(self.cell)] * self.cell.hidden_size,
        )
        shapes: dict[str, tuple[int, ...]] = {}
        for k, suffix in enumerate(self.suffixes()):
            features = inputs if k < self.directions else self.directions * outputs
            all_of = {
                "weight_ih": (rows, features),
                "weight_hh": (rows, outputs),
                "weight_hr": (outputs, H),
            }
            shapes |= {
                name: all_of.get(name.removesuffix(suffix), (rows,))
                for name in self.names(suffix)
            }
        return shapes

    def layer(self) -> Any:
        """Return the jaxrnn cell or layer that computes the same."""
        level = bidirectional(self.cell) if self.directions == 2 else self.cell
        if self.layers == 1:
            return level
        between = [dropout(self.dropout)] if self.dropout else []
        return stack(
            level, *[part for _ in range(self.layers - 1) for part in (*between, level)]
        )


def spec_of_arrays(
    where: str,
    arrays: Mapping[str, Any],
    nonlinearity: str | None,
    rate: float,
    noted: str = "",
) -> Spec:
    """Infer the module from names and shapes.

    ``noted`` is appended to errors about missing and unexpected names.
    """
    hints = [
        hint
        for part, hint in HINTS.items()
        if any(re.search(part, name) for name in arrays)
    ]
    numbered = [match for match in map(NUMBERED.match, arrays) if match]
    if "weight_ih" not in arrays and not numbered:
        received = ", ".join(sorted(arrays)[:8]) or "nothing"
        raise ValueError(
            f"{where}: no weight_ih_l0 (of nn.RNN, LSTM, GRU) and no weight_ih (of a "
            f"Cell), but {received}{noted}{_of(hints)}"
        )
    spec = Spec(
        None,
        layers=1 + max((int(match[1]) for match in numbered), default=0),
        directions=2 if any(match[2] for match in numbered) else 1,
        bias=any(name.startswith("bias_") for name in arrays),
        numbered=bool(numbered),
        dropout=rate,
    )
    first_suffix = spec.suffixes()[0]
    missing = [
        name
        for name in (f"weight_ih{first_suffix}", f"weight_hh{first_suffix}")
        if name not in arrays
    ]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}{noted}{_of(hints)}")
    spec = dataclasses.replace(
        spec, cell=_cell(where, arrays, first_suffix, nonlinearity)
    )
    expected = [name for suffix in spec.suffixes() for name in spec.names(suffix)]
    check_names(where, arrays, expected, (noted + _of(hints)).removeprefix(". "))
    return spec


def _of(hints: Iterable[str]) -> str:
    """Join hints to sentences at the end of a message."""
    return "".join(f". {hint}" for hint in hints)


def _cell(
    where: str, arrays: Mapping[str, Any], suffix: str, nonlinearity: str | None
) -> Any:
    """Infer the cell from the shapes.

    H is the number of columns of weight_hh (of weight_hr with a projection), and the
    number of gates that of its rows divided by H.
    """
    projection = arrays.get(f"weight_hr{suffix}")
    for name in (
        f"weight_ih{suffix}",
        f"weight_hh{suffix}",
        *([] if projection is None else [f"weight_hr{suffix}"]),
    ):
        check_matrix(where, name, arrays[name])
    rows, columns = arrays[f"weight_hh{suffix}"].shape
    H = columns if projection is None else projection.shape[1]
    kinds = {blocks * H: kind for kind, blocks in BLOCKS.items()}
    kind = kinds.get(rows)
    if kind is None or (projection is not None and kind is not LSTM):
        raise ValueError(
            f"{where}: weight_hh{suffix} has shape {(rows, columns)}, but for H = {H} "
            f"hidden units it has H rows (RNN), 3H "
            "(GRU) or 4H (LSTM, the only one with weight_hr)"
        )
    if kind is not Elman:
        if nonlinearity is not None:
            raise ValueError(
                f"{where}: nonlinearity is nn.RNN's, but these are the weights of "
                f"{kind.__name__}: leave it out"
            )
        return (
            GRU(H)
            if kind is GRU
            else LSTM(
                H, projection_size=None if projection is None else projection.shape[0]
            )
        )
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(
            f"{where}: these are weights of nn.RNN, which do not tell its "
            f"nonlinearity: pass nonlinearity='tanh' or 'relu', as "
            f"the module was made with (it is {nonlinearity!r})"
        )
    return Elman(H, activation=NONLINEARITIES[nonlinearity])


def spec_of_layer(where: str, layer: Cell | Layer, bias: bool, numbered: bool) -> Spec:
    """Return the torch module that computes what ``layer`` does."""
    cell = cells_of(layer, where)[0] if cells_of(layer, where) else None
    parts = layer.layers if isinstance(layer, Stack) else (layer,)
    levels, noise = (
        [p for p in parts if not isinstance(p, Dropout)],
        [p for p in parts if isinstance(p, Dropout)],
    )
    if isinstance(cell, GRU) and not cell.reset_after:
        raise ValueError(
            f"{where}: {summary(cell)} resets before the matrix product and torch's "
            f"GRU after it: different functions, whose "
            "weights do not convert. Train GRU(reset_after=True)"
        )
    if isinstance(cell, Elman) and cell.activation not in NONLINEARITIES.values():
        raise ValueError(
            f"{where}: nn.RNN is tanh or relu, but the layer is {summary(layer)}"
        )
    directions = 2 if levels and isinstance(levels[0], Bidirectional) else 1
    spec = Spec(
        cell, len(levels), directions, bias, numbered, noise[0].rate if noise else 0.0
    )
    if cell is None or summary(spec.layer()) != summary(layer):
        nearest = (
            ""
            if cell is None
            else f"; the nearest torch module is {summary(spec.layer())}"
        )
        raise ValueError(
            f"{where}: torch's modules are equal layers of equal cells, in one "
            f"direction or two (concatenated), with one "
            f"rate of dropout between all of them, but this is "
            f"{summary(layer)}{nearest}"
        )
    if not numbered and (spec.layers, spec.directions) != (1, 1):
        raise ValueError(
            f"{where}: a torch Cell is one cell, but the layer is {summary(layer)}"
        )
    return spec


@runtime_checkable
class Tensor(Protocol):
    """What tells a tensor of torch, which is not imported, from other arrays."""

    def detach(self) -> Any:
        """Return the tensor without its history."""


@runtime_checkable
class Module(Protocol):
    """What tells a module of torch from a dictionary of its tensors."""

    def state_dict(self) -> Any:
        """Return the tensors by name."""


def plain(where: str, name: str, value: Any) -> Any:
    """Convert a tensor to a NumPy array; return other arrays as they are.

    torch is not imported: the methods of its tensors suffice.
    """
    is_tensor = isinstance(value, Tensor)
    if not is_tensor:
        return value
    if value.is_quantized:
        raise TypeError(
            f"{where}: {name} is quantized ({value.dtype}): take the weights from "
            f"before quantization"
        )
    if value.is_meta:
        raise TypeError(
            f"{where}: {name} is on torch's meta device and holds no values: load the "
            f"weights first"
        )
    tensor, dtype = value.detach().cpu(), str(value.dtype).removeprefix("torch.")
    if dtype.startswith("float8"):
        raise TypeError(
            f"{where}: {name} is {dtype}, whose scales are stored elsewhere: take the "
            f"weights from before quantization"
        )
    return (
        tensor.float().numpy().astype(jnp.bfloat16)
        if dtype == "bfloat16"
        else tensor.numpy()
    )
