"""ONNX: recurrent stacks as a graph of the standard's own LSTM, GRU and RNN
operators, for runtimes outside Python.
"""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.cell import Carry, Cell, Layer, Params, check_cell
from ..layers.compose import Bidirectional, BidirectionalCarry, Residual, Stack
from ..layers.stochastic import Dropout, RecurrentDropout
from .arithmetic import check_concrete
from .onnx_cells import converted

OPSET, IR_VERSION = (
    17,
    8,
)  # operators LSTM-14, GRU-14, RNN-14; the file format of the same release
ABSENT = ""  # how ONNX writes an input that is left out


def to_onnx(
    layer: Cell | Layer, params: Params, *, lengths: bool = False, carry: bool = False
) -> Any:
    """The layer as an ``onnx.ModelProto`` of opset 17, passed by ``onnx.checker``;
    ``onnx.save(model, path)`` writes it.

    Inputs are ``xs (T, B, D)`` and, where they are asked for, ``lengths (B,)`` int32
    and the parts of the first carry, ``(B, H)`` each; outputs are ``ys (T, B, H)`` and
    the parts of the last carry. T and B are left open. The parts stand in the order of
    ``jax.tree.leaves(carry)`` and are named by their place, ``initial_0_forward_h`` and
    ``final_0_forward_h``; a carry that is one array is ``initial`` and ``final``. As in
    `jaxrnn.unroll`, padding puts out zeros, and a sequence of length 0 gives back its
    first carry; but T must be 1 or more: the standard says nothing of T = 0, where ONNX
    Runtime 1.32 gives zeros as the last carry, whatever the first, and with a GRU ends
    the process.

    Converted are `Elman` (tanh, relu, sigmoid), `LSTM` with peepholes or coupled gates,
    `GRU` of both forms, learned first carries, `stack`, `bidirectional` (one operator a
    direction) and `residual`; of what draws random numbers its ``inference``, where
    dropout does nothing. What the operators cannot hold is refused by name: layer
    normalization, projections, all other cells, and zoneout, whose ``inference`` is no
    identity: it mixes each state with the one before.

    Args:
        layer, params: as in `jaxrnn.unroll`; float32.
        lengths: make sequence lengths an input. Without, all of xs counts.
        carry: make the first carry an input. Without, it is ``layer.initial_carry``,
            zeros or learned.

    Raises:
        ImportError: the package onnx is missing. TypeError, ValueError: for what cannot
            be converted.
    """
    check_cell(layer)
    if layer.requires_key:
        raise ValueError(
            f"to_onnx: {type(layer).__name__} draws random numbers, which a graph for "
            f"inference does not: pass "
            "jaxrnn.inference(layer), whose parameters are the same"
        )
    layer.check(params)
    check_concrete("to_onnx", params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.result_type(leaf) != jnp.float32:
            raise TypeError(
                f"to_onnx: params{jax.tree_util.keystr(path)} is "
                f"{jnp.result_type(leaf)}, but runtimes know these operators in "
                "float32: cast with jax.tree.map(lambda a: a.astype('float32'), params)"
            )
    like = jax.eval_shape(lambda: layer.initial_carry(params, (1,)))
    graph = _Graph(lengths)
    names = [_place(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    first = [f"initial{name}" if carry else ABSENT for name in names]
    ys, last = graph.walk(
        layer, params, "xs", jax.tree.unflatten(jax.tree.structure(like), first), False
    )
    sizes = [leaf.shape[-1] for leaf in jax.tree.leaves(like)]
    graph.rename(
        [ys, *jax.tree.leaves(last)], ["ys", *(f"final{name}" for name in names)]
    )
    return graph.model(
        dict(zip(first, sizes)) if carry else {},
        {f"final{name}": size for name, size in zip(names, sizes)},
    )


def _place(path: tuple[Any, ...]) -> str:
    """``_0_forward_h`` for a part of a carry."""
    return "".join(
        f"_{getattr(key, 'name', getattr(key, 'idx', None))}" for key in path
    )


def _onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError(
            "to_onnx needs the package onnx: pip install 'jaxrnn[onnx]'"
        ) from error


class _Graph:
    """Nodes and constants as they are added; what is handed about are the names of
    values.
    """

    def __init__(self, lengths: bool):
        self.onnx = _onnx()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.input_size: int | None = None
        self.output_size = 0
        self.lengths = "lengths" if lengths else ABSENT

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(
            self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        )
        return name

    def whole(self, *numbers: int) -> str:
        """A vector of int64, as axes and shapes are given."""
        return self.constant(np.array(numbers, np.int64))

    def node(
        self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any
    ) -> Any:
        """Add a node; the name of its output, or a list of them."""
        names = [f"{operator.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(
            self.onnx.helper.make_node(operator, inputs, names, **attributes)
        )
        return names if outputs > 1 else names[0]

    # -- layers ------------------------------------------------------------------------

    def walk(
        self, layer: Any, params: Params, x: str, carry: Carry, reverse: bool
    ) -> tuple[str, Carry]:
        """The outputs and the last carry of a layer, in the direction told."""
        if isinstance(layer, Stack):
            last = []
            for i, part in enumerate(layer.layers):
                x, end = self.walk(part, params[f"layer_{i}"], x, carry[i], reverse)
                last.append(end)
            return x, tuple(last)
        if isinstance(layer, Bidirectional):
            forward, end = self.walk(
                layer.forward, params["forward"], x, carry.forward, reverse
            )
            size = self.output_size
            backward, start = self.walk(
                layer.backward, params["backward"], x, carry.backward, not reverse
            )
            self.output_size += size if layer.merge == "concat" else 0
            y = (
                self.node("Add", forward, backward)
                if layer.merge == "sum"
                else self.node("Concat", forward, backward, axis=2)
            )
            return y, BidirectionalCarry(end, start)
        if isinstance(layer, Residual):
            y, last = self.walk(layer.layer, params, x, carry, reverse)
            return self.node("Add", x, y), last
        if isinstance(layer, Dropout):
            return x, carry
        cell = layer.cell if isinstance(layer, RecurrentDropout) else layer
        y, last = self.operator(cell, params, x, jax.tree.leaves(carry), reverse)
        return y, jax.tree.unflatten(jax.tree.structure(carry), last)

    def operator(
        self, cell: Any, params: Params, x: str, carry: list[str], reverse: bool
    ) -> tuple[str, list[str]]:
        """One cell over the sequence as one node: the outputs ``(T, B, H)`` and the
        parts of the last carry ``(B, H)``.
        """
        operator, weights, peephole, attributes = converted(cell, params)
        if self.input_size is None:
            self.input_size = params["input_kernel"].shape[0]
        self.output_size = cell.hidden_size
        if cell.learned_initial_carry and carry[0] == ABSENT:
            carry = [
                self.spread(leaf) for leaf in jax.tree.leaves(params["initial_carry"])
            ]
        zero = self.whole(0)
        inputs = [x, *map(self.constant, weights), self.lengths]
        inputs += [name and self.node("Unsqueeze", name, zero) for name in carry]
        if peephole is not None:
            inputs.append(self.constant(peephole))
        direction = "reverse" if reverse else "forward"
        y, *last = self.node(
            operator,
            *inputs,
            outputs=1 + len(carry),
            hidden_size=cell.hidden_size,
            direction=direction,
            **attributes,
        )
        last = [self.node("Squeeze", name, zero) for name in last]
        if (
            self.lengths
        ):  # the standard says nothing of length 0, and ONNX Runtime answers with zeros
            empty = self.node(
                "Unsqueeze",
                self.node("Equal", self.lengths, self.constant(np.int32(0))),
                self.whole(1),
            )
            last = [
                self.node("Where", empty, first or self.constant(np.float32(0)), name)
                for first, name in zip(carry, last)
            ]
        return self.node("Squeeze", y, self.whole(1)), last

    def spread(self, vector: Any) -> str:
        """A learned ``(H,)`` spread over the batch."""
        batch = self.node("Gather", self.node("Shape", "xs"), self.whole(1))
        shape = self.node("Concat", batch, self.whole(len(vector)), axis=0)
        return self.node("Expand", self.constant(np.asarray(vector)), shape)

    # -- the whole ---------------------------------------------------------------------

    def rename(self, values: list[str], names: list[str]) -> None:
        """Give results their public names; those of outputs behind the end of a
        sequence are zero.
        """
        for value, name in zip(values, names, strict=True):
            node = ("Identity", [value])
            if name == "ys" and self.lengths:
                steps = self.node(
                    "Gather", self.node("Shape", "xs"), self.constant(np.int64(0))
                )
                t = self.node(
                    "Range",
                    self.constant(np.int64(0)),
                    steps,
                    self.constant(np.int64(1)),
                )
                lengths = self.node(
                    "Cast", self.lengths, to=self.onnx.TensorProto.INT64
                )
                inside = self.node(
                    "Less", self.node("Unsqueeze", t, self.whole(1)), lengths
                )  # (T, B)
                inside = self.node("Unsqueeze", inside, self.whole(2))
                node = ("Where", [inside, value, self.constant(np.float32(0))])
            self.nodes.append(self.onnx.helper.make_node(*node, [name]))

    def model(self, first: dict[str, int], last: dict[str, int]) -> Any:
        """The checked model, for carries of the sizes given."""
        if self.input_size is None:
            raise ValueError(
                "to_onnx: there is no cell in this layer, so nothing to convert"
            )
        helper, floats = self.onnx.helper, self.onnx.TensorProto.FLOAT
        inputs = [
            helper.make_tensor_value_info("xs", floats, ["T", "B", self.input_size])
        ]
        if self.lengths:
            inputs.append(
                helper.make_tensor_value_info(
                    "lengths", self.onnx.TensorProto.INT32, ["B"]
                )
            )
        inputs += [
            helper.make_tensor_value_info(name, floats, ["B", size])
            for name, size in first.items()
        ]
        outputs = [
            helper.make_tensor_value_info("ys", floats, ["T", "B", self.output_size])
        ]
        outputs += [
            helper.make_tensor_value_info(name, floats, ["B", size])
            for name, size in last.items()
        ]
        graph = helper.make_graph(self.nodes, "jaxrnn", inputs, outputs, self.constants)
        versions = {
            "opset_imports": [helper.make_opsetid("", OPSET)],
            "ir_version": IR_VERSION,
        }
        model = helper.make_model(graph, producer_name="jaxrnn", **versions)
        self.onnx.checker.check_model(model, full_check=True)
        return model
