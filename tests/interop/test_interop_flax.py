"""Weights from flax and back, linen and nnx, against the flax that is installed:
values and gradients, ragged batches.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import interop

H = 4
CELLS = {
    "SimpleCell": jaxrnn.Elman(H),
    "LSTMCell": jaxrnn.LSTM(H),
    "OptimizedLSTMCell": jaxrnn.LSTM(H),
    "GRUCell": jaxrnn.GRU(H),
}
CASES = peers.cases(CELLS, wide=["GRUCell"])


@pytest.fixture(autouse=True)
def flax_promotion():
    """flax relies on promotion in places."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def template(kind, layers, both):
    level = jaxrnn.bidirectional(CELLS[kind]) if both else CELLS[kind]
    return level if layers == 1 else jaxrnn.stack(*[level] * layers)


def randomised(tree, dtype):
    """Biases too, which flax draws as zeros."""
    leaves, structure = jax.tree.flatten(tree)
    drawn = [
        peers.draw(50 + k, *leaf.shape, dtype=dtype) * 0.4
        for k, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, list(map(jnp.asarray, drawn)))


def leaves_of(carry):
    """flax's (c, h) in the order h, c; a GRU's h alone."""
    return list(carry[::-1]) if isinstance(carry, tuple) else [carry]


def flatten(carries, both):
    return [
        leaf
        for carry in carries
        for each in (carry if both else (carry,))
        for leaf in leaves_of(each)
    ]


def linen_modules(kind, layers, both, dtype):
    make = lambda: nn.RNN(getattr(nn, kind)(H, param_dtype=dtype))  # noqa: E731
    return [nn.Bidirectional(make(), make()) if both else make() for _ in range(layers)]


def linen_weights(modules, dtype):
    width, trees = peers.INPUTS, []
    for module in modules:
        tree = module.init(jax.random.key(0), jnp.zeros((1, 1, width), dtype))
        width = H * (2 if isinstance(module, nn.Bidirectional) else 1)
        trees.append(tree)
    return randomised(trees, dtype)


@pytest.mark.parametrize(("kind", "layers", "both", "dtype"), CASES)
def test_linen(kind, layers, both, dtype):
    with jax.enable_x64(dtype == "float64"):
        modules = linen_modules(kind, layers, both, dtype)
        weights = linen_weights(modules, dtype)
        layer = template(kind, layers, both)

        def run(weights, xs, lengths):
            carries = []
            for module, tree in zip(modules, weights, strict=True):
                carry, xs = module.apply(
                    tree, xs, seq_lengths=lengths, return_carry=True
                )
                carries.append(carry)
            return xs, flatten(carries, both)

        source = weights if layers > 1 else weights[0]
        expected = peers.theirs(
            lambda w, *rest: run(w if layers > 1 else [w], *rest), source, dtype
        )
        actual = peers.ours(lambda w: interop.from_flax(w, layer), source, dtype)
        peers.assert_agree(actual, expected, dtype)

        bound = [module.bind(tree) for module, tree in zip(modules, weights)]
        read = interop.from_flax(bound if layers > 1 else bound[0])
        assert read[0] == layer
        peers.equal(read[1], interop.from_flax(source, layer)[1])
        back = interop.to_flax(*read)
        assert len(back) == layers if layers > 1 else isinstance(back, dict)
        stripped = [
            tree["params"] if both else tree["params"]["cell"] for tree in weights
        ]
        peers.equal(back, stripped if layers > 1 else stripped[0])


def nnx_modules(kind, layers, both, dtype):
    rngs, made, width = nnx.Rngs(0), [], peers.INPUTS
    for _ in range(layers):
        make = partial(
            getattr(nnx, kind), width, H, dtype=dtype, param_dtype=dtype, rngs=rngs
        )
        rnn = lambda make=make: nnx.RNN(make(), rngs=rngs)  # noqa: E731
        made.append(nnx.Bidirectional(rnn(), rnn(), rngs=rngs) if both else rnn())
        width = H * (2 if both else 1)
    for module in made:
        state = nnx.state(module, nnx.Param)
        nnx.update(module, randomised(state, dtype))
    return made


