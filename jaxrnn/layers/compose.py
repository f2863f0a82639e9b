"""Layers composed of cells and layers: stacked, bidirectional and residual ones."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from ..core.arrays import is_array
from ..core.cell import Cell
from ..core.dtypes import floating_dtype, weaken_scalars
from ..core.exported import register_for_export
from ..core.layer import Layer, check_cell
from ..core.parts_in_errors import naming_part
from ..core.types import Carry, Inputs, Params, PyTree
from ..core.unroll_spec import UnrollSpec
from ..core.validation import (
    check_input_size,
    check_one_array,
    describe,
    describe_tree,
    lead_ndim,
)
from ..unrolling import unroll_part, unroll_unchecked
from .fused_network import unroll_network


def stack(*layers: Cell | Layer) -> Stack:
    """Stack layers: the outputs of each are the inputs of the next.

    Parameters: ``{"layer_0": ..., "layer_1": ...}``, one entry for each layer, also for
    one without parameters such as `dropout`. Carry: a tuple with one entry for each
    layer. Output: that of the last layer.

    Args:
        *layers: cells and layers, from the input to the output.

    Returns:
        A layer for `unroll`.

    Raises:
        ValueError: if no layer is given.
        TypeError: if an argument is no cell or layer.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.LSTM(4), jaxrnn.LSTM(4))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))
        >>> sorted(params), len(carry), ys.shape
        (['layer_0', 'layer_1'], 2, (5, 2, 4))
    """
    if not layers:
        raise ValueError(
            "stack needs at least one cell or layer: stack(LSTM(128), LSTM(128))"
        )
    for layer in layers:
        check_separate("stack", "stack(*layers)", layer)
        check_cell(layer)
    return Stack(tuple(layers))


def bidirectional(
    forward: Cell | Layer,
    backward: Cell | Layer | None = None,
    *,
    merge: str = "concat",
) -> Bidirectional:
    """Run one layer forward and one backward in time, and merge their outputs::

        y_t = [forward's y_t ; backward's y_t]

    Schuster & Paliwal (1997). Both outputs are aligned with the inputs, also in a
    ragged batch: with a mask the backward layer begins at each sequence's own last
    step. ``resets`` mark sequence starts for both layers; the backward carry is reset
    where a sequence ends.

    Parameters: ``{"forward": ..., "backward": ...}``. Carry: `BidirectionalCarry`. The
    last carry holds the state at the end of each direction: forward at the last step,
    backward at the first. It therefore cannot be passed on to a later piece of the
    sequence, and neither streaming calls nor `TBPTT` support layers that look ahead.

    Args:
        forward: a cell or layer.
        backward: a cell or layer (default: configured as ``forward``, with parameters
            of its own).
        merge: ``"concat"`` (features side by side) or ``"sum"``.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        TypeError: if an argument is no cell or layer.
        ValueError: for any other ``merge``.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.bidirectional(jaxrnn.GRU(4))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))
        >>> ys.shape
        (5, 2, 8)
    """
    backward = forward if backward is None else backward
    for layer in (forward, backward):
        check_separate("bidirectional", "bidirectional(forward, backward)", layer)
        check_cell(layer)
    if merge not in ("concat", "sum"):
        raise ValueError(
            f"bidirectional: merge must be 'concat' or 'sum', but it is {merge!r}"
        )
    return Bidirectional(forward, backward, merge)


def residual(layer: Cell | Layer) -> Residual:
    """Add a skip connection around a layer: ``y = x + layer(x)`` (He et al. 2016).

    Parameters and carry are those of ``layer``.

    Args:
        layer: a cell or layer with as many output features as input features.

    Returns:
        A layer for `unroll` and `stack`. Its ``init`` raises ValueError if the numbers
        of features differ.

    Raises:
        TypeError: if ``layer`` is no cell or layer.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.residual(jaxrnn.GRU(3))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 3)
    """
    check_cell(layer)
    return Residual(layer)


@dataclasses.dataclass(frozen=True)
class Stack(Layer):
    """The layer that `stack` builds: each layer reads the outputs of the one before it.

    Attributes:
        layers: the cells and layers, first the one that reads the inputs.

    Example:
        >>> import jax, jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.LSTM(4), jaxrnn.layers.dense(2))
        >>> [type(part).__name__ for part in layer.layers]
        ['LSTM', 'Dense']
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> sorted(params), layer.output_features(params, 3)
        (['layer_0', 'layer_1'], 2)
    """

    layers: tuple[Cell | Layer, ...]
    reads_inputs: ClassVar[bool] = False

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        params = {}
        for i, (layer, k) in enumerate(
            zip(self.layers, jax.random.split(key, len(self.layers)), strict=True)
        ):
            with naming_part(f"layer_{i}", layer):
                params[f"layer_{i}"] = init_in(layer, k, input_size, dtype)
                if i + 1 < len(self.layers):  # the last output may be any pytree
                    input_size = output_size(layer, params[f"layer_{i}"], input_size)
        return params

    def check(self, params: Params) -> None:
        check_parts(
            self, params, {f"layer_{i}": layer for i, layer in enumerate(self.layers)}
        )

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> tuple[Carry, ...]:
        return tuple(
            layer.initial_carry(params[f"layer_{i}"], batch_shape, dtype)
            for i, layer in enumerate(self.layers)
        )

    def unroll(
        self, params: Params, carry: tuple[Carry, ...], xs: Inputs, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        # An engine such as cuDNN may run the whole network in one call.
        fused = unroll_network(
            [_side_by_side(layer) for layer in self.layers], params, carry, xs, spec
        )
        if fused is not None:
            return fused
        last_carries, all_carries = [], []
        lead = lead_ndim(xs, self.feature_ndim)
        for i, layer in enumerate(self.layers):
            if i:
                check_one_output("stack", self.layers[i - 1], xs)
                _check_lead(layer, xs, lead)
            last_carry, xs, carries = unroll_part(
                layer, params[f"layer_{i}"], carry[i], xs, spec, i
            )
            last_carries.append(last_carry)
            all_carries.append(carries)
        return tuple(last_carries), xs, tuple(all_carries)

    def output_features(self, params: Params, input_size: int) -> int | None:
        for i, layer in enumerate(self.layers):
            with naming_part(f"layer_{i}", layer):
                input_size = output_size(layer, params[f"layer_{i}"], input_size)
        return input_size

    def output(self, params: Params, carry: tuple[Carry, ...], x: Inputs) -> Any:
        for i, layer in enumerate(self.layers):
            x = layer.output(params[f"layer_{i}"], carry[i], x)
        return x


@register_for_export
class BidirectionalCarry(NamedTuple):
    """The carries of the two directions of a `bidirectional` layer.

    Attributes:
        forward: that of the layer that runs forward, after `unroll` that of the last
            step.
        backward: that of the layer that runs backward, after `unroll` that of the first
            step.

    Example:
        >>> import jax, jaxrnn
        >>> layer = jaxrnn.bidirectional(jaxrnn.GRU(4))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
        >>> carry, ys = jaxrnn.unroll(layer, params, xs)
        >>> bool((carry.forward == ys[-1, :, :4]).all())
        True
        >>> bool((carry.backward == ys[0, :, 4:]).all())
        True
    """

    forward: Carry
    backward: Carry


@dataclasses.dataclass(frozen=True)
class Bidirectional(Layer):
    """The layer that `bidirectional` builds: one layer forward, one backward in time.

    Attributes:
        forward: the cell or layer that runs from the first step to the last.
        backward: the one that runs from the last step to the first.
        merge: ``"concat"`` or ``"sum"``, what is made of their outputs.

    Example:
        >>> import jax, jaxrnn
        >>> layer = jaxrnn.bidirectional(jaxrnn.GRU(4), merge="sum")
        >>> layer.backward == jaxrnn.GRU(4), layer.causal
        (True, False)
        >>> layer.output_features(layer.init(jax.random.key(0), input_size=3), 3)
        4
    """

    forward: Cell | Layer
    backward: Cell | Layer
    merge: str = "concat"
    reads_inputs: ClassVar[bool] = False

    @property
    def causal(self) -> bool:
        return False

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        k_forward, k_backward = jax.random.split(key)
        params = {
            "forward": init_in(self.forward, k_forward, input_size, dtype),
            "backward": init_in(self.backward, k_backward, input_size, dtype),
        }
        if self.merge == "sum":
            sizes = [
                output_size(self.forward, params["forward"], input_size),
                output_size(self.backward, params["backward"], input_size),
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
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> BidirectionalCarry:
        return BidirectionalCarry(
            self.forward.initial_carry(params["forward"], batch_shape, dtype),
            self.backward.initial_carry(params["backward"], batch_shape, dtype),
        )

    def unroll(
        self, params: Params, carry: BidirectionalCarry, xs: Inputs, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        # An engine such as cuDNN may run both directions in one call.
        fused = unroll_network([_side_by_side(self)], params, carry, xs, spec)
        if fused is not None:
            return fused
        f_last, f_ys, f_all = unroll_part(
            self.forward, params["forward"], carry.forward, xs, spec, 0
        )
        b_last, b_ys, b_all = unroll_part(
            self.backward, params["backward"], carry.backward, xs, spec.reversed(), 1
        )
        return (
            BidirectionalCarry(f_last, b_last),
            self._merged(f_ys, b_ys, xs),
            BidirectionalCarry(f_all, b_all),
        )

    def output_features(self, params: Params, input_size: int) -> int | None:
        sizes = [
            output_size(self.forward, params["forward"], input_size),
            output_size(self.backward, params["backward"], input_size),
        ]
        return sizes[0] if self.merge == "sum" else sum(sizes)

    def output(self, params: Params, carry: BidirectionalCarry, x: Inputs) -> Any:
        forward = self.forward.output(params["forward"], carry.forward, x)
        return self._merged(
            forward, self.backward.output(params["backward"], carry.backward, x), x
        )

    def _merged(self, forward: Any, backward: Any, xs: Inputs) -> Any:
        """Concatenate or add the outputs of the two directions, leaf by leaf."""
        structure: Any = jax.tree.structure(forward)
        if structure != jax.tree.structure(backward):
            raise TypeError(
                f"bidirectional: the outputs of both directions are merged, so they "
                f"must have the same structure, but {type(self.forward).__name__} "
                f"returns {describe_tree(forward)} and {type(self.backward).__name__} "
                f"{describe_tree(backward)}"
            )
        if self.merge == "sum":
            return jax.tree.map(jnp.add, forward, backward)
        featureless = [
            part.shape
            for part in jax.tree.leaves(forward)
            if jnp.ndim(part) <= lead_ndim(xs, self.feature_ndim)
        ]
        if featureless:
            raise ValueError(
                f"bidirectional: merge='concat' joins the features of both directions, "
                f"but {type(self.forward).__name__} returns an output of shape "
                f"{featureless[0]} for inputs {describe_tree(xs)}, which has no "
                f"feature axis: return y[..., None], or use merge='sum'"
            )
        return jax.tree.map(
            lambda *both: jnp.concatenate(both, axis=-1), forward, backward
        )


@dataclasses.dataclass(frozen=True)
class Residual(Layer):
    """The layer that `residual` builds: the inputs plus the outputs of a layer.

    Attributes:
        layer: the cell or layer around which the inputs go.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.residual(jaxrnn.layers.dense(1, use_bias=False))
        >>> params = {"kernel": jnp.array([[2.0]])}
        >>> jaxrnn.unroll(layer, params, jnp.array([[1.0], [5.0]]))[1].ravel().tolist()
        [3.0, 15.0]
    """

    layer: Cell | Layer
    # It only adds its inputs, and the sum becomes zero at masked steps.
    reads_inputs: ClassVar[bool] = False

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        params = init_in(self.layer, key, input_size, dtype)
        size = output_size(self.layer, params, input_size)
        if size != input_size:
            raise ValueError(
                f"residual: the inputs have {input_size} features and the outputs of "
                f"{type(self.layer).__name__} have {size}; they are added, so the "
                f"numbers must be equal: give the cell hidden_size={input_size}"
            )
        return params

    def check(self, params: Params) -> None:
        self.layer.check(params)

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        return self.layer.initial_carry(params, batch_shape, dtype)

    def unroll(
        self, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        check_one_array("residual", xs)
        last, ys, carries = unroll_unchecked(self.layer, params, carry, xs, spec)
        check_one_output("residual", self.layer, ys)
        if xs.shape != ys.shape:
            raise ValueError(
                f"residual: the inputs have {xs.shape[-1]} features and the outputs "
                f"{ys.shape[-1]}; they are added, so the numbers must be equal"
            )
        return last, xs + ys, carries

    def output_features(self, params: Params, input_size: int) -> int | None:
        return input_size

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        return x + self.layer.output(params, carry, x)


def check_separate(what: str, call: str, layer: Cell | Layer) -> None:
    """Check that a layer is no list of layers, where each is an argument of its own."""
    if isinstance(layer, (list, tuple)):
        raise TypeError(
            f"{what} takes every layer as an argument of its own, {call}, but it got "
            f"a {type(layer).__name__} of {len(layer)}"
        )


def _check_lead(layer: Cell | Layer, xs: Array, lead: int) -> None:
    """Check that a cell in a stack sees the axes before the features as the stack."""
    if isinstance(layer, Cell) and lead_ndim(xs, layer.feature_ndim) != lead:
        raise ValueError(
            f"stack: {type(layer).__name__} has feature_ndim = {layer.feature_ndim}, "
            f"and the inputs that the layers below make for it are {tuple(xs.shape)}, "
            f"but the stack has {lead} axes of time and batch: flatten the features "
            f"below it, or say what the first layer takes, as "
            f"jaxrnn.layers.apply(f, feature_ndim=0) does for tokens"
        )


def _side_by_side(layer: Cell | Layer) -> tuple[Cell | Layer, ...]:
    """Return the parts of one layer that run at the same time.

    These are the two directions of a `bidirectional` layer that concatenates, or else
    the layer itself.
    """
    if type(layer) is Bidirectional and layer.merge == "concat":
        return layer.forward, layer.backward
    return (layer,)


def check_parts(layer: Layer, params: Params, parts: dict[str, Cell | Layer]) -> None:
    """Check that ``params`` have one entry for each part, and that each fits."""
    if not isinstance(params, dict) or set(params) != set(parts):
        got = (
            f"a dict of {sorted(params)}"
            if isinstance(params, dict)
            else describe(params)
        )
        raise TypeError(
            f"{type(layer).__name__}: its params are a dict of {sorted(parts)}, but "
            f"got {got}: init(key, input_size) makes the right one"
        )
    for name, part in parts.items():
        with naming_part(name, part):
            part.check(params[name])


def init_in(
    layer: Cell | Layer, key: Array, input_size: int, dtype: DTypeLike | None
) -> Params:
    """Call ``layer.init``, and pass ``dtype`` on only if it is not None.

    The ``init`` of a user's cell then does not need to take a dtype.
    """
    check_input_size(layer, input_size)
    init: Any = layer.init
    if dtype is not None and "dtype" not in inspect.signature(init).parameters:
        raise TypeError(
            f"dtype was given, but {type(layer).__name__}.init does not take it: write "
            "init(self, key, input_size, dtype=None), or cast the parameters afterwards"
        )
    return (
        init(key, input_size) if dtype is None else init(key, input_size, dtype=dtype)
    )


def output_size(layer: Cell | Layer, params: Params, input_size: int) -> int:
    """Return the number of output features for ``input_size`` input features.

    Where the layer does not say (`Cell.output_features`), it is traced on one vector;
    nothing is computed.
    """
    known = layer.output_features(params, input_size)
    if known is not None:
        return known
    ndim, name = layer.feature_ndim, type(layer).__name__
    if layer.takes_context or ndim not in (1, None):
        what = "a context" if layer.takes_context else f"inputs of feature_ndim {ndim}"
        raise ValueError(
            f"{name}: its number of output features is not known, because it takes "
            f"{what}: define output_features(self, params, input_size) in it"
        )
    ys = outputs_of(layer, params, input_size)
    check_one_output("init", layer, ys)
    return ys.shape[-1]


def outputs_of(layer: Cell | Layer, params: Params, input_size: int) -> Any:
    """Return the output shapes for one step without batch axes, usually ``(1, H)``."""

    def one_step(params, x):
        spec = UnrollSpec(
            engine=None, key=jax.random.key(0) if layer.requires_key else None
        )
        return unroll_unchecked(layer, params, layer.initial_carry(params), x, spec)[1]

    x = jax.ShapeDtypeStruct((1, input_size), floating_dtype(params))
    return jax.eval_shape(one_step, weaken_scalars(params), x)


def check_one_output(what: str, layer: Cell | Layer, ys: PyTree) -> None:
    """Check that a layer's outputs are one array, as the operation after it needs."""
    if not is_array(ys) or ys.ndim < 2:
        raise TypeError(
            f"{what}: the operation after {type(layer).__name__} takes one array of "
            f"features, (T, *B, D), but its output is {describe_tree(ys)}: let its "
            f"output return one array, or place it last in the stack"
        )
