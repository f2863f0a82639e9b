"""Closed loops with real-valued inputs, against a loop in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import B, D, assert_same, draw, draw_params

import jaxrnn
from jaxrnn import GRU, LSTM, layers, rollout, stack

N, KEY = 4, jax.random.key(5)
MODEL = stack(LSTM(4), layers.dense(D, jnp.tanh))
RANDOM = np.random.default_rng(7)
TARGETS = RANDOM.normal(size=(N, B, D))
READOUT = RANDOM.normal(size=(4, D))


def looped(layer, params, carry, x, targets, coins, feed):
    """A loop in Python: ``coins (N, *B)`` say where the next input is the true one."""
    outputs, inputs = [], []
    for t in range(N):
        inputs.append(x)
        carry, y = layer(params, carry, x)
        outputs.append(y)
        x = jnp.where(coins[t][:, None], targets[t], feed(y))
    return jnp.stack(outputs), jnp.stack(inputs), carry


def outcome_of(function, at):
    """Values and gradients, with random cotangents."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(function, *at)
    cotangents = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), shapes
    )

    def both(*at):
        values, pullback = jax.vjp(function, *at)
        return values, pullback(cotangents)

    return compiled(both)(*at)


@pytest.mark.parametrize("way", ["free", "teacher", "none", "sampled", "traced"])
def test_it_is_a_loop_in_python(way, x64):
    """Also the gradients of parameters, first carry, first input and targets."""
    share = {"teacher": 1.0, "none": 0.0, "sampled": 0.5, "traced": 0.5}.get(way)
    inputs = draw(MODEL, 0)
    at = inputs.params, inputs.carry, inputs.xs[0], jnp.asarray(TARGETS)

    def closed(params, carry, x0, targets, share=share):
        how = {} if way == "free" else {"targets": targets, "teacher_forcing": share}
        if way in ("sampled", "traced"):
            how["key"] = KEY
        return tuple(rollout(MODEL, params, carry, x0, N, **how))

    found = outcome_of(closed, at)
    if way == "traced":
        at_rates = jax.jit(lambda p: closed(*at, share=p))
        assert_same(at_rates(0.5), found[0])
        assert_same(at_rates(1.0), closed(*at, share=1.0 - 1e-12))
        way = "sampled"
    # which inputs were the true ones is seen from the inputs themselves
    read = np.asarray(found[0][1])
    coins = np.zeros((N, B), bool)
    coins[:-1] = (read[1:] == TARGETS[:-1]).all(-1)
    low, high = {"teacher": (1, 1), "sampled": (0.1, 0.9)}.get(way, (0, 0))
    assert low <= coins[:-1].mean() <= high
    right = outcome_of(
        lambda *at: looped(MODEL, *at, jnp.asarray(coins), lambda y: y), at
    )
    assert_same(found, right)


def test_a_readout_of_ones_own_has_gradients(x64):
    cell = GRU(4)
    inputs = draw(cell, 0)
    at = inputs.params, inputs.carry, inputs.xs[0], jnp.asarray(READOUT)

    def closed(params, carry, x0, readout):
        return tuple(
            rollout(cell, params, carry, x0, N, feed=lambda y: jnp.sin(y @ readout))
        )

    def by_hand(params, carry, x0, readout):
        never = jnp.zeros((N, B), bool)
        return looped(
            cell, params, carry, x0, TARGETS, never, lambda y: jnp.sin(y @ readout)
        )

    assert_same(outcome_of(closed, at), outcome_of(by_hand, at))


def test_coins_are_fair_and_fall_for_each_row_and_step():
    params = MODEL.init(KEY, D)
    x0, targets = jnp.zeros((64, D)), jnp.full((32, 64, D), 7.0)
    rolled = rollout(
        MODEL, params, None, x0, 32, targets=targets, teacher_forcing=0.25, key=KEY
    )
    true = np.asarray(rolled.inputs[1:, :, 0] == 7)
    assert abs(true.mean() - 0.25) < 0.05
    assert true.std(0).min() > 0
    assert true.std(1).min() > 0


