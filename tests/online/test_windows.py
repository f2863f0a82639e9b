"""RTRL and UORO: online gradients of whole windows against backpropagation."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from online_cases import STEPS, B, case, looped, model_of, part, scaled
from reference import compiled
from subjects import assert_same, normal

import jaxrnn
from jaxrnn import TBPTT, Window
from jaxrnn.online import RTRL, UORO
from jaxrnn.online.windows import Stream

PIECES = (2, 1, 4)  # of the sequence: k1 divides few of them

NAMES = [
    "elman_learned",
    "lstm_all_learned",
    "gru_before",
    "user",
    "stack",
    "nonlinear_rtu",
    "rtu",
]


@pytest.mark.parametrize("k1", [1, 3, 2 * STEPS])
@pytest.mark.parametrize("name", NAMES)
def test_rtrl_is_backpropagation_at_every_prefix(name, k1, x64):
    """In pieces, of which k1 divides few: masks, resets, a learned first carry."""
    params, window, model = case(name)
    rtrl, wanted = RTRL(*model, k1=k1), looped(name)
    state, total, end = rtrl.init(params, window, (B,)), None, 0
    assert state.influence["readout"].shape[1] == 0
    for piece in PIECES:
        some = part(window, end, end + piece)
        _, gradient, state = rtrl.value_and_grad(params, some, state)
        gradient = scaled(gradient, some)
        total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
        end += piece
        assert_same(total, jax.tree.map(lambda g, end=end: g[end - 1], wanted), 1e-11)


@pytest.mark.parametrize("name", ["user"])
def test_without_its_influence_rtrl_is_something_else(name, x64):
    params, window, model = case(name, False)
    rtrl = RTRL(*model, k1=2)
    state = rtrl.value_and_grad(
        params, part(window, 0, 4), rtrl.init(params, window, (B,))
    )[2]
    forgotten = state._replace(influence=jax.tree.map(jnp.zeros_like, state.influence))
    kept, lost = (
        rtrl.value_and_grad(params, part(window, 4, 6), s)[1]["rnn"]
        for s in (state, forgotten)
    )
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(lost), strict=True):
        assert abs(a - b).max() > 1e-3 * abs(a).max()


@pytest.mark.parametrize("batch", [(), (2, 1)], ids=str)
def test_any_batch_axes_with_and_without_flags(batch, x64):
    params, window, model = case("elman_learned", False, batch)
    rtrl = RTRL(*model, k1=3)
    loss, gradient, state = rtrl.value_and_grad(
        params, window, rtrl.init(params, window, batch)
    )
    wanted = jax.tree.map(lambda g: g[-1], looped("elman_learned", False, batch))
    assert_same(scaled(gradient, window), wanted, 1e-11)
    tbptt = TBPTT(*model, k1=STEPS)
    full = tbptt.value_and_grad(params, window, tbptt.init(params, window, batch))
    assert_same((loss, gradient, state.carry), (full[0], full[1], full[2].carry), 1e-12)
    assert not state.fresh.any()


def test_a_stream_that_has_not_begun_stays_fresh(x64):
    """A learned first carry reaches the losses also after masked windows."""
    params, window, model = case("elman_learned", False)
    late = np.arange(STEPS)[:, None] >= np.array([0, 4])
    window = window._replace(mask=jnp.asarray(late))
    rtrl = RTRL(*model, k1=2)
    _, gradient, state = rtrl.value_and_grad(
        params, part(window, 0, 4), rtrl.init(params, window, (B,))
    )
    assert state.fresh.tolist() == [False, True]
    _, rest, _ = rtrl.value_and_grad(params, part(window, 4, 7), state)
    tbptt = TBPTT(*model, k1=STEPS)
    full = tbptt.value_and_grad(params, window, tbptt.init(params, window, (B,)))[1]
    both = jax.tree.map(
        jnp.add,
        scaled(gradient, part(window, 0, 4)),
        scaled(rest, part(window, 4, 7)),
    )
    assert_same(both, scaled(full, window), 1e-12)


def test_updates_are_windows_one_after_another(x64):
    """With the optimizer's parameters; at rate 0 the influence stays exact."""
    params, window, model = case("elman_learned")
    rtrl, optimizer = RTRL(*model, k1=3), optax.sgd(0.1)
    state = rtrl.init(params, window, (B,))
    new, _, loss, after = rtrl.update(
        optimizer, params, optimizer.init(params), window, state
    )
    by_hand, losses = params, 0.0
    valid = float(window.mask.sum())
    for a in range(0, STEPS, 3):
        some = part(window, a, min(a + 3, STEPS))
        one, gradient, state = rtrl.value_and_grad(by_hand, some, state)
        losses += one * float(some.mask.sum())
        by_hand = jax.tree.map(
            lambda p, g: p - 0.1 * g * 3 / valid, by_hand, scaled(gradient, some)
        )
    assert_same((new, loss, after), (by_hand, losses / valid, state), 1e-12)
    still = optax.sgd(0.0)
    begin = rtrl.init(params, window, (B,))
    _, _, _, after = rtrl.update(still, params, still.init(params), window, begin)
    assert_same(after, rtrl.value_and_grad(params, window, begin)[2], 1e-14)