@pytest.mark.parametrize(("kind", "layers", "both", "dtype"), CASES)
def test_nnx(kind, layers, both, dtype):
    with jax.enable_x64(dtype == "float64"):
        modules = nnx_modules(kind, layers, both, dtype)
        layer = template(kind, layers, both)
        parts = [nnx.split(module, nnx.Param, ...) for module in modules]
        weights = [nnx.to_pure_dict(params) for _, params, _ in parts]

        def run(weights, xs, lengths):
            carries = []
            for (graph, params, rest), tree in zip(parts, weights, strict=True):
                params = jax.tree.map(lambda a: a, params)
                nnx.replace_by_pure_dict(params, tree)
                carry, xs = nnx.merge(graph, params, rest, copy=True)(
                    xs, seq_lengths=lengths, return_carry=True
                )
                carries.append(carry)
            return xs, flatten(carries, both)

        source = weights if layers > 1 else weights[0]
        expected = peers.theirs(
            lambda w, *rest: run(w if layers > 1 else [w], *rest), source, dtype
        )
        actual = peers.ours(lambda w: interop.from_flax(w, layer), source, dtype)
        peers.assert_agree(actual, expected, dtype)

        whole = modules if layers > 1 else modules[0]
        read = interop.from_flax(whole)
        assert read[0] == layer
        peers.equal(read[1], interop.from_flax(source, layer)[1])
        fresh = nnx_modules(kind, layers, both, dtype)
        for module in fresh:
            nnx.update(
                module, jax.tree.map(jnp.zeros_like, nnx.state(module, nnx.Param))
            )
        into = fresh if layers > 1 else fresh[0]
        assert interop.to_flax(*read, into=into) is into
        for ours, theirs in zip(fresh, modules, strict=True):
            peers.equal(nnx.state(ours, nnx.Param), nnx.state(theirs, nnx.Param))


def test_the_state_of_a_module_is_read_too():
    cell = nnx.OptimizedLSTMCell(3, H, rngs=nnx.Rngs(0))
    peers.equal(
        interop.from_flax(nnx.state(cell), jaxrnn.LSTM(H))[1],
        interop.from_flax(cell)[1],
    )


def test_the_bias_that_nnx_lacks():
    """linen's GRU holds torch's b_hn, nnx's does not: refused unless it is zero, and
    then converted to the last bit.
    """
    cell = jaxrnn.GRU(H)
    params = cell.init(jax.random.key(0), 3)
    theirs = nnx.GRUCell(3, H, rngs=nnx.Rngs(1))
    interop.to_flax(cell, params, into=theirs)
    peers.equal(interop.from_flax(theirs)[1], params)
    full = params | {"recurrent_bias": jnp.arange(4.0)}
    with pytest.raises(
        ValueError,
        match=r"recurrent_bias is not zero \(up to 3 in size\), and flax's nnx.GRUCell has no b_hn",  # noqa: E501
    ):
        interop.to_flax(cell, full, into=theirs)
    peers.equal(interop.from_flax(interop.to_flax(cell, full), cell)[1], full)