def test_vmap_jit_and_noise():
    params = MODEL.init(KEY, D)
    x0 = jnp.asarray(RANDOM.normal(size=(B, D)), jnp.float32)
    whole = rollout(MODEL, params, None, x0, N)
    mapped = jax.jit(jax.vmap(lambda x: rollout(MODEL, params, None, x, N).outputs))
    np.testing.assert_allclose(mapped(x0), whole.outputs.swapaxes(0, 1), atol=1e-6)
    noisy = stack(LSTM(4), jaxrnn.dropout(0.5), layers.dense(D))
    params = noisy.init(KEY, D)
    first, same, other = (
        rollout(noisy, params, None, x0, N, key=jax.random.key(k)).outputs
        for k in (1, 1, 2)
    )
    assert (first == same).all()
    assert (first != other).any(axis=(1, 2)).all()


def test_it_goes_on_where_unroll_ends(x64):
    """Reading its own outputs as inputs of `unroll` gives them again."""
    inputs = draw(MODEL, 0)
    carry, ys = jaxrnn.unroll(MODEL, inputs.params, inputs.xs)
    rolled = rollout(MODEL, inputs.params, carry, ys[-1], N)
    last, again = jaxrnn.unroll(MODEL, inputs.params, rolled.inputs, carry)
    assert_same((last, again), (rolled.carry, rolled.outputs))
    assert_same(rolled.inputs[1:], rolled.outputs[:-1])


CELL = GRU(4)
PARAMS, CELL_PARAMS = draw_params(MODEL, RANDOM), draw_params(CELL, RANDOM)
X0, TRUE = jnp.ones((B, D)), jnp.ones((N, B, D))
BAD = {
    "size": (
        lambda: rollout(CELL, CELL_PARAMS, None, X0, N),
        ValueError,
        r"feed returns \(3, 4\) of float32, but they must be \(3, 3\) .*give a feed",
    ),
    "targets": (
        lambda: rollout(MODEL, PARAMS, None, X0, N, targets=TRUE[:-1]),
        ValueError,
        r"targets are \(3, 3, 3\) .*must be \(4, 3, 3\)",
    ),
    "probability": (
        lambda: rollout(MODEL, PARAMS, None, X0, N, targets=TRUE, teacher_forcing=2),
        ValueError,
        r"probability in \[0, 1\]",
    ),
    "a probability without targets": (
        lambda: rollout(MODEL, PARAMS, None, X0, N, teacher_forcing=0.5, key=KEY),
        ValueError,
        "there are none: pass targets=, or leave teacher_forcing out",
    ),
    "teacher forcing without targets": (
        lambda: rollout(MODEL, PARAMS, None, X0, N, teacher_forcing=1.0),
        ValueError,
        "there are none: pass targets=, or leave teacher_forcing out",
    ),
    "no key": (
        lambda: rollout(MODEL, PARAMS, None, X0, N, targets=TRUE, teacher_forcing=0.5),
        ValueError,
        r"rollout: a teacher_forcing between 0 and 1 draws .* needs key=jax\.random",
    ),
    "no key for a layer that draws": (
        lambda: rollout(jaxrnn.zoneout(CELL, 0.1), CELL_PARAMS, None, X0, N),
        ValueError,
        r"rollout: Zoneout draws random numbers .* key=.*jaxrnn\.inference\(layer\)",
    ),
    "no key but a number": (
        lambda: rollout(
            MODEL, PARAMS, None, X0, N, targets=TRUE, teacher_forcing=0.5, key=0
        ),
        TypeError,
        "rollout: key must be a key such as .* but it is an int",
    ),
    "a key for nothing": (
        lambda: rollout(MODEL, PARAMS, None, X0, N, targets=TRUE, key=KEY),
        ValueError,
        "nothing is drawn, so leave the key out",
    ),
    "steps": (lambda: rollout(MODEL, PARAMS, None, X0, 0), ValueError, "steps must be"),
    "carry": (
        lambda: rollout(CELL, CELL_PARAMS, jnp.ones(4), X0, N),
        ValueError,
        "GRU: the carry passed in has shape",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case, plain_errors):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
