"""Numbers come from NumPy, from arrays without axes, and from inside compiled
functions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generation import CELL, PARAMS, V, step

import jaxrnn

PROMPT = jnp.array([[1, 2], [3, 4]])
KEY = jax.random.key(3)


def written(length=5, **how):
    return jaxrnn.generate(
        step, CELL.initial_carry(PARAMS["cell"], (2,)), PROMPT, length, **how
    ).tokens


@pytest.mark.parametrize(
    "kind",
    [
        np.float32,
        np.float64,
        lambda t: np.asarray(t, np.float32),
        lambda t: jnp.asarray(t, jnp.float32),
    ],
)
def test_temperatures(kind):
    np.testing.assert_array_equal(
        written(temperature=kind(0.5), key=KEY), written(temperature=0.5, key=KEY)
    )
    np.testing.assert_array_equal(
        written(temperature=kind(0.0)), written(temperature=0)
    )


@pytest.mark.parametrize(
    "kind", [np.int64, np.int32, np.uint8, np.asarray, jnp.asarray]
)
def test_lengths_and_symbols(kind):
    np.testing.assert_array_equal(
        written(kind(4), top_k=kind(3), key=KEY), written(4, top_k=3, key=KEY)
    )


def test_integer_temperatures():
    np.testing.assert_array_equal(
        written(temperature=np.int64(1), key=KEY), written(temperature=1, key=KEY)
    )


def test_a_traced_temperature():
    """One program for every temperature, 0 included."""
    count = []

    @jax.jit
    def write(temperature):
        count.append(1)
        return written(temperature=temperature, top_k=4, key=KEY)

    for temperature in (0.5, 1e-38):
        expected = written(temperature=temperature, top_k=4, key=KEY)
        np.testing.assert_array_equal(write(temperature), expected)
    np.testing.assert_array_equal(write(0.0), written(temperature=0))
    assert len(count) == 1
    many = jax.vmap(lambda t: written(temperature=t, key=KEY))(jnp.array([0.0, 0.5]))
    np.testing.assert_array_equal(many[1], written(temperature=0.5, key=KEY))
    np.testing.assert_array_equal(
        jax.jit(lambda t: written(temperature=t, key=KEY))(1),
        written(temperature=1, key=KEY),
    )


def test_a_traced_temperature_wants_a_key(plain_errors):
    with pytest.raises(ValueError, match=r"needs key=jax\.random\.key"):
        jax.jit(lambda t: written(temperature=t))(0.5)


@pytest.mark.parametrize(
    "bad",
    [
        True,
        np.bool_(True),
        "hot",
        -1.0,
        np.float32(-1),
        np.nan,
        np.inf,
        np.ones(2),
        1j,
        None,
        jnp.ones(1),
    ],
)
def test_what_is_no_temperature(bad, plain_errors):
    with pytest.raises(
        ValueError,
        match="generate: temperature must be a finite number of at least 0, but it is",
    ):
        written(temperature=bad, key=KEY)


@pytest.mark.parametrize(
    "bad",
    [True, np.bool_(True), 2.0, np.float32(2), 0, np.int64(-1), "4", np.ones(2, int)],
)
def test_what_is_no_size(bad, plain_errors):
    with pytest.raises(
        ValueError, match="generate: length must be an int of at least 1, but it is"
    ):
        written(bad, key=KEY)
    with pytest.raises(
        ValueError, match="generate: top_k must be an int of at least 1, but it is"
    ):
        written(top_k=bad, key=KEY)


def test_a_traced_size_is_refused(plain_errors):
    with pytest.raises(
        ValueError, match="generate: length must be an int of at least 1, but it is"
    ):
        jax.jit(lambda n: written(n, key=KEY))(4)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.asarray, jnp.asarray])
def test_beams(kind, plain_errors):
    def search(width, length, end, penalty):
        carry = CELL.initial_carry(PARAMS["cell"], (2,))
        how = {"width": width, "length": length, "end": end, "length_penalty": penalty}
        return jaxrnn.beam_search(step, carry, PROMPT[0], **how)

    found = search(kind(3), kind(4), np.int64(V - 1), np.float32(0.5))
    for a, b in zip(found, search(3, 4, V - 1, 0.5), strict=True):
        np.testing.assert_array_equal(a, b)
    traced = jax.jit(lambda penalty: search(3, 4, V - 1, penalty))(0.5)
    np.testing.assert_array_equal(traced.tokens, found.tokens)


def test_numbers_elsewhere(plain_errors):
    """Truncation, engines, lengths, rates and cells take NumPy's numbers too."""
    cell = jaxrnn.Elman(np.int64(3))
    params, xs = cell.init(jax.random.key(0), 2), jnp.ones((6, 2, 2))
    for n in (np.int64(3), np.int32(3)):
        np.testing.assert_array_equal(
            jaxrnn.truncated_unroll(cell, params, xs, window=n)[1],
            jaxrnn.truncated_unroll(cell, params, xs, window=3)[1],
        )
        for engine in (
            jaxrnn.Scan(chunk=n),
            jaxrnn.Checkpoint(n),
            jaxrnn.Scan(unroll=n),
        ):
            assert jaxrnn.unroll(cell, params, xs, engine=engine)[1].shape == (6, 2, 3)
    assert jaxrnn.mask_from_lengths(np.int64(2), 4).sum() == 2
    noisy = jaxrnn.stack(
        jaxrnn.dropout(np.float32(0.5)), jaxrnn.zoneout(cell, np.float32(0.1))
    )
    assert jaxrnn.unroll(noisy, noisy.init(jax.random.key(0), 2), xs, key=KEY)[
        1
    ].shape == (6, 2, 3)
