"""The converters on plain arrays, none of the other libraries needed: there and
back, and clear words for what does not fit.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

import jaxrnn
from jaxrnn import interop

H = 4
ELMAN, RELU, LSTM, GRU = (
    jaxrnn.Elman(H),
    jaxrnn.Elman(H, activation=jax.nn.relu),
    jaxrnn.LSTM(H),
    jaxrnn.GRU(H),
)
BEFORE, PROJECTED = jaxrnn.GRU(H, reset_after=False), jaxrnn.LSTM(H, projection_size=2)
DEEP = jaxrnn.stack(
    jaxrnn.bidirectional(GRU), jaxrnn.dropout(0.5), jaxrnn.bidirectional(GRU)
)
MIXED = jaxrnn.stack(
    jaxrnn.bidirectional(LSTM, jaxrnn.LSTM(3)), jaxrnn.dropout(0.1), GRU
)


def drawn(layer, seed=0):
    """Parameters with biases that are not zero."""
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), peers.INPUTS))
    leaves, structure = jax.tree.flatten(shapes)
    arrays = [
        jnp.asarray(peers.draw(seed + k, *leaf.shape, dtype="float32"))
        for k, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, arrays)


def torch_state(layer=LSTM, **options):
    return interop.to_torch(layer, drawn(layer), **options)


THERE_AND_BACK = {
    "torch": ([ELMAN, RELU, LSTM, PROJECTED, GRU, DEEP], interop.to_torch),
    "keras": ([ELMAN, LSTM, GRU, BEFORE, DEEP, MIXED], interop.to_keras),
    "flax": ([ELMAN, RELU, LSTM, GRU, DEEP, MIXED], interop.to_flax),
    "haiku": (
        [RELU, LSTM, BEFORE, jaxrnn.stack(jaxrnn.bidirectional(BEFORE), LSTM, LSTM)],
        interop.to_haiku,
    ),
    "equinox": ([LSTM, GRU, DEEP, MIXED], interop.to_equinox),
}


@pytest.mark.parametrize("library", THERE_AND_BACK)
def test_there_and_back(library):
    """Bit for bit, but for the 1 that Haiku adds to the forget gate, which rounds."""
    layers, write = THERE_AND_BACK[library]
    read = getattr(interop, f"from_{library}")
    for layer in layers:
        params = drawn(layer)
        arrays = write(layer, params)
        if library == "torch":
            nonlinearity = {ELMAN: "tanh", RELU: "relu"}.get(layer)
            again, back = read(
                arrays,
                nonlinearity=nonlinearity,
                dropout=0.5 if layer == DEEP else None,
            )
        else:
            again, back = read(arrays, layer)
        assert again == layer
        assert jax.tree.structure(back) == jax.tree.structure(params)

        def compare(a, b):
            return np.testing.assert_allclose(
                a, b, rtol=0, atol=2e-7 if library == "haiku" else 0
            )

        jax.tree.map(compare, back, params)


def test_nothing_is_imported_but_what_is_handed_in():
    code = """
import sys, numpy as np, jaxrnn
state = {"weight_ih_l0": np.ones((16, 3), "float32"), "weight_hh_l0": np.ones((16, 4), "float32")}
layer, params = jaxrnn.interop.from_torch(state)
for library in ("torch", "keras", "flax", "haiku", "equinox"):
    getattr(jaxrnn.interop, f"to_{library}")(layer, params)
