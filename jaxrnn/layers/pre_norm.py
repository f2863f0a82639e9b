"""Pre-norm residual blocks around any cell, and the gated MLP that follows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact

from ..cells import ops
from ..core.cell import Cell
from ..core.layer import Layer, check_cell
from ..core.types import Carry, Inputs, Params
from ..core.validation import check_features, check_params, check_positive
from ..initializers import LecunNormal
from .compose import Stack, residual, stack
from .pointwise import AbstractStateless, Norm, dense, rms_norm
from .skip import multiply


def pre_norm_block(
    layer: Cell | Layer,
    width: int,
    *,
    mlp: Layer | None = None,
    norm: Norm | None = None,
) -> Stack:
    """Build a residual block that normalizes before its layer, and before its MLP::

        e = x, or x W_e + b_e if x does not have ``width`` features
        u = e + layer(norm(e))
        y = u + mlp(norm(u))                                    if there is an ``mlp``

    Such blocks are stacked in the networks of Mamba, Gated DeltaNet, Griffin and xLSTM
    (pre-norm: Xiong et al. 2020, arXiv:2002.04745). An output of the layer that does
    not have ``width`` features is mapped to them as x is. The outputs are sums over all
    blocks below, so that a network normalizes once more above the last block.

    Parameters: those of a `stack` of `match_features`, a `residual` layer, and, with an
    ``mlp``, another. Carry: theirs. Output: ``(T, *B, width)``.

    Args:
        layer: a cell or a layer whose output is one array.
        width: the number of features between blocks.
        mlp: a layer with ``width`` input and output features, as `gated_mlp` or
            `rwkv_channel_mix`, or None for none.
        norm: the norm before both (default: ``rms_norm()``).

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        TypeError: if ``layer`` or ``mlp`` is no cell or layer.
        ValueError: if ``width`` is not an int of at least 1.

    Example::

        >>> import jax, jaxrnn
        >>> from jaxrnn.layers import gated_mlp, pre_norm_block
        >>> cell = jaxrnn.cells.GatedDeltaNet(8, num_heads=2)
        >>> block = pre_norm_block(cell, 4, mlp=gated_mlp(4, 16))
        >>> params = block.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(block, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 4)
    """
    check_cell(layer)
    norm = rms_norm() if norm is None else norm
    fits = match_features(width)
    parts: list[Any] = [fits, residual(stack(norm, layer, fits))]
    if mlp is not None:
        check_cell(mlp)
        parts.append(residual(stack(norm, mlp)))
    return stack(*parts)


def gated_mlp(
    features: int,
    hidden: int,
    activation: Callable[[Array], Array] = jax.nn.silu,
    use_bias: bool = False,
) -> Stack:
    """Map the features of every step by a gated hidden layer::

        y = (f(x W_g) * (x W_v)) W_o

    Shazeer (2020, arXiv:2002.05202): SwiGLU with silu, GEGLU with gelu. Parameters:
    those of a `stack` of a product of two `dense` layers, and a third. Carry: empty.

    Args:
        features: the number of output features.
        hidden: the number of hidden units.
        activation: f, an elementwise function.
        use_bias: whether each of the three maps adds a bias.

    Returns:
        A layer for `stack`, or for `pre_norm_block` as its ``mlp``.

    Raises:
        ValueError: if a size is not an int of at least 1.
        TypeError: if ``activation`` is no function.

    Example::

        >>> import jax, jaxrnn
        >>> mlp = jaxrnn.layers.gated_mlp(3, 8)
        >>> params = mlp.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(mlp, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 3)
    """
    gate = dense(hidden, activation, use_bias)
    value = dense(hidden, use_bias=use_bias)
    return stack(multiply(gate, value), dense(features, use_bias=use_bias))


def match_features(features: int) -> MatchFeatures:
    """Map inputs to ``features`` by ``x W + b``, unless they have so many.

    With as many features the layer is the identity and has no parameters. Else these
    are ``kernel (D, features)`` and ``bias (features,)``. Carry: empty.

    Args:
        features: the number of output features.

    Returns:
        A layer for `stack`.

    Raises:
        ValueError: if ``features`` is not an int of at least 1.

    Example::

        >>> import jax, jaxrnn
        >>> layer = jaxrnn.layers.match_features(4)
        >>> layer.init(jax.random.key(0), input_size=4)
        {}
        >>> layer.init(jax.random.key(0), input_size=3)["kernel"].shape
        (3, 4)
    """
    return MatchFeatures(features)


@dataclasses.dataclass(frozen=True)
class MatchFeatures(AbstractStateless):
    """The layer that `match_features` builds: a linear map, or the identity.

    Attributes:
        features: the number of output features.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.layers.match_features(2)
        >>> jaxrnn.unroll(layer, {}, jnp.array([[1.0, 2.0]]))[1].tolist()
        [[1.0, 2.0]]
        >>> params = {"kernel": jnp.array([[1.0, 10.0]]), "bias": jnp.zeros(2)}
        >>> jaxrnn.unroll(layer, params, jnp.array([[3.0]]))[1].tolist()
        [[3.0, 30.0]]
    """

    features: int
    feature_ndim = 1

    def __post_init__(self):
        check_positive(self, features=self.features)

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        check_positive(self, input_size=input_size)
        if input_size == self.features:
            return {}
        dtype = dtype or jnp.result_type(float)
        return {
            "kernel": LecunNormal()(key, (input_size, self.features), dtype),
            "bias": jnp.zeros((self.features,), dtype),
        }

    def check(self, params: Params) -> None:
        if params != {}:
            inputs = (jnp.shape(params.get("kernel", 0.0)) or (1,))[0]
            kernel = jax.ShapeDtypeStruct((inputs, self.features), jnp.float32)
            bias = jax.ShapeDtypeStruct((self.features,), jnp.float32)
            check_params(self, params, {"kernel": kernel, "bias": bias})

    def output_features(self, params: Params, input_size: int) -> int | None:
        return self.features

    def output(
        self, params: Params, carry: Carry, x: Inputs
    ) -> Inexact[Array, "*TB F"]:
        if "kernel" in params:
            check_features(self, params["kernel"], x)
            y = ops.dense(x, params["kernel"])
            return y + ops.along(params["bias"], y)
        if x.shape[-1] != self.features:
            raise ValueError(
                f"match_features: the parameters were made for inputs of "
                f"{self.features} features, but the inputs have {x.shape[-1]}: make "
                f"them with init(key, input_size={x.shape[-1]})"
            )
        return x
