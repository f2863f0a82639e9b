"""Write keras.json: reference values and gradients of Keras's recurrent layers, in
float32 (Keras 3 on JAX computes no other).

For each case the file holds the flat list of weights as of `get_weights()`, a ragged
batch ``x (T, B, D)``, its lengths, the outputs ``y`` (zero in the padding), the last
states, one random cotangent for each of these, and the gradients with respect to x and
to the weights. The file in the repository was written with Keras 3.15.1 and jax 0.10.2.
To write it again:

    pip install keras==3.15.1 jax==0.10.2
    python tests/golden/make_keras.py
"""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax.numpy as jnp
import keras
import numpy as np
from common import BATCH, INPUTS, LENGTHS, STEPS, answered, draw, to_json
from keras import layers

SEED = 7
OPTIONS = {"return_sequences": True, "return_state": True}


def golden(*built):
    """Layers on top of each other, their weights drawn, biases too."""
    rng, width = np.random.default_rng(SEED), INPUTS
    for layer in built:
        layer.build((BATCH, STEPS, width))
        width = layer.compute_output_shape((BATCH, STEPS, width))[0][-1]
    weights = [
        jnp.asarray(draw(rng, w.shape, "float32"))
        for layer in built
        for w in layer.weights
    ]
    mask = np.arange(STEPS) < LENGTHS[:, None]

    def run(weights, xs):
        xs, states, rest = jnp.swapaxes(xs, 0, 1), [], list(weights)
        for layer in built:
            own, rest = rest[: len(layer.weights)], rest[len(layer.weights) :]
            (xs, *last), _ = layer.stateless_call(
                own, [v.value for v in layer.non_trainable_variables], xs, mask=mask
            )
            states += last
        return jnp.where(mask.T[..., None], jnp.swapaxes(xs, 0, 1), 0), states

    return answered(run, weights, "float32", SEED)


def main():
    cases = {
        "meta": {"keras": keras.__version__, "seed": SEED},
        "simple_rnn": golden(layers.SimpleRNN(3, **OPTIONS)),
        "lstm": golden(layers.LSTM(3, **OPTIONS)),
        "gru": golden(layers.GRU(3, **OPTIONS)),
        "gru_reset_before": golden(layers.GRU(3, reset_after=False, **OPTIONS)),
        "gru_two_layers_bidirectional": golden(
            *[layers.Bidirectional(layers.GRU(2, **OPTIONS)) for _ in range(2)]
        ),
    }
    Path(__file__).with_name("keras.json").write_text(to_json(cases) + "\n")


if __name__ == "__main__":
    main()