def test_every_stream_draws_random_numbers_of_its_own(x64):
    """A window's key is that of the losses: backpropagation by the same keys agrees."""
    layer = jaxrnn.zoneout(jaxrnn.Elman(3), 0.4)
    losses, initial = model_of(layer)
    rng, key = np.random.default_rng(0), jax.random.key(5)
    params = {"rnn": layer.init(jax.random.key(1), 2)}
    params["readout"] = normal(rng, np.zeros((3, 2)))
    window = Window(normal(rng, np.zeros((4, B, 2))), normal(rng, np.zeros((4, B, 2))))
    rtrl = RTRL(losses, initial, k1=2)
    loss, gradient, _ = rtrl.value_and_grad(
        params, window, rtrl.init(params, window, (B,)), key=key
    )
    keys = [jax.random.split(jax.random.fold_in(key, i), B) for i in range(2)]

    def total(params):
        out = 0.0
        for b in range(B):
            carry = initial(params, (1,))
            for i in range(2):
                some = part(window, 2 * i, 2 * i + 2)
                some = jax.tree.map(lambda a, b=b: a[:, b : b + 1], some)
                some = some._replace(key=keys[i][b])
                values, carries = losses(params, carry, some)
                carry = jax.tree.map(lambda a: a[-1], carries)
                out += values.sum()
        return out / (4 * B)

    assert_same((loss, gradient), compiled(jax.value_and_grad(total))(params), 1e-12)


def test_uoro_over_all_signs_is_backpropagation(x64):
    """n = 2, three windows of one step: the mean over 64 patterns is exact, and one
    draw is not, nor is the mean where one sign is always that of another.
    """
    cell, rng = jaxrnn.Elman(2, learned_initial_carry=True), np.random.default_rng(2)
    losses, initial = model_of(cell)
    params = {
        "rnn": normal(rng, cell.init(jax.random.key(0), 2)),
        "readout": normal(rng, np.zeros((2, 2))),
    }
    window = Window(normal(rng, np.zeros((3, 2))), normal(rng, np.zeros((3, 2))))
    window = window._replace(mask=jnp.ones(3, bool), resets=jnp.zeros(3, bool))
    uoro = UORO(losses, initial, k1=1)
    begin = uoro.init(params, window)

    def gradient(signs):
        total, carry, influence = None, begin.carry, begin.influence
        for t in range(3):
            now = Stream(part(window, t, t + 1), carry, jnp.array(t == 0), None)
            _, one, carry, influence = uoro._pass_with(params, influence, now, signs[t])
            total = one if total is None else jax.tree.map(jnp.add, total, one)
        return total

    patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=6)))
    every = compiled(jax.vmap(gradient))(patterns.reshape(-1, 3, 2))
    tbptt = TBPTT(losses, initial, k1=3)
    full = tbptt.value_and_grad(params, window, tbptt.init(params, window))[1]
    wanted = jax.tree.map(lambda g: 3 * g, full)
    assert_same(jax.tree.map(lambda a: a.mean(0), every), wanted, 1e-11)
    one = jax.tree.map(lambda a, b: abs(a[0] - b).max(), every, wanted)
    assert one["rnn"]["recurrent_kernel"] > 1e-3
    flipped = np.where(np.arange(6) == 1, patterns[:, :1], patterns)
    biased = compiled(jax.vmap(gradient))(flipped.reshape(-1, 3, 2))
    apart = jax.tree.map(lambda a, b: abs(a.mean(0) - b).max(), biased, wanted)
    assert apart["rnn"]["recurrent_kernel"] > 1e-3


