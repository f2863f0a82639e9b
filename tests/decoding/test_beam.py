"""Beam search: greedy at width 1, never below greedy, the true best where everything
fits, the same in batches.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled

import jaxrnn
from jaxrnn.decoding.sampling import generate

V, H, END, N = 5, 6, 2, 7
CELL = jaxrnn.stack(jaxrnn.GRU(H), jaxrnn.LSTM(H))


def model(seed, symbols=V, sharpness=4.0):
    """A step function of a random recurrent model, whose parameters are drawn by
    ``seed``, and its first carry.
    """
    k_cell, k_out = jax.random.split(jax.random.key(seed))
    params = CELL.init(k_cell, symbols)
    # or the models would write what their readout likes best
    params = jax.tree.map(lambda leaf: 2 * leaf, params)
    out = sharpness * jax.random.normal(k_out, (H, symbols))

    def step(carry, token):
        carry, h = CELL(params, carry, jax.nn.one_hot(token, symbols))
        return carry, h @ out

    return step, lambda batch: CELL.initial_carry(params, batch)


def search(step, carry, start, **options):
    return beam(step, carry, start, **{"end": END, "width": 3, "length": N, **options})


def beam(step, carry, start, **options):
    return compiled(
        lambda carry, start: jaxrnn.beam_search(step, carry, start, **options)
    )(carry, start)


def log_probability(step, carry, start, tokens, end=END):
    """Of the tokens up to and with the first ``end``, and how many those are, by a
    Python loop over a jitted step.
    """
    total, token = 0.0, start
    for n, following in enumerate(tokens):
        carry, logits = step(carry, jnp.asarray(token, jnp.int32))
        total += float(jax.nn.log_softmax(logits)[following])
        token = following
        if following == end:
            return total, n + 1
    return total, len(tokens)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_width_1_is_greedy_decoding(batch, penalty):
    step, initial = model(0)
    start = jnp.asarray(np.random.default_rng(0).integers(0, V, batch), jnp.int32)
    found = search(step, initial(batch), start, width=1, length_penalty=penalty)
    greedy = np.asarray(
        generate(step, initial(batch), start[None], N, temperature=0).tokens
    )
    ended = np.cumsum(greedy == END, axis=0) > 0
    np.testing.assert_array_equal(found.tokens[..., 0], np.where(ended, END, greedy))
    np.testing.assert_array_equal(found.lengths[..., 0], (~ended).sum(0))


def test_the_greedy_hypothesis_stays_where_others_are_likelier_for_a_while():
    """After two steps both best hypotheses begin with b, and the greedy one, which
    begins with a, is the best of the three in the end.
    """
    start, a, b, after_b, late, end = range(6)
    following = np.full((6, 9), 1e-9)
    following[start, [a, b]] = 0.6, 0.4
    following[a, [end, 6, 7, 8]] = 0.3, 0.25, 0.25, 0.2  # 0.18 at most
    following[b, [after_b, late]] = 0.5, 0.5  # 0.2 each
    following[[after_b, late], 6:] = 1 / 3  # 0.067 each

    def step(carry, token):
        return carry, jnp.log(following).astype(jnp.float32)[jnp.minimum(token, end)]

    found = jaxrnn.beam_search(step, (), jnp.array([start]), end=end, width=2, length=3)
    assert found.tokens[:2, 0, 0].tolist() == [a, end]
    np.testing.assert_allclose(found.scores[0, 0], np.log(0.18), rtol=1e-5)


@pytest.fixture(scope="module")
def models():
    """Parameters of 200 recurrent models, and a start for each."""
    cell = jaxrnn.GRU(H)

    def draw(key):
        k_cell, k_out, k_start = jax.random.split(key, 3)
        params = jax.tree.map(lambda leaf: 2 * leaf, cell.init(k_cell, V))
        return (
            params,
            4 * jax.random.normal(k_out, (H, V)),
            jax.random.randint(k_start, (), 0, V, jnp.int32),
        )

    return cell, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 200))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_best_score_is_never_below_greedys_on_200_models(models, penalty):
    """A beam that drops the greedy hypothesis where others are likelier so far fails
    this, of width 2 at penalty 0.
    """
    cell, drawn = models

    def best(width):
        def of_one(params, out, start):
            def step(carry, token):
                carry, h = cell(params, carry, jax.nn.one_hot(token, V))
                return carry, h @ out

            options = {
                "end": END,
                "width": width,
                "length": N,
                "length_penalty": penalty,
            }
            return jaxrnn.beam_search(
                step, cell.initial_carry(params), start, **options
            ).scores[0]

        return jax.jit(jax.vmap(of_one))(*drawn)

    greedy, two, four = (best(width) for width in (1, 2, 4))
    assert (two >= greedy - 1e-5).all()
    assert (four >= greedy - 1e-5).all()
    assert (four > greedy + 1e-3).sum() > 20  # and it is worth the work


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wide_beam_finds_the_true_best(seed, penalty):
    """Every hypothesis of up to 4 tokens out of 3 symbols: 1 + 2 + 4 + 8 that end,
    16 that do not.
    """
    symbols, length = 3, 4
    step, initial = model(seed, symbols)
    one = jax.jit(step)
    carry, start = initial(()), 0
    every = {}
    for tokens in itertools.product(range(symbols), repeat=length):
        logp, n = log_probability(one, carry, start, tokens)
        every[tokens[:n]] = logp / n**penalty
    assert len(every) == 31
    ranked = sorted(every.items(), key=lambda item: -item[1])
    found = search(
        step, carry, jnp.asarray(start), width=31, length=length, length_penalty=penalty
    )
    np.testing.assert_allclose(found.scores, [score for _, score in ranked], atol=1e-4)
    for w in range(31):
        n = int(found.lengths[w])
        assert every[tuple(found.tokens[: n + 1, w].tolist())] == pytest.approx(
            float(found.scores[w]), abs=1e-4
        )
    wider = search(
        step, carry, jnp.asarray(start), width=40, length=length, length_penalty=penalty
    )
    np.testing.assert_allclose(wider.scores[:31], found.scores, atol=1e-4)
    assert (wider.scores[31:] == -jnp.inf).all()


def test_scores_are_of_their_tokens_and_no_hypothesis_comes_twice():
    for seed in range(2):
        step, initial = model(seed)
        found = search(step, initial(()), jnp.asarray(1), width=4, length_penalty=0.7)
        assert (jnp.diff(found.scores) <= 0).all()
        assert len({tuple(row) for row in found.tokens.T.tolist()}) == 4
        one = jax.jit(step)
        for w in range(4):
            tokens, length = found.tokens[:, w].tolist(), int(found.lengths[w])
            logp, n = log_probability(one, initial(()), 1, tokens)
            assert float(found.scores[w]) == pytest.approx(logp / n**0.7, abs=1e-4)
            assert END not in tokens[:length]
            assert set(tokens[length:]) <= {END}


@pytest.mark.parametrize("transform", ["batch", "vmap", "no jit"])
def test_a_batch_is_its_members(transform):
    step, initial = model(3)
    starts = jnp.arange(V)
    alone = [search(step, initial(()), start, length_penalty=1.0) for start in starts]
    options = {"end": END, "width": 3, "length": N, "length_penalty": 1.0}
    if transform == "vmap":
        found = jax.vmap(
            lambda start: jaxrnn.beam_search(step, initial(()), start, **options),
            out_axes=0,
        )(starts)
        tokens = jnp.moveaxis(found.tokens, 0, 1)
    elif transform == "batch":
        found = beam(step, initial((V,)), starts, **options)
        tokens = found.tokens
    else:
        found = jaxrnn.beam_search(step, initial((V,)), starts, **options)
        tokens = found.tokens
    for i, one in enumerate(alone):
        np.testing.assert_array_equal(tokens[:, i], one.tokens)
        np.testing.assert_array_equal(found.lengths[i], one.lengths)
        np.testing.assert_allclose(found.scores[i], one.scores, atol=1e-5)


def test_what_the_step_closes_over_keeps_its_batch_axes():
    """As the memory that attention reads: (B, V) beside a beam of any width."""
    memory = jnp.asarray(np.random.default_rng(0).normal(size=(4, V)), jnp.float32)

    def step(carry, token):
        return carry + 1, memory - 3.0 * jax.nn.one_hot(token, V)

    found = beam(
        step, jnp.zeros(4), jnp.zeros(4, jnp.int32), end=END, width=3, length=N
    )
    assert found.tokens.shape == (N, 4, 3)
    assert (
        int(found.tokens[0, 1, 0])
        in jax.lax.top_k(step(0.0, jnp.zeros(4, jnp.int32))[1], 3)[1][1]
    )


def test_symbols_that_are_ruled_out_are_never_written():
    step, initial = model(0)

    def without(carry, token):
        carry, logits = step(carry, token)
        return carry, logits.at[..., 0].set(-jnp.inf).at[..., END].set(-jnp.inf)

    found = search(without, initial((3,)), jnp.arange(3), width=4)
    assert (found.lengths == N).all()
    assert not (found.tokens == 0).any()
    nearly_none = search(
        lambda c, t: (c, jnp.full((V,), -jnp.inf).at[1].set(0.0)),
        0.0 * jnp.ones(()),
        jnp.asarray(0),
        width=4,
    )
    assert nearly_none.scores.tolist() == [0.0, *[-np.inf] * 3]
    assert (nearly_none.tokens[:, 0] == 1).all()


def test_it_stops_when_every_hypothesis_has_ended():
    """A loop that went on to a length of 10 million would not come back."""
    certain = jnp.full((V,), -20.0).at[END].set(20.0)
    found = beam(
        lambda c, t: (c, certain),
        jnp.zeros(()),
        jnp.asarray(0),
        end=END,
        width=1,
        length=10_000_000,
    )
    assert found.lengths.tolist() == [0]


MISTAKES = {
    "width": ({"width": 0}, "width must be an int of at least 1, but it is 0"),
    "length": ({"length": 2.0}, "length must be an int of at least 1, but it is 2.0"),
    "penalty": (
        {"length_penalty": -1.0},
        "length_penalty must be a finite number of at least 0, but it is -1.0",
    ),
    "end": ({"end": V}, f"end must be an int from 0 to {V - 1}"),
    "start": ({"start": jnp.zeros(3)}, "start must be an integer array"),
    "batch": (
        {"start": jnp.zeros(4, jnp.int32)},
        r"of the carry has shape \(3, 6\), but it must begin .* \(4,\)",
    ),
    "carry": (
        {"step": lambda c, t: (c[0], jnp.zeros((3, V)))},
        "the carry that step returns",
    ),
    "logits": (
        {"step": lambda c, t: (c, jnp.zeros(V))},
        r"step must return logits \(3, 'V'\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name, plain_errors):
    changes, message = MISTAKES[name]
    step, initial = model(0)
    given = {
        "step": step,
        "carry": initial((3,)),
        "start": jnp.zeros(3, jnp.int32),
        "end": END,
        "width": 2,
        "length": 4,
    }
    with pytest.raises((TypeError, ValueError), match=message):
        jaxrnn.beam_search(**{**given, **changes})
