"""`jaxrnn.nnx.RNN` and `Bidirectional` where flax's stood: equal numbers, and each
difference shown on both sides.
"""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import compiled
from subjects import assert_same

import jaxrnn
from jaxrnn.nnx import RNN, Bidirectional, flip_sequences

T, B, D, H = 5, 3, 4, 6
LENGTHS = np.array([T, 2, 1])


class Own(nnx.Module):
    """A cell of one's own, whose output is no part of its carry."""

    num_feature_axes = 1

    def __init__(self, in_features, hidden_features, *, param_dtype, rngs):
        self.rngs, self.hidden_features = rngs, hidden_features
        self.dense = nnx.Linear(
            in_features + hidden_features,
            hidden_features,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, carry, x):
        new = {
            "h": jnp.tanh(self.dense(jnp.concatenate([x, carry["h"]], -1))),
            "sum": carry["sum"] + x[..., :1],
        }
        return new, jnp.sin(new["h"]) * new["sum"]

    def initialize_carry(self, shape, rngs):
        zeros = jnp.zeros(shape[:-1], self.dense.kernel[...].dtype)[..., None]
        return {
            "h": jnp.broadcast_to(zeros, (*shape[:-1], self.hidden_features)),
            "sum": zeros + 1,
        }


KINDS = {
    "LSTMCell": nnx.LSTMCell,
    "OptimizedLSTMCell": nnx.OptimizedLSTMCell,
    "GRUCell": nnx.GRUCell,
    "SimpleCell": nnx.SimpleCell,
    "residual": lambda *a, **k: nnx.SimpleCell(*a, residual=True, **k),
    "elu": lambda *a, **k: nnx.LSTMCell(*a, activation_fn=jax.nn.elu, **k),
    "own": Own,
}
PACKED = ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"]
PLAIN = {"time_major": False, "reverse": False, "keep_order": True, "lengths": None}
HOW = {
    "plain": {},
    "time major": {"time_major": True, "lengths": LENGTHS},
    "backwards": {"reverse": True, "keep_order": False},
    "backwards, ragged": {
        "reverse": True,
        "keep_order": False,
        "lengths": LENGTHS,
        "time_major": True,
    },
    "backwards, in order": {"reverse": True, "lengths": LENGTHS},
}


def random_cell(kind, seed=0, **options):
    """A flax cell with random numbers for all parameters, biases included, in jax's
    default float.
    """
    dtypes = {} if kind == "own" else {"dtype": None}
    cell = KINDS[kind](
        D, H, param_dtype=jnp.result_type(float), rngs=nnx.Rngs(0), **dtypes, **options
    )
    random = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda a: jnp.asarray(0.4 * random.normal(size=a.shape), a.dtype),
        nnx.state(cell, nnx.Param),
    )
    nnx.update(cell, state)
    return cell


def inputs(seed=1, batch=(B,)):
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=(*batch, T, D)), jnp.result_type(float)
    )


def scrambled(tree, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(random.normal(size=a.shape), a.dtype), tree
    )


def outcomes(kind, at_call, time_major, reverse, keep_order, lengths):
    """Values and gradients by flax's RNN and by jaxrnn's, of one cell: last carries,
    and outputs where there is a sequence.
    """
    graph, params, rest = nnx.split(random_cell(kind), nnx.Param, ...)
    xs, how = (
        inputs(),
        {
            "time_major": time_major,
            "reverse": reverse,
            "keep_order": keep_order,
            "return_carry": True,
        },
    )
    carry = scrambled(
        nnx.merge(graph, params, rest).initialize_carry((B, D), nnx.Rngs(0)), 2
    )
    valid = np.arange(T) < (np.full(B, T) if lengths is None else lengths)[:, None]
    lengths = {} if lengths is None else {"seq_lengths": jnp.asarray(lengths)}

    def unrolling(kind_of_rnn, rest, params, xs, carry):
        made, called = ({}, how) if at_call else (how, {})
        # variables of this trace, which flax's scan may write to
        rest = jax.tree.map(lambda a: a, rest)
        rnn = kind_of_rnn(nnx.merge(graph, params, rest), **made)
        xs = jnp.swapaxes(xs, 0, 1) if time_major else xs
        carry, ys = rnn(xs, initial_carry=carry, **lengths, **called)
        ys = jnp.swapaxes(ys, 0, 1) if time_major else ys
        return carry, jnp.where(valid[..., None], ys, 0)

    def both(rest, params, xs, carry):
        found = []
        for kind_of_rnn in (RNN, nnx.RNN):
            values, pullback = jax.vjp(
                lambda *a, k=kind_of_rnn: unrolling(k, rest, *a), params, xs, carry
            )
            found.append((values, pullback(scrambled(values, 3))))
        return found

    return compiled(both)(rest, params, xs, carry)


