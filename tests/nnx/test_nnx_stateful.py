"""Cells of flax that draw random numbers, keep variables, or have inputs and outputs
that no engine takes: `jaxrnn.nnx.RNN` against ``nnx.RNN``, and against a Python loop.

Values, gradients, the variables that are left, and the counts of the key streams.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from reference import compiled
from subjects import assert_same

import jaxrnn
from jaxrnn.nnx import RNN, Bidirectional

T, B, D, H = 5, 3, 4, 6
LENGTHS = np.array([3, T, 1])


class Mean(nnx.Variable):
    """A running mean."""


class Record(nnx.Variable):
    """One entry a step: read and written."""


class Base(nnx.Module):
    """A tanh cell whose output is no part of its carry."""

    num_feature_axes = 1

    def __init__(self, rngs):
        self.inputs = nnx.Linear(D, H, rngs=rngs, param_dtype=jnp.result_type(float))
        self.states = nnx.Linear(
            H, H, rngs=rngs, use_bias=False, param_dtype=jnp.result_type(float)
        )

    def __call__(self, carry, x):
        h = jnp.tanh(self.inputs(x) + self.states(carry))
        return h, jnp.sin(h)

    def initialize_carry(self, shape, rngs):
        return jnp.full((*shape[:-1], H), 0.25, self.inputs.kernel[...].dtype)


class Dropping(Base):
    """Draws a mask for the state at every step."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, carry, x):
        h, y = super().__call__(carry, x)
        return self.dropout(h), y


class Averaging(Base):
    """Keeps the mean of its states and adds it to the next one."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.mean = Mean(jnp.zeros(H, jnp.result_type(float)))

    def __call__(self, carry, x):
        h, y = super().__call__(carry + self.mean[...][None], x)
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * h.mean(0)
        return h, y


class Recording(Base):
    """Reads its entry of a record at every step, and writes another one."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.record = Record(rngs.params.normal((T, H), dtype=jnp.result_type(float)))

    def __call__(self, carry, x):
        h, y = super().__call__(carry + self.record[...][None], x)
        self.record[...] = 2 * h[1]  # of the longest sequence
        return h, y


class Pair(Base):
    """Two outputs."""

    def __call__(self, carry, x):
        h, y = super().__call__(carry, x)
        return h, {"y": y, "norm": (h**2).sum(-1)}


class Picture(Base):
    """Two feature axes, (D, 2)."""

    num_feature_axes = 2

    def __call__(self, carry, x):
        return super().__call__(carry, x[..., 0] - 2 * x[..., 1])

    def initialize_carry(self, shape, rngs):
        return super().initialize_carry(shape[:-1], rngs)


