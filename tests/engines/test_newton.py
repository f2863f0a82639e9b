"""Newton's method is the Python loop, for values and gradients: of every kind of step,
in every direction, with chunks that are left over.

Its own iterations are meant: with ``fallback="nan"`` what did not converge is NaN.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import (
    PLAIN,
    SUBJECTS,
    assert_same,
    assert_same_outcome,
    draw,
    looped,
)
from test_engines import MODES, unrolled

import jaxrnn
from jaxrnn import Newton, Scan
from jaxrnn.engines.engine import DefaultEngine
from jaxrnn.engines.jaxpr.carry_blocks import blocks_of_step, describe, program_of_step
from jaxrnn.engines.jaxpr.evaluate import all_equations
from jaxrnn.engines.loops.newton import NewtonIteration
from jaxrnn.engines.loops.newton_problem import ChunkProblem
from jaxrnn.engines.recurrence import primitives
from jaxrnn.engines.recurrence.run import flat_step

ENGINES = {
    "all": Newton(None, fallback="nan"),
    "chunk_3": Newton(3, fallback="nan"),
    "dots": Newton(3, save="dots", fallback="nan"),
    "starts": Newton(3, save="starts", fallback="nan"),
    "units": Newton(4, jacobian="units", fallback="nan"),
    "full": Newton(3, jacobian="full", fallback="nan"),
    "falls_back": Newton(5, max_iterations=1),
}
# one of each kind of carry and of structure
CELLS = {
    "elman": "full 4x4",
    "lstm": "full 8x8",
    "lstm_all_learned": "full 6x6",
    "gru": "full 4x4",
    "gru_before": "full 4x4",
    "indrnn": "units 1x1",
    "diagonal_gru": "units 1x1",
    "diagonal_lstm": "units 2x2",
    "nonlinear_rtu": "units 2x2",
    "rtu": "units 2x2",
    "min_gru": "units 1x1",
    "slstm": "heads 8x8",
    "ltc": "full 3x3",
    "conv_lstm": "full 24x24",
    "user": "units 1x1",
    "user_linear": "units 2x2",
    "s5": "units 2x2",
    "mamba": None,
    "stack": None,
    "bidirectional": None,
}


@pytest.mark.parametrize("name", CELLS)
def test_newton_is_the_python_loop(name, x64):
    inputs, reverse = draw(name, 0, 7), list(CELLS).index(name) % 2 == 0
    assert_same_outcome(
        unrolled(SUBJECTS[name], ENGINES["chunk_3"], reverse)(*inputs),
        looped(name, inputs, reverse),
        1e-11,
        1e-11,
    )


@pytest.mark.parametrize("name", ["lstm_all_learned", "diagonal_lstm"])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_option_is_the_python_loop(engine, name, x64):
    if engine == "units" and name == "lstm_all_learned":
        name = "lstm"  # layer norm mixes units
    inputs, reverse = draw(name, 0, 7), list(ENGINES).index(engine) % 2 == 1
    assert_same_outcome(
        unrolled(SUBJECTS[name], ENGINES[engine], reverse)(*inputs),
        looped(name, inputs, reverse),
        1e-11,
        1e-11,
    )


@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_lengths_batches_and_truncation(steps, x64):
    name = "diagonal_lstm"
    for batch in ((), (2, 2)):
        inputs = draw(name, steps, steps, batch)
        window = 4 if steps == 9 else None
        got, want = (
            unrolled(SUBJECTS[name], engine, steps == 2, window)(*inputs)
            for engine in (ENGINES["chunk_3"], Scan(save="everything"))
        )
        assert_same_outcome(got, want, 1e-11, 1e-11)


# --------------------------------------------------------------------------------------
# structure


def form_of(name, jacobian="auto"):
    inputs = draw(name, 0, 3)
    step, _ = flat_step(
        PLAIN[name], inputs.params, inputs.carry, (inputs.xs, inputs.mask, None)
    )
    form = blocks_of_step(step, jacobian)
    return describe(form, program_of_step(step).part_avals), form


@pytest.mark.parametrize("name", [n for n in CELLS if CELLS[n] and n in PLAIN])
def test_the_structure_is_found(name):
    words, form = form_of(name)
    assert words == CELLS[name]
    # Whatever the structure is, the examples of a batch are apart.
    assert form.grouping.lead >= 1
    assert form.products == 0


def test_structures_that_are_asked_for():
    assert form_of("lstm", "units")[0] == "units 2x2, by diagonals"
    assert form_of("diagonal_lstm", "full")[0] == "full 8x8"


@dataclasses.dataclass(frozen=True)
class Rolled(jaxrnn.Cell):
    """A unit-wise cell but for a roll over its units."""

    hidden_size: int = 4

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

    def step(self, params, carry, z):
        return jnp.tanh(0.7 * jnp.roll(carry, 1, -1) + z @ params["kernel"])


@dataclasses.dataclass(frozen=True)
class Heads(jaxrnn.Cell):
    """Two heads of two units, with a matrix of one each, and two parts a unit."""

    hidden_size: int = 4
    place: str = "adjacent"
    apart: bool = True

    def init(self, key, input_size):
        k_input, k_state = jax.random.split(key)
        return {
            "kernel": jax.random.normal(k_input, (input_size, self.hidden_size)),
            "heads": jax.random.normal(k_state, (2, 2, 2)) / 2,
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params["kernel"].dtype)
        return {"fast": zeros, "slow": zeros}

    def step(self, params, carry, z):
        h, shape = carry["fast"], carry["fast"].shape
        if self.place == "alternate":  # unit by unit
            h = h.reshape(*shape[:-1], 2, 2).swapaxes(-1, -2)
        h = h.reshape(*shape[:-1], 2, 2)
        if not self.apart:
            h = h[..., ::-1, :] + h
        h = jnp.einsum("...hi,hij->...hj", h, params["heads"])
        if self.place == "alternate":
            h = h.swapaxes(-1, -2)
        fast = jnp.tanh(h.reshape(shape) + carry["slow"] + z @ params["kernel"])
        return {"fast": fast, "slow": 0.5 * carry["slow"] + 0.2 * fast**2}

    def output(self, params, carry, x):
        return carry["fast"] * carry["slow"]


@dataclasses.dataclass(frozen=True)
class Stacked(Rolled):
    """A unit-wise cell whose halves are stacked, tiled and taken apart again."""

    linear: bool = False

    def step(self, params, carry, z):
        halves = jnp.stack(jnp.split(carry, 2, -1), -2)
        first, last = jnp.unstack(jnp.tile(halves, 2)[..., :2], axis=-2)
        new = 0.7 * jnp.concatenate([first, last], -1) + z @ params["kernel"]
        return new if self.linear else jnp.tanh(new)


@dataclasses.dataclass(frozen=True)
class Attention(Rolled):
    """A cell whose units meet in a product of two vectors, which is a number."""

    def step(self, params, carry, z):
        return jnp.tanh(carry * jnp.vdot(carry, z @ params["kernel"]) + 0.5)


MIXED = {
    "roll": (Rolled(), "full 4x4"),
    "stacked": (Stacked(), "units 1x1"),
    # The examples of a batch meet, too: three of them, of four units.
    "a product of vectors": (Attention(), "full 12x12"),
    "heads": (Heads(), "heads 4x4"),
    # Side by side twice, as parts in one array are.
    "alternate heads": (Heads(place="alternate"), "units 4x4"),
    "heads that meet": (Heads(apart=False), "full 8x8"),
}


@pytest.mark.parametrize("name", MIXED)
def test_units_that_see_each_other_have_a_block_in_common(name, x64):
    cell, structure = MIXED[name]
    inputs = draw(cell, 0, 6)
    sequence = (inputs.xs, None, None)
    step, _ = flat_step(cell, inputs.params, inputs.carry, sequence)
    words = describe(blocks_of_step(step, "auto"), program_of_step(step).part_avals)
    assert words == structure
    got, want = (
        unrolled(cell, engine)(*inputs) for engine in (ENGINES["chunk_3"], Scan())
    )
    assert_same_outcome(got, want, 1e-11, 1e-11)


# --------------------------------------------------------------------------------------
# iterations


def elman(gain, steps, size=4, seed=0, batch=()):
    """An Elman cell with recurrent weights of some gain, and a problem of all steps."""
    cell = jaxrnn.Elman(size)
    params = cell.init(jax.random.key(seed), 3)
    params["recurrent_kernel"] = gain * params["recurrent_kernel"]
    xs = jax.random.normal(jax.random.key(seed + 1), (steps, *batch, 3))
    return cell, params, xs


def problem_of(cell, params, xs, jacobian="auto"):
    carry = cell.initial_carry(params, xs.shape[1:-1])
    tree = jax.tree.structure(carry)

    def body(leaves, z):
        new = cell.step(params, jax.tree.unflatten(tree, leaves), z)
        return jax.tree.leaves(new), []

    zs = cell.project(params, xs)
    leaves = jax.tree.leaves(carry)
    return ChunkProblem(body, leaves, zs, len(xs), False, jacobian, False)


@pytest.mark.parametrize("planted", ["auto", "units", "wrong"])
def test_after_i_iterations_the_first_i_states_are_exact(planted, x64):
    """Whatever the Jacobian is, a wrong one too, which only takes more of them."""
    steps = 9
    cell, params, xs = elman(1.5, steps)
    problem = problem_of(cell, params, xs, "auto" if planted == "wrong" else planted)
    if planted == "wrong":
        find = problem.form.__call__
        problem.form = Wrong(problem.form.grouping, find)
    at = problem.operands
    want = jax.jit(problem.scan)(at)
    states = [jnp.zeros_like(a) for a in want]
    iterate = jax.jit(lambda states: problem.iteration(states, at))
    changed = False
    for i in range(1, steps + 1):
        states = iterate(states)
        for a, b in zip(states, want, strict=True):
            np.testing.assert_allclose(a[:i], b[:i], rtol=0, atol=1e-14)
            changed |= bool(np.abs(a - b).max() > 1e-3)
    assert changed  # there was something to do after the first iteration
    # So as many iterations as steps are enough, whatever the change of the last one.
    for tolerance, most in ((1e-14, 8 if planted == "auto" else steps), (0.0, steps)):
        states, info = jax.jit(lambda n=tolerance: problem.iterate(at, 99, n))()
        assert info.converged.all()
        assert info.iterations <= most
        for a, b in zip(states, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)
    info = jax.jit(lambda: problem.iterate(at, 4, 0.0)[1])()
    assert info.converged.tolist() == [t < 4 for t in range(steps)]


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Blocks that are not the Jacobian's."""

    grouping: object
    right: object

    def __call__(self, program, parts, given):
        new, blocks = self.right(program, parts, given)
        return new, 0.6 * blocks + 0.3


