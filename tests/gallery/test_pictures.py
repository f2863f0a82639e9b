"""A ConvLSTM, written as a user writes a cell: pictures have three feature axes."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from gallery import B, D, T, assert_is_twin, lines_of_code, normal

import jaxrnn


@dataclasses.dataclass(frozen=True)
class ConvLSTM(jaxrnn.Cell):
    """An LSTM of which every product is a convolution (Shi et al. 2015)."""

    channels: int
    size: tuple[int, int]
    feature_ndim: ClassVar = 3

    def init(self, key, input_size):
        shape = (3, 3, input_size + self.channels, 4 * self.channels)
        return {"kernel": jax.random.normal(key, shape) / 5}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = jnp.zeros((*batch_shape, *self.size, self.channels))
        return jaxrnn.LSTMState(zeros, zeros)

    def step(self, params, carry, x):
        x = jnp.concatenate([x, carry.h], axis=-1)
        x, kernel = x.reshape(-1, *x.shape[-3:]), params["kernel"]
        axes = ("NHWC", "HWIO", "NHWC")
        z = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, axes)
        i, f, g, o = jnp.split(z.reshape(*carry.h.shape[:-1], -1), 4, axis=-1)
        c = jax.nn.sigmoid(f) * carry.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jaxrnn.LSTMState(jax.nn.sigmoid(o) * jnp.tanh(c), c)


def test_conv_lstm():
    assert lines_of_code(ConvLSTM) <= 20
    Y, X, C = 3, 4, 2
    cell = ConvLSTM(C, (Y, X))
    params = cell.init(jax.random.key(0), D)

    def step(p, carry, x):
        both = jnp.pad(jnp.concatenate([x, carry.h], -1), ((1, 1), (1, 1), (0, 0)))
        z = sum(
            both[a : a + Y, b : b + X] @ p["kernel"][a, b]
            for a in range(3)
            for b in range(3)
        )
        i, f, o = (1 / (1 + jnp.exp(-z[..., n * C : n * C + C])) for n in (0, 1, 3))
        c = f * carry.c + i * jnp.tanh(z[..., 2 * C : 3 * C])
        return jaxrnn.LSTMState(o * jnp.tanh(c), c)

    zeros = jnp.zeros((Y, X, C))
    assert_is_twin(
        cell,
        params,
        normal(1, T, B, Y, X, D),
        step,
        jaxrnn.LSTMState(zeros, zeros),
        lambda s, x: s.h,
    )
