"""Truncated BPTT (laws 23 and 29-38), and `truncated_unroll`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from reference import Lags, compiled
from subjects import (
    FEW,
    SUBJECTS,
    B,
    D,
    T,
    assert_same,
    assert_same_outcome,
    compiled_outcome,
    draw,
    looped,
    normal,
    unrolled,
)

import jaxrnn
from jaxrnn import TBPTT, Window

ALL_PAIRS = [(k1, k2) for k2 in range(1, T + 1) for k1 in range(1, k2 + 1)]
SOME_PAIRS = [(1, 3), (2, 2), (3, 4), (7, 8)]
CASES = [("elman_learned", pair) for pair in ALL_PAIRS]
CASES += [
    (name, pair)
    for name in ("lstm_all_learned", "gru", "stack", "residual")
    for pair in SOME_PAIRS
]


def squares(y, target):
    return jnp.square(y - target).mean(-1)


def tbptt_of(layer, k1, k2):
    def losses(params, carry, window):
        flags = {"mask": window.mask, "resets": window.resets}
        _, ys, carries = jaxrnn.unroll(
            layer, params, window.inputs, carry, **flags, return_carries=True
        )
        return squares(ys, window.targets), carries

    return TBPTT(losses, layer.initial_carry, k1, k2)


@functools.cache
def gradients_of(name, k1, k2, batch=()):
    """``(loss, gradients, state)`` of a sequence from its start, compiled: (params,
    window).
    """
    tbptt = tbptt_of(SUBJECTS[name], k1, k2)
    return compiled(
        lambda params, window: tbptt.value_and_grad(
            params, window, tbptt.init(params, window, batch)
        )
    )


@functools.cache
def sequence(name, flagged, batch=()):
    """Random parameters and a window of the whole sequence, with or without holes in
    its mask and resets.
    """
    inputs = draw(name, 0, batch=batch)
    targets = normal(np.random.default_rng(1), inputs.cotangents[1])
    mask, resets = (
        (inputs.mask, inputs.resets)
        if flagged
        else (jnp.ones_like(inputs.mask), jnp.zeros_like(inputs.mask))
    )
    return inputs.params, Window(inputs.xs, targets, mask, resets)


@functools.cache
def lags_of(name, flagged):
    params, window = sequence(name, flagged)
    return Lags(
        SUBJECTS[name],
        params,
        window.inputs,
        window.targets,
        squares,
        window.mask,
        window.resets,
    )


@pytest.mark.parametrize(
    "name", ["elman_learned", "lstm_all_learned", "gru", "stack", "residual"]
)
def test_the_gradient_is_the_sum_over_all_lags(name, x64):
    @compiled
    def gradient(params, window):
        def loss(params):
            ys = jaxrnn.unroll(
                SUBJECTS[name],
                params,
                window.inputs,
                mask=window.mask,
                resets=window.resets,
            )[1]
            return jnp.where(window.mask, squares(ys, window.targets), 0).sum()

        return jax.value_and_grad(loss)(params)

    for flagged in (False, True):
        lags = lags_of(name, flagged)
        assert_same(gradient(*sequence(name, flagged)), (lags.loss, lags.full()))


@pytest.mark.parametrize(("name", "pair"), CASES)
def test_tbptt_is_the_sum_over_its_lags(name, pair, x64):
    """For k1 that divide T and that do not, k2 less than T and more. Every loss
    counts once, whatever k1 and k2.
    """
    for flagged in (False, True):
        params, window = sequence(name, flagged)
        lags, valid = lags_of(name, flagged), window.mask.sum().astype(float)
        loss, gradient, state = gradients_of(name, *pair)(params, window)
        assert_same(loss * valid, lags.loss)
        assert_same(jax.tree.map(lambda g: g * valid, gradient), lags.truncated(*pair))  # noqa: B023
        if pair[1] >= T:
            assert_same(jax.tree.map(lambda g: g * valid, gradient), lags.full())  # noqa: B023
        if pair[0] == pair[1]:  # no history: the state's carry is the last one
            assert_same(state.carry, lags.carry)


def test_a_batch_is_the_mean_over_its_valid_steps(x64):
    name, pair = "gru_learned", (2, 3)
    params, window = sequence(name, True, (B,))
    loss, gradient, _ = gradients_of(name, *pair, (B,))(params, window)
    counts = window.mask.sum(0).astype(float)
    each = [
        gradients_of(name, *pair)(params, jax.tree.map(lambda a, b=b: a[:, b], window))
        for b in range(B)
    ]
    total = [
        jax.tree.map(lambda a, n=n: a * n, each[b][:2]) for b, n in enumerate(counts)
    ]
    expected = jax.tree.map(lambda *parts: sum(parts) / counts.sum(), *total)
    assert_same((loss, gradient), expected)


def test_leaving_out_mask_and_resets(x64):
    params, window = sequence("gru", False)
    bare = gradients_of("gru", 2, 5)(params, Window(window.inputs, window.targets))
    assert_same(bare[:2], gradients_of("gru", 2, 5)(params, window)[:2])


def test_an_all_masked_batch_has_no_loss_and_finite_gradients(x64):
    params, window = sequence("lstm_all_learned", True)
    nothing = Window(
        *(jnp.full_like(a, jnp.nan) for a in window[:2]),
        jnp.zeros_like(window.mask),
        window.resets,
    )
    loss, gradient, _ = gradients_of("lstm_all_learned", 2, 5)(params, nothing)
    assert loss == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_gradients_have_the_dtypes_of_their_parameters(dtype):
    cell = jaxrnn.LSTM(4, learned_initial_carry=True)
    params = cell.init(jax.random.key(0), D, dtype=dtype)
    window = Window(jnp.ones((T, D), dtype), jnp.ones((T, 4), dtype))
    tbptt = tbptt_of(cell, 2, 3)
    loss, gradient, state = compiled(
        lambda p: tbptt.value_and_grad(p, window, tbptt.init(p, window))
    )(params)
    assert loss.dtype == jnp.float32
    assert jax.tree.map(lambda a: a.dtype, gradient) == jax.tree.map(
        lambda a: a.dtype, params
    )
    assert state.carry.c.dtype == jnp.float32


# -- horizons --------------------------------------------------------------------------


def offset_tbptt(layer, k1, k2, batch=()):
    """TBPTT with a parameter of its own for every step (and stream), added to the
    input: its gradient shows the horizon.
    """

    def losses(params, carry, window):
        x, time, weight = window.inputs
        x = (
            x + jnp.tensordot(time, params["offsets"], 1)
            if batch == ()
            else x + jnp.einsum("tbs,sbd->tbd", time, params["offsets"])
        )
        _, ys, carries = jaxrnn.unroll(
            layer,
            params["cell"],
            x,
            carry,
            mask=window.mask,
            resets=window.resets,
            return_carries=True,
        )
        return weight * squares(ys, window.targets), carries

    return TBPTT(
        losses, lambda params, batch: layer.initial_carry(params["cell"], batch), k1, k2
    )


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 3), (2, 2), (2, 3), (3, 4), (2, 5)])
def test_beyond_the_horizon_the_gradient_is_zero(k1, k2, x64):
    """Step j gets gradient from the loss of step t exactly if it lies in t's window;
    the initial carry if that begins at 0.
    """
    params, window = sequence("gru_learned", False)
    tbptt = offset_tbptt(SUBJECTS["gru_learned"], k1, k2)
    params = {"cell": params, "offsets": jnp.zeros((T, D))}

    @compiled
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def gradients(params, weight):
        now = window._replace(inputs=(window.inputs, jnp.eye(T), weight))
        return tbptt.value_and_grad(params, now, tbptt.init(params, now))[1]

    gradient = gradients(params, jnp.eye(T))
    reached = np.abs(gradient["offsets"]).max(-1) > 0
    oldest = np.abs(gradient["cell"]["initial_carry"]).max(-1) > 0
    for t in range(T):
        end = min((t // k1 + 1) * k1, T)
        begin = max(0, min(t // k1 * k1, end - k2))
        assert reached[t].tolist() == [begin <= j <= t for j in range(T)]
        assert oldest[t] == (begin == 0)


def test_a_learned_initial_state_gets_gradient_from_resets(x64):
    params, window = sequence("gru_learned", False)
    resets = jnp.arange(T) == T - 2
    with_reset = gradients_of("gru_learned", 1, 2)(
        params, window._replace(mask=jnp.arange(T) == T - 1, resets=resets)
    )
    assert jnp.abs(with_reset[1]["initial_carry"]).max() > 1e-6


def test_the_bias_falls_with_k2_and_stays_below_its_bound(x64):
    """A contracting net, |J| <= beta: the bias is at most the sum over lags k >= k2
    of |dl/ds| beta^k |F|.
    """
    beta, steps, cell = 0.5, 10, jaxrnn.Elman(4)
    inputs = draw(cell, 0, steps=steps, batch=())
    orthogonal, _ = np.linalg.qr(inputs.params["recurrent_kernel"])
    params = inputs.params | {"recurrent_kernel": jnp.asarray(beta * orthogonal)}
    targets = normal(np.random.default_rng(1), inputs.cotangents[1])
    lags = Lags(cell, params, inputs.xs, targets, squares)
    full = ravel_pytree(lags.full())[0]
    biases = [
        float(jnp.linalg.norm(ravel_pytree(lags.truncated(1, k2))[0] - full))
        for k2 in range(1, steps + 1)
    ]
    # |dl_t/ds_t| is at most that of the squares with |y| < 1, |F| that of the inputs,
    # of h and of the bias, tanh' < 1.
    slope = max(
        float(jnp.linalg.norm(2 / 4 * (1 + jnp.abs(target)))) for target in targets
    )
    immediate = max(float(jnp.sqrt(jnp.square(x).sum() + 4 + 1)) for x in inputs.xs)
    bounds = [
        steps * slope * immediate * beta**k2 / (1 - beta) for k2 in range(1, steps + 1)
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(biases))
    assert all(bias <= bound for bias, bound in zip(biases, bounds, strict=True))
    assert biases[0] > 1e-3
    assert biases[-1] < 1e-14


# -- sequences in pieces ---------------------------------------------------------------


@pytest.mark.parametrize(("k1", "k2"), [(2, 2), (1, 3), (2, 8)])
def test_pieces_are_one_long_sequence(k1, k2, x64):
    """Losses and gradients of the pieces add up to the whole's, and the state hands
    everything on.
    """
    layer = SUBJECTS["gru_learned"]
    inputs, tbptt = draw(layer, 0, steps=6), tbptt_of(layer, k1, k2)
    targets = normal(np.random.default_rng(1), inputs.cotangents[1])
    run = compiled(tbptt.value_and_grad)
    for flags in (
        (jnp.ones_like(inputs.mask), jnp.zeros_like(inputs.mask)),
        (inputs.mask, inputs.resets),
    ):
        whole = Window(inputs.xs, targets, *flags)
        state = tbptt.init(inputs.params, whole, (B,))
        expected, end = sums(run(inputs.params, whole, state), whole)
        total = jax.tree.map(np.zeros_like, expected)
        for piece in (slice(0, 2), slice(2, 4), slice(4, 6)):
            part = jax.tree.map(lambda a, piece=piece: a[piece], whole)
            added, state = sums(run(inputs.params, part, state), part)
            total = jax.tree.map(np.add, total, added)
        assert_same(total, expected)
        assert_same(state.carry, end.carry)
        jax.tree.map(
            np.testing.assert_array_equal,
            (state.history, state.fresh),
            (end.history, end.fresh),
        )


def sums(result, window):
    """The means over valid steps that `TBPTT.value_and_grad` returns, as sums; and the
    state.
    """
    valid = max(float(window.mask.sum()), 1.0)
    return jax.tree.map(lambda a: np.asarray(a) * valid, result[:2]), result[2]


def test_pieces_shorter_than_a_window(x64):
    """One step at a time with k1 = 2: every loss counts once, and the carry goes on."""
    params, window = sequence("gru", False)
    tbptt = tbptt_of(SUBJECTS["gru"], 2, 3)
    run, state, total = compiled(tbptt.value_and_grad), tbptt.init(params, window), 0.0
    for t in range(T):
        loss, _, state = run(
            params, jax.tree.map(lambda a, t=t: a[t : t + 1], window), state
        )
        total += loss
    assert_same(total, lags_of("gru", False).loss)


def test_streams_do_not_touch_each_other(x64):
    params, window = sequence("gru_learned", True, (B,))
    tbptt = offset_tbptt(SUBJECTS["gru_learned"], 2, 3, (B,))
    params = {"cell": params, "offsets": jnp.zeros((T, B, D))}
    time, weight = jnp.broadcast_to(jnp.eye(T)[:, None], (T, B, T)), jnp.ones((T, B))

    @compiled
    def gradients(xs):
        now = window._replace(inputs=(xs, time, weight))
        return tbptt.value_and_grad(params, now, tbptt.init(params, now, (B,)))[1][
            "offsets"
        ]

    one, two = gradients(window.inputs), gradients(window.inputs.at[:, 0].add(1.0))
    np.testing.assert_array_equal(one[:, 1:], two[:, 1:])
    assert jnp.abs(one[:, 0] - two[:, 0]).max() > 1e-6


# -- online updates --------------------------------------------------------------------


def test_updates_are_windows_one_after_another(x64):
    """k1 = k2 by hand: each window from the last carry, held constant, the
    parameters moved in between.
    """
    layer, rate, k = SUBJECTS["gru"], 0.1, 2
    inputs = draw(layer, 0, steps=6)
    params, targets = (
        inputs.params,
        normal(np.random.default_rng(1), inputs.cotangents[1]),
    )
    window = Window(inputs.xs, targets, inputs.mask, inputs.resets)
    tbptt, optimizer = tbptt_of(layer, k, k), optax.sgd(rate)
    actual, _, loss, _ = compiled(functools.partial(tbptt.update, optimizer))(
        params, optimizer.init(params), window, tbptt.init(params, window, (B,))
    )
    windows = [
        jax.tree.map(lambda a, s=s: a[s : s + k], window) for s in range(0, 6, k)
    ]
    carry, total, per_window = (
        layer.initial_carry(params, (B,)),
        0.0,
        window.mask.sum().astype(float) / len(windows),
    )

    @compiled
    def one(params, carry, part):
        def summed(params):
            carry_after, ys = jaxrnn.unroll(
                layer, params, part.inputs, carry, mask=part.mask, resets=part.resets
            )
            return jnp.where(part.mask, squares(ys, part.targets), 0).sum(), carry_after

        return jax.value_and_grad(summed, has_aux=True)(params)

    for part in windows:
        (part_loss, carry), gradient = one(params, carry, part)
        params = jax.tree.map(lambda p, g: p - rate * g / per_window, params, gradient)
        total += part_loss
    assert_same(actual, params)
    assert_same(loss, total / window.mask.sum().astype(float))


def test_slow_updates_add_up_to_the_gradient(x64):
    params, window = sequence("lstm_all_learned", True, (B,))
    rate, windows = 1e-8, 3
    tbptt, optimizer = tbptt_of(SUBJECTS["lstm_all_learned"], 2, 3), optax.sgd(rate)
    update = compiled(functools.partial(tbptt.update, optimizer))
    moved, _, _, _ = update(
        params, optimizer.init(params), window, tbptt.init(params, window, (B,))
    )
    gradient = gradients_of("lstm_all_learned", 2, 3, (B,))(params, window)[1]
    assert_same(
        jax.tree.map(lambda a, b: (a - b) / (rate * windows), params, moved),
        gradient,
        1e-5,
    )


def test_a_rate_of_zero_changes_nothing_and_k1_and_k2_do_not_change_the_loss(x64):
    params, window = sequence("gru_learned", True, (B,))
    losses = []
    for k1, k2 in ((1, 1), (2, 4), (5, 5)):
        tbptt, optimizer = tbptt_of(SUBJECTS["gru_learned"], k1, k2), optax.sgd(0.0)
        update = compiled(functools.partial(tbptt.update, optimizer))
        after, _, loss, _ = update(
            params, optimizer.init(params), window, tbptt.init(params, window, (B,))
        )
        assert_same(after, params, 0)
        losses.append(loss)
    assert_same(losses, [losses[0]] * 3)


def test_a_key_reaches_every_window_and_differs_between_them(x64):
    layer = jaxrnn.stack(jaxrnn.Elman(4), jaxrnn.dropout(0.5))
    inputs = draw(jaxrnn.inference(layer), 0)
    seen = []

    def losses(params, carry, window):
        jax.debug.callback(
            lambda key: seen.append(tuple(np.asarray(key))),
            jax.random.key_data(window.key),
        )
        _, ys, carries = jaxrnn.unroll(
            layer, params, window.inputs, carry, key=window.key, return_carries=True
        )
        return squares(ys, window.targets), carries

    tbptt, window = (
        TBPTT(losses, layer.initial_carry, 2),
        Window(inputs.xs, inputs.cotangents[1]),
    )
    start = tbptt.init(inputs.params, window, (B,))
    run = compiled(
        lambda key: tbptt.value_and_grad(inputs.params, window, start, key=key)[0]
    )
    loss = [run(jax.random.key(seed)) for seed in (0, 0, 1)]
    jax.effects_barrier()
    assert loss[0] == loss[1] != loss[2]
    assert len(set(seen)) == 6  # three windows, two keys


# -- truncated_unroll ------------------------------------------------------------------


def truncated(layer, window, reverse=False):
    def unrolling(params, xs, carry, mask, resets):
        how = {
            "mask": mask,
            "resets": resets,
            "reverse": reverse,
            "return_carries": True,
        }
        return jaxrnn.truncated_unroll(layer, params, xs, carry, window=window, **how)

    return compiled_outcome(unrolling)


@pytest.mark.parametrize(
    ("window", "reverse"), [(2, False), (2, True)], ids=["forwards", "backwards"]
)
@pytest.mark.parametrize("name", [*FEW, "residual", "bidirectional"])
def test_truncated_unroll_is_a_loop_with_gradients_stopped_where_windows_begin(
    name, window, reverse, x64
):
    inputs = draw(name, 0)
    actual = truncated(SUBJECTS[name], window, reverse)(*inputs)
    assert_same_outcome(actual, looped(name, inputs, reverse, window))
    full = unrolled(name, reverse)(*inputs)
    assert_same((actual.values, actual.carries), (full.values, full.carries))


@pytest.mark.parametrize("window", [1, 3, 4])
def test_windows_of_any_length(window, x64):
    inputs = draw("gru_learned", 0)
    assert_same_outcome(
        truncated(SUBJECTS["gru_learned"], window)(*inputs),
        looped("gru_learned", inputs, window=window),
    )


@pytest.mark.parametrize("window", [T, T + 3])
@pytest.mark.parametrize("name", ["gru_learned", "stack"])
def test_a_window_of_the_whole_sequence_cuts_nothing(name, window, x64):
    inputs = draw(name, 0)
    assert_same_outcome(
        truncated(SUBJECTS[name], window)(*inputs), unrolled(name)(*inputs)
    )


def test_truncated_unroll_of_no_steps(x64):
    inputs = draw("gru", 0, steps=0)
    assert_same(truncated(SUBJECTS["gru"], 2)(*inputs).values[0], inputs.carry)


@pytest.mark.parametrize(
    "layer",
    [
        jaxrnn.stack(
            jaxrnn.dropout(0.3),
            jaxrnn.LSTM(4),
            jaxrnn.dropout(0.3, variational=True),
            jaxrnn.GRU(2),
        ),
        jaxrnn.stack(
            jaxrnn.recurrent_dropout(jaxrnn.GRU(4), 0.4),
            jaxrnn.zoneout(jaxrnn.LSTM(4), (0.3, 0.2)),
        ),
        jaxrnn.bidirectional(jaxrnn.zoneout(jaxrnn.Elman(4), 0.3)),
    ],
    ids=["dropout", "recurrent_noise", "bidirectional"],
)
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_truncated_unroll_draws_what_unroll_draws(layer, reverse, x64):
    inputs, key = draw(jaxrnn.inference(layer), 0), jax.random.key(7)
    how = {"mask": inputs.mask, "resets": inputs.resets, "reverse": reverse, "key": key}
    cut = compiled(lambda *a: jaxrnn.truncated_unroll(layer, *a, window=2, **how))(
        *inputs[:3]
    )
    assert_same(cut, compiled(lambda *a: jaxrnn.unroll(layer, *a, **how))(*inputs[:3]))
