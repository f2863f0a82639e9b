"""The block in which linear recurrences are stacked: what mixes features, and what
makes the whole nonlinear.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..cells.ops import along, dense, layer_norm
from ..core.cell import Carry, Cell, Layer, Params, UnrollSpec, check_cell, expand_flags
from ..core.validation import check_features, check_positive
from ..initializers import LecunNormal
from ..unrolling import unroll_unchecked
from .compose import check_one_array, check_parts, init_in, output_size


def residual_block(layer: Cell | Layer, width: int) -> ResidualBlock:
    """Normalization, the layer, GELU, a gated linear unit and a skip connection
    (Orvieto et al. 2023, figure 1; Smith et al. 2023, appendix B)::

        e = x, or x W_e + b_e where x has not ``width`` features
        u = GELU(layer(norm(e)))
        y = e + (u W_v + b_v) * sigmoid(u W_g + b_g)

    A linear cell by itself computes nothing that one linear map of all inputs could
    not; stacked in blocks it does.

    Parameters: ``layer``, its own; ``norm_scale (width,)``; ``kernel (O, 2 width)`` and
    ``bias``, packed v, g, for O outputs of the layer; and ``embed_kernel (D, width)``,
    ``embed_bias`` where D is not ``width``. Carry: the layer's. Any layer fits.

    Args:
        width: features that go on from block to block.

    Example::

        layer = jaxrnn.stack(*[jaxrnn.residual_block(jaxrnn.LRU(128), 64) for _ in
        range(4)])
    """
    check_cell(layer)
    return ResidualBlock(layer, width)


@dataclasses.dataclass(frozen=True)
class ResidualBlock(Layer):
    """Made by `residual_block`."""

    layer: Cell | Layer
    width: int

    def __post_init__(self):
        check_positive(self, width=self.width)

    def init(self, key: Array, input_size: int, dtype: Any = None) -> Params:
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
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Carry:
        return self.layer.initial_carry(params["layer"], batch_shape, dtype)

    def unroll(
        self, params: Params, carry: Carry, xs: Array, spec: UnrollSpec
    ) -> tuple[Carry, Array, Carry]:
        embedded = self._embedded(params, xs)
        last, ys, carries = unroll_unchecked(
            self.layer,
            params["layer"],
            carry,
            layer_norm(embedded, params["norm_scale"]),
            spec,
        )
        check_one_array("block", self.layer, ys)
        ys = self._mixed(params, embedded, ys)
        return (
            last,
            ys if spec.mask is None else jnp.where(expand_flags(spec.mask, ys), ys, 0),
            carries,
        )

    def output(self, params: Params, carry: Carry, x: Any) -> Array:
        embedded = self._embedded(params, x)
        y = self.layer.output(
            params["layer"], carry, layer_norm(embedded, params["norm_scale"])
        )
        return self._mixed(params, embedded, y)

    def _embedded(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB W"]:
        if "embed_kernel" not in params:
            if x.shape[-1] != self.width:
                raise ValueError(
                    f"block: made for inputs of {self.width} features, its width, but "
                    f"they have {x.shape[-1]}: "
                    "init(key, input_size) makes parameters for others"
                )
            return x
        check_features(self, params["embed_kernel"], x)
        embedded = dense(x, params["embed_kernel"])
        return embedded + along(params["embed_bias"], embedded)

    def _mixed(
        self, params: Params, embedded: Float[Array, "*TB W"], y: Float[Array, "*TB O"]
    ) -> Float[Array, "*TB W"]:
        packed = dense(jax.nn.gelu(y), params["kernel"])
        value, gate = jnp.split(packed + along(params["bias"], packed), 2, axis=-1)
        return embedded + value * jax.nn.sigmoid(gate)
