"""Truncation: random cuts (ARTBP), the bias of TBPTT, and adaptive truncation."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from reference import Lags, compiled
from subjects import (
    SUBJECTS,
    D,
    assert_same,
    assert_same_outcome,
    compiled_outcome,
    draw,
    looped,
    normal,
    stepped,
    unrolled,
)

import jaxrnn
from jaxrnn import ARTBP, TBPTT, Window
from jaxrnn.diagnostics import adaptive_truncation, truncation_bias

STEPS = 6
PATTERNS = np.array(
    list(itertools.product([False, True], repeat=STEPS))
).T  # (T, 2^T): each a stream
HEAVY, CONSTANT = ARTBP(2.0, 3.0), ARTBP(2.5, math.inf)
NAMES = ["elman_learned", "lstm_all_learned", "stack", "residual"]


def squares(y, target):
    return jnp.square(y - target).mean(-1)


@functools.cache
def sequence(name, flagged):
    """Random parameters and a window of one sequence, with or without holes in its
    mask and resets.
    """
    inputs = draw(name, 3, steps=STEPS, batch=())
    targets = normal(np.random.default_rng(1), inputs.cotangents[1])
    flags = (
        (np.array([1, 1, 0, 1, 1, 1], bool), np.array([0, 0, 0, 0, 1, 0], bool))
        if flagged
        else (None, None)
    )
    return inputs.params, Window(inputs.xs, targets, *flags)


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


def valid_steps(window):
    return float(STEPS if window.mask is None else window.mask.sum())


def spread(window, streams=PATTERNS.shape[1]):
    """The same sequence in as many streams as there are patterns of cuts."""
    return jax.tree.map(
        lambda a: jnp.broadcast_to(a[:, None], (len(a), streams, *a.shape[1:])), window
    )


def scale_and_weight(artbp, window):
    """Of every pattern of cuts: its gradient scale, and its probability."""
    scale, log_probability = artbp.scale_of(
        jnp.asarray(PATTERNS), window.mask, window.resets
    )
    weight = jnp.exp(log_probability)
    np.testing.assert_allclose(weight.sum(), 1, rtol=1e-12)
    assert int((weight > 0).sum()) > STEPS
    return scale, weight


# -- the scale -------------------------------------------------------------------------


def scaled_by_hand(layer, inputs, scale, reverse=False):
    """Backpropagation in a Python loop, the cotangent of the carry that enters each
    step multiplied by its scale.
    """
    order = range(len(scale) - 1, -1, -1) if reverse else range(len(scale))
    params, xs, carry, (carry_cotangent, y_cotangents), mask, resets = inputs
    one, before, x_gradients, total = (
        stepped(layer),
        {},
        [None] * len(scale),
        jax.tree.map(np.zeros_like, params),
    )
    for t in order:
        before[t] = carry
        carry = one(
            params, xs[t], carry, (carry_cotangent, y_cotangents[t]), mask[t], resets[t]
        ).values[0]
    for t in reversed(order):
        now = (carry_cotangent, y_cotangents[t])
        immediate, x_gradients[t], cotangent = one(
            params, xs[t], before[t], now, mask[t], resets[t]
        ).gradients
        total = jax.tree.map(np.add, total, immediate)
        carry_cotangent = jax.tree.map(lambda a, t=t: a * scale[t][:, None], cotangent)
    return total, np.stack(x_gradients), carry_cotangent


@functools.cache
def with_scale(layer, reverse=False, engine=None):
    def unrolling(params, xs, carry, mask, resets, scale):
        how = {
            "mask": mask,
            "resets": resets,
            "reverse": reverse,
            "engine": engine,
            "return_carries": True,
        }
        return jaxrnn.truncated_unroll(
            layer, params, xs, carry, gradient_scale=scale, **how
        )

    return compiled_outcome(unrolling)


def random_scale(inputs, seed=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=inputs.mask.shape))


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize(
    "name", ["elman_learned", "lstm_all_learned", "gru_before", "user"]
)
def test_the_cotangent_of_the_entering_carry_is_scaled(name, reverse, x64):
    """Any scale, negative ones too, with holes in the mask and resets; the values
    are those of unroll, bit for bit.
    """
    inputs = draw(name, 0)
    scale = random_scale(inputs)
    actual = with_scale(SUBJECTS[name], reverse)(*inputs, scale)
    assert_same(
        actual.gradients, scaled_by_hand(SUBJECTS[name], inputs, scale, reverse)
    )
    full = unrolled(name, reverse)(*inputs)
    assert_same((actual.values, actual.carries), (full.values, full.carries), 0)
    assert not np.allclose(
        ravel_pytree(actual.gradients[0])[0], ravel_pytree(full.gradients[0])[0]
    )


@pytest.mark.parametrize(
    ("name", "rounding"),
    [("elman_learned", 0), ("lstm_all_learned", 2e-15), ("zoneout", 2e-15)],
)
def test_a_scale_of_ones_is_backpropagation(name, rounding, x64):
    """Bit for bit, but where a carry's cotangent is a sum of many parts: they are
    added in another order.
    """
    inputs = draw(name, 0)
    actual, full = (
        with_scale(SUBJECTS[name])(*inputs, jnp.ones(inputs.mask.shape)),
        unrolled(name)(*inputs),
    )
    assert_same_outcome(actual, full, 0, rounding)


@pytest.mark.parametrize("name", ["elman_learned", "stack", "zoneout", "bidirectional"])
@pytest.mark.parametrize("window", [1, 2])
def test_cuts_at_window_ends_are_windows(name, window, x64):
    """Through stacks, and in both directions: each edge between two steps is cut for
    both. All cut: no recurrence gradient.
    """
    inputs = draw(name, 0, steps=4)
    cut = np.arange(4) % window == 0
    cut[0] = False
    scale = jnp.broadcast_to(jnp.asarray(1.0 - cut)[:, None], inputs.mask.shape)
    actual = with_scale(SUBJECTS[name])(*inputs, scale)
    assert_same(actual.gradients, looped(name, inputs, window=window).gradients)


@pytest.mark.parametrize(
    "engine",
    [
        jaxrnn.Checkpoint(2),
        jaxrnn.Scan(save="carries", chunk=2),
        jaxrnn.Scan(save="everything"),
        jaxrnn.Scan(hoist=True),
    ],
    ids=str,
)
def test_every_engine_scales_alike(engine, x64):
    inputs = draw("gru_learned", 0)
    scale, layer = random_scale(inputs), SUBJECTS["gru_learned"]
    assert_same_outcome(
        with_scale(layer, engine=engine)(*inputs, scale),
        with_scale(layer)(*inputs, scale),
    )


@pytest.mark.parametrize(
    "engine", [None, jaxrnn.Checkpoint(2), jaxrnn.Scan(save="everything")], ids=str
)
def test_derivatives_of_any_kind_and_order(engine, x64):
    """Forward mode, and second derivatives in the three orders of modes, against a
    Python loop of the same rule.
    """
    cell, inputs = jaxrnn.Elman(3), draw(jaxrnn.Elman(3), 0, batch=())
    scale, direction = (
        random_scale(inputs),
        normal(np.random.default_rng(8), inputs.params),
    )

    @jax.custom_jvp
    def identity(x, w):
        return x

    identity.defjvp(
        lambda primals, tangents: (identity(*primals), tangents[0] * primals[1])
    )

    def twin(params):
        carry, total = inputs.carry, 0.0
        for t in range(len(inputs.xs)):
            carry = cell.step(
                params, identity(carry, scale[t]), cell.project(params, inputs.xs[t])
            )
            total += jnp.square(carry).sum()
        return total

    def engine_loss(params):
        unrolled_ = jaxrnn.truncated_unroll(
            cell, params, inputs.xs, inputs.carry, gradient_scale=scale, engine=engine
        )
        return jnp.square(unrolled_[1]).sum()

    def dot(a, b):
        return sum(
            jnp.vdot(x, y)
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )

    def kinds(f):
        def along(params):
            return jax.jvp(f, (params,), (direction,))[1]

        return compiled(
            lambda params: (
                along(params),
                jax.jvp(jax.grad(f), (params,), (direction,))[1],
                jax.grad(lambda p: dot(jax.grad(f)(p), direction))(params),
                jax.grad(along)(params),
                jax.jvp(along, (params,), (direction,))[1],
            )
        )(inputs.params)

    assert_same(kinds(engine_loss), kinds(twin))


@pytest.mark.parametrize("name", ["gru", "stack"])
def test_vmap_is_the_batch(name, x64):
    inputs = draw(name, 0)
    scale, layer = random_scale(inputs), SUBJECTS[name]

    def loss(params, xs, scale):
        return jnp.square(
            jaxrnn.truncated_unroll(layer, params, xs, gradient_scale=scale)[1]
        ).sum()

    def mapped(params):
        return jax.vmap(loss, (None, 1, 1))(params, inputs.xs, scale).sum()

    whole = compiled(jax.grad(loss))(inputs.params, inputs.xs, scale)
    assert_same(compiled(jax.grad(mapped))(inputs.params), whole)
    each = compiled(jax.vmap(jax.grad(loss), (None, 1, 1)))(
        inputs.params, inputs.xs, scale
    )
    assert_same(jax.tree.map(lambda a: a.sum(0), each), whole)
    shared = compiled(jax.vmap(jax.grad(loss), (None, 1, None)))(
        inputs.params, inputs.xs, scale[:, 0]
    )
    same = compiled(jax.grad(loss))(
        inputs.params, inputs.xs, jnp.broadcast_to(scale[:, :1], scale.shape)
    )
    assert_same(jax.tree.map(lambda a: a.sum(0), shared), same)


def test_the_scale_itself_has_no_derivative(x64):
    inputs = draw("elman", 0)

    def size_of_gradient(scale):
        def loss(params):
            return jnp.square(
                jaxrnn.truncated_unroll(
                    SUBJECTS["elman"], params, inputs.xs, gradient_scale=scale
                )[1]
            ).sum()

        return sum(
            jnp.square(g).sum() for g in jax.tree.leaves(jax.grad(loss)(inputs.params))
        )

    assert (compiled(jax.grad(size_of_gradient))(random_scale(inputs)) == 0).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_gradients_keep_their_dtypes(dtype):
    cell = jaxrnn.LSTM(4)
    params = cell.init(jax.random.key(0), D, dtype=dtype)
    scale = ARTBP(2.0).sample(jax.random.key(1), 5)

    def loss(params):
        xs = jnp.ones((5, D), dtype)
        return (
            jaxrnn.truncated_unroll(cell, params, xs, gradient_scale=scale)[1]
            .sum()
            .astype(jnp.float32)
        )

    gradient = compiled(jax.grad(loss))(params)
    assert jax.tree.map(lambda a: a.dtype, gradient) == jax.tree.map(
        lambda a: a.dtype, params
    )


# -- the expectation, over every pattern of cuts ---------------------------------------


@functools.cache
def expected_gradient(name, reverse=False, flagged=False):
    """Compiled: (params, window over all patterns, scale, weight) -> the weighted
    sum of the patterns' gradients.
    """
    layer = SUBJECTS[name]

    def loss(params, window, scale, weight):
        how = {"mask": window.mask, "resets": window.resets, "reverse": reverse}
        _, ys = jaxrnn.truncated_unroll(
            layer, params, window.inputs, gradient_scale=scale, **how
        )
        losses = squares(ys, window.targets)
        losses = losses if window.mask is None else jnp.where(window.mask, losses, 0)
        return (losses * weight[None]).sum()

    return compiled(jax.grad(loss))


@pytest.mark.parametrize("artbp", [HEAVY, CONSTANT], ids=["heavy_tail", "constant"])
@pytest.mark.parametrize("flagged", [False, True], ids=["plain", "mask_and_resets"])
@pytest.mark.parametrize("name", NAMES)
def test_artbp_is_unbiased(name, flagged, artbp, x64):
    params, window = sequence(name, flagged)
    window = window._replace(
        mask=None
        if window.mask is None
        else jnp.broadcast_to(window.mask[:, None], PATTERNS.shape),
        resets=None
        if window.resets is None
        else jnp.broadcast_to(window.resets[:, None], PATTERNS.shape),
    )
    scale, weight = scale_and_weight(artbp, window)
    window = window._replace(
        inputs=spread(window.inputs), targets=spread(window.targets)
    )
    run = expected_gradient(name, flagged=flagged)
    actual = run(params, window, scale, weight)
    assert_same(actual, lags_of(name, flagged).full())
    if not flagged:  # without the reweighting the same cuts are biased
        biased = run(params, window, jnp.where(PATTERNS, 0.0, 1.0), weight)
        assert distance(biased, actual) > 1e-3


def distance(a, b):
    """The relative distance of two gradients."""
    a, b = ravel_pytree(a)[0], ravel_pytree(b)[0]
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.parametrize("name", ["gru_learned", "bidirectional"])
def test_artbp_is_unbiased_backwards_in_time(name, x64):
    params, window = (
        draw(name, 3, steps=STEPS, batch=()).params,
        sequence("gru_learned", False)[1],
    )
    targets = normal(
        np.random.default_rng(1), draw(name, 3, steps=STEPS, batch=()).cotangents[1]
    )
    window = spread(window._replace(targets=targets))
    scale, weight = scale_and_weight(HEAVY, window)
    for reverse in (False, True):
        run = expected_gradient(name, reverse)
        ones = jnp.ones_like(scale)
        assert_same(
            run(params, window, scale, weight), run(params, window, ones, weight)
        )
        assert (
            distance(
                run(params, window, ones.at[3].set(0), weight),
                run(params, window, ones, weight),
            )
            > 1e-3
        )


@dataclasses.dataclass(frozen=True)
class AllPatterns:
    """In the place of `ARTBP`: stream i of a batch gets pattern i of the cuts,
    whatever the key.
    """

    artbp: ARTBP

    def sample(self, key, steps, batch_shape, mask=None, resets=None):
        cuts = jnp.zeros((steps, *batch_shape), bool).at[steps - STEPS :].set(PATTERNS)
        return self.artbp.scale_of(cuts, mask, resets)[0]


def truncated_losses(layer):
    def losses(params, carry, window):
        xs, weight = window.inputs
        how = {"mask": window.mask, "resets": window.resets, "return_carries": True}
        _, ys, carries = jaxrnn.truncated_unroll(
            layer, params, xs, carry, gradient_scale=window.gradient_scale, **how
        )
        return squares(ys, window.targets) * weight, carries

    return losses


@pytest.mark.parametrize("artbp", [HEAVY, CONSTANT], ids=["heavy_tail", "constant"])
@pytest.mark.parametrize("pair", [(STEPS, STEPS), (STEPS, STEPS + 2)])
def test_tbptt_with_artbp_is_unbiased_where_a_window_spans_the_sequence(
    pair, artbp, x64
):
    name = "lstm_all_learned"
    for flagged in (False, True):
        params, window = sequence(name, flagged)
        full, valid = lags_of(name, flagged).full(), valid_steps(window)
        window = spread(window)
        _, weight = scale_and_weight(artbp, window)
        window = window._replace(
            inputs=(window.inputs, jnp.broadcast_to(weight, PATTERNS.shape))
        )
        layer, streams = SUBJECTS[name], PATTERNS.shape[1]
        tbptt = TBPTT(
            truncated_losses(layer),
            layer.initial_carry,
            *pair,
            truncation=AllPatterns(artbp),
        )
        run = compiled(
            lambda p, w, t=tbptt: t.value_and_grad(
                p, w, t.init(p, w, (len(w.inputs[1][0]),)), key=jax.random.key(0)
            )[1]
        )
        assert_same(
            jax.tree.map(lambda g, n=valid * streams: g * n, run(params, window)), full
        )


def sampled_tbptt(name, k1, k2, artbp=ARTBP(3.0), axis_name=None):
    layer = SUBJECTS[name]

    def losses(params, carry, window):
        how = {"mask": window.mask, "resets": window.resets, "return_carries": True}
        _, ys, carries = jaxrnn.truncated_unroll(
            layer,
            params,
            window.inputs,
            carry,
            gradient_scale=window.gradient_scale,
            **how,
        )
        return squares(ys, window.targets), carries

    return TBPTT(losses, layer.initial_carry, k1, k2, axis_name, artbp)


def test_tbptt_draws_cuts_for_every_window_and_every_key(x64):
    """Losses and carries are those without truncation; gradients differ with the
    key, and their mean comes near TBPTT's.
    """
    params, window = sequence("gru_learned", False)
    window = spread(window, 400)
    tbptt = sampled_tbptt("gru_learned", 2, 4)
    run = compiled(
        lambda p, key: tbptt.value_and_grad(
            p, window, tbptt.init(p, window, (400,)), key=key
        )
    )
    loss, one, state = run(params, jax.random.key(0))
    assert_same(one, run(params, jax.random.key(0))[1], 0)
    other = run(params, jax.random.key(1))[1]
    assert 1e-6 < distance(other, one) < 0.2
    plain = dataclasses.replace(
        tbptt, truncation=None, losses=plain_losses("gru_learned")
    )
    expected = compiled(
        lambda p: plain.value_and_grad(p, window, plain.init(p, window, (400,)))
    )(params)
    assert_same(loss, expected[0])
    assert_same(state.carry, expected[2].carry)
    means = [run(params, jax.random.key(seed))[1] for seed in range(20)]
    mean = jax.tree.map(lambda *g: sum(g) / len(g), *means)
    assert distance(mean, expected[1]) < 0.03  # 8000 draws


@functools.cache  # a TBPTT of the same losses is the same program
def plain_losses(name):
    def losses(params, carry, window):
        how = {"mask": window.mask, "resets": window.resets, "return_carries": True}
        _, ys, carries = jaxrnn.unroll(
            SUBJECTS[name], params, window.inputs, carry, **how
        )
        return squares(ys, window.targets), carries

    return losses


def test_tbptt_with_artbp_goes_through_updates_pieces_and_noise(x64):
    """The state of a piece goes on; dropout's key is another than that of the cuts."""
    layer = jaxrnn.stack(jaxrnn.Elman(4), jaxrnn.dropout(0.5))
    inputs = draw(jaxrnn.inference(layer), 0, steps=STEPS)
    keys = []

    def losses(params, carry, window):
        keys.append(window.key)
        how = {
            "mask": window.mask,
            "resets": window.resets,
            "key": window.key,
            "return_carries": True,
        }
        _, ys, carries = jaxrnn.truncated_unroll(
            layer,
            params,
            window.inputs,
            carry,
            gradient_scale=window.gradient_scale,
            **how,
        )
        return squares(ys, window.targets), carries

    tbptt, optimizer = (
        TBPTT(losses, layer.initial_carry, 1, 3, truncation=ARTBP(2.0)),
        optax.sgd(0.1),
    )
    targets = normal(np.random.default_rng(1), inputs.cotangents[1])
    window = Window(inputs.xs, targets, inputs.mask, inputs.resets)
    params, state = (
        inputs.params,
        tbptt.init(inputs.params, window, inputs.mask.shape[1:]),
    )
    update, opt_state = (
        compiled(functools.partial(tbptt.update, optimizer)),
        optimizer.init(inputs.params),
    )
    for piece in (slice(0, 3), slice(3, 6)):
        part = jax.tree.map(lambda a, piece=piece: a[piece], window)
        params, opt_state, loss, state = update(
            params, opt_state, part, state, key=jax.random.key(2)
        )
        assert np.isfinite(loss)
    assert state.history.gradient_scale is None
    assert distance(params, inputs.params) > 1e-4
    assert keys


