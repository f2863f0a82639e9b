"""Weights from Haiku and back, against the Haiku that is installed: values and
gradients, ragged batches.
"""

import jax
import jax.numpy as jnp
import peers
import pytest

import jaxrnn
from jaxrnn import interop

hk = pytest.importorskip("haiku")

H = 4
CELLS = {
    "VanillaRNN": jaxrnn.Elman(H, activation=jax.nn.relu),
    "LSTM": jaxrnn.LSTM(H),
    "GRU": jaxrnn.GRU(H, reset_after=False),
}


@pytest.fixture(autouse=True)
def haiku_promotion():
    """Haiku relies on promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def network(kind, layers, both):
    """A transformed function of layers of cores. Haiku knows no lengths: each
    sequence is run by itself.
    """

    def unrolling(core, xs, reverse):
        return hk.dynamic_unroll(core, xs, core.initial_state(None), reverse=reverse)

    def run(xs):
        levels = [
            [getattr(hk, kind)(H) for _ in range(2 if both else 1)]
            for _ in range(layers)
        ]
        batch = []
        for b, length in enumerate(peers.LENGTHS):
            ys, states = xs[b, :length], []
            for cores in levels:
                each = [unrolling(core, ys, k == 1) for k, core in enumerate(cores)]
                ys = jnp.concatenate([own for own, _ in each], -1)
                states += [leaf for _, state in each for leaf in jax.tree.leaves(state)]
            batch.append((jnp.pad(ys, ((0, peers.STEPS - length), (0, 0))), states))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch)

    return hk.without_apply_rng(hk.transform(run))


@pytest.mark.parametrize(
    ("kind", "layers", "both", "dtype"), peers.cases(CELLS, wide=["GRU"])
)
def test_the_same_values_states_and_gradients(kind, layers, both, dtype):
    with jax.enable_x64(dtype == "float64"):
        function = network(kind, layers, both)
        shapes = jax.eval_shape(
            function.init,
            jax.random.key(0),
            jnp.asarray(peers.inputs(dtype)).swapaxes(0, 1),
        )
        weights = jax.tree.map(
            lambda a: jnp.asarray(
                0.4 * peers.draw(sum(a.shape), *a.shape, dtype=dtype)
            ),
            shapes,
        )
        level = jaxrnn.bidirectional(CELLS[kind]) if both else CELLS[kind]
        layer = level if layers == 1 else jaxrnn.stack(*[level] * layers)
        run = lambda weights, xs, _: function.apply(weights, xs)  # noqa: E731
        expected = peers.theirs(run, weights, dtype)
        actual = peers.ours(lambda w: interop.from_haiku(w, layer), weights, dtype)
        peers.assert_agree(actual, expected, dtype)

        params = interop.from_haiku(weights, layer)[1]
        back = interop.to_haiku(layer, params)
        assert jax.tree.structure(back) == jax.tree.structure(weights)
        assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, weights)
        if layers == 1:
            again = peers.theirs(run, back, dtype)
            peers.assert_agree(
                again, expected._replace(weight_gradients=again.weight_gradients), dtype
            )


def test_cores_inside_a_larger_model():
    class Net(hk.Module):
        def __call__(self, xs):
            core = hk.DeepRNN([hk.LSTM(H), hk.VanillaRNN(2, double_bias=False)])
            ys, state = hk.dynamic_unroll(core, hk.Linear(3)(xs), core.initial_state(2))
            return ys, state

    function = hk.without_apply_rng(hk.transform(lambda xs: Net()(xs)))
    xs = jnp.asarray(peers.draw(0, 5, 2, 3, dtype="float32"))
    weights = function.init(jax.random.key(0), xs)
    layer = jaxrnn.stack(CELLS["LSTM"], jaxrnn.Elman(2, activation=jax.nn.relu))
    names = ["net/lstm", "net/vanilla_rnn"]
    layer, params = interop.from_haiku(weights, layer, names=names)
    embedded = xs @ weights["net/linear"]["w"] + weights["net/linear"]["b"]
    carry, ys = jaxrnn.unroll(layer, params, embedded)
    expected, states = function.apply(weights, xs)
    assert jnp.abs(ys - expected).max() < 1e-6
    assert jnp.abs(carry[0].c - states[0].cell).max() < 1e-6
    back = interop.to_haiku(layer, params, names=names, double_bias=False)
    merged = weights | back
    assert jax.tree.structure(merged) == jax.tree.structure(weights)
    assert jnp.abs(function.apply(merged, xs)[0] - expected).max() < 1e-6
    with pytest.raises(
        ValueError,
        match=r"lstm: missing linear/b, linear/w. The params have the modules net/linear, net/lstm",  # noqa: E501
    ):
        interop.from_haiku(weights, layer)
