"""RWKV-7 against a step of its own in NumPy, its first parameters, and what its terms
are without erasing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import assert_same

import jaxrnn
from jaxrnn.cells import RWKV7
from jaxrnn.matrix.terms import MatrixMemory, Terms, take_step

T, B, D = 7, 2, 5
CELL = RWKV7(
    6,
    num_heads=2,
    key_size=4,
    layer_index=1,
    num_layers=3,
    decay_rank=2,
    rate_rank=3,
    gate_rank=4,
    value_rank=2,
)
RESIDUAL = dataclasses.replace(CELL, value_residual=True)


def draw(cell, seed):
    """Random parameters, none of them 0 or 1, and random inputs."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
    params = {
        name: jnp.asarray(0.7 * random.normal(size=leaf.shape))
        for name, leaf in shapes.items()
    }
    xs = jnp.asarray(random.normal(size=(T, B, D)))
    first = jnp.asarray(random.normal(size=(T, B, cell.hidden_size)))
    return params, (xs, first) if cell.value_residual else xs


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def twin(cell, params, xs):
    """The outputs and the values by loops over steps, rows and heads."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    xs, firsts = xs if cell.value_residual else (xs, None)
    xs, N, K = np.asarray(xs), cell.num_heads, cell.keys
    V = cell.hidden_size // N
    W_r, W_k, W_v = np.split(p["input_kernel"], [N * K, 2 * N * K], axis=1)
    outputs, values = [], []
    S = np.zeros((B, N, V, K))  # values first, as in the paper
    before = np.zeros((B, D))
    for t, x in enumerate(xs):
        x_r, x_w, x_k, x_v, x_a, x_g = (x + (before - x) * mu for mu in p["shift_mix"])
        r, k, v = x_r @ W_r, x_k @ W_k, x_v @ W_v
        if firsts is not None:
            mixed = p["value_bias"] + x_v @ p["value_down"] @ p["value_up"]
            v = v + (np.asarray(firsts[t]) - v) * sigmoid(mixed)
        w = p["decay_bias"] + np.tanh(x_w @ p["decay_down"]) @ p["decay_up"]
        w = np.exp(-np.exp(-0.5) * sigmoid(w))
        eta = sigmoid(p["rate_bias"] + x_a @ p["rate_down"] @ p["rate_up"])
        gate = sigmoid(x_g @ p["gate_down"]) @ p["gate_up"]
        erased = k * p["erase_scale"]
        k = k * (1 + (eta - 1) * p["rate_mix"])
        h = np.zeros((B, N * V))
        for b in range(B):
            for n in range(N):
                ks, vs = slice(n * K, (n + 1) * K), slice(n * V, (n + 1) * V)
                kappa = erased[b, ks] / max(np.linalg.norm(erased[b, ks]), 1e-12)
                M = np.diag(w[b, ks]) - np.outer(kappa, eta[b, ks] * kappa)
                S[b, n] = S[b, n] @ M + np.outer(v[b, vs], k[b, ks])
                y = S[b, n] @ r[b, ks]
                y = (y - y.mean()) / np.sqrt(y.var() + 64e-5)
                y = y * p["norm_scale"][vs] + p["norm_bias"][vs]
                y = y + (r[b, ks] * k[b, ks] * p["bonus"][n]).sum() * v[b, vs]
                h[b, vs] = y * gate[b, vs]
        outputs.append(h @ p["output_kernel"])
        values.append(v)
        before = np.asarray(x)
    return np.stack(outputs), np.stack(values), S


@pytest.mark.parametrize("cell", [CELL, RESIDUAL], ids=["alone", "value_residual"])
@pytest.mark.parametrize("engine", [jaxrnn.Scan(), jaxrnn.Associative(chunk=4)])
def test_it_is_the_published_step(cell, engine, x64):
    cell = dataclasses.replace(cell, shows_values=True)
    params, xs = draw(cell, 0)
    outputs, values, S = twin(cell, params, xs)
    run = jax.jit(lambda p, x: jaxrnn.unroll(cell, p, x, engine=engine))
    carry, (ys, vs) = run(params, xs)
    np.testing.assert_allclose(ys, outputs, rtol=0, atol=1e-12 * np.abs(outputs).max())
    np.testing.assert_allclose(vs, values, rtol=0, atol=1e-12)
    S = np.swapaxes(S, -1, -2)
    np.testing.assert_allclose(carry.S, S, rtol=0, atol=1e-12 * np.abs(S).max())


def test_showing_values_changes_no_output(x64):
    params, xs = draw(CELL, 1)
    _, ys = jaxrnn.unroll(CELL, params, xs)
    shown = dataclasses.replace(CELL, shows_values=True)
    _, (same, _) = jaxrnn.unroll(shown, params, xs)
    assert_same(same, ys)


def test_without_erasing_its_terms_are_those_of_gated_linear_attention(x64):
    """A rate of 0 adds what is read at kappa nowhere: S decays and is written."""
    params, xs = draw(CELL, 2)
    off = {**params, "rate_bias": jnp.full_like(params["rate_bias"], -1e4)}
    off["rate_down"] = jnp.zeros_like(off["rate_down"])
    steps = CELL.looked_back(off, CELL.initial_carry(off, (B,)), xs[0])
    terms = CELL.terms(off, steps)
    rule = Terms(terms.q, terms.k, terms.v, terms.g)
    S = jnp.asarray(np.random.default_rng(0).normal(size=(B, 2, 4, 3)))
    found = take_step(MatrixMemory(S), terms, "after")
    assert_same(found, take_step(MatrixMemory(S), rule, "after"))
    assert not np.allclose(found[0].S, np.asarray(S))
    np.testing.assert_allclose(terms.k, rule.k)


def test_decays_lie_where_the_paper_says(x64):
    params, xs = draw(CELL, 3)
    params["decay_bias"] *= 20
    carry = CELL.initial_carry(params, (B,))
    gates = CELL.gate_values(params, carry, CELL.project(params, xs[0]))
    decay = np.asarray(gates["decay"].value)
    assert decay.min() >= np.exp(-np.exp(-0.5)) - 1e-12
    assert decay.max() <= 1
    assert decay.min() < 0.56 < 0.99 < decay.max()
    assert gates["rate"].value.shape == (B, 8)


def test_gates_are_those_of_the_mixed_inputs(x64):
    """`gate_values` reads the input before this one from the carry."""
    params, xs = draw(CELL, 4)
    carry, _ = jaxrnn.unroll(CELL, params, xs[:3])
    gates = CELL.gate_values(params, carry, CELL.project(params, xs[3]))
    p = {name: np.asarray(leaf) for name, leaf in params.items()}
    now, before = np.asarray(xs[3]), np.asarray(xs[2])
    x_w = now + (before - now) * p["shift_mix"][1]
    w = p["decay_bias"] + np.tanh(x_w @ p["decay_down"]) @ p["decay_up"]
    expected = np.exp(-np.exp(-0.5) * sigmoid(w))
    np.testing.assert_allclose(gates["decay"].value, expected, atol=1e-12)


def test_the_first_parameters_are_those_of_the_authors():
    cell = RWKV7(64, num_heads=4, layer_index=1, num_layers=4, value_residual=True)
    p = jax.device_get(cell.init(jax.random.key(0), 64))
    i, share = np.arange(64), np.arange(64) / 64
    for row, exponent in enumerate((0.2, 0.9, 0.7, 0.7, 0.9, 0.2)):
        expected = 1 - share ** (exponent * 0.75)
        np.testing.assert_allclose(p["shift_mix"][row], expected, atol=1e-6)
    turn = (i % 16 - 7.5) / 7.5
    turn, linear = turn * abs(turn), i / 63 - 0.5
    decay = -5.5 + 6 * (i / 63) ** (1 + (1 / 3) ** 0.3) + 2.5 * turn
    np.testing.assert_allclose(p["decay_bias"], decay, atol=1e-5)
    rate = -0.19 + 0.3 * turn + 0.4 * linear
    np.testing.assert_allclose(p["rate_bias"], rate, atol=1e-6)
    np.testing.assert_allclose(p["value_bias"], 0.73 - 0.4 * linear, atol=1e-6)
    np.testing.assert_allclose(p["erase_scale"], 0.71 - 0.1 * linear, atol=1e-6)
    assert np.ptp(p["rate_mix"]) == np.ptp(p["bonus"]) == 0
    np.testing.assert_allclose([p["rate_mix"][0], p["bonus"][0, 0]], [1.02, -0.04])
    np.testing.assert_allclose(p["norm_scale"], 0.5**0.7, rtol=1e-6)
    zero = ("decay_down", "rate_down", "gate_down", "value_down", "output_kernel")
    assert not any(p[name].any() for name in zero)
    for name in ("decay", "rate", "gate", "value"):
        up = p[f"{name}_up"]
        np.testing.assert_allclose(up @ up.T, 0.01 * np.eye(len(up)), atol=1e-6)
    bounds = [np.abs(block).max() for block in np.split(p["input_kernel"], 3, axis=1)]
    np.testing.assert_allclose(bounds, [0.5 / 8, 0.05 / 8, 0.5 / 8], rtol=0.01)


@pytest.mark.parametrize(
    ("size", "ranks"),
    [(4, (32, 32, 32)), (768, (64, 64, 128)), (4096, (160, 160, 320))],
)
def test_ranks_grow_with_the_root_of_the_width(size, ranks):
    assert tuple(RWKV7(64).ranks(size).values()) == ranks


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer_index": 2, "num_layers": 2}, "an int from 0 to 1"),
        ({"layer_index": -1}, "an int from 0 to 0"),
        ({"layer_index": True, "num_layers": 2}, "an int from 0 to 1"),
        ({"num_layers": 0}, "num_layers"),
        ({"decay_rank": 0}, "decay_rank"),
        ({"num_heads": 3}, "num_heads must divide"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=words):
        RWKV7(4, **options)


def test_the_values_of_the_first_layer_must_be_there():
    params, (xs, first) = draw(RESIDUAL, 5)
    with pytest.raises(TypeError, match=r"pairs \(x, v_first\)"):
        jaxrnn.unroll(RESIDUAL, params, xs)
    with pytest.raises(ValueError, match=r"v_first must be"):
        jaxrnn.unroll(RESIDUAL, params, (xs, first[..., 1:]))
