"""Cells whose state is linear, elementwise and read inside the chunk, against their
steps, in float64: values and gradients of parameters, inputs and first state. Both
loops of a chunk run here, that of CPUs and that of other platforms.
"""

import dataclasses
import functools
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import assert_same, compiled_outcome, normal

import jaxrnn
from jaxrnn import Associative, Scan
from jaxrnn.cells import Mamba
from jaxrnn.matrix import StateSpaceCell, StateSpaceState, elementwise

B, D = 2, 3
pytestmark = pytest.mark.usefixtures("x64")


class Pair(NamedTuple):
    wave: jax.Array
    level: jax.Array


@dataclasses.dataclass(frozen=True)
class Waves(StateSpaceCell):
    """A cell of one's own: a state of two parts, one of them complex, and factors of
    fewer axes than it.
    """

    def init(self, key, input_size):
        shapes = {"kernel": (input_size, self.hidden_size), "weights": (2,)}
        return normal(
            np.random.default_rng(5),
            {name: jnp.zeros(shape) for name, shape in shapes.items()},
        )

    def project(self, params, x):
        return x @ params["kernel"]

    def initial_carry(self, params, batch_shape=(), dtype=None):
        h, s, recent = super().initial_carry(params, batch_shape, dtype)
        wave = jax.lax.complex(s + 0.5, s - 0.75)
        return StateSpaceState(h, Pair(wave, s + 0.25), recent)

    def affine(self, params, z):
        angle = jnp.arange(1.0, self.state_size + 1)
        turn = 0.9 * jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
        drive = jnp.broadcast_to(z[..., None], (*z.shape, self.state_size))
        a = Pair(turn, jax.nn.sigmoid(z)[..., None])
        return a, Pair(drive.astype(turn.dtype), jnp.sin(drive))

    def read(self, params, s, z):
        wave, level = (s.wave.real + s.wave.imag).sum(-1), s.level.sum(-1)
        return wave * params["weights"][0] + level * params["weights"][1]


CELLS = {
    "mamba": Mamba(4, state_size=3, conv=3),
    "mamba_no_conv": Mamba(4, state_size=3, conv=None, output_size=2),
    "mamba_learned": Mamba(4, state_size=3, conv=2, learned_initial_carry=True),
    "waves": Waves(3, state_size=2),
}


@functools.cache
def by_prefixes(kind):
    """The same cells, whose chunks run on a CPU as on other platforms."""

    class ByPrefixes(kind):
        def run_chunks(self, *inputs):
            prefixes = elementwise.run_prefixes
            with mock.patch.object(elementwise, "run_steps", prefixes):
                return super().run_chunks(*inputs)

    return ByPrefixes


def made(name, loop):
    cell = CELLS[name]
    options = {f.name: vars(cell)[f.name] for f in dataclasses.fields(cell) if f.init}
    options.pop("_", None)
    return by_prefixes(type(cell))(**options) if loop == "prefixes" else cell


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


def assert_chunks_are_steps(name, loop, chunk, steps, flags="mr", reverse=False):
    arguments = draw(CELLS[name], steps)
    plain = Scan(save="everything")
    assert_same_outcomes(
        unrolled(made(name, loop), Associative(chunk), flags, reverse)(*arguments),
        unrolled(CELLS[name], plain, flags, reverse)(*arguments),
    )


LOOPS = ["steps", "prefixes"]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("flags", ["mr", "m", "r", ""])
def test_chunks_are_steps(name, loop, reverse, flags):
    assert_chunks_are_steps(name, loop, 4, 11, flags, reverse)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("flags", ["", "mr"])
def test_of_every_length(loop, chunk, steps, flags):
    assert_chunks_are_steps("mamba_learned", loop, chunk, steps, flags)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_nan_reaches_later_steps_alone_and_crosses_no_reset(loop):
    cell = made("mamba", loop)
    params, xs, carry, _, _, _ = draw(cell, 12)
    resets = jnp.zeros((12, B), bool).at[8].set(True)
    spoiled = xs.at[5, 0].set(jnp.nan)

    def run(xs):
        engine = Associative(4)
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


@pytest.mark.parametrize("loop", LOOPS)
def test_a_nan_that_no_reset_follows_is_in_the_last_state(loop):
    cell = made("mamba", loop)
    params, xs, carry, *_ = draw(cell, 9)
    run = jax.jit(lambda xs: jaxrnn.unroll(cell, params, xs, carry)[0])
    last = run(xs.at[2, 1].set(jnp.nan))
    assert np.isnan(last.s[1]).all()
    assert np.isnan(last.h[1]).all()
    assert np.isfinite(last.s[0]).all()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_first_state_that_is_not_finite_stays_before_the_first_reset(loop):
    """Values and gradients, in the chunk of the reset and in later ones."""
    cell = made("waves", loop)
    params, xs, carry, *_ = draw(cell, 11)
    resets = jnp.zeros((11, B), bool).at[2].set(True)
    spoiled = jax.tree.map(lambda s: jnp.full_like(s, jnp.nan), carry)

    def run(params, xs, carry):
        engine = Associative(4)
        return jaxrnn.unroll(cell, params, xs, carry, resets=resets, engine=engine)

    def loss(params, xs, carry):
        return jnp.sin(run(params, xs, carry)[1][2:]).sum()

    both = jax.jit(lambda *a: (run(*a)[1], jax.grad(loss, argnums=1)(*a)))
    found, expected = both(params, xs, spoiled), both(params, xs, carry)
    assert np.isnan(found[0][:2]).all()
    assert_same(found[0][2:], expected[0][2:])
    assert_same(found[1][2:], expected[1][2:])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_nan_in_a_masked_step_is_as_nothing(loop):
    cell = made("mamba", loop)
    params, xs, carry, cotangents, mask, resets = draw(cell, 11)
    spoiled = jnp.where(mask[..., None], xs, jnp.nan)
    run = unrolled(cell, Associative(4), "mr")
    rest = (carry, cotangents, mask, resets)
    assert_same_outcomes(run(params, spoiled, *rest), run(params, xs, *rest))