class Tokens(Base):
    """Looks its inputs up."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.embed = nnx.Embed(7, D, rngs=rngs, param_dtype=jnp.result_type(float))

    def __call__(self, carry, x):
        return super().__call__(carry, self.embed(x[..., 0]))


CASES = {
    "draws": (Dropping, {}),
    "draws once a call": (Dropping, {"broadcast_rngs": "dropout"}),
    "averages": (Averaging, {}),
    "averages, parameters shared": (
        Averaging,
        {"state_axes": nnx.StateAxes({nnx.Param: None, ...: nnx.Carry})},
    ),
    "records": (
        Recording,
        {"state_axes": nnx.StateAxes({Record: 0, ...: nnx.Carry})},
    ),
    "two outputs": (Pair, {}),
    "pictures": (Picture, {}),
    "tokens": (Tokens, {}),
}
PLAIN = {"time_major": False, "reverse": False, "keep_order": True, "lengths": None}
HOW = {
    "plain": {},
    "time major, ragged": {"time_major": True, "lengths": LENGTHS},
    "backwards, ragged": {"reverse": True, "keep_order": False, "lengths": LENGTHS},
    "backwards, in order": {"reverse": True, "time_major": True},
}


def made(kind, seed=0):
    rngs = nnx.Rngs(seed, dropout=7)
    rngs.dropout()  # so that the count does not begin at 0
    return kind(rngs)


def drawn(seed, *shape):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.result_type(float))


def scrambled(tree, seed):
    return jax.tree.map(lambda a: drawn(seed, *a.shape).astype(a.dtype), tree)


def inputs(kind):
    if kind is Picture:
        return drawn(1, B, T, D, 2)
    if kind is Tokens:
        return jnp.asarray(np.random.default_rng(1).integers(7, size=(B, T, 1)))
    return drawn(1, B, T, D)


def plain_leaves(state):
    """Arrays, with the data of keys in the place of keys."""
    return [
        jax.random.key_data(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for leaf in jax.tree.leaves(state)
    ]


def outcomes(case, time_major, reverse, keep_order, lengths):
    """Values, gradients and what is left in the variables, by both."""
    kind, options = CASES[case]
    graph, params, rest = nnx.split(made(kind), nnx.Param, ...)
    xs, valid = inputs(kind), np.ones((B, T), bool)
    how = {"time_major": time_major, "reverse": reverse, "keep_order": keep_order}
    given = {} if lengths is None else {"seq_lengths": jnp.asarray(lengths)}
    if lengths is not None:
        valid = np.arange(T) < lengths[:, None]

    def unrolling(kind_of_rnn, rest, params, carry):
        cell = nnx.merge(graph, params, jax.tree.map(lambda a: a, rest))
        rnn = kind_of_rnn(cell, **options, **how, unroll=2)
        carry, ys = rnn(
            jnp.swapaxes(xs, 0, 1) if time_major else xs,
            initial_carry=carry,
            return_carry=True,
            **given,
        )
        ys = jax.tree.map(
            lambda y: jnp.where(
                valid.reshape(B, T, *[1] * (y.ndim - 2)),
                jnp.swapaxes(y, 0, 1) if time_major else y,
                0,
            ),
            ys,
        )
        return (carry, ys), plain_leaves(nnx.split(cell, nnx.Param, ...)[2])

    def both(rest, params, carry):
        found = []
        for kind_of_rnn in (RNN, nnx.RNN):
            values, pullback, left = jax.vjp(
                lambda *a, k=kind_of_rnn: unrolling(k, rest, *a),
                params,
                carry,
                has_aux=True,
            )
            found.append((values, pullback(scrambled(values, 3)), left))
        return found

    return compiled(both)(rest, params, drawn(2, B, H))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("case", CASES)
def test_values_gradients_and_variables_are_flaxs(case, how, x64):
    if "ragged" in how and case in ("averages", "averages, parameters shared"):
        pytest.skip("the padding, which flax lets into the mean: its own test")
    assert_same(*outcomes(case, **PLAIN | HOW[how]))


@pytest.mark.parametrize("case", ["draws", "averages", "tokens"])
def test_it_is_a_python_loop_that_calls_the_cell(case):
    kind, options = CASES[case]
    cell, other, xs = made(kind), made(kind), inputs(kind)
    carry, ys = RNN(cell, **options)(xs, return_carry=True)
    state, steps = other.initialize_carry((B, *xs.shape[2:]), None), []
    streamed = RNN(made(kind), **options)
    stream, answers = state, []
    for t in range(T):
        state, y = other(state, xs[:, t])
        stream, answer = streamed.step(stream, xs[:, t])
        steps.append(y)
        answers.append(answer)
    assert_same((carry, ys), (state, jnp.stack(steps, 1)), 1e-6)
    assert_same((stream, jnp.stack(answers, 1)), (state, jnp.stack(steps, 1)), 1e-6)
    for one in (cell, streamed.cell):
        assert_same(plain_leaves(nnx.state(one)), plain_leaves(nnx.state(other)), 1e-6)


def test_each_call_advances_the_streams():
    """By T where every step draws, by one where all steps share."""
    xs = inputs(Dropping)
    for case, advance in (("draws", T), ("draws once a call", 1)):
        kind, options = CASES[case]
        rnn = RNN(made(kind), **options)
        count = int(rnn.cell.dropout.rngs.count[...])
        first, second = rnn(xs), rnn(xs)
        assert int(rnn.cell.dropout.rngs.count[...]) == count + 2 * advance
        assert jnp.abs(first - second).max() > 1e-3
    # one mask for all steps: the units that are dropped are dropped at every step
    carries = rnn(xs, return_carries=True)[2]
    zero = np.asarray(carries == 0)
    assert (zero == zero[0]).all()
    assert 0 < zero.mean() < 1


def test_eval_gives_the_cell_to_the_engine():
    cell, xs = made(Dropping), inputs(Dropping)
    rnn = RNN(cell, engine=jaxrnn.Checkpoint())
    with pytest.raises(
        ValueError, match=r"Dropping draws random numbers .* and not Checkpoint"
    ):
        rnn(xs)
    rnn = RNN(cell)
    rnn.eval()
    assert_same(rnn(xs), nnx.RNN(cell)(xs), 1e-6)


def test_a_training_step_under_jit(optax_promotion):
    """The variables move on inside ``nnx.jit``, and flax's step leaves the same."""
    xs, target, left = inputs(Averaging), drawn(4, B, T, H), []

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return ((model(xs) - target) ** 2).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    for kind_of_rnn in (RNN, nnx.RNN):
        model = kind_of_rnn(made(Averaging))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        values = [step(model, optimizer) for _ in range(2)]
        left.append((values, plain_leaves(nnx.state(model.cell))))
    assert_same(*left, 1e-5)