# -- what is drawn ---------------------------------------------------------------------


def probability_by_hand(artbp, cuts, mask, resets):
    """c_t of one stream, and the probability of its pattern, from the docstring's
    words.
    """
    behind, all_c, probability = 0, [], 1.0
    for cut, keep, reset in zip(
        *(np.asarray(a).tolist() for a in (cuts, mask, resets)), strict=True
    ):
        behind = 0 if reset else behind
        c = 0.0
        if keep and behind > 0:
            if math.isinf(artbp.alpha):
                c = 1 / artbp.mean_length
            else:
                c = (artbp.alpha - 1) / ((artbp.alpha - 2) * artbp.mean_length + behind)
        all_c.append(c)
        probability *= c if cut else 1 - c
        behind = (0 if cut else behind) + keep
    return all_c, probability


@pytest.mark.parametrize("artbp", [HEAVY, CONSTANT], ids=["heavy_tail", "constant"])
def test_probabilities_are_those_of_the_formula(artbp, x64):
    random = np.random.default_rng(2)
    mask, resets = (
        jnp.asarray(random.random(PATTERNS.shape) < share) for share in (0.7, 0.2)
    )
    c = artbp.probabilities(jnp.asarray(PATTERNS), mask, resets)
    scale, log_probability = artbp.scale_of(jnp.asarray(PATTERNS), mask, resets)
    for i in range(PATTERNS.shape[1]):
        by_hand, probability = probability_by_hand(
            artbp, PATTERNS[:, i], mask[:, i], resets[:, i]
        )
        np.testing.assert_allclose(c[:, i], by_hand, rtol=1e-12)
        np.testing.assert_allclose(jnp.exp(log_probability[i]), probability, rtol=1e-12)
        expected = [
            0 if cut else 1 / (1 - p)
            for cut, p in zip(PATTERNS[:, i], by_hand, strict=True)
        ]
        np.testing.assert_allclose(scale[:, i], expected, rtol=1e-12)


