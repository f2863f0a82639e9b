"""Initializers against their formulas, and that they compare by value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import GRU, LSTM, Elman, initializers

KEYS = [jax.random.key(seed) for seed in range(3)]


def blocks(kernel, size):
    """The gate blocks of a packed kernel."""
    return np.split(np.asarray(kernel), kernel.shape[-1] // size, axis=-1)


@pytest.mark.parametrize(
    "cell",
    [Elman(6), LSTM(6), GRU(6), LSTM(6, coupled_gates=True)],
    ids=["elman", "lstm", "gru", "coupled"],
)
def test_recurrent_kernels_are_orthogonal_per_gate_block(cell, x64):
    drawn = []
    for key in KEYS:
        for block in blocks(cell.init(key, 3)["recurrent_kernel"], 6):
            np.testing.assert_allclose(block.T @ block, np.eye(6), atol=1e-12)
            drawn.append(block)
    assert len({block.tobytes() for block in drawn}) == len(drawn)  # each by itself


def test_orthogonal_rectangles_and_gain(x64):
    wide, tall = (
        np.asarray(initializers.Orthogonal(2.0)(KEYS[0], shape, jnp.float64))
        for shape in ((3, 5), (5, 3))
    )
    np.testing.assert_allclose(wide @ wide.T, 4 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(tall.T @ tall, 4 * np.eye(3), atol=1e-12)


def test_orthogonal_is_uniform(x64):
    """Haar measure: the mean of Q is 0 and that of Q_ij^2 is 1/n. Without the signs
    of R the diagonal would have a mean.
    """
    draw = jax.jit(lambda key: initializers.Orthogonal()(key, (3, 3), jnp.float64))
    draws = np.stack([draw(key) for key in jax.random.split(KEYS[0], 500)])
    np.testing.assert_allclose(draws.mean(0), 0, atol=5 * np.sqrt(1 / 3 / 500))
    np.testing.assert_allclose(np.square(draws).mean(0), 1 / 3, atol=0.08)


def test_chrono_lstm(x64):
    cell = LSTM(
        2000,
        forget_bias=initializers.Chrono(50.0),
        input_init=initializers.Zeros(),
        recurrent_init=initializers.Zeros(),
    )
    i, f, g, o = np.split(np.asarray(cell.init(KEYS[0], 1)["bias"]), 4)
    times = np.exp(f)
    assert times.min() >= 1
    assert times.max() <= 49
    np.testing.assert_array_equal(i, -f)
    assert not g.any()
    assert not o.any()
    # U(1, 49): mean 25, standard deviation 48 / sqrt(12).
    assert abs(times.mean() - 25) < 4 * 48 / np.sqrt(12 * 2000)
    assert np.percentile(times, 25) == pytest.approx(13, abs=2)


def test_chrono_gru_and_coupled_lstm(x64):
    chrono, zeros = (
        initializers.Chrono(20.0),
        {"input_init": initializers.Zeros(), "recurrent_init": initializers.Zeros()},
    )
    r, z, n = np.split(
        np.asarray(GRU(50, update_bias=chrono, **zeros).init(KEYS[0], 1)["bias"]), 3
    )
    assert 1 <= np.exp(z).min() < np.exp(z).max() <= 19
    assert not r.any()
    assert not n.any()
    f, g, o = np.split(
        np.asarray(
            LSTM(50, forget_bias=chrono, coupled_gates=True, **zeros).init(KEYS[0], 1)[
                "bias"
            ]
        ),
        3,
    )
    assert 1 <= np.exp(f).min() < np.exp(f).max() <= 19
    assert not g.any()
    assert not o.any()


def test_chrono_needs_more_than_two_steps():
    with pytest.raises(
        ValueError, match="max_time must be more than 2 steps, but it is 2"
    ):
        initializers.Chrono(2)


def test_biases():
    i, f, g, o = np.split(np.asarray(LSTM(4).init(KEYS[0], 3)["bias"]), 4)
    assert (f == 1).all()
    assert not np.concatenate([i, g, o]).any()
    i, f, g, o = np.split(
        np.asarray(LSTM(4, forget_bias=0.0).init(KEYS[0], 3)["bias"]), 4
    )
    assert not f.any()
    r, z, n = np.split(np.asarray(GRU(4, update_bias=-1.0).init(KEYS[0], 3)["bias"]), 3)
    assert (z == -1).all()
    assert not np.concatenate([r, n]).any()


def test_irnn():
    """Identity recurrence, no bias, relu: without input the state stays for ever."""
    cell = Elman(4, activation=jax.nn.relu, recurrent_init=initializers.Identity())
    params = cell.init(KEYS[0], 3)
    np.testing.assert_array_equal(params["recurrent_kernel"], np.eye(4))
    assert not params["bias"].any()
    last, _ = jaxrnn.unroll(cell, params, jnp.zeros((50, 3)), jnp.arange(4.0))
    np.testing.assert_array_equal(last, jnp.arange(4.0))
    np.testing.assert_array_equal(
        initializers.Identity(0.5)(KEYS[0], (2, 2), jnp.float32), 0.5 * np.eye(2)
    )


@pytest.mark.parametrize("kind", [Elman, LSTM, GRU])
def test_torch_uniform(kind):
    torch = initializers.TorchUniform(16)
    extra = {LSTM: {"forget_bias": 0.0}}.get(kind, {})
    cell = kind(16, input_init=torch, recurrent_init=torch, bias_init=torch, **extra)
    for leaf in jax.tree.leaves(cell.init(KEYS[0], 9)):
        assert -0.25 <= leaf.min() < -0.15
        assert 0.15 < leaf.max() <= 0.25


def test_scales(x64):
    shape = (100, 400)
    lecun = np.asarray(initializers.LecunNormal()(KEYS[0], shape, jnp.float64))
    assert lecun.std() == pytest.approx(0.1, rel=0.02)
    assert np.abs(lecun).max() <= 2 * 0.1 / 0.87962566103423978
    glorot = np.asarray(initializers.GlorotUniform()(KEYS[0], shape, jnp.float64))
    bound = np.sqrt(6 / 500)
    assert bound * 0.99 < np.abs(glorot).max() <= bound
    normal = np.asarray(initializers.Normal(1.5)(KEYS[0], (200, 200), jnp.float64))
    assert normal.std() == pytest.approx(1.5 / np.sqrt(200), rel=0.02)
    assert np.abs(np.linalg.eigvals(normal)).max() == pytest.approx(1.5, rel=0.15)
    assert not initializers.Zeros()(KEYS[0], shape, jnp.float64).any()


VALUES = [
    initializers.Zeros(),
    initializers.LecunNormal(),
    initializers.GlorotUniform(),
    initializers.Normal(0.5),
    initializers.Orthogonal(0.5),
    initializers.Identity(0.5),
    initializers.TorchUniform(4),
    initializers.Chrono(9.0),
]


@pytest.mark.parametrize("init", VALUES, ids=repr)
def test_equal_by_value_and_in_every_dtype(init):
    twin = type(init)(**vars(init))
    assert twin is not init
    assert twin == init
    assert hash(twin) == hash(init)
    assert sum(init == other for other in VALUES) == 1
    for dtype in (jnp.float32, jnp.bfloat16):
        drawn = init(KEYS[0], (4, 4), dtype)
        assert (drawn.shape, drawn.dtype) == ((4, 4), dtype)
        np.testing.assert_array_equal(drawn, twin(KEYS[0], (4, 4), dtype))


def test_options_make_cells_unequal():
    cells = [
        LSTM(4),
        LSTM(5),
        LSTM(4, peephole=True),
        LSTM(4, forget_bias=initializers.Chrono(9.0)),
        LSTM(4, recurrent_init=initializers.Orthogonal(2.0)),
        GRU(4),
        GRU(4, reset_after=False),
        Elman(4),
        Elman(4, activation=jax.nn.relu),
    ]
    assert len(set(cells)) == len(cells)


SPECS = {
    "input_kernel": (initializers.LecunNormal(), (3, 4), 2),
    "recurrent_kernel": (initializers.Orthogonal(), (4, 4), 3),
    "bias": initializers.Parameter(initializers.Uniform(-1.0, 1.0), (4,)),
    "inside": {"bias": (initializers.Uniform(-1.0, 1.0), (4,))},
}


def test_parameters_depend_on_the_key_and_their_names_alone(x64):
    first = initializers.parameters(KEYS[0], SPECS)
    turned = initializers.parameters(KEYS[0], dict(reversed(SPECS.items())))
    fewer = initializers.parameters(KEYS[0], {"bias": SPECS["bias"]})
    assert list(turned) == list(reversed(first))
    for name in ("input_kernel", "recurrent_kernel", "bias"):
        assert first[name].tobytes() == turned[name].tobytes()
    assert fewer["bias"].tobytes() == first["bias"].tobytes()
    assert first["bias"].tobytes() != first["inside"]["bias"].tobytes()
    other = initializers.parameters(KEYS[1], SPECS)
    assert not any(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    )


def test_parameters_draw_each_gate_by_itself(x64):
    params = initializers.parameters(KEYS[0], SPECS)
    assert params["input_kernel"].shape == (3, 8)
    drawn = blocks(params["recurrent_kernel"], 4)
    assert len(drawn) == 3
    for block in drawn:
        np.testing.assert_allclose(block.T @ block, np.eye(4), atol=1e-12)
    assert len({block.tobytes() for block in drawn}) == 3


def test_the_fan_in_of_a_parameter_may_be_given(x64):
    """A kernel (3, 5, 400) of a convolution sums up 15 inputs: variance 1 / 15."""
    kernel = initializers.parameters(
        KEYS[0], {"kernel": (initializers.Normal(), (3, 5, 400), 1, 15)}
    )["kernel"]
    assert kernel.shape == (3, 5, 400)
    assert np.var(kernel) == pytest.approx(1 / 15, rel=0.05)
    rows = np.asarray(
        initializers.Parameter(initializers.Orthogonal(), (2, 3, 6), fan_in=6).draw(
            KEYS[0], jnp.float64
        )
    ).reshape(6, 6)
    np.testing.assert_allclose(rows @ rows.T, np.eye(6), atol=1e-12)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
def test_parameters_have_the_dtype_asked_for(dtype):
    params = initializers.parameters(KEYS[0], SPECS, dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype or "float32"}


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ((3, 4), TypeError, "an initializer is a function"),
        (
            (initializers.Orthogonal, (4, 4)),
            TypeError,
            r"is the class Orthogonal: write Orthogonal\(\)",
        ),
        ((initializers.Zeros(), 4), TypeError, r"a shape is a tuple.*but it is 4"),
        ((initializers.Zeros(), (4, -1)), TypeError, "a shape is a tuple"),
        ((initializers.Zeros(),), TypeError, "a parameter is"),
        ("zeros", TypeError, "a parameter is"),
        ((initializers.Zeros(), (4,), 0), ValueError, "gates must be at least 1"),
        ((initializers.Zeros(), (), 2), ValueError, "need an axis to lie in"),
        ((initializers.Zeros(), (4, 3), 1, 5), ValueError, "fan_in must divide"),
        (
            (lambda key, shape, dtype: jnp.zeros(3, dtype), (4, 3)),
            ValueError,
            r"returned an array of shape \(3,\) when asked for \(4, 3\)",
        ),
    ],
)
@pytest.mark.usefixtures("plain_errors")
def test_a_parameter_that_is_none_is_named(spec, error, words):
    with pytest.raises(error, match=f"^parameters: kernel: .*{words}"):
        initializers.parameters(KEYS[0], {"kernel": spec})
