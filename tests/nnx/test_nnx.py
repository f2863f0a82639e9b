"""A layer as a flax nnx module."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from reference import compiled
from subjects import SUBJECTS, B, D, T, assert_same, draw, normal

import jaxrnn
from jaxrnn.nnx import RNN

NAMES = ["lstm_all_learned", "user", "stack_dropout", "bidirectional"]


def model_of(name, params=None, **options):
    """A module around a subject, with the parameters given."""
    model = RNN(SUBJECTS[name], D, rngs=nnx.Rngs(0), **options)
    if params is not None:
        model.params = nnx.data(jax.tree.map(nnx.Param, params))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_batch_first_and_time_major_are_unroll(name, x64):
    inputs = draw(name, 0)
    flags = {"mask": inputs.mask, "resets": inputs.resets}
    expected = compiled(
        lambda *a: jaxrnn.unroll(SUBJECTS[name], *a, **flags, return_carries=True)
    )(*inputs[:3])
    time_major = model_of(name, inputs.params, time_major=True)
    assert_same(
        time_major(inputs.xs, inputs.carry, **flags, return_carries=True), expected
    )
    swapped = {key: jnp.swapaxes(flag, 0, 1) for key, flag in flags.items()}
    carry, ys = model_of(name, inputs.params)(
        jnp.swapaxes(inputs.xs, 0, 1), inputs.carry, **swapped, return_carry=True
    )
    assert_same((carry, ys), (expected[0], jnp.swapaxes(expected[1], 0, 1)))
    assert ys.shape[-1] == time_major.output_size
    assert_same(time_major.values(), inputs.params, 0)


def test_no_batch_axis_and_two():
    model = model_of("gru")
    xs = normal(
        np.random.default_rng(0), jax.ShapeDtypeStruct((2, B, T, D), jnp.float32)
    )
    ys = model(xs)
    assert ys.shape == (2, B, T, 4)
    assert_same(model(xs[0]), ys[0], 1e-6)
    assert_same(model(xs[0, 0]), ys[0, 0], 1e-6)


def test_reverse_engine_and_dtype():
    xs = normal(np.random.default_rng(0), jax.ShapeDtypeStruct((B, T, D), jnp.float32))
    model = model_of("gru", reverse=True, engine=jaxrnn.Scan(unroll=2))
    expected = jaxrnn.unroll(
        SUBJECTS["gru"], model.values(), jnp.swapaxes(xs, 0, 1), reverse=True
    )[1]
    assert_same(model(xs), jnp.swapaxes(expected, 0, 1), 1e-6)
    half = model_of("lstm", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.values())} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert half(xs.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_sequence_lengths():
    inputs, lengths = draw("stack", 0), jnp.array([T, 2, 0])
    mask = jnp.arange(T)[None] < lengths[:, None]
    xs = jnp.where(mask[..., None], jnp.swapaxes(inputs.xs, 0, 1), jnp.nan)
    model = model_of("stack", inputs.params)
    carry, ys = model(xs, inputs.carry, seq_lengths=lengths, return_carry=True)
    assert_same((carry, ys), model(xs, inputs.carry, mask=mask, return_carry=True), 0)
    assert not ys[1, 2:].any()
    assert not ys[2].any()
    assert_same(
        jax.tree.map(lambda a: a[2], carry),
        jax.tree.map(lambda a: a[2], inputs.carry),
        0,
    )
    time_major = model_of("stack", inputs.params, time_major=True)
    assert_same(
        time_major(jnp.swapaxes(xs, 0, 1), inputs.carry, seq_lengths=lengths),
        jnp.swapaxes(ys, 0, 1),
        1e-6,
    )
    with pytest.raises(ValueError, match="pass a mask or seq_lengths, not both"):
        model(xs, mask=mask, seq_lengths=lengths)
    with pytest.raises(ValueError, match="seq_lengths must have one length per seq"):
        model(xs, seq_lengths=lengths[:-1])


@pytest.mark.parametrize("name", ["stack", "lstm_all_learned", "bidirectional"])
def test_gradients_through_nnx(name, x64):
    """One step of plain gradient descent by nnx's optimizer, against one by hand."""
    inputs = draw(name, 0)
    model = model_of(name, inputs.params, time_major=True)
    optimizer = nnx.Optimizer(model, optax.sgd(1.0), wrt=nnx.Param)

    @nnx.jit
    def descend(model, optimizer, xs):
        value, gradient = nnx.value_and_grad(
            lambda model: jnp.square(model(xs)).mean()
        )(model)
        optimizer.update(model, gradient)
        return value

    def loss(params):
        return jnp.square(jaxrnn.unroll(SUBJECTS[name], params, inputs.xs)[1]).mean()

    value = descend(model, optimizer, inputs.xs)
    expected, gradient = compiled(jax.value_and_grad(loss))(inputs.params)
    assert_same(value, expected)
    assert_same(model.values(), jax.tree.map(jnp.subtract, inputs.params, gradient))


