"""MGU and JANET: an LSTM and a GRU with one gate, written as a user writes a cell."""

import dataclasses

import jax
import jax.numpy as jnp
from gallery import B, D, H, T, assert_is_twin, lines_of_code, normal

import jaxrnn


@dataclasses.dataclass(frozen=True)
class MGU(jaxrnn.Cell):
    """f = σ(W_f [x; h]); h' = (1 - f) h + f tanh(W_h [x; f h])."""

    hidden_size: int

    def init(self, key, input_size):
        shape = (input_size + self.hidden_size, 2 * self.hidden_size)
        return {"kernel": jax.random.normal(key, shape) / 2}

    def step(self, params, h, x):
        gate, new = jnp.split(params["kernel"], 2, axis=-1)
        f = jax.nn.sigmoid(jnp.concatenate([x, h], axis=-1) @ gate)
        return h + f * (jnp.tanh(jnp.concatenate([x, f * h], axis=-1) @ new) - h)


@dataclasses.dataclass(frozen=True)
class Janet(jaxrnn.Cell):
    """The LSTM with its forget gate alone: c' = σ(s) c + (1 - σ(s - β)) tanh(...).

    van der Westhuizen and Lasenby (2018).
    """

    hidden_size: int
    beta: float = 1.0

    def init(self, key, input_size):
        keys, H = jax.random.split(key), self.hidden_size
        return {
            "w": jax.random.normal(keys[0], (input_size, 2 * H)) / 2,
            "u": jax.random.normal(keys[1], (H, 2 * H)) / 2,
        }

    def step(self, params, h, z):
        s, c = jnp.split(z @ params["w"] + h @ params["u"], 2, axis=-1)
        keep, write = jax.nn.sigmoid(s), 1 - jax.nn.sigmoid(s - self.beta)
        return keep * h + write * jnp.tanh(c)


def test_mgu():
    assert lines_of_code(MGU) <= 12
    cell = MGU(H)
    params = cell.init(jax.random.key(0), D)

    def step(p, h, x):
        w, u = p["kernel"][:D], p["kernel"][D:]
        f = 1 / (1 + jnp.exp(-(w[:, :H].T @ x + u[:, :H].T @ h)))
        return (1 - f) * h + f * jnp.tanh(w[:, H:].T @ x + u[:, H:].T @ (f * h))

    assert_is_twin(cell, params, normal(1, T, B, D), step, jnp.zeros(H))


def test_janet():
    cell = Janet(H)
    params = cell.init(jax.random.key(0), D)

    def step(p, h, x):
        s = p["w"][:, :H].T @ x + p["u"][:, :H].T @ h
        new = jnp.tanh(p["w"][:, H:].T @ x + p["u"][:, H:].T @ h)
        return h / (1 + jnp.exp(-s)) + new / (1 + jnp.exp(s - 1.0))

    assert_is_twin(cell, params, normal(1, T, B, D), step, jnp.zeros(H))