@pytest.mark.parametrize("how", HOW)
def test_an_lstm_in_every_way(how, x64):
    assert_same(
        *outcomes("LSTMCell", how in ("plain", "backwards, ragged"), **PLAIN | HOW[how])
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LSTMCell"])
def test_other_cells(kind, x64):
    assert_same(*outcomes(kind, True, **PLAIN | HOW["backwards, in order"]))


@pytest.mark.parametrize("kind", PACKED)
def test_built_in_cells_are_run_as_jaxrnns_own(kind):
    """And their parameters, converted, are those of a jaxrnn cell: the other door to
    the same model.
    """
    cell = random_cell(kind)
    rnn = RNN(cell)
    layer = {
        "GRUCell": jaxrnn.GRU(H),
        "SimpleCell": jaxrnn.Elman(H, activation=cell.activation_fn),
    }.get(kind, jaxrnn.LSTM(H))
    other = RNN(layer, D, rngs=nnx.Rngs(0))
    assert jax.tree.structure(rnn.values()) == jax.tree.structure(other.values())
    other.params = nnx.data(jax.tree.map(nnx.Param, rnn.values()))
    xs, lengths = inputs(), jnp.asarray(LENGTHS)
    carry, ys = rnn(xs, seq_lengths=lengths, return_carry=True)
    converted, others = other(xs, seq_lengths=lengths, return_carry=True)
    assert_same(ys, others, 0)
    assert_same(carry, (converted.c, converted.h) if "LSTM" in kind else converted, 0)


@pytest.mark.parametrize("kind", ["LSTMCell", "own"])
def test_steps_in_a_stream_are_the_sequence(kind):
    rnn, xs = (
        RNN(random_cell(kind), time_major=True, return_carry=True),
        jnp.swapaxes(inputs(), 0, 1),
    )
    carry = first = rnn.cell.initialize_carry((B, D), nnx.Rngs(0))
    if kind == "LSTMCell":
        assert_same(rnn.initial_carry((B,)), first, 0)
    ys = []
    for x in xs:
        carry, y = rnn.step(carry, x)
        ys.append(y)
    assert_same((carry, jnp.stack(ys)), rnn(xs), 1e-6)
    piece, _ = rnn(xs[:2])
    assert_same(rnn(xs[2:], initial_carry=piece)[0], carry, 1e-6)


def test_whole_numbers_unroll_and_one_sequence():
    cell = random_cell("LSTMCell")
    whole = jnp.arange(B * T * D).reshape(B, T, D) % 5
    with jax.numpy_dtype_promotion("standard"):
        expected = nnx.RNN(cell)(whole)
    assert_same(RNN(cell, unroll=2, rngs=nnx.Rngs(0))(whole), expected, 1e-6)
    assert_same(RNN(cell, rngs=False)(whole[0]), expected[0], 1e-6)


# -- both directions -------------------------------------------------------------------


@pytest.mark.parametrize("mixed", ["ours", "our RNN in flax's", "flax's RNN in ours"])
def test_both_directions(mixed, x64):
    cells = random_cell("GRUCell", 0), random_cell("GRUCell", 1)
    inner = nnx.RNN if mixed == "flax's RNN in ours" else RNN
    outer = nnx.Bidirectional if mixed == "our RNN in flax's" else Bidirectional
    carry = tuple(scrambled(jnp.zeros((B, H)), seed) for seed in (5, 6))
    how = {
        "seq_lengths": jnp.asarray(LENGTHS),
        "initial_carry": carry,
        "return_carry": True,
        "time_major": True,
    }
    xs, valid = (
        jnp.swapaxes(inputs(), 0, 1),
        (np.arange(T)[:, None] < LENGTHS)[..., None],
    )
    options = {"merge_fn": lambda a, b: a - 2 * b}
    carry, ys = outer(*(inner(cell) for cell in cells), **options)(xs, **how)
    expected_carry, expected = nnx.Bidirectional(
        *(nnx.RNN(cell) for cell in cells), **options
    )(xs, **how)
    assert_same(
        (carry, jnp.where(valid, ys, 0)),
        (expected_carry, jnp.where(valid, expected, 0)),
    )


def test_both_directions_side_by_side_and_turned():
    cells = random_cell("GRUCell", 0), random_cell("LSTMCell", 1)
    xs, lengths = inputs(), jnp.asarray(LENGTHS)
    both = Bidirectional(*(RNN(cell) for cell in cells), return_carry=True)
    carry, ys = both(xs, seq_lengths=lengths)
    assert ys.shape == (B, T, 2 * H)
    turned = Bidirectional(RNN(cells[1]), RNN(cells[0]), return_carry=True)
    (forward, backward), others = turned(
        xs, seq_lengths=lengths, reverse=True, keep_order=True
    )
    assert_same(((backward, forward), jnp.roll(others, H, -1)), (carry, ys), 1e-6)
    _, again = turned(xs, seq_lengths=lengths, reverse=True, keep_order=False)
    assert_same(flip_sequences(again, lengths, 1, False), others, 1e-6)


def test_dropout_in_both_directions():
    layer = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.GRU(H))
    both = Bidirectional(
        RNN(layer, D, rngs=nnx.Rngs(0)), RNN(layer, D, rngs=nnx.Rngs(1))
    )
    xs = inputs()
    assert (
        jnp.abs(
            both(xs, rngs=nnx.Rngs(dropout=0)) - both(xs, rngs=nnx.Rngs(dropout=1))
        ).max()
        > 1e-3
    )
    with pytest.raises(ValueError, match="draws random numbers"):
        both(xs)
    with pytest.raises(
        ValueError, match="draws random numbers"
    ):  # whose stream is one for carries, always the same
        nnx.Bidirectional(both.forward_rnn, both.backward_rnn)(xs)
    both.eval()
    assert_same(both(xs), both(xs), 0)


