"""Recognition of flax modules: their jaxrnn layers, and where they hold arrays.

The modules are those of nnx, and bound ones of linen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..cells import GRU, LSTM, Elman
from ..core.import_path import own_place
from ..core.validation import describe
from ..layers import bidirectional, stack
from .structure import ACTIVATIONS

KINDS = {
    "SimpleCell": Elman,
    "LSTMCell": LSTM,
    "OptimizedLSTMCell": LSTM,
    "GRUCell": GRU,
}
LINEN, NNX = "flax.linen.recurrent", "flax.nnx.nn.recurrent"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a flax cell names its dense maps.

    linen's cells and nnx.LSTMCell have one map per gate, the other nnx cells a packed
    one over all gates.
    """

    packed: bool = False
    nnx: bool = False

    def maps(self, cell: Any) -> tuple[list[str], list[str]]:
        """Return the names of the maps of x and of h."""
        if self.packed:
            return ["dense_i"], ["dense_h"]
        gates = {LSTM: "ifgo", GRU: "rzn"}.get(type(cell))
        if gates is None:
            return ["i"], ["h"]
        named = {"if": "if_"} if self.nnx else {}  # ``if`` is a keyword of Python
        return [named.get(f"i{gate}", f"i{gate}") for gate in gates], [
            f"h{gate}" for gate in gates
        ]

    def biased(self, cell: Any) -> list[str]:
        """Return the maps whose biases form the cell's bias.

        linen's GRU has one more, that of ``hn``.
        """
        of_inputs, of_states = self.maps(cell)
        return of_states if isinstance(cell, LSTM) else of_inputs


def is_flax(source: object) -> bool:
    """Return whether ``source`` is one of flax's own recurrent modules."""
    return type(source).__module__ in (LINEN, NNX)


def layout_of(module: Any) -> Layout:
    """Return the layout of a flax cell."""
    nnx = type(module).__module__ == NNX
    return Layout(packed=nnx and type(module).__name__ != "LSTMCell", nnx=nnx)


def converted(where: str, source: Any) -> tuple[Any, list[Any]]:
    """Return the equivalent jaxrnn layer, and flax's cells.

    The cells have the order of `structure.cells_of`.
    """
    if isinstance(source, (list, tuple)) and source:
        pairs = [converted(where, one) for one in source]
        cells = [cell for _, own in pairs for cell in own]
        return (
            pairs[0][0] if len(pairs) == 1 else stack(*[layer for layer, _ in pairs])
        ), cells
    kind = type(source).__name__ if is_flax(source) else ""
    if kind == "RNN":
        if source.reverse:
            raise ValueError(
                f"{where}: this RNN has reverse=True, which in jaxrnn is an option of "
                f"the call, unroll(..., reverse=True), whose outputs keep the order "
                f"of the inputs: pass its cell"
            )
        return converted(where, source.cell)
    if kind == "Bidirectional":
        merge = own_place(source.merge_fn)
        if merge not in ((LINEN, "_concatenate"), (NNX, "_concatenate")):
            raise ValueError(
                f"{where}: this Bidirectional has a merge_fn of its own: pass its "
                f"two cells, with layer="
            )
        (forward, forward_cells), (backward, backward_cells) = (
            converted(
                where, rnn.cell if type(rnn).__name__ == "RNN" and is_flax(rnn) else rnn
            )
            for rnn in (source.forward_rnn, source.backward_rnn)
        )
        return bidirectional(forward, backward), forward_cells + backward_cells
    if kind in KINDS:
        return _cell(where, kind, source), [source]
    if type(source).__module__.startswith("jaxrnn.nnx."):
        raise TypeError(
            f"{where}: this is jaxrnn's own {type(source).__name__}: there is nothing "
            f"to convert, an RNN's parameters are "
            "rnn.values(), for rnn.layer; for one around a flax cell, pass rnn.cell"
        )
    raise TypeError(
        f"{where}: expected flax's {', '.join(KINDS)}, RNN or Bidirectional (nnx, or "
        f"linen bound with "
        f"module.bind(variables)), a list of these, or a dict of arrays with layer=, "
        f"but it is {describe(source)}"
    )


def _cell(where: str, kind: str, module: Any) -> Any:
    """Return the jaxrnn cell with the options of one flax cell, or refuse an option."""
    activation = module.activation_fn
    names = [name for name, function in ACTIVATIONS.items() if activation is function]
    allowed = ACTIVATIONS if kind == "SimpleCell" else ("tanh",)
    if not names or names[0] not in allowed:
        raise ValueError(
            f"{where}: {kind} has the activation_fn {activation!r}; jaxrnn's "
            f"{KINDS[kind].__name__} has {', '.join(allowed)}"
        )
    if kind != "SimpleCell" and module.gate_fn is not jax.nn.sigmoid:
        raise ValueError(
            f"{where}: {kind} has the gate_fn {module.gate_fn!r}; jaxrnn's "
            f"{KINDS[kind].__name__} has sigmoid"
        )
    if kind == "SimpleCell" and module.residual:
        raise ValueError(
            f"{where}: SimpleCell has residual=True, h added inside the activation: no "
            f"jaxrnn cell computes that"
        )
    if module.carry_init not in (None, jax.nn.initializers.zeros):
        raise ValueError(
            f"{where}: {kind} has the carry_init {module.carry_init!r}, and jaxrnn's "
            f"first carry is zero: pass its arrays, "
            "with layer=, and the carry to unroll"
        )
    if module.dtype is not None and jnp.dtype(module.dtype) != jnp.dtype(
        module.param_dtype
    ):
        raise TypeError(
            f"{where}: {kind} holds {jnp.dtype(module.param_dtype)} and computes in "
            f"{jnp.dtype(module.dtype)}; jaxrnn "
            "computes in the dtype of the parameters: pass its arrays, with layer=, "
            "cast to one dtype"
        )
    size = (
        module.features if type(module).__module__ == LINEN else module.hidden_features
    )
    return (
        Elman(size, activation=ACTIVATIONS[names[0]])
        if kind == "SimpleCell"
        else KINDS[kind](size)
    )
