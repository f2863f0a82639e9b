"""Mamba-3: a trapezoidal rule, and rotations that depend on the inputs."""

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
from ..matrix import Terms
from .matrix_base import (
    ProjectedMatrixCell,
    draw_step_bias,
    is_real,
    join_heads,
    of_heads,
    rms_norm,
)
from .ops import along

# The slowest decay of a unit of time.
LEAST_RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Mamba3(ProjectedMatrixCell):
    """Mamba-3 with one input and one output, whose states rotate as the inputs say::

        u, B, C = x W_u, RMSNorm(x W_B) + b_B, RMSNorm(x W_C) + b_C
        dt = softplus(x W_dt + dt_bias),     alpha = exp(-max(softplus(x W_A), 1e-4) dt)
        lambda = sigmoid(x W_lambda),        theta = pi tanh(x W_theta) dt
        S_t = alpha R(-theta) (S_{t-1} + (1 - lambda) dt B_{t-1} u_{t-1}^T)
              + lambda dt B_t u_t^T
        h_t = (S_t^T C + D u) * silu(x W_z)                             of each head
        output = h_t W_o

    Lahoti et al. (2026, arXiv:2603.15569). The two writes are the trapezoidal rule: an
    input counts at both ends of the interval that follows it, in shares lambda.
    R(-theta) rotates pairs of channels of the keys; the paper rotates B and C by the
    sum of the angles so far instead, which is the same. Rotations let a state count,
    and so solve parity.

    Parameters: ``input_kernel (D, G)``, blocks u, B, C, z; dt, A and lambda of one
    column a head; theta of R columns; ``B_scale (d_k,)``, ``C_scale (d_k,)``,
    ``B_bias (N, d_k)``, ``C_bias (N, d_k)``, ``dt_bias (N,)``, ``D (N,)`` and
    ``output_kernel (H, O)``. Carry: `MatrixState` (h, S, recent), S as the query of the
    last step sees it, and what B and u were made of in the last two steps. Output:
    ``(*B, O)``.

    The paper's models have ``hidden_size`` 2 D, heads of 64 values, a ``key_size`` of
    128 and one group; they have no convolution.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N, the number of heads, each with a state.
        num_groups: the number of heads of B and C before their biases, a divisor of N.
        key_size: d_k (default: d_v), at least ``2 / rotary_fraction``.
        rotary_fraction: the share of the channels of a key that rotate, above 0 and at
            most 1: ``R = rotary_fraction d_k / 2``, rounded down.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the two kernels.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, or ``num_groups``
            does not divide ``num_heads``; for sizes below 1, and where no pair of
            channels rotates.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.Mamba3(8, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 4, 4), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    num_groups: int = 1
    rotary_fraction: float = 0.5

    # What the next step reads of this one.
    convolved = ("u", "B")

    def __post_init__(self):
        check_positive(self, num_groups=self.num_groups)
        super().__post_init__()
        fraction = self.rotary_fraction
        if not is_real(fraction) or not 0 < fraction <= 1 or not self.num_angles:
            raise ValueError(
                f"Mamba3: at least one pair of channels of a key must rotate, so "
                f"rotary_fraction must be above 0 and at most 1, and d_k at least "
                f"2 / rotary_fraction, but d_k is {self.keys} and rotary_fraction "
                f"{fraction!r}: set key_size"
            )

    @property
    def num_angles(self) -> int:
        """R, the number of pairs of channels that rotate."""
        return int(self.rotary_fraction * self.keys) // 2

    @property
    def key_heads(self) -> int:
        return self.num_groups

    @property
    def blocks(self) -> dict[str, int]:
        keys, heads = self.num_groups * self.keys, self.num_heads
        wide = {"u": self.hidden_size, "B": keys, "C": keys, "z": self.hidden_size}
        return {
            **wide,
            "dt": heads,
            "A": heads,
            "lambda": heads,
            "theta": self.num_angles,
        }

    # A step is two: it completes the interval before, and begins its own.
    @property
    def micro_steps(self) -> int:
        return 2

    @property
    def looks_back(self) -> int:
        return 2

    def conv_parameters(self, key: Array, dtype: DTypeLike) -> dict[str, Array]:
        return {}

    def look_back(
        self, params: Params, z: Float[Array, "*TB G"], recent: list[Array]
    ) -> Float[Array, "*TB Z"]:
        """Return z, and u and B of the step before behind it."""
        return jnp.concatenate([z, recent[1].astype(z.dtype)], axis=-1)

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        heads, keys = (self.num_heads,), (self.keys,)
        return {
            "dt_bias": draw_step_bias(key, heads, dtype),
            "B_scale": jnp.ones(keys, dtype),
            "C_scale": jnp.ones(keys, dtype),
            "B_bias": jnp.ones(heads + keys, dtype),
            "C_bias": jnp.ones(heads + keys, dtype),
            "D": jnp.ones(heads, dtype),
        }

    def terms(self, params: Params, z: Float[Array, "*TB Z"]) -> Terms:
        """Return the terms of both writes, the first in the frame of the step before.

        The state decays and rotates between them.
        """
        z, before = self.apart(z)
        part = self.split(z)
        dt, log_alpha, share = self.gates(params, part)
        u, u_before = self.split_heads(part["u"]), self.split_heads(before["u"])
        values = [((1 - share) * dt)[..., None] * u_before, (share * dt)[..., None] * u]
        keys = [self.key(params, "B", of["B"]) for of in (before, part)]
        theta = jnp.pi * jnp.tanh(part["theta"])[..., None, :] * dt[..., None]

        def second(x):
            return jnp.stack([jnp.zeros_like(x), x], axis=-3)

        return Terms(
            self.key(params, "C", part["C"]),
            jnp.stack(keys, axis=-3),
            jnp.stack(values, axis=-3),
            second(log_alpha[..., None]),
            turn=second(theta),
        )

    def apart(self, z: Float[Array, "*TB Z"]) -> tuple[Array, dict[str, Array]]:
        """Return z, and u and B of the step before."""
        own = sum(self.blocks.values())
        z, u, B = jnp.split(z, [own, own + self.hidden_size], axis=-1)
        return z, {"u": u, "B": B}

    def gates(self, params: Params, part: dict[str, Array]) -> tuple[Array, ...]:
        """Return dt, log alpha and lambda, ``(..., heads)``."""
        dt = jax.nn.softplus(part["dt"] + along(params["dt_bias"], part["dt"]))
        rate = jax.nn.softplus(part["A"])
        rate = jnp.maximum(rate, jnp.asarray(LEAST_RATE, rate.dtype))
        return dt, -rate * dt, jax.nn.sigmoid(part["lambda"])

    def key(
        self, params: Params, name: str, x: Float[Array, "*TB F"]
    ) -> Float[Array, "*TB N K"]:
        """Return the norm of x, which is B or C, with its bias."""
        x = self.spread(rms_norm(self.split_key_heads(x), params[f"{name}_scale"]))
        bias = params[f"{name}_bias"].astype(x.dtype)
        return x + bias.reshape((1,) * (x.ndim - 2) + bias.shape)

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Float[Array, "*TB Z"]
    ) -> Float[Array, "*TB H"]:
        """Return what was read and the skip D u, gated."""
        part = self.split(self.apart(z)[0])
        u = self.split_heads(part["u"])
        h = join_heads(y + of_heads(params["D"], u) * u)
        return h * jax.nn.silu(part["z"])

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """Return alpha (which keeps S), dt and lambda, ``(..., heads)``."""
        part = self.split(z[..., : sum(self.blocks.values())])
        dt, log_alpha, share = self.gates(params, part)
        return {
            "alpha": Gate(jnp.exp(log_alpha), keeps=True),
            "dt": Gate(dt, high=math.inf),
            "lambda": Gate(share),
        }