@pytest.mark.parametrize("artbp", [HEAVY, CONSTANT], ids=["heavy_tail", "constant"])
@pytest.mark.parametrize("flagged", [False, True], ids=["plain", "mask_and_resets"])
def test_every_pattern_comes_as_often_as_it_should(artbp, flagged):
    """Fixed seed; each frequency within five standard deviations of its probability,
    and what has none never comes.
    """
    draws = 100_000
    mask, resets = sequence("elman_learned", True)[1][2:4] if flagged else (None, None)
    wide = [
        None if flags is None else jnp.broadcast_to(flags[:, None], (STEPS, draws))
        for flags in (mask, resets)
    ]
    scale = np.asarray(artbp.sample(jax.random.key(4), STEPS, (draws,), *wide))
    bits = 2 ** np.arange(STEPS)[::-1]
    frequency = np.bincount(bits @ (scale == 0), minlength=2**STEPS) / draws
    for i, cuts in enumerate(PATTERNS.T):
        steps = [
            np.ones(STEPS, bool) if mask is None else mask,
            np.zeros(STEPS, bool) if resets is None else resets,
        ]
        probability = probability_by_hand(artbp, cuts, *steps)[1]
        assert abs(frequency[bits @ cuts] - probability) <= 5 * math.sqrt(
            probability * (1 - probability) / draws
        ), i
        if probability == 0:
            assert frequency[bits @ cuts] == 0
    assert (scale[0] == 1).all()


