"""The engine `CuDNN`: its weights, its masks and its refusals on a CPU, where a twin of
the same methods stands for cuDNN; what it lowers to for CUDA, cuDNN's sizes being
stubbed; and, marked gpu, cuDNN itself.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn
from reference import compiled
from subjects import (
    assert_same,
    assert_same_outcome,
    compiled_outcome,
    draw,
    draw_params,
    drawn_params,
    normal,
)

import jaxrnn
from jaxrnn import LSTM, CuDNN, LSTMState, Scan
from jaxrnn.engines.cudnn import primitives
from jaxrnn.engines.cudnn.weights import pack_lstm, unpack_lstm, weight_count

T, B, D, H = 6, 4, 3, 5


@dataclasses.dataclass(frozen=True)
class Reference(primitives.Library):
    """cuDNN as ``jax.experimental.rnn.lstm_ref`` has it, on any platform, in float64.
    What cuDNN leaves open is NaN here: outputs behind a sequence's end, and the
    gradients of inputs there.
    """

    dtype: str = "float64"

    def check_here(self):
        pass

    def check_platform(self, platform):
        pass

    def call(self, network, lengths, x, h, c, weights):
        sizes = [network.input_size, network.hidden_size, network.num_layers]
        unpacked = rnn.unpack_lstm_weights(weights, *sizes, network.bidirectional)
        return rnn.lstm_ref(
            x, h, c, *unpacked, lengths, *sizes, 0.0, network.bidirectional
        )

    def reserve_size(self, network, *inputs):
        return 7

    def forward(self, network, x, h, c, weights, lengths):
        assert lengths.dtype == jnp.int32
        y, h, c = self.call(network, lengths, x, h, c, weights)
        return self.spoil(y, lengths), h, c, jnp.full(7, 0.5, x.dtype)

    def backward(self, network, known, cotangents):
        x, h, c, weights, lengths, _, reserve = known
        assert reserve.shape == (7,)
        dx, *others = jax.vjp(
            functools.partial(self.call, network, lengths), x, h, c, weights
        )[1](tuple(cotangents))
        return self.spoil(dx, lengths), *others

    def spoil(self, values, lengths):
        inside = jnp.arange(values.shape[1], dtype=jnp.int32)[None] < lengths[:, None]
        return jnp.where(inside[..., None], values, jnp.nan)


class Twin(CuDNN):
    library = Reference()


def run(layer, engine, reverse=False, **more):
    """`outcome` of an unroll, compiled: (params, xs, carry, cotangents, mask)."""

    def run(params, xs, carry, mask):
        return jaxrnn.unroll(
            layer, params, xs, carry, engine=engine, mask=mask, reverse=reverse, **more
        )

    return compiled_outcome(run)


def masks(steps, batch, seed=0):
    """By name: none, padding at the end with an empty sequence and a whole one,
    holes anywhere.
    """
    random = np.random.default_rng(seed)
    lengths = jnp.asarray(
        np.concatenate([[0, steps], random.integers(0, steps + 1, batch - 2)])
    )
    holes = jnp.asarray(random.random((steps, batch)) < 0.5)
    return {
        "none": None,
        "lengths": jaxrnn.mask_from_lengths(lengths, steps),
        "holes": holes,
    }


LAYERS = {
    "lstm": LSTM(H),
    "learned": LSTM(H, learned_initial_carry=True),
    "deep": jaxrnn.stack(
        jaxrnn.bidirectional(LSTM(H), LSTM(2)), jaxrnn.residual(LSTM(H + 2))
    ),
}
ROWS = [
    ("lstm", mask, reverse)
    for mask in ("none", "lengths", "holes")
    for reverse in (False, True)
]


# --------------------------------------------------------------------------------------
# weights


@pytest.mark.parametrize(
    ("num_layers", "both"), [(1, False), (1, True), (3, False), (2, True)]
)
def test_weights_are_read_as_jax_reads_them_and_come_back(num_layers, both, x64):
    """And the network that ``lstm_ref`` makes of them is ours, over ragged batches."""
    one = jaxrnn.bidirectional(LSTM(H)) if both else LSTM(H)
    layer = one if num_layers == 1 else jaxrnn.stack(*[one] * num_layers)
    params = draw_params(layer, np.random.default_rng(0))
    flat = pack_lstm(params)
    assert flat.shape == (weight_count(D, H, num_layers, both),)
    assert flat.size == rnn.get_num_params_in_lstm(D, H, num_layers, both)
    back = unpack_lstm(flat, D, H, num_layers, both)
    assert_same(back, params, 0)
    W, U, b, also = rnn.unpack_lstm_weights(flat, D, H, num_layers, both)
    first = params if num_layers == 1 else params["layer_0"]
    first = first["forward"] if both else first
    assert_same(
        (W[0].T, U[0].T, b[0] + also[0]),
        (first["input_kernel"], first["recurrent_kernel"], first["bias"]),
        0,
    )

    random = np.random.default_rng(1)
    xs = normal(random, jax.ShapeDtypeStruct((T, B, D), jnp.float64))
    carry = normal(
        random, jax.eval_shape(lambda p: layer.initial_carry(p, (B,)), params)
    )
    lengths = jnp.array([T, 1, 3, 2], jnp.int32)
    states = jax.tree.leaves(carry, is_leaf=lambda node: isinstance(node, LSTMState))
    h, c = (jnp.stack([getattr(state, part) for state in states]) for part in "hc")
    y, *last = rnn.lstm_ref(
        jnp.swapaxes(xs, 0, 1),
        h,
        c,
        W,
        U,
        b,
        also,
        lengths,
        D,
        H,
        num_layers,
        0.0,
        both,
    )
    found, ys = jaxrnn.unroll(
        layer, params, xs, carry, mask=jaxrnn.mask_from_lengths(lengths, T)
    )
    assert_same(ys, jnp.swapaxes(y, 0, 1))
    states = jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, LSTMState))
    assert_same(
        [jnp.stack([getattr(state, part) for state in states]) for part in "hc"], last
    )


def test_both_of_cudnns_biases_count():
    flat = normal(
        np.random.default_rng(0),
        jax.ShapeDtypeStruct((weight_count(D, H),), jnp.float32),
    )
    _, _, b, also = rnn.unpack_lstm_weights(flat, D, H, 1, False)
    assert_same(unpack_lstm(flat, D, H)["bias"], b[0] + also[0], 1e-7)


def test_what_is_not_cudnns_network_is_refused(plain_errors):
    def params_of(layer):
        return jax.eval_shape(lambda: layer.init(jax.random.key(0), D))

    for layer in (
        jaxrnn.GRU(H),
        LSTM(H, peephole=True),
        jaxrnn.bidirectional(jaxrnn.stack(LSTM(H))),
    ):
        with pytest.raises(
            TypeError, match=r"pack_lstm: params.* are not an LSTM's .* but a dict of"
        ):
            pack_lstm(params_of(layer))
    with pytest.raises(
        ValueError, match="some layers are bidirectional and some are not"
    ):
        pack_lstm(params_of(jaxrnn.stack(jaxrnn.bidirectional(LSTM(H)), LSTM(H))))
    for layer in (jaxrnn.stack(LSTM(H), LSTM(H + 1)), LSTM(H, coupled_gates=True)):
        with pytest.raises(
            ValueError,
            match=r"pack_lstm: .*_kernel has shape .* one number of units, 5 here",
        ):
            pack_lstm(params_of(layer))
    with pytest.raises(
        ValueError,
        match=r"unpack_lstm: 1 layer\(s\) of 5 units .* have \(200,\) weights, but got \(199,\)",  # noqa: E501
    ):
        unpack_lstm(jnp.zeros(199), D, H)
    with pytest.raises(ValueError, match="num_layers must be an int from 1"):
        unpack_lstm(jnp.zeros(9), D, H, 0)


# --------------------------------------------------------------------------------------
# numerics


@pytest.mark.parametrize(
    ("name", "mask", "reverse"),
    [*ROWS, ("learned", "holes", False), ("deep", "holes", False)],
)
def test_it_runs_as_scan_does(name, mask, reverse, x64):
    """Values and gradients, whatever the mask; and the reference's NaN, where cuDNN
    promises nothing, never comes through.
    """
    layer, given = LAYERS[name], draw(LAYERS[name], 1, T, (B,))
    inputs = (*given[:4], masks(T, B)[mask])
    assert_same_outcome(
        run(layer, Twin(), reverse)(*inputs), run(layer, Scan(), reverse)(*inputs)
    )


PAIR = jaxrnn.bidirectional(LSTM(H))
NETWORKS = {
    "stack": jaxrnn.stack(LSTM(H), LSTM(H, learned_initial_carry=True), LSTM(H)),
    "pair": PAIR,
    "pairs": jaxrnn.stack(PAIR, PAIR),
}


def calls_of(layer, xs, **more):
    params = jax.eval_shape(
        lambda: layer.init(jax.random.key(0), xs.shape[-1], dtype=xs.dtype)
    )
    run = jaxrnn.unroll if "window" not in more else jaxrnn.truncated_unroll
    return str(
        jax.make_jaxpr(lambda p: run(layer, p, xs, engine=Twin(), **more))(params)
    ).count("= jaxrnn_cudnn[")


@pytest.mark.parametrize(
    ("name", "mask", "reverse"),
    [
        ("stack", "holes", True),
        ("stack", "none", False),
        ("pair", "lengths", False),
        ("pairs", "none", True),
        ("pairs", "holes", True),
    ],
)
def test_a_network_is_one_call(name, mask, reverse, x64):
    layer, given = NETWORKS[name], draw(NETWORKS[name], 1, T, (2, 2))
    assert calls_of(layer, given.xs) == 1
    flags = masks(T, 4)[mask]
    inputs = (*given[:4], None if flags is None else flags.reshape(T, 2, 2))
    assert_same_outcome(
        run(layer, Twin(), reverse)(*inputs), run(layer, Scan(), reverse)(*inputs)
    )


def test_what_is_no_network_is_a_call_each(x64):
    """Sizes apart, directions mixed or summed, something in between, windows; and
    without steps nothing is called.
    """
    stack, xs = jaxrnn.stack, jnp.ones((T, B, H))
    quiet = jaxrnn.inference(stack(LSTM(H), jaxrnn.dropout(0.1), LSTM(H)))
    for layer in (
        stack(LSTM(H), LSTM(4)),
        quiet,
        jaxrnn.bidirectional(LSTM(H), merge="sum"),
        stack(PAIR, LSTM(H)),
    ):
        assert calls_of(layer, xs) == 2
    assert (
        calls_of(stack(PAIR, jaxrnn.residual(stack(LSTM(2 * H), LSTM(2 * H)))), xs) == 2
    )
    assert calls_of(NETWORKS["stack"], xs, window=T) == 1
    assert calls_of(NETWORKS["stack"], xs, window=T // 2) == 3
    assert calls_of(NETWORKS["stack"], xs[:0]) == 0
    with pytest.raises(ValueError, match="it has no resets"):
        calls_of(NETWORKS["stack"], xs, resets=jnp.ones((T, B), bool))
    with pytest.raises(ValueError, match="knows the whole carry at their ends only"):
        calls_of(NETWORKS["stack"], xs, return_carries=True)
    with pytest.raises(TypeError, match="GRU is another recurrence"):
        calls_of(stack(LSTM(H), jaxrnn.GRU(H)), xs)


def test_any_batch_axes(x64):
    for batch in ((), (2, 3)):
        inputs = (
            *draw(LSTM(H), 2, T, batch)[:4],
            np.random.default_rng(0).random((T, *batch)) < 0.6,
        )
        assert_same_outcome(
            run(LSTM(H), Twin())(*inputs), run(LSTM(H), Scan())(*inputs)
        )


def test_no_steps_and_no_sequences(x64):
    cell = LSTM(H)
    params = draw_params(cell, np.random.default_rng(0))
    carry = LSTMState(*jnp.arange(2.0 * B * H).reshape(2, B, H))
    last, ys = jaxrnn.unroll(cell, params, jnp.zeros((0, B, D)), carry, engine=Twin())
    assert_same(last, carry, 0)
    assert ys.shape == (0, B, H)
    assert jaxrnn.unroll(cell, params, jnp.zeros((T, 0, D)), engine=Twin())[
        1
    ].shape == (T, 0, H)


def test_padding_of_nan_and_a_carry_of_nan_without_steps(x64):
    """Of an empty sequence the carry comes back, and nothing of it, not even NaN,
    touches a gradient of the weights.
    """
    params, xs, carry, cotangents, _, _ = draw(LSTM(H), 3, T, (B,))
    mask = masks(T, B)["lengths"]
    xs = jnp.where(mask[..., None], xs, jnp.nan)
    carry = LSTMState(*(leaf.at[0].set(jnp.nan) for leaf in carry))
    found, expected = (
        run(LSTM(H), engine)(params, xs, carry, cotangents, mask)
        for engine in (Twin(), Scan())
    )
    np.testing.assert_array_equal(found.values[0].c[0], carry.c[0])
    for tree in (found.gradients, found.values[1]):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
    assert_same(found.gradients[1], expected.gradients[1])
    assert not found.gradients[1][:, 0].any()


@pytest.mark.parametrize("reverse", [False, True])
def test_windows_cut_gradients(reverse, x64):
    given = draw(LSTM(H), 4, T, (B,))
    mask = masks(T, B)["holes"]

    def run(engine, params, xs, carry):
        return jaxrnn.truncated_unroll(
            LSTM(H),
            params,
            xs,
            carry,
            window=4,
            engine=engine,
            mask=mask,
            reverse=reverse,
        )

    found, expected = (
        compiled_outcome(functools.partial(run, engine))(*given[:4])
        for engine in (Twin(), Scan())
    )
    assert_same_outcome(found, expected)


@pytest.mark.parametrize("mapped", ["hm", ""])
def test_vmap_joins_the_batch(mapped, x64):
    """The gradient of a vmap, of inputs, carry and mask or of some of them: the
    numbers of the batch.
    """
    params, xs, carry, (d_last, d_ys), _, _ = draw(LSTM(H), 5, T, (B,))
    mask = jnp.asarray(masks(T, B)["holes"])

    def loss(engine):
        def one(x, h, m, params):
            return jaxrnn.unroll(
                LSTM(H),
                params,
                x,
                LSTMState(h, jnp.ones_like(h)),
                mask=m,
                engine=engine,
            )

        def total(params, xs, h, mask):
            h_axis, mask_axis = (
                (0 if "h" in mapped else None),
                (1 if "m" in mapped else None),
            )
            run = jax.vmap(one, (1, h_axis, mask_axis, None), (0, 1))
            last, ys = run(
                xs,
                h if "h" in mapped else h[0],
                mask if "m" in mapped else mask[:, 0],
                params,
            )
            return (
                jnp.vdot(ys, d_ys)
                + jnp.vdot(last.h, d_last.h)
                + jnp.vdot(last.c, d_last.c)
            )

        return compiled(jax.value_and_grad(total, (0, 1, 2)))(params, xs, carry.h, mask)

    assert_same(loss(Twin()), loss(Scan()))


def test_vmap_of_vmap_is_one_call(x64):
    params = draw(LSTM(H), 5, T, (B,)).params
    twice = jax.vmap(
        jax.vmap(lambda x: jaxrnn.unroll(LSTM(H), params, x, engine=Twin())[1], 1, 1),
        2,
        2,
    )
    xs = normal(
        np.random.default_rng(6), jax.ShapeDtypeStruct((T, 2, 3, D), jnp.float64)
    )
    expected = compiled(lambda p, x: jaxrnn.unroll(LSTM(H), p, x)[1])(params, xs)
    assert_same(compiled(twice)(xs), expected)
    calls = str(jax.make_jaxpr(twice)(xs)).count("= jaxrnn_cudnn[")
    assert calls == 1


def test_remat_and_loops(x64):
    """Under ``jax.checkpoint`` and inside ``lax.scan`` the derivative is the same."""
    params, xs, *_ = draw(LSTM(H), 7, T, (B,))

    def loss(engine, wrap, params):
        def body(total, x):
            return total + (
                jaxrnn.unroll(LSTM(H), params, x, engine=engine)[1] ** 2
            ).sum(), None

        return jax.lax.scan(wrap(body), jnp.zeros(()), jnp.stack([xs, xs[::-1]]))[0]

    expected = compiled(jax.grad(functools.partial(loss, Scan(), lambda f: f)))(params)
    for wrap in (jax.checkpoint, lambda f: f):
        assert_same(
            compiled(jax.grad(functools.partial(loss, Twin(), wrap)))(params), expected
        )


# --------------------------------------------------------------------------------------
# refusals


def attempt(cell=None, dtype=jnp.float32, engine=None, **more):
    cell = LSTM(H) if cell is None else cell
    params = cell.init(jax.random.key(0), D, dtype=dtype)
    return jaxrnn.unroll(
        cell,
        params,
        jnp.ones((T, B, D), dtype),
        engine=CuDNN() if engine is None else engine,
        **more,
    )


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (
            TypeError,
            r"CuDNN: it has an LSTM, but GRU is another .*Scan\(\), or the cell",
            lambda: attempt(jaxrnn.GRU(H)),
        ),
        (
            TypeError,
            r"no peephole=True, projection_size=2",
            lambda: attempt(LSTM(H, peephole=True, projection_size=2)),
        ),
        (
            TypeError,
            r"no layer_norm=True, coupled",
            lambda: attempt(LSTM(H, layer_norm=True, coupled_gates=True)),
        ),
        (
            TypeError,
            r"around LSTM is another",
            lambda: attempt(jaxrnn.inference(jaxrnn.zoneout(LSTM(H), 0.1))),
        ),
        (
            TypeError,
            r"params\['bias'\] is bfloat16, .*\.astype\('float32'\)",
            lambda: attempt(dtype=jnp.bfloat16),
        ),
        (
            ValueError,
            r"CuDNN: it has no resets: .*Scan",
            lambda: attempt(resets=jnp.ones((T, B), bool)),
        ),
        (
            ValueError,
            r"needs an NVIDIA GPU with cuDNN, lowering for cpu: use "
            r"engine=jaxrnn.Scan\(\)",
            attempt,
        ),
        (
            ValueError,
            r"knows the whole carry at their ends only",
            lambda: attempt(engine=Twin32(), return_carries=True),
        ),
        (
            ValueError,
            r"precision is 'bfloat16', .*'highest'.* 'high'",
            lambda: CuDNN("bfloat16"),
        ),
        (ValueError, r"precision is \['high'\]", lambda: CuDNN(["high"])),
        (
            ValueError,
            r"precision is .*DEFAULT.* has two",
            lambda: CuDNN(jax.lax.Precision.DEFAULT),
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(error, words, call, plain_errors):
    with pytest.raises(error, match=words):
        call()


class Twin32(Twin):
    library = Reference("float32")


def test_scaled_gradients_are_refused(plain_errors):
    params = drawn_params(LSTM(H), D)
    with pytest.raises(TypeError, match=r"gradient_scale .*window=, which CuDNN takes"):
        jaxrnn.truncated_unroll(
            LSTM(H),
            params,
            jnp.ones((T, D)),
            gradient_scale=jnp.ones(T),
            engine=CuDNN(),
        )


def test_modes_that_it_has_not():
    params = drawn_params(LSTM(H), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))

    def loss(params, xs=xs):
        return (jaxrnn.unroll(LSTM(H), params, xs, engine=Twin32())[1] ** 2).sum()

    with pytest.raises(
        ValueError,
        match=r"CuDNN: forward mode .*reverse mode only: use engine=jaxrnn.Scan",
    ):
        jax.jvp(loss, (params,), (params,))
    with pytest.raises(ValueError, match=r"CuDNN: second derivatives: .*Scan"):
        jax.grad(lambda p: jax.grad(loss)(p)["bias"].sum())(params)
    with pytest.raises(
        ValueError, match=r"CuDNN: forward mode .*of a gradient too.*Scan"
    ):
        jax.jvp(jax.grad(loss), (params,), (params,))
    with pytest.raises(
        ValueError,
        match=r"vmap of a gradient .*take the gradient of the vmapped loss, or .*Scan",
    ):
        jax.vmap(jax.grad(loss), (None, 1))(params, xs)
    with pytest.raises(ValueError, match="vmap of a gradient"):
        jax.jacrev(lambda p: jaxrnn.unroll(LSTM(H), p, xs, engine=Twin32())[0].h)(
            params
        )
    with pytest.raises(ValueError, match=r"vmap over parameters: .*Scan.*lax.map"):
        jax.vmap(loss)(jax.tree.map(lambda a: jnp.stack([a, a]), params))


def test_arrays_that_only_jaxs_loop_runs():
    params = drawn_params(LSTM(H), D)
    xs = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t, 3"), jnp.float32)
    with pytest.raises(ValueError, match=r"CuDNN: sizes are symbolic .*Scan"):
        jax.export.export(
            jax.jit(lambda xs: jaxrnn.unroll(LSTM(H), params, xs, engine=CuDNN())[1])
        )(xs)


def test_a_jax_that_calls_it_in_another_way(monkeypatch):
    monkeypatch.setattr(rnn, "lstm_fwd", lambda x, weights: None)
    with pytest.raises(
        ValueError,
        match=rf"lstm_fwd of jax {jax.__version__} is missing, or takes other .*Scan",
    ):
        attempt(LSTM(H + 1))
    monkeypatch.delattr(rnn, "lstm_fwd")
    with pytest.raises(ValueError, match="is missing"):
        attempt(LSTM(H + 1))
    monkeypatch.setitem(__import__("sys").modules, "jax.experimental.rnn", None)
    monkeypatch.delattr(jax.experimental, "rnn")
    with pytest.raises(ValueError, match=r"has no jax.experimental.rnn .*Scan"):
        attempt(LSTM(H + 1))


@pytest.mark.parametrize(
    ("given", "default", "tf32"),
    [
        (None, None, True),
        (None, "highest", False),
        (None, "tensorfloat32", True),
        (None, "F32_F32_F32", False),
        ("highest", None, False),
        ("high", "highest", True),
        (jax.lax.Precision.HIGHEST, None, False),
        (jax.lax.Precision.HIGH, None, True),
    ],
)
def test_precision_is_handed_on(given, default, tf32):
    """As ``jax.experimental.rnn`` will read it, and compiled anew when jax's default
    changes.
    """
    params = jax.eval_shape(lambda: LSTM(H).init(jax.random.key(0), D))
    xs = jax.ShapeDtypeStruct((T, B, D), jnp.float32)
    with jax.default_matmul_precision(default):
        jaxpr = jax.make_jaxpr(
            lambda p, x: jaxrnn.unroll(LSTM(H), p, x, engine=CuDNN(given))[1]
        )(params, xs)
    assert f"tf32={tf32}" in str(jaxpr)
    network = primitives.Network(D, H, tf32=tf32)
    assert rnn._lstm_cudnn_allow_tf32(network.arguments()["precision"]) is tf32


def test_a_default_precision_that_it_has_not():
    with (
        jax.default_matmul_precision("bfloat16"),
        pytest.raises(ValueError, match="jax_default_matmul_precision is 'bfloat16'"),
    ):
        attempt()


# --------------------------------------------------------------------------------------
# lowered for CUDA


@pytest.fixture
def cudnn_sizes(monkeypatch):
    """jax's own lowering for CUDA, which needs no GPU once cuDNN need not be asked
    for sizes and descriptors.
    """
    gpu_rnn = pytest.importorskip("jaxlib.gpu_rnn")
    mlir = pytest.importorskip("jax.interpreters.mlir")

    class Descriptor:
        @staticmethod
        def build_rnn_descriptor(*sizes):
            return repr(sizes).encode()

    if gpu_rnn._cuda_rnn is None:
        monkeypatch.setattr(
            gpu_rnn,
            "compute_rnn_workspace_reserve_space_sizes",
            lambda *sizes: (64, 4096),
            raising=False,
        )
        for primitive, lowering in (
            (rnn.rnn_fwd_p, gpu_rnn._rnn_fwd_lowering),
            (rnn.rnn_bwd_p, gpu_rnn._rnn_bwd_lowering),
        ):
            mlir.register_lowering(
                primitive,
                functools.partial(lowering, Descriptor, "cu"),
                platform="cuda",
            )


def lowered(function, *args, platforms=("cuda",)):
    return jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()


def test_it_lowers_for_cuda(cudnn_sizes):
    """Values and gradients, masked, reversed and stacked: calls of cuDNN, and no
    loop.
    """
    layer = jaxrnn.stack(jaxrnn.bidirectional(LSTM(H)), LSTM(H))
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), D))
    xs, mask = (
        jax.ShapeDtypeStruct((T, B, D), jnp.float32),
        jax.ShapeDtypeStruct((T, B), bool),
    )

    def loss(params, xs, mask):
        last, ys = jaxrnn.unroll(layer, params, xs, mask=mask, engine=CuDNN())
        return ys.sum() + last[1].c.sum()

    forward, train = (
        lowered(loss, params, xs, mask),
        lowered(jax.grad(loss, (0, 1)), params, xs, mask),
    )
    for text, backwards in ((forward, 0), (train, 2)):
        assert text.count("@cudnn_rnn_ffi") == 2
        assert text.count("@cudnn_rnn_bwd_ffi") == backwards
        assert "stablehlo.while" not in text
    mapped = jax.vmap(
        lambda x: jaxrnn.unroll(LSTM(H), params["layer_1"], x, engine=CuDNN())[1], 1, 1
    )
    params = drawn_params(layer, D)
    assert (
        lowered(mapped, jax.ShapeDtypeStruct((T, B, 2 * H), jnp.float32)).count(
            "@cudnn_rnn_ffi"
        )
        == 1
    )


@pytest.mark.skipif(
    jax.default_backend() == "gpu", reason="it is cuDNN that says how much it keeps"
)
@pytest.mark.parametrize(
    ("size", "hidden"), [(-(2**31) + 8, 9), (4 * T * B * 10 - 1, 10)]
)
def test_memory_that_jax_cannot_count(size, hidden, cudnn_sizes, monkeypatch):
    """jax's CUDA plugin hands sizes on as 32-bit integers: what is larger comes back
    as nonsense.
    """
    monkeypatch.setattr(
        "jaxlib.gpu_rnn.compute_rnn_workspace_reserve_space_sizes",
        lambda *sizes: (64, size),
    )
    cell = LSTM(hidden)  # of a size that was not asked for before
    params = drawn_params(cell, D)
    xs = jax.ShapeDtypeStruct((T, B, D), jnp.float32)

    def loss(params, xs):
        return jaxrnn.unroll(cell, params, xs, engine=CuDNN())[1].sum()

    for function in (loss, jax.grad(loss)):
        with pytest.raises(
            ValueError,
            match=r"for 4 sequences of 6 steps .* more than 2 GiB .*Split the batch, .*Scan\(\)",  # noqa: E501
        ):
            lowered(function, params, xs)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "rocm"])
def test_other_platforms_are_refused_when_lowered(platform, cudnn_sizes):
    params = drawn_params(LSTM(H), D)
    xs = jax.ShapeDtypeStruct((T, B, D), jnp.float32)

    def loss(params, xs):
        return jaxrnn.unroll(LSTM(H), params, xs, engine=CuDNN())[1].sum()

    for function in (loss, jax.grad(loss)):
        with pytest.raises(
            ValueError,
            match=rf"needs an NVIDIA GPU with cuDNN, lowering for {platform}: use .*Scan\(\)",  # noqa: E501
        ):
            lowered(function, params, xs, platforms=(platform,))

    def both(params, xs):
        def default(params, xs):
            return jaxrnn.unroll(LSTM(H), params, xs, engine=Scan())[1].sum()

        return jax.lax.platform_dependent(params, xs, cuda=loss, default=default)

    for name, calls in (("cuda", 1), (platform, 0)):
        assert (
            lowered(both, params, xs, platforms=(name,)).count("@cudnn_rnn_ffi")
            == calls
        )


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is cuDNN to ask")
def test_gradients_without_a_gpu_say_so():
    params = drawn_params(LSTM(H), D)
    with pytest.raises(
        ValueError,
        match=r"CuDNN: needs an NVIDIA GPU with cuDNN where it is traced, .*Scan.*jax\[cuda13\]",  # noqa: E501
    ):
        jax.grad(
            lambda p: jaxrnn.unroll(LSTM(H), p, jnp.ones((T, D)), engine=CuDNN())[
                1
            ].sum()
        )(params)


# --------------------------------------------------------------------------------------
# GPU


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("mask", "steps", "batch", "hidden", "reverse", "precision", "tolerance"),
    [
        ("none", 128, 16, 128, False, "highest", 1e-4),
        ("none", 128, 16, 128, False, "high", 2e-2),
        ("lengths", 33, 3, 64, False, "highest", 1e-4),
        ("holes", 33, 3, 64, True, "highest", 1e-4),
        ("holes", 64, 5, 96, True, "high", 2e-2),
        ("none", 1, 1, 8, False, "highest", 1e-4),
    ],
)
def test_cudnn_itself(mask, steps, batch, hidden, reverse, precision, tolerance):
    """Against Scan in float32 with float32 matmuls; stacks and pairs in one call,
    gradients included, each number within ``tolerance`` of its array's largest: 1e-4
    with float32 matmuls, 2e-2 with TF32 ones.
    """
    pair = jaxrnn.bidirectional(LSTM(hidden))
    layer = jaxrnn.stack(
        pair,
        jaxrnn.stack(LSTM(hidden), LSTM(hidden)),
        jaxrnn.stack(pair, pair),
        LSTM(8),
    )
    random = np.random.default_rng(0)
    params = drawn_params(layer, D)
    xs = normal(random, jax.ShapeDtypeStruct((steps, batch, D), jnp.float32))
    carry = normal(
        random, jax.eval_shape(lambda p: layer.initial_carry(p, (batch,)), params), 0.5
    )
    shapes = jax.eval_shape(lambda *a: jaxrnn.unroll(layer, *a), params, xs, carry)
    inputs = (
        params,
        xs,
        carry,
        normal(random, shapes),
        masks(steps, max(batch, 2))[mask],
    )
    found = run(layer, CuDNN(precision), reverse)(*inputs)
    with jax.default_matmul_precision("highest"):
        expected = run(layer, Scan(), reverse)(*inputs)
    pairs = zip(
        *map(
            jax.tree.leaves,
            ((found.values, found.gradients), (expected.values, expected.gradients)),
        ),
        strict=True,
    )
    for a, b in pairs:
        assert_same(a, b, tolerance)


@pytest.mark.gpu
def test_cudnn_under_vmap_and_in_windows():
    params = drawn_params(LSTM(H), D)
    xs = jax.random.normal(jax.random.key(1), (33, B, D))

    def of_batch(engine, params):
        return (
            jaxrnn.truncated_unroll(LSTM(H), params, xs, window=8, engine=engine)[1]
            ** 2
        ).sum()

    def of_examples(engine, params):
        return (
            jax.vmap(
                lambda x: jaxrnn.unroll(LSTM(H), params, x, engine=engine)[1], 1, 1
            )(xs)
            ** 2
        ).sum()

    for loss in (of_batch, of_examples):
        found = jax.jit(jax.grad(functools.partial(loss, CuDNN("highest"))))(params)
        with jax.default_matmul_precision("highest"):
            assert_same(
                found, jax.jit(jax.grad(functools.partial(loss, Scan())))(params), 1e-4
            )
