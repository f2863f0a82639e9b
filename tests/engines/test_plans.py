"""Steps that a backward pass of its own could serve badly: the default is right, holds
no more than ``lax.scan``, and says why.

The steps are those of `benchmarks.cpu.hidden`, which also times them.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Literal
from reference import compiled
from subjects import assert_same

import jaxrnn
from benchmarks.cpu.hidden import ROWS, GatedDelta, OwnToken, RingBuffer, by_scan
from jaxrnn import Cell, Checkpoint, Scan
from jaxrnn.engines.jaxpr.costs import count_flops, is_slower_batched
from jaxrnn.engines.recurrence.run import flat_step

MORE_MEMORY = 1.5
SMALL = {
    "own_token",
    "own_token_one",
    "ltc",
    "ltc_one",
    "cayley",
    "gated_delta",
    "gated_delta_in_step",
    "ring_buffer",
}
SMALL |= {"ring_buffer_batch", "dear_branch", "newton_schulz"}


def drawn(row, steps=None, dtype=jnp.float32):
    random = np.random.default_rng(0)
    shape = (steps or row.shape[0], *row.shape[1:])
    params = jax.tree.map(
        lambda a: a.astype(dtype), row.cell.init(jax.random.key(0), shape[-1])
    )
    xs = jnp.asarray(random.normal(size=shape), dtype)
    carry = row.cell.initial_carry(params, shape[1:-1])
    carry = jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, carry
    )
    like = jax.eval_shape(lambda *a: by_scan(row.cell, *a)[1], params, xs, carry)
    return params, xs, carry, jnp.asarray(random.normal(size=like.shape), dtype)


def objective(cell, unrolling):
    def loss(params, xs, carry, weights):
        last, ys = unrolling(cell, params, xs, carry)
        real = [
            leaf.sum()
            for leaf in jax.tree.leaves(last)
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
        return (ys * weights).sum() + sum(real)

    return jax.value_and_grad(loss, (0, 1))


@pytest.mark.parametrize("name", sorted(SMALL))
def test_memory_is_that_of_lax_scan(name, optax_promotion):
    """Counted by XLA for the compiled program; nothing runs."""
    if name == "ring_buffer_batch" and jax.__version_info__ < (0, 11):
        pytest.skip("XLA of jax 0.10 copies the mapped buffer once more: 1.6 times")
    row = ROWS[name]
    args = jax.eval_shape(lambda: drawn(row))
    taken = [
        jax.jit(objective(row.cell, unrolling))
        .lower(*args)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for unrolling in (jaxrnn.unroll, by_scan)
    ]
    assert taken[0] <= MORE_MEMORY * taken[1], taken


RUNS = ["carries", "checkpoint", "mapped"]
NAMES = sorted(SMALL - {"ltc", "own_token_one", "gated_delta"})


@pytest.mark.parametrize(
    ("name", "engine"),
    [(name, "default") for name in NAMES]
    + [
        ("ring_buffer", "carries"),
        ("own_token", "checkpoint"),
        ("ring_buffer_batch", "mapped"),
    ]
    + [
        pytest.param(name, unrolling, marks=pytest.mark.slow)
        for name in NAMES
        for unrolling in RUNS
    ],
)
def test_gradients_are_those_of_lax_scan(name, engine, x64, optax_promotion):
    row = ROWS[name]
    args = drawn(row, 7, jnp.float64)
    engines = {
        "carries": Scan(save="carries", chunk=3),
        "checkpoint": Checkpoint(3),
    }
    unrolling = functools.partial(jaxrnn.unroll, engine=engines.get(engine))
    if engine == "mapped":
        if len(row.shape) < 3 or name == "dear_branch":
            pytest.skip("it has no batch, or asks for the largest of a batch")
        unrolling = jax.vmap(jaxrnn.unroll, (None, None, 1, 0), (0, 1))
    if name.startswith("ltc") and engine != "default":
        pytest.skip("a run of its own, as above")
    assert_same(
        compiled(objective(row.cell, unrolling))(*args),
        compiled(objective(row.cell, by_scan))(*args),
    )


def gradient_of(cell, shape, platform="cpu"):
    """What `jaxrnn.explain` says of the way back."""
    params = cell.init(jax.random.key(0), shape[-1])
    rows = jaxrnn.explain(cell, params, jax.ShapeDtypeStruct(shape, jnp.float32)).rows
    return next(row for row in rows if row.platform == platform).backward


def test_explain_says_which_plan_and_why():
    diagonal = gradient_of(jaxrnn.DiagonalGRU(8), (100_000, 1, 4))
    assert diagonal.steps < 1000
    assert (
        "carries are kept: 192 operations a step make 96 bytes again" in diagonal.reason
    )
    ltc = gradient_of(ROWS["ltc_one"].cell, ROWS["ltc_one"].shape)
    assert ltc.kind == "lax.scan"
    assert "no weight gradient of it is a product with the carry" in ltc.reason
    delta = gradient_of(GatedDelta(64, 64), (128, 2, 64))
    assert delta.kind == "loop"
    assert delta.steps < 128
    prime = gradient_of(jaxrnn.Elman(2), (100_003, 1, 2))
    assert prime.steps is None  # one chunk: there is no divisor to look for


def test_a_branch_that_is_dear_stays_in_the_loop():
    """The compiled loop forwards has a conditional, and what is cheap is done for
    all steps at once.
    """
    row = ROWS["dear_branch_forward"]
    params, xs, carry, _ = drawn(row, 16)
    text = (
        jax.jit(lambda *a: jaxrnn.unroll(row.cell, *a)[1])
        .lower(params, xs, carry)
        .compile()
        .as_text()
    )
    assert "conditional(" in text
    step, _ = flat_step(row.cell, params, carry, (xs, None, None))
    (cond,) = (eqn for eqn in step.program.eqns if eqn.primitive.name == "cond")
    assert is_slower_batched(cond)

    def cheap(x):
        return lax.cond(x.sum() > 0, lambda a: a + 1, lambda a: 2 * a, x)

    eqn = next(
        e for e in jax.make_jaxpr(cheap)(jnp.ones(3)).eqns if e.primitive.name == "cond"
    )
    assert not is_slower_batched(eqn)
    assert count_flops([eqn]) == 3


def test_parts_of_the_carry_that_nobody_reads_are_not_kept():
    ring = RingBuffer(4, 50)
    params = ring.init(jax.random.key(0), 3)
    step, _ = flat_step(
        ring,
        params,
        ring.initial_carry(params, (2,)),
        (jnp.ones((5, 2, 3)), None, None),
    )
    assert step.adjoint.dropped == {1}  # the buffer, of (h, buffer, at)
    lstm = jaxrnn.LSTM(4)
    params = lstm.init(jax.random.key(0), 3)
    step, _ = flat_step(
        lstm,
        params,
        lstm.initial_carry(params, (2,)),
        (jnp.ones((5, 2, 3)), None, None),
    )
    assert not step.adjoint.dropped


def test_an_embedding_is_added_up_row_by_row():
    """The loop backwards adds to the rows it read; no array of the embedding's size
    is made at a step.
    """
    cell = OwnToken(8, 1000)
    params = cell.init(jax.random.key(0), 4)
    args = params, jnp.ones((5, 2, 4)), cell.initial_carry(params, (2,))
    closed = jax.make_jaxpr(
        jax.grad(lambda p, *a: jaxrnn.unroll(cell, p, *a)[1].sum())
    )(*args)
    assert "f32[5,1000,8]" not in str(closed)


# -- a step without reverse mode -------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Doubling(Cell):
    """A while_loop on the inputs, on a parameter that is not trained, or on the
    carry.
    """

    where: str
    hidden_size: int = 4

    def init(self, key, input_size):
        keys = jax.random.split(key, 3)
        return {
            name: 0.4 * jax.random.normal(k, (4, 4))
            for name, k in zip("WUF", keys, strict=True)
        }

    def step(self, p, h, x):
        def double(a):
            return lax.while_loop(
                lambda a: jnp.abs(a).max() < 5, lambda a: a * 1.5 + 0.1, a
            )

        if self.where == "inputs":
            x = double(x)
        elif self.where == "frozen":
            x = x @ double(p["F"])
        else:
            h = double(h)
        return jnp.tanh(x @ p["W"] + h @ p["U"])


def doubling(where):
    cell = Doubling(where)
    return (
        cell,
        cell.init(jax.random.key(0), 4),
        jax.random.normal(jax.random.key(1), (6, 3, 4)),
    )


def scanned(cell, p, xs, batch=3):
    return lax.scan(
        lambda h, x: (cell.step(p, h, x),) * 2, jnp.zeros((batch, 4), xs.dtype), xs
    )[1]


@pytest.mark.parametrize("where", ["inputs", "frozen", "carry"])
def test_forward_mode_of_a_step_without_reverse_mode(where, x64):
    cell, p, xs = doubling(where)
    own, right = (
        compiled(lambda p, xs, f=f: jax.jvp(f, (p, xs), (p, xs)))(p, xs)
        for f in (
            lambda p, xs: jaxrnn.unroll(cell, p, xs)[1],
            lambda p, xs: scanned(cell, p, xs),
        )
    )
    assert_same(own, right)
    columns = jax.jacfwd(
        lambda w: jaxrnn.unroll(cell, {**p, "W": w}, xs)[1].sum((0, 1))
    )(p["W"])
    assert_same(
        columns,
        jax.jacfwd(lambda w: scanned(cell, {**p, "W": w}, xs).sum((0, 1)))(p["W"]),
    )


@pytest.mark.parametrize("where", ["inputs", "frozen"])
def test_reverse_mode_of_what_does_not_go_through_the_while_loop(where, x64):
    cell, p, xs = doubling(where)
    trained = {name: p[name] for name in "WU"}
    own, right = (
        compiled(jax.grad(lambda q, f=f: f({**p, **q}).sum()))(trained)
        for f in (
            lambda p: jaxrnn.unroll(cell, p, xs)[1],
            lambda p: scanned(cell, p, xs),
        )
    )
    assert_same(own, right)
    own, right = (
        jax.vmap(jax.grad(lambda q, xs, f=f: f({**p, **q}, xs).sum()), (None, 1))(
            trained, xs[:, :, None]
        )
        for f in (
            lambda p, xs: jaxrnn.unroll(cell, p, xs)[1],
            lambda p, xs: scanned(cell, p, xs, 1),
        )
    )
    assert_same(own, right)


def test_words_where_reverse_mode_does_not_exist():
    cell, p, xs = doubling("carry")
    with pytest.raises(
        ValueError,
        match=r"Reverse-mode differentiation does not work for lax\.while_loop",
    ):
        jax.grad(lambda p: jaxrnn.unroll(cell, p, xs)[1].sum())(p)
    for engine in (Checkpoint(2), Scan(save="carries"), Scan(chunk=2)):
        with pytest.raises(
            ValueError,
            match=r"pullback of its step cannot be traced[\s\S]*leave save, chunk and Checkpoint",  # noqa: E501
        ):
            jax.grad(lambda p, e=engine: jaxrnn.unroll(cell, p, xs, engine=e)[1].sum())(
                p
            )
    row = jaxrnn.explain(cell, p, xs).rows[0]
    assert row.backward.kind == "lax.scan"
    assert "pullback of its step cannot be traced" in row.backward.reason


def test_a_linear_cell_without_reverse_mode(x64):
    @dataclasses.dataclass(frozen=True)
    class Clocked(jaxrnn.LinearCell):
        hidden_size: int = 4

        def affine(self, p, z):
            scaled = lax.while_loop(lambda a: jnp.abs(a).max() < 5, lambda a: 2 * a, z)
            return jax.nn.sigmoid(p["a"] * scaled), scaled @ p["W"]

    random = np.random.default_rng(0)
    p = {
        "a": jnp.asarray(random.normal()),
        "W": jnp.asarray(random.normal(size=(4, 4))),
    }
    xs = jnp.asarray(random.normal(size=(5, 2, 4)))

    def right(p):
        return lax.scan(
            lambda h, x: (Clocked().step(p, h, x),) * 2, jnp.zeros((2, 4)), xs
        )[1].sum()

    own = jax.grad(lambda p: jaxrnn.unroll(Clocked(), p, xs)[1].sum())(p)
    assert_same(own, jax.grad(right)(p))
    with pytest.raises(ValueError, match="pullback of its step cannot be traced"):
        jax.grad(
            lambda p: jaxrnn.unroll(Clocked(), p, xs, engine=jaxrnn.Associative())[
                1
            ].sum()
        )(p)


# -- the reasons for which a step is left to jax.lax.scan ------------------------------


@dataclasses.dataclass(frozen=True)
class Odd(Cell):
    """A step that only JAX's own loop runs."""

    what: str
    hidden_size: int = 4

    def init(self, key, input_size):
        kind = {"rbg": "rbg", "typed key": "threefry2x32"}.get(self.what)
        typed = {} if kind is None else {"key": jax.random.key(3, impl=kind)}
        raw = (
            {"key": jax.random.key_data(typed["key"])} if self.what == "rbg" else typed
        )
        return {"U": 0.4 * jax.random.normal(key, (4, 4)), **raw}

    def step(self, p, h, x):
        if self.what == "effects":
            jax.debug.print("{}", h.sum())
        if self.what == "callback":
            x = x + jax.pure_callback(
                np.sin, jax.ShapeDtypeStruct(h.shape, h.dtype), lax.stop_gradient(h)
            )
        if self.what == "rbg":
            x = x + jax.random.normal(
                jax.random.wrap_key_data(p["key"], impl="rbg"), h.shape
            )
        if self.what == "typed key":
            x = x + jax.random.normal(p["key"], h.shape)
        return jnp.tanh(x + h @ p["U"])


