"""Cells and layers of a user's own, made of the library's: they are walked as they say, or refused in words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled, one_step
from subjects import assert_same

import jaxrnn
from jaxrnn import LRU, MLSTM, Associative, Scan, unroll

T, B, D = 5, 2, 3
XS = np.random.default_rng(0).normal(size=(T, B, D))
MASK = np.arange(T)[:, None] < np.array([T, 3])


class Fade:
    def step(self, params, carry, z):
        return jax.tree.map(lambda a: 0.9 * a, super().step(params, carry, z))


@dataclasses.dataclass(frozen=True)
class Fading(Fade, MLSTM):
    """With a step that comes from beside, which the chunks of an MLSTM do not know."""


@dataclasses.dataclass(frozen=True)
class ShowsMemory(MLSTM):
    """Its output reads what is known at the ends of chunks only."""

    def output(self, params, carry, x):
        return carry.h + carry.n.sum((-1, -2))[..., None]


@dataclasses.dataclass(frozen=True)
class Projecting(MLSTM):
    """Another projection, which the chunks are given."""

    def project(self, params, x):
        return super().project(params, jnp.sin(x))


@dataclasses.dataclass(frozen=True)
class OtherSteps(MLSTM):
    """Other parts of a step, which its chunks ask for, too."""

    def steps(self, z):
        now = super().steps(z)
        return now._replace(f=now.f - 0.1, k=2 * now.k)

    def shown(self, read, weight, m):
        return jnp.tanh(super().shown(read, weight, m))


@dataclasses.dataclass(frozen=True)
class Delegating(jaxrnn.Cell):
    """A wrapper that has whatever the cell inside has."""

    cell: jaxrnn.Cell

    def __getattr__(self, name):
        return getattr(self.cell, name)

    def init(self, key, input_size):
        return self.cell.init(key, input_size)

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return self.cell.initial_carry(params, batch_shape, dtype)

    def project(self, params, x):
        return self.cell.project(params, x)

    def step(self, params, carry, z):
        return jax.tree.map(lambda a: 0.7 * a, self.cell.step(params, carry, z))


@dataclasses.dataclass(frozen=True)
class Leaking(LRU):
    """A linear cell with a step of its own."""

    def step(self, params, carry, z):
        return 0.9 * super().step(params, carry, z)


@dataclasses.dataclass(frozen=True)
class Damped(LRU):
    """A linear cell with other factors, which both its step and the prefixes ask for."""

    def affine(self, params, z):
        a, b = super().affine(params, z)
        return 0.9 * a, b


LOOPED = {
    "step": Fading(4, heads=2),
    "output": ShowsMemory(4, heads=2),
    "wrapper": Delegating(MLSTM(4)),
    "linear": Leaking(4),
}
CHUNKED = {"project": Projecting(4), "steps": OtherSteps(4, heads=2), "affine": Damped(4)}


def scanned(cell, params, xs, mask):
    """Streaming steps under a plain ``jax.lax.scan``."""
    never = jnp.zeros(B, bool)

    def step(carry, now):
        return one_step(cell, params, now[0], carry, now[1], never)

    return jax.lax.scan(step, cell.initial_carry(params, (B,)), (xs, mask))


def outcome(walk, params, xs):
    def loss(params, xs):
        last, ys = walk(params, xs)[:2]
        return sum(jnp.sum(jnp.sin(jnp.abs(leaf))) for leaf in jax.tree.leaves((last, ys))), (last, ys)

    return compiled(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, xs)


@pytest.mark.parametrize("name", [*LOOPED, *CHUNKED])
def test_a_subclass_is_walked_by_its_own_methods(name, x64):
    cell = (LOOPED | CHUNKED)[name]
    xs, mask = jnp.asarray(XS), jnp.asarray(MASK)
    params = cell.init(jax.random.key(0), D)
    right = outcome(lambda p, x: scanned(cell, p, x, mask), params, xs)
    engines = [None, Scan()] if name in LOOPED else [None, Scan(), Associative(2)]
    for engine in engines:
        found = outcome(lambda p, x, e=engine: unroll(cell, p, x, mask=mask, engine=e), params, xs)
        assert_same(found, right, 1e-10)


@pytest.mark.parametrize("name", LOOPED)
def test_a_named_engine_that_does_not_know_the_step_refuses(name):
    cell = LOOPED[name]
    params = cell.init(jax.random.key(0), D)
    with pytest.raises((TypeError, ValueError), match=rf"{type(cell).__name__}.*Scan\(\)"):
        unroll(cell, params, jnp.asarray(XS, jnp.float32), engine=Associative())


def test_explain_says_why_the_loop_walks_a_subclass():
    cell = LOOPED["step"]
    rows = jaxrnn.explain(cell, cell.init(jax.random.key(0), D), jnp.asarray(XS, jnp.float32)).rows
    assert "Fade has its own step, of which MLSTM.walk_chunks knows nothing" in rows[0].why
    assert rows[0].forward.how == "loop"
    assert "Fade has its own step" in str(jaxrnn.explain(cell, cell.init(jax.random.key(0), D), jnp.asarray(XS, jnp.float32)))
