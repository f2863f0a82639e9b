"""Weights from Keras and back, against the Keras that is installed, on the JAX backend:
values and gradients, ragged batches.

In float32 alone: on every backend but TensorFlow's, Keras 3 computes float32 of float64
    layers, too.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

import jaxrnn
from jaxrnn import interop

H = 4


@pytest.fixture(scope="module")
def keras():
    """Keras reads its backend from the environment when it is first imported."""
    before = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        module = pytest.importorskip("keras")
    finally:
        os.environ.pop("KERAS_BACKEND") if before is None else os.environ.update(
            KERAS_BACKEND=before
        )
    if module.backend.backend() != "jax":
        pytest.skip(f"keras was imported on {module.backend.backend()} before")
    return module


@pytest.fixture(autouse=True)
def keras_promotion():
    """Keras relies on promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


KINDS = {
    "SimpleRNN": (jaxrnn.Elman(H), {}),
    "LSTM": (jaxrnn.LSTM(H), {}),
    "GRU": (jaxrnn.GRU(H), {}),
    "GRU before": (jaxrnn.GRU(H, reset_after=False), {"reset_after": False}),
    "GRU without bias": (jaxrnn.GRU(H), {"use_bias": False}),
}


def made(keras, kind, dtype="float32", **options):
    options = (
        {"return_sequences": True, "return_state": True, "dtype": dtype}
        | KINDS[kind][1]
        | options
    )
    return getattr(keras.layers, kind.split()[0])(H, **options)


def layers_of(keras, kind, layers, both, dtype):
    """Built, with biases drawn too."""
    wrap = (
        (lambda layer: keras.layers.Bidirectional(layer, dtype=dtype))
        if both
        else (lambda layer: layer)
    )
    built, width = [wrap(made(keras, kind, dtype)) for _ in range(layers)], peers.INPUTS
    for n, layer in enumerate(built):
        layer.build((None, peers.STEPS, width))
        width = H * (2 if both else 1)
        layer.set_weights(
            [
                0.4 * peers.draw(100 * n + k, *w.shape, dtype=dtype)
                for k, w in enumerate(layer.weights)
            ]
        )
    return built


def run_with(built):
    """``run(flat weights, xs, lengths)`` of these layers on top of each other."""

    def run(weights, xs, lengths):
        mask, states, rest = (
            jnp.arange(peers.STEPS) < lengths[:, None],
            [],
            list(weights),
        )
        for layer in built:
            own, rest = rest[: len(layer.weights)], rest[len(layer.weights) :]
            (xs, *last), _ = layer.stateless_call(
                own, [v.value for v in layer.non_trainable_variables], xs, mask=mask
            )
            states += last
        return xs, states

    return run


@pytest.mark.parametrize(
    ("kind", "layers", "both", "dtype"), peers.cases(KINDS, ["LSTM"], doubles=False)
)
def test_the_same_values_states_and_gradients(kind, layers, both, dtype, keras):
    built = layers_of(keras, kind, layers, both, dtype)
    level = jaxrnn.bidirectional(KINDS[kind][0]) if both else KINDS[kind][0]
    layer = level if layers == 1 else jaxrnn.stack(*[level] * layers)
    weights = [w for one in built for w in one.get_weights()]
    expected = peers.theirs(run_with(built), weights, dtype)
    actual = peers.ours(lambda flat: interop.from_keras(flat, layer), weights, dtype)
    peers.assert_agree(actual, expected, dtype)

    source = built if layers > 1 else built[0]
    read, params = interop.from_keras(source)
    assert read == layer
    peers.equal(params, interop.from_keras(weights, layer)[1])
    plain = interop.to_keras(layer, params, bias="without" not in kind)
    assert [w.shape for w in plain] == [w.shape for w in weights]
    other = layers_of(keras, kind, layers, both, dtype)
    for one in other:
        one.set_weights([w * 0 for w in one.get_weights()])
    into = other if layers > 1 else other[0]
    assert interop.to_keras(layer, params, into=into) is into
    written = [w for one in other for w in one.get_weights()]
    peers.equal(written, plain)
    peers.equal(interop.from_keras(into)[1], params)
    if layers == 1:
        again = peers.theirs(run_with(other), written, dtype)
        peers.assert_agree(
            again, expected._replace(weight_gradients=again.weight_gradients), dtype
        )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "without" not in kind])
