"""Diagnostics of a cell that takes a context: each is that of a cell which is given the
context among its inputs, at every step, and has no context.
"""

import dataclasses
import inspect
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import drawn_params

import jaxrnn
from jaxrnn import diagnostics
from jaxrnn.core.cell import Gate
from jaxrnn.extending import ContextCell, tap

T, B, D, H = 6, 3, 2, 3


def over_time(leaf, like):
    """A leaf of the context with the axes before it that ``like`` has."""
    return leaf.reshape((1,) * (like.ndim - leaf.ndim) + leaf.shape)


@dataclasses.dataclass(frozen=True)
class InContext(jaxrnn.Cell):
    """A cell that is shifted, switched and shown by its context."""

    hidden_size: int
    takes_context: ClassVar[bool] = True

    def init(self, key, input_size):
        keys, H = jax.random.split(key), self.hidden_size
        return {
            "kernel": jax.random.normal(keys[0], (input_size, H)),
            "recurrent_kernel": jax.random.normal(keys[1], (H, H)),
        }

    def project(self, params, x, context):
        return x @ params["kernel"] + over_time(context["shift"], x)

    def step(self, params, carry, z, context):
        new = jnp.tanh(z + carry @ params["recurrent_kernel"])
        return jnp.where(context["on"][..., None], tap(new, "new"), 0.5 * carry)

    def output(self, params, carry, x, context):
        return carry * jnp.exp(over_time(context["shift"], carry))

    def gate_values(self, params, carry, z, context):
        return {"new": Gate(jnp.tanh(z + carry @ params["recurrent_kernel"]), -1.0)}


@dataclasses.dataclass(frozen=True)
class AmongInputs(jaxrnn.Cell):
    """`InContext`, which reads (x, context) at every step."""

    hidden_size: int
    feature_ndim: ClassVar[Any] = (1, {"on": 0, "shift": 1})
    init = InContext.init

    def project(self, params, x):
        x, context = x
        return InContext.project(self, params, x, context), context

    def step(self, params, carry, z):
        return InContext.step(self, params, carry, *z)

    def output(self, params, carry, x):
        return InContext.output(self, params, carry, *x)

    def gate_values(self, params, carry, z):
        return InContext.gate_values(self, params, carry, *z)


def loss_of_one(y):
    return jnp.sum(jnp.sin(y))


# What takes a cell: with what else.
CALLS = {
    "gate_statistics": {},
    "gate_values": {},
    "gradient_lags": {"loss": loss_of_one},
    "gradient_map": {"loss": lambda y, _: loss_of_one(y)},
    "jacobians": {},
    "lyapunov_spectrum": {"key": jax.random.key(0)},
    "parameter_lags": {"loss": loss_of_one, "terms": True},
    "tapped": {},
}
# What takes results of these, a loss that hands the context of its `Window` on, or, as
# `newton_report`, whole layers with a context.
OF_RESULTS = {
    "adaptive_truncation",
    "fit_decay",
    "jacobian_products",
    "log_singular_values",
    "memory_horizon",
    "newton_report",
    "online_error",
    "truncation_bias",
}

# What looks at states under one input, which has a test below, and what gives it states
# of sequences.
OF_STATES = {
    "fixed_points",
    "linear_error",
    "linearize",
    "plane_flow",
    "project_states",
    "sample_states",
}


def test_the_table_is_whole():
    functions = {
        name
        for name, value in vars(diagnostics).items()
        if inspect.isfunction(inspect.unwrap(value)) and not name.startswith("_")
    }
    assert functions == set(CALLS) | OF_RESULTS | OF_STATES
    for name in CALLS:
        assert "context" in inspect.signature(getattr(diagnostics, name)).parameters


