"""Mamba-2: a decay a head, and keys that groups of heads share."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.types import Carry, Params
from ..core.validation import check_positive
from ..initializers import Uniform
from ..matrix import Terms
from .matrix_base import (
    ProjectedMatrixCell,
    conv_width,
    draw_log_rate,
    draw_step_bias,
    join_heads,
    of_heads,
    rms_norm,
)
from .ops import along


@dataclasses.dataclass(frozen=True)
class Mamba2(ProjectedMatrixCell):
    """Mamba-2, a selective state space model with one decay a head::

        u, B, C = silu(conv(x W_u) + b_u), and so for B and C
        dt = softplus(x W_dt + dt_bias)                                 of each head
        S_t = exp(-exp(A_log) dt) S_{t-1} + B (dt u)^T
        y_t = S_t^T C + D u
        h_t = RMSNorm(y_t * silu(x W_z))                                of each group
        output = h_t W_o

    Dao & Gu (2024, arXiv:2405.21060). B is what other cells call the key, C the query
    and u the value. The gate stands before the norm, and the norm runs over all heads
    of a group. conv is a depthwise convolution over the last ``conv`` steps.

    Parameters: ``input_kernel (D, G)``, blocks u, B, C, z, and dt of one column a head;
    ``conv_kernel (conv, H + 2 groups d_k)``, whose row j is of the input j steps
    before, and ``conv_bias``; ``A_log (N,)``, ``dt_bias (N,)``, ``D (N,)``,
    ``norm_scale (H,)`` and ``output_kernel (H, O)``. Carry: `MatrixState`
    (h, S, recent). Output: ``(*B, O)``.

    The paper's models have ``hidden_size`` 2 D, heads of 64 values, a ``key_size`` of
    128 and one group.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N, the number of heads, each with a state.
        num_groups: the number of heads of B and C, a divisor of N. Each serves as many
            neighboring heads.
        key_size: d_k (default: d_v).
        conv: the width of the convolution, or None for none, and for no bias.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the two kernels. The convolution is drawn as in
            PyTorch, uniformly within ``1 / sqrt(conv)``.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, or ``num_groups``
            does not divide ``num_heads``; for sizes below 1, and for a ``conv`` below
            2.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.Mamba2(8, num_heads=2, key_size=3)
        >>> params = cell.init(jax.random.key(0), input_size=4)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 4)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 3, 4), (5, 2, 4))
    """

    _: dataclasses.KW_ONLY
    num_groups: int = 1
    conv: int | None = 4

    convolved = ("u", "B", "C")

    def __post_init__(self):
        check_positive(self, num_groups=self.num_groups)
        super().__post_init__()

    @property
    def key_heads(self) -> int:
        return self.num_groups

    @property
    def looks_back(self) -> int:
        return conv_width(self, self.conv)

    @property
    def blocks(self) -> dict[str, int]:
        keys, values = self.num_groups * self.keys, self.hidden_size
        return {"u": values, "B": keys, "C": keys, "z": values, "dt": self.num_heads}

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        k_rate, k_step = jax.random.split(key)
        heads = (self.num_heads,)
        return {
            "A_log": draw_log_rate(k_rate, heads, dtype, 1.0, 16.0),
            "dt_bias": draw_step_bias(k_step, heads, dtype),
            "D": jnp.ones(heads, dtype),
            "norm_scale": jnp.ones((self.hidden_size,), dtype),
        }

    def conv_parameters(self, key: Array, dtype: DTypeLike) -> dict[str, Array]:
        width, columns = self.looks_back, self.remembered_size({})
        bound = 1 / math.sqrt(width)
        kernel = Uniform(-bound, bound)(key, (width + 1, columns), dtype)
        return {"conv_kernel": kernel[:-1], "conv_bias": kernel[-1]}

    def look_back(
        self, params: Params, z: Float[Array, "*TB G"], recent: list[Array]
    ) -> Float[Array, "*TB G"]:
        """Return z with the convolution over u, B and C, and its bias."""
        z = super().look_back(params, z, recent)
        bias = jnp.pad(params["conv_bias"], (0, z.shape[-1] - recent[0].shape[-1]))
        return z + along(bias, z)

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return C, B, dt u and the logarithm of the decay."""
        u, B, C, dt = self.of_step(params, z)
        log_decay = -jnp.exp(along(params["A_log"], dt)) * dt
        return Terms(C, B, dt[..., None] * u, log_decay[..., None])

    def of_step(self, params: Params, z: Float[Array, "*TB G"]) -> tuple[Array, ...]:
        """Return u, B and C by heads, and dt ``(..., heads)``."""
        part = self.split(z)
        u = self.split_heads(jax.nn.silu(part["u"]))
        B, C = (self.split_key_heads(jax.nn.silu(part[name])) for name in "BC")
        return (
            u,
            B,
            C,
            jax.nn.softplus(part["dt"] + along(params["dt_bias"], part["dt"])),
        )

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB H"]:
        """Return the norm of each group, after the skip D u and the gate."""
        part = self.split(z)
        u = self.split_heads(jax.nn.silu(part["u"]))
        y = join_heads(y + of_heads(params["D"], u) * u) * jax.nn.silu(part["z"])
        size = y.shape[-1] // self.num_groups
        groups = y.reshape(*y.shape[:-1], self.num_groups, size)
        h = join_heads(rms_norm(groups, None))
        return along(params["norm_scale"], h) * h

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """Return the decay (which keeps S) and dt, ``(..., heads)``."""
        dt = self.of_step(params, z)[-1]
        decay = jnp.exp(-jnp.exp(along(params["A_log"], dt)) * dt)
        return {"decay": Gate(decay, keeps=True), "dt": Gate(dt, high=math.inf)}
