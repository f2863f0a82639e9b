"""The error of online gradients, against errors computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from online_cases import STEPS, B, case, part
from reference import compiled
from subjects import SUBJECTS, normal

import jaxrnn
from jaxrnn import TBPTT, Window
from jaxrnn.diagnostics import online_error
from jaxrnn.online import RTRL, UORO, Traces


def test_the_errors_of_windows_are_those_of_their_gradients(x64):
    params, window, model = case("elman_learned")
    full = TBPTT(*model, k1=STEPS)

    def gradient(method):
        state = method.init(params, window, (B,))
        key = jax.random.key(3)
        found = method.value_and_grad(params, window, state, key=key)[1]
        return ravel_pytree(found)[0]

    exact = gradient(full)
    for method in (UORO(*model, k1=2), TBPTT(*model, k1=1)):
        found = online_error(
            method, params, window, batch_shape=(B,), key=jax.random.key(3)
        )
        g = gradient(method)
        norm = np.linalg.norm
        error = norm(g - exact) / norm(exact)
        np.testing.assert_allclose(found.relative_error, error, rtol=1e-12)
        cosine = g @ exact / norm(g) / norm(exact)
        np.testing.assert_allclose(found.cosine, cosine, rtol=1e-12)
        assert error > 1e-2
    found = online_error(RTRL(*model, k1=2), params, window, batch_shape=(B,))
    assert found.relative_error < 1e-13
    assert found.cosine > 1 - 1e-13
    assert jax.tree.structure(found.by_leaf) == jax.tree.structure(params)


def test_the_error_of_traces_is_that_of_their_sum(x64):
    """Masks, resets, a batch, and no target."""
    params, window, _ = case("elman_learned")
    layer, rnn = SUBJECTS["elman_learned"], params["rnn"]
    window = part(window, 0, 3)
    sequence = Window(window.inputs, None, window.mask, window.resets)
    weights = normal(np.random.default_rng(0), np.zeros(4))

    def loss(y, target):
        return jnp.sin(y) @ weights

    found = online_error(Traces(layer), rnn, sequence, batch_shape=(B,), loss=loss)
    assert 1e-3 < found.relative_error < 1
    traces = Traces(layer)

    @compiled
    def by_hand(params):
        state, total = traces.init(params, window.inputs[0]), 0.0
        for t in range(3):
            _, gradient, state = traces.value_and_grad(
                params,
                state,
                window.inputs[t],
                lambda y: (jnp.sin(y) @ weights).sum(),
                mask=jnp.asarray(window.mask[t]),
                reset=jnp.asarray(window.resets[t]),
            )
            total += ravel_pytree(gradient)[0]
        return total

    def full(params):
        flags = {"mask": window.mask, "resets": window.resets}
        ys = jaxrnn.unroll(layer, params, window.inputs, **flags)[1]
        return (jnp.sin(ys) @ weights).sum()

    exact = ravel_pytree(compiled(jax.grad(full))(rnn))[0]
    error = np.linalg.norm(by_hand(rnn) - exact) / np.linalg.norm(exact)
    np.testing.assert_allclose(found.relative_error, error, rtol=1e-9)


def by_rtrl():
    return RTRL(*case("elman_learned")[2], k1=1)


BAD = {
    "no method": (
        lambda c: online_error(jnp.sin, *c),
        "online must be a jaxrnn.online",
    ),
    "no loss": (
        lambda c: online_error(Traces(jaxrnn.GRU(4)), *c, batch_shape=(B,)),
        "pass loss=",
    ),
    "two losses": (
        lambda c: online_error(
            by_rtrl(),
            *c,
            batch_shape=(B,),
            loss=lambda y, t: y,
        ),
        "RTRL has its own losses",
    ),
    "no steps": (
        lambda c: online_error(
            by_rtrl(),
            c[0],
            jax.tree.map(lambda a: a[:0], c[1]),
        ),
        "no steps",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name, plain_errors):
    call, words = BAD[name]
    with pytest.raises((TypeError, ValueError), match=words):
        call(case("elman_learned")[:2])