REASONS = {
    "effects": "its step has side effects",
    "callback": "its step calls back to Python",
    "rbg": r"its step draws from a generator whose numbers differ under vmap \(rbg\)",
    "typed key": "there are typed random keys among its params, carry or inputs",
}


@pytest.mark.parametrize("what", REASONS)
def test_explain_has_a_line_for_each_reason(what):
    cell = Odd(what)
    params = cell.init(jax.random.key(0), 4)
    row = jaxrnn.explain(
        cell, params, jax.ShapeDtypeStruct((5, 2, 4), jnp.float32)
    ).rows[0]
    assert row.forward.kind == "lax.scan"
    with pytest.raises(ValueError, match=REASONS[what]):
        jaxrnn.unroll(cell, params, jnp.ones((5, 2, 4)), engine=Checkpoint(2))
    assert re.search(
        REASONS[what],
        str(jaxrnn.explain(cell, params, jnp.ones((5, 2, 4)))).replace(
            "\n" + 17 * " ", " "
        ),
    )


def test_small_projections_go_before_the_loop_on_every_version_of_jax():
    """In the loop each is a call of its own: with jax 0.10 a gradient over a prime
    number of steps took 1.5 times as long.
    """
    cell = jaxrnn.Elman(2)
    params = cell.init(jax.random.key(0), 2)
    row = jaxrnn.explain(
        cell, params, jax.ShapeDtypeStruct((100_003, 1, 2), jnp.float32)
    ).rows[0]
    assert row.recording.hoisted


