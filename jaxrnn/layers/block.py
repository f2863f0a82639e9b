"""The residual block in which linear recurrences are stacked.

It mixes features and adds the nonlinearity that such recurrences lack.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..cells.ops import along, dense, layer_norm
from ..core.cell import Cell
from ..core.flags import expand_flags
from ..core.layer import Layer, check_cell
from ..core.types import Carry, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_features, check_one_array, check_positive
from ..initializers import LecunNormal
from ..unrolling import unroll_unchecked
from .compose import check_one_output, check_parts, init_in, output_size


def residual_block(layer: Cell | Layer, width: int) -> ResidualBlock:
    """Build a pre-norm residual block with a gated linear unit (GLU)::

        e = x, or x W_e + b_e if x does not have ``width`` features
        u = GELU(layer(norm(e)))
        y = e + (u W_v + b_v) * sigmoid(u W_g + b_g)

    Orvieto et al. (2023, figure 1); Smith et al. (2023, appendix B). Use it to stack
    linear cells (`LRU`, `S5`, `MinGRU`): by itself such a cell computes only a linear
    map of its inputs (or gates of them), and a stack of blocks is nonlinear. Any other
    cell or layer may be used as well.

    Parameters: ``layer``, those of the layer; ``norm_scale (width,)``; ``kernel (O, 2
    width)`` and ``bias (2 width,)``, packed v, g, for O outputs of the layer; if D is
    not ``width`` also ``embed_kernel (D, width)`` and ``embed_bias (width,)``. Carry:
    the layer's. Output: ``(T, *B, width)``.

    Args:
        layer: a cell or a layer whose output is one array.
        width: the number of features between blocks.

    Returns:
        A layer for `unroll` and `stack`.

    Raises:
        TypeError: if ``layer`` is no cell or layer.
        ValueError: if ``width`` is not an int of at least 1.

    Example::

        >>> import jax, jaxrnn
        >>> blocks = [jaxrnn.residual_block(jaxrnn.LRU(8), width=4) for _ in range(2)]
        >>> layer = jaxrnn.stack(*blocks)
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 4)
    """
    check_cell(layer)
    return ResidualBlock(layer, width)


@dataclasses.dataclass(frozen=True)
class ResidualBlock(Layer):
    """The layer that `residual_block` builds: norm, layer, GELU, GLU and a skip.

    Attributes:
        layer: the cell or layer inside.
        width: the number of features between blocks.

    Example:
        >>> import jax, jaxrnn
        >>> block = jaxrnn.residual_block(jaxrnn.GRU(6), width=4)
        >>> params = block.init(jax.random.key(0), input_size=3)
        >>> params["kernel"].shape, params["embed_kernel"].shape
        ((6, 8), (3, 4))
        >>> "embed_kernel" in block.init(jax.random.key(0), input_size=4)
        False
    """

    layer: Cell | Layer
    width: int

    def __post_init__(self):
        check_positive(self, width=self.width)

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        check_positive(self, input_size=input_size)
        k_embed, k_layer, k_kernel = jax.random.split(key, 3)
        dtype = dtype or jnp.result_type(float)
        inner = init_in(
            self.layer,
            k_layer,
            self.width,
            dtype if dtype != jnp.result_type(float) else None,
        )
        init, outputs = LecunNormal(), output_size(self.layer, inner, self.width)
        params = {
            "layer": inner,
            "norm_scale": jnp.ones((self.width,), dtype),
            "kernel": init(k_kernel, (outputs, 2 * self.width), dtype),
            "bias": jnp.zeros((2 * self.width,), dtype),
        }
        if input_size != self.width:
            params["embed_kernel"] = init(k_embed, (input_size, self.width), dtype)
            params["embed_bias"] = jnp.zeros((self.width,), dtype)
        return params

    def check(self, params: Params) -> None:
        own = {"norm_scale", "kernel", "bias"}
        if isinstance(params, dict) and set(params) - {
            "embed_kernel",
            "embed_bias",
        } == own | {"layer"}:
            self.layer.check(params["layer"])
        else:
            check_parts(
                self, params, dict.fromkeys(sorted(own | {"layer"}), self.layer)
            )

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        return self.layer.initial_carry(params["layer"], batch_shape, dtype)

    def unroll(
        self, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec
    ) -> tuple[Carry, Array, Carry]:
        embedded = self._embedded(params, xs)
        last, ys, carries = unroll_unchecked(
            self.layer,
            params["layer"],
            carry,
            layer_norm(embedded, params["norm_scale"]),
            spec,
        )
        check_one_output("block", self.layer, ys)
        ys = self._mixed(params, embedded, ys)
        return (
            last,
            ys if spec.mask is None else jnp.where(expand_flags(spec.mask, ys), ys, 0),
            carries,
        )

    def output(self, params: Params, carry: Carry, x: Inputs) -> Array:
        embedded = self._embedded(params, x)
        y = self.layer.output(
            params["layer"], carry, layer_norm(embedded, params["norm_scale"])
        )
        return self._mixed(params, embedded, y)

    def _embedded(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB W"]:
        """Return e: the inputs, mapped to ``width`` features where that is needed."""
        check_one_array("residual_block", x)
        if "embed_kernel" not in params:
            if x.shape[-1] != self.width:
                raise ValueError(
                    f"residual_block: the parameters were made for inputs of "
                    f"{self.width} features, the block's width, but the inputs have "
                    f"{x.shape[-1]}: make them with init(key, "
                    f"input_size={x.shape[-1]})"
                )
            return x
        check_features(self, params["embed_kernel"], x)
        embedded = dense(x, params["embed_kernel"])
        return embedded + along(params["embed_bias"], embedded)

    def _mixed(
        self, params: Params, embedded: Float[Array, "*TB W"], y: Float[Array, "*TB O"]
    ) -> Float[Array, "*TB W"]:
        """Return the output of the block, from e and the layer's outputs y."""
        packed = dense(jax.nn.gelu(y), params["kernel"])
        value, gate = jnp.split(packed + along(params["bias"], packed), 2, axis=-1)
        return embedded + value * jax.nn.sigmoid(gate)
