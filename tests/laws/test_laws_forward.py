"""However a sequence is run, it gives the same values and the same gradients
(laws 1-10 and 13).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled, python_loop
from subjects import (
    ALWAYS,
    CAUSAL,
    CELLS,
    FEW,
    NEVER,
    PLAIN,
    SUBJECTS,
    B,
    D,
    T,
    assert_same,
    assert_same_outcome,
    compiled_outcome,
    draw,
    looped,
    unrolled,
)

import jaxrnn


@pytest.mark.parametrize("name", SUBJECTS)
def test_unroll_is_a_python_loop(name, x64):
    for seed in range(3):
        inputs = draw(name, seed)
        assert_same_outcome(unrolled(name)(*inputs), looped(name, inputs))


@pytest.mark.parametrize("name", ["elman", "lstm_all_learned", "gru_learned"])
def test_unroll_is_a_python_loop_in_float32(name):
    inputs = draw(name, 0)
    assert inputs.xs.dtype == jnp.float32
    assert_same_outcome(unrolled(name)(*inputs), looped(name, inputs), 1e-6, 1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_reverse_is_a_python_loop_backwards(name, x64):
    inputs = draw(name, 0)
    assert_same_outcome(
        unrolled(name, reverse=True)(*inputs), looped(name, inputs, reverse=True)
    )


@pytest.mark.parametrize("name", CAUSAL)
def test_a_sequence_may_be_run_in_two_parts_wherever_it_is_cut(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    carry, ys = unrolled(name)(*inputs[:4], ALWAYS, NEVER).values
    unrolling = compiled(lambda p, x, s: jaxrnn.unroll(layer, p, x, s))
    for cut in range(T + 1) if name in FEW else (1,):
        between, first = unrolling(inputs.params, inputs.xs[:cut], inputs.carry)
        last, second = unrolling(inputs.params, inputs.xs[cut:], between)
        assert_same((last, jnp.concatenate([first, second])), (carry, ys))


@pytest.mark.parametrize("name", FEW)
def test_gradients_cross_the_cut(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)

    def in_two_parts(params, xs, carry):
        carry, first = jaxrnn.unroll(layer, params, xs[:2], carry)
        carry, second = jaxrnn.unroll(layer, params, xs[2:], carry)
        return carry, jnp.concatenate([first, second])

    assert_same_outcome(
        compiled_outcome(in_two_parts)(*inputs[:4]),
        unrolled(name)(*inputs[:4], ALWAYS, NEVER),
    )


@pytest.mark.parametrize("name", PLAIN)
def test_mask_and_resets_may_be_left_out(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    bare = compiled_outcome(lambda p, x, s: jaxrnn.unroll(layer, p, x, s))
    assert_same_outcome(bare(*inputs[:4]), unrolled(name)(*inputs[:4], ALWAYS, NEVER))


@pytest.mark.parametrize(
    "name", [name for name in SUBJECTS if f"{name}_learned" not in SUBJECTS]
)
def test_the_carry_may_be_left_out(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    carry = layer.initial_carry(inputs.params, (B,))
    expected = unrolled(name)(inputs.params, inputs.xs, carry, *inputs[3:]).values
    left_out = compiled(lambda p, x, m, r: jaxrnn.unroll(layer, p, x, mask=m, resets=r))
    assert_same(
        left_out(inputs.params, inputs.xs, inputs.mask, inputs.resets), expected
    )


ENGINES = {
    jaxrnn.Scan(hoist=False): PLAIN,
    jaxrnn.Scan(unroll=2): ["lstm_all_learned", "zoneout"],
    jaxrnn.Scan(unroll=8): ["lstm_all_learned", "zoneout"],
    jaxrnn.Checkpoint(): FEW,
    jaxrnn.Checkpoint(2): ["lstm_all_learned", "zoneout"],
    jaxrnn.Checkpoint(99): ["lstm_all_learned", "zoneout"],
}


@pytest.mark.parametrize(
    ("engine", "name"),
    [(engine, name) for engine, names in ENGINES.items() for name in names],
    ids=str,
)
def test_engine(engine, name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    unrolling = compiled_outcome(
        lambda p, x, s, m, r: jaxrnn.unroll(
            layer, p, x, s, mask=m, resets=r, engine=engine
        )
    )
    assert_same_outcome(unrolling(*inputs), unrolled(name)(*inputs))


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize(
    "how", [{"reverse": True}, {"window": 2}, {"window": 3, "reverse": True}], ids=str
)
def test_checkpoints_backwards_and_in_windows(how, steps, x64):
    layer = SUBJECTS["lstm_all_learned"]
    inputs = draw(layer, 0, steps=steps)
    unrolling = jaxrnn.truncated_unroll if "window" in how else jaxrnn.unroll
    run = [
        compiled_outcome(
            lambda p, x, s, m, r, e=engine: unrolling(
                layer, p, x, s, mask=m, resets=r, engine=e, **how
            )
        )
        for engine in (jaxrnn.Checkpoint(2), jaxrnn.Scan())
    ]
    assert_same_outcome(run[0](*inputs), run[1](*inputs))


def test_checkpoints_save_memory():
    cell, steps = jaxrnn.LSTM(16), 1024
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((steps, D), jnp.float32)

    def bytes_for(engine):
        loss = lambda p, x: jaxrnn.unroll(cell, p, x, engine=engine)[0].h.sum()  # noqa: E731
        return (
            jax.jit(jax.grad(loss))
            .lower(params, xs)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert bytes_for(jaxrnn.Checkpoint()) < bytes_for(jaxrnn.Scan()) / 2


@pytest.mark.parametrize("name", PLAIN)
def test_vmap_and_a_loop_over_the_batch_are_the_batch(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    expected = unrolled(name)(*inputs)

    def one(params, xs, carry, mask, resets):
        return jaxrnn.unroll(layer, params, xs, carry, mask=mask, resets=resets)

    mapped = compiled_outcome(
        jax.vmap(one, in_axes=(None, 1, 0, 1, 1), out_axes=(0, 1))
    )
    assert_same_outcome(mapped(*inputs), expected)

    grads = []
    for b in range(B):
        carry, (carry_cotangent, y_cotangent) = inputs.carry, inputs.cotangents
        of_b = jax.tree.map(lambda a, b=b: a[b], (carry, carry_cotangent))
        alone = unrolled(name)(
            inputs.params,
            inputs.xs[:, b],
            of_b[0],
            (of_b[1], y_cotangent[:, b]),
            inputs.mask[:, b],
            inputs.resets[:, b],
        )
        assert_same(
            alone.values,
            (
                jax.tree.map(lambda a, b=b: a[b], expected.values[0]),
                expected.values[1][:, b],
            ),
        )
        grads.append(alone.gradients[0])
        assert_same(alone.gradients[1], expected.gradients[1][:, b])
    assert_same(jax.tree.map(lambda *each: sum(each), *grads), expected.gradients[0])


@pytest.mark.parametrize("name", SUBJECTS)
def test_permuting_the_batch_permutes_the_results(name, x64):
    inputs = draw(name, 0)
    order = np.array([2, 0, 1])
    by_batch, by_time = (
        lambda tree: jax.tree.map(lambda a: a[order], tree),
        lambda a: a[:, order],
    )
    params, xs, carry, (carry_cotangent, y_cotangent), mask, resets = inputs
    moved = (
        by_time(xs),
        by_batch(carry),
        (by_batch(carry_cotangent), by_time(y_cotangent)),
        by_time(mask),
        by_time(resets),
    )
    (last, ys), (params_gradient, xs_gradient, carry_gradient), _ = unrolled(name)(
        *inputs
    )
    actual = unrolled(name)(params, *moved)
    assert_same(actual.values, (by_batch(last), by_time(ys)))
    assert_same(
        actual.gradients,
        (params_gradient, by_time(xs_gradient), by_batch(carry_gradient)),
    )


@pytest.mark.parametrize("name", ["lstm_all_learned", "gru_learned", "stack"])
def test_compiled_is_eager(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0)
    expected = unrolled(name)(*inputs).values
    with jax.disable_jit():
        assert_same(
            jaxrnn.unroll(layer, *inputs[:3], mask=inputs.mask, resets=inputs.resets),
            expected,
        )
        assert_same(
            python_loop(layer, *inputs[:3], inputs.mask, inputs.resets)[:2], expected
        )


@pytest.mark.parametrize("name", PLAIN)
def test_reverse_is_forward_on_the_flipped_sequence(name, x64):
    params, xs, carry, (carry_cotangent, y_cotangent), mask, resets = inputs = draw(
        name, 0
    )
    flipped = (
        params,
        xs[::-1],
        carry,
        (carry_cotangent, y_cotangent[::-1]),
        mask[::-1],
        resets[::-1],
    )
    actual, forward = unrolled(name, reverse=True)(*flipped), unrolled(name)(*inputs)
    (last, ys), (params_gradient, xs_gradient, carry_gradient) = (
        forward.values,
        forward.gradients,
    )
    assert_same(actual.values, (last, ys[::-1]))
    assert_same(actual.gradients, (params_gradient, xs_gradient[::-1], carry_gradient))
    # And the order of the inputs matters, or this would say nothing.
    assert jnp.abs(unrolled(name)(*flipped).values[1] - ys).max() > 1e-3


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_bidirectional_is_forward_beside_flipped_backward_for_every_length(merge, x64):
    forward, backward = jaxrnn.LSTM(4), jaxrnn.GRU(4)
    layer = jaxrnn.bidirectional(forward, backward, merge=merge)
    inputs, lengths = draw(layer, 0), [5, 3, 0]
    mask = np.arange(T)[:, None] < np.array([lengths])
    last, ys = compiled(lambda p, x, m: jaxrnn.unroll(layer, p, x, mask=m))(
        inputs.params, inputs.xs, mask
    )
    for b, length in enumerate(lengths):
        xs = inputs.xs[:length, b]
        forward_last, forward_ys = jaxrnn.unroll(forward, inputs.params["forward"], xs)
        backward_last, backward_ys = jaxrnn.unroll(
            backward, inputs.params["backward"], xs[::-1]
        )
        both = (forward_ys, backward_ys[::-1])
        assert_same(
            ys[:length, b], sum(both) if merge == "sum" else jnp.concatenate(both, -1)
        )
        assert not ys[length:, b].any()
        assert_same(
            jax.tree.map(lambda a, b=b: a[b], last),
            jaxrnn.BidirectionalCarry(forward_last, backward_last),
        )


@pytest.mark.parametrize("name", [*PLAIN, "lstm_all_learned", "gru_learned"])
def test_no_steps_give_back_the_carry(name, x64):
    params, xs, carry, cotangents, mask, resets = draw(name, 0, steps=0)
    (last, ys), (params_gradient, xs_gradient, carry_gradient), _ = unrolled(name)(
        params, xs, carry, cotangents, mask, resets
    )
    assert_same(last, carry, 0)
    assert ys.shape[:2] == (0, B)
    assert ys.size == xs_gradient.size == 0
    assert_same(carry_gradient, cotangents[0], 0)
    assert not any(leaf.any() for leaf in jax.tree.leaves(params_gradient))


@pytest.mark.parametrize("name", CAUSAL)
def test_one_step_is_the_streaming_call(name, x64):
    layer, inputs = SUBJECTS[name], draw(name, 0, steps=1)
    carry, y = compiled(layer)(inputs.params, inputs.carry, inputs.xs[0])
    assert_same(
        (carry, y[None]), unrolled(name)(*inputs[:4], ALWAYS[:1], NEVER[:1]).values
    )


@pytest.mark.parametrize("name", [*FEW, "bidirectional"])
def test_any_batch_axes(name, x64):
    """None, one of size 1, none at all inside it, and two: the same numbers as one
    axis.
    """
    layer, inputs = SUBJECTS[name], draw(name, 0, batch=(4,))
    unrolling = compiled(lambda p, x, s: jaxrnn.unroll(layer, p, x, s))
    expected = unrolling(*inputs[:3])

    def reshaped(tree, batch, time_leads):
        return jax.tree.map(
            lambda a: a.reshape(
                *a.shape[:time_leads], *batch, *a.shape[time_leads + 1 :]
            ),
            tree,
        )

    two = unrolling(
        inputs.params, reshaped(inputs.xs, (2, 2), 1), reshaped(inputs.carry, (2, 2), 0)
    )
    assert_same(
        two, (reshaped(expected[0], (2, 2), 0), reshaped(expected[1], (2, 2), 1))
    )
    first = (inputs.xs[:, :1], jax.tree.map(lambda a: a[:1], inputs.carry))
    one = unrolling(inputs.params, *first)
    assert_same(one, (jax.tree.map(lambda a: a[:1], expected[0]), expected[1][:, :1]))
    without = unrolling(
        inputs.params, first[0][:, 0], jax.tree.map(lambda a: a[0], first[1])
    )
    assert_same(without, (jax.tree.map(lambda a: a[0], expected[0]), expected[1][:, 0]))
    empty = unrolling(
        inputs.params, inputs.xs[:, :0], jax.tree.map(lambda a: a[:0], inputs.carry)
    )
    assert empty[1].shape == (T, 0, expected[1].shape[-1])


@pytest.mark.parametrize("name", ["elman", "lstm", "lstm_all", "gru_before_layer_norm"])
def test_one_unit(name, x64):
    changes = (
        {"projection_size": 1} if getattr(CELLS[name], "projection_size", None) else {}
    )
    layer = dataclasses.replace(CELLS[name], hidden_size=1, **changes)
    inputs = draw(layer, 0, steps=2)
    unrolling = compiled_outcome(
        lambda p, x, s, m, r: jaxrnn.unroll(layer, p, x, s, mask=m, resets=r)
    )
    assert_same_outcome(unrolling(*inputs), looped(layer, inputs))
