"""What a cell with a matrix state refuses, in words."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
from jaxrnn import Associative, MatrixCell, Terms
from jaxrnn.cells import GatedDeltaNet


@dataclasses.dataclass(frozen=True)
class Given(MatrixCell):
    """A cell whose terms are made by a function of q."""

    make: object = None

    def init(self, key, input_size):
        return {"w": jnp.ones(())}

    def terms(self, params, z):
        return self.make(jnp.broadcast_to(z[..., None, :], (*z.shape[:-1], 2, 2)))


pytestmark = pytest.mark.usefixtures("x64")
ONE = (Ellipsis, slice(0, 1))
BAD_TERMS = [
    (lambda q: (q, q, q), TypeError, "must return jaxrnn.Terms"),
    (lambda q: Terms(q, None, q), TypeError, "k is missing"),
    (lambda q: Terms(q, q, 1.0), TypeError, "v must be an array"),
    (lambda q: Terms(q, q, q[ONE]), ValueError, "the last axis 2"),
    (lambda q: Terms(q[..., :0, :], q, q), ValueError, "q must be"),
    (lambda q: Terms(q, q, q[..., :1, :]), ValueError, "heads = 2"),
    (lambda q: Terms(q, q[0], q), ValueError, "leading axes"),
    (lambda q: Terms(q, q, q, jnp.concatenate([q, q], -1)), ValueError, "1 or 2"),
    (lambda q: Terms(q, q, q, b=q), ValueError, "a is needed"),
    (lambda q: Terms(q, q, q, w=q[ONE], a=q), ValueError, "goes with neither a"),
    (lambda q: Terms(q, q, q, -q * q, w=q[ONE]), ValueError, "not with one a channel"),
]


@pytest.mark.parametrize(("make", "error", "words"), BAD_TERMS)
def test_terms_that_do_not_fit(make, error, words):
    xs = jax.random.normal(jax.random.key(0), (5, 3, 2))
    cell = Given(4, num_heads=2, make=make)
    with pytest.raises(error, match=words):
        jaxrnn.unroll(cell, {"w": jnp.ones(())}, xs)


def test_a_decay_that_grows():
    cell = Given(4, num_heads=2, make=lambda q: Terms(q, q, q, jnp.abs(q)))
    params, x = {"w": jnp.ones(())}, jnp.ones((3, 2))
    with pytest.raises(ValueError, match="at most 0, but the largest is 1"):
        cell(params, cell.initial_carry(params, (3,)), x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_size": 5, "num_heads": 2}, "2 does not divide 5"),
        ({"hidden_size": 4, "num_heads": 4, "num_key_heads": 3}, "3 does not divide 4"),
        ({"hidden_size": 4, "conv": 1}, "conv=None"),
        ({"hidden_size": 4, "key_size": 0}, "key_size"),
        ({"hidden_size": 4, "output_size": 0}, "output_size"),
    ],
)
def test_sizes(options, words):
    with pytest.raises(ValueError, match=words):
        GatedDeltaNet(**options)


def test_chunks_of_no_steps():
    with pytest.raises(ValueError, match="chunk"):
        Associative(chunk=0)


def test_carries_inside_chunks():
    cell, xs = GatedDeltaNet(4), jnp.ones((5, 2, 3))
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="carries"):
        jaxrnn.unroll(cell, params, xs, return_carries=True, engine=Associative())


def test_methods_that_are_missing():
    with pytest.raises(NotImplementedError, match="must define terms"):
        MatrixCell(4).terms({}, jnp.ones(3))