def test_a_wrong_jacobian_never_gives_other_values(monkeypatch, x64):
    right = NewtonIteration.problem

    def wrong(self, *args):
        problem = right(self, *args)
        if not problem.program.is_affine:
            problem.form = Wrong(problem.form.grouping, problem.form.__call__)
        return problem

    monkeypatch.setattr(NewtonIteration, "problem", wrong)
    cell, params, xs = elman(1.5, 12)
    for engine in (Newton(6, max_iterations=4), Newton(6)):
        got, want = (
            jax.jit(lambda e=e: jaxrnn.unroll(cell, params, xs, engine=e)[1])()
            for e in (engine, Scan())
        )
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_iterations_grow_near_the_edge_of_chaos_and_chunks_bound_them(x64):
    taken = {}
    for gain in (0.6, 2.2):
        cell, params, xs = elman(gain, 64, 8)
        problem = problem_of(cell, params, xs)
        info = jax.jit(lambda p=problem: p.iterate(p.operands, 64, 1e-12)[1])()
        taken[gain] = int(info.iterations)
    assert taken[0.6] <= 8
    assert taken[2.2] >= 3 * taken[0.6]


# --------------------------------------------------------------------------------------
# loops that need no iteration


def loops_of(closed, primitive):
    """The ``while`` equations in the program of a recurrence's primitive."""
    (eqn,) = [e for e in all_equations(closed.jaxpr) if e.primitive is primitive]
    function = primitives.FUNCTIONS[primitive]
    avals = [v.aval for v in eqn.invars]
    traced = jax.make_jaxpr(lambda *a: function(*a, **eqn.params))(*avals)
    return [e for e in all_equations(traced.jaxpr) if e.primitive.name == "while"]


