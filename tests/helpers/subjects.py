"""What the laws are about: a table of cells and layers. A new cell is one row, and
every law runs on it.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from reference import backpropagation, compiled, ends_seen_backwards, one_step

import jaxrnn
from jaxrnn import (
    GRU,
    LRU,
    LSTM,
    MLSTM,
    RGLRU,
    S5,
    SLSTM,
    DiagonalGRU,
    DiagonalLSTM,
    Elman,
    IndRNN,
    MinGRU,
    MinLSTM,
    initializers,
    layers,
)
from jaxrnn.cells import (
    CTRNN,
    GDN2,
    GLA,
    HGRN2,
    KDA,
    LTC,
    MGU,
    RTU,
    RWKV6,
    RWKV7,
    CfC,
    ConvGRU,
    ConvLSTM,
    DeltaNet,
    DeltaProduct,
    GatedDeltaNet,
    Mamba,
    Mamba2,
    Mamba3,
    MLSTMMixer,
    NonlinearRTU,
    OrthogonalRNN,
    RetNet,
)
from jaxrnn.layers.compose import Bidirectional

T, B, D = 5, 3, 3


@dataclasses.dataclass(frozen=True)
class UserCell(jaxrnn.Cell):
    """A cell as a user writes one, with init and step only: h_t = tanh(x_t W +
    h_{t-1} * u).
    """

    hidden_size: int

    def init(self, key, input_size):
        kernel, vector = jax.random.split(key)
        return {
            "kernel": jax.random.normal(kernel, (input_size, self.hidden_size)),
            "vector": jax.random.normal(vector, (self.hidden_size,)),
        }

    def step(self, params, carry, z):
        return jnp.tanh(
            z @ params["kernel"]
            + carry * jnp.broadcast_to(params["vector"], carry.shape)
        )


@dataclasses.dataclass(frozen=True)
class UserLinear(jaxrnn.LinearCell):
    """A linear cell as a user writes one, with two parts of carry and factors of
    other shapes than theirs.
    """

    hidden_size: int

    init = UserCell.init

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = super().initial_carry(params, batch_shape, dtype)
        return jaxrnn.LSTMState(zeros, zeros)

    def affine(self, params, z):
        drive = z @ params["kernel"]
        keep = jnp.tanh(params["vector"]).reshape(
            (1,) * (drive.ndim - 1) + (self.hidden_size,)
        )
        return jaxrnn.LSTMState(keep, jax.nn.sigmoid(drive)), jaxrnn.LSTMState(
            drive, jnp.sin(drive)
        )

    def output(self, params, carry, x):
        return carry.h * jnp.cos(carry.c)


ALL_OPTIONS = {
    "layer_norm": True,
    "peephole": True,
    "coupled_gates": True,
    "projection_size": 2,
}
CELLS = {
    "elman": Elman(4),
    "irnn": Elman(4, activation=jax.nn.relu, recurrent_init=initializers.Identity()),
    "lstm": LSTM(4),
    "lstm_peephole": LSTM(4, peephole=True),
    "lstm_layer_norm": LSTM(4, layer_norm=True),
    "lstm_coupled": LSTM(4, coupled_gates=True),
    "lstm_projected": LSTM(4, projection_size=2),
    "lstm_all": LSTM(4, **ALL_OPTIONS),
    "gru": GRU(4),
    "gru_layer_norm": GRU(4, layer_norm=True),
    "gru_before": GRU(4, reset_after=False),
    "gru_before_layer_norm": GRU(4, reset_after=False, layer_norm=True),
    "mlstm": MLSTM(4, num_heads=2, key_size=3),
    "delta_net": DeltaNet(4, num_heads=2, conv=2),
    "gated_delta_net": GatedDeltaNet(4, num_heads=2, num_key_heads=1, conv=None),
    "delta_product": DeltaProduct(4, num_heads=2, key_size=3, conv=2),
    "kda": KDA(4, num_heads=2, key_size=3, conv=None),
    "gdn2": GDN2(4, num_heads=2, num_key_heads=1, conv=2),
    "mamba": Mamba(4, state_size=2, rank=2, conv=2),
    "mamba2": Mamba2(4, num_heads=2, key_size=3, conv=2),
    "mamba3": Mamba3(4, num_heads=1),
    "gla": GLA(4, num_heads=2, key_size=3, gate_rank=2),
    "retnet": RetNet(4, num_heads=2),
    "hgrn2": HGRN2(4, num_heads=2, key_size=3, lower_bound=0.2),
    "rwkv6": RWKV6(4, num_heads=2, mix_rank=2, decay_rank=2),
    "rwkv7": RWKV7(4, num_heads=2, decay_rank=2, rate_rank=2, gate_rank=2),
    "mlstm_mixer": MLSTMMixer(4, num_heads=2, block_size=2, conv=2),
    "mgu": MGU(4),
    "ctrnn": CTRNN(4, dt=2.0, tau=(3.0, 5.0, 7.0, 20.0), activation=jnp.tanh),
    "ctrnn_dale": CTRNN(4, tau=3.0, learned_tau=True, dale=0.7, autapses=False),
    "orthogonal": OrthogonalRNN(4),
    "orthogonal_tanh": OrthogonalRNN(3, negative=0.3, modrelu=False),
    "nonlinear_rtu": NonlinearRTU(3, activation=jnp.tanh),
    "conv_lstm": ConvLSTM(2, spatial_shape=(3, 2), kernel_size=(3, 2), peephole=True),
    "conv_gru": ConvGRU(2, spatial_shape=(3,), kernel_size=2),
    "ltc": LTC(3, unfolds=2),
    "cfc": CfC(3, backbone_size=5),
    "cfc_no_gate": CfC(3, backbone_size=None, mode="no_gate"),
    "cfc_pure": CfC(3, backbone_size=2, mode="pure"),
    "indrnn": IndRNN(4),
    "diagonal_gru": DiagonalGRU(4),
    "diagonal_lstm": DiagonalLSTM(4),
}
LINEAR = {
    "min_gru": MinGRU(4),
    "min_gru_positive": MinGRU(4, positive=True),
    "min_lstm": MinLSTM(4),
    "min_lstm_plain": MinLSTM(4, normalized=False, positive=True),
    "rg_lru": RGLRU(D),
    "lru": LRU(4),
    "s5": S5(4),
    "rtu": RTU(4),
    "user_linear": UserLinear(4),
}
CELLS |= {
    name: cell
    for name, cell in LINEAR.items()
    if hasattr(cell, "learned_initial_carry") and not isinstance(cell, (LRU, S5, RTU))
}
LEARNED = {
    f"{name}_learned": dataclasses.replace(cell, learned_initial_carry=True)
    for name, cell in CELLS.items()
}
LAYERS = {
    "stack": jaxrnn.stack(LSTM(4, learned_initial_carry=True), GRU(2)),
    "stack_dropout": jaxrnn.inference(
        jaxrnn.stack(Elman(4), jaxrnn.dropout(0.5), LSTM(2))
    ),
    "residual": jaxrnn.residual(GRU(D)),
    "recurrent_dropout": jaxrnn.inference(jaxrnn.recurrent_dropout(LSTM(4), 0.3)),
    "zoneout": jaxrnn.inference(jaxrnn.zoneout(LSTM(4), (0.2, 0.1))),
    "state_noise": jaxrnn.inference(jaxrnn.layers.state_noise(GRU(4), 0.1)),
    "block": jaxrnn.stack(
        jaxrnn.residual_block(RGLRU(4), 4), jaxrnn.residual_block(MinGRU(3), 4)
    ),
    "bidirectional": jaxrnn.bidirectional(LSTM(2), GRU(3, learned_initial_carry=True)),
    "causal_conv": layers.causal_conv(3, jnp.tanh),
    "shift": layers.shift(D),
    "small_layers": jaxrnn.stack(
        layers.dense(4, jnp.tanh),
        layers.layer_norm(),
        layers.concat(layers.shift(4)),
        layers.rms_norm(),
        layers.apply(jnp.sin),
        layers.multiply(GRU(2), layers.dense(2, jax.nn.sigmoid, use_bias=False)),
    ),
    "shared": layers.share(
        jaxrnn.stack(
            layers.tied("core", GRU(D)),
            jaxrnn.stack(IndRNN(D), layers.tied("core", GRU(D))),
        )
    ),
}
PLAIN = {
    **CELLS,
    **LINEAR,
    "slstm": SLSTM(4, num_heads=2),
    "user": UserCell(4),
    **LAYERS,
}
SUBJECTS = PLAIN | LEARNED
CAUSAL = [name for name in PLAIN if name != "bidirectional"]
# for laws that the cell hardly touches
FEW = [
    "elman",
    "lstm_all_learned",
    "gru_learned",
    "user",
    "stack",
    "zoneout",
]


class Outcome(NamedTuple):
    """Everything that an unroll gives."""

    values: tuple  # the last carry, and the outputs
    gradients: tuple  # with respect to params, xs and the first carry
    carries: object = None  # after every step, if asked for


class Inputs(NamedTuple):
    """Random everything; the cotangents are those of the last carry and of the
    outputs. The mask has holes.
    """

    params: dict
    xs: jax.Array
    carry: object
    cotangents: tuple
    mask: jax.Array
    resets: jax.Array


ALWAYS, NEVER = np.ones((T, B), bool), np.zeros((T, B), bool)


def normal(random, tree, scale=1.0):
    """Normal numbers in the shapes and dtypes of ``tree``."""

    def leaf(like):
        numbers = random.normal(size=like.shape)
        if jnp.issubdtype(like.dtype, jnp.complexfloating):
            numbers = numbers + 1j * random.normal(size=like.shape)
        return jnp.asarray(scale * numbers, like.dtype)

    return jax.tree.map(leaf, tree)


def possible(carry):
    """``carry``, the normaliser of an sLSTM made positive, as a sum of exponentials
    is.
    """

    def is_slstm(node):
        return isinstance(node, jaxrnn.SLSTMState)

    return jax.tree.map(
        lambda s: s._replace(n=0.5 + jnp.abs(s.n)) if is_slstm(s) else s,
        carry,
        is_leaf=is_slstm,
    )


@functools.cache
def shapes_of_params(layer, dtype, features=D):
    return jax.eval_shape(lambda key: layer.init(key, features), jax.random.key(0))


def drawn_params(layer, features=D, seed=0):
    """Parameters for a test that does not ask how they begin."""
    return draw_params(layer, np.random.default_rng(seed), features)


def draw_params(layer, random, features=D):
    """Random numbers with the shapes and dtypes of ``init``, which compiles slowly;
    no bias, norm or peephole is 0 or 1.
    """

    def leaf(path, like):
        name = str(getattr(path[-1], "key", path[-1]))
        identity = (
            name == "recurrent_kernel"
            and getattr(layer, "recurrent_init", None) == initializers.Identity()
        )
        middle = np.eye(*like.shape) if identity else float(name.endswith("norm_scale"))
        return jnp.asarray(middle + 0.5 * random.normal(size=like.shape), like.dtype)

    return jax.tree_util.tree_map_with_path(
        leaf, shapes_of_params(layer, str(jnp.result_type(float)), features)
    )


def spatial_axes(layer):
    """The axes of an input before its channels: those of a picture, or none."""
    return getattr(layer, "spatial_shape", ())


def draw(layer, seed, steps=T, batch=(B,)):
    """Random inputs of every kind, for a layer or the name of one. Dtypes follow
    jax_enable_x64.
    """
    layer = SUBJECTS[layer] if isinstance(layer, str) else layer
    random = np.random.default_rng(seed)
    params = draw_params(layer, random)
    shape = (steps, *batch, *spatial_axes(layer), D)
    xs = normal(random, jax.ShapeDtypeStruct(shape, jnp.result_type(float)))
    shapes = shapes_of_unroll(layer, shape, batch, str(xs.dtype))
    carry = possible(normal(random, shapes[0], 0.5))
    mask, resets = (
        jnp.asarray(random.random((steps, *batch)) < share) for share in (0.6, 0.3)
    )
    return Inputs(params, xs, carry, normal(random, shapes), mask, resets)


@functools.cache
def shapes_of_unroll(layer, shape, batch, dtype):
    """The last carry and the outputs, traced once however many inputs are drawn."""
    return jax.eval_shape(
        lambda p, xs: jaxrnn.unroll(layer, p, xs, layer.initial_carry(p, batch)),
        shapes_of_params(layer, dtype),
        jax.ShapeDtypeStruct(shape, dtype),
    )


def outcome(function, params, xs, carry, cotangents, *rest):
    """Values and gradients of ``function(params, xs, carry, *rest) -> (carry, ys)``
    or ``(carry, ys, carries)``.
    """

    def split(*inputs):
        last, ys, *carries = function(*inputs, *rest)
        return (last, ys), carries

    values, pullback, carries = jax.vjp(split, params, xs, carry, has_aux=True)
    return Outcome(values, pullback(cotangents), *carries)


def compiled_outcome(function):
    """`outcome` of a function, compiled: takes params, xs, carry, cotangents and the
    rest.
    """
    return compiled(functools.partial(outcome, function))


@functools.cache
def unrolled(name, reverse=False):
    """`outcome` of ``jaxrnn.unroll``, compiled once for all laws: takes `Inputs`."""
    layer = SUBJECTS[name]

    def run(params, xs, carry, mask, resets):
        return jaxrnn.unroll(
            layer,
            params,
            xs,
            carry,
            mask=mask,
            resets=resets,
            reverse=reverse,
            return_carries=True,
        )

    return compiled_outcome(run)


@functools.cache
def stepped(layer):
    """`outcome` of one streaming step of a layer, compiled: (params, x, carry,
    cotangents, keep, reset).
    """
    return compiled_outcome(functools.partial(one_step, layer))


def looped(name, inputs, reverse=False, window=None):
    """`outcome` of an unroll as loops in Python, forwards and backwards, and the
    carries after every step.
    """
    layer = SUBJECTS[name] if isinstance(name, str) else name
    if not isinstance(layer, Bidirectional):
        return Outcome(
            *backpropagation(stepped(layer), *inputs, reverse=reverse, window=window)
        )
    params, xs, carry, (carry_cotangent, y_cotangent), mask, resets = inputs
    first = jax.eval_shape(layer.forward, params["forward"], carry.forward, xs[0])[
        1
    ].shape[-1]
    values, gradients, carries = zip(
        *(
            backpropagation(
                stepped(getattr(layer, part)),
                params[part],
                xs,
                getattr(carry, part),
                (getattr(carry_cotangent, part), y_part),
                mask,
                resets if part == "forward" else ends_seen_backwards(resets, reverse),
                reverse=reverse != (part == "backward"),
                window=window,
            )
            for part, y_part in (
                ("forward", y_cotangent[..., :first]),
                ("backward", y_cotangent[..., first:]),
            )
        )
    )
    both, (forward_gradient, backward_gradient) = jaxrnn.BidirectionalCarry, gradients
    return Outcome(
        (
            both(*(value[0] for value in values)),
            np.concatenate([value[1] for value in values], -1),
        ),
        (
            {"forward": forward_gradient[0], "backward": backward_gradient[0]},
            forward_gradient[1] + backward_gradient[1],
            both(forward_gradient[2], backward_gradient[2]),
        ),
        both(*carries),
    )


def assert_same(actual, expected, tolerance=1e-12):
    """Equal structure, and every number within ``tolerance`` of the largest one in
    the tree.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    scale = max(
        [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected) if leaf.size],
        default=0.0,
    )
    for (path, a), b in zip(
        jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        assert a.shape == b.shape, (path, a.shape, b.shape)
        assert a.dtype == b.dtype, (path, a.dtype, b.dtype)
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
        )


def assert_same_outcome(actual, expected, forward=1e-12, backward=1e-12):
    """Values within ``forward``, gradients within ``backward``; carries too, where
    both have them.
    """
    assert_same(actual.values, expected.values, forward)
    assert_same(actual.gradients, expected.gradients, backward)
    if actual.carries is not None and expected.carries is not None:
        assert_same(actual.carries, expected.carries, forward)
