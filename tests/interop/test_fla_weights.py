"""Weights of flash-linear-attention and of mamba, against values and gradients kept in
golden/ by make_fla.py, and what is refused.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import normal

import jaxrnn
from jaxrnn.cells import GLA, RWKV7, GatedDeltaNet, Mamba, Mamba2
from jaxrnn.interop import from_fla, from_mamba

GOLDEN = {
    case: own
    for name in ("fla", "mamba")
    for case, own in json.loads(
        (Path(__file__).parents[1] / "golden" / f"{name}.json").read_text()
    ).items()
    if case != "meta"
}
OPTIONS = {
    "gated_deltanet": {"norm_eps": 1e-6, "num_heads": 2},
    "gated_deltanet_grouped": {
        "norm_eps": 1e-6,
        "num_heads": 1,
        "num_v_heads": 2,
        "allow_neg_eigval": True,
    },
    "gla": {"norm_eps": 1e-6},
    "gla_convolved": {"norm_eps": 1e-6, "num_heads": 2, "gate_logit_normalizer": 16},
    "rwkv7": {"norm_eps": 1e-5},
    "rwkv7_later": {"norm_eps": 1e-5, "num_heads": 2},
    "mamba": {},
    "mamba2": {},
    "mamba2_groups": {"ngroups": 2},
}
CELLS = {
    "gated_deltanet": GatedDeltaNet(
        6, num_heads=2, key_size=2, conv=3, norm_epsilon=1e-6
    ),
    "gated_deltanet_grouped": GatedDeltaNet(
        4,
        num_heads=2,
        num_key_heads=1,
        key_size=3,
        conv=None,
        allow_negative=True,
        use_gate=False,
        norm_epsilon=1e-6,
    ),
    "gla": GLA(6, num_heads=2, key_size=2, gate_rank=2, norm_epsilon=1e-6),
    "gla_convolved": GLA(
        4,
        num_heads=2,
        key_size=2,
        gate_rank=3,
        conv=3,
        use_gate=False,
        norm_epsilon=1e-6,
    ),
    "mamba": Mamba(3, state_size=2, rank=2, conv=4),
    "mamba2": Mamba2(4, num_heads=2, key_size=3, conv=4),
    "mamba2_groups": Mamba2(4, num_heads=4, num_groups=2, key_size=2, conv=2),
}
TOLERANCES = {"float64": 1e-10, "float32": 1e-6}
CHUNKS = jaxrnn.Associative(chunk=2)


def weights_of(case, dtype="float32"):
    return {
        name: np.array(value, dtype)
        for name, value in GOLDEN[case]["state_dict"].items()
    }


def inputs_of(case, dtype="float32"):
    """x, or x and the values of the first layer."""
    parts = tuple(jnp.array(x, dtype) for x in GOLDEN[case]["inputs"].values())
    return parts if len(parts) > 1 else parts[0]


def convert(case, weights):
    of = from_mamba if case.startswith("mamba") else from_fla
    return of(weights, **OPTIONS[case])


def close(actual, expected, tolerance):
    scale = max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", GOLDEN)
def test_values_match_the_equations(case, dtype):
    """By chunks, and step by step."""
    golden, tolerance = GOLDEN[case], TOLERANCES[dtype]
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        cell, params = convert(case, weights_of(case, dtype))
        assert cell == CELLS.get(case, cell)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        xs = inputs_of(case, dtype)
        for engine in (CHUNKS, jaxrnn.Scan()):
            ys = jaxrnn.unroll(cell, params, xs, engine=engine)[1]
            assert ys.dtype == dtype
            close(ys, np.array(golden["y"]), tolerance)


@pytest.mark.parametrize("case", GOLDEN)
def test_gradients_match_the_equations(case):
    golden = GOLDEN[case]
    with jax.enable_x64(True):
        cell, params = convert(case, weights_of(case, "float64"))

        def loss(xs):
            ys = jaxrnn.unroll(cell, params, xs, engine=CHUNKS)[1]
            return (ys * jnp.array(golden["cotangent"], "float64")).sum()

        gradients = jax.jit(jax.grad(loss))(inputs_of(case, "float64"))
        found = jax.tree.leaves(gradients)
        for gradient, expected in zip(found, golden["gradients"].values(), strict=True):
            close(gradient, np.array(expected), 1e-10)


def test_streaming_gives_the_same():
    cell, params = convert("gated_deltanet", weights_of("gated_deltanet"))
    xs = jnp.array(GOLDEN["gated_deltanet"]["inputs"]["x"], "float32")
    step, carry = jax.jit(cell), cell.initial_carry(params, (2,))
    for x, y in zip(xs, GOLDEN["gated_deltanet"]["y"], strict=True):
        carry, actual = step(params, carry, x)
        close(actual, np.array(y), 1e-6)


def test_the_first_layer_of_rwkv7_shows_its_values():
    """The weights are those of a cell that shows v, which later layers mix in."""
    weights = weights_of("rwkv7")
    cell, params = convert("rwkv7", weights)
    xs = jnp.array(GOLDEN["rwkv7"]["inputs"]["x"], "float32")
    showing = dataclasses.replace(cell, shows_values=True)
    ys, values = jaxrnn.unroll(showing, params, xs)[1]
    close(ys, np.array(GOLDEN["rwkv7"]["y"]), 1e-6)
    xs = np.asarray(xs)
    before = np.concatenate([np.zeros_like(xs[:1]), xs[:-1]])
    mixed = xs + (before - xs) * weights["x_v"]
    close(values, np.asarray(mixed @ weights["v_proj.weight"].T), 1e-6)


@pytest.mark.parametrize("case", ["gated_deltanet", "gla", "rwkv7", "mamba", "mamba2"])
def test_conversion_can_be_traced(case):
    weights = weights_of(case)
    traced = jax.jit(lambda weights: convert(case, weights)[1])(weights)
    jax.tree.map(np.testing.assert_array_equal, traced, convert(case, weights)[1])


def test_a_layer_is_found_by_its_prefix(tmp_path):
    """In a dictionary and in a file, with and without the last dot."""
    safetensors = pytest.importorskip("safetensors.numpy")
    weights = {
        f"backbone.layers.{layer}.mixer.{name}": value + layer
        for layer in (1, 10)
        for name, value in weights_of("mamba2").items()
    }
    weights["backbone.embedding.weight"] = np.zeros((2, 2), "float32")
    path = tmp_path / "model.safetensors"
    safetensors.save_file(weights, path)
    expected = from_mamba(weights_of("mamba2"))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, path.name)}))
    for source in (weights, path, index):
        for prefix in ("backbone.layers.1.mixer.", "backbone.layers.1.mixer"):
            cell, params = from_mamba(source, prefix=prefix)
            assert cell == expected[0]
            close(params["D"], np.asarray(expected[1]["D"] + 1), 1e-6)
    for prefix in ("", "backbone.layers.2.mixer."):
        with pytest.raises(
            ValueError, match=r"prefix='backbone\.layers\.1\.mixer\.', "
        ):
            from_mamba(path, prefix=prefix)
    index.write_text("[]")
    with pytest.raises(ValueError, match="has an entry weight_map"):
        from_mamba(index)
    with pytest.raises(ValueError, match=r"begins with backbone.embedding.weight"):
        from_mamba({"backbone.embedding.weight": weights["backbone.embedding.weight"]})


def test_what_older_versions_of_fla_stored():
    """An unused D of Gated DeltaNet, and the six shifts of RWKV-7 in one array."""
    weights = weights_of("gated_deltanet")
    expected = convert("gated_deltanet", weights)
    found = convert("gated_deltanet", weights | {"D": np.ones(2, "float32")})
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    weights = weights_of("rwkv7")
    expected = convert("rwkv7", weights)[1]
    shifts = [weights.pop(f"x_{name}").reshape(1, -1) for name in "rwkvag"]
    weights["x_x"] = np.concatenate(shifts)
    found = convert("rwkv7", weights)[1]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_float32_beside_half_precision():
    """A_log and D may be float32 beside bfloat16, as those who train keep them."""
    half = {
        name: value if name in ("A_log", "D") else value.astype(jnp.bfloat16)
        for name, value in weights_of("mamba2").items()
    }
    cell, params = from_mamba(half)
    assert params["A_log"].dtype == params["D"].dtype == jnp.float32
    assert params["input_kernel"].dtype == params["dt_bias"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["A_log"], half["A_log"])
    xs = jnp.array(GOLDEN["mamba2"]["inputs"]["x"], jnp.bfloat16)
    ys = jaxrnn.unroll(cell, params, xs)[1]
    assert ys.dtype == jnp.bfloat16
    wide = {name: value.astype("float32") for name, value in half.items()}
    expected = jaxrnn.unroll(cell, from_mamba(wide)[1], xs.astype("float32"))[1]
    close(ys.astype("float32"), np.asarray(expected), 0.05)
    with pytest.raises(TypeError, match=r"conv1d.bias is float32, .*Cast them to one"):
        from_mamba(half | {"conv1d.bias": half["conv1d.bias"].astype("float32")})


def test_convolutions_with_and_without_biases():
    """Mamba's bias may be missing; those that a cell lacks must be zero."""
    weights = weights_of("mamba")
    bias = weights.pop("conv1d.bias")
    zeros = from_mamba(weights | {"conv1d.bias": 0 * bias})[1]
    jax.tree.map(np.testing.assert_array_equal, from_mamba(weights)[1], zeros)
    weights["in_proj.bias"] = np.zeros(6, "float32")
    jax.tree.map(np.testing.assert_array_equal, from_mamba(weights)[1], zeros)
    weights["in_proj.bias"][3] = 0.5
    with pytest.raises(ValueError, match=r"in_proj.bias is not zero \(up to 0.5"):
        from_mamba(weights)
    weights = weights_of("gated_deltanet")
    zero = {"k_conv1d.bias": np.zeros(4, "float32")}
    expected = convert("gated_deltanet", weights)[1]
    found = convert("gated_deltanet", weights | zero)[1]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(ValueError, match=r"k_conv1d.bias is not zero"):
        convert("gated_deltanet", weights | {"k_conv1d.bias": bias[:1]})


