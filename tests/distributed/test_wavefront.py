"""`wavefront`: the layers of a stack on devices of their own, with its numbers.

The checks (``check_...``) need several devices; tests/engines/test_across.py runs them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from subjects import D, assert_same, draw

import jaxrnn
from jaxrnn.distributed import stacked_params, wavefront

CELLS = {
    "lstm": jaxrnn.LSTM(D, learned_initial_carry=True),
    "residual": jaxrnn.residual(jaxrnn.GRU(D)),
    "mlstm": jaxrnn.MLSTM(D),
    "convolved": jaxrnn.stack(jaxrnn.layers.causal_conv(3), jaxrnn.Elman(D)),
}
STEP_BY_STEP = ("lstm", "residual")
ROWS = [
    ("lstm", 4, "mr"),
    *[
        pytest.param(name, block, flags, marks=pytest.mark.slow)
        for name in CELLS
        for block, flags in ((2, ""), (4, ""), (16, ""), (1, "mr"), (8, "mr"))
    ],
]


def mesh_of(devices, kind=AxisType.Auto, names=("layer",)):
    shape = (devices,) if len(names) == 1 else (devices // 2, 2)
    found = np.asarray(jax.devices()[:devices]).reshape(shape)
    return Mesh(found, names, axis_types=(kind,) * len(names))


def everything(run):
    """Compiled: ``(carry, ys)``, and gradients of params, inputs and first carry."""

    def loss(params, xs, carry):
        results = run(params, xs, carry)
        parts = jax.tree.leaves(results)
        return sum((jnp.square(a) + 0.3 * a).sum() for a in parts), results

    def both(*given):
        gradients, results = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*given)
        return results, gradients

    return jax.jit(both)


@pytest.mark.parametrize(("name", "block", "flags"), ROWS)
def check_it_is_the_stack(name, block, flags, x64):
    layers = jaxrnn.stack(*[CELLS[name]] * 4)
    inputs = draw(layers, 1, steps=16, batch=(2,))
    how = {"mask": inputs.mask, "resets": inputs.resets} if flags else {}

    def run(params, xs, carry):
        place = {"axis": "layer", "block": block, "mesh": mesh_of(4)}
        return wavefront(layers, params, xs, carry, **place, **how)

    def stack(params, xs, carry):
        return jaxrnn.unroll(layers, params, xs, carry, **how)

    wanted = everything(stack)(*inputs[:3])
    found = everything(run)(*inputs[:3])
    if block > 1 and name in STEP_BY_STEP:
        same = jax.tree.map(lambda a, b: bool((a == b).all()), found[0], wanted[0])
        assert all(jax.tree.leaves(same))
    assert_same(found, wanted)


@pytest.mark.parametrize(
    "block", [4, *[pytest.param(b, marks=pytest.mark.slow) for b in (2, 8)]]
)
def check_what_is_sent(block, x64):
    """A block of outputs at every tick, up and, for the gradient, down."""
    layers, steps, batch = jaxrnn.stack(*[jaxrnn.Elman(D)] * 4), 16, 2
    inputs = draw(layers, 1, steps=steps, batch=(batch,))

    def loss(params, xs):
        place = {"axis": "layer", "block": block, "mesh": mesh_of(4)}
        return jnp.square(wavefront(layers, params, xs, **place)[1]).sum()

    compiled = jax.jit(jax.grad(loss)).lower(*inputs[:2]).compile()
    found = collectives(compiled)
    looped = [(each.name, each.bytes) for each in found if each.looped]
    assert looped == [("collective-permute", block * batch * D * 8)] * 2
    assert f'"known_trip_count":{{"n":"{steps // block + 3}"}}' in compiled.as_text()
    assert "collective-permute" not in {e.name for e in found if not e.looped}


@pytest.mark.slow
def check_params_on_their_devices_and_a_batch_on_others():
    layers = jaxrnn.stack(*[jaxrnn.GRU(D)] * 4)
    inputs = draw(layers, 1, steps=8, batch=(4,))
    mesh = mesh_of(8, names=("layer", "data"))
    stacked = jax.device_put(
        stacked_params(layers, inputs.params), NamedSharding(mesh, P("layer"))
    )
    xs = jax.device_put(inputs.xs, NamedSharding(mesh, P(None, "data")))

    def loss(params, xs):
        place = {"axis": "layer", "block": 2, "mesh": mesh}
        return jnp.square(wavefront(layers, params, xs, **place)[1]).sum()

    program = jax.jit(jax.grad(loss, argnums=(0, 1)))
    found = program(stacked, xs)
    assert {leaf.sharding.spec[0] for leaf in jax.tree.leaves(found[0])} == {"layer"}
    assert found[1].sharding.spec == P(None, "data")
    names = {each.name for each in collectives(program.lower(stacked, xs).compile())}
    assert names <= {"collective-permute", "all-reduce"}, names

    def alone(params, xs):
        return jnp.square(jaxrnn.unroll(layers, params, xs)[1]).sum()

    wanted = jax.grad(alone, argnums=(0, 1))(*inputs[:2])
    wanted = stacked_params(layers, wanted[0]), wanted[1]
    assert_same(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, wanted), 1e-4)


@pytest.mark.slow
def check_a_mesh_of_explicit_axes(x64):
    layers = jaxrnn.stack(*[jaxrnn.GRU(D)] * 4)
    inputs = draw(layers, 1, steps=8, batch=(4,))

    def outputs(params, xs):
        return wavefront(layers, params, xs, axis="layer", block=2)[1]

    wanted = jax.jit(lambda p, x: jaxrnn.unroll(layers, p, x)[1])(*inputs[:2])
    with jax.set_mesh(mesh_of(8, AxisType.Explicit, ("layer", "data"))):
        params = jax.device_put(inputs.params, P())
        xs = jax.device_put(inputs.xs, P(None, "data"))
        found = jax.jit(outputs)(params, xs)
        assert jax.typeof(found).sharding.spec[:2] == (None, "data")
    assert_same(np.asarray(found), np.asarray(wanted))


def check_gradients_that_are_mapped_over_are_traced():
    layers = jaxrnn.stack(*[jaxrnn.GRU(D)] * 2)
    inputs = draw(layers, 1, steps=4, batch=(2,))

    def loss(xs):
        place = {"axis": "layer", "block": 2, "mesh": mesh_of(2)}
        last, ys = wavefront(layers, inputs.params, xs, **place)
        return ys.sum() + sum(jnp.square(h).sum() for h in last)

    xs = jnp.stack([inputs.xs, inputs.xs])
    assert jax.eval_shape(jax.vmap(jax.grad(loss)), xs).shape == xs.shape


def test_no_steps():
    params, xs = ONE.init(jax.random.key(0), D), jnp.ones((0, 2, D))
    found = wavefront(ONE, params, xs, axis="layer", block=2, mesh=mesh_of(1))
    assert_same(found, jaxrnn.unroll(ONE, params, xs))


# -- refusals, on one device -----------------------------------------------------------


def bad(layers, words, error=ValueError, **changes):
    return pytest.param(layers, changes, error, words)


ONE = jaxrnn.stack(jaxrnn.GRU(D))
REFUSED = [
    bad(jaxrnn.GRU(D), r"must be a jaxrnn\.stack", TypeError),
    bad(
        jaxrnn.stack(jaxrnn.GRU(D), jaxrnn.LSTM(D)),
        "all layers must be equal",
        TypeError,
    ),
    bad(jaxrnn.stack(jaxrnn.zoneout(jaxrnn.GRU(D), 0.1)), "draws random numbers"),
    bad(jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.GRU(D), merge="sum")), "looks ahead"),
    bad(jaxrnn.stack(*[jaxrnn.GRU(D)] * 2), "2 layers and 1 devices"),
    bad(jaxrnn.stack(jaxrnn.GRU(D + 1)), "outputs must be like inputs"),
    bad(ONE, "divides T = 6, but it is 4", block=4),
    bad(ONE, "divides T = 6, but it is 0", block=0),
    bad(ONE, "no mesh axis 'time', only", axis="time"),
    bad(ONE, r"no mesh axis 'layer', only \(\)", mesh=None),
    bad(ONE, "params must be those of the stack", params={"bias": jnp.ones(())}),
]


@pytest.mark.parametrize(("layers", "changes", "error", "words"), REFUSED)
def test_what_is_refused(layers, changes, error, words, plain_errors):
    params = layers.init(jax.random.key(0), D)
    how = {"params": params, "axis": "layer", "block": 2, "mesh": mesh_of(1)} | changes
    with pytest.raises(error, match=words):
        wavefront(layers, xs=jnp.ones((6, 2, D)), **how)
