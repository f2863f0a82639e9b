"""The chunk form of every cell with a matrix state against its steps, in float64:
values and gradients of parameters, inputs and first state.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrix_cells import MATRIX_CELLS, RULES, with_learned_state
from subjects import assert_same, compiled_outcome, normal

import jaxrnn
from jaxrnn import Associative, Scan
from jaxrnn.matrix import MatrixMemory
from jaxrnn.matrix.chunkwise import terms_not_finite

B, D = 2, 3
pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def unrolled(cell, engine, flags, reverse=False):
    """`outcome` of an unroll; flags says which of mask and resets count."""

    def run(params, xs, carry, mask, resets):
        return jaxrnn.unroll(
            cell,
            params,
            xs,
            carry,
            engine=engine,
            mask=mask if "m" in flags else None,
            resets=resets if "r" in flags else None,
            reverse=reverse,
        )

    return compiled_outcome(run)


def draw(cell, steps, seed=0):
    """Params, inputs, carry, cotangents, mask with holes, and resets."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    params = normal(random, shapes)
    xs = jnp.asarray(random.normal(size=(steps, B, D)))
    shapes = jax.eval_shape(lambda p: cell.initial_carry(p, (B,)), params)
    carry = normal(random, shapes)
    _, ys = jax.eval_shape(lambda p: jaxrnn.unroll(cell, p, xs), params)
    cotangents = normal(random, (shapes, ys))
    mask, resets = (random.random((steps, B)) < rate for rate in (0.7, 0.1))
    return params, xs, carry, cotangents, mask, resets


def assert_same_outcomes(actual, expected, tolerance=1e-10):
    """Values and gradients, each relative to its own size."""
    for a, b in zip(
        jax.tree.leaves((actual.values, actual.gradients)),
        jax.tree.leaves((expected.values, expected.gradients)),
        strict=True,
    ):
        assert_same(a, b, tolerance)


def assert_chunks_are_steps(cell, chunk, steps, flags="mr", reverse=False):
    arguments = draw(cell, steps)
    assert_same_outcomes(
        unrolled(cell, Associative(chunk), flags, reverse)(*arguments),
        unrolled(cell, Scan(), flags, reverse)(*arguments),
    )


@pytest.mark.parametrize("name", MATRIX_CELLS)
@pytest.mark.parametrize("learned", [False, True], ids=["zero", "learned"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_chunks_are_steps(name, learned, reverse):
    cell = MATRIX_CELLS[name]
    cell = with_learned_state(cell) if learned else cell
    assert_chunks_are_steps(cell, 4, 11, "mr", reverse)


def test_chunks_of_one_step_of_a_delta_rule():
    """Whose inverse of one row does not depend on its argument."""
    assert_chunks_are_steps(MATRIX_CELLS["delta"], 1, 3, "mr")


# Chunks of 1, 4, 16 and 64 of 1, 2, 63, 64, 65 and 130 steps. A chunk that is longer
# than so few steps runs as one chunk of as many, and one step is taken by itself.
LENGTHS = [(64, 1), (1, 2), (64, 2)]
LENGTHS += [(chunk, steps) for chunk in (1, 4, 16, 64) for steps in (63, 64, 65, 130)]
LONGEST = 130


def first_steps(cell, engine, steps):
    """The outcome of the first steps of the longest sequence, the others masked.

    One program serves every length.
    """
    params, xs, carry, (last, ys), _, resets = draw(cell, LONGEST)
    mask = jnp.broadcast_to(jnp.arange(LONGEST)[:, None] < steps, (LONGEST, B))
    run = unrolled(cell, engine, "m")
    found = run(params, xs, carry, (last, ys), mask, resets)
    (last, ys), (d_params, d_xs, d_carry) = found.values, found.gradients
    assert not np.any(d_xs[steps:])
    return (last, ys[:steps]), (d_params, d_xs[:steps], d_carry)


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "steps"), LENGTHS)
@pytest.mark.parametrize("name", MATRIX_CELLS)
def test_of_every_length(name, chunk, steps):
    """The steps, and chunks of one step, of which any length is whole chunks, are one
    program for all lengths.
    """
    cell = MATRIX_CELLS[name]
    expected = first_steps(cell, Scan(), steps)
    if chunk == 1:
        found = first_steps(cell, Associative(1), steps)
    else:
        params, xs, carry, (last, ys), *_ = draw(cell, LONGEST)
        given = params, xs[:steps], carry, (last, ys[:steps]), None, None
        found = unrolled(cell, Associative(chunk), "")(*given)
        found = found.values, found.gradients
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert_same(a, b, 1e-10)