jaxrnn.unroll(layer, params, np.ones((5, 2, 3), "float32"))
print({"torch", "keras", "flax", "haiku", "equinox", "safetensors"} & set(sys.modules))
# what programs, pictures and kernels need
print({"orbax", "rich", "matplotlib", "jax.experimental.pallas"} & set(sys.modules))
print("jax.experimental.pallas.tpu" in sys.modules)
"""  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\nset()\nFalse\n"


def test_a_conversion_can_be_traced():
    state = torch_state(GRU)
    compiled = jax.jit(lambda w: interop.from_torch(w)[1])(
        jax.tree.map(jnp.asarray, state)
    )
    peers.equal(compiled, interop.from_torch(state)[1])


def test_a_bias_that_is_not_there():
    state = {
        name: value
        for name, value in torch_state(GRU).items()
        if not name.startswith("bias")
    }
    layer, params = interop.from_torch(state)
    assert not np.any(params["bias"])
    assert not np.any(params["recurrent_bias"])
    peers.equal(interop.to_torch(layer, params, bias=False), state)
    with pytest.raises(
        ValueError, match=r"recurrent_bias is not zero.*the torch module has none"
    ):
        interop.to_torch(
            layer, params | {"recurrent_bias": jnp.arange(4.0)}, bias=False
        )
    with pytest.raises(
        TypeError, match="to_keras: the parameters have no values inside a compiled"
    ):
        jax.jit(lambda p: interop.to_keras(LSTM, p, bias=False)[0])(drawn(LSTM))


def torch_refused(match, state, error=ValueError, **options):
    with pytest.raises(error, match=match):
        interop.from_torch(state, **options)


def test_torch_names():
    two = torch_state(jaxrnn.stack(*[jaxrnn.bidirectional(LSTM)] * 3))
    middle = {name: value for name, value in two.items() if "_l1" not in name}
    torch_refused(
        r"missing bias_hh_l1, bias_hh_l1_reverse, .*weight_ih_l1_reverse$", middle
    )
    first = {name: value for name, value in two.items() if "_l0" not in name}
    torch_refused(r"missing weight_ih_l0, weight_hh_l0$", first)
    torch_refused(
        r"missing weight_hh_l2_reverse$",
        {n: v for n, v in two.items() if n != "weight_hh_l2_reverse"},
    )
    torch_refused(
        r"missing bias_hh_l0$",
        {n: v for n, v in torch_state().items() if n != "bias_hh_l0"},
    )
    torch_refused(
        r"not expected fc.bias, fc.weight$",
        torch_state() | {"fc.weight": two["bias_ih_l0"], "fc.bias": two["bias_ih_l0"]},
    )
    torch_refused(r"no weight_ih_l0 .* but nothing$", {})
    torch_refused(
        r"no weight_ih_l0 .*under prefix='a.rnn.'",
        torch_state(prefix="a.rnn."),
        prefix="b.",
    )
    torch_refused("packed, quantized weights", {"_all_weight_values.0.param": object()})
    torch_refused(
        "remove_parametrizations",
        torch_state() | {"parametrizations.weight_hh_l0.original0": two["bias_ih_l0"]},
    )
    with pytest.raises(
        TypeError,
        match=(
            "a torch module, a state_dict or the path of a safetensors file, but it is "
            "a list"
        ),
    ):
        interop.from_torch([])


def test_torch_shapes_and_dtypes():
    state = torch_state(jaxrnn.stack(LSTM, LSTM))
    wrong = state | {
        "weight_ih_l1": np.zeros((16, 5), "float32"),
        "bias_ih_l0": np.zeros(12, "float32"),
    }
    torch_refused(
        r"bias_ih_l0: expected \(16,\), found \(12,\); weight_ih_l1: expected \(16, "
        r"4\), found \(16, 5\)",
        wrong,
    )
    torch_refused(
        r"weight_hh_l0 has shape \(16, 5\), but for H = 5",
        state | {"weight_hh_l0": np.zeros((16, 5), "float32")},
    )
    torch_refused(
        r"weight_hh_l0 must be a matrix, but its shape is \(16,\)",
        state | {"weight_hh_l0": np.zeros(16, "float32")},
    )
    torch_refused(
        "bias_hh_l0 is int8: quantized",
        state | {"bias_hh_l0": np.zeros(16, "int8")},
        TypeError,
    )
    torch_refused(
        "several dtypes.*bias_hh_l0 is float16",
        state | {"bias_hh_l0": np.zeros(16, "float16")},
        TypeError,
    )
    torch_refused(
        "JAX would round to float32",
        {n: v.astype("float64") for n, v in state.items()},
        TypeError,
    )
    torch_refused(
        "bias_hh_l0 must be an array, but it is a str",
        state | {"bias_hh_l0": "zeros"},
        TypeError,
    )


def test_torch_options():
    torch_refused(
        "which do not tell its nonlinearity: pass nonlinearity='tanh' or 'relu'",
        torch_state(ELMAN),
    )
    torch_refused("it is 'gelu'", torch_state(ELMAN), nonlinearity="gelu")
    torch_refused(
        "nonlinearity is nn.RNN's, but these are the weights of GRU",
        torch_state(GRU),
        nonlinearity="tanh",
    )
    for layer, match in {
        BEFORE: "resets before the matrix product and torch's GRU after it",
        jaxrnn.Elman(H, activation=jax.nn.sigmoid): "nn.RNN is tanh or relu",
        jaxrnn.Elman(
            H, activation=jax.nn.gelu
        ): "must be jnp.tanh, jax.nn.relu or jax.nn.sigmoid",
        jaxrnn.LSTM(
            H, peephole=True
        ): "LSTM has peephole=True, which no cell of the other library has",
        jaxrnn.GRU(H, learned_initial_carry=True): "learned_initial_carry=True",
        jaxrnn.bidirectional(
            GRU, merge="sum"
        ): r"concatenated.*the nearest torch module is bidirectional\(GRU\(4\), GRU\(4\), merge='co",  # noqa: E501
        jaxrnn.stack(
            LSTM, jaxrnn.LSTM(3)
        ): r"this is stack\(LSTM\(4\), LSTM\(3\)\); the nearest",
        jaxrnn.stack(
            GRU, jaxrnn.dropout(0.1, variational=True), GRU
        ): "variational=True",
    }.items():
        with pytest.raises(ValueError, match=match):
            interop.to_torch(layer, {})
    with pytest.raises(
        TypeError,
        match=(
            "stack, bidirectional and dropout of Elman, LSTM and GRU cells, but got "
            "Residual"
        ),
    ):
        interop.to_torch(jaxrnn.residual(GRU), {})
    with pytest.raises(ValueError, match="a torch Cell is one cell"):
        interop.to_torch(DEEP, drawn(DEEP), cell=True)
    with pytest.raises(
        TypeError,
        match="into must be a torch module or the path of a new file, but it is a dict",
    ):
        interop.to_torch(GRU, drawn(GRU), into={})
    with pytest.raises(TypeError, match="its params are a dict of"):
        interop.to_torch(GRU, drawn(LSTM))


def test_torch_states():
    layer = jaxrnn.stack(
        jaxrnn.bidirectional(PROJECTED), jaxrnn.bidirectional(PROJECTED)
    )
    h, c = (
        peers.draw(0, 4, 3, 2, dtype="float32"),
        peers.draw(1, 4, 3, H, dtype="float32"),
    )
    carry = interop.carry_from_torch(layer, (h, c))
    # layer by layer, forward before backward
    np.testing.assert_array_equal(carry[1].backward.c, c[3])
    assert jax.tree.structure(carry) == jax.tree.structure(
        layer.initial_carry(drawn(layer), (3,))
    )
    peers.equal(interop.carry_to_torch(layer, carry), (h, c))
    with pytest.raises(
        ValueError,
        match=r"h: expected \(4, 3, 2\), found \(2, 3, 2\); c: .*layers times directions",  # noqa: E501
    ):
        interop.carry_from_torch(layer, (h[:2], c[:2]))
    with pytest.raises(TypeError, match=r"needs the pair \(h, c\), .* but got an a"):
        interop.carry_from_torch(layer, h)
    with pytest.raises(TypeError, match=r"GRU\(4\) needs h alone"):
        interop.carry_from_torch(GRU, (h, c))
    with pytest.raises(ValueError, match="torch's states are of equal cells"):
        interop.carry_from_torch(MIXED, h)


def test_keras_weights():
    kernel, recurrent_kernel, bias = interop.to_keras(GRU, drawn(GRU))
    assert bias.shape == (2, 12)

    def refused(match, weights, layer=GRU, error=ValueError):
        with pytest.raises(error, match=match):
            interop.from_keras(weights, layer)

    refused(
        r"cell 0: wrong shapes: bias: expected \(2, 12\), found \(12,\). A GRU's bias "
        r"is",
        [kernel, recurrent_kernel, bias[0]],
    )
    refused(
        r"bias: expected \(12,\), found \(2, 12\)",
        [kernel, recurrent_kernel, bias],
        BEFORE,
    )
    refused(
        r"kernel: expected \(3, 16\), found \(3, 12\)",
        [kernel, recurrent_kernel, bias],
        LSTM,
    )
    refused("12 or 8 arrays, but got 3", [kernel, recurrent_kernel, bias], DEEP)
    refused(
        "recurrent_kernel is float16",
        [kernel, recurrent_kernel.astype("float16"), bias],
        error=TypeError,
    )
    refused(
        "plain weights do not tell which layer they are for",
        [kernel, recurrent_kernel, bias],
        None,
        TypeError,
    )
    refused("expected keras.layers SimpleRNN", "weights", None, TypeError)
    refused("with layer=, give the plain weights", {"kernel": kernel}, error=TypeError)
    with pytest.raises(ValueError, match="no Keras LSTM has a projection"):
        interop.to_keras(PROJECTED, drawn(PROJECTED))


def test_haiku_weights():
    params = drawn(LSTM)
    arrays = interop.to_haiku(LSTM, params)

    def refused(match, weights, layer=LSTM, error=ValueError, **options):
        with pytest.raises(error, match=match):
            interop.from_haiku(weights, layer, **options)

    refused(
        "lstm: missing linear/b. The params have the modules lstm",
        {"lstm/linear": {"w": arrays["lstm/linear"]["w"]}},
    )
    refused(r"linear/w: expected \(7, 12\), found \(7, 16\)", arrays, jaxrnn.LSTM(3))
    refused(r"not expected head/w: pass names=", arrays | {"head": {"w": jnp.zeros(3)}})
    refused("modules lstm/linear", arrays, names="net/lstm")
    refused("give as many different names", arrays, names=["lstm", "lstm_1"])
    refused("Haiku's GRU resets before the matrix product", arrays, GRU)
    refused("Haiku's VanillaRNN is relu", arrays, ELMAN)
    refused("Haiku's LSTM has no projection", arrays, PROJECTED)
    refused("expected Haiku's params, a dict of dicts", [arrays], error=TypeError)
    refused(
        "expected Haiku's params, a dict of dicts",
        arrays["lstm/linear"],
        error=TypeError,
    )
    single = interop.to_haiku(RELU, drawn(RELU), double_bias=False)
    assert set(single["vanilla_rnn/linear_1"]) == {"w"}
    peers.equal(interop.from_haiku(single, RELU)[1], drawn(RELU))


def test_equinox_weights():
    arrays = interop.to_equinox(GRU, drawn(GRU))
    assert interop.from_equinox(arrays)[0] == GRU

    def refused(match, weights, layer=None, error=ValueError):
        with pytest.raises(error, match=match):
            interop.from_equinox(weights, layer)

    refused(
        "cell 0: missing bias_n",
        {name: value for name, value in arrays.items() if name != "bias_n"},
    )
    refused("cell 1: missing weight_hh", [arrays, {"weight_ih": arrays["weight_ih"]}])
    refused(r"bias: expected \(12,\), found \(16,\)", arrays | {"bias": jnp.zeros(16)})
    refused(
        r"the layer is LSTM\(4\), but the arrays are those of GRU\(4\)", arrays, LSTM
    )
    refused("has 2 cells, but got weights for 1", arrays, jaxrnn.bidirectional(GRU))
    with pytest.raises(
        ValueError,
        match=r"Equinox has LSTMCell and GRUCell, and neither is Elman\(4, tanh\)",
    ):
        interop.to_equinox(ELMAN, drawn(ELMAN))
    with pytest.raises(ValueError, match="Equinox's GRUCell after it"):
        interop.to_equinox(BEFORE, drawn(BEFORE))


def test_a_package_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxrnn\[safetensors\]'"):
        interop.from_torch(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_safetensors_file_without_torch(dtype, tmp_path):
    pytest.importorskip("safetensors")
    params = jax.tree.map(lambda a: a.astype(dtype), drawn(DEEP))
    path = interop.to_torch(
        DEEP, params, into=tmp_path / "weights.safetensors", prefix="rnn."
    )
    layer, back = interop.from_torch(str(path), prefix="rnn", dropout=0.5)
    assert layer == DEEP
    peers.equal(back, params)
