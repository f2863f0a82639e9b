"""Weights from Equinox and back, against the Equinox that is installed: values and
gradients, ragged batches.
"""

import jax
import jax.numpy as jnp
import peers
import pytest

import jaxrnn
from jaxrnn import interop

eqx = pytest.importorskip("equinox")

H = 4
CELLS = {"LSTMCell": jaxrnn.LSTM(H), "GRUCell": jaxrnn.GRU(H)}


@pytest.fixture(autouse=True)
def equinox_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def cells(kind, layers, both, dtype, use_bias=True):
    keys, width, made = iter(jax.random.split(jax.random.key(0), 8)), peers.INPUTS, []
    for _ in range(layers):
        make = getattr(eqx.nn, kind)
        made.append(
            [
                make(width, H, use_bias, dtype=jnp.dtype(dtype), key=next(keys))
                for _ in range(2 if both else 1)
            ]
        )
        width = H * (2 if both else 1)
    return made


def arrays_of(cell):
    return {
        name: getattr(cell, name)
        for name in ("weight_ih", "weight_hh", "bias", "bias_n")
        if hasattr(cell, name)
    }


def unrolling(cell, xs, mask):
    """A scan over one sequence, the state held in the padding, in either direction."""
    zeros = jnp.zeros(H, xs.dtype)
    start = (zeros, zeros) if isinstance(cell, eqx.nn.LSTMCell) else zeros

    def step(state, xm):
        new = cell(xm[0], state)
        state = jax.tree.map(lambda a, b: jnp.where(xm[1], a, b), new, state)
        return state, jax.tree.leaves(state)[0]

    return lambda reverse: jax.lax.scan(step, start, (xs, mask), reverse=reverse)


@pytest.mark.parametrize(
    ("kind", "layers", "both", "dtype"), peers.cases(CELLS, wide=["LSTMCell"])
)
def test_the_same_values_states_and_gradients(kind, layers, both, dtype):
    with jax.enable_x64(dtype == "float64"):
        made = cells(kind, layers, both, dtype)
        flat = [cell for level in made for cell in level]
        weights = [arrays_of(cell) for cell in flat]

        def run(weights, xs, lengths):
            def one(xs, length):
                states, index, mask = [], 0, jnp.arange(peers.STEPS) < length
                for level in made:
                    each = []
                    for k in range(len(level)):
                        names = tuple(weights[index])

                        def where(cell, names=names):
                            return [getattr(cell, name) for name in names]

                        cell = eqx.tree_at(
                            where, flat[index], list(weights[index].values())
                        )
                        last, ys = unrolling(cell, xs, mask)(k == 1)
                        each, states, index = (
                            [*each, ys],
                            states + jax.tree.leaves(last),
                            index + 1,
                        )
                    xs = jnp.concatenate(each, -1)
                return xs, states

            return jax.vmap(one)(xs, lengths)

        level = jaxrnn.bidirectional(CELLS[kind]) if both else CELLS[kind]
        layer = level if layers == 1 else jaxrnn.stack(*[level] * layers)
        source = weights if len(weights) > 1 else weights[0]
        many = lambda w: w if isinstance(w, list) else [w]  # noqa: E731
        expected = peers.theirs(lambda w, *rest: run(many(w), *rest), source, dtype)
        actual = peers.ours(lambda w: interop.from_equinox(w, layer), source, dtype)
        peers.assert_agree(actual, expected, dtype)

        whole = flat if len(flat) > 1 else flat[0]
        read, params = interop.from_equinox(whole, layer)
        peers.equal(interop.to_equinox(read, params), source)
        blank = jax.tree.map(jnp.zeros_like, whole)
        loaded = interop.to_equinox(read, params, into=blank)
        peers.equal(loaded, whole)
        assert not jnp.any(jax.tree.leaves(blank)[0])  # a copy was loaded


def test_what_a_cell_or_a_list_becomes():
    (one,), (two,) = cells("GRUCell", 2, False, "float32")
    assert interop.from_equinox(one)[0] == jaxrnn.GRU(H)
    layer, params = interop.from_equinox([one, two])
    assert layer == jaxrnn.stack(jaxrnn.GRU(H), jaxrnn.GRU(H))
    ((bare,),) = cells("GRUCell", 1, False, "float32", use_bias=False)
    layer, params = interop.from_equinox(bare)
    peers.equal(interop.to_equinox(layer, params, into=bare), bare)
    with pytest.raises(ValueError, match=r"bias_n is not zero|bias is not zero"):
        interop.to_equinox(*interop.from_equinox(one), into=bare)
    with pytest.raises(TypeError, match=r"expected eqx.nn.LSTMCell.*Linear"):
        interop.from_equinox(eqx.nn.Linear(3, 4, key=jax.random.key(0)))
    with pytest.raises(
        ValueError, match=r"weight_ih: expected \(12, 3\), found \(12, 4\)"
    ):
        interop.to_equinox(jaxrnn.GRU(H), interop.from_equinox(two)[1], into=one)
