"""Two models that flax's examples train, sentiment (sst2) and addition (seq2seq), with
flax's RNN and with jaxrnn's.

The models are written anew, in nnx. Each takes the module that RNN and Bidirectional
come from: that import alone differs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from subjects import assert_same

import jaxrnn.nnx

BATCH, STEPS, WORDS, HIDDEN = 4, 6, 9, 5
LENGTHS = jnp.array([6, 4, 1, 2])


class Sentiment(nnx.Module):
    """Word vectors, an LSTM in each direction, attention that looks at the keys
    alone, and a classifier.
    """

    def __init__(self, rnns, rngs):
        self.embed = nnx.Embed(WORDS, 7, rngs=rngs)
        self.encoder = rnns.Bidirectional(
            *(rnns.RNN(nnx.OptimizedLSTMCell(7, HIDDEN, rngs=rngs)) for _ in range(2))
        )
        self.keys, self.energy = (
            nnx.Linear(a, b, use_bias=False, rngs=rngs)
            for a, b in [(2 * HIDDEN, HIDDEN), (HIDDEN, 1)]
        )
        self.hidden, self.readout = (
            nnx.Linear(2 * HIDDEN, HIDDEN, rngs=rngs),
            nnx.Linear(HIDDEN, 1, rngs=rngs),
        )

    def __call__(self, tokens, lengths):
        encoded = self.encoder(self.embed(tokens), seq_lengths=lengths)
        scores = self.energy(jnp.tanh(self.keys(encoded)))[..., 0]
        inside = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        weights = jax.nn.softmax(jnp.where(inside, scores, -jnp.inf), axis=-1)
        return self.readout(
            jnp.tanh(self.hidden((weights[..., None] * encoded).sum(1)))
        )[:, 0]

    def loss(self, tokens):
        labels = (tokens[:, 0] > 4).astype(jnp.float32)
        return optax.sigmoid_binary_cross_entropy(self(tokens, LENGTHS), labels).mean()


class Addition(nnx.Module):
    """An encoder whose last carry, that of each sequence's own end, is the first one
    of a decoder that is told the answer.
    """

    def __init__(self, rnns, rngs):
        self.encoder = rnns.RNN(
            nnx.LSTMCell(WORDS, HIDDEN, rngs=rngs), return_carry=True
        )
        self.decoder = rnns.RNN(nnx.LSTMCell(WORDS, HIDDEN, rngs=rngs))
        self.readout = nnx.Linear(HIDDEN, WORDS, rngs=rngs)

    def __call__(self, question, answer, lengths):
        state, _ = self.encoder(question, seq_lengths=lengths)
        return self.readout(self.decoder(answer[:, :-1], initial_carry=state))

    def loss(self, tokens):
        question, answer = (
            jax.nn.one_hot(tokens, WORDS),
            jax.nn.one_hot(tokens[:, ::-1], WORDS),
        )
        return optax.softmax_cross_entropy(
            self(question, answer, LENGTHS), answer[:, 1:]
        ).mean()


class NamesOnly(nnx.Module):
    """`Addition` with flax's cells replaced by a jaxrnn layer: other parameters, the
    same lines.
    """

    __call__, loss = Addition.__call__, Addition.loss

    def __init__(self, rngs):
        self.encoder = jaxrnn.nnx.RNN(
            jaxrnn.LSTM(HIDDEN), WORDS, return_carry=True, rngs=rngs
        )
        self.decoder = jaxrnn.nnx.RNN(jaxrnn.LSTM(HIDDEN), WORDS, rngs=rngs)
        self.readout = nnx.Linear(HIDDEN, WORDS, rngs=rngs)


@nnx.jit
def train_step(model, optimizer, tokens):
    loss, gradient = nnx.value_and_grad(lambda model: model.loss(tokens))(model)
    optimizer.update(model, gradient)
    return loss


def trained(model, steps=3):
    """Losses of a few steps of Adam, and the parameters after them."""
    optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)
    tokens = np.random.default_rng(0).integers(0, WORDS, (steps, BATCH, STEPS))
    losses = [
        train_step(model, optimizer, jnp.asarray(batch, jnp.int32)) for batch in tokens
    ]
    return jnp.stack(losses), nnx.to_pure_dict(nnx.state(model, nnx.Param))


@pytest.mark.parametrize("kind", [Sentiment, Addition])
def test_a_training_script_runs_to_the_same_numbers_with_the_import_changed(
    kind, optax_promotion
):
    (losses, params), (expected, others) = (
        trained(kind(rnns, nnx.Rngs(0))) for rnns in (jaxrnn.nnx, nnx)
    )
    assert losses[0] != losses[1]
    assert_same(losses, expected, 1e-6)
    assert_same(params, others, 1e-4)  # Adam divides by the root of tiny squares


def test_the_cells_replaced_too(optax_promotion):
    model, flaxs = NamesOnly(nnx.Rngs(0)), Addition(nnx, nnx.Rngs(0))
    for name in ("encoder", "decoder"):
        values = jaxrnn.nnx.RNN(getattr(flaxs, name).cell).values()
        getattr(model, name).params = nnx.data(jax.tree.map(nnx.Param, values))
    nnx.update(model.readout, nnx.state(flaxs.readout))
    assert_same(trained(model)[0], trained(flaxs)[0], 1e-6)
