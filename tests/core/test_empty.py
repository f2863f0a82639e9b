"""Nothing is run as something is: empty batches and sequences give empty outputs,
the carry, and gradients of zero.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from subjects import PLAIN, D, drawn_params, spatial_axes

import jaxrnn
from jaxrnn.nnx import RNN

ENGINES = {
    "default": None,
    "window": jaxrnn.Scan(chunk=2),
    "all": jaxrnn.Scan(save="everything"),
    "carries": jaxrnn.Scan(save="carries"),
    "checkpoint": jaxrnn.Checkpoint(2),
    "associative": jaxrnn.Associative(),
    "chunks": jaxrnn.Associative(3),
    "ones": jaxrnn.Associative(1),
}
SIZES = [(4, (0,)), (0, (2,)), (0, (0,)), (1, (0,)), (4, (2, 0))]
ROWS = [
    ("mlstm", engine, *size)
    for engine in ENGINES
    for size in (SIZES if engine in ("default", "chunks") else SIZES[:1])
]
ROWS += [(name, "default", *SIZES[0]) for name in PLAIN if name != "mlstm"]
ROWS += [("slstm", engine, *SIZES[0]) for engine in ("window", "all", "checkpoint")]
ROWS += [("lru", "chunks", *size) for size in SIZES[:3]]


@pytest.mark.parametrize(("name", "engine", "steps", "batch"), ROWS)
def test_nothing_to_run(name, engine, steps, batch):
    layer = PLAIN[name]
    params = drawn_params(layer, D)
    xs = jnp.ones((steps, *batch, *spatial_axes(layer), D))
    flags = jnp.ones((steps, *batch), bool)
    first = layer.initial_carry(params, batch)

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(params, xs):
        carry, ys = jaxrnn.unroll(
            layer, params, xs, first, engine=ENGINES[engine], mask=flags, resets=flags
        )
        return jnp.abs(ys).sum(), (carry, ys)

    (value, (carry, ys)), gradients = jax.jit(loss)(params, xs)
    assert ys.shape[: len(flags.shape)] == flags.shape
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))
    jax.tree.map(np.testing.assert_array_equal, carry, first)


@pytest.mark.parametrize("name", ["mlstm", "slstm", "lstm"])
def test_streaming(name):
    cell = PLAIN[name]
    params = drawn_params(cell, D)
    carry, y = cell(params, cell.initial_carry(params, (0,)), jnp.ones((0, D)))
    assert y.shape == (0, 4)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(carry)} == {0}


@pytest.mark.parametrize("shape", [(0, 4, D), (2, 0, D), (0, 0, D)])
def test_the_layer_for_flax(shape):
    rnn = RNN(nnx.LSTMCell(D, 5, rngs=nnx.Rngs(0)))
    loss, gradients = nnx.value_and_grad(lambda rnn, xs: jnp.square(rnn(xs)).sum())(
        rnn, jnp.ones(shape)
    )
    assert loss == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))
    assert rnn(jnp.ones(shape)).shape == (*shape[:2], 5)
