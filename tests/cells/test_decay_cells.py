"""The cells with a matrix state that erase nothing: Mamba2, GLA, RetNet, HGRN2, RWKV6
and Mamba3, against their equations written out step by step. That their chunks are
their steps is in tests/matrix.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import assert_same, normal

import jaxrnn
from jaxrnn import Associative, Scan, interop
from jaxrnn.cells import GLA, HGRN2, RWKV6, Mamba2, Mamba3, RetNet
from jaxrnn.cells.hgrn2 import layer_lower_bounds

T, D = 7, 4
CELLS = {
    "mamba2": Mamba2(8, num_heads=4, num_groups=2, key_size=3, conv=3),
    "mamba2_no_conv": Mamba2(4, num_heads=2, key_size=3, conv=None, output_size=3),
    "gla": GLA(4, num_heads=2, key_size=3, gate_rank=2),
    "gla_conv": GLA(
        4, num_heads=2, conv=2, gate_rank=2, gate_divisor=2, use_gate=False
    ),
    "retnet": RetNet(6, num_heads=2, key_size=4),
    "retnet_no_turn": RetNet(6, num_heads=3, key_size=3, rotary_base=None),
    "hgrn2": HGRN2(6, num_heads=2, key_size=2),
    "hgrn2_bound": HGRN2(6, num_heads=2, key_size=2, lower_bound=0.4),
    "hgrn2_learned": HGRN2(4, num_heads=2, learned_lower_bound=True, lower_bound=0.3),
    "rwkv6": RWKV6(6, num_heads=2, key_size=2, mix_rank=2, decay_rank=3),
    "mamba3": Mamba3(6, num_heads=2, key_size=4),
    "mamba3_groups": Mamba3(
        8, num_heads=4, num_groups=2, key_size=5, rotary_fraction=1
    ),
}
KINDS = list(dict.fromkeys(type(cell) for cell in CELLS.values()))


def draw(cell, seed=0, steps=T):
    """Random parameters and one sequence."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
    params = normal(random, shapes)
    if "lower_bound" in params:
        bound = random.uniform(0.1, 0.9, params["lower_bound"].shape)
        params["lower_bound"] = jnp.asarray(bound)
    return params, jnp.asarray(random.normal(size=(steps, D)))


# ------------------------------------------------------------------ the equations
# They are analytic functions of complex numbers, so that a step along the imaginary
# axis gives their derivatives to all digits.
def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log(1 + np.exp(x))


def rms(x, scale=1.0, epsilon=1e-5):
    return x / np.sqrt((x * x).mean() + epsilon) * scale


def columns(kernel, *sizes):
    """The blocks of a kernel, and that they are all of it."""
    assert sum(sizes) == kernel.shape[1]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [kernel[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]


def convolved(params, xs, bias=0.0):
    """Silu of the convolution of a sequence, written as a sum over steps."""
    kernel = params["conv_kernel"]
    rows = []
    for t in range(len(xs)):
        lags = range(min(len(kernel), t + 1))
        rows.append(sum(kernel[j] * xs[t - j] for j in lags) + bias)
    return silu(np.stack(rows))


def mamba2(cell, params, xs):
    N, G, K, V = cell.num_heads, cell.num_groups, cell.keys, cell.values
    uBC, z, dt = columns(params["input_kernel"], N * V + 2 * G * K, N * V, N)
    uBC = xs @ uBC
    uBC = convolved(params, uBC, params["conv_bias"]) if cell.conv else silu(uBC)
    S, ys = [np.zeros((K, V))] * N, []
    for t in range(len(xs)):
        u, B, C = np.split(uBC[t], [N * V, N * V + G * K])
        parts = []
        for n in range(N):
            group = n // (N // G)
            step = softplus(xs[t] @ dt[:, n] + params["dt_bias"][n])
            k, q = (x[group * K : (group + 1) * K] for x in (B, C))
            v = u[n * V : (n + 1) * V]
            decay = np.exp(-np.exp(params["A_log"][n]) * step)
            S[n] = decay * S[n] + step * np.outer(k, v)
            parts.append(S[n].T @ q + params["D"][n] * v)
        h = np.concatenate(parts) * silu(xs[t] @ z)
        h = np.concatenate([rms(part) for part in np.split(h, G)])
        ys.append(h * params["norm_scale"] @ params["output_kernel"])
    return np.stack(ys), np.stack(S)


def gla(cell, params, xs):
    N, K, V = cell.num_heads, cell.keys, cell.values
    gate = N * V if cell.use_gate else 0
    sizes = (2 * N * K + N * V, gate, cell.gate_rank)
    qkv, gate, first = columns(params["input_kernel"], *sizes)
    qkv = convolved(params, xs @ qkv) if cell.conv else xs @ qkv
    S, ys = [np.zeros((K, V))] * N, []
    for t in range(len(xs)):
        q, k, v = np.split(qkv[t], [N * K, 2 * N * K])
        alpha = sigmoid(xs[t] @ first @ params["alpha_kernel"] + params["alpha_bias"])
        alpha = alpha ** (1 / cell.gate_divisor)
        parts = []
        for n in range(N):
            keys, values = slice(n * K, (n + 1) * K), slice(n * V, (n + 1) * V)
            S[n] = alpha[keys, None] * S[n] + np.outer(k[keys], v[values])
            y = S[n].T @ q[keys] / np.sqrt(K)
            parts.append(rms(y, params["norm_scale"]))
        h = np.concatenate(parts)
        h = h * silu(xs[t] @ gate) if cell.use_gate else h
        ys.append(h @ params["output_kernel"])
    return np.stack(ys), np.stack(S)


def rotated(x, angles):
    """Pairs of channels, each times a matrix of its own."""
    x = x.copy()
    for i, angle in enumerate(angles):
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]])
        x[2 * i : 2 * i + 2] = matrix @ x[2 * i : 2 * i + 2]
    return x


