"""jaxrnn's own cells and layers as linen modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from subjects import assert_same

import jaxrnn
from jaxrnn.linen import RNN

T, B, D, H = 5, 3, 4, 6
LENGTHS = jnp.array([3, T, 1])
XS = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32)


def unrolled(layer, params, **how):
    carry, ys = jaxrnn.unroll(layer, params, jnp.swapaxes(XS, 0, 1), **how)
    return carry, jnp.swapaxes(ys, 0, 1)


def test_a_layer_is_unroll():
    layer = jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.GRU(H)), jaxrnn.LSTM(H))
    rnn = RNN(layer, return_carry=True, param_dtype=jnp.float32)
    variables = rnn.init(jax.random.key(0), XS)
    params = variables["params"]["layer"]
    expected = layer.init(jax.random.key(0), D)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    mask = jaxrnn.mask_from_lengths(LENGTHS, T)
    found = rnn.apply(variables, XS, seq_lengths=LENGTHS)
    assert_same(found, unrolled(layer, params, mask=mask), 0)
    resets = jnp.zeros((T, B), bool).at[2].set(True)
    found = rnn.apply(variables, XS, mask=mask.T, resets=resets.T)
    assert_same(found, unrolled(layer, params, mask=mask, resets=resets), 0)


def test_dropout_draws_from_the_stream_of_that_name():
    layer = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.GRU(H))
    rnn = RNN(layer)
    variables = rnn.init(jax.random.key(0), XS)
    one, same, other = (
        rnn.apply(variables, XS, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 1, 2)
    )
    assert_same(one, same, 0)
    assert jnp.abs(one - other).max() > 1e-3
    calm = RNN(jaxrnn.inference(layer)).apply(variables, XS)
    expected = unrolled(jaxrnn.inference(layer), variables["params"]["layer"])[1]
    assert_same(calm, expected, 0)


def test_in_a_compact_module_beside_flaxs_layers():
    class Tagger(nn.Module):
        @nn.compact
        def __call__(self, tokens, lengths):
            xs = nn.Embed(11, D)(tokens)
            ys = RNN(jaxrnn.LSTM(H), engine=jaxrnn.Checkpoint())(
                xs, seq_lengths=lengths
            )
            return nn.Dense(2)(ys)

    tokens = jnp.asarray(np.random.default_rng(1).integers(11, size=(B, T)))
    variables = Tagger().init(jax.random.key(0), tokens, LENGTHS)
    assert set(variables["params"]) == {"Embed_0", "RNN_0", "Dense_0"}

    @jax.jit
    def loss(variables):
        return (Tagger().apply(variables, tokens, LENGTHS) ** 2).sum()

    gradient = jax.grad(loss)(variables)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["params"]))


def test_what_does_not_fit(plain_errors):
    with pytest.raises(TypeError, match=r"must be a flax cell, such as .* but it is"):
        RNN(3).init(jax.random.key(0), XS)
    with pytest.raises(TypeError, match="flax's GRUCell takes none: leave it out"):
        RNN(nn.GRUCell(H)).init(jax.random.key(0), XS, context=XS)
    with pytest.raises(ValueError, match="pass a mask or seq_lengths, not both"):
        RNN(nn.GRUCell(H)).init(
            jax.random.key(0), XS, mask=jnp.ones((B, T), bool), seq_lengths=LENGTHS
        )
    with pytest.raises(ValueError, match=r"the carry passed in has shape \(3, 5\)"):
        RNN(jaxrnn.GRU(H)).init(
            jax.random.key(0), XS, initial_carry=jnp.zeros((B, H - 1))
        )
    for cell in (jaxrnn.GRU(H), nn.GRUCell(H)):
        with pytest.raises(
            TypeError,
            match=r"time_major must be True .* but it is 3: .* no size is needed",
        ):
            RNN(cell, 3).init(jax.random.key(0), XS)
    with pytest.raises(ValueError, match="do not tell the input_size of GRU"):
        RNN(jaxrnn.GRU(H)).init(jax.random.key(0), (XS, XS))
