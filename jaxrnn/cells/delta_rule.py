"""What DeltaNet and the cells that came of it share."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.types import Carry, Params
from ..matrix import Terms
from .matrix_base import (
    ProjectedMatrixCell,
    check_norm_epsilon,
    conv_width,
    draw_log_rate,
    draw_step_bias,
    join_heads,
    rms_norm,
    unit_length,
)
from .ops import along


@dataclasses.dataclass(frozen=True)
class DeltaRuleCell(ProjectedMatrixCell):
    """A cell with q, k and v of a projection and a convolution; k has length 1."""

    _: dataclasses.KW_ONLY
    num_key_heads: int | None = None
    conv: int | None = 4
    allow_negative: bool = False
    use_gate: bool = True

    @property
    def key_heads(self) -> int:
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    @property
    def looks_back(self) -> int:
        return conv_width(self, self.conv)

    convolved = ("q", "k", "v")

    @property
    def convolved_blocks(self) -> dict[str, int]:
        """The columns of q, k and v; k and v have those of all micro steps."""
        keys, count = self.key_heads * self.keys, self.micro_steps
        return {"q": keys, "k": count * keys, "v": count * self.hidden_size}

    def split_micro_steps(self, x: Float[Array, "*TB F"]) -> Array:
        """Split the last axis by micro steps, if there are several."""
        if self.micro_steps == 1:
            return x
        count = self.micro_steps
        return x.reshape(*x.shape[:-1], count, x.shape[-1] // count)

    def queries_keys_values(self, part: dict[str, Array]) -> tuple[Array, Array, Array]:
        """Return q, k and v by heads; k and v may have an axis of micro steps."""
        q = self.features(self.split_key_heads(part["q"]))
        k = self.features(self.split_key_heads(self.split_micro_steps(part["k"])))
        v = self.split_heads(self.split_micro_steps(jax.nn.silu(part["v"])))
        return q * jnp.asarray(self.keys**-0.5, q.dtype), k, v

    def features(self, x: Float[Array, "*TB N K"]) -> Float[Array, "*TB N K"]:
        """Return q or k of the convolution: silu, of length 1 in each head."""
        return unit_length(jax.nn.silu(x))

    def erasing(self, x: Array) -> Array:
        """Return the sigmoid of x, or twice it with ``allow_negative``."""
        return jax.nn.sigmoid(x) * (2 if self.allow_negative else 1)

    @property
    def most_erased(self) -> float:
        """The bound of `erasing`."""
        return 2.0 if self.allow_negative else 1.0


@dataclasses.dataclass(frozen=True)
class HeadDeltaCell(DeltaRuleCell):
    """A delta rule with one beta, and at most one decay, a head."""

    _: dataclasses.KW_ONLY
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        check_norm_epsilon(self, self.norm_epsilon)

    @property
    def forgets(self) -> bool:
        """Whether the state decays."""
        return True

    @property
    def blocks(self) -> dict[str, int]:
        betas, heads = self.micro_steps * self.num_heads, self.num_heads
        alpha = {"alpha": heads} if self.forgets else {}
        gate = {"gate": self.hidden_size} if self.use_gate else {}
        return {**self.convolved_blocks, "beta": betas, **alpha, **gate}

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        k_rate, k_step = jax.random.split(key)
        heads = (self.num_heads,)
        decay = {
            "A_log": draw_log_rate(k_rate, heads, dtype, 0.0, 16.0),
            "dt_bias": draw_step_bias(k_step, heads, dtype),
        }
        scale = jnp.ones((self.values,), dtype)
        return {**(decay if self.forgets else {}), "norm_scale": scale}

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return q, k, beta v, log alpha and what is erased, -beta alpha k.

        alpha counts at the first micro step.
        """
        part = self.split(z)
        q, k, v = self.queries_keys_values(part)
        beta = self.beta(part)
        a = -beta * self.spread(k)
        if not self.forgets:
            return Terms(q, k, beta * v, a=a)
        log_alpha = self.log_alpha(params, part)
        alpha = jnp.exp(log_alpha)
        if self.micro_steps > 1:
            first, later = a[..., :1, :, :], a[..., 1:, :, :]
            a = jnp.concatenate([alpha[..., None, :, :] * first, later], axis=-3)
        else:
            a = alpha * a
        return Terms(q, k, beta * v, log_alpha, a)

    def beta(self, part: dict[str, Array]) -> Float[Array, "*TB N 1"]:
        """Return beta, with an axis of micro steps if there are several."""
        return self.erasing(self.split_micro_steps(part["beta"]))[..., None]

    def log_alpha(
        self, params: Params, part: dict[str, Array]
    ) -> Float[Array, "*TB N 1"]:
        """Return the logarithm of the decay."""
        x = part["alpha"]
        step = jax.nn.softplus(x + along(params["dt_bias"], x))
        return (-jnp.exp(along(params["A_log"], x)) * step)[..., None]

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB H"]:
        """Return the norm of each head, gated if there is a gate."""
        h = join_heads(rms_norm(y, params["norm_scale"], self.norm_epsilon))
        return h * jax.nn.silu(self.split(z)["gate"]) if self.use_gate else h

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """Return alpha (which keeps S), if it decays, and the betas of all heads."""
        part = self.split(z)
        beta = Gate(self.erasing(part["beta"]), high=self.most_erased)
        if not self.forgets:
            return {"beta": beta}
        alpha = jnp.exp(self.log_alpha(params, part)[..., 0])
        return {"alpha": Gate(alpha, keeps=True), "beta": beta}
