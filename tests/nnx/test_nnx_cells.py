"""flax cells that were changed by their users, and lengths, views and arguments as
they come: `jaxrnn.nnx` against flax's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from subjects import assert_same

import jaxrnn
from jaxrnn.nnx import RNN, Bidirectional, flip_sequences

T, B, D, H = 4, 2, 3, 4


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class Learned(nnx.GRUCell):
    """A GRU whose first carry is learned."""

    def __init__(self, *sizes, rngs):
        super().__init__(*sizes, rngs=rngs)
        self.h0 = nnx.Param(drawn(H, seed=9))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.broadcast_to(self.h0[...], (*input_shape[:-1], H))


def exchanged(kind, name, **options):
    """A cell one of whose linear maps was put there by its user."""
    cell = kind(D, H, rngs=nnx.Rngs(0))
    old = getattr(cell, name)
    bias = old.bias is not None
    setattr(
        cell,
        name,
        nnx.Linear(
            *old.kernel[...].shape,
            **{"use_bias": bias, **options, "rngs": nnx.Rngs(1), "bias_init": normal},
        ),
    )
    return cell


def normal(key, shape, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype)


def doubled(*arguments, **options):
    return 2 * jax.lax.dot_general(*arguments, **options)


def scaled(arrays, *, dtype=None):
    """Promotion that does more than promote."""
    return tuple(a if a is None else 1.5 * a for a in arrays)


CHANGED = {
    "a first carry of its own": lambda: Learned(D, H, rngs=nnx.Rngs(0)),
    "a GRU's bias on h": lambda: exchanged(nnx.GRUCell, "dense_h", use_bias=True),
    "an LSTM's bias on x": lambda: exchanged(
        nnx.OptimizedLSTMCell, "dense_i", use_bias=True
    ),
    "an LSTM's bias on one gate": lambda: exchanged(nnx.LSTMCell, "ig", use_bias=True),
    "no bias at all": lambda: exchanged(nnx.GRUCell, "dense_i", use_bias=False),
    "dot_general": lambda: exchanged(nnx.SimpleCell, "dense_i", dot_general=doubled),
    "promote_dtype": lambda: exchanged(nnx.SimpleCell, "dense_h", promote_dtype=scaled),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_changed_cell_computes_what_it_does_under_flax(what):
    """Outputs, and gradients with respect to every parameter."""
    graph, params, rest = nnx.split(CHANGED[what](), nnx.Param, ...)
    params = jax.tree.map(lambda a: a if a.any() else drawn(*a.shape, seed=5), params)
    xs, weights = drawn(B, T, D, seed=1), drawn(B, T, H, seed=2)

    def loss(params, kind):
        ys = kind(nnx.merge(graph, params, rest, copy=True))(xs)
        return (ys * weights).sum(), ys

    (ours, theirs) = (
        jax.grad(lambda p, k=k: loss(p, k), has_aux=True)(params)
        for k in (RNN, nnx.RNN)
    )
    assert_same(ours, theirs, 1e-5)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ours))


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "highest"},
        {"preferred_element_type": jnp.float32},
        {"dtype": jnp.bfloat16},
    ],
)
def test_other_options_of_a_linear_map_are_left_to_flax(options):
    """Which the CPU may not tell in the numbers: the cell is run as it stands."""
    assert (
        RNN(CHANGED["a first carry of its own"]()).values().keys()
        != jaxrnn.GRU(H).init(jax.random.key(0), D).keys()
    )
    assert "input_kernel" in RNN(nnx.GRUCell(D, H, rngs=nnx.Rngs(0))).values()
    assert (
        "input_kernel" not in RNN(exchanged(nnx.GRUCell, "dense_i", **options)).values()
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, list])
def test_lengths_of_any_dtype_and_lists(dtype, plain_errors):
    """300 steps fit into neither int8 nor uint8, and the places are counted from
    them.
    """
    lengths = [100, 120, 0]
    given = lengths if dtype is list else jnp.asarray(np.asarray(lengths, dtype))
    xs = drawn(3, 300, 2)
    expected = np.array(xs)
    for row, length in zip(expected, lengths, strict=True):
        row[:length] = row[:length][::-1].copy()
    np.testing.assert_array_equal(flip_sequences(xs, given, 1, False), expected)
    with pytest.raises(
        TypeError, match="seq_lengths must be integers, one per sequence, but they are"
    ):
        flip_sequences(xs, [1.5, 2.0, 0.0], 1, False)


def test_a_reversed_rnn_takes_them_too(plain_errors):
    rnn, xs = (
        RNN(nnx.SimpleCell(2, H, rngs=nnx.Rngs(0)), reverse=True, keep_order=False),
        drawn(2, 140, 2),
    )
    expected = rnn(xs, seq_lengths=jnp.array([100, 20]))
    assert jnp.abs(expected).max() > 0.1
    for given in (jnp.array([100, 20], jnp.int8), [100, 20]):
        np.testing.assert_array_equal(rnn(xs, seq_lengths=given), expected)


def test_a_view_switches_dropout_off_and_on():
    layer = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.GRU(H))
    model = nnx.Sequential(
        RNN(layer, D, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    )
    xs = drawn(B, T, D)
    view = nnx.view(model, deterministic=True)
    expected = jaxrnn.unroll(
        jaxrnn.inference(layer), model.layers[0].values(), jnp.swapaxes(xs, 0, 1)
    )[1]
    assert_same(view(xs), jnp.swapaxes(expected, 0, 1), 1e-6)
    with pytest.raises(
        ValueError, match="draws random numbers"
    ):  # the model itself still draws
        model(xs)
    assert nnx.view(view, deterministic=False).layers[0].deterministic is False
    assert (
        nnx.view(view, only=nnx.Dropout, deterministic=False).layers[0].deterministic
        is True
    )


def test_what_is_no_cell_and_what_is_no_rnn(plain_errors):
    rngs = nnx.Rngs(0)
    cell = nnx.GRUCell(D, H, rngs=rngs)
    for wrong in (nnx.Linear(D, H, rngs=rngs), RNN(cell), nnx.RNN(cell)):
        with pytest.raises(
            TypeError,
            match=(
                f"initialize_carry, which {type(wrong).__name__} does not have: pass"
            ),
        ):
            RNN(wrong)
    with pytest.raises(
        TypeError,
        match=r"backward_rnn must be an RNN, .* a GRUCell: make it RNN\(cell\)",
    ):
        Bidirectional(RNN(cell), nnx.GRUCell(D, H, rngs=rngs))
    with pytest.raises(
        TypeError,
        match=r"forward_rnn must be an RNN, .* a GRU: make it RNN\(cell, input_size, rngs=rngs\)",  # noqa: E501
    ):
        Bidirectional(jaxrnn.GRU(H), jaxrnn.GRU(H))
