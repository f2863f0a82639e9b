"""jaxrnn against the values and gradients of PyTorch kept in golden/torch.json (see golden/make_torch.py)."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

GOLDEN = json.loads((Path(__file__).parent / "golden" / "torch.json").read_text())

TWO_WAY_LSTM = jaxrnn.bidirectional(jaxrnn.LSTM(2))
LAYERS = {
    "rnn_tanh": jaxrnn.Elman(3, activation=jnp.tanh),
    "rnn_relu": jaxrnn.Elman(3, activation=jax.nn.relu),
    "lstm": jaxrnn.LSTM(3),
    "lstm_projected": jaxrnn.LSTM(4, projection_size=2),
    "gru": jaxrnn.GRU(3),
    "lstm_two_layers_bidirectional": jaxrnn.stack(TWO_WAY_LSTM, TWO_WAY_LSTM),
}
# For values, and for gradients.
TOLERANCES = {"float64": (1e-12, 1e-12), "float32": (1e-6, 1e-5)}


def cell_from_torch(tensors, suffix, fold):
    """The tensors of one torch cell as jaxrnn's params.

    Torch has two biases per gate. Where they are simply added jaxrnn has one: for weights it is their sum (`fold`);
    for gradients it is either of them, as they are equal.
    """
    bias, recurrent_bias = tensors[f"bias_ih_{suffix}"], tensors[f"bias_hh_{suffix}"]
    params = {"input_kernel": tensors[f"weight_ih_{suffix}"].T, "recurrent_kernel": tensors[f"weight_hh_{suffix}"].T}
    if f"weight_hr_{suffix}" in tensors:
        params["projection_kernel"] = tensors[f"weight_hr_{suffix}"].T
    hidden_size = params["recurrent_kernel"].shape[0]
    if bias.size == 3 * hidden_size:  # a GRU, whose candidate keeps a bias of its own inside the reset gate
        params["recurrent_bias"] = recurrent_bias[-hidden_size:]
        recurrent_bias = np.concatenate([recurrent_bias[:-hidden_size], np.zeros(hidden_size)])
    return params | {"bias": bias + recurrent_bias if fold else bias}


def from_torch_layout(tensors, fold=True):
    """A torch state_dict, or the gradients with respect to it, as jaxrnn's params."""
    if "weight_ih_l1" not in tensors:
        return cell_from_torch(tensors, "l0", fold)
    return {
        f"layer_{layer}": {
            "forward": cell_from_torch(tensors, f"l{layer}", fold),
            "backward": cell_from_torch(tensors, f"l{layer}_reverse", fold),
        }
        for layer in range(2)
    }


def carry_leaves(*states):
    """Torch's h, or h and c, with layers and directions on their first axis, as the leaves of a jaxrnn carry."""
    return [array for state in zip(*states) for array in state]


def assert_close(actual, expected, tolerance, dtype, relative_to_largest=False):
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for array, reference in zip(actual, expected, strict=True):
        assert array.dtype == dtype
        scale = np.abs(reference).max() if relative_to_largest else 1.0
        np.testing.assert_allclose(array, reference, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", LAYERS)
def test_values_and_gradients_match_torch(case, dtype):
    golden = {group: {name: np.array(numbers) for name, numbers in tensors.items()} for group, tensors in GOLDEN[case].items()}
    x, *initial_states = golden["inputs"].values()
    y, *final_states = golden["outputs"].values()
    y_cotangent, *state_cotangents = golden["cotangents"].values()
    x_gradient = golden["gradients"].pop("x")
    state_gradients = [golden["gradients"].pop(name) for name in ("h0", "c0") if name in golden["gradients"]]
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]
    layer = LAYERS[case]

    # The matmul precision matters on GPU, where float32 would otherwise be multiplied as TF32.
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        to_jax = partial(jax.tree.map, partial(jnp.asarray, dtype=dtype))
        params = to_jax(from_torch_layout(golden["state_dict"]))
        carry_structure = jax.tree.structure(layer.initial_carry(params, x.shape[1:-1]))
        carry = jax.tree.unflatten(carry_structure, to_jax(carry_leaves(*initial_states)))
        carry_cotangent = jax.tree.unflatten(carry_structure, to_jax(carry_leaves(*state_cotangents)))

        outputs, pullback = jax.vjp(partial(jaxrnn.unroll, layer), params, to_jax(x), carry)
        param_gradients, actual_x_gradient, carry_gradient = pullback((carry_cotangent, to_jax(y_cotangent)))

    assert_close(outputs, [*carry_leaves(*final_states), y], value_tolerance, dtype)
    assert_close(actual_x_gradient, x_gradient, gradient_tolerance, dtype, relative_to_largest=True)
    if golden["gradients"]:  # the largest case has only the gradient of x, to keep the file small
        expected = from_torch_layout(golden["gradients"], fold=False)
        assert_close(param_gradients, expected, gradient_tolerance, dtype, relative_to_largest=True)
        expected = carry_leaves(*state_gradients)
        assert_close(carry_gradient, expected, gradient_tolerance, dtype, relative_to_largest=True)
