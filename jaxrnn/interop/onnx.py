"""Export of recurrent layers to ONNX, as graphs of its LSTM, GRU and RNN operators."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.cell import Cell
from ..core.layer import Layer, check_cell
from ..core.types import Carry, Params
from ..layers.compose import Bidirectional, BidirectionalCarry, Residual, Stack
from ..layers.stochastic import Dropout, RecurrentDropout
from .arithmetic import check_concrete
from .onnx_cells import converted

# Opset 17 has the operators LSTM-14, GRU-14 and RNN-14; file format 8 is of the same
# release.
OPSET, IR_VERSION = 17, 8
ABSENT = ""  # the name of an optional input that is left out


def to_onnx(
    layer: Cell | Layer, params: Params, *, lengths: bool = False, carry: bool = False
) -> Any:
    """Convert a layer to an ``onnx.ModelProto`` of opset 17.

    The model has passed ``onnx.checker``; ``onnx.save(model, path)`` writes it. Its
    inputs are ``xs (T, B, D)`` and, if requested, ``lengths (B,)`` int32 and the parts
    of the initial carry, each ``(B, H)``. Its outputs are ``ys (T, B, H)`` and the
    parts of the last carry. T and B are symbolic. The parts have the order of
    ``jax.tree.leaves(carry)`` and are named by their path, ``initial_0_forward_h`` and
    ``final_0_forward_h``; a carry that is one array is ``initial`` and ``final``.

    As in `jaxrnn.unroll`, the outputs at padded steps are zero, and a sequence of
    length 0 returns its initial carry. T must be at least 1, however: the standard does
    not define T = 0, where ONNX Runtime 1.32 returns zeros as the last carry, whatever
    the initial one, and with a GRU terminates the process.

    Supported are `Elman` (tanh, relu, sigmoid), `LSTM` with peepholes or coupled gates,
    `GRU` of both forms, `MGU` (as a GRU with tied gates), `OrthogonalRNN` without
    modReLU, learned initial carries, `stack`, `bidirectional` (one operator per
    direction) and `residual`; of a layer that draws random numbers its ``inference``,
    where dropout is the identity. What the operators cannot represent is refused by
    name: layer normalization, projections, all other cells, and zoneout, whose
    ``inference`` is not the identity, because it mixes each state with the previous
    one.

    Args:
        layer: the cell or layer.
        params: its parameters; float32.
        lengths: make the sequence lengths an input. Otherwise all steps of xs are
            valid.
        carry: make the initial carry an input. Otherwise it is ``layer.initial_carry``,
            zeros or learned.

    Returns:
        The ``onnx.ModelProto``.

    Raises:
        ImportError: if the package onnx is missing.
        TypeError, ValueError: for what cannot be converted.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.LSTM(2)
        >>> model = jaxrnn.interop.to_onnx(cell, cell.init(jax.random.key(0), 3))
        >>> print([output.name for output in model.graph.output])
        ['ys', 'final_h', 'final_c']
    """
    check_cell(layer)
    if layer.requires_key:
        raise ValueError(
            f"to_onnx: {type(layer).__name__} draws random numbers, but a graph for "
            f"inference must not: pass "
            "jaxrnn.inference(layer), whose parameters are the same"
        )
    layer.check(params)
    check_concrete("to_onnx", params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.result_type(leaf) != jnp.float32:
            raise TypeError(
                f"to_onnx: params{jax.tree_util.keystr(path)} is "
                f"{jnp.result_type(leaf)}, but runtimes support these operators in "
                "float32: cast with jax.tree.map(lambda a: a.astype('float32'), params)"
            )
    like = jax.eval_shape(lambda: layer.initial_carry(params, (1,)))
    graph = _Graph(lengths)
    names = [_place(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    initial_names = [f"initial{name}" if carry else ABSENT for name in names]
    ys, last_carry = graph.add_layer(
        layer,
        params,
        "xs",
        jax.tree.unflatten(jax.tree.structure(like), initial_names),
        False,
    )
    sizes = [leaf.shape[-1] for leaf in jax.tree.leaves(like)]
    graph.rename(
        [ys, *jax.tree.leaves(last_carry)], ["ys", *(f"final{name}" for name in names)]
    )
    return graph.model(
        dict(zip(initial_names, sizes)) if carry else {},
        {f"final{name}": size for name, size in zip(names, sizes)},
    )


def _place(path: tuple[Any, ...]) -> str:
    """Return the path of a part of a carry, such as ``_0_forward_h``.

    The carries of stacks are tuples, and those of cells are NamedTuples.
    """
    return "".join(
        f"_{key.name if isinstance(key, jax.tree_util.GetAttrKey) else key.idx}"
        for key in path
    )


def _onnx() -> Any:
    """Import the optional package onnx."""
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError(
            "to_onnx needs the package onnx: pip install 'jaxrnn[onnx]'"
        ) from error


class _Graph:
    """A graph under construction; its values are referred to by their names."""

    def __init__(self, lengths: bool):
        self.onnx = _onnx()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.input_size: int | None = None
        self.output_size = 0
        self.lengths = "lengths" if lengths else ABSENT

    def constant(self, value: object) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(
            self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        )
        return name

    def whole(self, *numbers: int) -> str:
        """Add a vector of int64, the form of axes and shapes."""
        return self.constant(np.array(numbers, np.int64))

    def node(
        self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any
    ) -> Any:
        """Add a node and return the name of its output, or the list of names."""
        names = [f"{operator.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(
            self.onnx.helper.make_node(operator, inputs, names, **attributes)
        )
        return names if outputs > 1 else names[0]

    # -- layers ------------------------------------------------------------------------

    def add_layer(
        self, layer: Any, params: Params, x: str, carry: Carry, reverse: bool
    ) -> tuple[str, Carry]:
        """Add the nodes of a layer; return its outputs and last carry.

        ``reverse`` is the direction in which the layer is applied.
        """
        if isinstance(layer, Stack):
            last_carries = []
            for i, part in enumerate(layer.layers):
                x, last_carry = self.add_layer(
                    part, params[f"layer_{i}"], x, carry[i], reverse
                )
                last_carries.append(last_carry)
            return x, tuple(last_carries)
        if isinstance(layer, Bidirectional):
            forward, last_carry = self.add_layer(
                layer.forward, params["forward"], x, carry.forward, reverse
            )
            size = self.output_size
            backward, first_carry = self.add_layer(
                layer.backward, params["backward"], x, carry.backward, not reverse
            )
            self.output_size += size if layer.merge == "concat" else 0
            y = (
                self.node("Add", forward, backward)
                if layer.merge == "sum"
                else self.node("Concat", forward, backward, axis=2)
            )
            return y, BidirectionalCarry(last_carry, first_carry)
        if isinstance(layer, Residual):
            y, last_carries = self.add_layer(layer.layer, params, x, carry, reverse)
            return self.node("Add", x, y), last_carries
        if isinstance(layer, Dropout):
            return x, carry
        cell = layer.cell if isinstance(layer, RecurrentDropout) else layer
        y, last_carries = self.operator(
            cell, params, x, jax.tree.leaves(carry), reverse
        )
        return y, jax.tree.unflatten(jax.tree.structure(carry), last_carries)

    def operator(
        self, cell: Any, params: Params, x: str, carry: list[str], reverse: bool
    ) -> tuple[str, list[str]]:
        """Add one cell over the whole sequence as one node.

        Returns the outputs ``(T, B, H)`` and the parts of the last carry, ``(B, H)``.
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
        y, *last_parts = self.node(
            operator,
            *inputs,
            outputs=1 + len(carry),
            hidden_size=cell.hidden_size,
            direction=direction,
            **attributes,
        )
        last_parts = [self.node("Squeeze", name, zero) for name in last_parts]
        if self.lengths:
            # The standard does not define length 0, and ONNX Runtime returns zeros, so
            # that the initial carry is selected here.
            empty = self.node(
                "Unsqueeze",
                self.node("Equal", self.lengths, self.constant(np.int32(0))),
                self.whole(1),
            )
            last_parts = [
                self.node("Where", empty, initial or self.constant(np.float32(0)), name)
                for initial, name in zip(carry, last_parts)
            ]
        return self.node("Squeeze", y, self.whole(1)), last_parts

    def spread(self, vector: Any) -> str:
        """Broadcast a learned vector ``(H,)`` over the batch."""
        batch = self.node("Gather", self.node("Shape", "xs"), self.whole(1))
        shape = self.node("Concat", batch, self.whole(len(vector)), axis=0)
        return self.node("Expand", self.constant(np.asarray(vector)), shape)

    # -- the model ---------------------------------------------------------------------

    def rename(self, values: list[str], names: list[str]) -> None:
        """Give results their public names; zero the outputs at padded steps."""
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
                # (T, B)
                valid = self.node(
                    "Less", self.node("Unsqueeze", t, self.whole(1)), lengths
                )
                valid = self.node("Unsqueeze", valid, self.whole(2))
                node = ("Where", [valid, value, self.constant(np.float32(0))])
            self.nodes.append(self.onnx.helper.make_node(*node, [name]))

    def model(self, first: dict[str, int], last: dict[str, int]) -> Any:
        """Return the checked model, given the sizes of the initial and last carries."""
        if self.input_size is None:
            raise ValueError(
                "to_onnx: there is no cell in this layer, so there is nothing to "
                "convert"
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