def test_uoro_in_one_window_is_backpropagation(x64):
    """Signs are drawn after the losses of a window, so there is no noise yet."""
    params, window, model = case("elman_learned")
    uoro = UORO(*model, k1=STEPS)
    state = uoro.init(params, window, (B,))
    out = uoro.value_and_grad(params, window, state, key=jax.random.key(0))
    tbptt = TBPTT(*model, k1=STEPS)
    full = tbptt.value_and_grad(params, window, tbptt.init(params, window, (B,)))
    assert_same(out[:2], full[:2], 1e-12)
    other = uoro.value_and_grad(params, window, state, key=jax.random.key(1))
    assert_same(other[:2], full[:2], 1e-12)
    vectors = [found[2].influence[0] for found in (out, other)]
    assert vectors[0].shape == (B, 4)
    assert not np.allclose(*vectors)


@pytest.mark.parametrize("method", [RTRL, UORO])
def test_half_precision_keeps_its_dtypes(method):
    cell = jaxrnn.Elman(3)
    losses, initial = model_of(cell)
    params = {
        "rnn": cell.init(jax.random.key(0), 2, dtype=jnp.bfloat16),
        "readout": jnp.ones((3, 2), jnp.bfloat16),
    }
    window = Window(
        jnp.ones((4, B, 2), jnp.bfloat16), jnp.ones((4, B, 2), jnp.bfloat16)
    )
    online = method(losses, initial, k1=2)
    state = online.init(params, window, (B,))
    assert {a.dtype for a in jax.tree.leaves(state.influence)} == {jnp.dtype("float32")}
    out = online.value_and_grad(params, window, state, key=jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(out[1])} == {jnp.dtype(jnp.bfloat16)}
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype, out[2], state)
    assert all(jax.tree.leaves(same))


def test_a_state_made_by_a_piece_without_steps_has_the_whole_influence(x64):
    params, window, model = case("elman_learned")
    rtrl = RTRL(*model, k1=1)
    made, of_none = (
        rtrl.init(params, part(window, 0, steps), (B,)) for steps in (STEPS, 0)
    )
    assert jax.tree.map(jnp.shape, of_none) == jax.tree.map(jnp.shape, made)
    assert of_none.influence["rnn"]["recurrent_kernel"].shape[1] == 4


def test_a_loop_of_updates_traces_the_losses_once():
    """Also where each call makes its method and its optimizer's update anew."""
    cell, calls = jaxrnn.IndRNN(2), []

    def losses(params, carry, window):
        calls.append(1)
        out = jaxrnn.unroll(cell, params, window.inputs, carry, return_carries=True)
        return out[1].sum(-1), out[2]

    params, optimizer = cell.init(jax.random.key(0), 3), optax.sgd(0.1)
    window, opt_state = Window(jnp.ones((5, B, 3)), None), optimizer.init(params)
    state, counts = None, []
    for _ in range(3):
        rtrl = RTRL(losses, cell.initial_carry, k1=2)
        state = rtrl.init(params, window, (B,)) if state is None else state
        params, opt_state, _, state = rtrl.update(
            optimizer, params, opt_state, window, state
        )
        counts.append(len(calls))
    assert counts[0] == counts[1] == counts[2] > 0


