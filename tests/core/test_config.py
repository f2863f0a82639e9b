"""Configurations: every cell, layer, engine and initializer goes to JSON and comes back
equal; what cannot is refused, and no stranger's code is imported.
"""

import dataclasses
import enum
import functools
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import LAYERS, SUBJECTS
from test_pickling import ENGINES, FUNCTIONS, INITIALIZERS

import jaxrnn
from jaxrnn import from_config, initializers
from jaxrnn.core.config import paths_in, to_config

OWN = {"user", "user_linear"}
DRAWING = {
    "dropout": jaxrnn.dropout(0.5, variational=True),
    "recurrent_dropout": jaxrnn.recurrent_dropout(jaxrnn.Elman(3), 0.3),
    "zoneout": jaxrnn.zoneout(jaxrnn.LSTM(3), (0.2, 0.1)),
    "deep": jaxrnn.residual(jaxrnn.stack(jaxrnn.IndRNN(3), *LAYERS.values())),
    "sum": jaxrnn.bidirectional(jaxrnn.GRU(3), merge="sum"),
}


def there_and_back(value, **options):
    return from_config(json.loads(json.dumps(value.to_config())), **options)


@pytest.mark.parametrize("name", SUBJECTS)
def test_subjects_come_back_equal(name):
    subject = SUBJECTS[name]
    if name in OWN:
        with pytest.raises(ValueError, match="uses code outside jaxrnn: subjects:User"):
            there_and_back(subject)
        back = there_and_back(
            subject, trust_code={f"subjects:{type(subject).__name__}"}
        )
    else:
        back = there_and_back(subject)
    assert back == subject
    assert hash(back) == hash(subject)
    assert type(back) is type(subject)


@pytest.mark.parametrize("name", DRAWING)
def test_layers_that_draw_come_back_equal(name):
    assert there_and_back(DRAWING[name]) == DRAWING[name]
    still = jaxrnn.inference(DRAWING[name])
    assert there_and_back(still) == still


@pytest.mark.parametrize("name", ENGINES)
def test_engines_come_back_equal(name):
    config = json.loads(json.dumps(to_config(ENGINES[name])))
    assert from_config(config) == ENGINES[name]


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers_come_back_equal(name):
    if name != "Parameter":  # no initializer, but a frozen dataclass
        cell = jaxrnn.Elman(3, recurrent_init=INITIALIZERS[name])
        assert there_and_back(cell) == cell
    assert from_config(to_config(INITIALIZERS[name])) == INITIALIZERS[name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_come_back_themselves(name):
    cell = jaxrnn.Elman(3, activation=FUNCTIONS[name])
    back = there_and_back(cell, trust_code=name == "numpy")
    if name == "partial":  # equal to itself only: its parts are
        assert (back.activation.func, back.activation.keywords) == (
            cell.activation.func,
            cell.activation.keywords,
        )
    else:
        assert back == cell


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    first: int
    second: float


@dataclasses.dataclass(frozen=True)
class Holder(jaxrnn.Cell):
    value: Any
    derived: int = dataclasses.field(init=False, default=3)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "text",
        math.inf,
        -math.inf,
        1e-300,
        0.1 + 0.2,
        1 - 2j,
        (),
        (1, (2.5, "x"), None),
        Pair(1, 2.5),
        (Pair(1, math.inf),),
        Colour.RED,
        jnp.dtype("bfloat16"),
        jnp.float32,
        jnp.bfloat16,
        np.float32(0.1),
        np.int64(7),
        initializers.Chrono(9.0),
        jaxrnn.Scan(chunk=4),
    ],
    ids=repr,
)
def test_every_kind_of_value_comes_back(value):
    back = there_and_back(Holder(value), trust_code=True)
    assert back == Holder(value)
    assert hash(back) == hash(Holder(value))
    assert type(back.value) is (
        type(value.item()) if isinstance(value, np.generic) else type(value)
    )


@dataclasses.dataclass(frozen=True)
class Tags(jaxrnn.Cell):
    """Its fields have the names by which the forms of JSON are told apart."""

    function: Any = jnp.tanh
    partial: Any = (1, jnp.sin)
    float: Any = "text"
    dtype: Any = jnp.dtype("float32")
    enum: Any = Colour.RED
    keywords: Any = Pair(1, math.inf)


def test_fields_may_have_any_name():
    assert there_and_back(Tags(), trust_code=True) == Tags()
    assert paths_in(Tags(function=Holder(1)).to_config()) == [
        f"{__name__}:Tags",
        f"{__name__}:Holder",
        "jax.numpy:sin",
        f"{__name__}:Colour",
        f"{__name__}:Pair",
    ]


def test_nan_comes_back():
    assert math.isnan(there_and_back(Holder(math.nan), trust_code=True).value)


def test_names_are_public_ones():
    config = SUBJECTS["stack"].to_config()
    assert config["class"] == "jaxrnn.layers:Stack"
    assert paths_in(config) == [
        "jaxrnn.layers:Stack",
        "jaxrnn:LSTM",
        "jaxrnn.initializers:LecunNormal",
        "jaxrnn.initializers:Orthogonal",
        "jaxrnn.initializers:Zeros",
        "jaxrnn:GRU",
    ]
    assert jaxrnn.Elman(3).to_config()["activation"] == {"function": "jax.numpy:tanh"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda x: x, r"Holder: value is <function <lambda>.*has no import path"),
        (jax.nn.initializers.orthogonal(), "has no import path"),
        (functools.partial(jnp.add, object()), "cannot be written as a configuration"),
        (b"bytes", "cannot be written as a configuration"),
        (frozenset({1}), "cannot be written as a configuration"),
    ],
    ids=["lambda", "closure", "partial", "bytes", "set"],
)
def test_what_has_no_configuration_is_refused(value, words):
    with pytest.raises(TypeError, match=words):
        Holder(value).to_config()


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ([], TypeError, "from_config takes the dict that to_config returns"),
        ({"hidden_size": 3}, TypeError, "from_config takes the dict"),
        (
            {"class": "jaxrnn:LSTM", "hidden_size": 3, "heads": 2},
            ValueError,
            "jaxrnn:LSTM has no field 'heads'",
        ),
        ({"class": "jaxrnn:LSTN", "hidden_size": 3}, ImportError, "did you mean"),
        ({"class": "jaxrnn.cells.none:LSTM"}, ImportError, "there is no module"),
        ({"class": "LSTM"}, ValueError, "code outside jaxrnn: LSTM"),
        (
            {"class": "jaxrnn:LSTM", "hidden_size": {"size": 3}},
            ValueError,
            "none of the forms of to_config",
        ),
        ({"class": "jaxrnn:LSTM", "hidden_size": 0}, ValueError, "hidden_size"),
    ],
)
@pytest.mark.usefixtures("plain_errors")
def test_a_wrong_configuration_is_refused(config, error, words):
    with pytest.raises(error, match=words):
        from_config(config)


def test_what_a_newer_version_added_has_its_default():
    config = jaxrnn.LSTM(3).to_config()
    del config["peephole"]
    assert from_config(config) == jaxrnn.LSTM(3)
