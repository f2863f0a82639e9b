"""Cells of a user's own, and ways to use them, that a kernel must take or refuse in
words: `Fused` in the TPU's interpreter, and lowered for both chips.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import assert_same, assert_same_outcome, draw, drawn_params
from test_engines import unrolled
from test_fused import TPU, lowered

import jaxrnn
from jaxrnn import GRU, LRU, LSTM, SLSTM, Elman, Fused, IndRNN, MinGRU, Scan
from jaxrnn.engines.loops.pallas.block_form import ELEMENTWISE

NEW = jax.__version_info__ >= (0, 11)
CHIPS = [
    "tpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not NEW, reason="Mosaic GPU's kernels need jax 0.11"),
    ),
]
PLAIN = Scan(save="everything")


@dataclasses.dataclass(frozen=True)
class Own(jaxrnn.Cell):
    """``step(z + h U, state, z) -> state`` around a matrix, with a first state of
    any form.
    """

    hidden_size: int
    function: Callable
    first: Callable = lambda zeros: zeros

    def init(self, key, input_size):
        return {
            name: 0.3 * jax.random.normal(key, (size, self.hidden_size))
            for name, size in (("W", input_size), ("U", self.hidden_size))
        }

    def project(self, params, x):
        return x @ params["W"]

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return self.first(
            jnp.zeros((*batch_shape, self.hidden_size), params["U"].dtype)
        )

    def step(self, params, carry, z):
        h = carry.h if hasattr(carry, "h") else carry
        return self.function(
            z + (h if not jnp.iscomplexobj(h) else h.real) @ params["U"], carry, z
        )

    def output(self, params, carry, x):
        return (carry.h if hasattr(carry, "h") else carry).real


class Counted(NamedTuple):
    h: Any
    more: Any


def _counts(a, carry, z):
    return Counted(jnp.tanh(a) / (1 + carry.more.astype(a.dtype)), carry.more + 1)


def _remembers(a, carry, z):
    return Counted(jnp.where(carry.more, jnp.tanh(a), jnp.sin(a)), z > 0)


def _turns(a, carry, z):
    return (
        jax.nn.sigmoid(a).astype(carry.dtype) * carry + z.astype(carry.dtype)
    ) * jnp.exp(jnp.asarray(1j, carry.dtype) * z.astype(carry.dtype))


STEPS = {
    "counts in integers": Own(
        3, _counts, lambda zeros: Counted(zeros, zeros.astype(jnp.int32))
    ),
    "remembers a flag": Own(3, _remembers, lambda zeros: Counted(zeros, zeros > 0)),
    "ignores its input": Own(3, lambda a, h, z: jnp.tanh(a - z + 1)),
}


@pytest.mark.parametrize("name", STEPS)
def test_carries_and_inputs_of_any_kind(name, x64):
    cell = STEPS[name]
    params, xs = (
        drawn_params(cell, 3),
        jax.random.normal(jax.random.key(1), (7, 2, 3)),
    )

    def loss(engine):
        return compiled(
            jax.value_and_grad(
                lambda p, x: jnp.sum(jaxrnn.unroll(cell, p, x, engine=engine)[1] ** 2),
                (0, 1),
            )
        )(params, xs)

    assert_same(loss(TPU), loss(PLAIN))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", STEPS)
def test_they_lower(name, chip):
    lowered(chip, STEPS[name], Fused(), flags=False)


def test_a_carry_without_heads(x64):
    """An sLSTM divides by its normaliser, which is zero in padding."""
    inputs = draw(SLSTM(4), 0, 6)
    assert_same_outcome(
        unrolled(SLSTM(4), TPU)(*inputs),
        unrolled(SLSTM(4), PLAIN)(*inputs),
        1e-11,
        1e-11,
    )


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    "cell",
    [LRU(64), IndRNN(64, activation=lambda x: x), Elman(64)],
    ids=lambda cell: type(cell).__name__,
)
def test_a_loss_of_the_last_carry_alone(cell, chip):
    """A classifier's: the loop backwards may read nothing step by step."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((33, 4, 3), jnp.float32)
    gradient = jax.jit(
        jax.grad(
            lambda p, x: jnp.sum(jnp.abs(jaxrnn.unroll(cell, p, x, engine=Fused())[0]))
        )
    )
    gradient.trace(params, xs).lower(lowering_platforms=(chip,))