# -- what differs: each row of the table, on both sides --------------------------------


def ran(kind_of_rnn, cell, xs, **how):
    return kind_of_rnn(cell, return_carry=True)(xs, **how)


def test_length_0_gives_back_the_initial_carry():
    cell, xs, lengths = random_cell("LSTMCell"), inputs(), jnp.array([T, 2, 0])
    first = scrambled(cell.initialize_carry((B, D), nnx.Rngs(0)), 4)
    carry, ys = ran(RNN, cell, xs, initial_carry=first, seq_lengths=lengths)
    assert_same(
        jax.tree.map(lambda a: a[2], carry), jax.tree.map(lambda a: a[2], first), 0
    )
    assert not ys[2].any()
    flaxs, _ = ran(nnx.RNN, cell, xs, initial_carry=first, seq_lengths=lengths)
    assert_same(
        jax.tree.map(lambda a: a[2], flaxs),
        jax.tree.map(lambda a: a[2], ran(RNN, cell, xs, initial_carry=first)[0]),
        1e-6,
    )


def test_two_batch_axes_with_lengths():
    cell, xs, lengths = (
        random_cell("LSTMCell"),
        inputs(batch=(2, 2)),
        np.array([[T, 1], [2, 3]]),
    )
    carry, ys = ran(RNN, cell, xs, seq_lengths=jnp.asarray(lengths))
    for i in range(2):
        part = ran(RNN, cell, xs[i], seq_lengths=jnp.asarray(lengths[i]))
        assert_same(jax.tree.map(lambda a, i=i: a[i], (carry, ys)), part, 1e-6)
    flaxs, _ = ran(nnx.RNN, cell, xs, seq_lengths=jnp.asarray(lengths))
    assert jax.tree.map(jnp.shape, flaxs) == ((2, 2, 2, H),) * 2
    assert jax.tree.map(jnp.shape, carry) == ((2, 2, H),) * 2