@pytest.mark.parametrize(
    ("mean_length", "alpha"), [(5.0, 6.0), (20.0, 5.0), (5.0, math.inf)]
)
def test_intervals_have_the_mean_length(mean_length, alpha):
    """Over many streams, every interval that begins in the first half of a long
    run.
    """
    artbp, steps, streams = ARTBP(mean_length, alpha), 4000, 50
    cuts = np.asarray(artbp.sample(jax.random.key(7), steps, (streams,))) == 0
    intervals = []
    for stream in cuts.T:
        at = np.flatnonzero(stream)
        intervals += [b - a for a, b in itertools.pairwise(at) if a < steps // 2]
    error = 5 * np.std(intervals) / math.sqrt(len(intervals))
    assert error < 0.1 * mean_length
    assert abs(np.mean(intervals) - mean_length) < error


def test_streams_and_keys_draw_apart():
    artbp = ARTBP(3.0)
    one, other = (
        np.asarray(artbp.sample(jax.random.key(seed), 50, (2, 3))) for seed in (0, 1)
    )
    assert (one != other).any()
    assert (one[:, 0] != one[:, 1]).any()
    np.testing.assert_array_equal(one, artbp.sample(jax.random.key(0), 50, (2, 3)))
    assert artbp.sample(jax.random.key(0), 0, (2,)).shape == (0, 2)
    assert hash(ARTBP(3.0)) == hash(artbp)


# -- the bias of truncation ------------------------------------------------------------


def bias_of(name, k1, k2s, flagged, **how):
    params, window = sequence(name, flagged)
    tbptt = TBPTT(plain_losses(name), SUBJECTS[name].initial_carry, k1)
    return truncation_bias(tbptt, params, window, k2s, **how)


def assert_bias(actual, lags, pairs):
    """Against the sums over the lags that each pair sees."""
    full = ravel_pytree(lags.full())[0]
    for i, pair in enumerate(pairs):
        part = lags.truncated(*pair)
        flat = ravel_pytree(part)[0]
        error = np.linalg.norm(flat - full) / np.linalg.norm(full)
        np.testing.assert_allclose(
            actual.relative_error[i], error, rtol=1e-9, atol=1e-12
        )
        cosine = flat @ full / (np.linalg.norm(flat) * np.linalg.norm(full))
        np.testing.assert_allclose(actual.cosine[i], cosine, rtol=1e-12)
        by_leaf = jax.tree.map(
            lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b), part, lags.full()
        )
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(
                a[i], b, rtol=1e-9, atol=1e-12
            ),
            actual.by_leaf,
            by_leaf,
        )


