"""Cells with time scales: clockwork, phased LSTM, LTC, CfC, coRNN and LEM."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from gallery import B, D, H, T, assert_is_twin, normal

import jaxrnn


class Timed(NamedTuple):
    """A state and the number of steps before it."""

    h: jax.Array
    time: jax.Array


@dataclasses.dataclass(frozen=True)
class Clockwork(jaxrnn.Cell):
    """Blocks of units, each of which runs in its own period (Koutník et al. 2014).

    A block reads the blocks of its own and of longer periods only.
    """

    periods: tuple[int, ...]
    width: int

    def init(self, key, input_size):
        n = len(self.periods) * self.width
        k, r = jax.random.split(key)
        return {
            "kernel": jax.random.normal(k, (input_size, n)) / 2,
            "recurrent": jax.random.normal(r, (n, n)) / 2,
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        n = len(self.periods) * self.width
        zeros = jnp.zeros((*batch_shape, n), params["kernel"].dtype)
        return Timed(zeros, jnp.zeros(batch_shape, jnp.int32))

    def project(self, params, x):
        return x @ params["kernel"]

    def step(self, params, carry, z):
        period = jnp.repeat(jnp.array(self.periods), self.width)
        seen = (period[:, None] >= period[None]).astype(z.dtype)
        new = jnp.tanh(z + carry.h @ (params["recurrent"] * seen))
        active = carry.time[..., None] % period.astype(jnp.int32) == 0
        return Timed(jnp.where(active, new, carry.h), carry.time + 1)


class Phase(NamedTuple):
    """The states of a phased LSTM."""

    h: jax.Array
    c: jax.Array


@dataclasses.dataclass(frozen=True)
class Phased(jaxrnn.Cell):
    """An LSTM that opens in a rhythm of its own (Neil, Pfeiffer and Liu 2016).

    Inputs are ``(features, time stamp)``.
    """

    hidden_size: int
    leak: float = 0.01
    feature_ndim: ClassVar = (1, 0)

    def init(self, key, input_size):
        inner, tau, shift = jax.random.split(key, 3)
        H = self.hidden_size
        return {
            "lstm": jaxrnn.LSTM(H).init(inner, input_size),
            "tau": 1 + 3 * jax.random.uniform(tau, (H,)),
            "shift": jax.random.uniform(shift, (H,)),
            "open": jnp.full((H,), 0.4),
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jaxrnn.LSTM(self.hidden_size).initial_carry(params["lstm"], batch_shape)

    def step(self, params, carry, z):
        x, time = z
        lstm = jaxrnn.LSTM(self.hidden_size)
        phase = ((time[..., None] - params["shift"]) / params["tau"]) % 1.0
        share = phase / params["open"]
        k = jnp.where(share < 1, 2 * share, 2 * (2 - share))
        k = jnp.where(share < 0.5, 2 * share, k)
        k = jnp.where(share > 1, self.leak * phase, jnp.where(share > 0.5, 2 - k, k))
        new = lstm.step(params["lstm"], carry, lstm.project(params["lstm"], x))
        return jax.tree.map(lambda a, b: k * a + (1 - k) * b, new, carry)


@dataclasses.dataclass(frozen=True)
class Liquid(jaxrnn.Cell):
    """A liquid time constant: h' = (h + Δ f A) / (1 + Δ (1/τ + f)), f = σ(W [x; h]).

    One fused step of Hasani et al. (2021). Inputs are ``(features, elapsed time Δ)``.
    """

    hidden_size: int
    feature_ndim: ClassVar = (1, 0)

    def init(self, key, input_size):
        w, u, a, t = jax.random.split(key, 4)
        H = self.hidden_size
        return {
            "w": jax.random.normal(w, (input_size, H)) / 2,
            "u": jax.random.normal(u, (H, H)) / 2,
            "target": jax.random.normal(a, (H,)),
            "rate": jax.random.uniform(t, (H,)),
        }

    def step(self, params, h, z):
        x, dt = z[0], z[1][..., None]
        f = jax.nn.sigmoid(x @ params["w"] + h @ params["u"])
        return (h + dt * f * params["target"]) / (1 + dt * (params["rate"] + f))


@dataclasses.dataclass(frozen=True)
class ClosedForm(jaxrnn.Cell):
    """CfC: h' = σ(-f Δ) g + (1 - σ(-f Δ)) k with heads f, g, k of [x; h].

    Hasani et al. (2022), equation 4. Inputs are ``(features, elapsed time Δ)``.
    """

    hidden_size: int
    feature_ndim: ClassVar = (1, 0)

    def init(self, key, input_size):
        w, u = jax.random.split(key)
        H = self.hidden_size
        return {
            "w": jax.random.normal(w, (input_size, 3 * H)) / 2,
            "u": jax.random.normal(u, (H, 3 * H)) / 2,
        }

    def project(self, params, x):
        return x[0] @ params["w"], x[1][..., None]

    def step(self, params, h, z):
        f, g, k = jnp.split(z[0] + h @ params["u"], 3, axis=-1)
        gate = jax.nn.sigmoid(-f * z[1])
        return gate * jnp.tanh(g) + (1 - gate) * jnp.tanh(k)


class Oscillator(NamedTuple):
    """Position y, which is shown, and velocity."""

    h: jax.Array
    velocity: jax.Array


@dataclasses.dataclass(frozen=True)
class CoRNN(jaxrnn.Cell):
    """Coupled damped oscillators (Rusch and Mishra 2021)."""

    hidden_size: int
    dt: float = 0.1
    gamma: float = 1.0
    epsilon: float = 0.5

    def init(self, key, input_size):
        v, w, u = jax.random.split(key, 3)
        H = self.hidden_size
        return {
            "v": jax.random.normal(v, (input_size, H)) / 2,
            "w": jax.random.normal(w, (H, H)) / 2,
            "u": jax.random.normal(u, (H, H)) / 2,
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = super().initial_carry(params, batch_shape, dtype)
        return Oscillator(zeros, zeros)

    def project(self, params, x):
        return x @ params["v"]

    def step(self, params, carry, z):
        y, v = carry
        force = jnp.tanh(y @ params["w"] + v @ params["u"] + z)
        v = v + self.dt * (force - self.gamma * y - self.epsilon * v)
        return Oscillator(y + self.dt * v, v)


class Memory(NamedTuple):
    """The fast state y, which is shown, and the slow state z."""

    h: jax.Array
    slow: jax.Array


@dataclasses.dataclass(frozen=True)
class LEM(jaxrnn.Cell):
    """Long expressive memory: two learned time steps (Rusch et al. 2022)."""

    hidden_size: int
    dt: float = 1.0

    def init(self, key, input_size):
        v, w, u = jax.random.split(key, 3)
        H = self.hidden_size
        return {
            "v": jax.random.normal(v, (input_size, 4 * H)) / 2,
            "w": jax.random.normal(w, (H, 3 * H)) / 2,
            "u": jax.random.normal(u, (H, H)) / 2,
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = super().initial_carry(params, batch_shape, dtype)
        return Memory(zeros, zeros)

    def project(self, params, x):
        return x @ params["v"]

    def step(self, params, carry, z):
        y, slow = carry
        r1, r2, rz = jnp.split(y @ params["w"], 3, axis=-1)
        v1, v2, vz, vy = jnp.split(z, 4, axis=-1)
        d1 = self.dt * jax.nn.sigmoid(r1 + v1)
        d2 = self.dt * jax.nn.sigmoid(r2 + v2)
        slow = (1 - d1) * slow + d1 * jnp.tanh(rz + vz)
        return Memory((1 - d2) * y + d2 * jnp.tanh(slow @ params["u"] + vy), slow)


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def elapsed(key=5):
    return jnp.abs(normal(key, T, B)) + 0.1


def test_clockwork():
    cell = Clockwork((1, 2, 4), 2)
    params = cell.init(jax.random.key(0), D)

    def step(p, carry, x):
        h, time = carry
        new = []
        for i, period in enumerate(cell.periods):
            at = slice(2 * i, 2 * i + 2)
            # Blocks of longer or equal periods come at the same place or later.
            seen = h[2 * i :] @ p["recurrent"][2 * i :, at]
            block = jnp.tanh(x @ p["kernel"][:, at] + seen)
            new.append(jnp.where(time % period == 0, block, h[at]))
        return Timed(jnp.concatenate(new), time + 1)

    initial = Timed(jnp.zeros(6), jnp.zeros((), jnp.int32))
    assert_is_twin(cell, params, normal(1, T, B, D), step, initial, lambda s, x: s.h)


def test_phased_lstm():
    cell = Phased(H)
    params = cell.init(jax.random.key(0), D)

    def step(p, carry, now):
        x, time = now
        w = p["lstm"]
        z = x @ w["input_kernel"] + carry.h @ w["recurrent_kernel"] + w["bias"]
        i, f, g, o = (z[n * H : (n + 1) * H] for n in range(4))
        c = sigmoid(f) * carry.c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        phase = jnp.mod(time - p["shift"], p["tau"]) / p["tau"]
        k = jnp.select(
            [phase < p["open"] / 2, phase < p["open"]],
            [2 * phase / p["open"], 2 - 2 * phase / p["open"]],
            cell.leak * phase,
        )
        return jaxrnn.LSTMState(k * h + (1 - k) * carry.h, k * c + (1 - k) * carry.c)

    initial = jaxrnn.LSTMState(jnp.zeros(H), jnp.zeros(H))
    times = jnp.cumsum(elapsed(), axis=0)
    xs = (normal(1, T, B, D), times)
    assert_is_twin(cell, params, xs, step, initial, lambda s, x: s.h)


def test_ltc_and_cfc_with_irregular_steps():
    xs = (normal(1, T, B, D), elapsed())

    def liquid(p, h, now):
        x, dt = now
        f = sigmoid(p["w"].T @ x + p["u"].T @ h)
        return (h + dt * f * p["target"]) / (1 + dt * p["rate"] + dt * f)

    def closed(p, h, now):
        x, dt = now
        f, g, k = ((p["w"].T @ x + p["u"].T @ h)[n * H : n * H + H] for n in (0, 1, 2))
        return (jnp.tanh(g) + jnp.exp(f * dt) * jnp.tanh(k)) / (1 + jnp.exp(f * dt))

    for cell, step in ((Liquid(H), liquid), (ClosedForm(H), closed)):
        params = cell.init(jax.random.key(0), D)
        assert_is_twin(cell, params, xs, step, jnp.zeros(H))


def test_cornn():
    cell = CoRNN(H)
    params = cell.init(jax.random.key(0), D)

    def step(p, carry, x):
        y, v = carry
        pull = jnp.tanh(p["w"].T @ y + p["u"].T @ v + p["v"].T @ x) - y - v / 2
        return Oscillator(y + 0.1 * (v + 0.1 * pull), v + 0.1 * pull)

    initial = Oscillator(jnp.zeros(H), jnp.zeros(H))
    assert_is_twin(cell, params, normal(1, T, B, D), step, initial, lambda s, x: s.h)


def test_lem():
    cell = LEM(H)
    params = cell.init(jax.random.key(0), D)

    def step(p, carry, x):
        y, slow = carry
        v = (p["v"].T @ x).reshape(4, H)
        r = (p["w"].T @ y).reshape(3, H)
        slow = slow + sigmoid(r[0] + v[0]) * (jnp.tanh(r[2] + v[2]) - slow)
        new = jnp.tanh(p["u"].T @ slow + v[3])
        return Memory(y + sigmoid(r[1] + v[1]) * (new - y), slow)

    initial = Memory(jnp.zeros(H), jnp.zeros(H))
    assert_is_twin(cell, params, normal(1, T, B, D), step, initial, lambda s, x: s.h)
