"""`jaxrnn.summary` against the parameters themselves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import SUBJECTS, D, drawn_params, shapes_of_params

import jaxrnn
from jaxrnn import GRU, LSTM, bidirectional, layers, stack, summary


def at(tree, path):
    """The part of a tree at a path, run by hand."""

    def step(node, word):
        if isinstance(node, dict):
            return node[word]
        return node[int(word)] if word.isdigit() else getattr(node, word)

    return functools.reduce(step, filter(None, path.split("/")), tree)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_parameter_is_in_one_row(name):
    params = shapes_of_params(SUBJECTS[name], str(jnp.result_type(float)))
    found = summary(SUBJECTS[name], params)
    seen = []
    for row in found.rows:
        inside = [at(params, f"{row.place}/{path}") for path in row.shapes]
        assert [leaf.shape for leaf in inside] == list(row.shapes.values())
        assert row.parameters == sum(leaf.size for leaf in inside)
        assert row.bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in inside)
        seen += map(id, inside)
    leaves = jax.tree.leaves(params)
    assert sorted(seen) == sorted(map(id, leaves))
    assert found.parameters == sum(leaf.size for leaf in leaves)
    if found.parameters:
        assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert summary(SUBJECTS[name], input_size=D) == found


def test_rows_of_a_stack():
    layer = stack(
        layers.dense(4),
        jaxrnn.dropout(0.5),
        bidirectional(LSTM(2), GRU(3)),
        jaxrnn.residual_block(GRU(5), 5),
    )
    found = summary(layer, drawn_params(layer, 3))
    rows = [(row.place, row.cell) for row in found.rows]
    assert rows[:4] == [
        ("layer_0", "Dense(features=4)"),
        ("layer_1", "Dropout(rate=0.5)"),
        ("layer_2/forward", "LSTM(hidden_size=2)"),
        ("layer_2/backward", "GRU(hidden_size=3)"),
    ]
    assert rows[-1][0] == "layer_3"  # what the block has beside its cell
    assert found.rows[0].shapes == {"kernel": (3, 4), "bias": (4,)}
    assert found.rows[1].parameters == 0


def test_it_prints_as_a_table():
    lines = str(summary(stack(GRU(8), LSTM(100)), input_size=3)).splitlines()
    assert lines[1].split() == ["place", "parameters", "bytes", "share"]
    assert "LSTM(hidden_size=100)" in "\n".join(lines)
    assert lines[-1].split() == ["total", "43,896", "175,584", "100.0%"]
    assert max(map(len, lines)) <= 88


@dataclasses.dataclass(frozen=True)
class Scaled(jaxrnn.Layer):
    """A layer as a user writes one, with a parameter of its own."""

    cell: jaxrnn.Cell

    def init(self, key, input_size):
        return {"inner": self.cell.init(key, input_size), "scale": jnp.zeros(2)}


def test_a_users_layer_needs_nothing_more():
    found = summary(Scaled(LSTM(4)), input_size=3)
    assert [(row.place, row.parameters) for row in found.rows] == [
        ("inner", 128),
        ("", 2),
    ]


def test_bytes_are_those_of_the_parameters_given():
    params = LSTM(4).init(jax.random.key(0), 3, dtype=jnp.bfloat16)
    assert summary(LSTM(4), params).bytes == 2 * 128


def test_bad_input():
    with pytest.raises(TypeError, match="needs the parameters, or the number of input"):
        summary(LSTM(4))
    wrong = {"kernel": np.ones((3, 7))}
    with pytest.raises(ValueError, match=r"not the parameters of LSTM.*init returned"):
        summary(LSTM(4), wrong)
    params = drawn_params(LSTM(4), 3)
    with pytest.raises(ValueError, match="for 5 input features init does not make"):
        summary(LSTM(4), params, 5)
