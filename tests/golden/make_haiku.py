"""Write haiku.json: reference values and gradients of Haiku's recurrent cores, in
float64.

For each case the file holds Haiku's params, a ragged batch ``x (T, B, D)`` with its
lengths (each sequence run by itself, as long as it is), the outputs ``y`` (zero in
the padding), the last states, one random cotangent for each of these, and the gradients
with respect to x and to the params. The file in the repository was written with
dm-haiku 0.0.17 and jax 0.10.2. To write it again:

    pip install dm-haiku==0.0.17 jax==0.10.2
    python tests/golden/make_haiku.py
"""

from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from common import BATCH, INPUTS, LENGTHS, STEPS, answered, draw, to_json

SEED = 8


def golden(*makers):
    """Cores on top of each other, each made by one of ``makers``."""

    def network(xs):
        cores, batch = [make() for make in makers], []
        for b, length in enumerate(LENGTHS):
            ys, states = xs[:length, b], []
            for core in cores:
                ys, state = hk.dynamic_unroll(core, ys, core.initial_state(None))
                states += jax.tree.leaves(state)
            batch.append((jnp.pad(ys, ((0, STEPS - length), (0, 0))), states))
        ys, states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch)
        return jnp.swapaxes(ys, 0, 1), states

    function, rng = (
        hk.without_apply_rng(hk.transform(network)),
        np.random.default_rng(SEED),
    )
    shapes = jax.eval_shape(
        function.init, jax.random.key(0), jnp.zeros((STEPS, BATCH, INPUTS))
    )
    weights = jax.tree.map(lambda a: jnp.asarray(draw(rng, a.shape, "float64")), shapes)
    return answered(function.apply, weights, "float64", SEED)


def main():
    jax.config.update("jax_enable_x64", True)
    cases = {
        "meta": {"haiku": hk.__version__, "seed": SEED},
        "vanilla_rnn": golden(lambda: hk.VanillaRNN(3)),
        "lstm": golden(lambda: hk.LSTM(3)),
        "gru": golden(lambda: hk.GRU(3)),
        "lstm_on_gru": golden(lambda: hk.GRU(2), lambda: hk.LSTM(2)),
    }
    Path(__file__).with_name("haiku.json").write_text(to_json(cases) + "\n")


if __name__ == "__main__":
    main()
