"""Cells and layers print as one would write them, and what is printed makes them."""

import dataclasses
import enum
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import subjects
from subjects import SUBJECTS

import jaxrnn
from jaxrnn import GRU, LSTM, Elman, cells, initializers, layers
from jaxrnn.core.written import written

NAMES: dict[str, typing.Any] = {}
for module in (cells, layers, initializers, jaxrnn, subjects):
    NAMES |= vars(module)
NAMES |= {"jax": jax, "jaxrnn": jaxrnn, "numpy": np, "functools": functools}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_is_printed_makes_the_same(subject):
    cell = SUBJECTS[subject]
    assert eval(repr(cell), NAMES) == cell


def test_defaults_are_left_out():
    assert repr(LSTM(4)) == "LSTM(hidden_size=4)"
    assert repr(LSTM(4, peephole=True)) == "LSTM(hidden_size=4, peephole=True)"
    assert repr(jaxrnn.stack(GRU(2))) == "Stack(layers=(GRU(hidden_size=2),))"
    # Equal numbers of another type are no default.
    assert "forget_bias=1" in repr(LSTM(4, forget_bias=1))
    assert len(repr(jaxrnn.stack(LSTM(8), LSTM(8), LSTM(8)))) < 100


class Colour(enum.Enum):
    RED = 1


class Pair(typing.NamedTuple):
    one: object
    two: object


@dataclasses.dataclass(frozen=True)
class Holder(jaxrnn.Cell):
    value: object
    more: tuple = ()
    inner: object = dataclasses.field(default_factory=lambda: Pair(1, 2))
    derived: int = dataclasses.field(default=3, init=False)


@pytest.mark.parametrize(
    "value",
    [
        jnp.tanh,
        jax.nn.relu,
        np.tanh,
        jnp.float32,
        np.dtype("int16"),
        np.float32(0.1),
        functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
        Colour.RED,
        Pair("a", (None,)),
        (),
        (True, 1.5, 2 + 1j, float("inf"), -float("inf")),
        initializers.Chrono(9),
        Elman(3, activation=jax.nn.relu),
        int,
    ],
    ids=lambda value: type(value).__name__,  # the same in every process
)
def test_every_kind_of_field(value):
    names = NAMES | {"Holder": Holder, "Pair": Pair, "Colour": Colour}
    held = Holder(value, more=(value,), inner=Pair(value, 0))
    again = eval(repr(held), names)
    # A partial equals no other one.
    assert repr(again) == repr(held)
    if not isinstance(value, functools.partial):
        assert again == held
    assert repr(Holder(value)) == f"Holder(value={written(value)})"


def test_what_has_no_name_is_printed_all_the_same():
    assert "<lambda>" in repr(Elman(3, activation=lambda x: x))
    assert "array" in repr(Holder(np.ones(3)))
    assert "array" in repr(dataclasses.replace(Holder(1), inner=np.ones(3)))


def test_names_of_classes_in_functions_are_short():
    @dataclasses.dataclass(frozen=True)
    class Inside(jaxrnn.Cell):
        hidden_size: int = 3

    assert repr(Inside(4)) == "Inside(hidden_size=4)"
    assert repr(Inside()) == "Inside()"


class Own(jaxrnn.Cell):
    def __repr__(self):
        return "own"


def test_a_repr_of_a_users_own_stays():
    @dataclasses.dataclass(frozen=True)
    class Below(Own):
        hidden_size: int = 3

    @dataclasses.dataclass(frozen=True)
    class Direct(jaxrnn.Cell):
        hidden_size: int = 3

        def __repr__(self):
            return "direct"

    assert (repr(Below()), repr(Direct())) == ("own", "direct")


def test_a_dataclass_beside_the_cell_does_not_hide_its_fields():
    frozen = dataclasses.dataclass(frozen=True)

    @frozen
    class Beside(frozen(type("Plain", (), {"__annotations__": {"a": int}})), Elman):
        a: int = 2

    assert repr(Beside(4, a=5)) == "Beside(hidden_size=4, a=5)"


def test_a_class_with_slots_prints():
    @dataclasses.dataclass(frozen=True, slots=True)
    class Slotted(jaxrnn.Cell):
        hidden_size: int

    assert repr(Slotted(4)) == "Slotted(hidden_size=4)"