@pytest.mark.parametrize("name", ["lstm", "diagonal_lstm", "min_gru", "rtu", "stacked"])
def test_a_linear_loop_takes_one_iteration(name):
    cell = Stacked(linear=True) if name == "stacked" else PLAIN[name]
    inputs = draw(cell, 0, 12)

    def loss(params):
        _, ys = jaxrnn.unroll(cell, params, inputs.xs, engine=Newton(6))
        return jnp.sum(ys**2)

    closed = jax.make_jaxpr(jax.grad(loss))(inputs.params)
    assert not loops_of(closed, primitives.adjoint_p)
    is_linear = name in ("min_gru", "rtu", "stacked")
    assert len(loops_of(closed, primitives.recurrence_p)) == (0 if is_linear else 1)


@dataclasses.dataclass(frozen=True)
class StraightThrough(jaxrnn.Cell):
    """A step whose derivative by JAX is affine and whose values are not."""

    hidden_size: int = 3

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

    def step(self, params, carry, z):
        bent = jnp.sin(3 * carry)
        through = carry + jax.lax.stop_gradient(bent - carry)
        return 0.5 * through + z @ params["kernel"]


def test_a_derivative_that_is_not_that_of_the_values(x64):
    cell = StraightThrough()
    inputs = draw(cell, 0, 9)
    got, want = (
        unrolled(cell, engine)(*inputs)
        for engine in (Newton(9), Scan(save="everything"))
    )
    assert_same_outcome(got, want, 1e-12, 1e-12)


