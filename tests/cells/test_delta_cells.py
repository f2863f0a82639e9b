"""The delta rules: DeltaNet, Gated DeltaNet, DeltaProduct, KDA and GDN-2, each against
its equations in numpy, and how they reduce to each other.

Their chunks are compared with their steps in tests/matrix/test_chunks.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from delta_twins import GATES, delta_output, delta_step, softplus
from reference import assert_slopes, compiled
from subjects import assert_same, normal, outcome

import jaxrnn
from jaxrnn.cells import GDN2, KDA, DeltaNet, DeltaProduct, GatedDeltaNet

B, D, T = 2, 2, 4
SMALL = {"num_heads": 2, "key_size": 3}
SHARED = {**SMALL, "num_key_heads": 1, "conv": 3}
CELLS = {
    "delta_net": DeltaNet(4, **SHARED),
    "delta_net_gate": DeltaNet(
        4, **SMALL, conv=None, use_gate=True, allow_negative=True
    ),
    "delta_net_elu": DeltaNet(4, **SHARED, feature_map="elu", key_norm="sum"),
    "delta_net_relu": DeltaNet(
        4, **SMALL, conv=2, feature_map="relu", key_norm="sum", allow_negative=True
    ),
    "delta_net_identity": DeltaNet(4, **SHARED, feature_map="identity"),
    "gated_delta_net": GatedDeltaNet(4, **SHARED),
    "delta_product": DeltaProduct(4, **SHARED),
    "delta_product_plain": DeltaProduct(
        4,
        **SMALL,
        conv=None,
        num_products=3,
        use_forget_gate=False,
        use_gate=False,
        allow_negative=False,
    ),
    "kda": KDA(4, **SHARED),
    "kda_safe": KDA(4, **SMALL, conv=2, safe_gate=True, allow_negative=True),
    "gdn2": GDN2(4, **SHARED, allow_negative=True),
    "gdn2_safe": GDN2(4, **SMALL, conv=None, safe_gate=True, use_gate=False),
}
KEY = jax.random.key(0)


def draw(cell, steps=T, batch=(B,)):
    """Random params, inputs and carry; conv and kernels of size one."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: cell.init(key, D), KEY)
    params = normal(random, shapes, 0.8)
    xs = jnp.asarray(random.normal(size=(steps, *batch, D)))
    shapes = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)
    return params, xs, normal(random, shapes)


def twin(cell, params, xs, carry):
    """The leaves of the last carry, and the outputs, in numpy."""
    ys = []
    for x in xs:
        carry = delta_step(cell, params, carry, x)
        ys.append(delta_output(cell, params, carry, x))
    return [*jax.tree.leaves(carry), np.stack(ys)]


def begun_with_1(xs):
    """Inputs whose feature 0 is 1, so that a row of a kernel is a bias."""
    return np.concatenate([np.ones_like(xs[..., :1]), xs[..., 1:]], -1)


def projections(cell, params, number):
    """Random vectors in the place of projected inputs."""
    x = jax.ShapeDtypeStruct((number, D), jnp.result_type(float))
    like = jax.eval_shape(cell.project, params, x)
    return np.random.default_rng(4).normal(size=like.shape)


def gates_of(cell, params, carry, x):
    """The gates of a step, compiled; only their values are arrays."""
    told = {}

    def values(params, carry, x):
        told.update(cell.gate_values(params, carry, cell.project(params, x)))
        return {name: gate.value for name, gate in told.items()}

    found = compiled(values)(params, carry, x)
    return {name: gate._replace(value=found[name]) for name, gate in told.items()}


@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_are_those_in_numpy(name, x64):
    """Of params, inputs and first carry."""
    cell, random = CELLS[name], np.random.default_rng(1)
    at = draw(cell)
    y = jax.eval_shape(cell, at[0], at[2], at[1][0])[1]
    ys = jax.ShapeDtypeStruct((T, *y.shape), y.dtype)
    cotangents = normal(random, (at[2], ys))
    run = lambda *a: jaxrnn.unroll(cell, *a, engine=jaxrnn.Scan())  # noqa: E731
    actual = compiled(lambda at, c: outcome(run, *at, c))(at, cotangents)
    numbers = jax.tree.map(np.asarray, at)
    assert_same(jax.tree.leaves(actual.values), twin(cell, *numbers))
    assert_slopes(
        actual.gradients,
        lambda at: twin(cell, *at),
        numbers,
        jax.tree.leaves(cotangents),
    )