@pytest.mark.parametrize("method", [RTRL, UORO])
def test_no_streams_have_no_gradient(method, x64):
    params, window, model = case("elman_learned", False, (0,))
    online = method(*model, k1=2)
    state = online.init(params, window, (0,))
    out = online.value_and_grad(params, window, state, key=jax.random.key(0))
    assert not any(a.any() for a in jax.tree.leaves(out[:2]))


REFUSALS = {
    "k1": (lambda c: RTRL(*c.model, k1=0), "k1 must be"),
    "bytes": (
        lambda c: RTRL(*c.model, k1=1, max_bytes=100).init(c.params, c.window, (B,)),
        "RTRL: the derivative of a carry of 4 numbers .* would take .* bytes a "
        "stream, .* for 2 streams.*Traces",
    ),
    "bytes of UORO": (
        lambda c: UORO(*c.model, k1=1, max_bytes=9).init(c.params, c.window, (B,)),
        "UORO: a number for each parameter would take .* bytes a stream",
    ),
    "batch": (
        lambda c: RTRL(*c.model, k1=1).init(c.params, c.window, (5,)),
        "RTRL: mask must be bool of shape",
    ),
    "integer parameter": (
        lambda c: RTRL(*c.model, k1=1).init(
            {**c.params, "count": jnp.ones(2, int)}, c.window, (B,)
        ),
        r"RTRL: params\['count'\] is int",
    ),
    "integer carry": (
        lambda c: RTRL(
            c.model[0], lambda p, b: (c.model[1](p, b), jnp.zeros(b, int)), k1=1
        ).init(c.params, c.window, (B,)),
        "RTRL: carry.* is int",
    ),
    "no carry": (
        lambda c: RTRL(c.model[0], lambda p, b: (), k1=1).init(
            c.params, c.window, (B,)
        ),
        "initial_carry returns no arrays",
    ),
    "no key": (
        lambda c: UORO(*c.model, k1=1).value_and_grad(
            c.params, c.window, UORO(*c.model, k1=1).init(c.params, c.window, (B,))
        ),
        "UORO draws random signs, so it needs key",
    ),
    "gradient scale": (
        lambda c: RTRL(*c.model, k1=1).value_and_grad(
            c.params,
            c.window._replace(gradient_scale=jnp.ones((STEPS, B))),
            RTRL(*c.model, k1=1).init(c.params, c.window, (B,)),
        ),
        "RTRL: the sequence holds a gradient_scale",
    ),
    "state of UORO": (
        lambda c: RTRL(*c.model, k1=1).value_and_grad(
            c.params, c.window, UORO(*c.model, k1=1).init(c.params, c.window, (B,))
        ),
        "RTRL: the state is that of another method",
    ),
    "state of RTRL": (
        lambda c: UORO(*c.model, k1=1).value_and_grad(
            c.params,
            c.window,
            RTRL(*c.model, k1=1).init(c.params, c.window, (B,)),
            key=jax.random.key(0),
        ),
        "UORO: the state is that of another method",
    ),
    "mean over the batch": (
        lambda c: RTRL(
            lambda p, s, w: (c.model[0](p, s, w)[0].mean(1), c.model[0](p, s, w)[1]),
            c.model[1],
            k1=7,
        ).value_and_grad(
            c.params, c.window, RTRL(*c.model, k1=7).init(c.params, c.window, (B,))
        ),
        "RTRL: losses must return one loss per step",
    ),
}


@dataclasses.dataclass
class Case:
    params: dict
    window: Window
    model: tuple


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_refused_in_words(name, plain_errors, x64):
    call, words = REFUSALS[name]
    with pytest.raises((TypeError, ValueError), match=words):
        call(Case(*case("elman_learned")))
