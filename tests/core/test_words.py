"""What goes wrong in a cell of one's own is said with its method and the repair; trees
of outputs and carries with parts of every kind work, or are refused in words.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from subjects import draw_params

import jaxrnn
from jaxrnn import Elman, diagnostics, stack, tasks, unroll, zoneout
from jaxrnn.nnx import RNN
from jaxrnn.training import InputError

T, B, D, H = 5, 2, 3, 4
XS = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, D)), jnp.float32)
MASK = jaxrnn.mask_from_lengths(jnp.array([T, 3]), T)
RESETS = jnp.zeros((T, B), bool).at[2, 1].set(True)
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Own(jaxrnn.Cell):
    """h_t = tanh(x_t W + h_{t-1} U)."""

    hidden_size: int = H

    def init(self, key, input_size):
        return {
            "W": jnp.full((input_size, self.hidden_size), 0.1),
            "U": jnp.full((self.hidden_size, self.hidden_size), 0.2),
        }

    def step(self, params, carry, z):
        return jnp.tanh(z @ params["W"] + carry @ params["U"])


PARAMS = Own().init(KEY, D)


def own(**methods):
    """`Own` with other methods."""
    return dataclasses.dataclass(frozen=True)(type("Mine", (Own,), methods))()


def convolve_pictures(self, params, x):
    """Convolve inputs ``(B, Y, X, C)``."""
    kernel = jnp.ones((3, 3, x.shape[-1], H))
    numbers = ("NXYC", "XYIO", "NXYC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )


def convolve_both(self, params, carry, z):
    """Convolve a carry ``(B, Y, X, H)``."""
    kernel = params.get("kernel", jnp.ones((3, 3, H, H)))
    numbers = ("NXYC", "XYIO", "NXYC")
    return z + jax.lax.conv_general_dilated(
        carry, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )


def pictures_of_zeros(self, params, batch_shape=(), dtype=None):
    return jnp.zeros((*batch_shape, 6, 6, H))


def counting(part, of_step):
    """`Own` with another part in its carry: ``part(batch_shape)`` at first, then
    ``of_step(part)``.
    """

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return {
            "h": Own.initial_carry(self, params, batch_shape, dtype),
            "part": part(batch_shape),
        }

    def step(self, params, carry, z):
        return {
            "h": Own.step(self, params, carry["h"], z),
            "part": of_step(carry["part"]),
        }

    return own(
        initial_carry=initial_carry,
        step=step,
        output=lambda self, params, carry, x: carry["h"],
    )


def count_of(batch_shape):
    return jnp.zeros(batch_shape, jnp.int32)


COUNTER = counting(count_of, lambda n: n + 1)  # one a row
SCALAR = counting(lambda batch_shape: jnp.zeros((), jnp.int32), lambda n: n + 1)
RAW_KEY = counting(
    lambda batch_shape: jax.random.PRNGKey(0), lambda key: jax.random.split(key)[0]
)
TYPED_KEY = counting(
    lambda batch_shape: jax.random.key(0), lambda key: jax.random.split(key)[0]
)
# as long as the batch, and none of it
ONE_VECTOR = counting(lambda batch_shape: jnp.zeros(B), lambda a: a + 1)


# Parts of a carry that are no row's.


@pytest.mark.parametrize(
    "flags",
    [{"mask": MASK}, {"resets": RESETS}, {"mask": MASK, "resets": RESETS}],
    ids=", ".join,
)
@pytest.mark.parametrize(
    ("cell", "repair"),
    [
        (SCALAR, "batch_shape, .*zeros"),
        (RAW_KEY, "split"),
        (TYPED_KEY, "split"),
        (ONE_VECTOR, "batch_shape, .*zeros"),
    ],
    ids=["scalar", "raw key", "typed key", "vector"],
)
def test_a_part_without_batch_axes_cannot_be_held_by_rows(cell, repair, flags):
    words = rf"^Mine: {'.*'.join(f'{name}=' for name in flags)} holds .*part \['part'\].*in Mine.initial_carry.*{repair}"  # noqa: E501
    for engine in (None, jaxrnn.Scan(save="everything")):
        with pytest.raises(ValueError, match=words):
            unroll(cell, PARAMS, XS, engine=engine, **flags)
    with pytest.raises(ValueError, match=words):
        unroll(stack(cell), {"layer_0": PARAMS}, XS, **flags)


def test_without_flags_such_parts_are_what_they_are():
    last, _ = unroll(SCALAR, PARAMS, XS)
    assert last["part"] == T
    key = jax.random.PRNGKey(0)
    for _ in range(T):
        key = jax.random.split(key)[0]
    np.testing.assert_array_equal(unroll(RAW_KEY, PARAMS, XS)[0]["part"], key)
    np.testing.assert_array_equal(
        jax.random.key_data(unroll(TYPED_KEY, PARAMS, XS)[0]["part"]), key
    )
    each, _ = jax.vmap(lambda x, m: unroll(SCALAR, PARAMS, x, mask=m), (1, 1), (0, 1))(
        XS, MASK
    )
    np.testing.assert_array_equal(each["part"], [T, 3])


def test_parts_of_rows_are_held():
    last, _ = unroll(COUNTER, PARAMS, XS, mask=MASK, resets=RESETS)
    np.testing.assert_array_equal(last["part"], [T, 1])
    keys = counting(
        lambda batch_shape: jax.random.split(KEY, batch_shape),
        lambda keys: jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys),
    )
    last, _ = unroll(keys, PARAMS, XS, mask=MASK)
    for row, steps in enumerate((T, 3)):
        key = jax.random.split(KEY, B)[row]
        for _ in range(steps):
            key = jax.random.fold_in(key, 1)
        np.testing.assert_array_equal(
            jax.random.key_data(last["part"][row]), jax.random.key_data(key)
        )


def test_scales_of_rows_touch_floats_alone():
    scale = jnp.full((T, B), 0.5)
    for cell in (SCALAR, RAW_KEY, COUNTER):
        last, _ = jaxrnn.truncated_unroll(cell, PARAMS, XS, gradient_scale=scale)
        assert last["h"].shape == (B, H)
    decay = counting(lambda batch_shape: jnp.ones(()), lambda a: 0.9 * a)
    with pytest.raises(
        ValueError, match=r"^Mine: gradient_scale= holds .*part \['part'\]"
    ):
        jaxrnn.truncated_unroll(decay, PARAMS, XS, gradient_scale=scale)


# Zoneout and integers.


@pytest.mark.parametrize("rate", [0.3, (0.3,)])
@pytest.mark.parametrize(
    "cell",
    [COUNTER, SCALAR, RAW_KEY, TYPED_KEY],
    ids=["counter", "scalar", "raw key", "typed key"],
)
def test_zoneout_lets_integers_and_keys_go_on(cell, rate):
    layer = zoneout(cell, rate)
    right = unroll(cell, PARAMS, XS)[0]["part"]
    for last, _ in (
        unroll(layer, PARAMS, XS, key=KEY),
        unroll(jaxrnn.inference(layer), PARAMS, XS),
    ):
        assert (last["part"] == right).all()
    carry = cell.initial_carry(PARAMS, (B,))
    for x in XS:
        carry, _ = layer(PARAMS, carry, x, key=KEY)
    assert (carry["part"] == right).all()
    expected, h = jaxrnn.inference(layer), jnp.zeros((B, H))
    for x in XS:
        h = 0.3 * h + 0.7 * Own().step(PARAMS, h, x)
    np.testing.assert_allclose(unroll(expected, PARAMS, XS)[0]["h"], h, rtol=1e-5)


def test_a_rate_for_an_integer_is_refused():
    with pytest.raises(ValueError, match=r"2 rates .* Mine has 1 floating-point parts"):
        unroll(zoneout(COUNTER, (0.1, 0.2)), PARAMS, XS, key=KEY)


def test_recurrent_dropout_of_a_carry_without_h():
    def step(self, params, carry, z, *, recurrent_h=None):
        return carry

    pair = own(
        initial_carry=lambda self, params, batch_shape=(), dtype=None: (
            (jnp.zeros(batch_shape),) * 2
        ),
        step=step,
    )
    with pytest.raises(
        TypeError, match=r"recurrent_dropout: the carry of Mine is a tuple of 2.*part h"
    ):
        unroll(jaxrnn.recurrent_dropout(pair, 0.1), PARAMS, XS, key=KEY)


def test_diagnostics_refuse_integers_in_words():
    for look in (diagnostics.jacobians, diagnostics.gate_statistics):
        with pytest.raises(
            TypeError,
            match=r"carry\['part'\] is int32, through which no gradient flows",
        ):
            look(COUNTER, PARAMS, XS)


# Trees of outputs.

TREE = own(
    output=lambda self, params, carry, x: {"h": carry, "pair": (x, carry[..., :2])}
)


def test_outputs_may_be_a_tree():
    """Alone, masked, streaming, in a stack and both ways, in flax."""
    _, plain = unroll(TREE, PARAMS, XS)
    _, masked = unroll(TREE, PARAMS, XS, mask=MASK)
    alone = unroll(Own(), PARAMS, XS, mask=MASK)[1]
    np.testing.assert_allclose(masked["h"], alone, rtol=1e-6)
    np.testing.assert_array_equal(masked["pair"][0], jnp.where(MASK[..., None], XS, 0))
    layer = stack(Own(D), TREE)
    params = layer.init(KEY, D)
    _, ys = unroll(layer, params, XS, mask=MASK)
    assert jax.tree.map(jnp.shape, ys) == {
        "h": (T, B, H),
        "pair": ((T, B, D), (T, B, 2)),
    }
    carry = layer.initial_carry(params, (B,))
    for t in range(3):
        carry, y = layer(params, carry, XS[t])
        jax.tree.map(
            lambda a, b, t=t: np.testing.assert_allclose(a, b[t], rtol=1e-6), y, ys
        )
    both = jaxrnn.bidirectional(TREE)
    _, ys = unroll(both, both.init(KEY, D), XS, mask=MASK)
    np.testing.assert_allclose(ys["h"][..., :H], masked["h"], rtol=1e-6)
    rnn = RNN(TREE, D, rngs=nnx.Rngs(0))
    ys = rnn(
        jnp.swapaxes(XS, 0, 1),
        seq_lengths=jnp.array([T, 3]),
        reverse=True,
        keep_order=False,
    )
    assert jax.tree.map(jnp.shape, ys) == {
        "h": (B, T, H),
        "pair": ((B, T, D), (B, T, 2)),
    }
    assert rnn.output_size is None
    assert jax.tree.structure(plain) == jax.tree.structure(masked)


@pytest.mark.parametrize(
    "make",
    [
        lambda: stack(TREE, Own()).init(KEY, D),
        lambda: unroll(stack(TREE, Own()), {"layer_0": PARAMS, "layer_1": PARAMS}, XS),
        lambda: jaxrnn.residual(TREE).init(KEY, D),
        lambda: unroll(jaxrnn.residual(TREE), PARAMS, XS),
        lambda: jaxrnn.residual_block(TREE, D).init(KEY, D),
    ],
)
def test_what_takes_one_array_says_so(make):
    with pytest.raises(
        TypeError,
        match=r"after Mine takes one array of features.* a dict \{'h'.*last in the stack",  # noqa: E501
    ):
        make()


def test_directions_that_put_out_unlike_trees():
    layer = jaxrnn.bidirectional(TREE, Own())
    with pytest.raises(
        TypeError,
        match=r"bidirectional: .*must have the same structure, but Mine returns a dict",
    ):
        unroll(layer, layer.init(KEY, D), XS)


def test_directions_join_features_and_no_other_axis():
    bare = own(
        output=lambda self, params, carry, x: {"h": carry, "energy": carry.sum(-1)}
    )
    layer = jaxrnn.bidirectional(bare)
    params = layer.init(KEY, D)
    with pytest.raises(
        ValueError,
        match=r"bidirectional: merge='concat' .*Mine returns an output of shape "
        r"\(5, 2\) for inputs",
    ):
        unroll(layer, params, XS)
    _, ys = unroll(jaxrnn.bidirectional(bare, merge="sum"), params, XS)
    parts = [
        unroll(bare, params[name], XS, reverse=name == "backward")[1]
        for name in ("forward", "backward")
    ]
    jax.tree.map(
        lambda y, a, b: np.testing.assert_allclose(y, a + b, rtol=1e-6), ys, *parts
    )


def test_a_streaming_step_that_returns_a_pair():
    pair = own(step=lambda self, params, carry, z: (carry, carry))
    with pytest.raises(
        TypeError, match=r"where step returned \(carry, y\): it returns the carry alone"
    ):
        pair(PARAMS, jnp.zeros((B, H)), XS[0])


# Numbers among the parameters.

LEAKY = own(
    init=lambda self, key, input_size: {
        **Own.init(self, key, input_size),
        "leak": 0.25,
        "gain": np.float32(0.5),
    },
    step=lambda self, params, carry, z: (
        params["leak"] * carry + params["gain"] * Own.step(self, params, carry, z)
    ),
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_are_weak_parameters_everywhere(dtype):
    params = {
        name: leaf.astype(dtype) if hasattr(leaf, "ndim") and leaf.ndim else leaf
        for name, leaf in LEAKY.init(KEY, D).items()
    }
    xs = XS.astype(dtype)
    carry = LEAKY.initial_carry(params, (B,))
    assert carry.dtype == dtype
    streamed, ys = carry, unroll(LEAKY, params, xs, mask=MASK)[1]
    for x in xs:
        streamed, y = LEAKY(params, streamed, x)
        assert y.dtype == dtype
    last, ys = unroll(LEAKY, params, xs)
    assert last.dtype == ys.dtype == dtype
    np.testing.assert_allclose(
        last.astype("float32"),
        streamed.astype("float32"),
        rtol=1e-5 if dtype == "float32" else 0.05,
    )
    layer = stack(LEAKY, LEAKY)
    assert unroll(stack(LEAKY), {"layer_0": params}, xs)[1].dtype == dtype
    assert stack(LEAKY)({"layer_0": params}, (carry,), xs[0])[1].dtype == dtype
    assert layer.init(KEY, D)["layer_1"]["W"].shape == (H, H)
    assert jaxrnn.explain(LEAKY, params, xs, mask=MASK).rows[0].error is None
    assert unroll(zoneout(LEAKY, 0.1), params, xs, key=KEY)[1].dtype == dtype


def test_numbers_have_gradients_and_diagnostics():
    params = {**LEAKY.init(KEY, D), "gain": 0.5}
    gradient = jax.grad(lambda p: unroll(LEAKY, p, XS)[1].sum())(params)
    eps = 1e-2
    ends = [
        unroll(LEAKY, {**params, "leak": 0.25 + sign * eps}, XS)[1].sum()
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(
        gradient["leak"], (ends[0] - ends[1]) / (2 * eps), rtol=1e-2
    )
    numpy = LEAKY.init(KEY, D)
    assert diagnostics.jacobians(LEAKY, numpy, XS).shape == (T, B, H, H)
    lags = diagnostics.parameter_lags(LEAKY, params, XS, jnp.sum, terms=True)
    np.testing.assert_allclose(
        lags.terms["leak"].sum(),
        jax.grad(lambda p: unroll(LEAKY, p, XS)[1][-1].sum())(params)["leak"],
        rtol=1e-4,
    )
    assert jnp.isfinite(
        diagnostics.lyapunov_spectrum(LEAKY, numpy, XS, key=KEY).exponents
    ).all()
    rnn = RNN(LEAKY, D, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(
        rnn(jnp.swapaxes(XS, 0, 1)),
        jnp.swapaxes(unroll(LEAKY, numpy, XS)[1], 0, 1),
        rtol=1e-5,
    )


# Arrays of another library: what torch's look like from here.


class dtype:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"


class Tensor:
    def __init__(self, shape, dtype_name, requires_grad=False):
        self.shape, self.dtype, self.requires_grad = (
            shape,
            dtype(dtype_name),
            requires_grad,
        )
        self.ndim = len(shape)

    def __getitem__(self, place):
        return Tensor((1, *self.shape), self.dtype.name)


Tensor.__module__ = "torch"
FLOATS, FLAGS = Tensor((T, B, D), "float32"), Tensor((T, B), "bool")
ELMAN = Elman(H)
ELMAN_PARAMS = draw_params(ELMAN, np.random.default_rng(0))
FOREIGN = {
    "xs": lambda: unroll(Own(), PARAMS, FLOATS),
    "mask": lambda: unroll(Own(), PARAMS, XS, mask=FLAGS),
    "resets": lambda: unroll(Own(), PARAMS, XS, resets=FLAGS),
    "gradient_scale": lambda: jaxrnn.truncated_unroll(
        Own(), PARAMS, XS, gradient_scale=Tensor((T, B), "float32")
    ),
    "the carry passed in": lambda: unroll(Own(), PARAMS, XS, Tensor((B, H), "float32")),
    "params['W']": lambda: unroll(
        Own(), {**PARAMS, "W": Tensor((D, H), "float32", True)}, XS
    ),
    "lengths": lambda: jaxrnn.mask_from_lengths(Tensor((B,), "int64"), T),
    "inputs": lambda: RNN(ELMAN, D, rngs=nnx.Rngs(0))(FLOATS),
    "xs (one step)": lambda: ELMAN(
        ELMAN_PARAMS, jnp.zeros((B, H)), Tensor((B, D), "float32")
    ),
    "xs (diagnostics)": lambda: diagnostics.jacobians(Own(), PARAMS, FLOATS),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_arrays_of_torch_are_named_with_the_repair(name, plain_errors):
    with pytest.raises(TypeError) as caught:
        FOREIGN[name]()
    message, what = str(caught.value), name.partition(" (")[0]
    assert f"{what} is a torch Tensor of shape" in message
    assert "and dtype torch." in message
    assert (
        f"pass jnp.asarray({what if what != 'the carry passed in' else 'carry'}"
        in message
    )
    assert (".detach()" in message) == (what == "params['W']")
    assert len(message) < 420


def test_a_word_among_the_parameters(plain_errors):
    with pytest.raises(
        TypeError, match=r"params\['kind'\] is a str, .*make it a field of the cell"
    ):
        unroll(Own(), {**PARAMS, "kind": "tanh"}, XS)


# Methods at fault.


def conv(carry_of):
    """A convolutional recurrence over pictures (B, 4, 4, C)."""

    def step(self, params, carry, z):
        x = jnp.concatenate([z, carry], -1)
        return jax.lax.conv_general_dilated(
            x, params["K"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return own(
        init=lambda self, key, input_size: {"K": jnp.ones((3, 3, input_size + H, H))},
        initial_carry=lambda self, params, batch_shape=(), dtype=None: jnp.zeros(
            carry_of(batch_shape)
        ),
        step=step,
    )


PICTURES = jnp.ones((T, B, 4, 4, D))
CONV = conv(lambda batch_shape: (*batch_shape, 4, 4, H))
BARE = own(initial_carry=lambda self, params, batch_shape=(), dtype=None: jnp.zeros(H))


@dataclasses.dataclass(frozen=True)
class Pairing(jaxrnn.Layer):
    """A layer whose unroll returns two things."""

    def init(self, key, input_size, dtype=None):
        return {}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return ()

    def unroll(self, params, carry, xs, how):
        return carry, xs


def broadcasting(call):
    """With JAX's own promotion of ranks."""
    with jax.numpy_rank_promotion("allow"):
        return call()