def test_every_cell_has_a_row():
    assert {type(cell).__name__ for cell in CELLS.values()} == set(GATES)


# ---------------------------------------------------------------------- the reductions
def pieces(cell, params):
    """The blocks of the input kernel by name, those of low rank with them."""
    sizes = {**cell.blocks, **{n: b.rank for n, b in cell.low_rank.items()}}
    ends = np.cumsum(list(sizes.values()))[:-1]
    blocks = np.split(np.array(params["input_kernel"]), ends, axis=-1)
    return dict(zip(sizes, blocks, strict=True))


def rejoined(params, blocks, *without, **changed):
    """Params with the input kernel of these blocks, and with changes."""
    kernel = np.concatenate(list(blocks.values()), axis=-1)
    params = {name: leaf for name, leaf in params.items() if name not in without}
    return {**params, "input_kernel": kernel, **changed}


@functools.partial(jax.jit, static_argnums=0)
def by_steps(cell, params, xs, S=None):
    """The state and the outputs after steps from a state, zero if there is none."""
    carry, ys = cell.initial_carry(params, xs.shape[1:-1]), []
    carry = carry if S is None else carry._replace(S=S)
    for x in xs:
        carry, y = cell(params, carry, x)
        ys.append(y)
    return carry.S, jnp.stack(ys)


def assert_same_cells(one, params, other, params_of_other, xs):
    """Two steps from a random state, so that decays, too, count at once."""
    random = np.random.default_rng(5)
    S = jnp.asarray(random.normal(size=(B, one.num_heads, one.keys, one.values)))
    expected = by_steps(one, params, xs[:2], S)
    assert_same(by_steps(other, params_of_other, xs[:2], S), expected)


def test_gdn2_with_equal_gates_is_kda(x64):
    kda, gdn2 = (kind(4, **SMALL) for kind in (KDA, GDN2))
    params, xs, *_ = draw(kda)
    blocks = pieces(kda, params)
    beta = blocks["beta"]
    renamed = {**{name: blocks[name] for name in "qkv"}}
    renamed["erase"] = np.repeat(beta, kda.keys, axis=-1)
    renamed["write"] = np.repeat(beta, kda.values, axis=-1)
    renamed |= {name: blocks[name] for name in ("decay", "gate")}
    assert_same_cells(kda, params, gdn2, rejoined(params, renamed), xs)


def test_kda_with_equal_decays_is_gated_delta_net(x64):
    kda, gated = (kind(4, **SMALL, use_gate=False) for kind in (KDA, GatedDeltaNet))
    params, xs, *_ = draw(kda)
    first = np.asarray(params["decay_kernel"])[:, :: kda.keys]  # a column a head
    bias = np.asarray(params["dt_bias"])[:: kda.keys]
    blocks = pieces(kda, params)
    equal = {
        **params,
        "decay_kernel": np.repeat(first, kda.keys, axis=-1),
        "dt_bias": np.repeat(bias, kda.keys),
    }
    renamed = {name: blocks[name] for name in ("q", "k", "v", "beta")}
    renamed["alpha"] = blocks["decay"] @ first
    mapped = rejoined(params, renamed, "decay_kernel", dt_bias=bias)
    assert_same_cells(kda, equal, gated, mapped, xs)


def test_gated_delta_net_without_decay_is_delta_net(x64):
    gated, plain = (
        kind(4, **SHARED, use_gate=True) for kind in (GatedDeltaNet, DeltaNet)
    )
    params, xs, *_ = draw(gated)
    blocks = pieces(gated, params)
    del blocks["alpha"]
    kept = {**params, "A_log": np.full(2, -1e3)}  # exp of it is 0, so alpha is 1
    mapped = rejoined(params, blocks, "A_log", "dt_bias")
    assert_same_cells(gated, kept, plain, mapped, xs)


