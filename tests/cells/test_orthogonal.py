"""The orthogonal network: its matrix stays orthogonal, and is built once."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import compiled
from subjects import B, D, assert_same, draw

import jaxrnn
from jaxrnn.cells import OrthogonalRNN
from jaxrnn.cells.orthogonal import cayley
from jaxrnn.tasks.models.cell_registry import make_cell


def distance(W):
    """The largest entry of W^T W - I."""
    return np.abs(np.asarray(W).T @ W - np.eye(len(W))).max()


def test_it_stays_orthogonal_in_training(x64):
    """Some updates with a large rate, in float64 to 1e-12."""
    cell = OrthogonalRNN(6)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (8, B, D))
    optimizer = optax.sgd(0.3, momentum=0.5)
    state = optimizer.init(params)

    @compiled
    def update(params, state):
        loss = lambda p: jnp.sin(jaxrnn.unroll(cell, p, xs)[1]).sum()  # noqa: E731
        gradient = jax.grad(loss)(params)
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, changes), state

    first = cell.recurrent_weights(params)
    for _ in range(10):
        assert distance(cell.recurrent_weights(params)) < 1e-12
        params, state = update(params, state)
    last = cell.recurrent_weights(params)
    assert distance(last) < 1e-12
    assert np.abs(last - first).max() > 0.5


@pytest.mark.parametrize(("negative", "count"), [(0.5, 4), (1.0, 8)])
def test_eigenvalues_at_init(negative, count):
    cell = OrthogonalRNN(8, negative=negative, max_angle=1.0)
    W = np.array(cell.recurrent_weights(cell.init(jax.random.key(0), D)))
    assert np.sign(np.linalg.det(W)) == (-1) ** count
    W[:count] *= -1
    angles = np.angle(np.linalg.eigvals(W))
    assert np.abs(angles).max() <= 1.0 + 1e-5
    assert np.unique(np.abs(angles).round(4)).size == 4
    assert np.abs(angles).max() > 0.5


def test_a_state_keeps_its_norm_without_an_activation(x64):
    cell = OrthogonalRNN(5, modrelu=False, activation=jnp.positive)
    params, xs, carry, *_ = draw(cell, 0)
    params["bias"] = jnp.zeros(5)
    _, hs = jaxrnn.unroll(cell, params, 0 * xs, carry)
    norm = np.linalg.norm(carry, axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(hs, axis=-1), np.broadcast_to(norm, hs.shape[:2]), rtol=1e-12
    )


def test_derivatives_of_the_cayley_transform(x64):
    """First and second, against those through a system of equations."""
    random = np.random.default_rng(0)
    S, T, V = (jnp.asarray(random.normal(size=(4, 4))) for _ in range(3))
    A, dA, ddA = S - S.T, T - T.T, V - V.T

    def by_solving(A):
        identity = jnp.eye(4)
        return jnp.linalg.solve(identity + A, identity - A)

    def derivatives(f):
        def first(A):
            return jax.jvp(f, (A,), (dA,))[1]

        return f(A), first(A), jax.jvp(first, (A,), (ddA,))[1], jax.vjp(f, A)[1](S)[0]

    programs = [compiled(lambda f=f: derivatives(f)) for f in (cayley, by_solving)]
    assert_same(programs[0](), programs[1]())


def computations_in_loops(hlo):
    """The text of each computation of a compiled program that a loop's body calls."""
    texts = {
        found.group(1): found.group(0)
        for found in re.finditer(r"^(?:ENTRY )?%([\w.-]+) \(.*?^}", hlo, re.M | re.S)
    }
    called = r"(?:body|to_apply|calls|condition|called_computations)=\{?%?([\w.-]+)"
    waiting = [
        name
        for text in texts.values()
        for name in re.findall(r"body=%?([\w.-]+)", text)
    ]
    inside = {}
    while waiting:
        name = waiting.pop()
        if name not in inside:
            inside[name] = texts[name]
            waiting += re.findall(called, texts[name])
    return inside


@pytest.mark.parametrize(
    "engine",
    [
        None,
        jaxrnn.Scan(chunk=8),
        jaxrnn.Scan(save="everything"),
        jaxrnn.Checkpoint(4),
    ],
    ids=["default", "chunks", "jax", "checkpoint"],
)
def test_the_matrix_is_built_once(engine):
    """One factorization for each pass of a gradient, and none inside a loop."""
    if jax.default_backend() != "cpu":
        pytest.skip("the name of the factorization is that of a CPU")
    cell = OrthogonalRNN(4)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (32, B, D))

    def loss(params, xs):
        return jnp.sin(jaxrnn.unroll(cell, params, xs, engine=engine)[1]).sum()

    for function in (loss, jax.grad(loss)):
        hlo = jax.jit(function).lower(params, xs).compile().as_text()
        assert hlo.count("lapack_sgetrf") in (1, 2)
        assert "getrf" not in "".join(computations_in_loops(hlo).values())


def test_a_matrix_that_is_built_at_every_step_is_seen():
    if jax.default_backend() != "cpu":
        pytest.skip("the name of the factorization is that of a CPU")
    step = lambda A, _: (cayley(A), None)  # noqa: E731
    run = jax.jit(lambda A: jax.lax.scan(step, A, length=3)[0])
    hlo = run.lower(jnp.ones((4, 4))).compile().as_text()
    assert "getrf" in "".join(computations_in_loops(hlo).values())


def test_mixed_precision_keeps_the_matrix_in_float32():
    cell = OrthogonalRNN(6)
    params = cell.init(jax.random.key(0), D, dtype=jnp.bfloat16)
    xs = jax.random.normal(jax.random.key(1), (6, B, D), jnp.bfloat16)
    last, ys = jaxrnn.unroll(cell, params, xs)
    assert (last.dtype, ys.dtype) == (jnp.float32, jnp.bfloat16)
    assert cell.initial_carry(params, (B,), jnp.float32).dtype == jnp.float32
    assert distance(cell.recurrent_weights(params)) < 1e-5
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
    np.testing.assert_allclose(
        ys.astype(jnp.float32), jaxrnn.unroll(cell, *wide)[1], atol=0.03
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negative": 1.5}, r"negative must be a number from 0 to 1, but it is 1\.5"),
        ({"negative": True}, "negative must be a number from 0 to 1, but it is True"),
        ({"max_angle": math.pi}, r"max_angle must be .* below pi, but it is 3\.14"),
    ],
)
def test_bad_options(options, words, plain_errors):
    with pytest.raises(ValueError, match=words):
        OrthogonalRNN(4, **options)


def test_one_unit_by_name_and_refusals(plain_errors):
    cell = OrthogonalRNN(1)
    params = cell.init(jax.random.key(0), D)
    assert abs(float(cell.recurrent_weights(params)[0, 0])) == 1
    assert jaxrnn.unroll(cell, params, jnp.ones((3, D)))[1].shape == (3, 1)
    assert make_cell("orthogonal", 8, 10) == OrthogonalRNN(8)
    with pytest.raises(TypeError, match=r"supported are .* but got OrthogonalRNN"):
        jaxrnn.interop.to_keras(cell, params)
