"""Cells whose state is a memory: fast weights, NTM, gated DeltaNet, selective SSM."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from gallery import (
    B,
    D,
    H,
    T,
    assert_is_twin,
    assert_same,
    flags,
    lines_of_code,
    normal,
    rows,
    with_gradients,
)

import jaxrnn
from jaxrnn.extending import unroll_part

K, V = 3, 2  # the sizes of keys and values


class Fast(NamedTuple):
    """The hidden state, which is shown, and the fast weights (*B, H, H)."""

    h: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class FastWeights(jaxrnn.Cell):
    """Ba et al. (2016): A' = λ A + η h h^T, and one inner step of h with it."""

    hidden_size: int
    decay: float = 0.9
    rate: float = 0.5

    def init(self, key, input_size):
        w, u = jax.random.split(key)
        return {
            "w": jax.random.normal(w, (input_size, self.hidden_size)) / 2,
            "u": jax.random.normal(u, (self.hidden_size,) * 2) / 2,
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        h = super().initial_carry(params, batch_shape, dtype)
        return Fast(h, jnp.zeros((*h.shape, self.hidden_size), h.dtype))

    def step(self, params, carry, z):
        h, fast = carry
        fast = self.decay * fast + self.rate * h[..., None] * h[..., None, :]
        drive = z @ params["w"] + h @ params["u"]
        inner = jnp.tanh(drive)
        seen = jnp.einsum("...ij,...j->...i", fast, inner)
        return Fast(jnp.tanh(drive + seen), fast)


class Tape(NamedTuple):
    """A controller's state, the memory (*B, N, M), what was read, and the head."""

    h: jax.Array
    memory: jax.Array
    read: jax.Array
    head: jax.Array


@dataclasses.dataclass(frozen=True)
class NTM(jaxrnn.Cell):
    """A neural Turing machine with one head (Graves, Wayne and Danihelka 2014)."""

    hidden_size: int
    slots: int
    width: int

    def init(self, key, input_size):
        w, u, r, o = jax.random.split(key, 4)
        H, M = self.hidden_size, self.width
        return {
            "w": jax.random.normal(w, (input_size, H)) / 2,
            "u": jax.random.normal(u, (H, H)) / 2,
            "r": jax.random.normal(r, (M, H)) / 2,
            "head": jax.random.normal(o, (H, 3 * M + 6)) / 2,
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        h = super().initial_carry(params, batch_shape, dtype)
        empty = jnp.full((*batch_shape, self.slots, self.width), 1e-2, h.dtype)
        head = jnp.full((*batch_shape, self.slots), 1 / self.slots, h.dtype)
        return Tape(h, empty, jnp.zeros((*batch_shape, self.width), h.dtype), head)

    def step(self, params, carry, z):
        h = z @ params["w"] + carry.h @ params["u"] + carry.read @ params["r"]
        h, M = jnp.tanh(h), self.width
        key, erase, add, rest = jnp.split(
            h @ params["head"], (M, 2 * M, 3 * M), axis=-1
        )
        sharp, gate, power = (rest[..., i : i + 1] for i in range(3))
        norms = jnp.linalg.norm(carry.memory, axis=-1) * jnp.linalg.norm(
            key, axis=-1, keepdims=True
        )
        near = jnp.einsum("...nm,...m->...n", carry.memory, key) / (norms + 1e-8)
        found = jax.nn.softmax(jax.nn.softplus(sharp) * near, axis=-1)
        gate = jax.nn.sigmoid(gate)
        head = gate * found + (1 - gate) * carry.head
        shift = jax.nn.softmax(rest[..., 3:], axis=-1)
        head = sum(
            shift[..., i : i + 1] * jnp.roll(head, i - 1, axis=-1) for i in range(3)
        )
        head = head ** (1 + jax.nn.softplus(power))
        head = head / head.sum(-1, keepdims=True)
        at = head[..., None]
        memory = carry.memory * (1 - at * jax.nn.sigmoid(erase)[..., None, :])
        memory = memory + at * add[..., None, :]
        return Tape(h, memory, jnp.einsum("...n,...nm->...m", head, memory), head)

    def output(self, params, carry, x):
        return jnp.concatenate([carry.h, carry.read], axis=-1)


@dataclasses.dataclass(frozen=True)
class GatedDelta(jaxrnn.Cell):
    """Gated DeltaNet: S' = α (I - β k k^T) S + β k v^T, y = S^T q.

    Yang, Kautz and Hatamizadeh (2025), with one head. The carry is S (*B, K, V).
    """

    key_size: int
    value_size: int

    def init(self, key, input_size):
        size = 2 * self.key_size + self.value_size + 2
        return {"kernel": jax.random.normal(key, (input_size, size)) / 2}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        shape = (*batch_shape, self.key_size, self.value_size)
        return jnp.zeros(shape, dtype or params["kernel"].dtype)

    def parts(self, params, x):
        n, m = self.key_size, self.value_size
        q, k, v, alpha, beta = jnp.split(
            x @ params["kernel"], (n, 2 * n, 2 * n + m, 2 * n + m + 1), axis=-1
        )
        k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
        return q, k, v, jax.nn.sigmoid(alpha)[..., None], jax.nn.sigmoid(beta)

    def project(self, params, x):
        return self.parts(params, x)

    def step(self, params, state, z):
        _, k, v, alpha, beta = z
        state = alpha * state
        old = jnp.einsum("...k,...kv->...v", k, state)
        return state + k[..., None] * (beta * (v - old))[..., None, :]

    def output(self, params, state, x):
        return jnp.einsum("...kv,...k->...v", state, self.parts(params, x)[0])


@dataclasses.dataclass(frozen=True)
class SelectiveSSM(jaxrnn.LinearCell):
    """h' = exp(Δ A) h + Δ B x, y = C h + D x, with Δ, B and C read from x.

    Gu and Dao (2023), the core of Mamba. The carry is (*B, D, N).
    """

    size: int
    state: int

    def init(self, key, input_size):
        a, p = jax.random.split(key)
        width = self.size + 2 * self.state
        return {
            "log_a": jax.random.normal(a, (self.size, self.state)) / 2,
            "kernel": jax.random.normal(p, (input_size, width)) / 2,
            "skip": jnp.linspace(0.5, 1.5, self.size),
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        shape = (*batch_shape, self.size, self.state)
        return jnp.zeros(shape, dtype or params["skip"].dtype)

    def parts(self, params, x):
        split = (self.size, self.size + self.state)
        dt, b, c = jnp.split(x @ params["kernel"], split, axis=-1)
        return jax.nn.softplus(dt), b, c

    def project(self, params, x):
        dt, b, _ = self.parts(params, x)
        a = jnp.exp(-dt[..., None] * jnp.exp(params["log_a"]))
        return a, (dt * x)[..., None] * b[..., None, :]

    def affine(self, params, z):
        return z

    def output(self, params, state, x):
        c = self.parts(params, x)[2]
        return jnp.einsum("...dn,...n->...d", state, c) + params["skip"] * x


@dataclasses.dataclass(frozen=True)
class MambaBlock(jaxrnn.Layer):
    """out(core(silu(in_1 x)) * silu(in_2 x)): the core in its gated block."""

    core: SelectiveSSM

    def init(self, key, input_size, dtype=None):
        i, c, o = jax.random.split(key, 3)
        D = self.core.size
        return {
            "in": jax.random.normal(i, (input_size, 2 * D)) / 2,
            "core": self.core.init(c, D),
            "out": jax.random.normal(o, (D, input_size)) / 2,
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return self.core.initial_carry(params["core"], batch_shape, dtype)

    def unroll(self, params, carry, xs, spec):
        value, gate = jnp.split(xs @ params["in"], 2, axis=-1)
        last, ys, carries = unroll_part(
            self.core, params["core"], carry, jax.nn.silu(value), spec
        )
        return last, ys * jax.nn.silu(gate) @ params["out"], carries


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def test_fast_weights():
    cell = FastWeights(H)
    params = cell.init(jax.random.key(0), D)

    def step(p, carry, x):
        a = 0.9 * carry.weights + 0.5 * jnp.outer(carry.h, carry.h)
        drive = p["w"].T @ x + p["u"].T @ carry.h
        return Fast(jnp.tanh(drive + a @ jnp.tanh(drive)), a)

    initial = Fast(jnp.zeros(H), jnp.zeros((H, H)))
    assert_is_twin(cell, params, normal(1, T, B, D), step, initial, lambda s, x: s.h)


def test_ntm():
    cell = NTM(H, slots=5, width=3)
    params = cell.init(jax.random.key(0), D)

    def step(p, carry, x):
        h = jnp.tanh(p["w"].T @ x + p["u"].T @ carry.h + p["r"].T @ carry.read)
        out = p["head"].T @ h
        key, erase, add, rest = out[:3], out[3:6], out[6:9], out[9:]
        sizes = jnp.sqrt((carry.memory**2).sum(1)) * jnp.sqrt((key**2).sum())
        score = jnp.log1p(jnp.exp(rest[0])) * (carry.memory @ key) / (sizes + 1e-8)
        weight = jnp.exp(score) / jnp.exp(score).sum()
        weight = carry.head + sigmoid(rest[1]) * (weight - carry.head)
        shift = jnp.exp(rest[3:]) / jnp.exp(rest[3:]).sum()
        turned = jnp.stack(
            [
                sum(shift[j] * weight[(i + 1 - j) % 5] for j in range(3))
                for i in range(5)
            ]
        )
        head = turned ** (1 + jnp.log1p(jnp.exp(rest[2])))
        head = head / head.sum()
        memory = carry.memory - carry.memory * jnp.outer(head, sigmoid(erase))
        memory = memory + jnp.outer(head, add)
        return Tape(h, memory, memory.T @ head, head)

    initial = jax.tree.map(lambda a: a, cell.initial_carry(params))
    assert_is_twin(
        cell,
        params,
        normal(1, T, B, D),
        step,
        initial,
        lambda s, x: jnp.concatenate([s.h, s.read]),
    )


def test_gated_deltanet():
    cell = GatedDelta(K, V)
    params = cell.init(jax.random.key(0), D)

    def step(p, state, x):
        z = p["kernel"].T @ x
        k = z[K : 2 * K] / jnp.sqrt((z[K : 2 * K] ** 2).sum())
        v, alpha, beta = z[2 * K : 2 * K + V], sigmoid(z[-2]), sigmoid(z[-1])
        return alpha * (jnp.eye(K) - beta * jnp.outer(k, k)) @ state + (
            beta * jnp.outer(k, v)
        )

    def output(state, x):
        return state.T @ (params["kernel"].T @ x)[:K]

    # The twin's output reads params by closure, so their gradient is compared through
    # the state alone; values are compared in whole.
    xs = normal(1, T, B, D)
    ours = dataclasses.make_dataclass(
        "Read", [], bases=(GatedDelta,), frozen=True, namespace={"output": _state}
    )(K, V)
    assert_is_twin(ours, params, xs, step, jnp.zeros((K, V)))
    full = jaxrnn.unroll(cell, params, xs)[1]
    state, ys = jnp.zeros((B, K, V)), []
    for x in xs:
        state = jax.vmap(lambda s, x: step(params, s, x))(state, x)
        ys.append(jax.vmap(output)(state, x))
    assert jnp.abs(full - jnp.stack(ys)).max() < 1e-12


def _state(self, params, state, x):
    return state


def test_selective_ssm_in_its_block():
    block = MambaBlock(SelectiveSSM(H, 2))
    params = block.init(jax.random.key(0), D)

    def core(p, state, x):
        z = p["kernel"].T @ x
        dt, b = jnp.log1p(jnp.exp(z[:H])), z[H : H + 2]
        return jnp.exp(-jnp.outer(dt, jnp.ones(2)) * jnp.exp(p["log_a"])) * (
            state
        ) + jnp.outer(dt * x, b)

    def silu(x):
        return x * sigmoid(x)

    def step(p, carry, x):
        state, _ = carry
        value, gate = (p["in"].T @ x)[:H], (p["in"].T @ x)[H:]
        u = silu(value)
        state = core(p["core"], state, u)
        y = state @ (p["core"]["kernel"].T @ u)[H + 2 :] + p["core"]["skip"] * u
        return state, p["out"].T @ (y * silu(gate))

    xs = normal(1, T, B, D)
    for engine in (None, jaxrnn.Associative(chunk=2)):
        assert_is_block(block, params, xs, step, engine)


def assert_is_block(block, params, xs, step, engine):
    """The block's outputs and their gradients are those of the twin."""
    given = flags()
    initial = (jnp.zeros((H, 2)), jnp.zeros(D))

    def twin(params, xs):
        return rows(
            lambda s, x: step(params, s, x), initial, lambda s, x: s[1], xs, **given
        )[1]

    def ours(params, xs):
        return jaxrnn.unroll(block, params, xs, engine=engine, **given)[1]

    assert_same(with_gradients(ours, params, xs), with_gradients(twin, params, xs))


@dataclasses.dataclass(frozen=True)
class Embedded(jaxrnn.Cell):
    """Tokens and features as a tree, embedded in the cell."""

    hidden_size: int
    vocabulary: int
    feature_ndim: ClassVar = (0, 1)

    def init(self, key, input_size):
        sizes = {"e": self.vocabulary, "w": input_size, "u": self.hidden_size}
        keys = dict(zip(sizes, jax.random.split(key, 3), strict=True))
        shapes = {name: (size, self.hidden_size) for name, size in sizes.items()}
        return {name: jax.random.normal(keys[name], shapes[name]) for name in sizes}

    def project(self, params, x):
        return params["e"][x[0]] + x[1] @ params["w"]

    def step(self, params, h, z):
        return jnp.tanh(h @ params["u"] + z)


def test_tokens_and_features_embedded_in_the_cell():
    assert lines_of_code(Embedded) <= 15
    cell = Embedded(H, 7)
    params = cell.init(jax.random.key(0), D)

    def step(p, h, now):
        token, x = now
        one_hot = (jnp.arange(7) == token).astype(x.dtype)
        return jnp.tanh(p["e"].T @ one_hot + p["w"].T @ x + p["u"].T @ h)

    tokens = jax.random.randint(jax.random.key(4), (T, B), 0, 7)
    xs = normal(1, T, B, D)

    @dataclasses.dataclass(frozen=True)
    class Tokens(jaxrnn.Layer):
        """The cell with its tokens fixed: the gradients by features are compared."""

        cell: jaxrnn.Cell
        feature_ndim: ClassVar = 1

        def initial_carry(self, params, batch_shape=(), dtype=None):
            return self.cell.initial_carry(params, batch_shape, dtype)

        def unroll(self, params, carry, xs, spec):
            return unroll_part(self.cell, params, carry, (tokens, xs), spec)

    steps = (tokens, xs)
    given = flags()
    assert_same(
        with_gradients(
            lambda p, x: jaxrnn.unroll(cell, p, (tokens, x), **given), params, xs
        ),
        with_gradients(
            lambda p, x: rows(
                lambda s, now: step(p, s, now),
                jnp.zeros(H),
                lambda s, now: s,
                (steps[0], x),
                **given,
            ),
            params,
            xs,
        ),
    )
    assert_same(
        jaxrnn.unroll(Tokens(cell), params, xs),
        jaxrnn.unroll(cell, params, (tokens, xs)),
    )