def retnet(cell, params, xs):
    """The parallel form, with positions; the state is that of the last position."""
    N, K, V = cell.num_heads, cell.keys, cell.values
    kernels = columns(params["input_kernel"], N * K, N * K, N * V, N * V)
    q, k, v, gate = (xs @ kernel for kernel in kernels)
    steps, parts, states = len(xs), [], []
    for n in range(N):
        keys, values = slice(n * K, (n + 1) * K), slice(n * V, (n + 1) * V)
        angles = np.zeros(0)
        if cell.rotary_base is not None:
            angles = cell.rotary_base ** (-2 * np.arange(K // 2) / K)
        turned_q = np.stack([rotated(q[t, keys], t * angles) for t in range(steps)])
        turned_k = np.stack([rotated(k[t, keys], t * angles) for t in range(steps)])
        lag = np.arange(steps)[:, None] - np.arange(steps)
        weights = np.where(lag >= 0, (1 - 2.0 ** (-5 - n)) ** np.maximum(lag, 0), 0)
        scores = turned_q @ turned_k.T * weights
        y = scores @ v[:, values] / np.sqrt(K)
        parts.append(np.stack([rms(row, params["norm_scale"]) for row in y]))
        seen = [rotated(turned_k[t], -(steps - 1) * angles) for t in range(steps)]
        states.append((np.stack(seen).T * weights[-1]) @ v[:, values])
    h = np.concatenate(parts, -1) * silu(gate)
    return h @ params["output_kernel"], np.stack(states)


def hgrn2(cell, params, xs):
    N, K, V = cell.num_heads, cell.keys, cell.values
    of_q, of_f, of_v = columns(params["input_kernel"], N * K, N * K, N * V)
    bound = params.get("lower_bound", cell.lower_bound)
    S, ys = [np.zeros((K, V))] * N, []
    for x in xs:
        q, v = silu(x @ of_q), x @ of_v
        f = bound + (1 - bound) * sigmoid(x @ of_f)
        parts = []
        for n in range(N):
            keys, values = slice(n * K, (n + 1) * K), slice(n * V, (n + 1) * V)
            S[n] = f[keys, None] * S[n] + np.outer(1 - f[keys], v[values])
            parts.append(S[n].T @ q[keys] / np.sqrt(K))
        h = rms(np.concatenate(parts), params["norm_scale"])
        ys.append(h @ params["output_kernel"])
    return np.stack(ys), np.stack(S)


def rwkv6(cell, params, xs):
    N, K, V = cell.num_heads, cell.keys, cell.values
    sizes = (N * K, N * K, N * V, N * V, cell.decay_rank)
    kernels = columns(params["input_kernel"], *sizes)
    rank, S, ys = cell.mix_rank, [np.zeros((K, V))] * N, []
    for t, x in enumerate(xs):
        d = (xs[t - 1] if t else 0 * x) - x
        mixed = np.tanh((x + d * params["mix"][0]) @ params["mix_in_kernel"])
        parts = []
        for j in range(5):
            m = mixed[j * rank : (j + 1) * rank] @ params["mix_out_kernel"][j]
            parts.append((x + d * (params["mix"][1 + j] + m)) @ kernels[j])
        r, k, v, gate, w = parts
        w = np.tanh(w) @ params["decay_kernel"] + params["decay_bias"]
        w = np.exp(-np.exp(w))
        heads = []
        for n in range(N):
            keys, values = slice(n * K, (n + 1) * K), slice(n * V, (n + 1) * V)
            outer = np.outer(k[keys], v[values])
            y = (S[n] + params["bonus"][n][:, None] * outer).T @ r[keys]
            S[n] = w[keys, None] * S[n] + outer
            heads.append(rms(y - y.mean(), epsilon=64e-5))
        h = np.concatenate(heads) * params["norm_scale"] + params["norm_bias"]
        ys.append(h * silu(gate) @ params["output_kernel"])
    return np.stack(ys), np.stack(S)


def mamba3(cell, params, xs):
    """The authors' form: B and C rotated by the sum of all angles so far."""
    N, G, K, V = cell.num_heads, cell.num_groups, cell.keys, cell.values
    R = cell.num_angles
    sizes = (N * V, G * K, G * K, N * V, N, N, N, R)
    kernels = columns(params["input_kernel"], *sizes)
    S, angle = [np.zeros((K, V))] * N, [np.zeros(R)] * N
    k_before, v_before, ys = [np.zeros(K)] * N, [np.zeros(V)] * N, []
    for x in xs:
        u, B, C, z, dt, A, share, theta = (x @ kernel for kernel in kernels)
        dt = softplus(dt + params["dt_bias"])
        alpha = np.exp(-np.maximum(softplus(A), 1e-4) * dt)
        share, parts = sigmoid(share), []
        for n in range(N):
            at = slice(n // (N // G) * K, (n // (N // G) + 1) * K)
            angle[n] = angle[n] + np.pi * np.tanh(theta) * dt[n]
            k = rms(B[at], params["B_scale"]) + params["B_bias"][n]
            q = rms(C[at], params["C_scale"]) + params["C_bias"][n]
            k, q = rotated(k, angle[n]), rotated(q, angle[n])
            v = u[n * V : (n + 1) * V]
            earlier = (1 - share[n]) * dt[n] * np.outer(k_before[n], v_before[n])
            now = share[n] * dt[n] * np.outer(k, v)
            S[n] = alpha[n] * (S[n] + earlier) + now
            k_before[n], v_before[n] = k, v
            parts.append(S[n].T @ q + params["D"][n] * v)
        ys.append(np.concatenate(parts) * silu(z) @ params["output_kernel"])
    seen = [
        np.stack([rotated(column, -angle[n]) for column in S[n].T], -1)
        for n in range(N)
    ]
    return np.stack(ys), np.stack(seen)


EQUATIONS = {
    Mamba2: mamba2,
    GLA: gla,
    RetNet: retnet,
    HGRN2: hgrn2,
    RWKV6: rwkv6,
    Mamba3: mamba3,
}


@pytest.mark.parametrize("name", CELLS)
def test_it_is_its_equations(name, x64):
    """Values and the last state by chunks, and the derivative in a direction of all
    parameters and inputs at once.
    """
    cell = CELLS[name]
    arguments = draw(cell)
    direction = normal(np.random.default_rng(1), arguments)

    def unrolled(params, xs):
        carry, ys = jaxrnn.unroll(cell, params, xs, engine=Associative(4))
        return jnp.sin(ys).sum() + jnp.cos(carry.S).sum(), (ys, carry.S)

    gradient = jax.jit(jax.value_and_grad(unrolled, argnums=(0, 1), has_aux=True))
    (_, values), gradients = gradient(*arguments)
    twin = EQUATIONS[type(cell)]
    ys, S = twin(cell, *jax.tree.map(np.asarray, arguments))
    assert_same(values, (jnp.asarray(ys), jnp.asarray(S)), 1e-12)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert float(jnp.abs(leaf).max()) > 0, path
    step = 1e-30
    moved = jax.tree.map(
        lambda a, d: np.asarray(a) + 1j * step * np.asarray(d), arguments, direction
    )
    ys, S = twin(cell, *moved)
    wanted = (np.sin(ys).sum() + np.cos(S).sum()).imag / step
    products = jax.tree.map(lambda g, d: float((g * d).sum()), gradients, direction)
    assert abs(sum(jax.tree.leaves(products)) - wanted) <= 1e-10 * abs(wanted)


# ------------------------------------------------------------------ what they reduce to
def test_groups_with_equal_keys_are_one_group(x64):
    one = Mamba2(8, num_heads=4, key_size=3)
    several = dataclasses.replace(one, num_groups=2)
    params, xs = draw(one)

    def doubled(x):
        u, B, C, rest = np.split(np.asarray(x), [8, 11, 14], axis=-1)
        return np.concatenate([u, B, B, C, C, rest], axis=-1)

    more = {key: doubled(params[key]) for key in ("input_kernel", "conv_kernel")}
    more["conv_bias"] = doubled(params["conv_bias"])
    carry, _ = jaxrnn.unroll(one, params, xs)
    same, _ = jaxrnn.unroll(several, {**params, **more}, xs)
    assert_same(carry.S, same.S, 1e-12)
    # One norm runs over all heads, and the other over those of a group.
    scale = np.asarray(params["norm_scale"])
    by_group, whole = (np.reshape(h / scale, (2, 4)) for h in (same.h, carry.h))
    by_group = by_group / np.sqrt((by_group**2).mean(-1, keepdims=True))
    whole = whole / np.sqrt((whole**2).mean(-1, keepdims=True))
    assert_same(by_group, whole, 1e-5)


def test_gla_with_equal_decays_in_a_head_has_one_decay_a_head(x64):
    cell = CELLS["gla"]
    params, xs = draw(cell)

    @dataclasses.dataclass(frozen=True)
    class Scalar(GLA):
        def terms(self, params, z):
            terms = super().terms(params, z)
            return terms._replace(g=terms.g[..., :1])

    scalar = Scalar(**{f.name: vars(cell)[f.name] for f in dataclasses.fields(cell)})
    equal = {
        name: np.repeat(np.asarray(params[name])[..., :: cell.keys], cell.keys, -1)
        for name in ("alpha_kernel", "alpha_bias")
    }
    params = {**params, **equal}
    ys, same = (jaxrnn.unroll(c, params, xs)[1] for c in (cell, scalar))
    assert_same(ys, same, 1e-12)


@pytest.mark.parametrize("name", ["hgrn2", "hgrn2_bound", "hgrn2_learned"])
def test_the_key_of_hgrn2_is_what_its_decay_lets_go(name, x64):
    cell = CELLS[name]
    params, xs = draw(cell)
    terms = compiled(lambda p, xs: cell.terms(p, cell.project(p, xs)))(params, xs)
    assert_same(terms.k, 1 - jnp.exp(terms.g), 1e-12)
    bound = np.broadcast_to(params.get("lower_bound", cell.lower_bound), (4,))
    assert (np.exp(terms.g) > bound.reshape(2, 2)).all()


@pytest.mark.parametrize("learned", [False, True])
def test_forget_gates_that_round_to_zero_have_gradients(learned):
    cell = HGRN2(2, learned_lower_bound=learned)
    params, _ = draw(cell)
    params["input_kernel"] = np.full_like(params["input_kernel"], 1e4)
    xs = jnp.asarray([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]] * 3)
    grad = compiled(jax.grad(lambda p: jaxrnn.unroll(cell, p, xs)[1].sum()))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grad))