@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16])
def test_bfloat16_stays_and_its_sums_do_not(stored):
    cell = nnx.LSTMCell(D, H, dtype=jnp.bfloat16, param_dtype=stored, rngs=nnx.Rngs(0))
    xs, first = inputs(), cell.initialize_carry((B, D), nnx.Rngs(0))
    carry, ys = ran(RNN, cell, xs, initial_carry=first)
    assert (ys.dtype, [part.dtype for part in carry]) == (
        jnp.bfloat16,
        [jnp.float32, jnp.bfloat16],
    )
    with jax.numpy_dtype_promotion("standard"):
        (c, _), others = ran(nnx.RNN, cell, xs)
    assert (others.dtype, c.dtype) == (stored, stored)
    np.testing.assert_allclose(
        np.asarray(ys, np.float32), np.asarray(others, np.float32), atol=0.03
    )
    assert_same(ran(RNN, cell, xs), (carry, ys), 0)
    rnn = RNN(cell)
    assert_same(rnn.step(rnn.initial_carry((B,)), xs[:, 0])[1], ys[:, 0], 1e-2)
    assert rnn.values()["bias"].dtype == jnp.bfloat16


def test_reversed_outputs_stay_beside_their_inputs_unless_told_otherwise():
    cell, xs = random_cell("GRUCell"), inputs()
    ours, flaxs = (
        kind_of_rnn(cell, reverse=True)(xs) for kind_of_rnn in (RNN, nnx.RNN)
    )
    assert_same(ours, flaxs[:, ::-1], 1e-6)
    assert_same(RNN(cell, reverse=True, keep_order=False)(xs), flaxs, 1e-6)


def test_padding_puts_out_zeros_and_may_hold_nan():
    cell, lengths = random_cell("GRUCell"), jnp.asarray(LENGTHS)
    padded = np.arange(T) >= LENGTHS[:, None]
    xs = jnp.where(padded[..., None], jnp.nan, inputs())

    def gradient(kind_of_rnn):
        return nnx.grad(
            lambda cell: jnp.where(
                padded[..., None], 0, kind_of_rnn(cell)(xs, seq_lengths=lengths)
            ).sum()
        )(cell)

    assert not RNN(cell)(xs, seq_lengths=lengths)[padded].any()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(RNN)))
    assert np.abs(nnx.RNN(cell)(inputs(), seq_lengths=lengths)[padded]).max() > 1e-3
    assert not all(
        jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(nnx.RNN))
    )


def test_the_order_of_an_lstms_carry_is_the_cells():
    xs = inputs()
    (c, h), ys = ran(RNN, random_cell("LSTMCell"), xs)
    assert_same(h, ys[:, -1], 0)
    (hidden, memory), ys = RNN(jaxrnn.LSTM(H), D, return_carry=True, rngs=nnx.Rngs(0))(
        xs
    )
    assert_same(hidden, ys[:, -1], 0)
    assert jnp.abs(memory - hidden).max() > 1e-3
    with pytest.raises(
        TypeError, match=r"a pair \(c, h\), in this order, but got LSTMState"
    ):
        RNN(random_cell("LSTMCell"))(xs, initial_carry=jaxrnn.LSTMState(h=h, c=c))


def test_parameters_keep_flaxs_names_and_no_stream_joins_them():
    flaxs, ours = nnx.RNN(random_cell("LSTMCell", 0)), RNN(random_cell("LSTMCell", 1))
    nnx.update(ours, nnx.state(flaxs, nnx.Param))
    assert_same(ours(inputs()), flaxs(inputs()), 1e-6)
    assert nnx.state(ours) == nnx.state(ours, nnx.Param)
    assert jax.tree.leaves(nnx.state(flaxs, nnx.RngState))