@pytest.mark.parametrize("flagged", [False, True], ids=["plain", "mask_and_resets"])
@pytest.mark.parametrize("name", ["elman_learned", "lstm_all_learned"])
def test_the_bias_is_that_of_the_lag_sums(name, flagged, x64):
    lags = lags_of(name, flagged)
    for k1, k2s in ((1, [1, 3, 6]), (2, np.array([2])), (4, (5,))):
        actual = bias_of(name, k1, k2s, flagged)
        assert actual.k2.tolist() == list(k2s)
        assert_bias(actual, lags, [(k1, k2) for k2 in k2s])
        if k1 == 1:
            assert actual.relative_error[0] > 0.01
            # a horizon of STEPS is all there is
            assert actual.relative_error[-1] < 1e-12


def test_the_bias_of_windows(x64):
    """k1 = k2, whatever the TBPTT's k1."""
    actual = bias_of("lstm_all_learned", 5, range(1, STEPS + 1), True, windows=True)
    assert_bias(
        actual, lags_of("lstm_all_learned", True), [(k, k) for k in range(1, STEPS + 1)]
    )


def test_the_bias_of_a_batch_and_inside_jit(x64):
    params, window = sequence("elman_learned", True)
    tbptt = TBPTT(
        plain_losses("elman_learned"), SUBJECTS["elman_learned"].initial_carry, 1
    )
    one = truncation_bias(tbptt, params, window, [2])
    batch = spread(window, 3)  # the same stream three times: the same bias
    run = jax.jit(lambda p: truncation_bias(tbptt, p, batch, [2], batch_shape=(3,))[1:])
    assert_same(run(params), one[1:])


