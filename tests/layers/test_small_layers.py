"""Small layers for stacks, against their equations; a convolution also against a loop
over time that keeps the last inputs in its hands.
"""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import B, D, T, assert_same, draw

import jaxrnn
from jaxrnn import GRU, Elman, layers, stack, unroll

KEY = jax.random.key(0)


def shown(layer, name, function):
    """The outputs of a layer, and what a function of its parameters and inputs says."""
    inputs = draw(layer, 1)
    _, ys = unroll(layer, inputs.params, inputs.xs)
    params = jax.tree.map(np.asarray, inputs.params)
    np.testing.assert_allclose(
        ys, function(params, np.asarray(inputs.xs)), rtol=0, atol=1e-12, err_msg=name
    )


def test_pointwise_layers_are_their_equations(x64):
    def norm(p, x, centered):
        x = x - x.mean(-1, keepdims=True) if centered else x
        y = p["scale"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return y + p["bias"] if centered else y

    shown(layers.dense(4), "dense", lambda p, x: x @ p["kernel"] + p["bias"])
    shown(
        layers.dense(4, jnp.tanh, use_bias=False),
        "without a bias",
        lambda p, x: np.tanh(x @ p["kernel"]),
    )
    shown(layers.layer_norm(), "layer norm", lambda p, x: norm(p, x, True))
    shown(layers.rms_norm(), "rms norm", lambda p, x: norm(p, x, False))
    shown(layers.apply(jnp.square), "apply", lambda p, x: x**2)


def test_concat_residual_and_multiply_are_their_parts(x64):
    concat = layers.concat(GRU(4))
    inputs = draw(concat, 1)
    inside = unroll(GRU(4), *inputs[:3], mask=inputs.mask)
    last, ys = unroll(concat, *inputs[:3], mask=inputs.mask)
    xs = jnp.where(inputs.mask[..., None], inputs.xs, 0)
    assert_same((last, ys), (inside[0], jnp.concatenate([xs, inside[1]], -1)))

    added = jaxrnn.residual(GRU(D))
    inputs = draw(added, 1)
    last, ys = unroll(added, *inputs[:3])
    inside = unroll(GRU(D), *inputs[:3])
    assert_same((last, ys), (inside[0], inputs.xs + inside[1]))

    gate = layers.dense(4, jax.nn.sigmoid)
    gated = layers.multiply(GRU(4), gate)
    inputs = draw(gated, 1)
    last, ys = unroll(gated, *inputs[:3])
    first = unroll(GRU(4), inputs.params["layer_0"], inputs.xs, inputs.carry[0])
    second = unroll(gate, inputs.params["layer_1"], inputs.xs)
    assert_same((last, ys), ((first[0], ()), first[1] * second[1]))


def test_padding_may_hold_anything_under_a_product(x64):
    """A factor that passes NaN on would spoil the gradient of the other."""
    passing = jaxrnn.inference(jaxrnn.dropout(0.5))
    layer = layers.multiply(layers.concat(passing), Elman(2 * D))
    inputs = draw(layer, 1)
    gradient = compiled(
        jax.grad(
            lambda p, xs: jnp.sum(jnp.sin(unroll(layer, p, xs, mask=inputs.mask)[1]))
        )
    )
    poisoned = jnp.where(inputs.mask[..., None], inputs.xs, jnp.nan)
    assert_same(gradient(inputs.params, poisoned), gradient(inputs.params, inputs.xs))


# -- the last inputs -------------------------------------------------------------------

CONV = layers.causal_conv(3, jnp.tanh)
RECENT = {"conv": CONV, "shift": layers.shift(D)}
FLAGS = ["mask", "resets", "mask resets", "mask resets reverse", "reverse", ""]


def of_last_inputs(layer, params, recent):
    """The output from the last inputs ``(*B, W, D)``, the newest last."""
    if layer == CONV:
        kernel = params["kernel"][::-1]
        sums = jnp.einsum("bwd,wd->bd", recent, kernel)
        return jnp.tanh(sums + params["bias"][None])
    return recent[..., 0, :]


def hand_over_hand(layer, params, xs, carry, mask, resets, reverse):
    """A loop over time that drops the oldest input and takes the newest."""
    ys = [None] * len(xs)
    for t in reversed(range(len(xs))) if reverse else range(len(xs)):
        carry = jnp.where(resets[t][:, None, None], 0, carry)
        new = jnp.concatenate([carry[:, 1:], xs[t][:, None]], 1)
        y = of_last_inputs(layer, params, new)
        carry = jnp.where(mask[t][:, None, None], new, carry)
        ys[t] = jnp.where(mask[t][:, None], y, 0)
    return carry, jnp.stack(ys)


def outcome_of(unrolling, inputs):
    def values_and_gradients(*at):
        values, pullback = jax.vjp(unrolling, *at)
        return values, pullback(inputs.cotangents)

    return compiled(values_and_gradients)(*inputs[:3])


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", RECENT)
def test_the_last_inputs_of_all_steps_at_once_are_those_of_a_loop(name, flags, x64):
    layer, flags = RECENT[name], flags.split()
    reverse = "reverse" in flags
    for steps in (T, 1) if name == "conv" else (T,):  # 1 is shorter than the carry
        inputs = draw(layer, 2, steps=steps)
        mask = inputs.mask if "mask" in flags else None
        resets = inputs.resets if "resets" in flags else None

        def at_once(*at, mask=mask, resets=resets):
            return unroll(layer, *at, mask=mask, resets=resets, reverse=reverse)

        always = jnp.ones((steps, B), bool)
        given = always if mask is None else mask, ~always if resets is None else resets

        def looped(*at, given=given):
            return hand_over_hand(layer, *at, *given, reverse)

        assert_same(outcome_of(at_once, inputs), outcome_of(looped, inputs))


@pytest.mark.parametrize("flags", ["", "mask resets", "mask resets reverse"])
def test_windows_cut_between_inputs_as_a_scale_of_zero_does(flags, x64):
    """Scaled gradients go through steps one by one, windows through all at once."""
    inputs, window = draw(CONV, 3), 2
    given = {
        name: getattr(inputs, name) for name in ("mask", "resets") if name in flags
    }
    given["reverse"] = "reverse" in flags
    step = np.arange(T)[::-1] if given["reverse"] else np.arange(T)
    scale = np.where((step > 0) & (step % window == 0), 0.0, 1.0)
    scale = jnp.asarray(np.broadcast_to(scale[:, None], (T, B)))
    by_window, by_scale = (
        outcome_of(
            lambda *at, h=how: jaxrnn.truncated_unroll(CONV, *at, **given, **h), inputs
        )
        for how in ({"window": window}, {"gradient_scale": scale})
    )
    assert_same(by_window, by_scale)
    whole = outcome_of(lambda *at: unroll(CONV, *at, **given), inputs)
    assert_same(by_window[0], whole[0])
    assert not np.allclose(by_window[1][1], whole[1][1])


def test_what_is_not_finite_stays_before_a_reset():
    params = CONV.init(KEY, D)
    xs = jnp.ones((T, B, D)).at[1].set(jnp.nan)
    resets = jnp.zeros((T, B), bool).at[2].set(True)

    def after(xs):
        ys = unroll(CONV, params, xs, resets=resets)[1]
        return ys[2:].sum(), ys

    gradient, ys = jax.grad(after, has_aux=True)(xs)
    assert np.isnan(ys[1]).all()
    assert np.isfinite(ys[2:]).all()
    assert np.isfinite(gradient[2:]).all()


def test_the_last_inputs_keep_no_copy_of_themselves_for_every_step():
    """The carries after all steps would be ``width`` times the inputs."""
    layer, steps, features, width = layers.causal_conv(8), 512, 16, 8
    params = jax.eval_shape(lambda key: layer.init(key, features), KEY)
    xs = jax.ShapeDtypeStruct((steps, features), jnp.float32)
    run = jax.jit(lambda p, xs: unroll(layer, p, xs)[1]).lower(params, xs).compile()
    temporary = run.memory_analysis().temp_size_in_bytes
    assert temporary < width / 2 * steps * features * 4


def test_half_precision_stays_and_its_sums_do_not():
    layer = stack(CONV, layers.layer_norm(), layers.shift(D), layers.dense(2))
    params = layer.init(KEY, D, dtype=jnp.bfloat16)
    xs = jnp.ones((T, B, D), jnp.bfloat16)
    (conv, *_), ys = unroll(layer, params, xs)
    assert conv.dtype == ys.dtype == jnp.bfloat16
    many = layers.causal_conv(256, use_bias=False)
    params = {"kernel": jnp.full((256, 1), 1 / 256, jnp.bfloat16)}
    ys = unroll(many, params, jnp.full((300, 1), 1.01, jnp.bfloat16))[1]
    assert ys[-1, 0] == jnp.bfloat16(1.01)


# -- shared parameters -----------------------------------------------------------------

CORE = layers.tied("core", GRU(D))


def test_two_places_have_one_entry_whose_gradient_is_their_sum(x64):
    layer = layers.share(stack(CORE, Elman(D), CORE))
    apart = stack(GRU(D), Elman(D), GRU(D))
    inputs = draw(layer, 4)
    params = inputs.params
    assert set(params["shared"]) == {"core"}
    core, middle = params["shared"]["core"], params["layer"]["layer_1"]
    same = {"layer_0": core, "layer_1": middle, "layer_2": core}
    found = outcome_of(lambda *at: unroll(layer, *at, mask=inputs.mask), inputs)
    right = outcome_of(
        lambda *at: unroll(apart, *at, mask=inputs.mask),
        inputs._replace(params=same),
    )
    assert_same(found[0], right[0])
    gradient, twice = found[1][0], right[1][0]
    both = jax.tree.map(jnp.add, twice["layer_0"], twice["layer_2"])
    assert_same(gradient["shared"]["core"], both)
    assert_same(gradient["layer"]["layer_1"], twice["layer_1"])
    assert_same(found[1][1:], right[1][1:])


def test_places_are_found_in_any_layer():
    block = jaxrnn.residual_block(CORE, D)
    deep = stack(stack(CORE, jaxrnn.residual(CORE)), jaxrnn.bidirectional(CORE, block))
    params = layers.share(deep).init(KEY, D)
    assert set(params["shared"]) == {"core"}
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (D, 3 * D)]
    assert len(kernels) == 2  # those of the input and of the recurrence of one cell
    unroll(layers.share(deep), params, jnp.ones((T, B, D)))


