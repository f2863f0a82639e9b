"""Sampling by one-step calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled

import jaxrnn
from jaxrnn.decoding.sampling import generate

V, H = 7, 5
CELL = jaxrnn.stack(jaxrnn.GRU(H), jaxrnn.LSTM(H))
PARAMS = {
    "cell": CELL.init(jax.random.key(0), V),
    "out": 3 * jax.random.normal(jax.random.key(1), (H, V)),
}


def step(carry, token):
    carry, h = CELL(PARAMS["cell"], carry, jax.nn.one_hot(token, V))
    return carry, h @ PARAMS["out"]


def by_hand(prompt, length):
    """Greedy generation as a Python loop: tokens, logits and the carry after the
    last token that was read.
    """
    one = jax.jit(step)
    carry = CELL.initial_carry(PARAMS["cell"], prompt.shape[1:])
    for token in prompt:
        carry, logits = one(carry, token)
    tokens, all_logits = [], []
    for n in range(length):
        tokens.append(jnp.argmax(logits, -1))
        all_logits.append(logits)
        if n + 1 < length:
            carry, logits = one(carry, tokens[-1])
    return jnp.stack(tokens), jnp.stack(all_logits), carry


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize(("prompt_length", "length"), [(1, 1), (1, 6), (4, 1), (4, 6)])
def test_greedy_is_a_python_loop(batch, prompt_length, length):
    prompt = jnp.asarray(
        np.random.default_rng(0).integers(0, V, (prompt_length, *batch)), jnp.int32
    )
    carry = CELL.initial_carry(PARAMS["cell"], batch)
    actual = compiled(
        lambda prompt, carry: generate(step, carry, prompt, length, temperature=0)
    )(prompt, carry)
    tokens, logits, last = by_hand(prompt, length)
    assert actual.tokens.dtype == prompt.dtype
    np.testing.assert_array_equal(actual.tokens, tokens)
    np.testing.assert_allclose(actual.logits, logits, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual.carry, last
    )


def test_greedy_goes_on_where_it_stopped():
    """The last token has not been read yet: given as the next prompt it continues
    the text.
    """
    prompt = jnp.array([1, 2])
    whole = generate(step, CELL.initial_carry(PARAMS["cell"]), prompt, 8, temperature=0)
    first = generate(step, CELL.initial_carry(PARAMS["cell"]), prompt, 3, temperature=0)
    rest = generate(step, first.carry, first.tokens[-1:], 5, temperature=0)
    np.testing.assert_array_equal(
        jnp.concatenate([first.tokens, rest.tokens]), whole.tokens
    )


LOGITS = jnp.array([2.0, 1.0, 0.0, -1.0, 1.5])
DRAWS = 20000


def frequencies(**options):
    """How often each symbol is drawn by a model whose logits are always the same."""
    constant = lambda carry, token: (carry, jnp.broadcast_to(LOGITS, (*token.shape, 5)))  # noqa: E731
    run = compiled(
        lambda key: generate(
            constant,
            (),
            jnp.zeros((1, 100), jnp.int32),
            DRAWS // 100,
            key=key,
            **options,
        )
    )
    drawn = run(jax.random.key(5))
    assert drawn.tokens.shape == (DRAWS // 100, 100)
    # before temperature and top-k
    np.testing.assert_array_equal(drawn.logits[3, 4], LOGITS)
    return np.bincount(np.asarray(drawn.tokens).ravel(), minlength=5) / DRAWS


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(0.5, None), (1.0, None), (3.0, 3), (1.0, 5), (1.0, 1)]
)
def test_frequencies_are_the_softmax(temperature, top_k):
    kept = np.argsort(-LOGITS)[: top_k or 5]
    weights = np.zeros(5)
    weights[kept] = np.exp(LOGITS[kept] / temperature)
    expected = weights / weights.sum()
    actual = frequencies(temperature=temperature, top_k=top_k)
    assert (
        np.abs(actual - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / DRAWS)
    ).all()


def test_top_k_keeps_k_symbols_also_where_they_are_equally_likely():
    constant = lambda carry, token: (carry, jnp.zeros((*token.shape, 5)))  # noqa: E731
    drawn = generate(
        constant, (), jnp.zeros((1, 100), jnp.int32), 10, top_k=2, key=jax.random.key(0)
    )
    assert len(np.unique(drawn.tokens)) == 2


def test_streams_and_steps_are_drawn_apart_and_the_key_decides():
    constant = lambda carry, token: (carry, jnp.zeros((*token.shape, 2)))  # noqa: E731
    run = compiled(
        lambda key: (
            generate(constant, (), jnp.zeros((1, 40), jnp.int32), 40, key=key).tokens
        )
    )
    one, same, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert abs(float((one[1:] == one[:-1]).mean()) - 0.5) < 0.06
    assert abs(float((one[:, 1:] == one[:, :-1]).mean()) - 0.5) < 0.06


def test_the_prompt_is_read_and_not_overwritten():
    """A model that repeats the token before the one it is given shows what it has
    read.
    """
    echo = lambda last, token: (token, jax.nn.one_hot(last, V))  # noqa: E731
    drawn = generate(echo, jnp.array(0), jnp.array([3, 5, 6]), 4, temperature=0)
    # Having read 6 it says 5; reading that 5 it says 6; and so on.
    np.testing.assert_array_equal(drawn.tokens, [5, 6, 5, 6])


def test_under_vmap_and_jit():
    prompts = jnp.asarray(np.random.default_rng(0).integers(0, V, (4, 3)), jnp.int32)

    def one(prompt):
        return generate(
            step, CELL.initial_carry(PARAMS["cell"]), prompt, 5, temperature=0
        ).tokens

    batched = generate(
        step, CELL.initial_carry(PARAMS["cell"], (3,)), prompts, 5, temperature=0
    ).tokens
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(one, in_axes=1, out_axes=1))(prompts), batched
    )
