"""Packed sequences, and the last output of every row without all outputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import SUBJECTS, B, D, T, UserCell, assert_same, draw, drawn_params

import jaxrnn
from jaxrnn import (
    GRU,
    LSTM,
    bidirectional,
    last_output,
    layers,
    resets_from_segment_ids,
)

# rows: all valid, none, a hole and an end before the last step
MASK = jnp.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]], bool).T
# the last reset of the third row is after its last valid step, from either side
RESETS = jnp.array([[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 1, 0, 1]], bool).T


# -- resets of packed sequences --------------------------------------------------------


def test_resets_are_where_the_id_changes():
    ids = jnp.array([[3, 3, 5, 5, 3, 0], [7, 8, 8, 8, 0, 0]]).T
    right = np.array([[1, 0, 1, 0, 1, 1], [1, 1, 0, 0, 1, 0]], bool).T
    np.testing.assert_array_equal(resets_from_segment_ids(ids), right)
    goes_on = resets_from_segment_ids(ids, previous=jnp.array([3, 3]))
    assert goes_on[0].tolist() == [False, True]
    np.testing.assert_array_equal(goes_on[1:], right[1:])
    backwards = resets_from_segment_ids(ids[::-1], reverse=True)
    np.testing.assert_array_equal(backwards[::-1], right)
    backwards = resets_from_segment_ids(
        ids[::-1], reverse=True, previous=jnp.array([3, 3])
    )
    np.testing.assert_array_equal(backwards[::-1], goes_on)
    assert resets_from_segment_ids(ids[:0]).shape == (0, 2)
    assert resets_from_segment_ids(ids[:, 0].astype("uint8")).shape == (6,)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_are_run_apart(reverse, x64):
    layer = SUBJECTS["gru_learned"]
    inputs, ids = draw(layer, 0), jnp.array([4, 4, 4, 2, 2])
    resets = resets_from_segment_ids(ids, reverse=reverse)
    resets = jnp.broadcast_to(resets[:, None], (T, B))
    _, packed = jaxrnn.unroll(
        layer, inputs.params, inputs.xs, inputs.carry, resets=resets, reverse=reverse
    )
    apart = [
        jaxrnn.unroll(layer, inputs.params, xs, reverse=reverse)[1]
        for xs in (inputs.xs[:3], inputs.xs[3:])
    ]
    assert_same(packed, jnp.concatenate(apart))


# -- the last output -------------------------------------------------------------------


def picked(layer, params, xs, carry, mask, resets, **how):
    """The last valid output of each row, out of all outputs."""
    last, ys = jaxrnn.unroll(layer, params, xs, carry, mask=mask, resets=resets, **how)
    valid = np.ones((len(xs), B), bool) if mask is None else np.asarray(mask)
    steps = [np.flatnonzero(valid[:, b]) for b in range(B)]
    ends = [s[0 if how.get("reverse") else -1] if len(s) else None for s in steps]

    def row_by_row(leaf):
        rows = [
            jnp.zeros_like(leaf[0, b]) if t is None else leaf[t, b]
            for b, t in enumerate(ends)
        ]
        return jnp.stack(rows)

    return last, jax.tree.map(row_by_row, ys)


def outcome_of(function, inputs):
    shapes = jax.eval_shape(function, *inputs[:3])
    random = np.random.default_rng(1)
    cotangents = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), shapes
    )

    def both(*at):
        values, pullback = jax.vjp(function, *at)
        return values, pullback(cotangents)

    return compiled(both)(*inputs[:3])


CASES = {
    "plain": {},
    "mask": {"mask": MASK},
    "resets": {"resets": RESETS},
    "mask resets": {"mask": MASK, "resets": RESETS},
    "mask resets reverse": {"mask": MASK, "resets": RESETS, "reverse": True},
    "reverse": {"reverse": True},
}


@dataclasses.dataclass(frozen=True)
class Reading(UserCell):
    """A cell that shows its input, too, and learns its first carry."""

    def init(self, key, input_size):
        return {**super().init(key, input_size), "first": jnp.zeros(self.hidden_size)}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        first = params["first"]
        return jnp.broadcast_to(jnp.sin(first), (*batch_shape, *first.shape))

    def output(self, params, carry, x):
        return {"h": carry, "both": carry * jnp.sin(x)}


LAYERS = {name: SUBJECTS[name] for name in ("mlstm", "small_layers", "bidirectional")}
LAYERS["stack"] = jaxrnn.stack(GRU(2), Reading(2))
ROWS = [(Reading(D), case) for case in CASES]
ROWS += [(layer, "mask resets reverse") for layer in LAYERS.values()]
IDS = [f"cell-{case}" for case in CASES] + list(LAYERS)


@pytest.mark.parametrize(("layer", "case"), ROWS, ids=IDS)
def test_it_is_picked_out_of_all_outputs(layer, case, x64):
    inputs, how = draw(layer, 0), {"mask": None, "resets": None, **CASES[case]}
    if how["mask"] is not None:
        hidden = jnp.where(how["mask"][..., None], inputs.xs, jnp.nan)
        inputs = inputs._replace(xs=hidden)
    found = outcome_of(lambda *at: last_output(layer, *at, **how), inputs)
    right = outcome_of(lambda *at: picked(layer, *at, **how), inputs)
    assert_same(found, right)


def test_every_way_to_show_a_layer(x64):
    """Layers that draw, that look ahead, and no steps at all."""
    noisy = jaxrnn.stack(LSTM(4), jaxrnn.dropout(0.5))
    inputs, key = draw(jaxrnn.inference(noisy), 0), jax.random.key(3)
    found = last_output(noisy, *inputs[:3], mask=MASK, key=key)
    assert_same(found, picked(noisy, *inputs[:3], mask=MASK, resets=None, key=key))
    for layer in (SUBJECTS["gru"], bidirectional(SUBJECTS["gru"])):
        inputs = draw(layer, 0)
        carry, y = last_output(layer, inputs.params, inputs.xs[:0], inputs.carry)
        assert_same(carry, inputs.carry)
        assert not y.any()
        assert y.shape == (B, 4 if layer == SUBJECTS["gru"] else 8)


def test_vmap_is_the_batch(x64):
    layer, inputs = SUBJECTS["gru_learned"], draw("gru_learned", 0)
    found = jax.vmap(
        lambda xs, carry, mask: last_output(layer, inputs.params, xs, carry, mask=mask),
        in_axes=(1, 0, 1),
    )(inputs.xs, inputs.carry, jnp.asarray(MASK))
    assert_same(found, last_output(layer, *inputs[:3], mask=jnp.asarray(MASK)))


def test_lengths_that_are_symbols(plain_errors):
    """One exported program takes every length and batch, masked or not."""
    layer = jaxrnn.stack(layers.causal_conv(3), layers.shift(D), GRU(4))
    inputs = draw(layer, 0)
    t, b = jax.export.symbolic_shape("t, b")
    xs = jax.ShapeDtypeStruct((t, b, D), jnp.float32)
    mask = jax.ShapeDtypeStruct((t, b), bool)
    for given in ((xs, mask), (xs,)):

        def last(params, xs, *mask):
            return last_output(layer, params, xs, mask=mask[0] if mask else None)

        written = jax.export.export(jax.jit(last))(inputs.params, *given).serialize()
        at = (inputs.params, inputs.xs, MASK)[: 1 + len(given)]
        found = jax.export.deserialize(written).call(*at)
        assert_same(found, last(*at), 1e-6)


def test_no_outputs_are_kept():
    cell, steps, batch = LSTM(64), 512, 4
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((steps, batch, D), jnp.float32)
    mask = jax.ShapeDtypeStruct((steps, batch), bool)

    def temporary(function, **how):
        run = jax.jit(lambda *at: function(cell, *at, **how))
        analysis = run.lower(params, xs, mask).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    def out_of_all(cell, params, xs, mask, **how):
        _, ys = jaxrnn.unroll(cell, params, xs, mask=mask, **how)
        index = (steps - 1 - jnp.argmax(mask[::-1], 0))[None, :, None]
        return jnp.take_along_axis(ys, index, 0)[0]

    def last(cell, params, xs, mask, **how):
        return last_output(cell, params, xs, mask=mask, **how)[1]

    outputs = steps * batch * cell.hidden_size * 4
    assert temporary(out_of_all) >= temporary(last) + outputs
    # without the inputs' projections, which are made for all steps at once
    alone = jaxrnn.Scan(hoist=False)
    assert temporary(last, engine=alone) < outputs / 4
    assert temporary(out_of_all, engine=alone) > outputs


BAD = {
    "ids": (
        lambda: resets_from_segment_ids(jnp.ones(3)),
        TypeError,
        "segment_ids must be an array of integers",
    ),
    "list": (lambda: resets_from_segment_ids([1, 2]), TypeError, "array of integers"),
    "number": (lambda: resets_from_segment_ids(jnp.array(1)), TypeError, "time first"),
    "previous": (
        lambda: resets_from_segment_ids(jnp.ones((3, 2), int), previous=jnp.array([1])),
        ValueError,
        r"batch axes of segment_ids, \(2,\), but its shape is \(1,\)",
    ),
    "mask": (
        lambda: last_output(
            LSTM(4), drawn_params(LSTM(4), 3), jnp.ones((5, 2, 3)), mask=MASK
        ),
        ValueError,
        r"mask must have shape \(T, \*B\) = \(5, 2\)",
    ),
    "key": (
        lambda: last_output(
            layers.dense(2),
            drawn_params(layers.dense(2), 3),
            jnp.ones((5, 2, 3)),
            key=jax.random.key(0),
        ),
        ValueError,
        "Dense draws no random numbers",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case, plain_errors):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