def own_rules(kind):
    """A cell that calls a function with a rule for reverse mode only."""

    @jax.custom_vjp
    def function(x):
        return jnp.sin(x) if kind == "nested" else jnp.where(x > 0, 1 + 0 * x, 0 * x)

    def backward(x, g):
        if kind == "not linear":
            return (jnp.clip(g, -0.01, 0.01),)
        return (g / (1 + jnp.abs(x)) ** 2,)

    function.defvjp(lambda x: (function(x), x), backward)

    @dataclasses.dataclass(frozen=True)
    class Spiking(Rolled):
        def step(self, params, carry, z):
            z = z @ params["kernel"]
            if kind == "nested":
                return jax.lax.fori_loop(0, 2, lambda _, c: function(c + z), carry)
            return 0.7 * carry - 0.5 * function(carry - 0.3) + z

    return Spiking()


@pytest.mark.parametrize("kind", ["linear", "not linear"])
def test_a_derivative_for_reverse_mode_only(kind, x64):
    """The iterations follow the values, and the gradient the rule, which need not be
    linear: then the loop backwards is iterated, too.
    """
    cell = own_rules(kind)
    inputs = draw(cell, 0, 9)
    got, want = (
        unrolled(cell, engine)(*inputs)
        for engine in (
            Newton(9, max_iterations=9, fallback="nan"),
            Scan(save="everything"),
        )
    )
    assert_same_outcome(got, want, 1e-12, 1e-12)


def test_a_step_without_any_tangent_is_refused():
    with pytest.raises(
        ValueError, match=r"Newton: Spiking has no Jacobian, because .*Scan\(\)"
    ):
        refused(own_rules("nested"), Newton())


