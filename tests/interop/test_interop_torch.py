"""Weights and states from torch and back, against the torch that is installed:
values and gradients, ragged batches.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

import jaxrnn
from jaxrnn import interop

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

H = 4
KINDS = {
    "tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}),
    "projected": (nn.LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, {}),
}
CASES = [
    *(
        pytest.param(*case.values, True, marks=case.marks)
        for case in peers.cases(KINDS, ["lstm"])
    ),
    *(pytest.param(kind, 1, False, "float32", False) for kind in KINDS),
]


def made(kind, layers=1, both=False, bias=True, dtype="float32", **options):
    torch.manual_seed(3)
    module, own = KINDS[kind]
    return module(
        peers.INPUTS, H, layers, bias=bias, bidirectional=both, **own, **options
    ).to(getattr(torch, dtype))


def plain(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def answers(module, dtype):
    """torch's outputs, last states and gradients for the ragged batch, states in the
    order of a jaxrnn carry's leaves.
    """
    xs = torch.tensor(peers.inputs(dtype), requires_grad=True)
    packed = nn.utils.rnn.pack_padded_sequence(
        xs, torch.tensor(peers.LENGTHS), enforce_sorted=False
    )
    packed_ys, last = module(packed)
    ys = nn.utils.rnn.pad_packed_sequence(packed_ys)[0]
    states = (
        [part for parts in zip(*last) for part in parts]
        if isinstance(last, tuple)
        else list(last)
    )
    cs = [
        torch.tensor(c)
        for c in peers.cotangents([ys.shape, *(s.shape for s in states)], dtype)
    ]
    named = dict(module.named_parameters())
    loss = peers.loss_of(ys, states, cs)
    by_x, *by_weight = [
        g.numpy() for g in torch.autograd.grad(loss, [xs, *named.values()])
    ]
    found = [s.detach().numpy() for s in states]
    return peers.Answers(
        ys.detach().numpy(), found, by_x, dict(zip(named, by_weight))
    ), last


@pytest.mark.parametrize(("kind", "layers", "both", "dtype", "bias"), CASES)
def test_the_same_values_states_and_gradients(kind, layers, both, dtype, bias):
    module = made(kind, layers, both, bias, dtype)
    expected, last = answers(module, dtype)
    with jax.enable_x64(dtype == "float64"):

        def convert(weights):
            return interop.from_torch(
                weights, nonlinearity=getattr(module, "nonlinearity", None)
            )

        actual = peers.ours(convert, plain(module), dtype)
        peers.assert_agree(actual, expected, dtype)

        layer, params = interop.from_torch(module)
        peers.equal(params, convert(plain(module))[1])
        carry = interop.carry_from_torch(layer, last)
        back = interop.carry_to_torch(layer, carry)
        peers.equal(back, jax.tree.map(lambda part: part.detach().numpy(), last))
        for a, e in zip(jax.tree.leaves(carry), expected.carry, strict=True):
            np.testing.assert_array_equal(a, e)

        other = made(kind, layers, both, bias, dtype)
        for parameter in other.parameters():
            torch.nn.init.normal_(parameter)
        assert interop.to_torch(layer, params, into=other) is other
        peers.equal(interop.from_torch(other)[1], params)
    again, _ = answers(other, dtype)
    peers.assert_agree(
        again, expected._replace(weight_gradients=again.weight_gradients), dtype
    )


@pytest.mark.parametrize("initial", [False, True])
def test_a_state_continues_a_sequence(initial):
    """Two pieces, the state handed over by the helpers, are one sequence."""
    module = made("lstm", 2)
    layer, params = interop.from_torch(module)
    xs = peers.inputs("float32")
    with torch.no_grad():
        ys, last = module(torch.tensor(xs))
        _, middle = module(torch.tensor(xs[:2]))
    carry = interop.carry_from_torch(layer, middle)
    if initial:  # the other way about: jaxrnn's state continues in torch
        carry, _ = jaxrnn.unroll(layer, params, jnp.asarray(xs[:2]))
        state = tuple(
            torch.tensor(part) for part in interop.carry_to_torch(layer, carry)
        )
        with torch.no_grad():
            rest, end = module(torch.tensor(xs[2:]), state)
    else:
        carry, rest = jaxrnn.unroll(layer, params, jnp.asarray(xs[2:]), carry)
        end = interop.carry_to_torch(layer, carry)
    np.testing.assert_allclose(np.asarray(rest), ys[2:].numpy(), atol=1e-6)
    for a, e in zip(end, last, strict=True):
        np.testing.assert_allclose(np.asarray(a), e.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(name, bias, x64):
    cell = getattr(nn, name)(3, H, bias=bias).double()
    ours, params = interop.from_torch(cell)
    x, state = (
        torch.randn(2, 3).double(),
        [torch.randn(2, H).double() for _ in range(2 if name == "LSTMCell" else 1)],
    )
    expected = cell(x, tuple(state) if name == "LSTMCell" else state[0])
    carry = interop.carry_from_torch(
        ours, tuple(s[None] for s in state) if name == "LSTMCell" else state[0][None]
    )
    carry, y = ours(params, carry, jnp.asarray(x.numpy()))
    expected = expected if name == "LSTMCell" else (expected,)
    for a, e in zip(jax.tree.leaves(carry), expected, strict=True):
        np.testing.assert_allclose(a, e.detach().numpy(), atol=1e-12, rtol=0)
    np.testing.assert_array_equal(y, jax.tree.leaves(carry)[0])

    again = copy.deepcopy(cell)
    for parameter in again.parameters():
        torch.nn.init.normal_(parameter)
    interop.to_torch(ours, params, into=again)
    expected = again(x, tuple(state) if name == "LSTMCell" else state[0])
    np.testing.assert_allclose(
        y,
        (expected[0] if name == "LSTMCell" else expected).detach().numpy(),
        atol=1e-12,
        rtol=0,
    )
    assert set(interop.to_torch(ours, params, cell=True, bias=bias)) == set(
        cell.state_dict()
    )


def test_dropout_stands_between_the_layers():
    module = made("gru", 3, True, dropout=0.25).eval()
    layer, params = interop.from_torch(module)
    assert layer == interop.from_torch(plain(module), dropout=0.25)[0]
    assert [type(part).__name__ for part in layer.layers] == [
        "Bidirectional",
        "Dropout",
        "Bidirectional",
        "Dropout",
        "Bidirectional",
    ]
    xs = peers.inputs("float32")
    carry, ys = jaxrnn.unroll(jaxrnn.inference(layer), params, jnp.asarray(xs))
    with torch.no_grad():
        expected, last = module(torch.tensor(xs))
    np.testing.assert_allclose(ys, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(
        interop.carry_to_torch(layer, carry), last.numpy(), atol=1e-6
    )
    interop.to_torch(layer, params, into=module)
    with pytest.raises(
        ValueError, match=r"dropout\(0.25\).*the object to load is stack\(bid"
    ):
        interop.to_torch(layer, params, into=made("gru", 3, True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_dtype_is_kept(dtype):
    module = made("gru", dtype=dtype, bias=False)
    layer, params = interop.from_torch(module)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    np.testing.assert_array_equal(
        params["input_kernel"].astype("float32"),
        module.weight_ih_l0.T.float().detach().numpy(),
    )
    fresh = made("gru", dtype=dtype, bias=False)
    torch.nn.init.zeros_(fresh.weight_ih_l0)
    interop.to_torch(layer, params, into=fresh)
    assert torch.equal(fresh.weight_ih_l0, module.weight_ih_l0)
    carry = interop.carry_from_torch(
        layer, torch.zeros(1, 2, H, dtype=getattr(torch, dtype))
    )
    assert carry.dtype == layer.initial_carry(params, (2,)).dtype == jnp.float32


def test_no_memory_is_shared():
    """torch goes on training in place, and what was converted stays as it was."""
    module, state = made("gru"), torch.randn(1, 64, H)
    layer, params = interop.from_torch(module)
    carry = interop.carry_from_torch(layer, state)
    before = jax.tree.map(np.array, (params, carry))
    with torch.no_grad():
        for tensor in (*module.parameters(), state):
            tensor += 1
    peers.equal((params, carry), before)
    assert all(
        value.flags.writeable for value in interop.to_torch(layer, params).values()
    )


def test_inside_a_larger_model():
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 3),
            "encoder": nn.ModuleDict({"rnn": made("lstm", 2, True)}),
        }
    )
    expected = interop.from_torch(model["encoder"]["rnn"])
    for prefix in ("encoder.rnn.", "encoder.rnn"):
        for source in (model, model.state_dict()):
            layer, params = interop.from_torch(source, prefix=prefix)
            assert layer == expected[0]
            peers.equal(params, expected[1])
    written = interop.to_torch(*expected, prefix="encoder.rnn.")
    assert set(written) == {
        name for name in model.state_dict() if name.startswith("encoder")
    }
    with pytest.raises(
        ValueError,
        match=r"There are also recurrent weights under prefix='encoder.rnn.'",
    ):
        interop.from_torch(model.state_dict())
    with pytest.raises(TypeError, match=r"ModuleDict: name the one inside it"):
        interop.from_torch(model)


@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # torch's own, of its quantized tensors
def test_what_is_no_plain_float_module_is_refused():
    quantized = torch.quantize_per_tensor(torch.randn(3 * H, H), 0.1, 0, torch.qint8)
    weights = made("gru").state_dict()
    with pytest.raises(TypeError, match=r"weight_hh_l0 is quantized \(torch.qint8\)"):
        interop.from_torch(weights | {"weight_hh_l0": quantized})
    with pytest.raises(TypeError, match=r"several dtypes.*weight_hh_l0 is float64"):
        interop.from_torch(weights | {"weight_hh_l0": weights["weight_hh_l0"].double()})
    with pytest.raises(
        TypeError, match=r"float64, which JAX would round to float32.*\.float\(\)"
    ):
        interop.from_torch(made("gru", dtype="float64"))
    with pytest.raises(TypeError, match="meta device"):
        interop.from_torch(made("gru").to("meta"))
    normed = torch.nn.utils.parametrizations.weight_norm(made("gru"), "weight_hh_l0")
    with pytest.raises(TypeError, match="remove_parametrizations"):
        interop.from_torch(normed)
    with pytest.raises(
        ValueError, match=r"missing weight_hh_l0.*remove_parametrizations"
    ):
        interop.from_torch(normed.state_dict())
    with pytest.raises(TypeError, match=r"expected one of torch.nn.RNN.*Linear"):
        interop.from_torch(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="determines its nonlinearity"):
        interop.from_torch(made("tanh"), nonlinearity="tanh")


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)
def test_packed_modules_are_refused():
    model = nn.Sequential(made("lstm"))
    packed = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM}, dtype=torch.qint8)
    with pytest.raises(TypeError, match="quantized"):
        interop.from_torch(packed[0])
    with pytest.raises(ValueError, match="packed, quantized weights"):
        interop.from_torch(packed[0].state_dict())


def test_loading_checks_sizes_kind_and_dtype():
    layer, params = interop.from_torch(made("lstm"))
    with pytest.raises(
        ValueError, match=r"the layer is LSTM\(4\), but the object to load is GRU\(4\)"
    ):
        interop.to_torch(layer, params, into=made("gru"))
    with pytest.raises(
        ValueError, match=r"weight_ih_l0: expected \(16, 5\), found \(16, 3\)"
    ):
        interop.to_torch(layer, params, into=nn.LSTM(5, H))
    with pytest.raises(
        TypeError, match="the module is float64, but the parameters are float32"
    ):
        interop.to_torch(layer, params, into=made("lstm", dtype="float64"))
    with pytest.raises(
        ValueError, match=r"bias is not zero.*the torch module has none"
    ):
        interop.to_torch(layer, params, into=made("lstm", bias=False))
    with pytest.raises(ValueError, match=r"Elman\(4, tanh\).*Elman\(4, relu\)"):
        interop.to_torch(*interop.from_torch(made("tanh")), into=made("relu"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_safetensors_files(dtype, tmp_path):
    files = pytest.importorskip("safetensors.torch")
    module = made("lstm", 2, True, dtype=dtype, bias=False)
    layer, params = interop.from_torch(module)
    tensors = {f"rnn.{name}": value for name, value in module.state_dict().items()}
    files.save_file(
        tensors | {"head.weight": torch.ones(2)}, tmp_path / "model.safetensors"
    )
    read = interop.from_torch(tmp_path / "model.safetensors", prefix="rnn.")
    assert read[0] == layer
    peers.equal(read[1], params)
    with pytest.raises(ValueError, match=r"prefix='rnn.'"):
        interop.from_torch(str(tmp_path / "model.safetensors"))

    path = interop.to_torch(
        layer, params, into=tmp_path / "written.safetensors", prefix="rnn.", bias=False
    )
    loaded = files.load_file(path)
    assert set(loaded) == set(tensors)
    for name, value in loaded.items():
        assert torch.equal(value, tensors[name])
    with pytest.raises(FileExistsError, match="rest of a model"):
        interop.to_torch(layer, params, into=path)
