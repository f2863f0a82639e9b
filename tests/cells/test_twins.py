"""Each cell over several steps against its equations in numpy: values, and gradients
by complex steps through numpy, in which nothing of jax takes part.
"""

import jax
import numpy as np
import pytest
from reference import NUMPY_STEPS, assert_slopes, compiled, numpy_output
from subjects import CELLS, assert_same, draw, outcome

import jaxrnn

TWINS = [
    "mgu",
    "ctrnn",
    "ctrnn_dale",
    "orthogonal",
    "orthogonal_tanh",
    "nonlinear_rtu",
    "conv_lstm",
    "conv_gru",
    "ltc",
    "cfc",
    "cfc_no_gate",
    "mamba",
]


def numpy_unroll(cell, params, xs, carry):
    """The last carry's leaves and the outputs, a list of arrays, in numpy."""
    ys = []
    for x in xs:
        new = NUMPY_STEPS[type(cell).__name__](cell, params, carry, x)
        carry = type(carry)(*new) if isinstance(carry, tuple) else new
        ys.append(numpy_output(cell, params, carry, x))
    return [*jax.tree.leaves(carry), np.stack(ys)]


@pytest.mark.parametrize("name", TWINS)
def test_values_and_gradients_are_those_in_numpy(name, x64):
    cell = CELLS[name]
    inputs = draw(cell, 3, steps=4, batch=(2,))
    at, cotangents = inputs[:3], inputs.cotangents
    actual = compiled(
        lambda at, c: outcome(lambda *a: jaxrnn.unroll(cell, *a), *at, c)
    )(at, cotangents)
    numbers = jax.tree.map(np.asarray, at)
    assert_same(jax.tree.leaves(actual.values), numpy_unroll(cell, *numbers))
    assert_slopes(
        actual.gradients,
        lambda at: numpy_unroll(cell, *at),
        numbers,
        jax.tree.leaves(cotangents),
    )


def test_a_wrong_slope_of_one_entry_is_seen():
    x, ones = np.array([0.3, -0.7, 1.1]), [np.ones(3)]
    assert_slopes(2 * x, lambda x: [x * x], x, ones)
    with pytest.raises(AssertionError):
        assert_slopes(2 * x + [0, 0, 1e-8], lambda x: [x * x], x, ones)