def changed(case, **changes):
    """Weights with other entries, by names with __ for dots; None takes one away."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    weights = weights_of(case) | changes
    return {name: value for name, value in weights.items() if value is not None}


ZEROS = np.zeros((3, 5), "float32")
REFUSED = [
    ("gated_deltanet", {"q_proj__weight": None}, {}, "missing q_proj.weight"),
    ("gated_deltanet", {"o_norm__weight": None}, {}, "missing o_norm.weight"),
    ("gated_deltanet", {"h_proj__weight": ZEROS}, {}, "not expected h_proj.weight"),
    (
        "gated_deltanet",
        {"b_proj__weight": ZEROS},
        {},
        r"b_proj.weight: expected \(2, 4\), found \(3, 5\)",
    ),
    ("gated_deltanet", {"A_log": ZEROS}, {}, r"A_log must have 1 axes.* \(3, 5\)"),
    ("gated_deltanet", {}, {"num_heads": None}, "num_heads is required .*config.json"),
    ("gated_deltanet", {}, {"num_heads": 3}, "has 4 rows, which 3 heads do not divide"),
    ("gated_deltanet", {}, {"num_heads": 4}, "does not divide the 2 heads of v"),
    (
        "gated_deltanet",
        {},
        {"num_heads": 1},
        "A_log has 2 heads of v: pass num_heads=2",
    ),
    ("gated_deltanet", {}, {"num_v_heads": 4}, "num_v_heads=4, .* of A_log .* 2"),
    ("gla", {}, {"num_v_heads": 2}, "num_v_heads is GatedDeltaNet's"),
    ("gated_deltanet", {}, {"gate_logit_normalizer": 8}, "is GLA's"),
    ("gla", {}, {"num_heads": 3}, "num_heads=3, but by the shapes of .* there are 2"),
    ("gla", {}, {"allow_neg_eigval": True}, "is GatedDeltaNet's"),
    ("gla", {"k_proj__weight": ZEROS[:2, :4]}, {}, "num_kv_heads"),
    ("gla", {}, {"norm_eps": 0.0}, "norm_epsilon"),
    ("rwkv7", {"x_w": None}, {}, "missing x_w"),
    ("rwkv7", {"x_w": ZEROS}, {}, r"x_w: expected \(1, 1, 4\), found \(3, 5\)"),
    ("rwkv7", {}, {"num_heads": 1}, "num_heads=1, but by the shapes of r_k .* 2"),
    ("rwkv7_later", {"v_lora__lora__2__bias": None}, {}, "missing v_lora.lora.2.bias"),
    ("mamba", {}, {"ngroups": 2}, "ngroups is Mamba-2's"),
    ("mamba", {"x_proj__weight": ZEROS}, {}, r"expected \(6, 3\), found \(3, 5\)"),
    ("mamba2", {}, {"ngroups": 2}, "3 rows, which 2 heads do not divide"),
    ("mamba2", {"norm__weight": None}, {}, "missing norm.weight.*rmsnorm=False"),
    ("mamba2", {"D": ZEROS[0, :4]}, {}, r"D: expected \(2,\), found \(4,\).*D_has"),
    ("mamba2", {"out_proj__weight": ZEROS}, {}, "conv1d.weight has 10 rows.* d_ssm"),
]


@pytest.mark.parametrize(("case", "changes", "options", "message"), REFUSED)
def test_what_is_refused(case, changes, options, message):
    of = from_mamba if case.startswith("mamba") else from_fla
    with pytest.raises(ValueError, match=message):
        of(changed(case, **changes), **(OPTIONS[case] | options))


def test_dtypes_and_sources_that_are_refused():
    weights = weights_of("gla")
    integers = {"o_proj.weight": weights["o_proj.weight"].astype("int8")}
    with pytest.raises(TypeError, match=r"o_proj.weight is int8: quantized"):
        convert("gla", weights | integers)
    with pytest.raises(TypeError, match=r"gk_proj.1.bias must be an array"):
        convert("gla", weights | {"gk_proj.1.bias": [1.0] * 4})
    with pytest.raises(TypeError, match="float64, which JAX would round to float32"):
        convert("gla", weights_of("gla", "float64"))
    with pytest.raises(TypeError, match="expected a state_dict"):
        from_fla([weights], norm_eps=1e-6)
    with pytest.raises(ValueError, match=r"no a_proj.weight and no gk_proj.0.weight"):
        from_fla(weights_of("mamba"), norm_eps=1e-6)


def test_a_damaged_file_is_named(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"xx")
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read .*damaged"):
        from_fla(path, norm_eps=1e-6)


@pytest.mark.parametrize(
    "cell", [GatedDeltaNet(4, num_heads=2), GLA(4, num_heads=2), RWKV7(4, num_heads=2)]
)
def test_epsilon_of_the_norms(cell):
    """What the norm adds is what is told: with much of it, outputs are small."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    params = normal(random, shapes, 0.3)
    xs = jnp.asarray(random.normal(size=(3, 2, 3)))
    params |= {
        name: np.zeros(shapes[name].shape, shapes[name].dtype)
        for name in ("bonus", "norm_bias")
        if name in shapes
    }

    def both(params, xs):
        small, large = (
            dataclasses.replace(cell, norm_epsilon=eps) for eps in (1e6, 4e6)
        )
        return [jaxrnn.unroll(each, params, xs)[1] for each in (small, large)]

    ys = [np.asarray(each) for each in jax.jit(both)(params, xs)]
    close(ys[0], 2 * ys[1], 1e-5 * float(np.abs(ys[0]).max()))
    assert np.abs(ys[0]).max() > 0
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="norm_epsilon"):
            dataclasses.replace(cell, norm_epsilon=bad)
