"""The chunkwise form of the mLSTM against its steps: values and gradients, whatever
the flags and the gates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import assert_same, compiled_outcome, drawn_params, normal

import jaxrnn
from jaxrnn import MLSTM, Associative, Scan

B, D = 2, 3
CELLS = {
    "plain": MLSTM(4, num_heads=2, key_size=3),
    "learned": MLSTM(4, num_heads=2, key_size=3, learned_initial_carry=True),
    "exponential": MLSTM(4, forget_gate="exponential"),
    # with the normalizer 12 and 17 columns, which chunks take in two parts
    "wide": MLSTM(22, num_heads=2, key_size=3, learned_initial_carry=True),
    "wider": MLSTM(32, num_heads=2, key_size=3),
}


@functools.cache
def run(cell, engine, flags, reverse):
    """`outcome` of an unroll, compiled: (params, xs, carry, cotangents, mask,
    resets); flags says which of the two count.
    """

    def run(params, xs, carry, mask, resets):
        mask, resets = mask if "m" in flags else None, resets if "r" in flags else None
        return jaxrnn.unroll(
            cell,
            params,
            xs,
            carry,
            engine=engine,
            mask=mask,
            resets=resets,
            reverse=reverse,
        )

    return compiled_outcome(run)


def draw(cell, steps, seed, gates=1.0):
    """Params, inputs, carry and cotangents; the gates' parameters ``gates`` times as
    large.
    """
    random = np.random.default_rng(seed)
    params = normal(
        random, jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    )
    scale = (
        jnp.ones(params["bias"].shape[0], params["bias"].dtype)
        .at[-2 * cell.num_heads :]
        .set(gates)
    )
    params |= {
        "bias": params["bias"] * scale,
        "input_kernel": params["input_kernel"] * scale[None],
    }
    xs = normal(random, jax.ShapeDtypeStruct((steps, B, D), jnp.result_type(float)))
    carry = normal(
        random, jax.eval_shape(lambda p: cell.initial_carry(p, (B,)), params), 0.5
    )
    return (
        params,
        xs,
        carry,
        normal(
            random,
            (carry, jax.ShapeDtypeStruct((steps, B, cell.hidden_size), xs.dtype)),
        ),
    )


def flags_of(steps, seed):
    """Masks and resets by name."""
    random = np.random.default_rng(seed)
    all_, none = np.ones((steps, B), bool), np.zeros((steps, B), bool)
    first, last = none.copy(), none.copy()
    first[:1], last[-1:] = True, True
    holes, some = random.random((steps, B)) < 0.6, random.random((steps, B)) < 0.3
    yield from [
        (all_, none),
        (none, none),
        (holes, none),
        (none, some),
        (holes, some),
        (holes, first),
        (holes, last),
    ]
    yield from [(all_, first), (all_, last), (all_, all_), (holes, all_), (all_, some)]


def assert_same_outcome(actual, expected, tolerance):
    """Values, and the gradients of params, inputs and carry, each relative to its
    own size.
    """
    for a, b in zip(
        (*actual.values, *actual.gradients),
        (*expected.values, *expected.gradients),
        strict=True,
    ):
        assert_same(a, b, tolerance)


EVERY = [
    ("plain", steps, reverse)
    for steps in (0, 1, 2, 7, 33)
    for reverse in (False, True)
    if steps > 1 or not reverse
]


@pytest.mark.parametrize(
    ("name", "steps", "reverse"),
    [
        *EVERY,
        ("learned", 7, True),
        ("exponential", 33, False),
        ("wide", 7, True),
        ("wider", 33, False),
    ],
)
def test_chunks_are_the_steps(name, steps, reverse, x64):
    cell, inputs = CELLS[name], draw(CELLS[name], steps, steps)
    for mask, resets in flags_of(steps, steps):
        expected = run(cell, Scan(save="everything"), "mr", reverse)(
            *inputs, mask, resets
        )
        for chunk in (1, 4, 33) if steps == 7 else (1, 16, 33):
            if chunk in (4, 16) or (name == "plain" and steps > 2):
                actual = run(cell, Associative(chunk), "mr", reverse)(
                    *inputs, mask, resets
                )
                assert_same_outcome(actual, expected, 1e-12)


@pytest.mark.parametrize("chunk", [3, 7])
@pytest.mark.parametrize("flags", ["", "m", "r"])
def test_without_mask_or_resets(flags, chunk, x64):
    """They are other programs, not all-true masks; and chunks that need no filling are
    others again.
    """
    cell, inputs = CELLS["wide"], draw(CELLS["wide"], 7, 0)
    mask, resets = list(flags_of(7, 1))[4]
    plain = run(cell, Scan(save="everything"), flags, False)
    expected = plain(*inputs, mask, resets)
    assert_same_outcome(
        run(cell, Associative(chunk), flags, False)(*inputs, mask, resets),
        expected,
        1e-12,
    )


@pytest.mark.parametrize("gate", [0.5, 1000.0])
def test_keys_of_zero_have_no_say_in_the_scale_before_the_first_write(gate, x64):
    """As in a step: they leave the state zero, however large their gate is. Their
    gradients are those of the steps, too.
    """
    cell = CELLS["wider"]
    params, xs, _, cotangents = draw(cell, 12, 0)
    first = np.cumsum(cell.blocks)
    params["bias"] = params["bias"].at[first[0] : first[1]].set(0)
    xs = xs.at[:3].set(0).at[6:8, 1].set(0)  # keys of zero at the beginning and behind
    i = slice(first[3], first[4])
    params["bias"] = params["bias"].at[i].set(0)
    kernel = params["input_kernel"].at[:, i].set(0).at[0, i].set(gate)
    kernel = kernel.at[0, first[0] : first[1]].set(0)  # the first feature moves i alone
    params["input_kernel"] = kernel
    xs = xs.at[:, :, 0].set(0).at[1, 0, 0].set(1)
    carry = cell.initial_carry(params, (B,))
    none = np.zeros((12, B), bool)
    for resets in (none, list(flags_of(12, 1))[3][1]):
        given = params, xs, carry, cotangents, ~none, resets
        expected = run(cell, Scan(save="everything"), "r", False)(*given)
        for chunk in (1, 2, 5, 12):
            found = run(cell, Associative(chunk), "r", False)(*given)
            assert_same(found.values[1], expected.values[1], 1e-12)
            if gate < 1:
                assert_same(found.gradients[:2], expected.gradients[:2], 1e-12)


@pytest.mark.parametrize("gates", [20.0, 200.0])
@pytest.mark.parametrize("name", ["plain", "exponential"])
def test_gates_far_apart(name, gates):
    """float32, where exp(200) overflows: finite, and float64's numbers; the gradient
    by steps loses more digits in m.
    """
    cell = CELLS[name]
    inputs = draw(cell, 33, 0, gates)
    mask, resets = list(flags_of(33, 1))[4]
    outcomes = [
        run(cell, e, "mr", False)(*inputs, mask, resets)
        for e in (Scan(save="everything"), Associative(16))
    ]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), inputs)
        exact = run(cell, Associative(16), "mr", False)(*wide, mask, resets)
    for one, tolerance in zip(outcomes, (1e-2, 1e-4), strict=True):
        assert all(
            np.isfinite(leaf).all()
            for leaf in jax.tree.leaves((one.values, one.gradients))
        )
        one = jax.tree.map(lambda a: np.asarray(a, np.float64), one)
        assert_same(one.values, exact.values, 1e-5)
        assert_same(one.gradients[:2], exact.gradients[:2], tolerance)


def test_float32(x64):
    """1e-5 of float64."""
    cell = CELLS["plain"]
    inputs = draw(cell, 33, 0)
    mask, resets = list(flags_of(33, 1))[4]
    expected = run(cell, Associative(16), "mr", False)(*inputs, mask, resets)
    short = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), inputs)
    actual = run(cell, Associative(16), "mr", False)(*short, mask, resets)
    assert_same_outcome(
        jax.tree.map(lambda a: np.asarray(a, np.float64), actual), expected, 1e-5
    )


def test_return_carries_is_refused():
    cell = jaxrnn.stack(jaxrnn.GRU(3), CELLS["plain"])
    params = drawn_params(cell, D)
    with pytest.raises(
        ValueError,
        match=r"MLSTM: Associative\(chunk='auto'\) runs whole chunks .* engine=jaxrnn.Scan",  # noqa: E501
    ):
        jaxrnn.unroll(
            cell.layers[1],
            params["layer_1"],
            jnp.ones((4, 3)),
            engine=Associative(),
            return_carries=True,
        )


def test_modes_and_half_precision(x64):
    """Forward mode is reverse mode; ``vmap`` is the batch; bfloat16 stays bfloat16,
    its memory float32.
    """
    cell = CELLS["plain"]
    params, xs, carry, cotangents = draw(cell, 7, 0)
    mask, resets = map(jnp.asarray, list(flags_of(7, 1))[4])

    def run(params, xs, carry, mask=mask, resets=resets):
        return jaxrnn.unroll(
            cell, params, xs, carry, engine=Associative(3), mask=mask, resets=resets
        )

    direction = normal(np.random.default_rng(3), (params, xs, carry))
    push = compiled(lambda at, d: jax.jvp(run, at, d)[1])(
        (params, xs, carry), direction
    )
    pull = compiled(lambda at, c: jax.vjp(run, *at)[1](c))(
        (params, xs, carry), cotangents
    )
    pairs = ((push, cotangents), (pull, direction))
    one, other = (
        sum(np.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in pairs
    )
    assert one == pytest.approx(other, rel=1e-12)

    mapped = compiled(
        jax.vmap(lambda x, s, m, r: run(params, x, s, m, r), (1, 0, 1, 1), (0, 1))
    )(xs, carry, mask, resets)
    assert_same(mapped, compiled(run)(params, xs, carry))

    half = jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a), jnp.bfloat16), (params, xs)
    )
    last, ys = jaxrnn.unroll(cell, *half, engine=Associative(3))
    assert ys.dtype == last.h.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in last[1:]} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(
        np.asarray(ys, float), jaxrnn.unroll(cell, params, xs)[1], atol=0.1
    )


def test_the_default_is_chunks_unless_all_carries_are_asked_for():
    """Told by memory: step by step, every matrix memory is kept for the gradient."""
    cell, steps = jaxrnn.MLSTM(16), 256
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 16))
    xs = jax.ShapeDtypeStruct((steps, 16), jnp.float32)

    def kept(engine=None, **more):
        gradient = jax.jit(
            jax.grad(
                lambda p, x: jaxrnn.unroll(cell, p, x, engine=engine, **more)[1].sum()
            )
        )
        return gradient.lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert kept() == kept(jaxrnn.Associative())
    assert kept() < kept(jaxrnn.Scan()) / 2
    assert kept(return_carries=True) > 2 * kept()


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_not_finite_spoils_later_steps_alone_and_no_reset_lets_it_through(
    reverse,
):
    """As step by step: sums over a chunk would carry it to the steps before, and 0 *
    NaN across resets.
    """
    cell = jaxrnn.MLSTM(4, num_heads=2)
    params = drawn_params(cell, 3)
    xs = (
        jax.random.normal(jax.random.key(1), (40, 2, 3))
        .at[5, 0]
        .set(jnp.nan)
        .at[30, 1]
        .set(jnp.inf)
    )
    resets = (
        jnp.zeros((40, 2), bool)
        .at[12, 0]
        .set(True)
        .at[20, 0]
        .set(True)
        .at[25, 1]
        .set(True)
    )
    for flags in (None, resets):
        found = []
        for engine in (None, Associative(7), Associative(8), Scan()):
            last, ys = jaxrnn.unroll(
                cell, params, xs, resets=flags, reverse=reverse, engine=engine
            )
            found.append(
                (
                    np.isfinite(ys).all(-1),
                    np.isfinite(last.h).all(-1),
                    np.isfinite(last.C).all((-1, -2, -3)),
                    ys,
                )
            )
        for a in found[:-1]:
            for mine, stepped in zip(a[:-1], found[-1][:-1], strict=True):
                np.testing.assert_array_equal(mine, stepped)
            good = found[-1][0]
            np.testing.assert_allclose(
                np.asarray(a[-1])[good],
                np.asarray(found[-1][-1])[good],
                rtol=1e-4,
                atol=1e-5,
            )


def test_sizes_that_are_symbols_are_left_to_scan():
    cell = jaxrnn.MLSTM(4)
    params = drawn_params(cell, 3)
    xs = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t, 3"), jnp.float32)
    exported = jax.export.export(
        jax.jit(lambda xs: jaxrnn.unroll(cell, params, xs)[1])
    )(xs)
    here = jax.random.normal(jax.random.key(1), (9, 3))
    np.testing.assert_allclose(
        exported.call(here), jaxrnn.unroll(cell, params, here)[1], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(
        ValueError, match=r"sizes are symbolic .*only engine=jaxrnn.Scan\(\) runs that"
    ):
        jax.export.export(
            jax.jit(
                lambda xs: jaxrnn.unroll(cell, params, xs, engine=jaxrnn.Associative())[
                    1
                ]
            )
        )(xs)