def variant(name, **members):
    return type(name, (Own,), members)(D, H, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_what_flax_runs_and_is_refused_here(plain_errors):
    """A cell that draws its carry, and one RNN for both directions."""
    xs = inputs()
    with pytest.warns(UserWarning, match="carry_init"):
        drawing = nnx.GRUCell(
            D, H, carry_init=nnx.initializers.normal(), rngs=nnx.Rngs(0)
        )
    assert nnx.RNN(drawing)(xs).shape == (B, T, H)
    assert nnx.Bidirectional(*[nnx.RNN(random_cell("GRUCell"))] * 2)(xs).shape == (
        B,
        T,
        2 * H,
    )
    with pytest.raises(ValueError, match="pass it as initial_carry"):
        RNN(drawing)(xs)
    carry = drawing.initialize_carry((B, D), nnx.Rngs(0))
    assert_same(
        RNN(drawing)(xs, initial_carry=carry),
        nnx.RNN(drawing)(xs, initial_carry=carry),
        1e-6,
    )
    with pytest.raises(ValueError, match="are one object"):
        Bidirectional(*[RNN(random_cell("GRUCell"))] * 2)


def test_bad_arguments(plain_errors):
    cell, xs = random_cell("GRUCell"), inputs()
    with pytest.raises(
        TypeError, match="state_axes and broadcast_rngs are for a flax cell that"
    ):
        RNN(jaxrnn.GRU(H), D, broadcast_rngs="dropout", rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError,
        match="GRUCell already has its parameters, so leave out input_size and dtype",
    ):
        RNN(cell, D)
    with pytest.raises(
        TypeError,
        match=r"RNN\(layer, input_size, rngs=nnx\.Rngs\(0\)\), but no input_size came$",
    ):
        RNN(jaxrnn.GRU(H), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="keep_order=False reverses sequences"):
        RNN(cell)(xs, mask=jnp.ones((B, T), bool), reverse=True, keep_order=False)
    with pytest.raises(
        ValueError, match=r"the carry passed in has shape \(3, 5\), expected \(3, 6\)"
    ):
        RNN(cell)(xs, initial_carry=jnp.zeros((B, H - 1)))
    with pytest.raises(ValueError, match=r"one length per sequence, shape \(3,\)"):
        flip_sequences(xs, jnp.array([1, 2]), 1, False)
    with pytest.raises(
        ValueError, match=r"call the cell itself, rnn\.cell\.initialize_carry"
    ):
        RNN(variant("Odd")).initial_carry((B,))
    with pytest.raises(TypeError, match="flax's GRUCell takes none: leave it out"):
        RNN(cell)(xs, context=xs)


# -- flax's own examples ---------------------------------------------------------------


def test_flip_sequences_leaves_padding_where_it_is():
    xs, lengths = jnp.arange(15).reshape(3, 5), jnp.array([5, 3, 0])
    expected = np.asarray(xs).copy()
    for row, length in zip(expected, [5, 3, 0], strict=True):
        row[:length] = row[:length][::-1]
    np.testing.assert_array_equal(flip_sequences(xs, lengths, 1, False), expected)
    np.testing.assert_array_equal(flip_sequences(xs.T, lengths, 1, True), expected.T)
    np.testing.assert_array_equal(flip_sequences(xs, None, 1, False), xs[:, ::-1])


@pytest.mark.parametrize(
    ("name", "examples"), [("Bidirectional", 9), ("flip_sequences", 5)]
)
def test_flaxs_documented_examples_run_with_the_import_changed(name, examples):
    """The examples are read out of the flax that is installed."""
    text = inspect.getdoc(getattr(inspect.getmodule(nnx.RNN), name))
    text = text.replace("from flax.nnx.nn.recurrent import", "from jaxrnn.nnx import")
    names = {"RNN": RNN, "Bidirectional": Bidirectional, "GRUCell": nnx.GRUCell}
    test = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    assert len(test.examples) == examples
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test, out=said.append).failed == 0, "".join(said)
