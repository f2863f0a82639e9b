"""A deep stack with skips, norms and tied layers, and a gated layer of one's own."""

import dataclasses

import jax
import jax.numpy as jnp
from gallery import (
    B,
    D,
    H,
    T,
    assert_same,
    flags,
    lines_of_code,
    normal,
    rows,
    with_gradients,
)

import jaxrnn
from jaxrnn import layers
from jaxrnn.extending import unroll_part


@dataclasses.dataclass(frozen=True)
class Highway(jaxrnn.Layer):
    """y = g * layer(x) + (1 - g) * x with the gate g = σ(gate layer(x))."""

    layer: jaxrnn.Cell
    gate: jaxrnn.Cell

    def init(self, key, input_size, dtype=None):
        keys = jax.random.split(key)
        return [c.init(k, input_size) for c, k in zip((self.layer, self.gate), keys)]

    def initial_carry(self, params, batch_shape=(), dtype=None):
        parts = zip((self.layer, self.gate), params)
        return [cell.initial_carry(p, batch_shape, dtype) for cell, p in parts]

    def unroll(self, params, carry, xs, spec):
        s, ys, carries = unroll_part(self.layer, params[0], carry[0], xs, spec, 0)
        s_gate, gate, more = unroll_part(self.gate, params[1], carry[1], xs, spec, 1)
        g = jax.nn.sigmoid(gate)
        return [s, s_gate], g * ys + (1 - g) * xs, [carries, more]


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def elman(p, h, x):
    drive = p["input_kernel"].T @ x + p["recurrent_kernel"].T @ h
    return jnp.tanh(drive + p["bias"])


def test_a_gated_layer_of_ones_own():
    assert lines_of_code(Highway) <= 20
    layer, xs, given = (
        Highway(jaxrnn.Elman(D), jaxrnn.Elman(D)),
        normal(1, T, B, D),
        flags(),
    )
    params = layer.init(jax.random.key(0), D)

    def step(p, carry, x):
        return [elman(p[i], carry[i], x) for i in range(2)]

    def output(carry, x):
        g = sigmoid(carry[1])
        return g * carry[0] + (1 - g) * x

    def ours(p, xs):
        return jaxrnn.unroll(layer, p, xs, **given)

    def twin(p, xs):
        initial = [jnp.zeros(D)] * 2
        return rows(lambda s, x: step(p, s, x), initial, output, xs, **given)

    assert_same(with_gradients(ours, params, xs), with_gradients(twin, params, xs))
    # Truncation, zoneout and its keys reach the parts.
    noisy = Highway(jaxrnn.zoneout(jaxrnn.Elman(D), 0.3), jaxrnn.Elman(D))
    assert noisy.requires_key
    key = jax.random.key(5)
    jaxrnn.truncated_unroll(noisy, params, xs, window=2, key=key, **given)


def test_a_deep_stack_with_skips_norms_and_ties():
    tied = layers.tied("twice", jaxrnn.Elman(H))
    layer = layers.share(
        jaxrnn.stack(
            layers.dense(H),
            layers.rms_norm(),
            jaxrnn.residual(tied),
            jaxrnn.residual(tied),
            layers.concat(jaxrnn.Elman(D)),
            layers.layer_norm(),
        )
    )
    params = layer.init(jax.random.key(0), D)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    xs, given = normal(1, T, B, D), flags()

    def step(p, carry, x):
        """Return the three states after a step, and the output."""
        own, both = p["layer"], p["shared"]["twice"]
        e = own["layer_0"]["kernel"].T @ x + own["layer_0"]["bias"]
        e = e / jnp.sqrt((e**2).mean() + 1e-5) * own["layer_1"]["scale"]
        first = elman(both, carry[0], e)
        second = elman(both, carry[1], e + first)
        e = e + first + second
        top = elman(own["layer_4"], carry[2], e)
        y = jnp.concatenate([e, top])
        y = (y - y.mean()) / jnp.sqrt(y.var() + 1e-5)
        return first, second, top, y * own["layer_5"]["scale"] + own["layer_5"]["bias"]

    def ours(p, xs):
        carry, ys = jaxrnn.unroll(layer, p, xs, **given)
        return jax.tree.leaves(carry), ys

    def twin(p, xs):
        initial = (jnp.zeros(H), jnp.zeros(H), jnp.zeros(D), jnp.zeros(H + D))
        carry, ys = rows(
            lambda s, x: step(p, s, x), initial, lambda s, x: s[3], xs, **given
        )
        return list(carry[:3]), ys

    assert_same(with_gradients(ours, params, xs), with_gradients(twin, params, xs))
