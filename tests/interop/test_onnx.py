"""Exported layers in ONNX Runtime, against `unroll`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import D, UserCell, draw_params, normal

import jaxrnn
from jaxrnn import GRU, LSTM, Elman
from jaxrnn.cells import MGU, OrthogonalRNN
from jaxrnn.interop import to_onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

T, B, H = 6, 5, 4
LENGTHS = np.array([T, 1, 4, 0, 2], np.int32)
LEARNED = {"learned_initial_carry": True}
LAYERS = {
    "elman": Elman(H),
    "irnn": Elman(H, activation=jax.nn.relu),
    "sigmoid": Elman(H, activation=jax.nn.sigmoid, **LEARNED),
    "lstm": LSTM(H),
    "lstm learned": LSTM(H, **LEARNED),
    "lstm peephole": LSTM(H, peephole=True),
    "lstm coupled": LSTM(H, coupled_gates=True),
    "lstm coupled peephole": LSTM(H, coupled_gates=True, peephole=True),
    "gru": GRU(H),
    "gru before": GRU(H, reset_after=False),
    "mgu": MGU(H),
    "orthogonal": OrthogonalRNN(H, modrelu=False, **LEARNED),
    "both mgu": jaxrnn.bidirectional(MGU(H, **LEARNED)),
    "two lstm": jaxrnn.stack(LSTM(H), LSTM(3, **LEARNED)),
    "both gru": jaxrnn.bidirectional(GRU(H)),
    "both, sum": jaxrnn.bidirectional(LSTM(H), Elman(H), merge="sum"),
    "two of both lstm": jaxrnn.stack(*[jaxrnn.bidirectional(LSTM(H))] * 2),
    "two of both gru": jaxrnn.stack(*[jaxrnn.bidirectional(GRU(H, **LEARNED))] * 2),
    "two of both elman": jaxrnn.stack(*[jaxrnn.bidirectional(Elman(H))] * 2),
    "both of two": jaxrnn.bidirectional(
        jaxrnn.stack(GRU(H), jaxrnn.bidirectional(LSTM(2), GRU(3)))
    ),
    "residual": jaxrnn.stack(
        jaxrnn.residual(GRU(D)),
        jaxrnn.residual(jaxrnn.bidirectional(LSTM(D), merge="sum")),
    ),
    "dropout": jaxrnn.inference(
        jaxrnn.stack(
            jaxrnn.dropout(0.3),
            LSTM(H),
            jaxrnn.dropout(0.5),
            jaxrnn.recurrent_dropout(GRU(3), 0.2),
        )
    ),
}


def drawn(layer, batch=B, steps=T):
    """Random parameters, inputs and first carry."""
    random = np.random.default_rng(0)
    params = draw_params(layer, random)
    xs = normal(random, jax.ShapeDtypeStruct((steps, batch, D), jnp.float32))
    return (
        params,
        xs,
        normal(
            random, jax.eval_shape(lambda: layer.initial_carry(params, (batch,))), 0.5
        ),
    )


def ran(model, xs, lengths=None, carry=None):
    """The outputs of ONNX Runtime, by name; what is fed goes by place, as a caller
    would pass it.
    """
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values = [xs, *([] if lengths is None else [lengths]), *jax.tree.leaves(carry)]
    names = [value.name for value in session.get_inputs()]
    assert names[0] == "xs"
    assert len(names) == len(values)
    results = session.run(
        None,
        {name: np.asarray(value) for name, value in zip(names, values, strict=True)},
    )
    return dict(
        zip((value.name for value in session.get_outputs()), results, strict=True)
    )


def assert_close(found, carry, ys):
    """``ys`` and the parts of the last carry, in their order, to 1e-5."""
    for value, expected in zip(
        found.values(), [ys, *jax.tree.leaves(carry)], strict=True
    ):
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_ragged_lengths_and_a_carry(name):
    """Lengths 0 and 1 among them; padding holds large numbers, which a residual
    connection must not let through.
    """
    params, xs, carry = drawn(LAYERS[name])
    mask = jaxrnn.mask_from_lengths(jnp.asarray(LENGTHS), T)
    xs = jnp.where(mask[..., None], xs, 1e3)
    found = ran(
        to_onnx(LAYERS[name], params, lengths=True, carry=True), xs, LENGTHS, carry
    )
    assert_close(found, *jaxrnn.unroll(LAYERS[name], params, xs, carry, mask=mask))


@pytest.mark.parametrize(
    "name", ["lstm learned", "two of both gru", "dropout", "both, sum"]
)
def test_neither_lengths_nor_a_carry(name):
    """One model for sequences of any length and any batch."""
    layer = LAYERS[name]
    params = drawn(layer)[0]
    model = to_onnx(layer, params)
    for steps, batch in ((T, B), (1, 1), (9, 2)):
        xs = drawn(layer, batch, steps)[1]
        assert_close(ran(model, xs), *jaxrnn.unroll(layer, params, xs))


@pytest.mark.parametrize("name", ["lstm learned", "two of both gru"])
def test_lengths_without_a_carry(name):
    """Length 0 gives back the learned one; all of length 0 too."""
    params, xs, _ = drawn(LAYERS[name])
    model = to_onnx(LAYERS[name], params, lengths=True)
    for lengths in (LENGTHS, np.zeros_like(LENGTHS)):
        mask = jaxrnn.mask_from_lengths(jnp.asarray(lengths), T)
        assert_close(
            ran(model, xs, lengths), *jaxrnn.unroll(LAYERS[name], params, xs, mask=mask)
        )


def test_steps_in_a_stream():
    layer = LAYERS["two lstm"]
    params, xs, carry = drawn(layer)
    model, expected = (
        to_onnx(layer, params, carry=True),
        jaxrnn.unroll(layer, params, xs, carry),
    )
    parts = jax.tree.leaves(carry)
    for x in xs:
        y, *parts = ran(model, x[None], carry=parts).values()
    assert_close({"ys": y[0]} | dict(enumerate(parts)), expected[0], expected[1][-1])


def test_names_opset_and_file(tmp_path):
    layer = jaxrnn.stack(LSTM(H), jaxrnn.dropout(0.0), jaxrnn.bidirectional(GRU(2)))
    layer = jaxrnn.inference(layer)
    model = to_onnx(layer, drawn(layer)[0], lengths=True, carry=True)
    parts = ["0_h", "0_c", "2_forward", "2_backward"]
    assert [value.name for value in model.graph.input] == [
        "xs",
        "lengths",
        *(f"initial_{part}" for part in parts),
    ]
    assert [value.name for value in model.graph.output] == [
        "ys",
        *(f"final_{part}" for part in parts),
    ]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    onnx.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)
    single = to_onnx(GRU(H), drawn(GRU(H))[0], carry=True)
    assert [single.graph.input[1].name, single.graph.output[1].name] == [
        "initial",
        "final",
    ]


REFUSED = {
    "layer norm": (
        GRU(H, layer_norm=True),
        ValueError,
        "ONNX's GRU has no layer normalization, and this cell has layer norm",
    ),
    "projection": (
        LSTM(H, projection_size=2),
        ValueError,
        "ONNX's LSTM has no projection of h, and this cell has a projection",
    ),
    "activation": (
        Elman(H, activation=jnp.sin),
        ValueError,
        "the activation .*sin.* has no name in ONNX",
    ),
    "modReLU": (
        OrthogonalRNN(H),
        ValueError,
        r"modReLU, the activation of this OrthogonalRNN, has no name .*modrelu=False",
    ),
    "other cell": (jaxrnn.MinGRU(H), TypeError, "MinGRU has no operator in ONNX"),
    "user's": (
        jaxrnn.stack(GRU(H), UserCell(H)),
        TypeError,
        "UserCell has no operator in ONNX",
    ),
    "zoneout": (
        jaxrnn.inference(jaxrnn.zoneout(GRU(H), 0.1)),
        TypeError,
        "Zoneout has no operator in ONNX",
    ),
    "drawing": (
        jaxrnn.stack(GRU(H), jaxrnn.dropout(0.1)),
        ValueError,
        r"pass jaxrnn\.inference\(layer\)",
    ),
    "nothing": (
        jaxrnn.inference(jaxrnn.dropout(0.1)),
        ValueError,
        "there is no cell in this layer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_onnx_cannot_hold_is_refused_by_name(name, plain_errors):
    layer, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        to_onnx(layer, draw_params(layer, np.random.default_rng(0)))


def test_other_input(plain_errors, monkeypatch):
    params = drawn(GRU(H))[0]
    with pytest.raises(
        TypeError, match=r"params\['bias'\] is bfloat16, .* float32: cast with"
    ):
        to_onnx(GRU(H), jax.tree.map(lambda a: a.astype(jnp.bfloat16), params))
    with pytest.raises(TypeError, match="its params are a dict of"):
        to_onnx(GRU(H), {"kernel": params["bias"]})
    with pytest.raises(TypeError, match=r"an instance: GRU\(\.\.\.\)"):
        to_onnx(GRU, params)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxrnn\[onnx\]'"):
        to_onnx(GRU(H), params)