@pytest.mark.parametrize("decays", [True, False], ids=["gated", "plain"])
def test_delta_product_of_one_is_gated_delta_net(decays, x64):
    options = {"use_gate": True, "allow_negative": True}
    product = DeltaProduct(
        4, **SHARED, **options, num_products=1, use_forget_gate=decays
    )
    kind = GatedDeltaNet if decays else DeltaNet
    params, xs, *_ = draw(product)
    assert_same_cells(product, params, kind(4, **SHARED, **options), params, xs)


def test_delta_product_without_its_second_is_gated_delta_net(x64):
    """A beta of 0 neither erases nor writes."""
    one, two = (DeltaProduct(4, **SMALL, num_products=n) for n in (1, 2))
    params, xs, *_ = draw(two)
    xs = begun_with_1(xs)
    blocks = pieces(two, params)
    off = blocks["beta"].copy()
    off[:, 2:], off[0, 2:] = 0, -1e3
    dead = rejoined(params, {**blocks, "beta": off})
    blocks = {**blocks, "k": blocks["k"][:, :6], "v": blocks["v"][:, :4]}
    blocks["beta"] = blocks["beta"][:, :2]
    conv = np.r_[0:6, 6:12, 18:22]
    kernel = np.asarray(params["conv_kernel"])[:, conv]
    mapped = rejoined(params, blocks, conv_kernel=kernel)
    assert_same_cells(two, dead, one, mapped, xs)


@pytest.mark.parametrize("kind", [GatedDeltaNet, KDA, GDN2])
def test_without_erasing_it_is_linear_attention_with_decays(kind, x64):
    """Terms without a: Mamba-2's rule for a decay a head, GLA's for one a channel.
    GDN-2's gate can close; the others' a is set to zero.
    """

    class Writes(kind):
        def terms(self, params, z):
            return super().terms(params, z)._replace(a=None)

    class ErasesNothing(kind):
        def terms(self, params, z):
            terms = super().terms(params, z)
            return terms if kind is GDN2 else terms._replace(a=jnp.zeros_like(terms.a))

    cell = Writes(4, **SMALL)
    params, xs, *_ = draw(cell)
    xs = begun_with_1(xs)
    closed = params
    if kind is GDN2:
        blocks = pieces(cell, params)
        blocks["erase"][0] = -1e3
        closed = rejoined(params, blocks)
    assert_same_cells(ErasesNothing(4, **SMALL), closed, cell, params, xs)


# ------------------------------------------------------------------------ what they do
@pytest.mark.parametrize("kind", [DeltaNet, GatedDeltaNet, KDA, GDN2, DeltaProduct])
def test_the_last_value_written_at_a_key_is_read_there(kind, x64):
    """Two values at one key with beta 1 and nothing forgotten: the second is read."""
    cell = kind(3, key_size=2, conv=None, allow_negative=False)
    random = np.random.default_rng(0)
    params = normal(random, jax.eval_shape(lambda key: cell.init(key, 4), KEY), 0.0)
    blocks = pieces(cell, params)
    n = cell.micro_steps
    # Feature 0 is 1: the same key at all steps, and open gates. The others are values.
    blocks["k"][0] = np.tile([40.0, 30.0], n)
    blocks["v"][1:] = np.tile(np.eye(3), n)
    for name in {"beta", "erase", "write"} & set(blocks):
        blocks[name][0] = 1e3
    params = rejoined(params, blocks)
    if "A_log" in params:
        params["A_log"] = np.full_like(params["A_log"], -1e3)
    values = random.normal(size=(2, 3))
    xs = np.concatenate([np.ones((2, 1)), values], -1)
    S, _ = by_steps(cell, params, xs)
    read = np.asarray(S)[0].T @ [0.8, 0.6]
    silu = values[1] / (1 + np.exp(-values[1]))
    np.testing.assert_allclose(read, silu, rtol=1e-6)