def test_a_tied_layer_may_hold_tied_layers_and_a_share_keeps_its_names():
    outer = layers.tied("pair", stack(CORE, CORE))
    layer = layers.share(stack(outer, layers.share(stack(CORE, CORE)), outer))
    params = layer.init(KEY, D)
    assert set(params["shared"]) == {"core", "pair"}
    assert set(params["layer"]["layer_1"]["shared"]) == {"core"}
    zeroed = {**params, "shared": jax.tree.map(jnp.zeros_like, params["shared"])}
    inner = params["layer"]["layer_1"]
    xs = unroll(
        stack(*[GRU(D)] * 4),
        {f"layer_{i}": zeroed["shared"]["core"] for i in range(4)},
        jnp.ones((T, B, D)),
    )[1]
    expected = unroll(layers.share(stack(CORE, CORE)), inner, xs)[0]
    found = unroll(layer, zeroed, jnp.ones((T, B, D)))[0][1]
    assert_same(found, expected)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(params["shared"]))


def test_apply_makes_vectors_of_tokens(x64):
    one_hot = functools.partial(jax.nn.one_hot, num_classes=7)
    layer = stack(layers.apply(one_hot, feature_ndim=0), GRU(2))
    params = layer.init(KEY, 7)
    tokens = jax.random.randint(KEY, (T, B), 0, 7)
    mask = jaxrnn.mask_from_lengths(jnp.array([T, 2, 0]), T)
    found = unroll(layer, params, tokens, mask=mask)
    expected = unroll(GRU(2), params["layer_1"], one_hot(tokens), mask=mask)
    assert_same((found[0][1], found[1]), expected)
    start = layer.initial_carry(params, (B,))
    assert_same(layer(params, start, tokens[0])[1][:2], found[1][0, :2])