def test_a_backward_rule_that_fails_without_words(x64):
    """It is not asked for: the weight that it belongs to is not trained."""

    @jax.custom_vjp
    def never(w):
        return w

    def fails(_, g):
        raise NotImplementedError

    never.defvjp(lambda w: (w, None), fails)

    @dataclasses.dataclass(frozen=True)
    class Untrained(Cell):
        hidden_size: int = 3

        def step(self, p, h, x):
            return jnp.tanh(x @ never(p["W"]) + h @ p["U"])

    random = np.random.default_rng(0)
    W, U, xs = (
        jnp.asarray(random.normal(size=size)) for size in ((3, 3), (3, 3), (5, 2, 3))
    )
    own = jax.grad(lambda U: jaxrnn.unroll(Untrained(), {"W": W, "U": U}, xs)[1].sum())(
        U
    )
    assert_same(
        own,
        jax.grad(lambda U: scanned_three(Untrained(), {"W": W, "U": U}, xs).sum())(U),
    )


def scanned_three(cell, p, xs):
    return lax.scan(lambda h, x: (cell.step(p, h, x),) * 2, jnp.zeros((2, 3)), xs)[1]


def test_gradients_without_jit(x64):
    cell = jaxrnn.Elman(3)
    params = jax.tree.map(
        lambda a: a.astype(jnp.float64), cell.init(jax.random.key(0), 2)
    )
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 2)))
    gradient = jax.grad(lambda p: jaxrnn.unroll(cell, p, xs)[1].sum())
    expected = gradient(params)
    with jax.disable_jit():
        assert_same(gradient(params), expected)