# -- the rules for padding and resets are the library's -----


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_zero_holds_the_carry_and_may_be_nan(reverse, x64):
    """Nor does it enter the running mean: its content changes no variable."""
    padded = np.arange(T) >= LENGTHS[:, None]

    def run(filling, lengths, **how):
        cell, lengths = made(Averaging), jnp.asarray(lengths)
        xs = jnp.where(padded[..., None], filling, inputs(Averaging))
        carry, ys, carries = RNN(cell, reverse=reverse)(
            xs, seq_lengths=lengths, return_carries=True, **how
        )
        gradient = nnx.grad(
            lambda cell: RNN(cell, reverse=reverse)(
                xs, seq_lengths=jnp.asarray(lengths)
            ).sum()
        )(made(Averaging))
        return carry, ys, carries, plain_leaves(nnx.state(cell)), gradient

    found, other = run(jnp.nan, LENGTHS), run(3.0, LENGTHS)
    assert_same(found, other, 0)
    carry, ys, carries, _, gradient = found
    assert not ys[padded].any()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    ends = [0] * B if reverse else LENGTHS - 1
    assert_same(carries[jnp.asarray(ends), jnp.arange(B)], carry, 0)
    first = drawn(8, B, H)
    carry, ys, *_ = run(1.0, np.array([0, T, 1]), initial_carry=first)
    assert_same(carry[0], first[0], 0)
    assert not ys[0].any()


@pytest.mark.parametrize("reverse", [False, True])
def test_masks_resets_and_all_carries_are_the_engines(reverse):
    """A pure cell is run by the engine, and by flax's scan where options of the scan
    are given: one meaning.
    """
    random = np.random.default_rng(5)
    how = {
        "mask": jnp.asarray(random.random((B, T)) < 0.7),
        "resets": jnp.asarray(random.random((B, T)) < 0.3),
    }
    for given in (how, {"seq_lengths": jnp.asarray(LENGTHS), "resets": how["resets"]}):
        found = [
            RNN(made(Base), reverse=reverse, **options)(
                inputs(Base),
                initial_carry=drawn(6, B, H),
                return_carries=True,
                **given,
            )
            for options in ({}, {"broadcast_rngs": "dropout"})
        ]
        assert_same(*found, 1e-6)
    ragged = [
        RNN(made(Base), reverse=reverse, **options)(
            inputs(Base), seq_lengths=jnp.asarray(LENGTHS), return_carries=True
        )
        for options in ({}, {"broadcast_rngs": "dropout"})
    ]
    assert_same(*ragged, 1e-6)


def test_both_directions_of_cells_that_draw():
    cells, others = ([made(Dropping, seed) for seed in (0, 1)] for _ in range(2))
    how = {"seq_lengths": jnp.asarray(LENGTHS), "return_carry": True}
    carry, ys = Bidirectional(*map(RNN, cells))(inputs(Dropping), **how)
    expected_carry, expected = nnx.Bidirectional(*map(nnx.RNN, others))(
        inputs(Dropping), **how
    )
    valid = (np.arange(T) < LENGTHS[:, None])[..., None]
    assert_same((carry, ys), (expected_carry, jnp.where(valid, expected, 0)), 1e-6)


def test_a_streaming_step_of_a_cell_that_draws_may_be_reset():
    """As in the whole sequence: the carry is the first one where the flag is set."""
    cell, other = made(Dropping, 0), made(Dropping, 0)
    x, reset = inputs(Dropping)[:, 0], jnp.asarray([True, False, True])
    carry = jnp.ones((B, H))
    found = RNN(cell).step(carry, x, reset=reset)
    first = other.initialize_carry(x.shape, nnx.Rngs(0))
    expected = other(jnp.where(reset[:, None], first, carry), x)
    assert_same(found, expected, 1e-6)
