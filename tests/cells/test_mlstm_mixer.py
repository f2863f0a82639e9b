"""The mLSTM of xLSTM blocks against a step of its own in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.cells import MLSTMMixer

T, B, D = 7, 2, 3
CELL = MLSTMMixer(8, num_heads=2, block_size=4, conv=3, output_size=5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def block_diagonal(kernel):
    n, size, _ = kernel.shape
    W = np.zeros((n * size, n * size))
    for i, block in enumerate(kernel):
        W[i * size : (i + 1) * size, i * size : (i + 1) * size] = block
    return W


def twin(p, xs):
    """The outputs, without a stabilizer: gates here are small."""
    H, N = 8, 2
    d = H // N
    W_q, W_k, W_v = (
        block_diagonal(p[f"{name}_kernel"]) for name in ("query", "key", "value")
    )
    past = [np.zeros((B, H))] * 3
    C, n = np.zeros((B, N, d, d)), np.zeros((B, N, d))
    outputs = []
    for x in xs:
        u, g = np.split(x @ p["input_kernel"], 2, axis=-1)
        past = [u, *past[:2]]
        c = p["conv_bias"] + sum(w * x for w, x in zip(p["conv_kernel"], past))
        c = c * sigmoid(c)
        q, k, v = c @ W_q, c @ W_k, u @ W_v
        gates = np.concatenate([q, k, v], -1) @ p["gate_kernel"] + p["gate_bias"]
        h = np.zeros((B, H))
        for b in range(B):
            for j in range(N):
                own = slice(j * d, (j + 1) * d)
                i, f = np.exp(gates[b, j]), sigmoid(gates[b, N + j])
                key = k[b, own] / np.sqrt(d)
                C[b, j] = f * C[b, j] + i * np.outer(key, v[b, own])
                n[b, j] = f * n[b, j] + i * key
                read = q[b, own] @ C[b, j] / max(abs(q[b, own] @ n[b, j]), 1)
                read = (read - read.mean()) / np.sqrt(read.var() + 1e-5)
                h[b, own] = read
        h = (h * p["norm_scale"] + p["skip"] * c) * g * sigmoid(g)
        outputs.append(h @ p["output_kernel"])
    return np.stack(outputs)


@pytest.mark.parametrize("engine", [jaxrnn.Scan(), jaxrnn.Associative(chunk=4)])
def test_it_is_the_published_step(engine, x64):
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: CELL.init(jax.random.key(0), D))
    params = jax.tree.map(lambda a: random.normal(size=a.shape), shapes)
    xs = random.normal(size=(T, B, D))
    run = jax.jit(lambda p, x: jaxrnn.unroll(CELL, p, x, engine=engine)[1])
    ys = run(jax.tree.map(jnp.asarray, params), jnp.asarray(xs))
    expected = twin(params, xs)
    np.testing.assert_allclose(ys, expected, atol=1e-12 * abs(expected).max())


def test_gates_and_first_parameters():
    params = CELL.init(jax.random.key(0), D)
    assert not params["gate_kernel"].any()
    np.testing.assert_allclose(params["gate_bias"][2:], [3.0, 6.0])
    carry = CELL.initial_carry(params, (B,))
    z = CELL.project(params, jnp.ones((B, D)))
    gates = CELL.gate_values(params, carry, z)
    np.testing.assert_allclose(gates["f"].value[0], sigmoid(np.array([3.0, 6.0])))
    assert gates["f"].keeps
    assert gates["i"].value.shape == (B, 2)