def test_noise_and_inference_reach_tied_layers():
    noisy = layers.tied("core", jaxrnn.zoneout(GRU(D), 0.5))
    layer = layers.share(stack(noisy, noisy))
    assert layer.requires_key
    params = layer.init(KEY, D)
    xs = jnp.ones((T, B, D))
    assert set(params["shared"]) == {"core"}
    unroll(layer, params, xs, key=KEY)
    unroll(jaxrnn.inference(layer), params, xs)


ALL = [
    layers.dense(4, jax.nn.gelu),
    layers.layer_norm(),
    layers.rms_norm(1e-3),
    layers.apply(jnp.tanh, feature_ndim=(0, 1)),
    layers.concat(GRU(2)),
    layers.multiply(GRU(2), layers.dense(2)),
    layers.causal_conv(3, jax.nn.silu),
    layers.shift(3),
    layers.share(stack(CORE, CORE)),
]


@pytest.mark.parametrize("layer", ALL, ids=lambda layer: type(layer).__name__)
def test_equal_layers_are_equal_and_survive_pickling(layer):
    again = pickle.loads(pickle.dumps(layer))
    assert again == copy.deepcopy(layer) == layer
    assert hash(again) == hash(layer)


def run(layer, size=3, other=None):
    """Unroll a layer on three features, with its own parameters or others."""
    params = layer.init(KEY, size) if other is None else other
    return unroll(layer, params, jnp.ones((T, B, 3)))


