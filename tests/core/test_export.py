"""``jax.export``: a compiled step is written to bytes and read back, whatever carry
it has.
"""

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import D, draw

import jaxrnn

OF_CARRIES = [
    "lstm",
    "mlstm",
    "slstm",
    "min_lstm",
    "bidirectional",
    "stack",
    "zoneout",
    "user_linear",
    "lru",
]


@pytest.mark.parametrize("name", OF_CARRIES)
def test_an_unroll_with_its_carry(name):
    from subjects import SUBJECTS

    layer, inputs = SUBJECTS[name], draw(name, 0)

    def unrolling(params, xs, carry):
        return jaxrnn.unroll(layer, params, xs, carry)

    exported = jax.export.export(jax.jit(unrolling))(*inputs[:3])
    read = jax.export.deserialize(exported.serialize())
    found, expected = read.call(*inputs[:3]), jax.jit(unrolling)(*inputs[:3])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected
    )


def test_a_gradient_for_three_platforms():
    """Which platform runs it is not known before it is read."""
    cell = jaxrnn.GRU(4)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((8, 2, 3))

    def loss(params, xs):
        return jnp.sin(jaxrnn.unroll(cell, params, xs)[1]).sum()

    gradient = jax.jit(jax.grad(loss))
    exported = jax.export.export(gradient, platforms=["cpu", "cuda", "tpu"])(params, xs)
    found = jax.export.deserialize(exported.serialize()).call(params, xs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        gradient(params, xs),
    )


def test_a_streaming_step_with_its_gradient():
    cell = jaxrnn.LSTM(4)
    inputs = draw(cell, 0)
    exported = jax.export.export(jax.jit(cell))(
        inputs.params, inputs.carry, inputs.xs[0]
    )
    read = jax.export.deserialize(exported.serialize(vjp_order=1))
    carry, _ = read.call(inputs.params, inputs.carry, inputs.xs[0])
    assert isinstance(carry, jaxrnn.LSTMState)

    def last(step):
        return jax.grad(lambda c: step(inputs.params, c, inputs.xs[0])[1].sum())(
            inputs.carry
        )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        last(read.call),
        last(cell),
    )


def test_windows_states_and_what_is_written():
    """All that a train step of truncated backpropagation takes and gives, generated
    tokens and beams.
    """
    cell = jaxrnn.LSTM(4)
    inputs = draw(cell, 0)
    flags = jnp.ones(inputs.xs.shape[:2], bool)
    window = jaxrnn.Window(inputs.xs, jnp.zeros_like(inputs.xs[..., :1]), flags, ~flags)
    state = jaxrnn.TBPTTState(inputs.carry, None, flags[0])
    other = (
        jaxrnn.Generated(flags, flags, inputs.carry),
        jaxrnn.Beams(flags, flags, flags),
        jaxrnn.core.cell.Gate(flags),
        jaxrnn.BidirectionalCarry(inputs.carry, flags),
    )
    exported = jax.export.export(jax.jit(lambda *tree: tree))(window, state, other)
    found = jax.export.deserialize(exported.serialize()).call(window, state, other)
    assert jax.tree.structure(found) == jax.tree.structure((window, state, other))


def test_symbolic_sizes():
    cell = jaxrnn.LSTM(4)
    params = cell.init(jax.random.key(0), D)
    t, b = jax.export.symbolic_shape("t, b")
    shapes = jax.ShapeDtypeStruct((t, b, D), jnp.float32)
    carry = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((b, *a.shape), a.dtype),
        cell.initial_carry(params),
    )

    def unrolling(params, xs, carry):
        return jaxrnn.unroll(cell, params, xs, carry)

    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    try:
        written = jax.export.export(jax.jit(unrolling))(
            params, shapes, carry
        ).serialize()
    finally:
        config.update("jaxtyping_disable", False)
    inputs = draw(cell, 0)
    found = jax.export.deserialize(written).call(inputs.params, *inputs[1:3])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        found,
        unrolling(*inputs[:3]),
    )


def test_every_public_namedtuple_of_arrays_is_known():
    """Those that may stand in a compiled function's signature; a missing one fails
    here when it is written.
    """
    from jax.export import export

    known = {
        "Gate",
        "LSTMState",
        "MLSTMState",
        "SLSTMState",
        "BidirectionalCarry",
        "TBPTTState",
        "Window",
        "Generated",
        "Beams",
        "RolledOut",
    }
    known |= {"TrainState", "Shown"}
    kinds = {}
    for module in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn."):
        if module.name.split(".")[1] in (
            "core",
            "cells",
            "layers",
            "modules",
            "nnx",
            "linen",
            "truncation",
            "decoding",
            "training",
        ):
            for kind in vars(import_module(module.name)).values():
                if (
                    inspect.isclass(kind)
                    and issubclass(kind, tuple)
                    and hasattr(kind, "_fields")
                ):
                    kinds[kind.__name__] = kind
    assert known <= kinds.keys()
    for name in known:
        tree = kinds[name](*[jnp.zeros(1)] * len(kinds[name]._fields))
        written = export(jax.jit(lambda tree: tree))(tree).serialize()
        assert type(jax.export.deserialize(written).call(tree)) is kinds[name]


def test_importing_loads_no_more_than_it_did():
    code = (
        "import sys, jaxrnn; print(sorted({name.split('.')[0] for name in sys.modules} "
        "& {'flatbuffers', 'flax', 'orbax'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "flax" not in done.stdout
    assert "orbax" not in done.stdout
