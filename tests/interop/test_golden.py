"""jaxrnn against values and gradients of PyTorch, Keras and Haiku kept in golden/ by
its scripts, through jaxrnn.interop.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import interop

TORCH, KERAS, HAIKU = (
    json.loads((Path(__file__).parents[1] / "golden" / f"{name}.json").read_text())
    for name in ("torch", "keras", "haiku")
)
# Values, and gradients relative to the largest entry.
TOLERANCES = {"float64": (1e-12, 1e-12), "float32": (1e-6, 1e-5)}

TWO_WAY_LSTM, TWO_WAY_GRU = (
    jaxrnn.bidirectional(jaxrnn.LSTM(2)),
    jaxrnn.bidirectional(jaxrnn.GRU(2)),
)
RELU = jaxrnn.Elman(3, activation=jax.nn.relu)
TORCH_LAYERS = {
    "rnn_tanh": jaxrnn.Elman(3),
    "rnn_relu": RELU,
    "lstm": jaxrnn.LSTM(3),
    "lstm_projected": jaxrnn.LSTM(4, projection_size=2),
    "gru": jaxrnn.GRU(3),
    "lstm_two_layers_bidirectional": jaxrnn.stack(TWO_WAY_LSTM, TWO_WAY_LSTM),
}
KERAS_LAYERS = {
    "simple_rnn": jaxrnn.Elman(3),
    "lstm": jaxrnn.LSTM(3),
    "gru": jaxrnn.GRU(3),
    "gru_reset_before": jaxrnn.GRU(3, reset_after=False),
    "gru_two_layers_bidirectional": jaxrnn.stack(TWO_WAY_GRU, TWO_WAY_GRU),
}
HAIKU_LAYERS = {
    "vanilla_rnn": RELU,
    "lstm": jaxrnn.LSTM(3),
    "gru": jaxrnn.GRU(3, reset_after=False),
    "lstm_on_gru": jaxrnn.stack(jaxrnn.GRU(2, reset_after=False), jaxrnn.LSTM(2)),
}


def assert_close(actual, expected, tolerance, dtype, relative_to_largest=False):
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for array, reference in zip(actual, expected, strict=True):
        assert array.dtype == dtype
        scale = np.abs(reference).max() if relative_to_largest else 1.0
        np.testing.assert_allclose(
            array, reference, rtol=tolerance, atol=tolerance * scale
        )


def arrays(tree):
    """Numbers as arrays, in Keras's flat list or in Haiku's dict of dicts."""
    if isinstance(tree, dict):
        return {
            module: {name: np.array(numbers) for name, numbers in own.items()}
            for module, own in tree.items()
        }
    return [np.array(numbers) for numbers in tree]


def pulled_back(function, inputs, cotangents):
    """Values and gradients, in one program."""

    def both(inputs, cotangents):
        values, pullback = jax.vjp(function, *inputs)
        return values, pullback(cotangents)

    return jax.jit(both)(inputs, cotangents)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", TORCH_LAYERS)
def test_values_and_gradients_match_torch(case, dtype):
    """The gradients with respect to torch's own weights: back through the
    conversion.
    """
    golden = {
        group: {name: np.array(numbers) for name, numbers in tensors.items()}
        for group, tensors in TORCH[case].items()
    }
    x, *initial_states = golden["inputs"].values()
    y, *final_states = golden["outputs"].values()
    y_cotangent, *state_cotangents = golden["cotangents"].values()
    x_gradient = golden["gradients"].pop("x")
    state_gradients = [
        golden["gradients"].pop(name)
        for name in ("h0", "c0")
        if name in golden["gradients"]
    ]
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]
    nonlinearity = case.removeprefix("rnn_") if case.startswith("rnn") else None
    convert = partial(interop.from_torch, nonlinearity=nonlinearity)
    together = lambda states: tuple(states) if len(states) == 2 else states[0]  # noqa: E731

    # The matmul precision matters on GPU, where float32 would otherwise be multiplied
    # as TF32.
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        to_jax = partial(jax.tree.map, partial(jnp.asarray, dtype=dtype))
        weights = to_jax(golden["state_dict"])
        layer = convert(weights)[0]
        assert layer == TORCH_LAYERS[case]
        carry = interop.carry_from_torch(layer, together(to_jax(initial_states)))
        carry_cotangent = interop.carry_from_torch(
            layer, together(to_jax(state_cotangents))
        )

        def run(weights, x, carry):
            return jaxrnn.unroll(layer, convert(weights)[1], x, carry)

        (last, ys), gradients = pulled_back(
            run, (weights, to_jax(x), carry), (carry_cotangent, to_jax(y_cotangent))
        )
        weight_gradients, actual_x_gradient, carry_gradient = gradients

        assert_close(
            [interop.carry_to_torch(layer, last), ys],
            [*final_states, y],
            value_tolerance,
            dtype,
        )
        assert_close(
            actual_x_gradient,
            x_gradient,
            gradient_tolerance,
            dtype,
            relative_to_largest=True,
        )
        if golden[
            "gradients"
        ]:  # the largest case has only the gradient of x, to keep the file small
            assert_close(
                weight_gradients,
                golden["gradients"],
                gradient_tolerance,
                dtype,
                relative_to_largest=True,
            )
            actual = interop.carry_to_torch(layer, carry_gradient)
            assert_close(
                actual,
                state_gradients,
                gradient_tolerance,
                dtype,
                relative_to_largest=True,
            )
        returned = interop.to_torch(layer, convert(weights)[1])
        for name, value in interop.to_torch(*convert(returned)).items():
            np.testing.assert_array_equal(value, returned[name])


def check(golden, convert, write, dtype):
    """A case of golden/common.py, in the layout of the other library; then there and
    back.
    """
    expected_y, expected_x_gradient = (
        np.array(golden["y"]),
        np.array(golden["gradients"]["x"]),
    )
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        to_jax = partial(jax.tree.map, partial(jnp.asarray, dtype=dtype))
        weights, x = to_jax(arrays(golden["weights"])), to_jax(np.array(golden["x"]))
        mask = jaxrnn.mask_from_lengths(jnp.asarray(golden["lengths"]), x.shape[0])
        layer = convert(weights)[0]

        def run(weights, x):
            carry, ys = jaxrnn.unroll(layer, convert(weights)[1], x, mask=mask)
            return ys, jax.tree.leaves(carry)

        y_cotangent, *state_cotangents = to_jax(arrays(golden["cotangents"]))
        (ys, states), gradients = pulled_back(
            run, (weights, x), (y_cotangent, state_cotangents)
        )
        assert_close(
            [ys, states], [expected_y, arrays(golden["states"])], value_tolerance, dtype
        )
        expected = arrays(golden["gradients"]["weights"]), expected_x_gradient
        assert_close(
            gradients, expected, gradient_tolerance, dtype, relative_to_largest=True
        )

        params = convert(weights)[1]
        again = convert(jax.tree.map(jnp.asarray, write(layer, params)))[1]
        assert_close(again, jax.tree.map(np.asarray, params), value_tolerance, dtype)


@pytest.mark.parametrize("case", KERAS_LAYERS)
def test_values_and_gradients_match_keras(case):
    check(
        KERAS[case],
        lambda weights: interop.from_keras(weights, KERAS_LAYERS[case]),
        interop.to_keras,
        "float32",
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", HAIKU_LAYERS)
def test_values_and_gradients_match_haiku(case, dtype):
    names = ["gru", "lstm"] if case == "lstm_on_gru" else None
    convert = partial(interop.from_haiku, layer=HAIKU_LAYERS[case], names=names)
    check(HAIKU[case], convert, partial(interop.to_haiku, names=names), dtype)