def test_lower_bounds_grow_from_layer_to_layer(x64):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
    bounds = layer_lower_bounds(logits)
    shares = np.exp(logits) / np.exp(logits).sum(0)
    wanted = np.array([shares[1 : layer + 1].sum(0) for layer in range(5)])
    assert_same(bounds, jnp.asarray(wanted), 1e-12)
    assert bool((jnp.diff(bounds, axis=0) > 0).all())
    assert float(bounds.max()) < 1


def test_positions_hold_where_masked_and_begin_again_at_a_reset(x64):
    """What a mask leaves out is as if it were not there, rotations with it."""
    for name in ("retnet", "mamba3", "rwkv6"):
        cell = CELLS[name]
        params, xs = draw(cell, steps=11)
        # four valid steps before the reset and after it, which share a program
        keep = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1], bool)
        resets = jnp.arange(11) == 6
        mask = jnp.asarray(keep)
        carry, ys = jaxrnn.unroll(cell, params, xs, mask=mask, resets=resets)
        xs, ys = np.asarray(xs), np.asarray(ys)
        first, second = xs[:6][keep[:6]], xs[6:][keep[6:]]
        _, before = jaxrnn.unroll(cell, params, first)
        last, after = jaxrnn.unroll(cell, params, second)
        assert_same(ys[keep], np.concatenate([before, after]), 1e-12)
        assert_same(carry, last, 1e-12)