class Parts(NamedTuple):
    h: jax.Array
    c: jax.Array


def test_a_part_of_the_carry_that_nothing_moves_asks_for_no_derivative(x64):
    """What is shown of it may have no reverse mode, as under ``lax.scan``."""

    @dataclasses.dataclass(frozen=True)
    class Still(Cell):
        hidden_size: int = 3

        def initial_carry(self, params, batch_shape=(), dtype=None):
            return Parts(jnp.zeros((*batch_shape, 3)), jnp.ones((*batch_shape, 3)))

        def step(self, p, s, x):
            return Parts(jnp.tanh(x + s.h @ p["U"]), jnp.cos(s.c))

        def output(self, p, s, x):
            doubled = lax.while_loop(
                lambda a: jnp.abs(a).max() < 5, lambda a: 2 * a, s.c
            )
            return s.h * doubled

    random = np.random.default_rng(0)
    cell, p, xs = (
        Still(),
        {"U": jnp.asarray(random.normal(size=(3, 3)))},
        jnp.asarray(random.normal(size=(5, 2, 3))),
    )

    def right(p, xs):
        carries = lax.scan(
            lambda s, x: (cell.step(p, s, x),) * 2, cell.initial_carry(p, (2,)), xs
        )[1]
        return cell.output(p, carries, xs).sum()

    expected = jax.grad(right, (0, 1))(p, xs)
    for engine in (None, Scan(save="carries"), Checkpoint(2)):
        own = jax.grad(
            lambda p, xs, e=engine: jaxrnn.unroll(cell, p, xs, engine=e)[1].sum(),
            (0, 1),
        )(p, xs)
        assert_same(own, expected)
    assert set(
        jax.jvp(lambda p: jaxrnn.unroll(cell, p, xs)[0], (p,), (p,))[1]._fields
    ) == {"h", "c"}