def inputs():
    """Parameters, inputs, and a context of which no row is like another."""
    random = np.random.default_rng(5)
    params = drawn_params(InContext(H), D)
    context = {
        "on": jnp.array([True, False, True]),
        "shift": jnp.asarray(random.normal(size=(B, H))),
    }
    return params, jnp.asarray(random.normal(size=(T, B, D))), context


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", CALLS)
def test_it_is_that_of_the_context_among_the_inputs(name, masked, x64):
    measure, (params, xs, context) = getattr(diagnostics, name), inputs()
    among = jax.tree.map(lambda a: jnp.broadcast_to(a, (T, *a.shape)), context)
    how = dict(CALLS[name])
    if masked:
        how["mask"] = jaxrnn.mask_from_lengths(jnp.array([T, 3, 0]), T)
    expected = measure(AmongInputs(H), params, (xs, among), **how)
    if masked:  # a row without any step may have any context
        context = context | {"shift": context["shift"].at[2].set(jnp.nan)}
    found = measure(InContext(H), params, xs, context=context, **how)
    if name == "lyapunov_spectrum":
        expected, found = expected.exponents, found.exponents
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    largest = 0.0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        largest = max(largest, float(np.nan_to_num(np.abs(b)).max()))
    assert largest > 0.1


def test_terms_are_the_gradient_of_the_parameters_alone(x64):
    params, xs, context = inputs()
    lags = diagnostics.parameter_lags(
        InContext(H), params, xs, loss_of_one, context=context, terms=True
    )

    def loss(params):
        ys = jaxrnn.unroll(InContext(H), params, xs, context=context)[1]
        return loss_of_one(ys[-1])

    gradient = jax.jit(jax.grad(loss))(params)
    for name in params:
        np.testing.assert_allclose(
            lags.terms[name].sum(0), gradient[name], rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_fit_is_said(name, plain_errors):
    measure, (params, xs, context) = getattr(diagnostics, name), inputs()
    with pytest.raises(ValueError, match=r"InContext takes a context .* pass context="):
        measure(InContext(H), params, xs, **CALLS[name])
    gru = jaxrnn.GRU(H)
    with pytest.raises(ValueError, match="a context was given, but GRU takes none"):
        measure(gru, drawn_params(gru, D), xs, context=context, **CALLS[name])
    with pytest.raises(ValueError, match=r"begin with the batch axes of xs, \(3,\)"):
        measure(InContext(H), params, xs, context=jnp.ones((2, H)), **CALLS[name])
    if name in ("gate_values", "tapped"):  # they see into every layer
        return
    layer = jaxrnn.stack(InContext(H))
    with pytest.raises(ValueError, match=rf"{name}: Stack is a layer that takes"):
        measure(layer, {"layer_0": params}, xs, context=context, **CALLS[name])


def test_a_cell_that_holds_its_context_is_measured_as_before(x64):
    params, xs, context = inputs()
    context = {"on": context["on"].astype(float), "shift": context["shift"]}
    held = diagnostics.jacobians(ContextCell(InContext(H)), (params, context), xs)
    given = diagnostics.jacobians(InContext(H), params, xs, context=context)
    np.testing.assert_array_equal(held, given)


def test_the_bias_of_truncation_hands_the_context_on(x64):
    params, xs, context = inputs()

    def losses(params, carry, window):
        _, ys, carries = jaxrnn.unroll(
            InContext(H),
            params,
            window.inputs,
            carry,
            context=window.context,
            mask=window.mask,
            resets=window.resets,
            return_carries=True,
        )
        return jnp.sin(ys).sum(-1), carries

    tbptt = jaxrnn.TBPTT(losses, InContext(H).initial_carry, k1=1)
    window = jaxrnn.Window(xs, xs, context=context)
    bias = diagnostics.truncation_bias(tbptt, params, window, [1, T], batch_shape=(B,))
    assert bias.relative_error[0] > 1e-3
    assert bias.relative_error[1] < 1e-12


def test_states_stand_still_under_a_context_as_among_the_inputs(x64):
    params, xs, context = inputs()
    x, one = xs[0, 0], jax.tree.map(lambda a: a[0], context)
    starts = jax.random.normal(jax.random.key(0), (6, H))
    found, among = (
        diagnostics.fixed_points(cell, params, x, starts, context=given)
        for cell, x, given in (
            (InContext(H), x, one),
            (AmongInputs(H), (x, one), None),
        )
    )
    assert found.converged.any()
    np.testing.assert_allclose(found.states, among.states, atol=1e-10)
    linear = diagnostics.linearize(InContext(H), params, x, found, context=one)
    twin = diagnostics.linearize(AmongInputs(H), params, (x, one), found)
    np.testing.assert_allclose(linear.jacobian, twin.jacobian, atol=1e-12)