@pytest.mark.parametrize("negative", [True, False], ids=["negative", "positive"])
@pytest.mark.parametrize("kind", [DeltaNet, GatedDeltaNet, KDA, GDN2])
def test_eigenvalues_of_a_step(kind, negative, x64):
    """Between -1 and 1, or between 0 and 1. 1 itself is there without a decay."""
    cell = kind(4, **SMALL, allow_negative=negative)
    params, *_ = draw(cell)
    if "A_log" in params:
        params["A_log"] = params["A_log"] - 4  # weak decays, so that they are not all
    z = 3 * projections(cell, params, 200)
    found = np.linalg.eigvals(np.asarray(compiled(cell.transition)(params, z)))
    np.testing.assert_allclose(found.imag, 0, atol=1e-9)
    found = found.real
    assert found.max() < 1 + 1e-12
    assert (found.min() < -0.5) if negative else (found.min() > 0)
    assert found.min() > -1
    if kind is not DeltaNet:
        assert found.max() < 1


def test_products_reflect_and_rotate(x64):
    """With beta 2 and no decay the matrix of a step is orthogonal, of determinant -1
    for one product and 1 for two; two make a rotation, whose eigenvalues are complex.
    """
    for count in (1, 2, 3):
        cell = DeltaProduct(8, num_products=count, use_forget_gate=False)
        params, *_ = draw(cell)
        z = projections(cell, params, 5) * 30
        z[:, slice(*np.cumsum(list(cell.blocks.values()))[2:4])] = 1e3  # beta
        M = np.asarray(compiled(cell.transition)(params, z))[:, 0]
        eye = np.broadcast_to(np.eye(8), M.shape)
        np.testing.assert_allclose(M @ M.mT, eye, atol=1e-6)
        np.testing.assert_allclose(np.linalg.det(M), (-1) ** count, atol=1e-6)
        assert (np.abs(np.linalg.eigvals(M).imag).max() > 0.1) == (count > 1)


def test_the_state_decays_once_a_step_whatever_the_products(x64):
    cell = DeltaProduct(4, **SMALL, num_products=3)
    params, xs, carry = draw(cell, 1)
    blocks = pieces(cell, params)
    blocks["beta"][:] = 0
    blocks["beta"][0] = -1e3
    params, xs = rejoined(params, blocks), begun_with_1(xs)
    alpha = gates_of(cell, params, carry, xs[0])["alpha"].value
    S, _ = by_steps(cell, params, xs, carry.S)
    assert_same(S, alpha[..., None, None] * carry.S)


# -------------------------------------------------------------------------------- init
def test_first_decays_are_those_of_the_reference():
    """A is uniform, and softplus of dt_bias log-uniform, in the ranges of the papers'
    code; output gates of low rank have a bias of 0.
    """
    wide = {"num_heads": 400, "key_size": 5}
    for kind, least in ((DeltaProduct, 0), (KDA, 1)):
        params = kind(800, **wide).own_parameters(KEY, 1, jnp.float32)
        A, step = (np.asarray(params[name]) for name in ("A_log", "dt_bias"))
        A, step = np.exp(A), np.log(softplus(step))
        assert least <= A.min() < least + 1
        assert 15 < A.max() < 16.001
        np.testing.assert_allclose(A.mean(), (least + 16) / 2, atol=0.8)
        low, high = np.log(1e-3), np.log(0.1)
        assert low - 1e-3 < step.min() < low + 0.3
        assert high - 0.3 < step.max() < high + 1e-3
        np.testing.assert_allclose(step.mean(), (low + high) / 2, atol=0.3)
        assert (A.shape, step.shape) == ((400,), (400 * (5 if least else 1),))
        assert (params["norm_scale"] == 1).all()
    assert not params["gate_bias"].any()
    shapes = jax.eval_shape(lambda key: GDN2(8, **SHARED).init(key, 1), KEY)
    assert (shapes["A_log"].shape, shapes["dt_bias"].shape) == ((1,), (3,))
    for cell in (DeltaNet(4), DeltaProduct(4, use_forget_gate=False)):
        params = jax.eval_shape(lambda key, c=cell: c.init(key, 1), KEY)
        assert not {"A_log", "dt_bias"} & set(params)