def test_a_gradient_of_zero_has_no_relative_error(x64):
    params, window = sequence("elman_learned", False)
    tbptt = TBPTT(
        plain_losses("elman_learned"), SUBJECTS["elman_learned"].initial_carry, 1
    )
    nothing = window._replace(mask=np.zeros(STEPS, bool))
    actual = truncation_bias(tbptt, params, nothing, [1, 2])
    assert np.isnan(actual.relative_error).all()
    assert np.isnan(actual.cosine).all()


# -- adaptive truncation ---------------------------------------------------------------


def by_formula(phi, norms, tau, last, error):
    """K, beta and the two bounds in plain Python floats, from the docstring."""
    lags = range(tau, last + 1)
    middle = sum(lags) / len(lags)
    log_beta = sum((k - middle) * math.log(phi[k]) for k in lags) / sum(
        (k - middle) ** 2 for k in lags
    )
    beta = math.exp(log_beta)
    absolute = [
        sum(phi[j] for j in range(K, tau))
        + phi[tau] * beta ** max(K - tau, 0) / (1 - beta)
        for K in range(1, len(phi) + 1)
    ]
    lower = max(max(g - a, 0) for g, a in zip(norms, absolute, strict=True))
    relative = [a / lower if lower > 0 else math.inf for a in absolute]
    reached = [K for K, r in enumerate(relative, 1) if r < error]
    return (
        (reached[0] if reached else len(phi)),
        bool(reached),
        log_beta,
        absolute,
        relative,
    )


def planted(beta, lags, first=0, slow=1.0):
    """phi_k = 0.7 beta^k from lag ``first`` on, another decay before, and norms of
    sums that all point one way.
    """
    phi = np.array(
        [0.7 * beta ** max(k, first) * slow ** max(first - k, 0) for k in range(lags)]
    )
    return phi, np.cumsum(phi)


@pytest.mark.parametrize("tau", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("beta", "error"), [(0.5, 0.1), (0.8, 0.3), (0.9, 0.5), (0.9, 0.01)]
)
def test_a_planted_decay_gives_the_length_of_the_formula(beta, error, tau, x64):
    phi, norms = planted(beta, 40, first=tau, slow=1.3)
    actual = jax.jit(
        lambda a, b: adaptive_truncation(
            a, b, relative_error=error, fit_range=(tau, 30)
        )
    )(jnp.log(phi), jnp.log(norms))
    k2, certified, log_beta, absolute, relative = by_formula(phi, norms, tau, 30, error)
    assert (int(actual.k2), bool(actual.certified)) == (k2, certified)
    np.testing.assert_allclose(actual.log_beta, math.log(beta), rtol=1e-9)
    np.testing.assert_allclose(log_beta, math.log(beta), rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(actual.log_absolute_error), absolute, rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(actual.log_relative_error), relative, rtol=1e-9)
    # a geometric tail is its own bound: what the gradient of K lags leaves out, lags
    # beyond n included
    left_out = phi.sum() + phi[-1] * beta / (1 - beta) - norms
    np.testing.assert_allclose(absolute, left_out, rtol=1e-9, atol=1e-14)


def test_noise_is_fitted_inside_the_range_only(x64):
    """Lags outside [tau, W] may be anything: the rate does not move; inside it is
    the least-squares slope of numpy.
    """
    random = np.random.default_rng(0)
    log_phi = -0.3 * np.arange(20) + 0.2 * random.normal(size=20)
    log_norms = np.log(np.cumsum(np.exp(log_phi)))
    how = {"relative_error": 0.2, "fit_range": (4, 12)}
    slope = np.polyfit(np.arange(4, 13), log_phi[4:13], 1)[0]
    outside = log_phi.copy()
    outside[:4] += 3 * random.normal(size=4)
    outside[13:] = -np.inf
    for values in (log_phi, outside):
        np.testing.assert_allclose(
            adaptive_truncation(values, log_norms, **how).log_beta, slope, rtol=1e-9
        )
    all_lags = np.polyfit(np.arange(20), log_phi, 1)[0]
    assert abs(all_lags - slope) > 1e-3


def test_far_below_the_smallest_float():
    """phi_k = e^(-50 k - 500) in float32: nothing underflows, and shifting every
    logarithm changes nothing.
    """
    log_phi = (-50.0 * np.arange(12) - 500).astype(np.float32)
    log_norms = np.full(12, -500.0, np.float32)
    how = {"relative_error": 0.1, "fit_range": (2, 8)}
    actual, shifted = (
        adaptive_truncation(log_phi + s, log_norms + s, **how)
        for s in (np.float32(0), np.float32(400))
    )
    assert int(actual.k2) == int(shifted.k2) == 1
    assert np.isfinite(actual.log_absolute_error).all()
    np.testing.assert_allclose(actual.log_beta, -50, rtol=1e-5)
    np.testing.assert_allclose(actual.log_absolute_error[4], -500 - 50 * 5, rtol=1e-5)
    np.testing.assert_allclose(
        actual.log_relative_error, shifted.log_relative_error, rtol=1e-3
    )


@pytest.mark.parametrize("beta", [1.0, 1.05])
def test_what_does_not_decay_is_not_certified(beta, x64):
    phi, norms = planted(beta, 10)
    actual = adaptive_truncation(
        jnp.log(phi), jnp.log(norms), relative_error=0.9, fit_range=(0, 9)
    )
    assert not actual.certified
    assert int(actual.k2) == 10
    assert (actual.log_absolute_error == jnp.inf).all()
    assert (actual.log_relative_error == jnp.inf).all()


