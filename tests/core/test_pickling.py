"""Static configuration pickles and copies: every cell, layer, engine and initializer
comes back equal, with an equal hash.
"""

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import SUBJECTS, D, draw, drawn_params

import jaxrnn
from jaxrnn import initializers
from jaxrnn.core.engine import AbstractEngine

ARGUMENTS = {
    "Chrono": (9,),
    "Linspace": (0.0, 1.0),
    "Parameter": (initializers.Orthogonal(), (3, 4), 2),
    "PowerLaw": (0.1, 0.5, 2.0),
    "TorchUniform": (3,),
    "Uniform": (0.0, 1.0),
}
INITIALIZERS = {
    name: kind(*ARGUMENTS.get(name, ()))
    for name, kind in vars(initializers).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
ENGINES = {
    "scan": jaxrnn.Scan(chunk=3, save="carries"),
    "checkpoint": jaxrnn.Checkpoint(4),
    "associative": jaxrnn.Associative(8),
    "fused": jaxrnn.Fused(interpret="tpu"),
    "cudnn": jaxrnn.CuDNN(),
    "newton": jaxrnn.Newton(max_iterations=9),
    "across": jaxrnn.Across("time"),
    "artbp": jaxrnn.ARTBP(2.0),
}
FUNCTIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "positive": jnp.positive,
    "numpy": np.tanh,
    "partial": functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
}
EVERY = SUBJECTS | INITIALIZERS | ENGINES
EVERY |= {
    f"elman_{name}": jaxrnn.Elman(3, activation=function)
    for name, function in FUNCTIONS.items()
}
EVERY |= {
    "dropout": jaxrnn.dropout(0.5),
    "recurrent_dropout_drawn": jaxrnn.recurrent_dropout(jaxrnn.Elman(3), 0.3),
    "deep": jaxrnn.residual(
        jaxrnn.stack(jaxrnn.IndRNN(3), jaxrnn.zoneout(jaxrnn.Elman(3), 0.1))
    ),
}


def _same_outcome(a, b):
    """A partial is equal to itself only: its parts are."""
    return (a.func, a.args, a.keywords) == (b.func, b.args, b.keywords)


@pytest.mark.parametrize("name", EVERY)
def test_comes_back_equal(name):
    value = EVERY[name]
    back = [
        copy.copy(value),
        copy.deepcopy(value),
        copy.deepcopy({"a": [value]})["a"][0],
    ]
    pickled = [
        pickle.loads(pickle.dumps(value, protocol))
        for protocol in (2, pickle.HIGHEST_PROTOCOL)
    ]
    if "partial" in name:
        assert all(_same_outcome(value.activation, each.activation) for each in pickled)
        pickled = []
    for each in (*back, *pickled):
        assert type(each) is type(value)
        assert each == value
        assert hash(each) == hash(value)
        assert repr(each) == repr(value)


def test_every_public_cell_is_among_them():
    kinds = {type(value) for value in EVERY.values()}
    public = {
        value
        for value in vars(jaxrnn).values()
        if isinstance(value, type) and issubclass(value, jaxrnn.Cell)
    }
    engines = {
        value
        for value in vars(jaxrnn).values()
        if isinstance(value, type) and issubclass(value, AbstractEngine)
    }
    assert len(engines) > 5
    assert public - {jaxrnn.Cell, jaxrnn.LinearCell, jaxrnn.MatrixCell} <= kinds
    assert engines <= kinds


def test_what_comes_back_does_not_compile_again():
    cell = jaxrnn.Elman(3, activation=jax.nn.relu)
    inputs = draw(cell, 0)
    count = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(cell, params, xs):
        count.append(1)
        return jaxrnn.unroll(cell, params, xs)

    for each in (cell, pickle.loads(pickle.dumps(cell)), copy.deepcopy(cell)):
        run(each, *inputs[:2])
    assert len(count) == 1


def test_another_process_reads_it():
    layer = jaxrnn.stack(jaxrnn.Elman(4), jaxrnn.IndRNN(2))
    code = (
        f"import pickle; layer = pickle.loads({pickle.dumps(layer)!r}); "
        f"print(repr(layer))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "Elman(hidden_size=4" in done.stdout


def test_state_and_training_pieces():
    """Carries and windows are NamedTuples of arrays, a TBPTT holds functions."""
    for name in ("lstm", "mlstm", "slstm", "bidirectional", "stack"):
        carry = SUBJECTS[name].initial_carry(drawn_params(SUBJECTS[name], D), (2,))
        back = pickle.loads(pickle.dumps(carry))
        assert jax.tree.structure(back) == jax.tree.structure(carry)
    tbptt = jaxrnn.TBPTT(np.sum, jaxrnn.Elman(3).initial_carry, 2)
    assert copy.deepcopy(tbptt) == tbptt
    assert pickle.loads(pickle.dumps(tbptt)).losses is np.sum


def test_a_function_without_a_name_is_named(plain_errors):
    cell = jaxrnn.Elman(3, activation=lambda x: x)
    assert copy.deepcopy(cell) == cell
    with pytest.raises(
        TypeError,
        match=r"Elman: activation is <function .*lambda.*cannot be pickled: .* top level of a module",  # noqa: E501
    ):
        pickle.dumps(cell)
    with pytest.raises(TypeError, match=r"Elman: activation is .*cannot be pickled"):
        pickle.dumps(
            jaxrnn.stack(
                jaxrnn.Elman(3, activation=jax.jit(lambda x: x)), jaxrnn.GRU(2)
            )
        )


@dataclasses.dataclass(frozen=True)
class Slotted(jaxrnn.Cell):
    """A cell with a function of its own in it, and slots."""

    __slots__ = ("function",)
    function: object


def test_cells_of_ones_own():
    for cell in (SUBJECTS["user"], Slotted(draw), Slotted((draw, jnp.tanh))):
        assert pickle.loads(pickle.dumps(cell)) == cell == copy.deepcopy(cell)