def test_a_cell_without_a_carry(x64):
    @dataclasses.dataclass(frozen=True)
    class Plain(Rolled):
        def initial_carry(self, params, batch_shape=(), dtype=None):
            return ()

        def step(self, params, carry, z):
            return ()

        def output(self, params, carry, x):
            return jnp.tanh(x @ params["kernel"])

    cell = Plain()
    params = cell.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (5, 3))
    ys = jaxrnn.unroll(cell, params, xs, engine=Newton(2))[1]
    np.testing.assert_allclose(ys, jnp.tanh(xs @ params["kernel"]), atol=1e-14)


# --------------------------------------------------------------------------------------
# what does not converge


def test_a_chunk_that_does_not_converge_is_the_scan_or_nan(x64):
    cell, params, xs = elman(4.0, 24, 8, batch=(2,))

    def run(engine):
        return jax.jit(lambda: jaxrnn.unroll(cell, params, xs, engine=engine))()

    (last, ys), want = run(Newton(12, max_iterations=5)), run(Scan())
    np.testing.assert_allclose(ys, want[1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(last, want[0], rtol=0, atol=1e-12)
    last, ys = run(Newton(12, max_iterations=5, fallback="nan"))
    known = np.isfinite(ys).all((1, 2))
    first = int(known.argmin())
    assert 5 <= first < 12
    assert not known[first:].any()
    assert np.isnan(ys[first:]).all()
    assert np.isnan(last).all()
    np.testing.assert_allclose(ys[:first], want[1][:first], rtol=0, atol=1e-10)


def test_the_last_iteration_that_is_allowed_counts(x64):
    cell, params, xs = elman(1.2, 16)
    problem = problem_of(cell, params, xs)
    at = problem.operands
    taken = int(jax.jit(lambda: problem.iterate(at, 32, 1e-12)[1].iterations)())
    for most, converged in ((taken, True), (taken - 1, False)):
        info = jax.jit(lambda n=most: problem.iterate(at, n, 1e-12)[1])()
        assert bool(info.converged.all()) == converged


@pytest.mark.parametrize(("steps", "dtype"), [(512, "float64"), (200, "float32")])
def test_products_that_overflow(steps, dtype, x64):
    """An LSTM that remembers: the first guess is far from its states."""
    cell = jaxrnn.LSTM(8)
    params = cell.init(jax.random.key(0), 3, dtype=dtype)
    params["bias"] = params["bias"].at[8:16].set(5.0)
    xs = 3 * jax.random.normal(jax.random.key(1), (steps, 3), dtype)
    got, want = (
        jax.jit(lambda e=e: jaxrnn.unroll(cell, params, xs, engine=e)[1])()
        for e in (Newton(None, max_iterations=100), Scan())
    )
    assert np.isfinite(got).all()
    np.testing.assert_allclose(
        got, want, rtol=0, atol=1e-11 if dtype == "float64" else 1e-4
    )


# --------------------------------------------------------------------------------------
# derivatives


@pytest.mark.parametrize("engine", ["chunk_3", "starts"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_differentiation(mode, engine, x64):
    if (mode, engine) == ("third order", "starts") and jax.__version_info__ < (0, 12):
        pytest.skip("jax 0.10 asks for the reverse mode of a while_loop, 0.12 does not")
    cell = jaxrnn.DiagonalLSTM(2, learned_initial_carry=True)
    inputs, direction = (draw(cell, seed, 5, (2,)) for seed in (0, 1))
    mask = inputs.mask.at[:, 0].set(True)

    def differentiated(engine):
        def loss(params, xs):
            flags = mask[: len(xs)] if xs.ndim == 3 else mask[: len(xs), 0]
            carry, ys = jaxrnn.unroll(
                cell, params, xs, mask=flags, resets=~flags, engine=engine
            )
            return jnp.sum(jnp.sin(ys)) + jnp.sum(carry.c**3)

        at = (inputs.params, inputs.xs, (direction.params, direction.xs))
        return jax.jit(lambda: MODES[mode](loss, *at))()

    got, want = map(differentiated, (ENGINES[engine], Scan(save="everything")))
    assert_same(got, want, 1e-10)


@pytest.mark.parametrize("name", ["lstm", "gru_before"])
def test_the_gradient_is_that_of_the_solution(name, x64):
    """Not that of the iterations: their number, and a Jacobian by diagonals, change
    nothing of it, not even diagonals of two matmuls in a row.
    """
    inputs = draw(name, 0, 8)
    want = unrolled(SUBJECTS[name], Scan())(*inputs).gradients
    for engine in (
        Newton(8, max_iterations=8, jacobian="units", fallback="nan"),
        Newton(8, max_iterations=30, tolerance=0.0, fallback="scan"),
    ):
        assert_same(unrolled(SUBJECTS[name], engine)(*inputs).gradients, want, 1e-11)


def test_a_scaled_gradient(x64):
    cell, params, xs = elman(1.0, 8, batch=(2,))
    scale = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 2)))

    def gradient(engine):
        def loss(params):
            _, ys = jaxrnn.truncated_unroll(
                cell, params, xs, gradient_scale=scale, engine=engine
            )
            return jnp.sum(jnp.sin(ys))

        return jax.jit(jax.grad(loss))(params)

    assert_same(gradient(ENGINES["all"]), gradient(Scan()), 1e-11)


def test_a_mapped_unroll_keeps_its_structure(x64):
    """A mapped axis is one more axis of groups, not part of a larger Jacobian."""
    inputs = draw("elman", 0, 4, (3,))

    def ys(x):
        return jaxrnn.unroll(PLAIN["elman"], inputs.params, x, engine=Newton(4))[1]

    closed = jax.make_jaxpr(jax.vmap(ys, 1))(inputs.xs)
    (eqn,) = [
        e for e in all_equations(closed.jaxpr) if e.primitive is primitives.recurrence_p
    ]
    step = eqn.params["step"]
    words = describe(blocks_of_step(step, "auto"), program_of_step(step).part_avals)
    assert words == "full 4x4"


# --------------------------------------------------------------------------------------
# float32


def test_float32_is_as_near_to_float64_as_scan_is(x64):
    cell = jaxrnn.LSTM(6)
    params = cell.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (60, 2, 3))

    def outcome(engine, dtype):
        def loss(params, xs):
            return jnp.sum(jnp.sin(jaxrnn.unroll(cell, params, xs, engine=engine)[1]))

        at = jax.tree.map(lambda a: a.astype(dtype), (params, xs))
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(*at)

    def error(a, b):
        return max(
            float(jnp.abs(x - y).max() / (1 + jnp.abs(y).max()))
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )

    exact = outcome(Scan(), jnp.float64)
    single = [
        jax.tree.map(lambda a: a.astype(jnp.float64), outcome(e, jnp.float32))
        for e in (Newton(30), Scan())
    ]
    by_newton, by_scan = (error(a, exact) for a in single)
    assert by_newton <= 3 * by_scan + 1e-7