@pytest.mark.parametrize("name", ["head_delta", "channel_delta", "channel"])
@pytest.mark.parametrize("strength", [30.0, 1e4], ids=["30", "1e4"])
def test_strong_decays(name, strength):
    cell = dataclasses.replace(MATRIX_CELLS[name], strength=strength)
    assert_chunks_are_steps(cell, 16, 19)


@pytest.mark.parametrize("name", ["delta", "diagonal_plus_low_rank"])
def test_keys_that_resemble_each_other(name):
    cell = dataclasses.replace(MATRIX_CELLS[name], same_key=True)
    assert_chunks_are_steps(cell, 32, 40)


class Scaled(NamedTuple):
    h: jax.Array
    S: jax.Array
    m: jax.Array


class Weighted(jaxrnn.MatrixCell):
    """Writes with strengths, some of which are exactly zero."""

    def init(self, key, input_size):
        shape = (input_size, 3 * self.hidden_size + self.num_heads)
        return {"kernel": jax.random.normal(key, shape)}

    def project(self, params, x):
        return x @ params["kernel"]

    def initial_carry(self, params, batch_shape=(), dtype=None):
        h, S, _ = super().initial_carry(params, batch_shape, dtype)
        return Scaled(h, S, jnp.zeros_like(S[..., 0, 0]))

    def unpack(self, carry):
        return carry.h, MatrixMemory(carry.S, carry.m), None

    def pack(self, h, memory, recent):
        return Scaled(h, memory.S, memory.m)

    def shown(self, params, y, m, z):
        return super().shown(params, y * jnp.exp(m)[..., None], m, z)

    def terms(self, params, z):
        qkv, w = jnp.split(z, [3 * self.hidden_size], axis=-1)
        q, k, v = map(self.split_heads, jnp.split(qkv, 3, axis=-1))
        w = jnp.where(w > 0, w, -jnp.inf)[..., None]
        return jaxrnn.Terms(q, k, v, -jnp.ones_like(w), w=w)


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "full"])
def test_writes_of_no_strength(empty):
    """At the first steps, too, where there is no scale yet."""
    cell = Weighted(4, num_heads=2)
    params, xs, carry, cotangents, mask, resets = draw(cell, 11)
    if empty:
        carry = jax.tree.map(jnp.zeros_like, carry)
        xs = xs.at[:2].set(0.0)  # w = 0 counts as -inf
    found, expected = (
        unrolled(cell, engine, "mr")(params, xs, carry, cotangents, mask, resets)
        for engine in (Associative(4), Scan())
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    assert_same_outcomes(found, expected)


@pytest.mark.parametrize("name", ["mlstm", *RULES])
def test_a_nan_reaches_later_steps_alone_and_crosses_no_reset(name):
    cell = MATRIX_CELLS[name]
    params, xs, carry, _, _, _ = draw(cell, 12)
    resets = jnp.zeros((12, B), bool).at[8].set(True)
    spoiled = xs.at[5, 0].set(jnp.nan)

    def run(xs):
        engine = Associative(8)
        return jaxrnn.unroll(cell, params, xs, carry, resets=resets, engine=engine)

    (last, ys), (last_of_spoiled, ys_of_spoiled) = map(jax.jit(run), (xs, spoiled))
    bad = np.isnan(np.asarray(ys_of_spoiled)).any(-1)
    first = np.zeros((12, B), bool)
    first[5:8, 0] = True
    np.testing.assert_array_equal(bad, first)
    assert_same(
        jnp.where(bad[..., None], 0, ys_of_spoiled),
        jnp.where(bad[..., None], 0, ys),
        1e-10,
    )
    for a, b in zip(*map(jax.tree.leaves, (last, last_of_spoiled)), strict=True):
        assert_same(a, b, 1e-10)


class Unguarded(jaxrnn.MatrixCell):
    """A delta rule whose keys of zeros are not finite."""

    def init(self, key, input_size):
        shape = (input_size, 3 * self.hidden_size)
        return {"kernel": jax.random.normal(key, shape)}

    def project(self, params, x):
        return x @ params["kernel"]

    def terms(self, params, z):
        q, k, v = map(self.split_heads, jnp.split(z, 3, axis=-1))
        k = k / jnp.sqrt((k * k).sum(-1, keepdims=True))
        return jaxrnn.Terms(q, k, v, a=-k)


def test_terms_that_are_not_finite_reach_later_steps_alone_and_cross_no_reset():
    """An input of zeros, which is finite, makes them."""
    cell = Unguarded(4, num_heads=2)
    params, xs, carry, *_ = draw(cell, 12)
    resets = jnp.zeros((12, B), bool).at[8].set(True)
    zeros = xs.at[5, 0].set(0)

    def run(xs, engine):
        return jaxrnn.unroll(cell, params, xs, carry, resets=resets, engine=engine)

    run = jax.jit(run, static_argnums=1)
    (last, ys), (_, steps) = run(zeros, Associative(8)), run(zeros, Scan())
    bad = np.isnan(np.asarray(ys)).any(-1)
    np.testing.assert_array_equal(bad, np.isnan(np.asarray(steps)).any(-1))
    assert bad[5:8, 0].all()
    assert bad.sum() == 3
    expected_last, expected = run(xs, Scan())
    both = (jnp.where(bad[..., None], 0, y) for y in (ys, expected))
    assert_same(*both, 1e-10)
    assert_same(last, expected_last, 1e-10)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exponential"])
def test_cells_that_say_that_their_terms_are_finite(forget_gate):
    """Whatever finite z they are given."""
    kinds = vars(jaxrnn.cells).values()
    kinds = [kind for kind in kinds if getattr(kind, "finite_terms", False)]
    assert kinds == [jaxrnn.MLSTM]
    cell = jaxrnn.MLSTM(4, num_heads=2, forget_gate=forget_gate)
    params = cell.init(jax.random.key(0), D)
    zs = cell.project(params, jnp.zeros((1000, 8, D)))
    largest = float(np.finfo(zs.dtype).max)
    drawn = np.random.default_rng(0).choice(
        [-largest, largest, 0.0, -1.0, 1e-30, 88.0], size=zs.shape
    )
    terms = cell.terms(params, jnp.asarray(drawn, zs.dtype))
    assert not terms_not_finite(terms, None, 1).any()


def test_a_subclass_does_not_inherit_that_its_terms_are_finite():
    @dataclasses.dataclass(frozen=True)
    class Normed(jaxrnn.MLSTM):
        def steps(self, z):
            steps = super().steps(z)
            size = jnp.sqrt((steps.k**2).sum(-1, keepdims=True))
            return steps._replace(k=steps.k / size)

    cell = Normed(4, num_heads=2)
    params, xs, *_ = draw(cell, 8)
    params = jax.tree.map(jnp.zeros_like, params) | {
        "input_kernel": params["input_kernel"]
    }
    xs = xs.at[5, 0].set(0)
    _, ys = jaxrnn.unroll(cell, params, xs, engine=Associative(8))
    bad = np.isnan(np.asarray(ys)).any(-1)
    np.testing.assert_array_equal(bad, np.arange(8)[:, None] >= [5, 8])


def faster(kind):
    """A subclass with other terms."""

    @dataclasses.dataclass(frozen=True)
    class Faster(kind):
        def terms(self, params, z):
            terms = super().terms(params, z)
            return terms._replace(g=terms.g - 0.1)

    return Faster


def doubled(kind):
    """A subclass that shows something else."""

    @dataclasses.dataclass(frozen=True)
    class Doubled(kind):
        def shown(self, params, y, m, z):
            return 2 * super().shown(params, y, m, z)

    return Doubled


def begun(kind, method="initial_carry", also=()):
    """A subclass with a first state of its own."""

    def begin(self, params, batch_shape=(), dtype=None):
        carry = getattr(kind, method)(self, params, batch_shape, dtype)
        names = [name for name in carry._fields if name != "recent" or name in also]
        more = {name: getattr(carry, name) + jnp.ones(()) for name in names}
        return carry._replace(**more)

    return dataclasses.dataclass(frozen=True)(type("Begun", (kind,), {method: begin}))


GATED, MLSTM = jaxrnn.cells.GatedDeltaNet, jaxrnn.MLSTM
SUBCLASSES = {
    "terms": faster(MLSTM),
    "shown": doubled(MLSTM),
    "first": begun(MLSTM),
    "gated_terms": faster(GATED),
    "gated_first": begun(GATED),
    "gated_zero": begun(GATED, "zero_carry"),
    "mamba_first": begun(jaxrnn.cells.Mamba),
}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_subclasses_of_built_in_cells_are_their_steps(name):
    """With terms, reads and first states of their own."""
    cell = SUBCLASSES[name](4) if "mamba" in name else SUBCLASSES[name](4, num_heads=2)
    params, xs, carry, _, mask, resets = draw(cell, 12)
    plain = type(cell).__mro__[1](**vars(cell))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(cell, engine):
        more = {"mask": jnp.asarray(mask), "resets": jnp.asarray(resets)}
        more["engine"] = engine
        return jaxrnn.unroll(cell, params, xs, carry, **more)

    expected = run(cell, Scan())
    assert_same(run(cell, Associative(4)), expected, 1e-10)
    assert np.abs(run(plain, Scan())[1] - expected[1]).max() > 1e-3


def test_a_first_state_may_depend_on_the_row():
    @dataclasses.dataclass(frozen=True)
    class Rows(GATED):
        def initial_carry(self, params, batch_shape=(), dtype=None):
            carry = super().initial_carry(params, batch_shape, dtype)
            rows = jnp.arange(batch_shape[0], dtype=carry.S.dtype)
            return carry._replace(S=carry.S + rows[:, None, None, None])

    cell = Rows(4, num_heads=2)
    params, xs, _, _, _, resets = draw(GATED(4, num_heads=2), 12)
    more = {"resets": jnp.asarray(resets)}
    found = jaxrnn.unroll(cell, params, xs, engine=Associative(4), **more)
    assert_same(found, jaxrnn.unroll(cell, params, xs, engine=Scan(), **more), 1e-10)


@pytest.mark.parametrize("kind", [GATED, jaxrnn.cells.Mamba])
def test_looking_back_at_a_first_state_is_refused_behind_resets(kind):
    cell = begun(kind, also=("recent",))(4)
    params, xs, carry, *_, resets = draw(cell, 12)
    words = "Begun: initial_carry gives `recent`, .* other values than zero"
    with pytest.raises(ValueError, match=words):
        jaxrnn.unroll(cell, params, xs, carry, resets=jnp.asarray(resets))
    jaxrnn.unroll(cell, params, xs, carry)


def test_the_filling_of_the_last_chunk_is_a_valid_input():
    """So that it has a finite gradient where zeros have none."""
    cell = Unguarded(4, num_heads=2)
    assert_chunks_are_steps(cell, 8, 11, "r")


class Words(jaxrnn.MatrixCell):
    """A rule on tokens, which are looked up where the terms are made."""

    feature_ndim = 0

    def init(self, key, input_size):
        shape = (5, 3 * self.hidden_size)
        return {"embedding": jax.random.normal(key, shape)}

    def terms(self, params, z):
        parts = jnp.split(params["embedding"][z], 3, axis=-1)
        q, k, v = map(self.split_heads, parts)
        return jaxrnn.Terms(q, k, v, a=-k / 10)


def test_inputs_that_are_no_floats():
    cell = Words(4, num_heads=2)
    params = cell.init(jax.random.key(0), 5)
    words = jax.random.randint(jax.random.key(1), (9, B), 0, 5)

    def loss(params, engine):
        last, ys = jaxrnn.unroll(cell, params, words, engine=engine)
        return jnp.sin(ys).sum() + jnp.cos(last.S).sum()

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    assert_same(both(params, Associative(4)), both(params, Scan()), 1e-10)


def test_a_nan_in_a_masked_step_is_as_nothing():
    cell = MATRIX_CELLS["channel_delta"]
    params, xs, carry, cotangents, mask, resets = draw(cell, 11)
    spoiled = jnp.where(mask[..., None], xs, jnp.nan)
    run = unrolled(cell, Associative(4), "mr")
    rest = (carry, cotangents, mask, resets)
    assert_same_outcomes(run(params, spoiled, *rest), run(params, xs, *rest))


@pytest.mark.parametrize(
    "name", ["head", "channel", "delta", "head_delta", "channel_delta"]
)
def test_float32_adds_little_to_the_rounding_of_the_steps(name):
    cell = MATRIX_CELLS[name]
    params, xs, *_ = draw(cell, 96)

    def ys(dtype, engine):
        cast = functools.partial(jax.tree.map, lambda a: a.astype(dtype))
        run = jax.jit(lambda p, xs: jaxrnn.unroll(cell, p, xs, engine=engine)[1])
        return np.asarray(run(cast(params), cast(xs)), np.float64)

    right = ys(jnp.float64, Scan())

    def error(engine):
        return np.abs(ys(jnp.float32, engine) - right).max()

    assert error(Associative(32)) <= 4 * error(Scan())


def test_what_was_written_last_at_a_key_is_read_there():
    q = jnp.asarray([[[1.0, 0.0]], [[0.6, 0.8]], [[0.6, 0.8]]])
    v = jnp.asarray([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]])

    class Writes(jaxrnn.MatrixCell):
        def init(self, key, input_size):
            return {}

        def initial_carry(self, params, batch_shape=(), dtype=None):
            return super().initial_carry({"": q}, batch_shape, dtype)

        def terms(self, params, z):
            k, v = jnp.split(z[..., None, :], 2, -1)
            return jaxrnn.Terms(k, k, v, a=-k)

    xs = jnp.concatenate([q, v], -1)
    for engine in (Scan(), Associative(4)):
        _, ys = jaxrnn.unroll(Writes(2), {}, xs, engine=engine)
        assert_same(ys, v, 1e-12)


@pytest.mark.parametrize("name", ["head_delta", "products", "mamba3"])
def test_the_transition_is_the_jacobian_of_the_state(name):
    cell = MATRIX_CELLS[name]
    params, xs, carry, *_ = draw(cell, 1)
    z = cell.project(params, xs[0])

    def after(S):
        return cell.step(params, carry._replace(S=S), z).S

    jacobian = jax.jacobian(after)(carry.S)
    wanted = np.zeros(jacobian.shape)
    M = np.asarray(cell.transition(params, cell.looked_back(params, carry, z)))
    for b in range(B):
        for n in range(cell.num_heads):
            for v in range(cell.values):
                wanted[b, n, :, v, b, n, :, v] = M[b, n]
    assert_same(jacobian, wanted, 1e-10)