def test_a_part_that_every_step_replaces_has_no_tangent(x64):
    """So that its output needs no reverse mode, which ``while_loop`` does not have."""

    @dataclasses.dataclass(frozen=True)
    class Replaced(Cell):
        hidden_size: int = 3

        def initial_carry(self, params, batch_shape=(), dtype=None):
            return Parts(jnp.zeros((*batch_shape, 3)), jnp.ones((*batch_shape, 3)))

        def step(self, p, s, x):
            return Parts(jnp.tanh(x * s.c + s.h @ p["U"]), 1 + x)

        def output(self, p, s, x):
            return s.h * lax.while_loop(
                lambda a: jnp.abs(a).max() < 5, lambda a: 2 * a, s.c
            )

    random = np.random.default_rng(0)
    cell, xs = Replaced(), jnp.asarray(random.normal(size=(5, 2, 3)))
    p = {"U": jnp.asarray(random.normal(size=(3, 3)))}
    carry, along = (Parts(*jnp.asarray(random.normal(size=(2, 2, 3)))) for _ in "ab")

    def right(p, carry):
        carries = lax.scan(lambda s, x: (cell.step(p, s, x),) * 2, carry, xs)[1]
        return jax.vmap(lambda s: cell.output(p, s, xs))(carries)

    def derivatives(unrolled):
        def loss(p, carry):
            return (unrolled(p, carry) ** 2).sum()

        def twice(carry):
            return jax.jvp(lambda c: jax.grad(loss, 1)(p, c), (carry,), (along,))[1]

        return (
            jax.grad(loss, (0, 1))(p, carry),
            jax.jvp(lambda c: unrolled(p, c), (carry,), (along,)),
            twice(carry),
        )

    expected = derivatives(right)
    for engine in (
        None,
        Scan(save="carries"),
        Scan(save="dots", hoist=False),
        Scan(save="everything"),
        Checkpoint(2),
    ):

        def own(p, carry, engine=engine):
            return jaxrnn.unroll(cell, p, xs, carry, engine=engine)[1]

        assert_same(derivatives(own), expected)


