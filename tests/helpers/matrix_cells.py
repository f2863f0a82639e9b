"""Cells with a matrix state, for the laws in tests/matrix: a new cell is one row."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import MLSTM, MatrixCell, Terms
from jaxrnn.cells import (
    GDN2,
    GLA,
    HGRN2,
    KDA,
    RWKV6,
    RWKV7,
    DeltaNet,
    DeltaProduct,
    GatedDeltaNet,
    Mamba2,
    Mamba3,
    MLSTMMixer,
    RetNet,
)


def unit(x):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


@dataclasses.dataclass(frozen=True)
class Rule(MatrixCell):
    """A cell of one's own for every form of the terms, by its name."""

    name: str = "linear"
    learned: bool = False
    strength: float = 1.0  # of the decays
    same_key: bool = False  # whether all steps have nearly the same key

    @property
    def micro_steps(self):
        return 2 if self.name == "products" else 1

    @property
    def reads(self):
        return "before" if self.name.endswith("before") else "after"

    @property
    def sizes(self):
        wide = self.num_heads * self.keys * self.micro_steps
        values = self.hidden_size * self.micro_steps
        return [wide] * 5 + [values, 2 * self.num_heads]

    def init(self, key, input_size):
        k_kernel, k_state = jax.random.split(key)
        shape = (input_size, sum(self.sizes))
        params = {"kernel": jax.random.normal(k_kernel, shape)}
        if self.learned:
            state = (self.num_heads, self.keys, self.values)
            params["state"] = jax.random.normal(k_state, state)
        return params

    def initial_carry(self, params, batch_shape=(), dtype=None):
        carry = super().initial_carry(params, batch_shape, dtype)
        if not self.learned:
            return carry
        S = jnp.broadcast_to(params["state"], carry.S.shape)
        return carry._replace(h=carry.h + 0.5, S=S.astype(carry.S.dtype))

    def project(self, params, x):
        return x @ params["kernel"]

    def terms(self, params, z):
        *parts, gates = jnp.split(z, np.cumsum(self.sizes)[:-1], axis=-1)
        micro = (self.micro_steps,) if self.micro_steps > 1 else ()
        heads = *micro, self.num_heads
        q, k, g, a, b, v = (
            part.reshape(*part.shape[:-1], *heads, part.shape[-1] // math.prod(heads))
            for part in parts
        )
        beta, by_head = jnp.split(
            gates.reshape(*z.shape[:-1], self.num_heads, 2), 2, -1
        )
        by_head = -self.strength * jax.nn.softplus(by_head)
        by_channel = -self.strength * jax.nn.softplus(g)
        beta, k = 2 * jax.nn.sigmoid(beta), unit(1 + k / 100 if self.same_key else k)
        if self.name == "linear":
            return Terms(q, k, v)
        if self.name == "linear_before":
            return Terms(q, k, v)
        if self.name == "head":
            return Terms(q, k, v, by_head)
        if self.name == "channel":
            return Terms(q, k, v, by_channel)
        if self.name == "channel_before":
            return Terms(q, k, v, by_channel)
        if self.name == "shared_keys":  # one head of q and k serves all of v
            return Terms(q[..., :1, :], k[..., :1, :], v, by_head)
        if self.name == "delta":
            return Terms(q, k, beta * v, a=-beta * k)
        if self.name == "head_delta":
            return Terms(q, k, beta * v, by_head, -beta * jnp.exp(by_head) * k)
        if self.name == "shared_keys_delta":
            k = k[..., :1, :]
            a = -beta * jnp.exp(by_head) * k
            return Terms(q[..., :1, :], k, beta * v, by_head, a)
        if self.name == "channel_delta":
            return Terms(q, k, beta * v, by_channel, -beta * jnp.exp(by_channel) * k)
        if self.name == "diagonal_plus_low_rank":
            return Terms(q, k, v, by_channel, -unit(a), jax.nn.sigmoid(b) * unit(a))
        if self.name == "products":
            beta = beta[..., None, :, :]
            decay = jnp.exp(by_head)[..., None, :, :]
            decay = jnp.concatenate([decay, jnp.ones_like(decay)], -3)
            return Terms(q[..., 0, :, :], k, beta * v, by_head, -beta * decay * k)
        raise ValueError(self.name)


RULES = [
    "linear",
    "linear_before",
    "head",
    "channel",
    "channel_before",
    "shared_keys",
    "delta",
    "head_delta",
    "shared_keys_delta",
    "channel_delta",
    "diagonal_plus_low_rank",
    "products",
]
MATRIX_CELLS = {
    **{name: Rule(4, num_heads=2, key_size=3, name=name) for name in RULES},
    "mlstm": MLSTM(4, num_heads=2, key_size=3),
    "gated_delta_net": GatedDeltaNet(
        4, num_heads=2, num_key_heads=1, key_size=3, allow_negative=True
    ),
    "mamba2": Mamba2(4, num_heads=2, key_size=3),
    "gla": GLA(4, num_heads=2, key_size=3, gate_rank=2),
    "retnet": RetNet(4, num_heads=2),
    "hgrn2": HGRN2(4, num_heads=2, key_size=3, lower_bound=0.2),
    "rwkv6": RWKV6(4, num_heads=2, key_size=3, mix_rank=2, decay_rank=2),
    "mamba3": Mamba3(4, num_heads=2, key_size=4),
    "mlstm_mixer": MLSTMMixer(4, num_heads=2, block_size=2, conv=3),
    "rwkv7": RWKV7(4, num_heads=2, key_size=3, decay_rank=2, rate_rank=2, gate_rank=2),
    "delta_net": DeltaNet(4, num_heads=2, num_key_heads=1, key_size=3),
    "delta_product": DeltaProduct(4, num_heads=2, num_key_heads=1, key_size=3),
    "delta_product_plain": DeltaProduct(
        4, num_heads=2, num_products=3, use_forget_gate=False, conv=None
    ),
    "kda": KDA(4, num_heads=2, num_key_heads=1, key_size=3, allow_negative=True),
    "gdn2": GDN2(4, num_heads=2, num_key_heads=1, key_size=3, allow_negative=True),
}


def with_learned_state(cell):
    """The same cell with a state before the first step that is learned."""
    name = "learned" if isinstance(cell, Rule) else "learned_initial_carry"
    return dataclasses.replace(cell, **{name: True})
