"""The cells after the LSTM and the GRU: what their papers say of them, and what it
takes to compute that.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import NUMPY_STEPS, compiled
from subjects import assert_same, draw, normal

import jaxrnn
from jaxrnn import (
    LRU,
    MLSTM,
    S5,
    SLSTM,
    Associative,
    DiagonalGRU,
    DiagonalLSTM,
    IndRNN,
    MinGRU,
    Scan,
)
from jaxrnn.cells.ssm import hold, legs
from jaxrnn.initializers import Chrono, Linspace, Uniform
from jaxrnn.tasks import captioning
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.training import InputError

D = 3
EXPONENTIAL = {"forget_gate": "exponential"}
CELLS = {
    "slstm": SLSTM(4),
    "slstm_heads": SLSTM(6, num_heads=3),
    "slstm_exponential": SLSTM(4, num_heads=2, **EXPONENTIAL),
    "mlstm": MLSTM(4),
    "mlstm_exponential": MLSTM(6, num_heads=3, key_size=5, **EXPONENTIAL),
    "s5_legs": S5(4),
    "s5_lin": S5(4, spectrum="lin"),
    "indrnn_tanh": IndRNN(4, activation=jnp.tanh),
    "diagonal_gru": DiagonalGRU(4),
    "diagonal_lstm": DiagonalLSTM(4),
}


def shown(cell, params, carry, x):
    """What a carry shows, in numpy."""
    if not isinstance(cell, S5):
        return jax.tree.leaves(carry)[0]
    half = params["output_kernel"].shape[0] // 2
    kernel = params["output_kernel"]
    return carry.real @ kernel[:half] + carry.imag @ kernel[half:] + params["skip"] * x


def begun(cell, input_size=2, seed=0):
    """``cell.init``, compiled."""
    return jax.tree.map(
        np.asarray,
        compiled(lambda key: cell.init(key, input_size))(jax.random.key(seed)),
    )


def rnn_with(layer, params, **options):
    """`nnx.RNN` of a layer, made without drawing anything, and then given
    ``params``.
    """
    rnn = nnx.eval_shape(lambda: jaxrnn.nnx.RNN(layer, D, rngs=nnx.Rngs(0), **options))
    rnn.params = jax.tree.map(nnx.Param, params)
    return rnn


def with_gradients(function, cotangent):
    """The value of ``function`` and the gradients of all it is given, compiled."""

    def run(*at):
        value, pullback = jax.vjp(function, *at)
        return (value, *pullback(cotangent))

    return compiled(run)


@pytest.mark.parametrize("name", CELLS)
def test_the_paper_in_numpy_from_an_empty_state(name, x64):
    """Seven steps; the plain forms, without stabilisers, which do not overflow here."""
    cell = CELLS[name]
    params, xs, *_ = draw(cell, 0, steps=7)
    first = cell.initial_carry(params, xs.shape[1:-1])
    last, ys = compiled(lambda *a: jaxrnn.unroll(cell, *a))(params, xs, first)
    params, xs, carry = jax.tree.map(np.asarray, (params, xs, first))
    for x, y in zip(xs, ys, strict=True):
        carry = NUMPY_STEPS[type(cell).__name__](cell, params, carry, x)
        carry = type(first)(*carry) if isinstance(first, tuple) else carry
        assert_same(np.asarray(y), shown(cell, params, carry, x))
    assert_same(jax.tree.leaves(last), jax.tree.leaves(carry))


# -- sLSTM -----------------------------------------------------------------------------


def plain_slstm(cell, params, xs):
    """h of an sLSTM as the paper first writes it, in jax, to be differentiated: no
    stabilizer.
    """
    size, heads = cell.hidden_size // cell.num_heads, cell.num_heads
    h = c = n = jnp.zeros((*xs.shape[1:-1], cell.hidden_size))
    hs = []
    for x in xs:
        a = jnp.einsum(
            "bnd,ndg->bng", h.reshape(-1, heads, size), params["recurrent_kernel"]
        ).reshape(-1, heads, 4, size)
        gates = (x @ params["input_kernel"] + params["bias"][None]).reshape(
            -1, 4, heads, size
        ) + jnp.swapaxes(a, 1, 2)
        i, f, z, o = (gates[:, g].reshape(-1, cell.hidden_size) for g in range(4))
        f = jax.nn.sigmoid(f) if cell.forget_gate == "sigmoid" else jnp.exp(f)
        c, n = f * c + jnp.exp(i) * jnp.tanh(z), f * n + jnp.exp(i)
        h = jax.nn.sigmoid(o) * c / n
        hs.append(h)
    return jnp.stack(hs)


@pytest.mark.parametrize("name", ["slstm", "slstm_heads", "slstm_exponential"])
def test_the_stabilised_slstm_is_the_plain_one(name, x64):
    """Values and gradients, from an empty state."""
    cell = CELLS[name]
    params, xs, *_ = draw(cell, 1, steps=9)
    cotangent = normal(
        np.random.default_rng(2),
        jax.ShapeDtypeStruct((*xs.shape[:-1], cell.hidden_size), xs.dtype),
    )
    functions = (
        lambda p, x: jaxrnn.unroll(cell, p, x)[1],
        lambda p, x: plain_slstm(cell, p, x),
    )
    for actual, expected in zip(
        *(with_gradients(f, cotangent)(params, xs) for f in functions), strict=True
    ):
        assert_same(actual, expected)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exponential"])
@pytest.mark.parametrize("kind", [SLSTM, MLSTM])
def test_gates_that_overflow(kind, forget_gate):
    """float32, exp(200) is none of it: values and all gradients finite, with masks
    and resets, and an sLSTM's h below 1.
    """
    cell = kind(2, forget_gate=forget_gate)
    params = normal(
        np.random.default_rng(0),
        jax.eval_shape(lambda: cell.init(jax.random.key(0), D)),
    )
    i_at, f_at = (
        (slice(0, 2), slice(2, 4))
        if kind is SLSTM
        else (slice(-2, -1), slice(-1, None))
    )
    _, xs, _, _, mask, resets = draw(SLSTM(2), 0, steps=6)
    carry = cell.initial_carry(params, xs.shape[1:-1])

    def loss(params, xs, carry):
        last, ys = jaxrnn.unroll(cell, params, xs, carry, mask=mask, resets=resets)
        return ys.sum() + sum(leaf.sum() for leaf in jax.tree.leaves(last)), ys

    gradient = compiled(jax.grad(loss, (0, 1, 2), has_aux=True))
    for i, f in itertools.product((-200.0, 0.0, 200.0), repeat=2):
        bias = params["bias"].at[i_at].add(i).at[f_at].add(f)
        gradients, ys = gradient(params | {"bias": bias}, xs, carry)
        assert all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, ys))
        ), (i, f)
        assert kind is MLSTM or np.abs(ys).max() <= 1


def test_an_empty_slstm_takes_in_the_smallest_input(x64):
    """A first i of -200: the mean of what was read is what was read, however little
    it weighs; also after a mask or reset.
    """
    cell = SLSTM(2)
    params, xs, _, _, mask, resets = draw(cell, 3)
    params["bias"] = params["bias"].at[:2].set(-200.0)
    mask, resets = jnp.asarray(mask).at[0].set(False), jnp.asarray(resets)
    short = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
    exact, rough = (
        jaxrnn.unroll(cell, *inputs, mask=mask, resets=resets)[1]
        for inputs in ((params, xs), short)
    )
    np.testing.assert_allclose(rough, exact, rtol=0, atol=1e-5)
    assert np.abs(exact).max() > 0.1


def test_heads_do_not_see_each_other(x64):
    cell = CELLS["slstm_heads"]
    params, xs, carry, *_ = draw(cell, 4)
    z = cell.project(params, xs[0])
    jacobian = jax.jacobian(
        lambda h: (
            cell.step(params, jax.tree.map(lambda a: a[0], carry)._replace(h=h), z[0]).c
        )
    )(carry.h[0])
    blocks = np.kron(np.eye(3), np.ones((2, 2)))
    assert (np.asarray(jacobian)[blocks == 0] == 0).all()
    assert (np.abs(np.asarray(jacobian)[blocks == 1]) > 0).all()


def test_gates_of_an_slstm_are_shares(x64):
    cell = CELLS["slstm_exponential"]
    params, xs, carry, *_ = draw(cell, 5)
    gates = cell.gate_values(params, carry, cell.project(params, xs[0]))
    np.testing.assert_allclose(gates["i"].value + gates["f"].value, 1, rtol=1e-12)
    new = cell.step(params, carry, cell.project(params, xs[0]))
    share, z = gates["f"].value, gates["z"].value
    np.testing.assert_allclose(
        new.c / new.n, share * carry.c / carry.n + (1 - share) * z, rtol=1e-12
    )


# -- mLSTM -----------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-30.0, 0.7, 35.0])
def test_an_mlstm_does_not_depend_on_the_scale_of_its_carry(shift, x64):
    """(C, n, m) and (C e^-s, n e^-s, m + s) are one memory: equal outputs, and equal
    gradients of params and inputs.
    """
    cell = CELLS["mlstm_exponential"]
    params, xs, carry, (_, cotangent), mask, _ = draw(cell, 6)
    scaled = carry._replace(
        C=carry.C * math.exp(-shift), n=carry.n * math.exp(-shift), m=carry.m + shift
    )
    for engine in (Scan(), Associative(2)):

        def outputs(params, xs, first, engine=engine):
            return jaxrnn.unroll(cell, params, xs, first, engine=engine, mask=mask)[1]

        unrolling = with_gradients(outputs, cotangent)
        for actual, expected in zip(
            unrolling(params, xs, scaled)[:3],
            unrolling(params, xs, carry)[:3],
            strict=True,
        ):
            assert_same(actual, expected, 1e-11)


def test_an_mlstm_recalls_what_was_stored(x64):
    """Two orthogonal keys of weight 1 (i = 0, f open): the query of either brings
    its value, the division by 1 changes none.
    """
    cell = MLSTM(2, forget_init=Linspace(50.0, 50.0), input_gate_init=Uniform(0.0, 0.0))
    params = cell.init(jax.random.key(0), 6)
    kernel = np.zeros((6, 10))  # q, k, v, o, i, f of inputs (q, k, v), each of 2
    kernel[0:2, 0:2], kernel[2:4, 2:4], kernel[4:6, 4:6] = (
        np.eye(2),
        math.sqrt(2) * np.eye(2),
        np.eye(2),
    )
    params["input_kernel"] = jnp.asarray(kernel)
    params["bias"] = params["bias"].at[6:8].set(50.0)  # o
    xs = jnp.asarray(
        [
            [0, 0, 1, 0, 0.5, -0.25],
            [0, 0, 0, 1, 2, 3],
            [1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
        ],
        float,
    )
    for engine in (Scan(), Associative(3)):
        ys = jaxrnn.unroll(cell, params, xs, engine=engine)[1]
        np.testing.assert_allclose(ys[2:], [[0.5, -0.25], [2, 3]], rtol=1e-12)


def test_keys_of_zero_change_no_output(x64):
    """Steps that store nothing: by steps and by chunks h is the same, and an empty
    memory shows 0, not NaN.
    """
    cell = CELLS["mlstm"]
    params = cell.init(jax.random.key(1), D)
    xs = draw(cell, 7).xs.at[:3].set(0.0)
    by_steps, by_chunks = (
        jaxrnn.unroll(cell, params, xs, engine=engine)[1]
        for engine in (Scan(), Associative(4))
    )
    assert_same(by_chunks, by_steps)
    assert (by_steps[:3] == 0).all()


def test_chunks_through_layers_and_nnx(x64):
    """A stack, both directions, `nnx.RNN` and `truncated_unroll` under
    ``Associative`` give what steps give.
    """
    layer = jaxrnn.stack(jaxrnn.GRU(3), jaxrnn.bidirectional(MLSTM(4, num_heads=2)))
    params, xs, *_ = draw(layer, 8, steps=5)
    with pytest.raises(TypeError, match="GRU is not linear"):
        jaxrnn.unroll(layer, params, xs, engine=Associative())
    part = layer.layers[1]
    expected, actual = (
        jaxrnn.unroll(part, params["layer_1"], xs, engine=engine)
        for engine in (None, Associative(2))
    )
    assert_same(actual, expected)
    with pytest.raises(
        ValueError, match=r"Bidirectional: .* whole chunks .* leave return_carries out"
    ):
        jaxrnn.unroll(
            part, params["layer_1"], xs, engine=Associative(), return_carries=True
        )
    lengths, by_batch = jnp.array([5, 0, 3], jnp.int32), jnp.swapaxes(xs, 0, 1)
    one, params = part.forward, params["layer_1"]["forward"]
    ys = [
        rnn_with(one, params, engine=engine)(by_batch, seq_lengths=lengths)
        for engine in (None, Associative(2))
    ]
    assert_same(*ys)
    cell, own = CELLS["mlstm"], draw(CELLS["mlstm"], 9, steps=5)

    def gradient(engine):
        def loss(params, xs):
            return jnp.sin(
                jaxrnn.truncated_unroll(
                    cell, params, xs, own.carry, window=2, engine=engine
                )[1]
            ).sum()

        return compiled(jax.grad(loss, (0, 1)))(own.params, own.xs)

    assert_same(gradient(Associative(2)), gradient(Scan(save="everything")))


def test_memory_of_chunks_does_not_grow_with_time():
    """Beyond inputs and outputs: what a gradient by chunks keeps is the carry at
    their ends, by steps every C.
    """
    cell = MLSTM(32)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))

    def temporaries(steps, engine):
        xs = jax.ShapeDtypeStruct((steps, 2, 8), jnp.float32)
        loss = jax.grad(lambda p, x: jaxrnn.unroll(cell, p, x, engine=engine)[1].sum())
        analysis = jax.jit(loss).lower(params, xs).compile().memory_analysis()
        if analysis is None:
            pytest.skip("this backend tells no memory")
        return analysis.temp_size_in_bytes

    every_C = 512 * 2 * 32 * 32 * 4
    assert temporaries(512, Scan(save="everything")) > every_C
    assert temporaries(512, Associative(64)) < every_C / 2


# -- S5 --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 8])
def test_legs(size):
    """The normal part of HiPPO-LegS, from the definition: A + p p^T = V diag(lambda)
    V^H, in conjugate pairs.
    """
    n = np.arange(2 * size)
    A = -np.where(
        n[:, None] > n,
        np.sqrt((2 * n[:, None] + 1) * (2 * n + 1)),
        np.where(n[:, None] == n, n + 1, 0),
    )
    p = np.sqrt(n + 0.5)
    values, vectors = legs(size)
    everything, pairs = (
        np.concatenate([values, values.conj()]),
        np.concatenate([vectors, vectors.conj()], 1),
    )
    np.testing.assert_allclose(
        (pairs * everything) @ pairs.conj().T, A + np.outer(p, p), atol=1e-12 * size
    )
    assert (values.real == -0.5).all()
    assert (values.imag > 0).all()


@pytest.mark.parametrize("spectrum", ["legs", "lin"])
def test_s5_begins_as_published(spectrum):
    cell = S5(64, spectrum=spectrum, shortest=0.01, longest=0.5)
    params = begun(cell, 40)
    step = np.exp(params["log_step"])
    assert ((step >= 0.01 * (1 - 1e-6)) & (step <= 0.5 * (1 + 1e-6))).all()
    assert 0.5 < np.median(step) / math.sqrt(0.01 * 0.5) < 2  # by its logarithm
    np.testing.assert_array_equal(params["eigenvalue_real"], -0.5)
    expected = legs(64)[0].imag if spectrum == "legs" else math.pi * np.arange(64)
    np.testing.assert_allclose(params["eigenvalue_imaginary"], expected, rtol=1e-6)
    assert np.square(params["input_kernel"]).sum() / (64 * 40) == pytest.approx(
        1 / 128, rel=0.1
    )
    assert np.square(params["output_kernel"]).sum() / (64 * 40) == pytest.approx(
        4 / 64, rel=0.1
    )
    assert (np.abs(cell.eigenvalues(params)) < 1).all()


def test_s5_is_the_full_system_it_halves(x64):
    """2H real states dx/dt = S x + B u, y = C x + d u, held between steps, with B, C
    drawn in the basis of LegS.
    """
    cell = S5(3)
    params = begun(cell)
    values, vectors = legs(3)
    kernel = np.asarray(params["input_kernel"])
    # of the pairs together
    B = 2 * (vectors @ (kernel[:, :3] + 1j * kernel[:, 3:]).T).real
    half = np.asarray(params["output_kernel"]) / 2
    C = 2 * ((half[:3] - 1j * half[3:]).T @ vectors.conj().T).real
    S = 2 * ((vectors * values) @ vectors.conj().T).real
    steps = np.exp(params["log_step"])
    E = 2 * ((vectors * np.exp(values * steps)) @ vectors.conj().T).real
    F = (
        2
        * ((vectors * ((np.exp(values * steps) - 1) / values)) @ vectors.conj().T).real
    )
    # skew but for -1/2 on the diagonal
    assert np.abs(S + S.T + np.eye(6)).max() < 1e-12
    xs, state = draw(cell, 0).xs[:, 0, :2], np.zeros(6)
    ys = jaxrnn.unroll(cell, params, xs)[1]
    for x, y in zip(np.asarray(xs), ys, strict=True):
        state = E @ state + F @ B @ x
        np.testing.assert_allclose(
            y, C @ state + params["skip"] * x, rtol=0, atol=1e-12
        )


def test_holding_is_exact_near_zero(x64):
    """(exp(z) - 1) / z in float32 against float64's series, and its slope, through
    and at zero.
    """
    points = np.concatenate(
        [10.0 ** np.arange(-12, 1) * np.exp(1j * k) for k in range(7)] + [[0.0]]
    )
    exact = sum(points**n / math.factorial(n + 1) for n in range(40))
    np.testing.assert_allclose(hold(jnp.asarray(points)), exact, rtol=2e-13)
    np.testing.assert_allclose(
        hold(jnp.asarray(points, jnp.complex64)), exact, rtol=3e-5
    )
    slopes = jax.vmap(jax.grad(lambda z: hold(z), holomorphic=True))(
        jnp.asarray(points)
    )
    np.testing.assert_allclose(
        slopes,
        sum(n * points ** (n - 1) / math.factorial(n + 1) for n in range(1, 40)),
        rtol=1e-10,
    )
    cell = S5(4)
    params = begun(cell, D) | {
        "eigenvalue_real": jnp.zeros(4),
        "eigenvalue_imaginary": jnp.zeros(4),
    }
    gradient = compiled(
        jax.grad(lambda p: jaxrnn.unroll(cell, p, jnp.ones((6, D)))[1].sum())
    )(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert (np.abs(gradient["eigenvalue_real"]) > 0).all()


def test_clipped_eigenvalues_cannot_grow(x64):
    params = begun(S5(4), D) | {"eigenvalue_real": jnp.array([1.0, 0.0, -1e-5, -0.5])}
    assert (np.abs(S5(4).eigenvalues(params)) > 1).any()
    assert (np.abs(S5(4, clip=True).eigenvalues(params)) < 1).all()


# -- elementwise recurrences -----------------------------------------------------------


@pytest.mark.parametrize("name", ["indrnn_tanh", "diagonal_gru", "diagonal_lstm"])
def test_units_see_no_state_but_their_own(name, x64):
    cell = CELLS[name]
    params, xs, carry, *_ = draw(cell, 0)
    z, first = cell.project(params, xs[0, 0]), jax.tree.map(lambda a: a[0], carry)
    for leaf in jax.tree.leaves(jax.jacobian(lambda s: cell.step(params, s, z))(first)):
        np.testing.assert_array_equal(leaf * (1 - np.eye(4)), 0)
        assert np.abs(np.diag(leaf)).min() > 0


def test_published_beginnings():
    vector = begun(IndRNN(1000))["recurrent_vector"]
    assert (vector.min(), vector.max()) == pytest.approx((0, 1), abs=0.01)
    narrow = begun(IndRNN(1000, recurrent_init=Uniform(0.9, 1.0)))["recurrent_vector"]
    assert (narrow.min(), narrow.max()) == pytest.approx((0.9, 1), abs=0.001)
    gru = begun(DiagonalGRU(1000))
    assert gru["recurrent_vector"].std() == pytest.approx(2 / math.sqrt(5000), rel=0.05)
    np.testing.assert_allclose(
        gru["bias"].reshape(3, -1),
        [np.zeros(1000), np.linspace(0, 1, 1000), np.zeros(1000)],
        atol=1e-6,
    )
    lstm = begun(DiagonalLSTM(1000))
    np.testing.assert_allclose(
        lstm["bias"].reshape(3, -1)[0], -np.linspace(0, 1, 1000), atol=1e-6
    )
    assert lstm["peephole_kernel"].std() == pytest.approx(2 / math.sqrt(5000), rel=0.05)
    bias = begun(DiagonalLSTM(100, forget_init=Chrono(50)))["bias"][:100]
    assert (np.exp(bias) >= 1).all()
    assert (np.exp(bias) <= 49).all()
    forget = begun(SLSTM(20, num_heads=2))["bias"].reshape(4, 2, 10)
    np.testing.assert_allclose(
        forget[1], np.tile(5 - 12 * (np.arange(10) / 9) ** 0.3, (2, 1)), rtol=1e-5
    )
    assert (forget[np.array([0, 2, 3])] == 0).all()
    mlstm = begun(MLSTM(400, num_heads=100), 50)
    kernel, i, f = mlstm["input_kernel"], mlstm["bias"][-200:-100], mlstm["bias"][-100:]
    np.testing.assert_allclose(f, np.linspace(3, 6, 100), rtol=1e-6)
    assert i.std() == pytest.approx(0.1, rel=0.2)
    assert (kernel[:, -200:] == 0).all()
    assert kernel[:, :-200].std() == pytest.approx(math.sqrt(2 / (5 * 50)), rel=0.05)


def test_accumulators_stay_float32():
    for cell in (SLSTM(4), MLSTM(4), DiagonalGRU(4), DiagonalLSTM(4), S5(4)):
        params = jax.eval_shape(
            lambda c=cell: c.init(jax.random.key(0), D, dtype=jnp.bfloat16)
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
            jnp.dtype(jnp.bfloat16)
        }
        carry = jax.eval_shape(cell.initial_carry, params)
        shows, *keeps = (
            carry if isinstance(carry, tuple) else [jnp.zeros((), jnp.bfloat16), carry]
        )
        assert shows.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in keeps} == {
            jnp.dtype(jnp.complex64 if isinstance(cell, S5) else jnp.float32)
        }


# -- through the library ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["slstm_heads", "mlstm"])
def test_through_nnx_both_directions_and_truncation(name, x64):
    """`nnx.RNN` and `bidirectional` are unrolls put together; windows of TBPTT that
    hold all of time are BPTT.
    """
    cell = CELLS[name]
    layer = jaxrnn.bidirectional(cell)
    params, xs, *_ = draw(layer, 0, steps=5)
    lengths = jnp.array([5, 0, 3], jnp.int32)
    mask = jaxrnn.mask_from_lengths(lengths, 5)
    parts = [
        jaxrnn.unroll(cell, params[part], xs, mask=mask, reverse=part == "backward")[1]
        for part in ("forward", "backward")
    ]
    ys = jaxrnn.unroll(layer, params, xs, mask=mask)[1]
    assert_same(ys, jnp.concatenate(parts, axis=-1))
    assert_same(
        rnn_with(layer, params)(jnp.swapaxes(xs, 0, 1), seq_lengths=lengths),
        jnp.swapaxes(ys, 0, 1),
    )

    own = params["forward"]

    def losses(params, carry, window):
        flags = {"mask": window.mask, "resets": window.resets}
        _, ys, carries = jaxrnn.unroll(
            cell, params, window.inputs, carry, **flags, return_carries=True
        )
        return jnp.square(ys - window.targets).mean(-1), carries

    def loss(params, xs, targets):
        return jnp.square(jaxrnn.unroll(cell, params, xs)[1] - targets).mean()

    window = jaxrnn.Window(xs, jnp.sin(parts[0]))
    expected = compiled(jax.value_and_grad(loss))(own, *window[:2])
    for k1, k2, same in ((2, 5, True), (2, 2, False)):
        tbptt = jaxrnn.TBPTT(losses, cell.initial_carry, k1, k2)
        run = compiled(
            lambda p, w, tbptt=tbptt: tbptt.value_and_grad(p, w, tbptt.init(p, w, (3,)))
        )
        value, gradient, _ = run(own, window)
        assert_same(value, expected[0])
        if same:
            assert_same(gradient, expected[1])
        else:
            difference = jax.tree.map(
                lambda g, e: np.abs(g - e).max(), gradient, expected[1]
            )
            assert max(jax.tree.leaves(difference)) > 1e-6


# -- errors and names ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: SLSTM(4, num_heads=3),
            "SLSTM: hidden_size must be a multiple of num_heads, but they are 4 and 3",
        ),
        (
            lambda: MLSTM(4, num_heads=0),
            "MLSTM: num_heads must be an int of at least 1",
        ),
        (lambda: MLSTM(4, key_size=0), "MLSTM: key_size must be an int of at least 1"),
        (
            lambda: SLSTM(4, forget_gate="tanh"),
            "SLSTM: forget_gate must be 'sigmoid' or 'exponential', but it is 'tanh'",
        ),
        (
            lambda: SLSTM(4, learned_initial_carry=True),
            "SLSTM: its normalizer sums over the steps read so far",
        ),
        (
            lambda: S5(4, spectrum="hippo"),
            "S5: spectrum must be 'legs' or 'lin', but it is 'hippo'",
        ),
        (
            lambda: S5(4, shortest=0.0),
            "S5: the bounds of dt must satisfy 0 < shortest <= longest",
        ),
        (lambda: S5(4, learned_initial_carry=True), "S5: its carry is complex"),
    ],
)
def test_bad_options(make, words, plain_errors):
    with pytest.raises(ValueError, match=words):
        make()


def test_associative_refuses_what_it_cannot_run():
    for cell in (SLSTM(4), IndRNN(4), DiagonalGRU(4), DiagonalLSTM(4)):
        params, xs, *_ = draw(cell, 0)
        with pytest.raises(
            TypeError,
            match=rf"{type(cell).__name__} is not linear in its state.* use Scan\(\)",
        ):
            jaxrnn.unroll(cell, params, xs, engine=Associative())


def test_zoneout_is_for_h_alone_where_the_rest_shares_a_scale():
    for cell in (SLSTM(4), MLSTM(4)):
        for rate in (0.1, (0.1, 0.1, 0.0, 0.0)):
            with pytest.raises(
                ValueError,
                match=r"share a scale, so only h.* give h alone a rate",
            ):
                jaxrnn.zoneout(cell, rate)
    layer = jaxrnn.zoneout(SLSTM(4), (0.5, 0.0, 0.0, 0.0))
    params, xs, *_ = draw(SLSTM(4), 0)
    assert np.isfinite(jaxrnn.unroll(layer, params, xs, key=jax.random.key(0))[1]).all()


def test_cells_by_name():
    assert make_cell("slstm:2", 8, 10) == SLSTM(8, num_heads=2)
    assert make_cell("mlstm", 8, 10) == MLSTM(8)
    assert make_cell("indrnn", 8, 10) == IndRNN(8)
    assert make_cell("diagonal-gru:chrono", 8, 10) == DiagonalGRU(
        8, update_init=Chrono(10.0)
    )
    assert make_cell("diagonal-lstm", 8, 10) == DiagonalLSTM(8)
    with pytest.raises(InputError, match="3 heads do not divide --hidden 8"):
        make_cell("mlstm:3", 8, 10)
    for spec in ("slstm:0", "slstm:chrono", "indrnn:2", "diagonal-gru:1.5"):
        with pytest.raises(InputError, match="is no variant of"):
            make_cell(spec, 8, 10)
    with pytest.raises(InputError, match="did you mean slstm"):
        make_cell("sltsm", 8, 10)


def test_linear_cells_by_name_stand_in_blocks():
    assert make_cell("lru:0.3", 8, 10) == jaxrnn.residual_block(
        LRU(8, r_min=0.9, r_max=0.999, max_phase=0.3), 8
    )
    assert make_cell("s5", 8, 10) == jaxrnn.residual_block(S5(8), 8)
    assert make_cell("min-gru:alone", 8, 10) == MinGRU(8)
    for spec in ("lru:9", "lru:alone", "s5:2", "min-gru:2"):
        with pytest.raises(InputError, match="is no variant of"):
            make_cell(spec, 8, 10)


def test_a_decoder_refuses_a_first_carry_that_features_cannot_be():
    options = captioning.Options(cell="lru", hidden=8, embed=4, channels=2)
    config = {"vocabulary": ["a"], "longest": 3}
    with pytest.raises(InputError, match="must consist of real vectors"):
        jax.eval_shape(lambda: captioning.build(options, config)[1])
