"""Layers that join two signals: a skip by concatenation, and a product."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from ..core.cell import Cell
from ..core.layer import Layer, check_cell
from ..core.types import Carry, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_one_array
from ..unrolling import unroll_part, unroll_unchecked
from .compose import check_one_output, check_parts, init_in, output_size


def concat(layer: Cell | Layer) -> Concat:
    """Add a skip connection by concatenation: ``y = [x ; layer(x)]``.

    The layers above see the inputs beside the outputs (Graves 2013, arXiv:1308.0850;
    Huang et al. 2017, arXiv:1608.06993). Parameters and carry are those of ``layer``.

    Args:
        layer: a cell or layer whose output is one array.

    Returns:
        A layer for `unroll` and `stack` with as many output features as ``layer`` has
        input and output features together.

    Raises:
        TypeError: if ``layer`` is no cell or layer.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.concat(jaxrnn.GRU(4))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 7)
    """
    check_cell(layer)
    return Concat(layer)


def multiply(first: Cell | Layer, second: Cell | Layer) -> Multiply:
    """Multiply the outputs of two layers with the same input: ``y = a(x) * b(x)``.

    With a sigmoid at the end of one of them it is a gate for the other (Dauphin et al.
    2017, arXiv:1612.08083). Parameters: ``{"layer_0": ..., "layer_1": ...}``. Carry: a
    tuple with one entry for each layer.

    Args:
        first: a cell or layer.
        second: a cell or layer with as many output features.

    Returns:
        A layer for `unroll` and `stack`. Its ``init`` raises ValueError if the numbers
        of output features differ.

    Raises:
        TypeError: if an argument is no cell or layer.

    Example::

        >>> import jax, jaxrnn
        >>> gate = jaxrnn.layers.dense(4, jax.nn.sigmoid)
        >>> layer = jaxrnn.layers.multiply(jaxrnn.GRU(4), gate)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 4)
    """
    for layer in (first, second):
        check_cell(layer)
    return Multiply((first, second))


@dataclasses.dataclass(frozen=True)
class Concat(Layer):
    """The layer that `concat` builds: the inputs beside the outputs of a layer.

    Attributes:
        layer: the cell or layer.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.layers.concat(jaxrnn.layers.dense(1, use_bias=False))
        >>> params = {"kernel": jnp.array([[2.0]])}
        >>> jaxrnn.unroll(layer, params, jnp.array([[1.0], [5.0]]))[1].tolist()
        [[1.0, 2.0], [5.0, 10.0]]
    """

    layer: Cell | Layer
    # It only passes its inputs on, and they become zero at masked steps.
    reads_inputs: ClassVar[bool] = False

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        return init_in(self.layer, key, input_size, dtype)

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
        self, params: Params, carry: Carry, xs: Array, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        check_one_array("concat", xs)
        last, ys, carries = unroll_unchecked(self.layer, params, carry, xs, spec)
        check_one_output("concat", self.layer, ys)
        return last, _side_by_side(xs, ys), carries

    def output_features(self, params: Params, input_size: int) -> int | None:
        return input_size + output_size(self.layer, params, input_size)

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        return _side_by_side(x, self.layer.output(params, carry, x))


def _side_by_side(x: Array, y: Array) -> Array:
    """Concatenate inputs and outputs along their features."""
    if x.dtype != y.dtype:
        raise TypeError(
            f"concat: the inputs are {x.dtype} and the outputs {y.dtype}, and nothing "
            f"is promoted silently: cast one of them, e.g. with jaxrnn.layers.apply"
        )
    return jnp.concatenate([x, y], axis=-1)


@dataclasses.dataclass(frozen=True)
class Multiply(Layer):
    """The layer that `multiply` builds: the product of the outputs of two layers.

    Attributes:
        layers: the two cells or layers, which read the same inputs.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> square, minus = map(jaxrnn.layers.apply, (jnp.square, jnp.negative))
        >>> layer = jaxrnn.layers.multiply(square, minus)
        >>> params = {"layer_0": {}, "layer_1": {}}
        >>> jaxrnn.unroll(layer, params, jnp.array([[1.0], [3.0]]))[1].tolist()
        [[-1.0], [-27.0]]
    """

    layers: tuple[Cell | Layer, Cell | Layer]

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        params = {
            f"layer_{i}": init_in(layer, k, input_size, dtype)
            for i, (layer, k) in enumerate(
                zip(self.layers, jax.random.split(key), strict=True)
            )
        }
        sizes = [
            output_size(layer, params[f"layer_{i}"], input_size)
            for i, layer in enumerate(self.layers)
        ]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"multiply: the outputs are multiplied feature by feature, so their "
                f"numbers must be equal, but {type(self.layers[0]).__name__} has "
                f"{sizes[0]} and {type(self.layers[1]).__name__} has {sizes[1]}"
            )
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
        lasts, ys, carries = zip(
            *(
                unroll_part(layer, params[f"layer_{i}"], carry[i], xs, spec, i)
                for i, layer in enumerate(self.layers)
            ),
            strict=True,
        )
        for layer, y in zip(self.layers, ys, strict=True):
            check_one_output("multiply", layer, y)
        return lasts, ys[0] * ys[1], carries

    def output_features(self, params: Params, input_size: int) -> int | None:
        return output_size(self.layers[0], params["layer_0"], input_size)

    def output(self, params: Params, carry: tuple[Carry, ...], x: Inputs) -> Any:
        first, second = (
            layer.output(params[f"layer_{i}"], carry[i], x)
            for i, layer in enumerate(self.layers)
        )
        return first * second
