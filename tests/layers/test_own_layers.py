"""Cells and layers of a user's own, made of the library's: they are run as they
say, or refused in words.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled, one_step
from subjects import assert_same, drawn_params

import jaxrnn
from jaxrnn import LRU, LSTM, MLSTM, Associative, Elman, Scan, truncated_unroll, unroll
from jaxrnn.extending import unroll_part

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

    def shown(self, params, y, m, z):
        return jnp.tanh(super().shown(params, y, m, z))


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
    """A linear cell with other factors, which both its step and the prefixes ask
    for.
    """

    def affine(self, params, z):
        a, b = super().affine(params, z)
        return 0.9 * a, b


LOOPED = {
    "step": Fading(4, num_heads=2),
    "output": ShowsMemory(4, num_heads=2),
    "wrapper": Delegating(MLSTM(4)),
    "linear": Leaking(4),
}
CHUNKED = {
    "project": Projecting(4),
    "steps": OtherSteps(4, num_heads=2),
    "affine": Damped(4),
}


def scanned(cell, params, xs, mask):
    """Streaming steps under a plain ``jax.lax.scan``."""
    never = jnp.zeros(B, bool)

    def step(carry, now):
        return one_step(cell, params, now[0], carry, now[1], never)

    return jax.lax.scan(step, cell.initial_carry(params, (B,)), (xs, mask))


def outcome(run, params, xs):
    def loss(params, xs):
        last, ys = run(params, xs)[:2]
        return sum(
            jnp.sum(jnp.sin(jnp.abs(leaf))) for leaf in jax.tree.leaves((last, ys))
        ), (last, ys)

    return compiled(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, xs)


@pytest.mark.parametrize("name", [*LOOPED, *CHUNKED])
def test_a_subclass_is_run_by_its_own_methods(name, x64):
    cell = (LOOPED | CHUNKED)[name]
    xs, mask = jnp.asarray(XS), jnp.asarray(MASK)
    params = drawn_params(cell, D)
    right = outcome(lambda p, x: scanned(cell, p, x, mask), params, xs)
    engines = [None, Scan()] if name in LOOPED else [None, Scan(), Associative(2)]
    for engine in engines:
        found = outcome(
            lambda p, x, e=engine: unroll(cell, p, x, mask=mask, engine=e), params, xs
        )
        assert_same(found, right, 1e-10)


@pytest.mark.parametrize("name", LOOPED)
def test_a_named_engine_that_does_not_know_the_step_refuses(name):
    cell = LOOPED[name]
    params = drawn_params(cell, D)
    with pytest.raises(
        (TypeError, ValueError), match=rf"{type(cell).__name__}.*Scan\(\)"
    ):
        unroll(cell, params, jnp.asarray(XS, jnp.float32), engine=Associative())


def test_explain_says_why_the_loop_runs_a_subclass():
    cell = LOOPED["step"]
    rows = jaxrnn.explain(
        cell, drawn_params(cell, D), jnp.asarray(XS, jnp.float32)
    ).rows
    assert "Fade overrides step, which MLSTM.run_chunks does not call" in rows[0].why
    assert rows[0].forward.kind == "loop"
    assert "Fade overrides step" in str(
        jaxrnn.explain(cell, drawn_params(cell, D), jnp.asarray(XS, jnp.float32))
    )


# Layers of one's own.


@dataclasses.dataclass(frozen=True)
class Own(jaxrnn.Layer):
    """A cell inside, run by the public door, its outputs made larger by one;
    ``cuts`` hands truncation on.
    """

    cell: jaxrnn.Cell | jaxrnn.Layer = Elman(4)
    cuts: bool = False

    def init(self, key, input_size, dtype=None):
        return self.cell.init(key, input_size)

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return self.cell.initial_carry(params, batch_shape, dtype)

    def unroll(self, params, carry, xs, spec):
        options = {
            "mask": spec.mask,
            "resets": spec.resets,
            "reverse": spec.reverse,
            "engine": spec.engine,
            "key": spec.key,
        }
        options |= {"return_carries": True}
        if self.cuts and spec.gradient_scale is not None:
            last, ys, carries = truncated_unroll(
                self.cell,
                params,
                xs,
                carry,
                gradient_scale=spec.gradient_scale,
                **options,
            )
        elif self.cuts and spec.window is not None:
            last, ys, carries = truncated_unroll(
                self.cell, params, xs, carry, window=spec.window, **options
            )
        else:
            last, ys, carries = unroll(self.cell, params, xs, carry, **options)
        return last, ys + 1, carries


FLOATS = jnp.asarray(XS, jnp.float32)
SCALE = jnp.full((T, B), 0.5)
WAYS = {"window": {"window": 2}, "gradient_scale": {"gradient_scale": SCALE}}
PLACES = {
    "alone": lambda layer: layer,
    "in a stack": lambda layer: jaxrnn.stack(LSTM(3), layer),
    "within another": lambda layer: Own(layer, layer.cuts),
    "both ways": lambda layer: jaxrnn.bidirectional(layer, Elman(2)),
    "residual": lambda layer: jaxrnn.residual(
        dataclasses.replace(layer, cell=Elman(D))
    ),
}


def gradient(layer, run, **spec):
    params = drawn_params(layer, D)
    return compiled(
        jax.grad(lambda p: jnp.sum(jnp.sin(run(layer, p, FLOATS, **spec)[1])))
    )(params)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_an_unroll_in_a_layer_that_is_truncated_is_refused(way, place, plain_errors):
    layer = PLACES[place](Own())
    with pytest.raises(
        ValueError,
        match=rf"^Own\.unroll calls jaxrnn\.unroll on \w+, .*truncated_unroll\(\.\.\., {way}=spec\.{way}\)",  # noqa: E501
    ):
        gradient(layer, truncated_unroll, **WAYS[way])


@pytest.mark.parametrize("place", PLACES)
def test_an_unroll_in_a_layer_that_is_not_truncated_is_right(place, plain_errors):
    layer = PLACES[place](Own())
    gradient(layer, truncated_unroll, window=T)  # which cuts nothing
    gradient(layer, unroll)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "place", ["alone", "in a stack", "within another", "both ways"]
)
def test_a_layer_that_hands_truncation_on_is_right(way, place):
    """As the cell in its place is, one being added to what it shows."""
    found = gradient(PLACES[place](Own(cuts=True)), truncated_unroll, **WAYS[way])
    depth = 2 if place == "within another" else 1
    bare = PLACES[place](Elman(4)) if place != "within another" else Elman(4)

    def plus_one(layer, params, xs, **spec):
        last, ys = truncated_unroll(layer, params, xs, **spec)
        return last, (ys.at[..., :4].add(depth) if place == "both ways" else ys + depth)

    assert_same(found, gradient(bare, plus_one, **WAYS[way]), 1e-6)


def test_a_wider_window_inside_is_refused(plain_errors):
    class Wide(Own):
        def unroll(self, params, carry, xs, spec):
            return truncated_unroll(
                self.cell, params, xs, carry, window=4, return_carries=True
            )

    wide = dataclasses.dataclass(frozen=True)(Wide)()
    with pytest.raises(
        ValueError,
        match=r"Wide\.unroll calls jaxrnn\.truncated_unroll on \w+, .*window=2",
    ):
        gradient(wide, truncated_unroll, window=2)
    gradient(wide, truncated_unroll, window=4)


def test_a_rollout_in_a_layer_that_is_truncated_is_refused(plain_errors):
    class Closed(Own):
        def unroll(self, params, carry, xs, spec):
            out = jaxrnn.rollout(self.cell, params, carry, xs[0], len(xs))
            return out.carry, out.outputs, None

    closed = dataclasses.dataclass(frozen=True)(Closed)(Elman(D))
    words = r"Closed\.unroll calls jaxrnn\.rollout on Elman, .*window=2"
    with pytest.raises(ValueError, match=words):
        gradient(closed, truncated_unroll, window=2)
    gradient(closed, unroll)


def test_a_cell_that_unrolls_in_its_step_runs_over_another_time():
    """Some ticks a step, as of a fast cell in a slow one: truncation cuts between
    steps.
    """

    @dataclasses.dataclass(frozen=True)
    class Ticking(jaxrnn.Cell):
        cell: jaxrnn.Cell = Elman(4)

        init = Own.init
        initial_carry = Own.initial_carry

        def step(self, params, carry, z):
            return unroll(self.cell, params, jnp.stack([z, z]), carry)[0]

    once, twice = (
        compiled(
            jax.grad(
                lambda p, w=run, c=cell, xs=xs, n=n: jnp.sum(
                    jnp.sin(truncated_unroll(c, p, xs, window=n)[0])
                )
            )
        )
        for run, cell, xs, n in (
            (0, Ticking(), FLOATS, 2),
            (0, Elman(4), jnp.repeat(FLOATS, 2, 0), 4),
        )
    )
    params = drawn_params(Elman(4), D)
    assert_same(once(params), twice(params), 1e-5)


def test_draws_and_causal_follow_from_the_fields():
    @dataclasses.dataclass(frozen=True)
    class Many(Own):
        parts: tuple = ()

    dropping = jaxrnn.dropout(0.5)
    assert not Own().requires_key
    assert Own(jaxrnn.stack(dropping, Elman(4))).requires_key
    assert Many(parts=(Elman(2), (dropping,))).requires_key
    assert not jaxrnn.inference(Many(parts=(Elman(2), (dropping,)))).requires_key
    assert Own().causal
    assert not Many(parts=((jaxrnn.bidirectional(Elman(2)),),)).causal
    layer = Own(jaxrnn.stack(dropping, Elman(4)))
    params = drawn_params(layer, D)
    ys = unroll(layer, params, FLOATS, key=jax.random.key(1))[1]
    assert (ys != unroll(layer, params, FLOATS, key=jax.random.key(2))[1]).any()
    with pytest.raises(ValueError, match="Own draws random numbers"):
        unroll(layer, params, FLOATS)
    with pytest.raises(ValueError, match="cannot take one step"):
        Many(parts=(jaxrnn.bidirectional(Elman(2)),))(params, (), FLOATS[0])


@pytest.mark.parametrize("place", PLACES)
def test_masked_outputs_of_any_layer_are_zero(place):
    layer = PLACES[place](Own())
    params = drawn_params(layer, D)
    mask = jnp.asarray(MASK)
    ys = unroll(layer, params, FLOATS, mask=mask)[1]
    assert not np.asarray(ys)[~MASK].any()
    assert np.asarray(ys)[MASK].all()


def test_a_function_that_was_compiled_before_is_refused_too(plain_errors):
    """Its trace of before, in which nothing was cut, is not used again."""

    @jax.jit
    def helper(params, carry, xs):
        return unroll(Elman(4), params, xs, carry, return_carries=True)

    class Compiled(Own):
        def unroll(self, params, carry, xs, spec):
            return helper(params, carry, xs)

    layer = dataclasses.dataclass(frozen=True)(Compiled)()
    gradient(layer, unroll)
    for spec in WAYS.values():
        with pytest.raises(
            ValueError, match=r"Compiled\.unroll calls jaxrnn\.unroll on Elman"
        ):
            gradient(layer, truncated_unroll, **spec)
    gradient(layer, unroll)


def test_an_unroll_without_a_carry_is_no_matter():
    """A layer that holds nothing from step to step has no gradient to cut."""

    class Dropped(Own):
        def unroll(self, params, carry, xs, spec):
            carry, ys, carries = truncated_unroll(
                self.cell, params, xs, carry, window=spec.window, return_carries=True
            )
            return (
                carry,
                unroll(jaxrnn.inference(jaxrnn.dropout(0.5)), {}, ys)[1],
                carries,
            )

    layer = dataclasses.dataclass(frozen=True)(Dropped)()
    assert_same(
        gradient(layer, truncated_unroll, window=2),
        gradient(Elman(4), truncated_unroll, window=2),
        1e-6,
    )


@dataclasses.dataclass(frozen=True)
class Silent(jaxrnn.Layer):
    """A layer around dropout that does not say that a key is required."""

    requires_key = False

    def init(self, key, input_size):
        return {}

    def initial_carry(self, params, batch_shape=()):
        return ()

    def unroll(self, params, carry, xs, spec):
        return unroll_part(jaxrnn.dropout(0.5), {}, (), xs, spec, 0)


def test_a_part_that_draws_needs_the_key_of_its_layer(plain_errors):
    with pytest.raises(ValueError, match=r"was given no key: its requires_key must be"):
        jaxrnn.unroll(Silent(), {}, jnp.ones((T, B, D)))


@dataclasses.dataclass(frozen=True)
class Pooled(jaxrnn.Cell):
    """A cell of pictures whose output is not its carry."""

    hidden_size: int
    feature_ndim = 3

    def init(self, key, input_size):
        return {}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, 2, 2, 3))

    def step(self, params, h, x):
        return 0.5 * h + x

    def output(self, params, h, x):
        return h.mean((-3, -2))


def test_a_stack_asks_a_cell_of_pictures_for_its_output_features(plain_errors):
    with pytest.raises(
        ValueError, match=r"Pooled: its number of output features is not known, .*3: "
    ):
        jaxrnn.stack(Pooled(3), jaxrnn.GRU(2)).init(jax.random.key(0), 3)