def test_masked_steps_hold_the_state_exactly():
    """Beside the first step, which is not masked, so that there is a last h."""
    cell = CELLS["mamba"]
    params, xs, carry, *_ = draw(cell, 9)
    mask = jnp.zeros((9, B), bool).at[0].set(True)

    @jax.jit
    def last_of(xs, mask):
        return jaxrnn.unroll(cell, params, xs, carry, mask=mask)[0]

    last, first = last_of(xs, mask), last_of(xs[:2], mask[:2])
    # Two programs, which may differ by a rounding of the one step that both take.
    np.testing.assert_allclose(last.s, first.s, rtol=1e-14)


@pytest.mark.parametrize("loop", LOOPS)
def test_forward_mode_and_second_derivatives(loop):
    cell = made("mamba", loop)
    params, xs, carry, *_ = draw(cell, 7)

    def derivatives(cell, engine):
        def loss(xs):
            return jnp.sin(
                jaxrnn.unroll(cell, params, xs, carry, engine=engine)[1]
            ).sum()

        tangent = jnp.cos(xs)
        along = jax.jvp(jax.grad(loss), (xs,), (tangent,))
        return (
            along,
            jax.jvp(loss, (xs,), (tangent,)),
            jax.vmap(jax.grad(loss))(jnp.stack([xs, 2 * xs])),
        )

    assert_same(
        jax.jit(lambda: derivatives(cell, Associative(4)))(),
        jax.jit(lambda: derivatives(CELLS["mamba"], Scan(save="everything")))(),
        1e-10,
    )


@pytest.mark.parametrize("loop", LOOPS)
def test_memory_of_the_gradient_has_one_state_a_chunk(loop):
    """What more steps add is less than half of their states, whose 64 numbers a channel
    outweigh all else.
    """
    kind = by_prefixes(Mamba) if loop == "prefixes" else Mamba
    cell, chunk = kind(64, state_size=64, conv=None, rank=1), 16
    params = jax.eval_shape(lambda key: cell.init(key, 2), jax.random.key(0))

    def temporaries(steps):
        xs = jax.ShapeDtypeStruct((steps, B, 2), jnp.float32)

        def loss(params, xs):
            ys = jaxrnn.unroll(cell, params, xs, engine=Associative(chunk))[1]
            return jnp.sin(ys).sum()

        compiled = jax.jit(jax.grad(loss)).lower(params, xs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), params)
    short, long = temporaries(128), temporaries(512)
    states = B * 64 * 64 * 4  # bytes of one step
    assert long - short < (512 - 128) * states / 2


@dataclasses.dataclass(frozen=True)
class Given(StateSpaceCell):
    """A cell whose methods return what they are given."""

    pair: object = None
    y: object = None

    def init(self, key, input_size):
        return {"w": jnp.ones(())}

    def affine(self, params, z):
        return self.pair(z)

    def read(self, params, s, z):
        return self.y(s)


def half(z):
    return 0.5, z[..., None]


BAD = [
    (lambda z: z, lambda s: s.sum(-1), TypeError, "must return a pair"),
    (lambda z: ([0.5], z), lambda s: s.sum(-1), TypeError, "a must be a tree like"),
    (lambda z: (0.5, z), lambda s: s.sum(-1), ValueError, "b must broadcast against"),
    (half, lambda s: 1.0, TypeError, "read must return an array"),
    (half, lambda s: s.sum((-1, -2)), ValueError, "leading axes of the state"),
    (half, lambda s: s[..., 0][..., :1], ValueError, "readout must return h"),
]


@pytest.mark.parametrize(("pair", "y", "error", "words"), BAD)
@pytest.mark.parametrize("steps", [1, 5])
def test_what_does_not_fit(pair, y, error, words, steps, plain_errors):
    cell = Given(3, state_size=2, pair=pair, y=y)
    with pytest.raises(error, match=words):
        jaxrnn.unroll(cell, {"w": jnp.ones(())}, jnp.ones((steps, 4, 3)))


def test_methods_that_are_missing():
    cell = StateSpaceCell(3)
    with pytest.raises(NotImplementedError, match="must define affine"):
        cell.affine({}, jnp.ones(3))
    with pytest.raises(NotImplementedError, match="must define read"):
        cell.read({}, jnp.ones((3, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match="state_size must be an int of at least 1"):
        StateSpaceCell(3, state_size=0)