def test_what_computes_something_else_is_refused():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="residual=True"):
        interop.from_flax(nnx.SimpleCell(3, H, residual=True, rngs=rngs))
    with pytest.raises(ValueError, match=r"activation_fn.*LSTM has tanh"):
        interop.from_flax(nnx.LSTMCell(3, H, activation_fn=nnx.relu, rngs=rngs))
    with pytest.raises(ValueError, match="gate_fn"):
        interop.from_flax(nnx.GRUCell(3, H, gate_fn=nnx.hard_sigmoid, rngs=rngs))
    with pytest.raises(TypeError, match="holds float32 and computes in bfloat16"):
        interop.from_flax(nnx.GRUCell(3, H, dtype=jnp.bfloat16, rngs=rngs))
    with pytest.raises(ValueError, match=r"unroll\(..., reverse=True\)"):
        interop.from_flax(nnx.RNN(nnx.GRUCell(3, H, rngs=rngs), reverse=True))
    with pytest.raises(ValueError, match="merge_fn"):
        interop.from_flax(
            nnx.Bidirectional(
                *[nnx.RNN(nnx.GRUCell(3, H, rngs=rngs))] * 2, merge_fn=jnp.add
            )
        )
    with pytest.raises(
        ValueError, match=r"holds no weights: bind it, module.bind\(variables\)"
    ):
        interop.from_flax(nn.GRUCell(H))
    with pytest.raises(
        TypeError, match="linen modules hold no weights: leave out into"
    ):
        interop.to_flax(
            jaxrnn.GRU(H), jaxrnn.GRU(H).init(jax.random.key(0), 3), into=nn.GRUCell(H)
        )
    with pytest.raises(TypeError, match="pass layer="):
        interop.from_flax({"i": {}})
    with pytest.raises(TypeError, match=r"expected flax's SimpleCell.*Linear"):
        interop.from_flax(nnx.Linear(3, 4, rngs=rngs))
    before = jaxrnn.GRU(H, reset_after=False)
    with pytest.raises(
        ValueError, match="resets before the matrix product and flax's GRUCell after it"
    ):
        interop.to_flax(before, before.init(jax.random.key(0), 3))


def test_an_activation_is_kept():
    cell = nnx.SimpleCell(3, H, activation_fn=nnx.relu, rngs=nnx.Rngs(0))
    layer, params = interop.from_flax(cell)
    assert layer == jaxrnn.Elman(H, activation=jax.nn.relu)
    x, h = (
        jnp.asarray(peers.draw(k, 2, n, dtype="float32")) for k, n in ((0, 3), (1, H))
    )
    np.testing.assert_allclose(layer(params, h, x)[1], cell(h, x)[1], atol=1e-6)


def test_names_and_shapes_are_checked():
    cell = jaxrnn.LSTM(H)
    tree = interop.to_flax(cell, cell.init(jax.random.key(0), 3))
    lacking = {name: value for name, value in tree.items() if name != "hg"}
    with pytest.raises(
        ValueError,
        match=r"from_flax: missing hg.bias, hg.kernel; not expected extra.kernel",
    ):
        interop.from_flax(lacking | {"extra": {"kernel": tree["hg"]["kernel"]}}, cell)
    with pytest.raises(
        ValueError, match=r"hg.kernel: expected \(4, 4\), found \(3, 4\)"
    ):
        interop.from_flax(
            tree | {"hg": {"kernel": jnp.zeros((3, H)), "bias": jnp.zeros(H)}}, cell
        )
    with pytest.raises(TypeError, match=r"give a list of 2 dicts, not a dict"):
        interop.from_flax(tree, jaxrnn.stack(cell, cell))
    with pytest.raises(
        ValueError,
        match=r"layer_1: its weights take 3 features, but the layer below has 4",
    ):
        interop.from_flax([tree, tree], jaxrnn.stack(cell, cell))
    with pytest.raises(
        ValueError, match=r"the layer is LSTM\(4\), but the object to load is GRU\(4\)"
    ):
        interop.to_flax(
            cell,
            cell.init(jax.random.key(0), 3),
            into=nnx.GRUCell(3, H, rngs=nnx.Rngs(0)),
        )
    with pytest.raises(
        ValueError, match=r"dense_i.kernel: expected \(5, 16\), found \(3, 16\)"
    ):
        interop.to_flax(
            cell,
            cell.init(jax.random.key(0), 3),
            into=nnx.OptimizedLSTMCell(5, H, rngs=nnx.Rngs(0)),
        )