def test_cells_and_stacked_cells(kind, keras):
    make = lambda: getattr(keras.layers, f"{kind.split()[0]}Cell")(H, **KINDS[kind][1])  # noqa: E731
    cell = make()
    cell.build((2, 3))
    ours, params = interop.from_keras(cell)
    assert ours == KINDS[kind][0]
    x = peers.draw(0, 2, 3, dtype="float32")
    states = [
        peers.draw(1 + k, 2, H, dtype="float32")
        for k in range(2 if kind == "LSTM" else 1)
    ]
    y, last = cell(x, states)
    carry = (
        jaxrnn.LSTMState(*map(jnp.asarray, states))
        if kind == "LSTM"
        else jnp.asarray(states[0])
    )
    carry, actual = ours(params, carry, jnp.asarray(x))
    np.testing.assert_allclose(actual, y, atol=1e-6)
    for a, e in zip(jax.tree.leaves(carry), last, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-6)

    rnn = keras.layers.RNN(keras.layers.StackedRNNCells([make(), make()]))
    rnn.build((None, 5, 3))
    layer, params = interop.from_keras(rnn)
    assert layer == jaxrnn.stack(ours, ours)
    _, ys = jaxrnn.unroll(layer, params, jnp.asarray(peers.inputs("float32")))
    np.testing.assert_allclose(
        ys[-1], rnn(peers.inputs("float32").swapaxes(0, 1)), atol=1e-6
    )


def test_a_sequential_model_and_other_options(keras):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((5, 3)), layers.LSTM(H, return_sequences=True), layers.GRU(2)]
    )
    layer, params = interop.from_keras(model)
    assert layer == jaxrnn.stack(jaxrnn.LSTM(H), jaxrnn.GRU(2))
    carry, _ = jaxrnn.unroll(layer, params, jnp.asarray(peers.inputs("float32")))
    np.testing.assert_allclose(
        carry[1], model(peers.inputs("float32").swapaxes(0, 1)), atol=1e-6
    )
    summed = layers.Bidirectional(
        layers.SimpleRNN(H, activation="relu"), merge_mode="sum"
    )
    summed.build((None, 5, 3))
    expected = jaxrnn.bidirectional(
        jaxrnn.Elman(H, activation=jax.nn.relu), merge="sum"
    )
    assert interop.from_keras(summed)[0] == expected


def test_what_computes_something_else_is_refused(keras):
    layers = keras.layers
    own_tanh = lambda x: 1.7 * jnp.tanh(x)  # noqa: E731
    own_tanh.__name__ = "tanh"

    def refused(match, layer, error=ValueError, build=True):
        if build:
            layer.build((2, 5, 3))
        with pytest.raises(error, match=match):
            interop.from_keras(layer)

    refused("has no weights yet: build it", layers.LSTM(H), build=False)
    refused(
        "activation relu and the recurrent activation sigmoid; jaxrnn's LSTM has tanh",
        layers.LSTM(H, activation="relu"),
    )
    refused("activation <function", layers.LSTM(H, activation=own_tanh))
    refused(
        "recurrent activation hard_sigmoid",
        layers.GRU(H, recurrent_activation="hard_sigmoid"),
    )
    refused(
        "activation gelu.*Elman has one of tanh, relu, sigmoid",
        layers.SimpleRNN(H, activation="gelu"),
    )
    refused(
        r"go_backwards=True.*unroll\(..., reverse=True\)",
        layers.LSTM(H, go_backwards=True),
    )
    refused("is stateful", layers.LSTM(H, stateful=True))
    refused("dropout=0.5.*with layer=", layers.LSTM(H, dropout=0.5))
    refused("recurrent_dropout=0.5", layers.GRU(H, recurrent_dropout=0.5))
    refused("merge_mode='ave'", layers.Bidirectional(layers.GRU(H), merge_mode="ave"))
    refused(
        "holds float32 and computes in bfloat16",
        layers.LSTM(H, dtype="mixed_bfloat16"),
        TypeError,
    )
    refused("expected keras.layers SimpleRNN, LSTM.*Dense", layers.Dense(H), TypeError)
    refused(
        "return_sequences=False",
        keras.Sequential([layers.LSTM(H), layers.RepeatVector(5), layers.LSTM(H)]),
    )


@pytest.mark.parametrize(
    ("kind", "inputs", "options", "match"),
    [
        ("GRU", 3, {}, r"the layer is LSTM\(4\), but the object to load is GRU\(4\)"),
        (
            "LSTM",
            5,
            {},
            r"cell 0: wrong shapes: kernel: expected \(5, 16\), found \(3, 16\)",
        ),
        ("LSTM", 3, {"use_bias": False}, r"bias is not zero.*the Keras layer has none"),
    ],
)
def test_loading_checks_the_object(kind, inputs, options, match, keras):
    cell, other = jaxrnn.LSTM(H), made(keras, kind, **options)
    other.build((None, 5, inputs))
    with pytest.raises(ValueError, match=match):
        interop.to_keras(cell, cell.init(jax.random.key(0), 3), into=other)


def test_one_layer_twice_is_not_loaded(keras):
    other = made(keras, "LSTM")
    other.build((None, 5, H))
    layer = jaxrnn.stack(jaxrnn.LSTM(H), jaxrnn.LSTM(H))
    with pytest.raises(ValueError, match="into holds one object twice"):
        interop.to_keras(layer, layer.init(jax.random.key(0), H), into=[other, other])