CASES = {
    "step returns a pair": (
        lambda: unroll(
            own(step=lambda self, params, carry, z: (carry, carry)), PARAMS, XS
        ),
        TypeError,
        r"^Mine\.step returns a pair.*returns the carry alone.*output\(self, params, "
        r"carry, x\).*If the pair is the carry, define initial_carry",
    ),
    "step returns nothing": (
        lambda: unroll(own(step=lambda self, params, carry, z: None), PARAMS, XS),
        TypeError,
        r"^Mine: the carry that step returns is None, but this cell's carry is \(2, "
        r"4\)",
    ),
    "step returns a list": (
        lambda: unroll(own(step=lambda self, params, carry, z: [carry]), PARAMS, XS),
        TypeError,
        r"that step returns is a list of 1 \[\(2, 4\)\], but this cell's carry is \(2, "
        r"4\)",
    ),
    "initial_carry without batch axes": (
        lambda: broadcasting(lambda: unroll(BARE, PARAMS, XS)),
        ValueError,
        r"^Mine\.initial_carry: the carry has shape \(4,\), without the batch axes "
        r"\(2,\).*\(\*batch_shape, 4\)",
    ),
    "initial_carry without batch axes, step fails": (
        lambda: unroll(
            own(
                initial_carry=lambda self, params, batch_shape=(), dtype=None: (
                    jnp.zeros(H)
                ),
                step=lambda self, params, carry, z: jnp.concatenate([carry, z], -1)[
                    ..., :H
                ],
            ),
            PARAMS,
            XS,
        ),
        TypeError,
        r"^Mine\.step fails on .* carry \(4,\), z \(2, 3\): .*Mine\.initial_carry made "
        r"the carry without the batch axes \(2,\)",
    ),
    "initial_carry without batch_shape": (
        lambda: unroll(
            own(initial_carry=lambda self, params: jnp.zeros(H)), PARAMS, XS
        ),
        TypeError,
        r"^Mine\.initial_carry fails on batch_shape .*Define initial_carry\(self, "
        r"params, batch_shape=\(\), dtype=None\)",
    ),
    "params of another size": (
        lambda: unroll(Own(), PARAMS, jnp.ones((T, B, 7))),
        TypeError,
        r"^Own\.step fails on params a dict \{'U': \(4, 4\), 'W': \(3, 4\)\}, carry "
        r"\(2, 4\), z \(2, 7\): .*init\(key, input_size=7\)",
    ),
    "W @ x": (
        lambda: unroll(
            own(
                step=lambda self, params, carry, z: jnp.tanh(
                    params["W"] @ z + carry @ params["U"]
                )
            ),
            PARAMS,
            XS,
        ),
        TypeError,
        r"^Mine\.step fails on params a dict \{'U': \(4, 4\), 'W': \(3, 4\)\}, carry "
        r"\(2, 4\), z \(2, 3\): .*\. Two common causes: W @ x for x @ W .* than "
        r"\(self, params, carry, z\)",
    ),
    "W @ x in project": (
        lambda: unroll(
            own(project=lambda self, params, x: params["W"] @ x), PARAMS, XS
        ),
        TypeError,
        r"^Mine\.project fails on params .*, x \(2, 3\): .* W @ x for x @ W .*than "
        r"\(self, params, x\)",
    ),
    "a stack of convolutions without feature_ndim": (
        lambda: jaxrnn.stack(own(project=convolve_pictures), Own()).init(
            jax.random.key(0), D
        ),
        TypeError,
        r"^Mine\.project fails on params .*, x \(3,\): .* With feature_ndim = 1 an "
        r"input is a vector: for pictures \(Y, X, C\) set feature_ndim = 3 in Mine, "
        r"and define initial_carry\(",
    ),
    "a cell of pictures without initial_carry": (
        lambda: unroll(
            own(feature_ndim=3, step=convolve_both), {}, jnp.ones((T, B, 6, 6, H))
        ),
        TypeError,
        r"^Mine\.step fails on .* carry \(2, 4\), z \(2, 6, 6, 4\): .*\. Mine defines "
        r"no initial_carry, so its carry is one vector of zeros for each input: define",
    ),
    "a convolution with two batch axes": (
        lambda: unroll(
            own(feature_ndim=3, step=convolve_both, initial_carry=pictures_of_zeros),
            {},
            jnp.ones((T, B, 1, 6, 6, H)),
        ),
        TypeError,
        r"^Mine\.step fails on .*: .*\. A convolution takes one batch axis, and here "
        r"the batch axes are \(2, 1\): reshape to x\.reshape\(-1, \*x\.shape\[2:\]\)",
    ),
    "channels of another number": (
        lambda: unroll(
            own(feature_ndim=3, step=convolve_both, initial_carry=pictures_of_zeros),
            {"kernel": jnp.ones((3, 3, 7, H))},
            jnp.ones((T, B, 6, 6, H)),
        ),
        ValueError,
        r"^Mine\.step fails on .*: conv_general_dilated .* but 4 // 1 != 7\n",
    ),
    "step(params, z, carry)": (
        lambda: unroll(
            own(step=lambda self, params, z, carry: Own.step(self, params, carry, z)),
            PARAMS,
            XS,
        ),
        TypeError,
        r"^Mine\.step fails on .*carry \(2, 4\), z \(2, 3\): .*\. It runs with carry "
        r"and z swapped: write Mine\.step\(self, params, carry, z\), the carry first",
    ),
    "a NamedTuple without initial_carry": (
        lambda: unroll(
            own(
                step=lambda self, params, carry, z: carry._replace(
                    h=Own.step(self, params, carry.h, z)
                )
            ),
            PARAMS,
            XS,
        ),
        TypeError,
        r"^Mine\.step fails on .*\. Mine defines no initial_carry, so its carry is one "
        r"array of zeros, \(2, 4\): .* define initial_carry\(self, params, "
        r"batch_shape=\(\), dtype=None\) that returns them",
    ),
    "a dict without initial_carry": (
        lambda: unroll(
            own(
                step=lambda self, params, carry, z: {
                    "h": Own.step(self, params, carry["h"], z)
                }
            ),
            PARAMS,
            XS,
        ),
        TypeError,
        r"Mine defines no initial_carry, so its carry is one array of zeros",
    ),
    "step makes a NamedTuple of one array": (
        lambda: unroll(
            own(step=lambda self, params, carry, z: jaxrnn.LSTMState(carry, carry)),
            PARAMS,
            XS,
        ),
        TypeError,
        r"^Mine\.step returns LSTMState\(h \(2, 4\), c \(2, 4\)\), but the carry is "
        r"one array of zeros, \(2, 4\), because Mine defines no initial_carry",
    ),
    "params of another cell": (
        lambda: unroll(Own(), {"kernel": XS}, XS),
        TypeError,
        r"^Own\.step fails on .*KeyError\('W'\)",
    ),
    "a project of a missing attribute": (
        lambda: unroll(own(project=lambda self, params, x: x.features), PARAMS, XS),
        TypeError,
        r"^Mine\.project fails on .*, x \(2, 3\): .*features",
    ),
    "an output that fails": (
        lambda: unroll(
            own(output=lambda self, params, carry, x: params["U"] @ carry), PARAMS, XS
        ),
        TypeError,
        r"^Mine\.output fails on carry \(5, 2, 4\), x \(5, 2, 3\): .*any leading axes",
    ),
    "an output without time, masked": (
        lambda: unroll(
            own(output=lambda self, params, carry, x: {"mean": carry.mean()}),
            PARAMS,
            XS,
            mask=MASK,
        ),
        ValueError,
        r"^Mine\.output: with a mask .*\(5, 2\), but \['mean'\] has \(\)",
    ),
    "pictures": (
        lambda: unroll(CONV, CONV.init(KEY, D), PICTURES),
        (TypeError, ValueError),
        r"^Mine\.step fails on .*carry \(2, 4, 4, 4, 4, 4\), z \(2, 4, 4, 3\): .*"
        r"\(2, 4, 4\) are batch axes.*feature_ndim = 3",
    ),
    "pictures, a carry": (
        lambda: unroll(CONV, CONV.init(KEY, D), PICTURES, jnp.zeros((B, 4, 4, H))),
        ValueError,
        r"^Mine: the carry passed in has shape \(2, 4, 4, 4\), expected \(2, 4, 4, 4, "
        r"4, 4\)",
    ),
    "a stack of pictures": (
        lambda: stack(CONV, CONV).init(KEY, D),
        (TypeError, ValueError),
        r"^Mine\.step fails on .*carry \(4, 4, 4\), z \(3,\)",
    ),
    "a layer's pair": (
        lambda: unroll(Pairing(), {}, XS),
        TypeError,
        r"^Pairing\.unroll must return \(carry, ys, carries\).*a tuple of 2",
    ),
    "a cell for a task": (
        lambda: tasks.train("hello", {"cell": 4}),
        InputError,
        r"^--cell takes the name of a cell, such as lstm.*or a cell, but it is an int",
    ),
    "a class for a task": (
        lambda: tasks.train("parity", {"cell": jaxrnn.LSTM}),
        InputError,
        r"^--cell takes the name .*class LSTM",
    ),
    "a word for a number": (
        lambda: tasks.train("parity", {"hidden": "many"}),
        InputError,
        r"^--hidden must be a number",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_method_at_fault_is_named(case, plain_errors):
    call, kind, words = CASES[case]
    with pytest.raises(kind, match=words) as caught:
        call()
    message = str(caught.value)
    assert "PyTreeDef" not in message
    assert "\n" not in message
    assert len(message) < 420


class Stop(Exception):
    pass


def test_other_errors_of_a_users_own_pass(plain_errors):
    def stops(self, params, x):
        raise Stop("here")

    with pytest.raises(Stop, match="here"):
        unroll(own(project=stops), PARAMS, XS)
    wrapper = own(project=lambda self, params, x: ELMAN.project(ELMAN_PARAMS, x))
    with pytest.raises(
        ValueError, match=r"^Elman: the parameters were made for 3 input features"
    ):
        unroll(wrapper, PARAMS, jnp.ones((T, B, 7)))