@jax.custom_vjp
def bent(x):
    """Its rule is not its derivative, as that of a surrogate gradient."""
    return jnp.sin(x)


bent.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (2 * g * jnp.cos(x),))


def point_and_direction(steps):
    """Two draws of a recurrent kernel, inputs and a first carry."""
    random = np.random.default_rng(0)
    shapes = {"U": (3, 3), "xs": (steps, 2, 3), "h": (2, 3)}
    return [
        {name: jnp.asarray(random.normal(size=shape)) for name, shape in shapes.items()}
        for _ in range(2)
    ]


@dataclasses.dataclass(frozen=True)
class Bent(Cell):
    hidden_size: int = 3

    def step(self, p, h, x):
        return bent(h @ p["U"] + x)


@pytest.mark.parametrize(
    "engine",
    [None, Scan(save="carries"), Scan(save="dots"), Checkpoint(2)],
    ids=["default", "carries", "dots", "checkpoint"],
)
def test_a_second_derivative_does_not_use_rules_again(engine, x64):
    """As under ``lax.scan``: what a ``custom_vjp`` computes forwards is ordinary code
    once its rule has been used.
    """
    cell = Bent()
    at, along = point_and_direction(6)

    def derivatives(unrolled):
        gradient = jax.grad(lambda at: (unrolled(at) ** 2).sum())

        def sum_along(at):
            products = jax.tree.map(lambda a, b: (a * b).sum(), gradient(at), along)
            return sum(jax.tree.leaves(products))

        def all_of(at):
            return (
                gradient(at),
                jax.grad(sum_along)(at),
                jax.jvp(gradient, (at,), (along,)),
            )

        return compiled(all_of)(at)

    def right(at):
        return lax.scan(lambda h, x: (cell.step(at, h, x),) * 2, at["h"], at["xs"])[1]

    def own(at):
        return jaxrnn.unroll(cell, {"U": at["U"]}, at["xs"], at["h"], engine=engine)[1]

    assert_same(derivatives(own), derivatives(right))


@dataclasses.dataclass(frozen=True)
class BentThrice(Cell):
    """Calls of a rule that see parameters, inputs and the carry apart."""

    hidden_size: int = 3

    def step(self, p, h, x):
        return jnp.tanh(h @ bent(p["U"]) + bent(x) * bent(h) + x)


@pytest.mark.parametrize("inner", ["U", "xs", "h", "U xs", "xs h"])
@pytest.mark.parametrize("engine", [None, Scan(save="carries"), Checkpoint(2)])
def test_rules_that_a_first_derivative_left_out_are_used_by_the_second(
    inner, engine, x64
):
    """As under ``lax.scan``, a call without a tangent keeps its rule."""
    cell = BentThrice()
    at, along = point_and_direction(5)

    def derivatives(unrolled):
        def gradient(at):
            chosen = {name: at[name] for name in inner.split()}
            return jax.grad(lambda some: (unrolled(at | some) ** 2).sum())(chosen)

        def sum_along(at):
            found = gradient(at)
            return sum((found[name] * along[name]).sum() for name in found)

        return compiled(lambda at: (gradient(at), jax.grad(sum_along)(at)))(at)

    def right(at):
        return lax.scan(lambda h, x: (cell.step(at, h, x),) * 2, at["h"], at["xs"])[1]

    def own(at):
        return jaxrnn.unroll(cell, {"U": at["U"]}, at["xs"], at["h"], engine=engine)[1]

    assert_same(derivatives(own), derivatives(right))