# --------------------------------------------------------------------------------------
# one compilation, explanations, refusals


def test_equal_engines_compile_once():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Traced(jaxrnn.Elman):
        def step(self, params, carry, z):
            calls.append(1)
            return super().step(params, carry, z)

    _, params, xs = elman(1.0, 12)
    counts = []
    for engine in (Newton(4), Newton(4), Newton(6)):
        jaxrnn.unroll(Traced(4), params, xs, engine=engine)
        counts.append(len(calls))
    assert counts[0] == counts[1] < counts[2]


def test_explain_says_what_newton_does():
    cell = jaxrnn.DiagonalLSTM(4)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((4096, 3), jnp.float32)
    row = jaxrnn.explain(cell, params, xs, engine=Newton(2048)).rows[0]
    assert row.forward.kind == row.backward.kind == "newton"
    assert row.forward.steps == row.backward.steps == 2048
    text = str(row.forward) + row.forward.reason
    assert "Newton's method" in text
    assert "units 2x2" in text
    assert row.engine == "Newton(chunk=2048)"
    # The default engine never is one.
    assert not isinstance(DefaultEngine().schedule(cell, 9).loop, NewtonIteration)


@dataclasses.dataclass(frozen=True)
class Counted(jaxrnn.Cell):
    """A cell with a counter in its carry."""

    hidden_size: int = 3

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params["kernel"].dtype)
        return {"h": zeros, "count": jnp.zeros(batch_shape, jnp.int32)}

    def step(self, params, carry, z):
        h = jnp.tanh(carry["h"] + z @ params["kernel"])
        return {"h": h, "count": carry["count"] + 1}

    def output(self, params, carry, x):
        return carry["h"]