BAD = {
    "dense size": (lambda: layers.dense(0), ValueError, "Dense: features must be"),
    "dense function": (
        lambda: layers.dense(2, "relu"),
        TypeError,
        "jax.nn.gelu or None",
    ),
    "dense inputs": (
        lambda: run(layers.dense(2), 4),
        ValueError,
        "made for 4 input features, but the inputs have 3",
    ),
    "dense params": (
        lambda: run(layers.dense(2), 3, {"kernel": jnp.ones((3, 2))}),
        TypeError,
        r"Dense: its params are a dict of \['bias', 'kernel'\]",
    ),
    "dense shape": (
        lambda: run(layers.dense(2, use_bias=False), 3, {"kernel": jnp.ones((3, 5))}),
        ValueError,
        r"Dense: params\['kernel'\] has shape \(3, 5\), expected \(3, 2\)",
    ),
    "norm inputs": (lambda: run(layers.rms_norm(), 4), ValueError, "made for 4 input"),
    "apply": (lambda: layers.apply(GRU(2).init), None, ""),
    "apply nothing": (lambda: layers.apply(None), TypeError, "apply: function must be"),
    "concat": (lambda: layers.concat(jnp.tanh), TypeError, "expected a jaxrnn.Cell"),
    "multiply": (
        lambda: run(layers.multiply(GRU(2), layers.dense(3))),
        ValueError,
        "GRU has 2 and Dense has 3",
    ),
    "width": (
        lambda: layers.causal_conv(1),
        ValueError,
        "width must be .* from 2 .*dense",
    ),
    "conv inputs": (lambda: run(CONV, 4), ValueError, "CausalConv: .*made for 4"),
    "conv params": (
        lambda: run(CONV, 3, {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}),
        ValueError,
        r"CausalConv: params\['kernel'\] has shape \(4, 3\), expected \(3, 3\)",
    ),
    "shift": (lambda: run(layers.shift(2)), ValueError, r"write shift\(3\)"),
    "shift unrolled": (
        lambda: run(layers.shift(2), 2),
        ValueError,
        r"write shift\(3\)",
    ),
    "tied alone": (lambda: run(stack(CORE, CORE)), ValueError, r"stands in no share"),
    "tied of other sizes": (
        lambda: run(layers.share(stack(CORE, Elman(2), CORE))),
        ValueError,
        "places tied by the name 'core' need equal parameters",
    ),
    "tied params": (
        lambda: run(
            layers.share(stack(CORE)), 3, {"layer": {"layer_0": {}}, "shared": {}}
        ),
        TypeError,
        r"tied\('core', ...\): its params are a dict of \['tied:core'\]",
    ),
    "share params": (
        lambda: run(layers.share(stack(CORE)), 3, {"layer_0": {}}),
        TypeError,
        r"Share: its params are a dict of \['layer', 'shared'\]",
    ),
    "name": (lambda: layers.tied(1, GRU(2)), TypeError, "the name must be a string"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case, plain_errors):
    call, kind, message = BAD[case]
    if kind is None:
        call()
        return
    with pytest.raises(kind, match=message):
        call()
