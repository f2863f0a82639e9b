"""Layers made of cells and layers: stacks, both directions, residual connections."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.cell import (
    Carry,
    Cell,
    Layer,
    Params,
    UnrollSpec,
    check_cell,
    floating_dtype,
    weaken_scalars,
)
from ..core.exported import register_for_export
from ..core.validation import describe, describe_tree
from ..unrolling import unroll_unchecked
from .fused_network import unroll_network


def stack(*layers: Cell | Layer) -> Stack:
    """Layers on top of each other: the outputs of one are the inputs of the next.

    Parameters: ``{"layer_0": ..., "layer_1": ...}``, dropout counted in. Carry: a
        tuple, one entry a layer.

    Example::

        layer = jaxrnn.stack(jaxrnn.LSTM(128), jaxrnn.dropout(0.2), jaxrnn.LSTM(128))
    """
    if not layers:
        raise ValueError(
            "stack needs at least one cell or layer: stack(LSTM(128), LSTM(128))"
        )
    for layer in layers:
        check_cell(layer)
    return Stack(tuple(layers))


def bidirectional(
    forward: Cell | Layer,
    backward: Cell | Layer | None = None,
    *,
    merge: str = "concat",
) -> Bidirectional:
    """One layer forwards in time and one backwards, their outputs side by side
    (Schuster & Paliwal 1997)::

        y_t = [forward's y_t ; backward's y_t]

    Both are aligned with their inputs, ragged batches included: with a mask the
    backward layer begins at each sequence's own last step. ``resets`` mark sequence
    starts for both: backwards the carry is reset where a sequence ends.

    Parameters: ``{"forward": ..., "backward": ...}``. Carry: `BidirectionalCarry`;
    afterwards each holds the state at its own end: forward at the last step, backward
    at the first. So the carry cannot be passed on to a later piece of the sequence, and
    `TBPTT`, which does that, is not for layers that look ahead.

    Args:
        backward: default: configured as ``forward``, with parameters of its own.
        merge: ``"concat"`` (features side by side) or ``"sum"``.
    """
    backward = forward if backward is None else backward
    for layer in (forward, backward):
        check_cell(layer)
    if merge not in ("concat", "sum"):
        raise ValueError(
            f"bidirectional: merge must be 'concat' or 'sum', but it is {merge!r}"
        )
    return Bidirectional(forward, backward, merge)


def residual(layer: Cell | Layer) -> Residual:
    """``y = x + layer(x)``: inputs added to outputs, which must have as many features
    (He et al. 2016).

    Parameters and carry are those of ``layer``.
    """
    check_cell(layer)
    return Residual(layer)


@dataclasses.dataclass(frozen=True)
class Stack(Layer):
    """Made by `stack`."""

    layers: tuple[Cell | Layer, ...]
    reads_inputs: ClassVar[bool] = False

    def init(self, key: Array, input_size: int, dtype: Any = None) -> Params:
        params = {}
        for i, (layer, k) in enumerate(
            zip(self.layers, jax.random.split(key, len(self.layers)), strict=True)
        ):
            params[f"layer_{i}"] = init_in(layer, k, input_size, dtype)
            if i + 1 < len(self.layers):  # what the last one puts out may be any pytree
                input_size = output_size(layer, params[f"layer_{i}"], input_size)
        return params

    def check(self, params: Params) -> None:
        check_parts(
            self, params, {f"layer_{i}": layer for i, layer in enumerate(self.layers)}
        )

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> tuple[Carry, ...]:
        return tuple(
            layer.initial_carry(params[f"layer_{i}"], batch_shape, dtype)
            for i, layer in enumerate(self.layers)
        )

    def unroll(
        self, params: Params, carry: tuple[Carry, ...], xs: Array, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        together = unroll_network(
            [_side_by_side(layer) for layer in self.layers], params, carry, xs, spec
        )
        if together is not None:
            return together
        last, all_carries = [], []
        for i, layer in enumerate(self.layers):
            if i:
                check_one_array("stack", self.layers[i - 1], xs)
            end, xs, carries = unroll_unchecked(
                layer, params[f"layer_{i}"], carry[i], xs, for_part(spec, layer, i)
            )
            last.append(end)
            all_carries.append(carries)
        return tuple(last), xs, tuple(all_carries)

    def output(self, params: Params, carry: tuple[Carry, ...], x: Any) -> Any:
        for i, layer in enumerate(self.layers):
            x = layer.output(params[f"layer_{i}"], carry[i], x)
        return x


@register_for_export
class BidirectionalCarry(NamedTuple):
    """The carries of the two directions."""

    forward: Carry
    backward: Carry


@dataclasses.dataclass(frozen=True)
class Bidirectional(Layer):
    """Made by `bidirectional`."""

    forward: Cell | Layer
    backward: Cell | Layer
    merge: str = "concat"
    reads_inputs: ClassVar[bool] = False

    @property
    def causal(self) -> bool:
        return False

    def init(self, key: Array, input_size: int, dtype: Any = None) -> Params:
        k_forward, k_backward = jax.random.split(key)
        params = {
            "forward": init_in(self.forward, k_forward, input_size, dtype),
            "backward": init_in(self.backward, k_backward, input_size, dtype),
        }
        if self.merge == "sum":
            sizes = [
                output_size(getattr(self, name), params[name], input_size)
                for name in ("forward", "backward")
            ]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"bidirectional: merge='sum' needs outputs of equal size, but they "
                    f"have {sizes} features"
                )
        return params

    def check(self, params: Params) -> None:
        check_parts(self, params, {"forward": self.forward, "backward": self.backward})

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> BidirectionalCarry:
        return BidirectionalCarry(
            self.forward.initial_carry(params["forward"], batch_shape, dtype),
            self.backward.initial_carry(params["backward"], batch_shape, dtype),
        )

    def unroll(
        self, params: Params, carry: BidirectionalCarry, xs: Array, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        together = unroll_network([_side_by_side(self)], params, carry, xs, spec)
        if together is not None:
            return together
        other = for_part(spec, self.backward, 1).reversed()
        f_last, f_ys, f_all = unroll_unchecked(
            self.forward,
            params["forward"],
            carry.forward,
            xs,
            for_part(spec, self.forward, 0),
        )
        b_last, b_ys, b_all = unroll_unchecked(
            self.backward, params["backward"], carry.backward, xs, other
        )
        return (
            BidirectionalCarry(f_last, b_last),
            self._merged(f_ys, b_ys, xs),
            BidirectionalCarry(f_all, b_all),
        )

    def output(self, params: Params, carry: BidirectionalCarry, x: Any) -> Any:
        forward = self.forward.output(params["forward"], carry.forward, x)
        return self._merged(
            forward, self.backward.output(params["backward"], carry.backward, x), x
        )

    def _merged(self, forward: Any, backward: Any, xs: Any) -> Any:
        first: Any = jax.tree.structure(forward)
        if first != jax.tree.structure(backward):
            raise TypeError(
                f"bidirectional: the outputs of both directions are merged, so they "
                f"must be alike, but {describe_tree(forward)} "
                f"comes of {type(self.forward).__name__} and {describe_tree(backward)} "
                f"of "
                f"{type(self.backward).__name__}"
            )
        if self.merge == "sum":
            return jax.tree.map(jnp.add, forward, backward)
        bare = [
            part.shape
            for part in jax.tree.leaves(forward)
            if jnp.ndim(part) < jnp.ndim(xs)
        ]
        if bare:
            raise ValueError(
                f"bidirectional: merge='concat' joins the features of both directions, "
                f"but {type(self.forward).__name__} shows "
                f"an output of shape {bare[0]} for inputs {jnp.shape(xs)}, which has "
                f"no axis of features: return it as "
                "y[..., None], or take merge='sum'"
            )
        return jax.tree.map(
            lambda *both: jnp.concatenate(both, axis=-1), forward, backward
        )


@dataclasses.dataclass(frozen=True)
class Residual(Layer):
    """Made by `residual`."""

    layer: Cell | Layer
    reads_inputs: ClassVar[bool] = (
        False  # it adds them, and where masked the sum becomes zero
    )

    def init(self, key: Array, input_size: int, dtype: Any = None) -> Params:
        params = init_in(self.layer, key, input_size, dtype)
        size = output_size(self.layer, params, input_size)
        if size != input_size:
            raise ValueError(
                f"residual: the inputs have {input_size} features and "
                f"{type(self.layer).__name__} puts out {size}; they are "
                f"added, so they must be as many: give the cell "
                f"hidden_size={input_size}"
            )
        return params

    def check(self, params: Params) -> None:
        self.layer.check(params)

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Carry:
        return self.layer.initial_carry(params, batch_shape, dtype)

    def unroll(
        self, params: Params, carry: Carry, xs: Array, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        last, ys, carries = unroll_unchecked(self.layer, params, carry, xs, spec)
        check_one_array("residual", self.layer, ys)
        if xs.shape != ys.shape:
            raise ValueError(
                f"residual: the inputs have {xs.shape[-1]} features and the outputs "
                f"{ys.shape[-1]}; they are added, so they "
                "must be as many"
            )
        return last, xs + ys, carries

    def output(self, params: Params, carry: Carry, x: Any) -> Any:
        return x + self.layer.output(params, carry, x)


def _side_by_side(layer: Cell | Layer) -> tuple[Cell | Layer, ...]:
    """What walks at a time in one layer, its outputs side by side."""
    if type(layer) is Bidirectional and layer.merge == "concat":
        return layer.forward, layer.backward
    return (layer,)


def check_parts(layer: Layer, params: Params, parts: dict[str, Cell | Layer]) -> None:
    """``params`` has one entry a part, and each fits its part."""
    if not isinstance(params, dict) or set(params) != set(parts):
        came = (
            f"a dict of {sorted(params)}"
            if isinstance(params, dict)
            else describe(params)
        )
        raise TypeError(
            f"{type(layer).__name__}: its params are a dict of {sorted(parts)}, but "
            f"got {came}: init(key, input_size) makes "
            "the right one"
        )
    for name, part in parts.items():
        part.check(params[name])


def for_part(spec: UnrollSpec, part: Cell | Layer, index: int) -> UnrollSpec:
    """The same walk for part ``index`` of a layer: with a key of its own if it
    draws, without one if it does not.
    """
    return spec.replace(
        key=jax.random.fold_in(spec.key, index) if part.requires_key else None
    )


def init_in(layer: Cell | Layer, key: Array, input_size: int, dtype: Any) -> Params:
    """``layer.init``; the dtype is handed on only when one was asked for, so that a
    cell's ``init`` need not take it.
    """
    init: Any = layer.init
    if dtype is not None and "dtype" not in inspect.signature(init).parameters:
        raise TypeError(
            f"a dtype was asked for, but {type(layer).__name__}.init takes none: write "
            "init(self, key, input_size, dtype=None), or cast the parameters afterwards"
        )
    return (
        init(key, input_size) if dtype is None else init(key, input_size, dtype=dtype)
    )


def output_size(layer: Cell | Layer, params: Params, input_size: int) -> int:
    """Features that a layer puts out for ``input_size`` features in, found without
    computing anything.
    """
    ys = outputs_of(layer, params, input_size)
    check_one_array("init", layer, ys)
    return ys.shape[-1]


def outputs_of(layer: Cell | Layer, params: Params, input_size: int) -> Any:
    """Shapes of the outputs of one step without batch axes, ``(1, H)`` as a rule."""

    def one_step(params, x):
        spec = UnrollSpec(
            engine=None, key=jax.random.key(0) if layer.requires_key else None
        )
        return unroll_unchecked(layer, params, layer.initial_carry(params), x, spec)[1]

    x = jax.ShapeDtypeStruct((1, input_size), floating_dtype(params))
    return jax.eval_shape(one_step, weaken_scalars(params), x)


def check_one_array(what: str, layer: Cell | Layer, ys: Any) -> None:
    """The outputs of a layer are one array, which what comes after it takes."""
    if not hasattr(ys, "shape") or ys.ndim < 2:
        raise TypeError(
            f"{what}: what comes after {type(layer).__name__} takes one array of "
            f"features, (T, *B, D), but it puts out "
            f"{describe_tree(ys)}: let its output return one array, or place it last "
            f"in the "
            f"stack"
        )