BAD_OPTIONS = {
    "chunk": ({"chunk": 0}, "chunk must be an int of at least 1"),
    "jacobian": ({"jacobian": "dense"}, "jacobian must be one of 'auto', 'units'"),
    "max_iterations": ({"max_iterations": 0}, "max_iterations must be an int"),
    "tolerance": ({"tolerance": -1.0}, "tolerance must be a finite number of at least"),
    "tolerance_inf": ({"tolerance": float("inf")}, "tolerance must be a finite number"),
    "tolerance_text": ({"tolerance": "1e-6"}, "tolerance must be a finite number"),
    "tolerance_array": ({"tolerance": np.ones(2)}, "tolerance must be a finite number"),
    "fallback": ({"fallback": "keep"}, "fallback must be one of 'scan', 'nan'"),
    "save": ({"save": "everything"}, "save must be one of 'carries', 'dots'"),
    "starts": ({"save": "starts"}, "save='starts' .* needs a chunk"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name, plain_errors):
    options, words = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=f"Newton: {words}"):
        Newton(**options)


def refused(cell, engine, xs=None):
    xs = jax.ShapeDtypeStruct((6, 2, 3), jnp.float32) if xs is None else xs
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    jax.eval_shape(lambda p, xs: jaxrnn.unroll(cell, p, xs, engine=engine), params, xs)


def test_a_counter_in_the_carry_is_refused():
    with pytest.raises(TypeError, match=r"carry\['count'\] of Counted is int32.*Scan"):
        refused(Counted(), Newton())


def test_units_that_are_mixed_are_refused():
    with pytest.raises(
        ValueError, match=r"jacobian='units', but of LSTM units .*reduce"
    ):
        refused(jaxrnn.LSTM(4, layer_norm=True), Newton(jacobian="units"))


def test_a_jacobian_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r"a step of Elman takes [0-9,]+ bytes"):
        refused(jaxrnn.Elman(6000), Newton())


def test_tracked_axes_of_a_mesh_are_refused():
    whole, split = (jax.sharding.PartitionSpec(*axes) for axes in ((), (None, "data")))

    def unrolling(xs):
        cell = jaxrnn.Elman(4)
        params = cell.init(jax.random.key(0), 3)
        return jaxrnn.unroll(cell, params, xs, engine=Newton())[0]

    def mapped(**options):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
        run = jax.shard_map(
            unrolling, mesh=mesh, in_specs=split, out_specs=whole, **options
        )
        return jax.eval_shape(run, jax.ShapeDtypeStruct((6, 2, 3), jnp.float32))

    assert mapped(check_vma=False).shape == (2, 4)
    with pytest.raises(ValueError, match=r"vary over \['data'\]; pass check_vma=False"):
        mapped()


def test_arrays_that_only_scan_supports_are_refused():
    cell = jaxrnn.Elman(4)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    (steps,) = jax.export.symbolic_shape("t")
    xs = jax.ShapeDtypeStruct((steps, 3), jnp.float32)
    with pytest.raises(ValueError, match="symbolic"):
        jax.eval_shape(
            lambda p, xs: jaxrnn.unroll(cell, p, xs, engine=Newton()), params, xs
        )