def ask_what_moves_forwards(w, x):
    both = w.perturbed and x.perturbed
    factor = jnp.asarray(5.0 if both else 1.0)
    return w.value * x.value, (w.value, x.value, factor)


def ask_what_moves_backwards(residuals, g):
    w, x, factor = residuals
    return g * x * factor, g * w * factor


asks_what_moves = jax.custom_vjp(lambda w, x: w * x)
asks_what_moves.defvjp(
    ask_what_moves_forwards, ask_what_moves_backwards, symbolic_zeros=True
)


@dataclasses.dataclass(frozen=True)
class Asking(Cell):
    hidden_size: int = 3

    def step(self, p, h, x):
        return jnp.tanh(
            asks_what_moves(p["b"], h) @ p["U"] + asks_what_moves(p["b"], x)
        )


@pytest.mark.parametrize("wrt", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("engine", [None, Scan(save="carries"), Checkpoint(2)])
def test_rules_may_ask_what_moves(wrt, engine, x64):
    """The pullback of a step is taken for what moves, as under ``lax.scan``."""
    random = np.random.default_rng(0)
    cell = Asking()
    shapes = {"b": (1, 3), "U": (3, 3), "xs": (5, 1, 3), "h": (1, 3)}
    p = {name: jnp.asarray(random.normal(size=shape)) for name, shape in shapes.items()}
    xs, h = p.pop("xs"), p.pop("h")

    def right(p, xs, h):
        return lax.scan(lambda h, x: (cell.step(p, h, x),) * 2, h, xs)[1].sum()

    def own(p, xs, h):
        return jaxrnn.unroll(cell, p, xs, h, engine=engine)[1].sum()

    assert_same(compiled(jax.grad(own, wrt))(p, xs, h), jax.grad(right, wrt)(p, xs, h))


EXTREMA = {
    "maximum": lambda z, x: jnp.maximum(z, 0.0),
    "minimum": lambda z, x: jnp.minimum(z, jnp.sin(x)),
    "between": lambda z, x: jnp.minimum(jnp.maximum(z, -0.5), 0.5),
    "a tie": lambda z, x: jnp.maximum(jnp.tanh(z), jnp.tanh(z)),
    "largest": lambda z, x: jnp.broadcast_to(z.max(-1, keepdims=True), z.shape),
    "smallest": lambda z, x: z.min(0, keepdims=True) + 0 * z,
    "pairs": lambda z, x: jnp.repeat(z.reshape(*z.shape[:-1], -1, 2).max(-1), 2, -1),
}


@dataclasses.dataclass(frozen=True)
class Extremum(Cell):
    """The carry is the extremum of a product."""

    kind: str
    hidden_size: int = 4

    def step(self, p, h, x):
        return EXTREMA[self.kind](x + h @ p["U"], x)


@pytest.mark.parametrize("kind", EXTREMA)
def test_extrema_of_what_is_computed_again_have_their_gradients(kind):
    """In float32, where a product of all steps at once is rounded in another way than
    one of a step: the operand may then differ from the extremum that was saved.
    """
    cell = Extremum(kind)
    random = np.random.default_rng(0)
    p = {"U": jnp.asarray(random.normal(size=(4, 4)) / 2, jnp.float32)}
    xs = jnp.asarray(random.normal(size=(20, 3, 4)), jnp.float32)
    weights = jnp.asarray(random.normal(size=xs.shape), jnp.float32)

    def right(p, xs):
        h = jnp.zeros((3, 4))
        return lax.scan(lambda h, x: (cell.step(p, h, x),) * 2, h, xs)[1]

    def gradient(unrolled):
        def loss(p, xs):
            return (unrolled(p, xs) * weights).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(p, xs)

    expected = gradient(right)
    for engine in (None, Scan(save="carries"), Scan(save="dots"), Checkpoint(4)):
        found = gradient(
            lambda p, xs, e=engine: jaxrnn.unroll(cell, p, xs, engine=e)[1]
        )
        assert_same(found, expected, 1e-5)


def test_no_pullback_compares_with_a_carry_that_is_saved():
    """It would be compared with what is computed again."""
    for kind in EXTREMA:
        params = {"U": jnp.zeros((4, 4))}
        sequence = (jnp.zeros((2, 3, 4)), None, None)
        step, *_ = flat_step(Extremum(kind), params, jnp.zeros((3, 4)), sequence)
        program = step.adjoint
        compared = [
            v
            for eqn in program.jaxpr.eqns
            if eqn.primitive.name in ("eq", "ne", "lt", "gt", "le", "ge")
            for v in eqn.invars
        ]
        saved = [v for v in program.new if not isinstance(v, Literal)]
        assert compared
        assert not any(v is new for v in compared for new in saved)


@jax.custom_vjp
def backwards_only(w):
    return jnp.sin(w)


backwards_only.defvjp(lambda w: (jnp.sin(w), w), lambda w, g: (g * jnp.cos(w),))


@pytest.mark.parametrize(
    "place",
    [
        "nowhere",
        "stopped",
        "as an integer",
        "a part that stands still",
        "a part nobody reads",
    ],
)
def test_tangents_that_nobody_reads_ask_for_no_forward_mode(place, x64):
    """As under ``lax.scan``, a ``custom_vjp`` may stand where no tangent is asked
    for.
    """

    @dataclasses.dataclass(frozen=True)
    class Backwards(Cell):
        hidden_size: int = 3

        def initial_carry(self, params, batch_shape=(), dtype=None):
            return Parts(jnp.zeros((*batch_shape, 3)), jnp.ones((*batch_shape, 3)))

        def step(self, p, s, x):
            h, c = s
            if place == "nowhere":
                backwards_only(p["U"])
            if place == "stopped":
                h = h @ lax.stop_gradient(backwards_only(p["U"]))
            if place == "as an integer":
                h = jnp.where(backwards_only(h) > 0.1, h, 2 * h)
            if place == "a part that stands still":
                c = jnp.cos(c)
                h = h + backwards_only(c)
            if place == "a part nobody reads":
                c = backwards_only(h + c)
            return Parts(jnp.tanh(x + h @ p["U"]), c)

        def output(self, p, s, x):
            return s.h

    random = np.random.default_rng(0)
    cell, p, xs = (
        Backwards(),
        {"U": jnp.asarray(random.normal(size=(3, 3)))},
        jnp.asarray(random.normal(size=(5, 2, 3))),
    )
    along = jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape)), (p, xs))

    def right(p, xs):
        return lax.scan(
            lambda s, x: (cell.step(p, s, x),) * 2, cell.initial_carry(p, (2,)), xs
        )[1].h

    tangents = jax.jit(lambda f, at, along: jax.jvp(f, at, along)[1], static_argnums=0)
    gradient = jax.jit(
        lambda f, at, along: jax.grad(lambda *at: (f(*at) * along[1]).sum(), (0, 1))(
            *at
        ),
        static_argnums=0,
    )
    for derivative in (tangents, gradient):
        expected = derivative(right, (p, xs), along)
        for engine in (
            None,
            Scan(),
            Scan(save="carries"),
            Scan(save="dots", hoist=False),
            Checkpoint(2),
        ):
            own = lambda p, xs, e=engine: jaxrnn.unroll(cell, p, xs, engine=e)[1]  # noqa: E731
            assert_same(derivative(own, (p, xs), along), expected)