def test_a_model_with_flax_layers_around_learns():
    """Embed, RNN and Linear learn to say the token before the last one."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(4, 8, rngs=rngs)
            self.rnn = RNN(jaxrnn.GRU(16), 8, rngs=rngs)
            self.out = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, tokens):
            return self.out(self.rnn(self.embed(tokens)))

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer, tokens):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(
                model(tokens)[:, 1:], tokens[:, :-1]
            ).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    random = np.random.default_rng(0)
    with jax.numpy_dtype_promotion(
        "standard"
    ):  # optax's adam multiplies a count by a rate
        losses = [
            train(
                model, optimizer, jnp.asarray(random.integers(0, 4, (16, 8)), jnp.int32)
            )
            for _ in range(100)
        ]
    assert losses[0] > 1
    assert losses[-1] < 0.1


def test_eval_and_train_switch_dropout():
    layer = jaxrnn.stack(
        jaxrnn.LSTM(4), jaxrnn.dropout(0.5), jaxrnn.zoneout(jaxrnn.GRU(4), 0.3)
    )
    model = RNN(layer, D, rngs=nnx.Rngs(0))
    xs = normal(np.random.default_rng(0), jax.ShapeDtypeStruct((B, T, D), jnp.float32))
    one, two = (model(xs, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 1))
    assert jnp.abs(one - two).max() > 1e-3
    assert_same(model(xs, rngs=nnx.Rngs(dropout=0)), one, 0)
    rngs = nnx.Rngs(dropout=0)
    # the stream moves on
    assert jnp.abs(model(xs, rngs=rngs) - model(xs, rngs=rngs)).max() > 1e-3
    with pytest.raises(ValueError, match="draws random numbers"):
        model(xs)
    model.eval()
    still = model(xs)
    assert_same(model(xs), still, 0)
    expected = jaxrnn.unroll(
        jaxrnn.inference(layer), model.values(), jnp.swapaxes(xs, 0, 1)
    )[1]
    assert_same(still, jnp.swapaxes(expected, 0, 1), 1e-6)
    model.train()
    assert_same(model(xs, rngs=nnx.Rngs(dropout=0)), one, 0)


def test_split_merge_and_jit():
    model = model_of("lstm_all_learned")
    xs = normal(np.random.default_rng(0), jax.ShapeDtypeStruct((B, T, D), jnp.float32))
    expected = model(xs)
    graph, state = nnx.split(model)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert_same(nnx.merge(graph, state)(xs), expected, 0)
    assert_same(
        jax.jit(lambda state, xs: nnx.merge(graph, state)(xs))(state, xs),
        expected,
        1e-6,
    )
    assert_same(nnx.jit(lambda model, xs: model(xs))(model, xs), expected, 1e-6)
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == len(
        jax.tree.leaves(model.values())
    )
    again = model_of("lstm_all_learned")
    nnx.update(again, jax.tree.map(lambda a: a + 1, state))
    assert_same(again.values(), jax.tree.map(lambda a: a + 1, model.values()), 0)


@pytest.mark.parametrize("name", ["lstm_all_learned", "stack"])
def test_learned_initial_carry_and_streaming_steps(name, x64):
    inputs = draw(name, 0)
    model = model_of(name, inputs.params, time_major=True)
    carry = model.initial_carry((B,))
    assert_same(carry, SUBJECTS[name].initial_carry(inputs.params, (B,)), 0)
    expected = model(inputs.xs, return_carry=True)
    ys = []
    for x in inputs.xs:
        carry, y = model.step(carry, x)
        ys.append(y)
    assert_same((carry, jnp.stack(ys)), expected)


def test_a_step_is_without_randomness():
    model = RNN(jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.GRU(4)), D, rngs=nnx.Rngs(0))
    x = jnp.ones((B, D))
    carry = model.initial_carry((B,))
    assert_same(model.step(carry, x), model.step(carry, x), 0)