@pytest.mark.parametrize(
    "cell", [GRU(3), LRU(3), MinGRU(3)], ids=lambda cell: type(cell).__name__
)
def test_ensembles(cell, x64):
    """Every member has parameters of its own: values, the gradient of all, and the
    gradient of each.
    """
    params = jax.vmap(lambda key: cell.init(key, 3))(
        jax.random.split(jax.random.key(0), 2)
    )
    xs = jax.random.normal(jax.random.key(1), (5, 2, 3))

    def results(engine):
        def one(p):
            return jnp.sum(jnp.sin(jaxrnn.unroll(cell, p, xs, engine=engine)[1]))

        return compiled(
            lambda p: (
                jax.vmap(one)(p),
                jax.grad(lambda p: jax.vmap(one)(p).sum())(p),
                jax.vmap(jax.grad(one))(p),
            )
        )(params)

    assert_same(results(TPU), results(PLAIN), 1e-11)


def test_an_ensemble_has_kernels_both_ways():
    cell = GRU(32)
    params = jax.eval_shape(
        lambda: jax.vmap(lambda key: cell.init(key, 3))(
            jax.random.split(jax.random.key(0), 2)
        )
    )
    xs = jax.ShapeDtypeStruct((5, 2, 3), jnp.float32)

    def loss(params, xs):
        return jax.vmap(lambda p: jaxrnn.unroll(cell, p, xs, engine=Fused())[1].sum())(
            params
        ).sum()

    text = (
        jax.jit(jax.value_and_grad(loss))
        .trace(params, xs)
        .lower(lowering_platforms=("tpu",))
        .as_text()
    )
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 2


def test_an_empty_batch(x64):
    inputs = draw(LSTM(4), 0, 5, (0,))
    assert_same_outcome(
        unrolled(LSTM(4), TPU)(*inputs), unrolled(LSTM(4), PLAIN)(*inputs)
    )
    lowered("tpu", LSTM(4), Fused(), batch=0)


def test_only_the_carry_is_mapped(x64):
    """Numbers that are the same for all examples are spread where they leave the
    loop.
    """
    cell = Own(
        3,
        lambda a, carry, z: Counted(jnp.tanh(a), z),
        lambda zeros: Counted(zeros, zeros),
    )
    params, xs = (
        drawn_params(cell, 1),
        jax.random.normal(jax.random.key(1), (5, 2, 1)),
    )
    first = jax.random.normal(jax.random.key(2), (4, 2, 3))

    def last(engine):
        unrolled = jax.vmap(
            lambda h: jaxrnn.unroll(
                cell, params, xs, Counted(h, jnp.zeros_like(h)), engine=engine
            )[0]
        )
        return compiled(unrolled)(first)

    assert_same(last(TPU), last(PLAIN))


@pytest.mark.parametrize("scaled", [False, True])
def test_complex_numbers(scaled, x64):
    """A real gate of a complex state; scaled gradients."""
    cell = LRU(3) if scaled else Own(3, _turns, lambda zeros: zeros.astype(complex))
    params, xs = (
        drawn_params(cell, 3),
        jax.random.normal(jax.random.key(1), (5, 2, 3)),
    )
    scale = jnp.asarray(np.random.default_rng(0).random((5, 2)))

    def gradient(engine):
        def loss(p, x):
            how = {"gradient_scale": scale} if scaled else {"window": 3}
            return jnp.sum(
                jaxrnn.truncated_unroll(cell, p, x, engine=engine, **how)[1] ** 2
            )

        return compiled(jax.grad(loss, (0, 1)))(params, xs)

    assert_same(gradient(TPU), gradient(Scan()), 1e-11)