def test_what_cancels_is_not_certified(x64):
    """Parts that cancel leave a gradient smaller than the bound of what is left out:
    no K bounds it away from zero.
    """
    phi, _ = planted(0.9, 10)
    actual = adaptive_truncation(
        jnp.log(phi), jnp.log(0.01 * phi), relative_error=0.5, fit_range=(0, 9)
    )
    assert not actual.certified
    assert int(actual.k2) == 10
    assert (actual.log_relative_error == jnp.inf).all()
    assert np.isfinite(actual.log_absolute_error).all()


@pytest.mark.parametrize("bad", [-np.inf, np.nan, np.inf])
def test_a_phi_that_cannot_be_fitted_is_not_certified(bad, x64):
    phi, norms = planted(0.5, 10)
    log_phi = np.log(phi)
    log_phi[4] = bad
    actual = adaptive_truncation(
        log_phi, np.log(norms), relative_error=0.5, fit_range=(2, 6)
    )
    assert np.isnan(actual.log_beta)
    assert not actual.certified
    assert int(actual.k2) == 10


def test_smaller_errors_take_more_lags(x64):
    phi, norms = planted(0.8, 60)
    lengths = [
        int(
            adaptive_truncation(
                jnp.log(phi), jnp.log(norms), relative_error=error, fit_range=(3, 40)
            ).k2
        )
        for error in (0.9, 0.5, 0.2, 0.1, 0.01, 0.001)
    ]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) == len(lengths)


def test_the_bound_holds_on_a_contracting_net(x64):
    """From the lag terms of a real net to the measured bias of TBPTT(1, K): bounded
    at every K, and as asked for at k2.
    """
    steps, cell = 24, jaxrnn.Elman(4)
    inputs = draw(cell, 0, steps=steps, batch=())
    orthogonal, _ = np.linalg.qr(inputs.params["recurrent_kernel"])
    params = inputs.params | {"recurrent_kernel": jnp.asarray(0.6 * orthogonal)}
    targets = normal(np.random.default_rng(1), inputs.cotangents[1])
    lags = Lags(cell, params, inputs.xs, targets, squares)
    phi = np.array(
        [
            sum(np.linalg.norm(lags.parts[t, k]) for t in range(k + 1, steps + 1))
            for k in range(steps)
        ]
    )
    norms = np.array(
        [
            np.linalg.norm(ravel_pytree(lags.truncated(1, K))[0])
            for K in range(1, steps + 1)
        ]
    )
    found = adaptive_truncation(
        np.log(phi), np.log(norms), relative_error=0.05, fit_range=(2, 12)
    )
    assert found.certified
    assert 1 < int(found.k2) < steps
    tbptt = TBPTT(
        lambda p, carry, w: (lambda out: (squares(out[1], w.targets), out[2]))(
            jaxrnn.unroll(cell, p, w.inputs, carry, mask=w.mask, return_carries=True)
        ),
        cell.initial_carry,
        1,
    )
    every = [1, 2, 4, 8, int(found.k2)]
    bias = truncation_bias(tbptt, params, Window(inputs.xs, targets), every)
    bounds = np.exp(np.asarray(found.log_relative_error))[np.array(every) - 1]
    assert (bias.relative_error <= bounds).all()
    assert bias.relative_error[-1] < 0.05


# -- bad input -------------------------------------------------------------------------