@pytest.mark.parametrize("kind", [KDA, GDN2])
def test_a_safe_gate_never_forgets_all(kind, x64):
    cell = kind(4, **SMALL, safe_gate=True)
    params, *_ = draw(cell)
    z = 100 * projections(cell, params, 50)
    g = compiled(cell.terms)(params, z).g
    assert -5 <= g.min() < -4.9
    assert -0.1 < g.max() <= 0
    assert not cell.own_parameters(KEY, D, jnp.float64)["A_log"].any()
    free = dataclasses.replace(cell, safe_gate=False)
    assert compiled(free.terms)(params, z).g.min() < -20


@pytest.mark.parametrize("name", CELLS)
def test_gates_have_names_and_ranges(name):
    cell = CELLS[name]
    params, xs, carry = draw(cell)
    gates = gates_of(cell, params, carry, xs[0])
    decays = isinstance(cell, KDA | GDN2 | GatedDeltaNet) or "A_log" in params
    gdn2 = isinstance(cell, GDN2)
    assert set(gates) == ({"erase", "write"} if gdn2 else {"beta"}) | (
        {"alpha"} if decays else set()
    )
    for gate, told in gates.items():
        assert told.value.ndim == 2
        assert (told.value >= told.low).all()
        assert (told.value <= told.high).all()
        assert told.keeps == (gate == "alpha")
        negative = cell.allow_negative and gate in ("beta", "erase")
        assert told.high == (2 if negative else 1)


def test_low_rank_blocks_are_two_products(x64):
    """W_2 of activation(x W), packed behind the others, and found by their names."""
    cell = KDA(4, **SMALL)
    params, xs, *_ = draw(cell)
    part = cell.split(cell.project(params, xs))
    blocks = pieces(cell, params)
    for name in ("decay", "gate"):
        expected = xs @ blocks[name] @ params[f"{name}_kernel"]
        assert_same(part[name], expected)
    assert_same(part["beta"], xs @ blocks["beta"])
    assert list(part) == ["q", "k", "v", "beta", "decay", "gate"]


@pytest.mark.parametrize("kind", [DeltaNet, DeltaProduct, KDA, GDN2])
def test_what_does_not_fit_is_refused(kind, plain_errors):
    name = kind.__name__
    with pytest.raises(ValueError, match=rf"{name}.*num_heads must divide hidden_size"):
        kind(4, num_heads=3)
    with pytest.raises(ValueError, match=rf"{name}.*heads of q and k must divide"):
        kind(4, num_heads=4, num_key_heads=3)
    with pytest.raises(ValueError, match=rf"{name}.*conv.*use conv=None"):
        kind(4, conv=1)
    with pytest.raises(ValueError, match=rf"{name}.*num_key_heads|key_heads"):
        kind(4, num_key_heads=0)
    shapes = jax.eval_shape(lambda key: kind(4).init(key, D), KEY)
    params = jax.tree.map(lambda like: jnp.zeros(like.shape), shapes)
    with pytest.raises(ValueError, match="features"):
        jaxrnn.unroll(kind(4), params, jnp.ones((3, D + 1)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"feature_map": "gelu"}, "one of silu, elu, relu, identity, .* 'gelu'"),
        ({"key_norm": "l1"}, "key_norm must be one of l2, sum, .* 'l1'"),
        ({"key_norm": "sum"}, "'silu' has negative values: set feature_map to 'elu'"),
    ],
)
def test_features_of_keys_are_refused(options, words, plain_errors):
    with pytest.raises(ValueError, match=words):
        DeltaNet(4, **options)


def test_products_are_counted_from_one(plain_errors):
    with pytest.raises(ValueError, match=r"DeltaProduct.*num_products"):
        DeltaProduct(4, num_products=0)