def test_positions_lose_no_digits_in_long_sequences():
    """In float32, a state after many equal steps is a geometric series."""
    cell = RetNet(2, key_size=2)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
    params = jax.tree.map(lambda like: np.ones(like.shape, like.dtype), shapes)
    carry, _ = jaxrnn.unroll(cell, params, jnp.ones((20_000, 1)))
    factor = (1 - 2.0**-5) * np.exp(-1j)
    k = (1 + 1j) / (1 - factor)
    wanted = np.array([[k.real] * 2, [k.imag] * 2])
    np.testing.assert_allclose(carry.S[0], wanted, rtol=1e-5)


# ------------------------------------------------------------------ first parameters
def init(cell, features=64):
    return cell.init(jax.random.key(1), features)


def deviation(kernel):
    return float(np.std(kernel))


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k is not RWKV6], ids=lambda kind: kind.__name__
)
def test_kernels_begin_small(kind):
    params = init(kind(64, num_heads=4))
    for name in ("input_kernel", "output_kernel"):
        assert abs(deviation(params[name]) / 0.02 - 1) < 0.05


def test_first_parameters_of_mamba2():
    params = init(Mamba2(1024, num_heads=512, key_size=8))
    params = jax.tree.map(np.asarray, params)
    rate = np.exp(params["A_log"])
    assert 1 <= float(rate.min()) < 1.3
    assert 15.7 < float(rate.max()) <= 16.01
    assert abs(float(rate.mean()) - 8.5) < 0.6
    step = np.log10(softplus(params["dt_bias"]))
    assert -3.01 < float(step.min()) < -2.9
    assert -1.1 < float(step.max()) < -0.99
    assert abs(float(step.mean()) + 2) < 0.1
    conv = np.concatenate([params["conv_kernel"], params["conv_bias"][None]])
    assert conv.shape == (5, 1024 + 2 * 8)
    assert np.abs(conv).max() <= 0.5
    assert abs(deviation(conv) - 1 / np.sqrt(12)) < 0.01
    assert bool((params["D"] == 1).all())


