"""Dropout, recurrent dropout, zoneout and state noise: what they draw, and what
`inference` makes of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import LINEAR, B, D, T, assert_same, compiled_outcome, draw

import jaxrnn
from jaxrnn.layers import state_noise

KEY = jax.random.key(3)
RATE = 0.3
NOISY = {
    "dropout": jaxrnn.stack(jaxrnn.dropout(RATE), jaxrnn.LSTM(4)),
    "dropout_same_every_step": jaxrnn.stack(
        jaxrnn.dropout(RATE, variational=True), jaxrnn.LSTM(4)
    ),
    "recurrent_dropout": jaxrnn.recurrent_dropout(jaxrnn.LSTM(4), RATE),
    "zoneout": jaxrnn.zoneout(jaxrnn.LSTM(4), RATE),
    "state_noise": state_noise(jaxrnn.LSTM(4), RATE),
    "state_noise_linear": state_noise(jaxrnn.MinGRU(4), RATE),
    "residual": jaxrnn.residual(jaxrnn.zoneout(jaxrnn.GRU(D), RATE)),
    "bidirectional": jaxrnn.bidirectional(
        jaxrnn.recurrent_dropout(jaxrnn.GRU(4), RATE)
    ),
}


@dataclasses.dataclass(frozen=True)
class Counter(jaxrnn.Cell):
    """Its carry is an integer, to which no noise can be added."""

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros(batch_shape, jnp.int32)

    def step(self, params, carry, z):
        return carry + 1


def dropped(layer, xs, key=KEY):
    """What a dropout layer gives for ``xs``."""
    return jaxrnn.unroll(layer, {}, xs, key=key)[1]


@pytest.mark.parametrize("name", NOISY)
def test_a_key_is_demanded_and_decides_everything(name):
    layer = NOISY[name]
    inputs = draw(jaxrnn.inference(layer), 0)
    with pytest.raises(
        ValueError, match=r"needs key=jax\.random\.key.*jaxrnn\.inference"
    ):
        jaxrnn.unroll(layer, *inputs[:3])
    run = compiled(lambda key: jaxrnn.unroll(layer, *inputs[:3], key=key)[1])
    one, same, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert jnp.abs(one - other).max() > 1e-3
    still = compiled(lambda: jaxrnn.unroll(jaxrnn.inference(layer), *inputs[:3])[1])()
    assert jnp.abs(one - still).max() > 1e-3
    with pytest.raises(
        ValueError, match=r"a key was given, but .* draws no random numbers"
    ):
        jaxrnn.unroll(jaxrnn.inference(layer), *inputs[:3], key=KEY)


@pytest.mark.parametrize("name", NOISY)
def test_inference_keeps_parameters_and_carry(name):
    layer, still = NOISY[name], jaxrnn.inference(NOISY[name])
    params = layer.init(KEY, D)
    jax.tree.map(np.testing.assert_array_equal, params, still.init(KEY, D))
    jax.tree.map(
        np.testing.assert_array_equal,
        layer.initial_carry(params, (B,)),
        still.initial_carry(params, (B,)),
    )
    assert layer.requires_key
    assert not still.requires_key
    assert jaxrnn.inference(still) == still
    assert jaxrnn.inference(jaxrnn.LSTM(4)) == jaxrnn.LSTM(4)


@pytest.mark.parametrize(
    ("noisy", "plain"),
    [
        (
            jaxrnn.stack(jaxrnn.dropout(0), jaxrnn.GRU(4)),
            jaxrnn.stack(jaxrnn.inference(jaxrnn.dropout(0.5)), jaxrnn.GRU(4)),
        ),
        (jaxrnn.recurrent_dropout(jaxrnn.LSTM(4), 0.0), jaxrnn.LSTM(4)),
        (jaxrnn.zoneout(jaxrnn.LSTM(4), 0.0), jaxrnn.LSTM(4)),
        (jaxrnn.inference(jaxrnn.zoneout(jaxrnn.LSTM(4), 0.0)), jaxrnn.LSTM(4)),
        (jaxrnn.inference(jaxrnn.recurrent_dropout(jaxrnn.GRU(4), 0.9)), jaxrnn.GRU(4)),
        (state_noise(jaxrnn.LSTM(4), 0.0), jaxrnn.LSTM(4)),
        (jaxrnn.inference(state_noise(jaxrnn.GRU(4), 5)), jaxrnn.GRU(4)),
    ],
    ids=[
        "dropout",
        "recurrent_dropout",
        "zoneout",
        "zoneout_inference",
        "recurrent_dropout_inference",
        "state_noise",
        "state_noise_inference",
    ],
)
def test_a_rate_of_zero_is_no_noise(noisy, plain, x64):
    inputs = draw(plain, 0)
    key = {"key": KEY} if noisy.requires_key else {}
    flags = {"mask": inputs.mask, "resets": inputs.resets}
    actual = compiled(lambda *a: jaxrnn.unroll(noisy, *a, **flags, **key))(*inputs[:3])
    assert_same(
        actual, compiled(lambda *a: jaxrnn.unroll(plain, *a, **flags))(*inputs[:3])
    )


def test_dropout_drops_its_share_and_keeps_the_mean():
    ys = dropped(jaxrnn.dropout(RATE), jnp.full((100, 20, 10), 2.0))
    zero = np.asarray(ys == 0)
    np.testing.assert_allclose(ys[~zero], 2 / (1 - RATE), rtol=1e-6)
    deviation = np.sqrt(RATE * (1 - RATE) / zero.size)
    assert abs(zero.mean() - RATE) < 4 * deviation
    assert abs(float(ys.mean()) - 2) < 4 * 2 * deviation / (1 - RATE)
    # Every step, stream and feature by itself: neighbours agree as often as chance
    # says.
    for axis in range(3):
        agree = (np.diff(zero, axis=axis) == 0).mean()
        assert abs(agree - (RATE**2 + (1 - RATE) ** 2)) < 0.03


def test_dropout_the_same_at_every_step():
    ys = dropped(jaxrnn.dropout(RATE, variational=True), jnp.ones((5, 50, 40)))
    np.testing.assert_array_equal(ys, np.broadcast_to(ys[:1], ys.shape))
    assert abs(float((ys[0] == 0).mean()) - RATE) < 4 * np.sqrt(
        RATE * (1 - RATE) / 2000
    )
    # a mask for each sequence
    assert len({tuple(row) for row in (np.asarray(ys[0]) == 0).tolist()}) > 45


def test_two_dropouts_in_a_stack_draw_apart():
    twice = dropped_stack = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.dropout(0.5))
    _, ys = jaxrnn.unroll(
        twice, dropped_stack.init(KEY, 1), jnp.ones((1000, 10)), key=KEY
    )
    # one mask used twice would give 0.5
    assert abs(float((ys == 0).mean()) - 0.75) < 0.03


@pytest.mark.parametrize("carry_is", ["array", "lstm"])
def test_recurrent_dropout_has_one_mask_for_all_steps(carry_is):
    """h_t = m h_{t-1} / (1 - rate) for a linear net with U = I: a unit is dropped at
    every step or at none.
    """
    units, steps = 2000, 4
    if carry_is == "array":
        cell = jaxrnn.Elman(units, activation=jnp.abs)
        params = {
            "input_kernel": jnp.zeros((1, units)),
            "recurrent_kernel": jnp.eye(units),
            "bias": jnp.zeros(units),
        }
        layer = jaxrnn.recurrent_dropout(cell, RATE)
        _, hs = jaxrnn.unroll(
            layer, params, jnp.zeros((steps, 1)), jnp.ones(units), key=KEY
        )
        expected = (
            np.where(hs[0] == 0, 0, 1 / (1 - RATE))[None]
            ** np.arange(1, steps + 1)[:, None]
        )
        np.testing.assert_allclose(hs, expected, rtol=1e-5)
        assert abs(float((hs[0] == 0).mean()) - RATE) < 4 * np.sqrt(
            RATE * (1 - RATE) / units
        )
    else:  # the state itself is not dropped: an LSTM that keeps c for ever keeps it
        cell = jaxrnn.LSTM(8)
        params = cell.init(KEY, 1) | {
            "bias": jnp.repeat(jnp.array([-1e3, 1e3, 0.0, 0.0]), 8)
        }
        carry = jaxrnn.LSTMState(jnp.ones(8), jnp.arange(8.0))
        (_, c), _ = jaxrnn.unroll(
            jaxrnn.recurrent_dropout(cell, RATE),
            params,
            jnp.zeros((steps, 1)),
            carry,
            key=KEY,
        )
        np.testing.assert_array_equal(c, carry.c)


def test_recurrent_dropout_leaves_what_a_gru_keeps():
    cell = jaxrnn.GRU(8, update_bias=1e3)
    carry = jnp.arange(8.0)
    last, _ = jaxrnn.unroll(
        jaxrnn.recurrent_dropout(cell, RATE),
        cell.init(KEY, 1),
        jnp.zeros((4, 1)),
        carry,
        key=KEY,
    )
    np.testing.assert_array_equal(last, carry)


def test_zoneout_keeps_its_share_of_old_values(x64):
    """Every unit is either its old value or the cell's new one, in each leaf of the
    carry at its own rate, drawn each step.
    """
    cell, units, rates = jaxrnn.LSTM(200), 200, (0.1, 0.4)
    random = np.random.default_rng(0)
    params, xs = cell.init(KEY, D), jnp.asarray(random.normal(size=(20, 4, D)))
    layer = jaxrnn.zoneout(cell, rates)
    start = jaxrnn.LSTMState(
        *(jnp.asarray(random.normal(size=(4, units))) for _ in range(2))
    )
    last, ys, carries = jaxrnn.unroll(
        layer, params, xs, start, key=KEY, return_carries=True
    )
    np.testing.assert_array_equal(ys, carries.h)
    before = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), start, carries
    )
    new = jax.vmap(lambda s, x: cell(params, s, x)[0])(before, xs)
    all_kept = [
        np.isclose(actual, old, rtol=0, atol=1e-13)
        for actual, old in zip(carries, before, strict=True)
    ]
    # h and c are drawn apart
    assert abs((all_kept[0] & all_kept[1]).mean() - rates[0] * rates[1]) < 0.01
    for rate, kept, fresh, actual in zip(rates, all_kept, new, carries, strict=True):
        assert (kept | np.isclose(actual, fresh, rtol=0, atol=1e-13)).all()
        assert abs(kept.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / kept.size)
        assert (
            abs((np.diff(kept, axis=0) == 0).mean() - (rate**2 + (1 - rate) ** 2))
            < 0.03
        )
    assert_same(jax.tree.map(lambda a: a[-1], carries), last)


def test_zoneout_in_inference_is_its_expectation(x64):
    cell, rates = jaxrnn.LSTM(4), (0.2, 0.5)
    params, xs, carry, *_ = draw(cell, 0)
    layer = jaxrnn.zoneout(cell, rates)
    new = cell(params, carry, xs[0])[0]
    mean = jaxrnn.LSTMState(
        *(
            rate * old + (1 - rate) * s
            for rate, old, s in zip(rates, carry, new, strict=True)
        )
    )
    assert_same(jaxrnn.inference(layer)(params, carry, xs[0])[0], mean)
    keys = jax.random.split(KEY, 4000)
    drawn = jax.jit(jax.vmap(lambda key: layer(params, carry, xs[0], key=key)[0]))(keys)
    for samples, expected in zip(drawn, mean, strict=True):
        assert (
            jnp.abs(samples.mean(0) - expected)
            <= 5 * samples.std(0) / np.sqrt(4000) + 1e-12
        ).all()


def test_noise_under_masks_and_resets(x64):
    """A zoned-out sequence is still held by its mask, and a reset still gives the
    initial carry.
    """
    layer = jaxrnn.zoneout(jaxrnn.GRU(4), 0.5)
    params, xs, carry, *_ = draw(jaxrnn.inference(layer), 0)
    mask = jnp.arange(T)[:, None] < jnp.array([[T, 2, 0]])
    how = {"key": KEY, "return_carries": True}
    last, ys, carries = jaxrnn.unroll(
        layer, params, jnp.where(mask[..., None], xs, jnp.nan), carry, mask=mask, **how
    )
    np.testing.assert_array_equal(last[2], carry[2])
    np.testing.assert_array_equal(last[1], carries[1, 1])
    assert not ys[2:, 1].any()
    one, two = (
        jaxrnn.unroll(
            layer,
            params,
            xs,
            start,
            resets=jnp.broadcast_to(jnp.arange(T)[:, None] == 2, (T, B)),
            **how,
        )[1]
        for start in (carry, 2 * carry)
    )
    np.testing.assert_array_equal(one[2:], two[2:])
    assert jnp.abs(one[0] - two[0]).max() > 1e-3


@pytest.mark.parametrize("name", NOISY)
def test_every_engine_draws_the_same(name, x64):
    layer = NOISY[name]
    inputs = draw(jaxrnn.inference(layer), 0)
    how = {"mask": inputs.mask, "resets": inputs.resets, "key": KEY}
    expected, *others = (
        compiled(lambda *a, e=engine: jaxrnn.unroll(layer, *a, engine=e, **how))(
            *inputs[:3]
        )
        for engine in (None, jaxrnn.Scan(unroll=2, hoist=False), jaxrnn.Checkpoint(2))
    )
    for other in others:
        assert_same(other, expected)


@pytest.mark.parametrize("name", NOISY)
def test_keys_can_be_mapped(name, x64):
    """vmap over keys and sequences is a loop over them."""
    layer = NOISY[name]
    inputs, keys = draw(jaxrnn.inference(layer), 0), jax.random.split(KEY, B)
    run = lambda xs, carry, key: jaxrnn.unroll(layer, inputs.params, xs, carry, key=key)  # noqa: E731
    mapped = compiled(jax.vmap(run, in_axes=(1, 0, 0), out_axes=(0, 1)))(
        *inputs[1:3], keys
    )
    single = compiled(run)
    for b in range(B):
        last, ys = single(
            inputs.xs[:, b], jax.tree.map(lambda a, b=b: a[b], inputs.carry), keys[b]
        )
        assert_same(
            (jax.tree.map(lambda a, b=b: a[b], mapped[0]), mapped[1][:, b]), (last, ys)
        )


@pytest.mark.parametrize("cell", [jaxrnn.LSTM(50), jaxrnn.MinGRU(50), jaxrnn.LRU(50)])
def test_state_noise_is_normal_and_enters_h_alone(cell, x64):
    """What a step makes of the carry before, taken from the carry after it, is white
    noise: over time, streams and units.
    """
    random = np.random.default_rng(0)
    params, xs = cell.init(KEY, D), jnp.asarray(random.normal(size=(40, 5, D)))
    layer = state_noise(cell, 0.2)
    _, ys, carries = jaxrnn.unroll(layer, params, xs, key=KEY, return_carries=True)
    start = cell.initial_carry(params, (5,))
    before = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), start, carries
    )
    new, _ = jax.vmap(lambda s, x: cell(params, s, x))(before, xs)
    assert_same(ys, jax.vmap(lambda s, x: cell.output(params, s, x))(carries, xs))
    if isinstance(cell, jaxrnn.LSTM):
        assert_same(carries.c, new.c)
        carries, new = carries.h, new.h
    noise = np.asarray(carries - new) / 0.2
    count = noise.size
    assert abs(noise.mean()) < 4 / np.sqrt(count)
    assert abs((np.abs(noise) ** 2).mean() - 1) < 4 * np.sqrt(2 / count)
    for axis in range(3):
        one, other = np.delete(noise, 0, axis), np.delete(noise, -1, axis)
        assert abs((one * other.conj()).mean()) < 4 / np.sqrt(one.size)
    if jnp.iscomplexobj(noise):
        assert abs((noise**2).mean()) < 4 * np.sqrt(2 / count)
    else:  # a normal distribution has a kurtosis of 3, with variance 24 / n
        assert abs((noise**4).mean() - 3) < 4 * np.sqrt(96 / count)


def test_state_noise_under_masks_and_resets(x64):
    """The carry is held at masked steps, and a reset begins without noise."""
    layer = state_noise(jaxrnn.GRU(4), 0.5)
    params, xs, carry, *_ = draw(jaxrnn.inference(layer), 0)
    mask = jnp.arange(T)[:, None] < jnp.array([[T, 2, 0]])
    last, ys, carries = jaxrnn.unroll(
        layer,
        params,
        jnp.where(mask[..., None], xs, jnp.nan),
        carry,
        mask=mask,
        key=KEY,
        return_carries=True,
    )
    np.testing.assert_array_equal(last[2], carry[2])
    np.testing.assert_array_equal(last[1], carries[1, 1])
    assert not ys[2:, 1].any()
    resets = jnp.broadcast_to(jnp.arange(T)[:, None] == 2, (T, B))
    one, two = (
        jaxrnn.unroll(layer, params, xs, start, resets=resets, key=KEY)[1]
        for start in (carry, 2 * carry)
    )
    np.testing.assert_array_equal(one[2:], two[2:])
    assert jnp.abs(one[0] - two[0]).max() > 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Parts:
    """A carry that is no NamedTuple."""

    c: jax.Array
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class OfParts(jaxrnn.LinearCell):
    hidden_size: int

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = super().initial_carry(params, batch_shape, dtype)
        return Parts(zeros, zeros)

    def affine(self, params, z):
        drive = z @ params["kernel"]
        return Parts(0.5, 0.5), Parts(drive, drive)


def test_state_noise_enters_h_of_a_dataclass():
    cell = OfParts(4)
    params, xs = cell.init(KEY, D), jnp.ones((T, B, D))
    layer = state_noise(cell, 0.5)
    last, ys = jaxrnn.unroll(layer, params, xs, key=KEY)
    np.testing.assert_array_equal(ys[-1], last.h)
    np.testing.assert_allclose(last.c, jaxrnn.unroll(cell, params, xs)[0].c, 1e-6)
    assert jnp.abs(last.h - last.c).max() > 1e-3


@pytest.mark.parametrize("name", ["min_gru", "lru", "user_linear"])
def test_a_linear_cell_with_noise_is_linear(name, x64):
    layer, inputs = state_noise(LINEAR[name], 0.3), draw(name, 0)
    how = {"mask": inputs.mask, "resets": inputs.resets, "key": KEY}
    expected, actual = (
        compiled_outcome(
            lambda p, x, c, e=engine: jaxrnn.unroll(layer, p, x, c, engine=e, **how)
        )(*inputs[:4])
        for engine in (jaxrnn.Scan(), jaxrnn.Associative(2))
    )
    assert_same(actual.values, expected.values)
    assert_same(actual.gradients, expected.gradients)


def test_a_stream_of_noisy_steps_and_a_context(x64):
    """A streaming call is an unroll of one step; a cell's context reaches it."""

    @dataclasses.dataclass(frozen=True)
    class Pulled(jaxrnn.Cell):
        hidden_size: int
        takes_context = True

        def step(self, params, carry, z, context):
            return jnp.tanh(params * carry + z + context)

    layer, params = state_noise(Pulled(D), 0.1), jnp.asarray(0.5)
    xs, context = draw(jaxrnn.Elman(D), 0).xs[:1], jnp.ones((B, D))
    carry = jnp.zeros((B, D))
    last, ys = jaxrnn.unroll(layer, params, xs, carry, key=KEY, context=context)
    one = layer(params, carry, xs[0], key=KEY, context=context)
    assert_same(one, (last, ys[0]))
    noise = 0.1 * jax.random.normal(KEY, (1, B, D))[0]
    assert_same(last, jnp.tanh(xs[0] + context) + noise)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: state_noise(jaxrnn.stack(jaxrnn.GRU(4)), 0.1),
            TypeError,
            "state_noise wraps a cell, but got the layer Stack: wrap the cells inside",
        ),
        (lambda: state_noise(jaxrnn.GRU, 0.1), TypeError, "GRU"),
        (
            lambda: state_noise(jaxrnn.GRU(4), -0.1),
            ValueError,
            r"std must be a finite number of at least 0, .* but it is -0\.1",
        ),
        (lambda: state_noise(jaxrnn.GRU(4), jnp.inf), ValueError, "but it is inf"),
        (lambda: state_noise(jaxrnn.GRU(4), True), ValueError, "but it is True"),
        (
            lambda: jaxrnn.unroll(
                state_noise(Counter(), 0.1), (), jnp.ones((T, D)), key=KEY
            ),
            TypeError,
            r"the carry of Counter is .* int32, but noise is added to its part named h",
        ),
    ],
)
def test_what_cannot_be_noisy_is_refused(make, error, words, plain_errors):
    with pytest.raises(error, match=words):
        make()