@pytest.mark.parametrize("chip", CHIPS)
def test_every_elementwise_primitive_lowers(chip):
    """All that the analysis lets through has code on both chips."""
    x, flag = jnp.ones((2, 8)), jnp.ones((2, 8), bool)
    one = [
        "neg",
        "abs",
        "sign",
        "exp",
        "exp2",
        "log",
        "log1p",
        "expm1",
        "tanh",
        "logistic",
        "sqrt",
        "rsqrt",
        "sin",
        "cos",
    ]
    two = ["add", "sub", "mul", "div", "max", "min"]
    calls = {
        **{name: getattr(jax.lax, name) for name in one},
        **{name: (lambda a, f=getattr(jax.lax, name): f(a, 0.5 * a)) for name in two},
        **{
            name: (lambda a, f=getattr(jax.lax, name): jnp.where(f(a, 0.5 * a), a, 1.0))
            for name in ["eq", "ne", "lt", "le", "gt", "ge"]
        },
        "integer_pow": lambda a: jax.lax.integer_pow(a, 3),
        "square": jax.lax.square,
        "is_finite": lambda a: jnp.where(jnp.isfinite(a), a, 0.0),
        "select_n": lambda a: jnp.where(a > 0, a, 1.0),
        "stop_gradient": jax.lax.stop_gradient,
        "convert_element_type": lambda a: a.astype(jnp.bfloat16).astype(a.dtype),
        **{
            name: (
                lambda a, name=name: jnp.where(
                    getattr(jnp, f"logical_{name}")(a > 0, a < 1), a, 0.0
                )
            )
            for name in ("and", "or", "xor")
        },
        "not": lambda a: jnp.where(jnp.logical_not(a > 0), a, 0.0),
    }
    assert set(calls) | {"add_any", "one_minus_square"} == ELEMENTWISE
    assert flag.shape == x.shape

    def lower(*functions):
        """One kernel with all of them."""

        def step(a, h, z):
            return jnp.tanh(a) + sum(f(0.5 + 0.1 * jnp.tanh(h)) for f in functions)

        cell = Own(8, step)
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
        forward = jax.jit(lambda p, x: jaxrnn.unroll(cell, p, x, engine=Fused())[0])
        xs = jax.ShapeDtypeStruct((3, 2, 3), jnp.float32)
        forward.trace(params, xs).lower(lowering_platforms=(chip,))

    refused = {}
    try:
        lower(*calls.values())
    except Exception:  # which of them?
        for name, function in calls.items():
            try:
                lower(function)
            except Exception as error:
                refused[name] = str(error)[:200]
        assert refused, "each lowers alone, but not all together"
    assert not refused


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    "precision", ["F32_F32_F32", "TF32_TF32_F32", "high", "bfloat16"]
)
def test_precisions_by_any_name(precision, chip):
    with jax.default_matmul_precision(precision):
        lowered(chip, LSTM(32), Fused(), flags=False)


def test_a_run_backwards_that_does_not_fit_is_refused_by_name():
    cell = Elman(8, activation=lambda x: jnp.sort(x, axis=-1))
    with pytest.raises(ValueError, match="Elman has no kernel: its step has a sort"):
        jax.eval_shape(
            lambda p, x: jaxrnn.unroll(cell, p, x, engine=Fused()),
            drawn_params(cell, 3),
            jnp.ones((4, 2, 3)),
        )
    forward = dataclasses.replace(cell, activation=_gradient_sorts)
    params = drawn_params(forward, 3)
    jax.eval_shape(
        lambda p: jaxrnn.unroll(forward, p, jnp.ones((4, 2, 3)), engine=Fused()), params
    )
    with pytest.raises(ValueError, match="Elman has no kernel: its step has a sort"):
        jax.eval_shape(
            jax.grad(
                lambda p: jaxrnn.unroll(
                    forward, p, jnp.ones((4, 2, 3)), engine=Fused()
                )[1].sum()
            ),
            params,
        )


@jax.custom_jvp
def _gradient_sorts(x):
    return jnp.tanh(x)


@_gradient_sorts.defjvp
def _sorted_tangent(primals, tangents):
    return jnp.tanh(primals[0]), tangents[0] * jnp.sort(primals[0], axis=-1)