def test_first_parameters_of_the_others():
    gla = init(GLA(64, num_heads=4, key_size=8))
    assert gla["alpha_kernel"].shape == (16, 32)
    assert not gla["alpha_bias"].any()
    # decays of sigmoid(about 0)^(1/16)
    cell = GLA(64, num_heads=4)
    terms = compiled(cell.terms)(init(cell), np.zeros(5 * 64, np.float32))
    np.testing.assert_allclose(np.exp(terms.g), 0.5 ** (1 / 16), rtol=1e-6)
    np.testing.assert_allclose(
        np.exp(RetNet(8, num_heads=4).log_gammas),
        [31 / 32, 63 / 64, 127 / 128, 255 / 256],
    )
    mamba3 = init(Mamba3(64, num_heads=4))
    assert (np.asarray(mamba3["B_bias"]) == 1).all()
    assert (np.asarray(mamba3["C_bias"]) == 1).all()
    assert mamba3["input_kernel"].shape == (64, 2 * 64 + 2 * 16 + 3 * 4 + 4)
    assert "conv_kernel" not in mamba3


def test_first_parameters_of_rwkv6(x64):
    cell = RWKV6(16, num_heads=4, layer_index=1, num_layers=3)
    params = jax.tree.map(np.asarray, init(cell, 64))
    i, n = np.arange(64) / 64, np.arange(16) / 15
    plain, fast = 1 - i ** (2 / 3), 1 - i ** (1 / 3)
    mix = np.stack([plain, fast, plain, plain - 0.15, fast, plain])
    assert_same(params["mix"], jnp.asarray(mix), 1e-12)
    decay = -6 + 5 * n ** (0.7 + 1.3 / 2)
    assert_same(params["decay_bias"], jnp.asarray(decay), 1e-12)
    zigzag = 0.1 * np.array([0, 1, -1] * 6)[:16]
    bonus = ((1 - n) / 2 + zigzag).reshape(4, 4)
    assert_same(params["bonus"], jnp.asarray(bonus), 1e-12)
    assert not params["mix_in_kernel"].any()
    assert not params["input_kernel"][:, -64:].any()
    for name in ("mix_out_kernel", "decay_kernel"):
        assert 0.009 < np.abs(params[name]).max() <= 0.01
    assert abs(deviation(params["input_kernel"][:, :-64]) / 0.02 - 1) < 0.05