@pytest.mark.usefixtures("plain_errors")
class TestBadInput:
    cell = jaxrnn.Elman(4)
    params = jax.eval_shape(lambda key: jaxrnn.Elman(4).init(key, D), jax.random.key(0))

    def call(self, xs=None, **how):
        params = self.cell.init(jax.random.key(0), D)
        return jaxrnn.truncated_unroll(
            self.cell, params, jnp.ones((5, 2, D)) if xs is None else xs, **how
        )

    @pytest.mark.parametrize(
        ("how", "error", "words"),
        [
            ({}, ValueError, r"give window .* or gradient_scale .* neither came"),
            (
                {"window": 2, "gradient_scale": np.ones((5, 2), np.float32)},
                ValueError,
                "both came",
            ),
            ({"window": 0}, ValueError, "window must be an int of at least 1 step"),
            (
                {"gradient_scale": 0.5},
                TypeError,
                r"must be an array of shape \(T, \*B\) = \(5, 2\)",
            ),
            (
                {"gradient_scale": np.ones(5, np.float32)},
                ValueError,
                r"\(5, 2\), but its shape is \(5,\)",
            ),
            (
                {"gradient_scale": np.ones((5, 2), int)},
                TypeError,
                r"gradient_scale\.astype\('float32'\)",
            ),
            (
                {"gradient_scale": np.ones((5, 2), bool)},
                TypeError,
                "must be floating-point",
            ),
        ],
    )
    def test_of_truncated_unroll(self, how, error, words):
        with pytest.raises(error, match=words):
            self.call(**how)

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            (
                {"mean_length": 1.0},
                "mean_length must be a number above 1, but it is 1.0",
            ),
            ({"mean_length": "10"}, "mean_length must be a number above 1"),
            ({"mean_length": True}, "mean_length must be a number above 1"),
            ({"mean_length": math.inf}, "leave ARTBP out"),
            ({"mean_length": math.nan}, "mean_length must be a number above 1"),
            (
                {"mean_length": 10.0, "alpha": 2.0},
                "alpha must be a number above 2, but it is 2.0",
            ),
        ],
    )
    def test_of_artbp(self, how, words):
        with pytest.raises(ValueError, match=words):
            ARTBP(**how)

    def test_of_sample(self):
        artbp, key = ARTBP(3.0), jax.random.key(0)
        with pytest.raises(TypeError, match="batch_shape must be a tuple"):
            artbp.sample(key, 5, 2)
        with pytest.raises(
            TypeError, match=r"key must be a key such as jax\.random\.key"
        ):
            artbp.sample(0, 5, (2,))
        with pytest.raises(
            ValueError, match=r"mask must be bool of shape \(T, \*B\) = \(5, 2\)"
        ):
            artbp.sample(key, 5, (2,), np.ones(5, bool))
        with pytest.raises(ValueError, match="resets must be bool"):
            artbp.sample(key, 5, (2,), None, np.ones((5, 2)))
        with pytest.raises(ValueError, match="cuts must be bool"):
            artbp.scale_of(np.ones((5, 2)))

    def tbptt(self, losses=None, truncation=ARTBP(3.0)):
        losses = losses or sampled_tbptt("elman", 2, 3).losses
        tbptt = TBPTT(losses, self.cell.initial_carry, 2, 3, truncation=truncation)
        window = Window(jnp.ones((5, D)), jnp.ones((5, 4)))
        params = self.cell.init(jax.random.key(0), D)
        return tbptt, params, window, tbptt.init(params, window)

    def test_of_tbptt(self):
        with pytest.raises(
            TypeError, match=r"truncation must be None or a jaxrnn\.ARTBP"
        ):
            self.tbptt(truncation=3.0)
        with pytest.raises(TypeError, match="but it is the class ARTBP"):
            self.tbptt(truncation=ARTBP)
        tbptt, *rest = self.tbptt()
        with pytest.raises(
            ValueError,
            match=r"ARTBP\(mean_length=3.0, alpha=4.0\) draws random numbers, so it needs key=",  # noqa: E501
        ):
            tbptt.value_and_grad(*rest)
        with pytest.raises(ValueError, match="draws random numbers"):
            tbptt.update(optax.sgd(0.1), rest[0], (), *rest[1:])
        tbptt, *rest = self.tbptt(plain_losses("elman"))
        with pytest.raises(ValueError, match=r"must pass window\.gradient_scale on"):
            tbptt.value_and_grad(*rest, key=jax.random.key(0))
        for truncation in (None, ARTBP(3.0)):
            tbptt, params, window, state = self.tbptt(plain_losses("elman"), truncation)
            with pytest.raises(ValueError, match="the sequence holds"):
                tbptt.value_and_grad(
                    params,
                    window._replace(gradient_scale=jnp.ones(5)),
                    state,
                    key=jax.random.key(0),
                )

    def test_of_truncation_bias(self):
        tbptt, params, window, _ = self.tbptt(plain_losses("elman"), None)
        for k2s, words in [
            ([], "k2s is empty"),
            ([2, 1], "k2 = 1 is less than k1 = 2"),
            ([3, 6], "k2 = 6 lies beyond the sequence of T = 5"),
            ([2.0], "every k2 must be an int"),
            ([True], "every k2 must be an int"),
            ([0], "every k2 must be an int of at least 1"),
        ]:
            with pytest.raises(ValueError, match=words):
                truncation_bias(tbptt, params, window, k2s)
        with pytest.raises(ValueError, match="has no steps"):
            truncation_bias(tbptt, params, jax.tree.map(lambda a: a[:0], window), [2])
        with pytest.raises(TypeError, match=r"must be a jaxrnn\.TBPTT"):
            truncation_bias(plain_losses("elman"), params, window, [2])
        with pytest.raises(ValueError, match="whose gradient is random"):
            truncation_bias(self.tbptt()[0], params, window, [2])

    def test_of_adaptive_truncation(self):
        logs = jnp.asarray([-1.0, -2.0, -3.0, -4.0])
        how = {"relative_error": 0.1, "fit_range": (1, 3)}
        for first, second, changes, error, words in [
            ([1.0, 2.0], logs, {}, TypeError, "log_phi must be a real array"),
            (
                logs,
                logs[None],
                {},
                TypeError,
                "log_gradient_norms must be a real array",
            ),
            (logs.astype(int), logs, {}, TypeError, "log_phi must be a real array"),
            (
                logs,
                logs[:3],
                {},
                ValueError,
                "log_phi has 4 lags, log_gradient_norms 3",
            ),
            (
                logs,
                logs,
                {"relative_error": 0.0},
                ValueError,
                r"must be a number in \(0, 1\)",
            ),
            (
                logs,
                logs,
                {"relative_error": 1.0},
                ValueError,
                r"must be a number in \(0, 1\)",
            ),
            (
                logs,
                logs,
                {"fit_range": (2, 2)},
                ValueError,
                "at least two of the lags 0..3",
            ),
            (
                logs,
                logs,
                {"fit_range": (-1, 2)},
                ValueError,
                "at least two of the lags 0..3",
            ),
            (
                logs,
                logs,
                {"fit_range": (1, 4)},
                ValueError,
                "at least two of the lags 0..3",
            ),
            (logs, logs, {"fit_range": 3}, TypeError, "fit_range must be two ints"),
            (
                logs,
                logs,
                {"fit_range": (1.0, 3.0)},
                TypeError,
                "fit_range must be two ints",
            ),
        ]:
            with pytest.raises(error, match=words):
                adaptive_truncation(first, second, **(how | changes))
