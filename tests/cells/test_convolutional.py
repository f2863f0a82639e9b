"""Convolutional cells: the convolution, pictures of one to three axes, and layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import NUMPY_STEPS, compiled, convolved
from subjects import assert_same, draw, drawn_params, normal

import jaxrnn
from jaxrnn import LSTMState, diagnostics
from jaxrnn.cells import ConvGRU, ConvLSTM
from jaxrnn.cells.convolutional import convolve

SHAPES = {1: (5,), 2: (4, 3), 3: (3, 2, 2)}
C = 3


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_convolution_is_a_sum_over_places(rank, size, x64):
    """For odd and even kernels, and any leading axes."""
    random, shape = np.random.default_rng(0), SHAPES[rank]
    kernel = random.normal(size=(*[size] * rank, C, 4))
    for lead in ((), (2,), (3, 2)):
        x = random.normal(size=(*lead, *shape, C))
        actual = convolve(jnp.asarray(x), jnp.asarray(kernel))
        assert_same(actual, convolved(x, kernel))


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("kind", [ConvLSTM, ConvGRU])
def test_pictures_of_any_rank_over_time(kind, rank, x64):
    """The unroll against the equations in numpy, ragged, with two batch axes."""
    cell = kind(2, spatial_shape=SHAPES[rank])
    params, xs, carry, *_ = draw(cell, 0, steps=4, batch=(1, 2))
    mask = jaxrnn.mask_from_lengths(jnp.array([[4, 2]]), 4)
    last, ys = compiled(lambda *a: jaxrnn.unroll(cell, *a, mask=mask))(
        params, xs, carry
    )
    assert ys.shape == (4, 1, 2, *SHAPES[rank], 2)
    numbers, states = jax.tree.map(np.asarray, (params, carry)), []
    state = numbers[1]
    for x in np.asarray(xs):
        state = NUMPY_STEPS[kind.__name__](cell, numbers[0], state, x)
        state = LSTMState(*state) if kind is ConvLSTM else state
        states.append(state)
    for row, length in enumerate((4, 2)):
        end = jax.tree.map(lambda a, r=row: a[:, r], (last, states[length - 1]))
        assert_same(*end)
        shown = np.stack([jax.tree.leaves(s)[0][:, row] for s in states[:length]])
        assert_same(ys[:length, :, row], shown)
    assert not ys[2:, :, 1].any()


def test_a_picture_of_one_place_is_the_plain_cell(x64):
    """With a kernel of size 1 every place is a sequence of its own."""
    plain = jaxrnn.GRU(4, reset_after=False)
    cell = ConvGRU(4, spatial_shape=(3, 2), kernel_size=1)
    params, xs, carry, *_ = draw(cell, 0)
    flat = {
        name: leaf.reshape(leaf.shape[-2:]) if name.endswith("kernel") else leaf
        for name, leaf in params.items()
    }
    assert_same(
        jaxrnn.unroll(cell, params, xs, carry), jaxrnn.unroll(plain, flat, xs, carry)
    )
    lstm = ConvLSTM(4, spatial_shape=(3, 2), kernel_size=1)
    params, xs, carry, *_ = draw(lstm, 0)
    flat = {
        name: leaf.reshape(leaf.shape[-2:]) if name.endswith("kernel") else leaf
        for name, leaf in params.items()
    }
    assert_same(
        jaxrnn.unroll(lstm, params, xs, carry),
        jaxrnn.unroll(jaxrnn.LSTM(4), flat, xs, carry),
    )


def test_initializers_see_the_fan_in_of_a_convolution():
    cell = ConvLSTM(8, spatial_shape=(9, 9), kernel_size=5, peephole=True)
    params = cell.init(jax.random.key(0), 4)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == {
        "input_kernel": (5, 5, 4, 32),
        "recurrent_kernel": (5, 5, 8, 32),
        "bias": (32,),
        "peephole_kernel": (9, 9, 24),
    }
    assert params["input_kernel"].std() == pytest.approx(1 / np.sqrt(100), rel=0.05)
    block = params["recurrent_kernel"].reshape(200, 32)[:, :8]
    np.testing.assert_allclose(block.T @ block, np.eye(8), atol=1e-5)
    np.testing.assert_array_equal(params["bias"], np.repeat([0.0, 1, 0, 0], 8))


def test_in_layers_and_streams(x64):
    """A stack finds its channels; a stream is the sequence; both directions; noise."""
    first, second = (
        ConvLSTM(4, spatial_shape=(3, 2)),
        ConvGRU(2, spatial_shape=(3, 2), kernel_size=(1, 2)),
    )
    layer = jaxrnn.stack(
        first, jaxrnn.inference(jaxrnn.dropout(0.5)), jaxrnn.bidirectional(second)
    )
    params = drawn_params(layer, C)
    xs = normal(
        np.random.default_rng(0), jax.ShapeDtypeStruct((4, 2, 3, 2, C), jnp.float64)
    )
    _, ys = jaxrnn.unroll(layer, params, xs)
    assert ys.shape == (4, 2, 3, 2, 4)
    _, hs = jaxrnn.unroll(first, params["layer_0"], xs)
    parts = [
        jaxrnn.unroll(second, params["layer_2"][part], hs, reverse=part == "backward")
        for part in ("forward", "backward")
    ]
    assert_same(ys, jnp.concatenate([part[1] for part in parts], -1))
    carry = first.initial_carry(params["layer_0"], (2,))
    for x, h in zip(xs, hs, strict=True):
        carry, y = first(params["layer_0"], carry, x)
        assert_same(y, h)
    for noisy in (
        jaxrnn.recurrent_dropout(first, 0.3),
        jaxrnn.zoneout(first, (0.3, 0.1)),
        jaxrnn.layers.state_noise(first, 0.1),
    ):
        noise = jaxrnn.unroll(noisy, params["layer_0"], xs, key=jax.random.key(0))[1]
        assert jnp.abs(noise - hs).max() > 1e-3


def test_gates_are_measured_over_places(x64):
    """With a kernel of size 1 they are those of the plain cell over all places."""
    cell = ConvGRU(3, spatial_shape=(3, 2), kernel_size=1)
    params, xs, carry, *_ = draw(cell, 0)
    plain = jaxrnn.GRU(3, reset_after=False)
    flat = {
        name: leaf.reshape(leaf.shape[-2:]) if name.endswith("kernel") else leaf
        for name, leaf in params.items()
    }
    from_pictures = diagnostics.gate_statistics(cell, params, xs, carry)
    from_rows = diagnostics.gate_statistics(plain, flat, xs, carry)
    assert_same(from_pictures, from_rows)


def test_mixed_precision_keeps_its_sums_in_float32():
    for cell in (ConvLSTM(2, spatial_shape=(3,)), ConvGRU(2, spatial_shape=(3,))):
        params = cell.init(jax.random.key(0), C, dtype=jnp.bfloat16)
        carry = cell.initial_carry(params, (2,))
        kept = jax.tree.leaves(carry)[-1]
        assert kept.dtype == jnp.float32
        wide = cell.initial_carry(params, (2,), jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float32")}
        xs = jax.random.normal(jax.random.key(1), (6, 2, 3, C), jnp.bfloat16)
        _, ys = jaxrnn.unroll(cell, params, xs)
        assert ys.dtype == jnp.bfloat16
        exact = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
        np.testing.assert_allclose(
            ys.astype(jnp.float32), jaxrnn.unroll(cell, *exact)[1], atol=0.05
        )


LSTM = ConvLSTM(2, spatial_shape=(3, 2))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: ConvGRU(2, spatial_shape=[3, 2]),
            ValueError,
            r"spatial_shape must be a tuple of 1 to 3 sizes, .* it is \[3, 2\]",
        ),
        (lambda: ConvGRU(2, spatial_shape=()), ValueError, r"but it is \(\)"),
        (
            lambda: ConvGRU(2, spatial_shape=(2, 2, 2, 2)),
            ValueError,
            "a tuple of 1 to 3 sizes",
        ),
        (
            lambda: ConvLSTM(2, spatial_shape=(3,), kernel_size=0),
            ValueError,
            "kernel_size must be an int of at least 1, .* it is 0",
        ),
        (
            lambda: ConvLSTM(2, spatial_shape=(3,), kernel_size=(3, 3)),
            ValueError,
            "kernel_size has 2 entries, but there are 1 spatial axes",
        ),
        (
            lambda: jaxrnn.unroll(
                LSTM, drawn_params(LSTM, C), jnp.ones((4, 2, 3, 3, C))
            ),
            ValueError,
            r"spatial axes of the inputs are \(3, 3\), .* spatial_shape=\(3, 2\)",
        ),
        (
            lambda: jaxrnn.unroll(
                LSTM, drawn_params(LSTM, C), jnp.ones((4, 2, 3, 2, 5))
            ),
            ValueError,
            "the parameters were made for 3 input features, but the inputs have 5",
        ),
        (
            lambda: jaxrnn.unroll(
                LSTM, drawn_params(LSTM, C), jnp.ones((4, 2, 3, 2, C), jnp.uint8)
            ),
            TypeError,
            r"ConvLSTM: pictures must be of floating point, .* uint8: convert them, as "
            r"xs\.astype\('float32'\) / 255",
        ),
        (
            lambda: jaxrnn.unroll(LSTM, drawn_params(LSTM, C), jnp.ones((3, 2, C))),
            ValueError,
            r"xs must be \(T, \*B, Y, X, C\), with time first and 3 feature axes last",
        ),
        (
            lambda: jaxrnn.interop.to_onnx(LSTM, drawn_params(LSTM, C)),
            TypeError,
            "ConvLSTM has no operator in ONNX",
        ),
        (
            lambda: jaxrnn.interop.to_keras(LSTM, drawn_params(LSTM, C)),
            TypeError,
            r"supported are .* but got ConvLSTM",
        ),
    ],
)
def test_bad_pictures_and_options(make, error, words, plain_errors):
    with pytest.raises(error, match=words):
        make()
