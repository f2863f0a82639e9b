"""Peers that are not JAX: torch, and ONNX Runtime (inference only). Their weights
are ours, in their own gate order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..harness.host import cores
from ..harness.timing import Program
from ..harness.workload import GATES, Work
from .adapters import Model, SkipEntryError, require


def torch_device(torch: Any) -> str:
    """Where jax computes, torch computes too."""
    if jax.default_backend() == "cpu":
        return "cpu"
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise SkipEntryError(
        f"torch as installed does not compute on this {jax.default_backend()}"
    )


def torch_weights(kind: str, weights: dict) -> dict[str, Any]:
    """torch's four arrays: gates in our order, kernels (out, in), a bias for x and
    one for h.
    """
    bias = jnp.asarray(weights["bias"])
    recurrent = jnp.zeros_like(bias)
    if kind == "GRU":
        recurrent = recurrent.at[-weights["recurrent_bias"].shape[0] :].set(
            weights["recurrent_bias"]
        )
    kernels = [
        jnp.asarray(weights[name]).T for name in ("input_kernel", "recurrent_kernel")
    ]
    return {
        "weight_ih": kernels[0],
        "weight_hh": kernels[1],
        "bias_ih": bias,
        "bias_hh": recurrent,
    }


def load_torch(torch: Any, module: Any, weights: dict, suffix: str = "") -> Any:
    """``module`` with our weights, on the device."""
    module.load_state_dict(
        {
            name + suffix: torch.from_numpy(np.array(value))
            for name, value in weights.items()
        }
    )
    return module.to(torch_device(torch))


@dataclasses.dataclass
class TorchModel(Model):
    """``torch.nn.LSTM``, ``GRU`` or ``RNN``, time-major: forward without a graph, and
    ``loss.backward()`` into weights and an input that requires its gradient.
    """

    def programs(self, work: Work) -> dict[str, Program]:
        torch = require("torch")
        torch.set_num_threads(cores())
        device = torch_device(torch)
        layer = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU, "Elman": torch.nn.RNN}[
            work.kind
        ](work.shape.I, work.shape.H)
        load_torch(torch, layer, self.mapping(work.weights), "_l0")
        xs, cotangent = (
            torch.from_numpy(a).to(device) for a in (work.xs, work.cotangent)
        )
        trained = xs.clone().requires_grad_(True)

        def wait():
            if device == "cuda":
                torch.cuda.synchronize()

        def forward():
            with torch.no_grad():
                ys = layer(xs)[0]
            wait()
            return ys

        def train():
            layer.zero_grad(set_to_none=True)
            trained.grad = None
            loss = (layer(trained)[0] * cotangent).sum()
            loss.backward()
            wait()
            return loss, (layer, trained.grad)

        return {"forward": Program(forward), "train": Program(train)}

    def parts(self, mode: str, result: Any) -> dict[str, Any]:
        if mode == "forward":
            return {"outputs": result.cpu().numpy()}
        layer, input_gradient = result[1]
        gradients = {
            name.removesuffix("_l0"): jnp.asarray(p.grad.cpu().numpy())
            for name, p in layer.named_parameters()
        }
        return {
            "weight_gradient": gradients,
            "input_gradient": input_gradient.cpu().numpy(),
        }


def torch(work: Work) -> TorchModel:
    """torch's own recurrent layer on all cores (cuDNN on a GPU)."""
    require("torch")
    return TorchModel(mapping=lambda weights: torch_weights(work.kind, weights))


def onnx_session(work: Work, steps: int, streaming: bool = False) -> Any:
    """An ONNX Runtime session of one recurrent node on all cores.

    Inputs: ``xs (T, B, I)``, when ``streaming`` also ``h`` (and for an LSTM ``c``)
    ``(1, B, H)``. Outputs: ``ys (T, 1, B, H)``, ``last_h``, and for an LSTM ``last_c``.
    """
    onnx, runtime = require("onnx"), require("onnxruntime")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    B, _, I, H = work.shape
    arrays = {
        name: np.ascontiguousarray(value)
        for name, value in zip("WRB", _onnx_weights(work), strict=True)
    }
    carries = ["h", "c"] if work.kind == "LSTM" else ["h"]
    options = {"linear_before_reset": 1} if work.kind == "GRU" else {}
    node = helper.make_node(
        {"LSTM": "LSTM", "GRU": "GRU", "Elman": "RNN"}[work.kind],
        ["xs", "W", "R", "B", *(["", *carries] if streaming else [])],
        ["ys", *(f"last_{name}" for name in carries)],
        hidden_size=H,
        **options,
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "recurrent",
        [
            value("xs", floats, (steps, B, I)),
            *(value(name, floats, (1, B, H)) for name in carries if streaming),
        ],
        [
            value("ys", floats, (steps, 1, B, H)),
            *(value(f"last_{name}", floats, (1, B, H)) for name in carries),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = cores()
    return runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def _onnx_weights(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W (1, gates H, I), R (1, gates H, H) and both biases (1, 2 gates H): gates i,
    o, f, c for an LSTM, z, r, h for a GRU.
    """
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "Elman": (0,)}[work.kind]
    mapped = torch_weights(work.kind, work.weights)
    W, R, b_x, b_h = (
        np.concatenate([np.split(np.asarray(a), GATES[work.kind])[k] for k in order])
        for a in (
            mapped[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
    )
    return W[None], R[None], np.concatenate([b_x, b_h])[None]


@dataclasses.dataclass
class OnnxModel(Model):
    """ONNX Runtime over the whole sequence, forward only."""

    def programs(self, work: Work) -> dict[str, Program]:
        session = onnx_session(work, work.shape.T)
        return {"forward": Program(lambda: session.run(["ys"], {"xs": work.xs})[0])}

    def parts(self, mode: str, result: Any) -> dict[str, Any]:
        return {"outputs": result[:, 0]}


def onnxruntime(work: Work) -> OnnxModel:
    """ONNX Runtime's recurrent node on the processor's cores."""
    require("onnx"), require("onnxruntime")
    if jax.default_backend() != "cpu":
        raise SkipEntryError("onnxruntime is compared on CPUs only")
    return OnnxModel(note="inference only")
