"""torch's modules, tensors and files where they hold something else than weights."""

import jax
import pytest
from test_interop import GRU, H, drawn

import jaxrnn
from jaxrnn import interop

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402


def refused(match, error, function, *arguments, **options):
    with pytest.raises(error, match=match):
        function(*arguments, **options)


def test_a_module_on_the_meta_device_holds_nothing():
    match = r"meta device and holds nothing: module.to_empty\(device='cpu'\) first"
    refused(
        match,
        TypeError,
        interop.to_torch,
        GRU,
        drawn(GRU),
        into=nn.GRU(3, H, device="meta"),
    )


def test_a_prefix_that_is_not_there():
    model = nn.ModuleDict(
        {"encoder": nn.ModuleDict({"rnn": nn.GRU(3, H)}), "head": nn.Linear(H, 2)}
    )
    match = (
        "ModuleDict has no module at prefix='encoder.gru.'; its recurrent modules are: "
        "'encoder.rnn.'$"
    )
    refused(match, ValueError, interop.from_torch, model, prefix="encoder.gru.")
    assert interop.from_torch(model, prefix="encoder.rnn")[0] == GRU


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_hooks_of_the_old_style():
    refused(
        "remove_weight_norm",
        ValueError,
        interop.from_torch,
        nn.utils.weight_norm(nn.GRU(3, H), "weight_hh_l0"),
    )
    refused(
        "remove_spectral_norm",
        ValueError,
        interop.from_torch,
        nn.utils.spectral_norm(nn.GRU(3, H), "weight_hh_l0"),
    )
    pruned = nn.GRU(3, H)
    prune.random_unstructured(pruned, "weight_hh_l0", 0.5)
    refused(r"prune\.remove", ValueError, interop.from_torch, pruned)
    prune.remove(pruned, "weight_hh_l0")
    assert interop.from_torch(pruned)[0] == GRU


def test_tensors_where_arrays_belong():
    arrays = jax.tree.map(
        lambda a: torch.tensor(a.tolist()), interop.to_equinox(GRU, drawn(GRU))
    )
    match = r"these are torch tensors \(.*weight_ih is torch\.float32.*\): pass tensor\.detach\(\)\.numpy\(\)"  # noqa: E501
    refused(match, TypeError, interop.from_equinox, arrays)


@pytest.mark.parametrize("old", [True, False])
def test_a_file_of_torch_save(old, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.GRU(3, H).state_dict(), path, _use_new_zipfile_serialization=not old)
    refused(
        r"a file of torch.save, not of safetensors: pass torch.load\(path",
        ValueError,
        interop.from_torch,
        path,
    )
    assert interop.from_torch(torch.load(path, weights_only=True))[0] == GRU


def test_a_file_with_float8_elsewhere(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    state, path = nn.GRU(3, H).state_dict(), tmp_path / "model.safetensors"
    small = torch.zeros(4, 4, dtype=torch.float8_e4m3fn)
    files.save_file(
        {f"rnn.{name}": value for name, value in state.items()} | {"head": small}, path
    )
    assert interop.from_torch(path, prefix="rnn")[0] == GRU
    files.save_file(state | {"head": small}, path)
    refused("not expected head", ValueError, interop.from_torch, path)
    files.save_file(
        state | {"weight_hh_l0": torch.zeros(12, 4, dtype=torch.float8_e4m3fn)}, path
    )
    refused(
        "weight_hh_l0 is F8_E4M3: quantized weights",
        TypeError,
        interop.from_torch,
        path,
    )


def test_a_module_of_one_layer_may_say_dropout():
    with pytest.warns(UserWarning, match="dropout"):
        module = nn.GRU(3, H, dropout=0.5)
    assert interop.from_torch(module)[0] == GRU
    assert interop.from_torch(nn.GRU(3, H, num_layers=2, dropout=0.5))[
        0
    ] == jaxrnn.stack(GRU, jaxrnn.dropout(0.5), GRU)
