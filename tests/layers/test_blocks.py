"""The blocks of published networks: as steps, with masks and resets, and against their
equations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import (
    D,
    assert_same_outcome,
    compiled_outcome,
    draw,
    drawn_params,
    looped,
)

import jaxrnn
from jaxrnn import GRU, RGLRU, SLSTM, layers, unroll
from jaxrnn.cells import RWKV7, GatedDeltaNet, Mamba, Mamba2, MLSTMMixer

KEY = jax.random.key(0)
W = 4
BLOCKS = {
    "pre_norm": layers.pre_norm_block(GRU(5), W, mlp=layers.gated_mlp(W, 6)),
    "gated_delta_net": layers.gated_delta_net_block(W, 2, conv=2),
    "mamba2": layers.mamba2_block(W, 2, expansion=1, state_size=3, conv=2),
    "mamba": layers.mamba_block(W, state_size=2, conv=2),
    "griffin": layers.griffin_block(W, recurrent_size=5, conv=3, expansion=2),
    "rwkv": layers.rwkv_block(W, 2, expansion=2, layer_index=1, num_layers=3),
    "mlstm": layers.mlstm_block(W, 2, conv=2),
    "slstm": layers.slstm_block(W, 2, conv=3),
    "rwkv7": layers.rwkv7(W, layers=2, num_heads=2, expansion=2),
}


def unrolling(layer):
    """`outcome` of an unroll with masks and resets."""

    def run(params, xs, carry, mask, resets):
        return unroll(layer, params, xs, carry, mask=mask, resets=resets)

    return compiled_outcome(run)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_its_steps(name, x64):
    """Values and gradients of a sequence with holes in its mask, and with resets."""
    inputs = draw(BLOCKS[name], 0)
    found = unrolling(BLOCKS[name])(*inputs)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found.gradients))
    assert_same_outcome(found, looped(BLOCKS[name], inputs), 1e-10, 1e-10)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_takes_any_number_of_features(name):
    block = BLOCKS[name]
    for size in (D, W):
        params = jax.eval_shape(lambda size=size: block.init(KEY, size))
        xs = jax.ShapeDtypeStruct((5, 2, size), jnp.float32)
        _, ys = jax.eval_shape(lambda *a: unroll(block, *a), params, xs)
        assert ys.shape == (5, 2, W)
        assert block.output_features(params, size) == W
        embedding = params["embedding" if name == "rwkv7" else "layer_0"]
        assert set(embedding) == ({"kernel", "bias"} if size == D else set())
    two = jaxrnn.stack(block, block)
    params = jax.eval_shape(lambda: two.init(KEY, D))
    assert two.output_features(params, D) == W


# -- against their equations -----------------------------------------------------------
def rms(x, scale):
    return scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def centered(x, p, groups=1):
    a = x.reshape(*x.shape[:-1], groups, -1)
    a = a - a.mean(-1, keepdims=True)
    y = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5)
    return y.reshape(x.shape) * p["scale"] + p["bias"]


def gelu(x):
    return np.asarray(jax.nn.gelu(jnp.asarray(x)))


def silu(x):
    return x / (1 + np.exp(-x))


def affine(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def delayed(x, steps):
    return np.concatenate([np.zeros_like(x[:steps]), x[: len(x) - steps]])


def convolved(p, x):
    return p["bias"] + sum(w * delayed(x, j) for j, w in enumerate(p["kernel"]))


def mlp(p, x, f):
    product = f(affine(p["layer_0"]["layer_0"], x)) * affine(p["layer_0"]["layer_1"], x)
    return affine(p["layer_1"], product)


def random_inputs(layer):
    inputs = draw(layer, 1)
    return jax.tree.map(np.asarray, inputs.params), np.asarray(inputs.xs)


def assert_outputs(layer, params, xs, expected):
    _, ys = unroll(layer, params, jnp.asarray(xs))
    np.testing.assert_allclose(ys, expected, rtol=0, atol=1e-11 * abs(expected).max())


def test_pre_norm_blocks_are_their_equations(x64):
    block = BLOCKS["pre_norm"]
    params, xs = random_inputs(block)
    e = affine(params["layer_0"], xs)
    norm, cell, fits = (params["layer_1"][f"layer_{i}"] for i in range(3))
    _, ys = unroll(GRU(5), cell, jnp.asarray(rms(e, norm["scale"])))
    u = e + affine(fits, np.asarray(ys))
    norm, own = (params["layer_2"][f"layer_{i}"] for i in range(2))
    expected = u + mlp(own, rms(u, norm["scale"]), silu)
    assert_outputs(block, params, xs, expected)


def test_griffin_is_its_equations(x64):
    block = BLOCKS["griffin"]
    params, xs = random_inputs(block)
    e = affine(params["layer_0"], xs)
    norm, mixer, fits = (params["layer_1"][f"layer_{i}"] for i in range(3))
    assert fits == {}
    n = rms(e, norm["scale"])
    gate, recurrent = (mixer["layer_0"][f"layer_{i}"] for i in range(2))
    x = convolved(recurrent["layer_1"], affine(recurrent["layer_0"], n))
    _, r = unroll(RGLRU(5), recurrent["layer_2"], jnp.asarray(x))
    u = e + affine(mixer["layer_1"], gelu(affine(gate, n)) * np.asarray(r))
    norm, own = (params["layer_2"][f"layer_{i}"] for i in range(2))
    expected = u + mlp(own, rms(u, norm["scale"]), gelu)
    assert_outputs(block, params, xs, expected)
    drawn = block.init(KEY, D)["layer_1"]["layer_1"]["layer_0"]["layer_1"]["layer_1"]
    assert 0.02 < np.std(drawn["kernel"]) < 0.15


def test_slstm_blocks_are_their_equations(x64):
    block = BLOCKS["slstm"]
    params, xs = random_inputs(block)
    e = affine(params["layer_0"], xs)
    norm, mixer, _ = (params["layer_1"][f"layer_{i}"] for i in range(3))
    n = centered(e, norm)
    both = np.concatenate([n, silu(convolved(mixer["layer_0"], n))], -1)
    cell = SLSTM(W, num_heads=2)
    _, ys = unroll(cell, mixer["layer_1"], jnp.asarray(both))
    u = e + centered(np.asarray(ys), mixer["layer_2"], groups=2)
    norm, own = (params["layer_2"][f"layer_{i}"] for i in range(2))
    assert own["layer_1"]["kernel"].shape == (6, W)
    assert_outputs(block, params, xs, u + mlp(own, centered(u, norm), gelu))


def channel_mix(p, x):
    mixed = x + (delayed(x, 1) - x) * p["shift_mix"]
    return np.maximum(mixed @ p["key_kernel"], 0) ** 2 @ p["value_kernel"]


def test_rwkv7_is_a_loop_over_its_layers_and_steps(x64):
    layer = BLOCKS["rwkv7"]
    params, xs = random_inputs(layer)
    e = centered(affine(params["embedding"], xs), params["input_norm"])
    firsts = []
    for i in range(2):
        own = params[f"layer_{i}"]
        place = {"layer_index": i, "num_layers": 2}
        how = {"value_residual": True} if i else {"shows_values": True}
        cell = RWKV7(W, num_heads=2, **place, **how)
        carry = cell.initial_carry(own["time_mix"], e.shape[1:2])
        step, outputs = jax.jit(cell), []
        for t, x in enumerate(jnp.asarray(centered(e, own["time_norm"]))):
            carry, y = step(own["time_mix"], carry, (x, firsts[t]) if i else x)
            if not i:
                firsts.append(y[1])
            outputs.append(y if i else y[0])
        e = e + np.stack(outputs)
        e = e + channel_mix(own["channel_mix"], centered(e, own["channel_norm"]))
    assert_outputs(layer, params, xs, centered(e, params["output_norm"]))


def test_a_stack_of_rwkv_blocks_is_rwkv7_without_values_that_cross(x64):
    """With all shares of the first values at 0, the parameters are the same."""
    network = BLOCKS["rwkv7"]
    params, xs = random_inputs(network)
    blocks = [
        layers.rwkv_block(W, 2, expansion=2, layer_index=i, num_layers=2)
        for i in range(2)
    ]
    stacked = jaxrnn.stack(*blocks, layers.layer_norm())
    theirs = drawn_params(stacked)
    theirs["layer_0"]["layer_0"] = params["embedding"]
    theirs["layer_0"]["layer_1"] = params["input_norm"]
    theirs["layer_2"] = params["output_norm"]
    for i in range(2):
        own = params[f"layer_{i}"]
        value = {n: p for n, p in own["time_mix"].items() if n.startswith("value")}
        time = {n: p for n, p in own["time_mix"].items() if n not in value}
        if i:
            own["time_mix"] |= {n: np.zeros_like(p) for n, p in value.items()}
            own["time_mix"]["value_bias"] = value["value_bias"] * 0 - 1e4
        first = 1 if i else 2
        mixes = (own["time_norm"], time, {}), (own["channel_norm"], own["channel_mix"])
        for place, parts in enumerate(mixes):
            names = {f"layer_{j}": part for j, part in enumerate(parts)}
            theirs[f"layer_{i}"][f"layer_{first + place}"] = names
    _, expected = unroll(network, params, jnp.asarray(xs))
    assert_outputs(stacked, theirs, xs, np.asarray(expected))


def test_new_rwkv_layers_are_the_identity():
    block = layers.rwkv_block(W, 2, layer_index=1, num_layers=2)
    params = block.init(KEY, W)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, W)), jnp.float32)
    np.testing.assert_array_equal(unroll(block, params, xs)[1], xs)
    mix = layers.rwkv_channel_mix(layer_index=1, num_layers=2).init(KEY, 64)
    expected = 1 - (np.arange(64) / 64) ** (0.5**4)
    np.testing.assert_allclose(mix["shift_mix"], expected, atol=1e-6)
    np.testing.assert_allclose(abs(mix["key_kernel"]).max(), 0.5 / 8, rtol=1e-2)


def test_what_the_blocks_choose():
    cell = layers.gated_delta_net_block(2048, 6).layers[1].layer.layers[1]
    assert cell == GatedDeltaNet(3072, num_heads=6, key_size=256)
    cell = layers.mamba2_block(64).layers[1].layer.layers[1]
    assert cell == Mamba2(128, num_heads=2, key_size=128)
    cell = layers.mamba_block(8).layers[1].layer.layers[1]
    assert cell == Mamba(16, state_size=16)
    cell = layers.mlstm_block(8).layers[1].layer.layers[1]
    assert cell == MLSTMMixer(16, num_heads=4)
    cell = layers.rwkv_block(128).layers[2].layer.layers[1]
    assert cell == RWKV7(128, num_heads=2)
    assert layers.rwkv7(48, layers=1).time_mixes[0] == RWKV7(48)


def test_group_norm_is_its_equation(x64):
    layer = jaxrnn.stack(layers.dense(6), layers.group_norm(3))
    params, xs = random_inputs(layer)
    expected = centered(affine(params["layer_0"], xs), params["layer_1"], groups=3)
    assert_outputs(layer, params, xs, expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layers.pre_norm_block(GRU(4), 0), "features must be an int"),
        (lambda: layers.griffin_block(0), "griffin_block: width must be an int"),
        (lambda: layers.griffin_block(4, conv=1), "causal_conv: width"),
        (lambda: layers.rwkv_block(6, 4), "num_heads must divide"),
        (lambda: layers.rwkv_block(4, layer_index=1), "layer_index must be an int"),
        (lambda: layers.rwkv_channel_mix(0), "expansion must be"),
        (lambda: layers.rwkv_channel_mix(layer_index=3), "layer_index must be an int"),
        (lambda: layers.rwkv7(4, layers=0), "rwkv7: layers must be an int"),
        (lambda: layers.mlstm_block(4, 3), "num_heads must divide"),
        (lambda: layers.slstm_block(4, 3), "multiple of num_heads"),
        (lambda: layers.group_norm(0), "groups must be an int"),
        (lambda: layers.group_norm(3).init(KEY, 4), "groups must divide"),
        (lambda: MLSTMMixer(6, num_heads=2), "block_size must divide"),
        (lambda: MLSTMMixer(4, num_heads=2, key_size=3), "leave it out"),
        (lambda: MLSTMMixer(4, conv=1), "conv must be an int"),
        (
            lambda: unroll(layers.match_features(4), {}, jnp.ones((2, 3))),
            "match_features: the parameters were made",
        ),
    ],
)
def test_sizes_that_do_not_fit(make, words, plain_errors):
    with pytest.raises(ValueError, match=words):
        make()


def test_parameters_of_another_layer(plain_errors):
    params = drawn_params(layers.rwkv7(4, layers=2))
    del params["layer_1"]
    with pytest.raises(TypeError, match=r"RWKV7Network: its params are a dict of"):
        unroll(layers.rwkv7(4, layers=2), params, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=r"MatchFeatures"):
        unroll(layers.match_features(4), {"kernel": jnp.ones((3, 4))}, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=r"expected a jaxrnn.Cell or a layer"):
        layers.pre_norm_block(GRU(4), 4, mlp=8)