# ------------------------------------------------------------------ doors
@pytest.mark.parametrize("name", CELLS)
def test_streaming_explain_and_gates(name):
    """A cell as a user meets it: in a loop, in a report, and from inside."""
    cell = CELLS[name]
    params, _ = draw(cell)
    xs = np.random.default_rng(1).normal(size=(T, 2, D)).astype(np.float32)
    carry, ys = jaxrnn.unroll(cell, params, xs, engine=Scan())
    streamed, step = cell.initial_carry(params, (2,)), jax.jit(cell)
    for x, y in zip(xs, ys, strict=True):
        streamed, now = step(params, streamed, x)
        np.testing.assert_allclose(now, y, rtol=1e-5, atol=1e-6)
    told = jaxrnn.explain(cell, params, xs)
    assert all(row.error is None for row in told.rows)
    gates = {}

    def inside(params, carry, x):
        z = cell.project(params, x)
        if cell.looks_back:
            recent = [cell.remembered(params, z)] * cell.looks_back
            assert cell.look_back(params, z, recent).shape[:-1] == (2,)
        gates.update(cell.gate_values(params, carry, z))
        return {name: gate.value for name, gate in gates.items()}

    values = compiled(inside)(params, carry, xs[0])
    assert any(gate.keeps for gate in gates.values())
    for name, value in values.items():
        assert (np.asarray(value) >= 0).all()
        assert (np.asarray(value) <= gates[name].high).all()
    assert hash(cell) == hash(dataclasses.replace(cell))


@pytest.mark.parametrize("name", CELLS)
def test_half_precision_keeps_the_state_in_float32(name):
    cell = CELLS[name]
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), D, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    xs = jax.ShapeDtypeStruct((T, 2, D), jnp.bfloat16)
    last, ys = jax.eval_shape(lambda *a: jaxrnn.unroll(cell, *a), params, xs)
    assert ys.dtype == last.h.dtype == jnp.bfloat16
    assert last.S.dtype == jnp.float32
    assert last.recent is None or last.recent.dtype == jnp.float32


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_other_formats_say_that_they_cannot_hold_it(kind, plain_errors):
    cell = kind(8, num_heads=2)
    params, _ = draw(cell)
    for converter in ("to_torch", "to_keras", "to_flax", "to_haiku", "to_equinox"):
        with pytest.raises(TypeError, match=rf"supported are .* {kind.__name__}"):
            getattr(interop, converter)(cell, params)
    with pytest.raises(TypeError, match=rf"{kind.__name__} has no operator in ONNX"):
        interop.to_onnx(cell, params)


REFUSED = {
    "groups": (lambda: Mamba2(8, num_heads=4, num_groups=3), "3 does not divide 4"),
    "no_groups": (lambda: Mamba2(8, num_groups=0), "num_groups"),
    "width": (lambda: Mamba2(8, conv=1), "conv=None"),
    "rank": (lambda: GLA(8, gate_rank=0), "gate_rank"),
    "divisor": (lambda: GLA(8, gate_divisor=0.0), "gate_divisor, .* above 0"),
    "odd": (lambda: RetNet(8, key_size=3), "d_k must be even, but it is 3"),
    "base": (lambda: RetNet(8, rotary_base=1.0), "rotary_base must be above 1"),
    "bound": (lambda: HGRN2(8, lower_bound=1.0), "below 1, but it is 1.0"),
    "layer": (lambda: RWKV6(8, layer_index=1), "layer_index must be an int"),
    "few_keys": (lambda: Mamba3(4, num_heads=2), "at least one pair"),
    "fraction": (lambda: Mamba3(8, rotary_fraction=1.5), "at most 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        make()
