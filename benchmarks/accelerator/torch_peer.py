"""torch's cuDNN LSTM beside JAX on one GPU, on the same numbers, handed over without
a copy to the host.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from ..harness.timing import Program
from ..peers.adapters import require
from ..peers.other_libraries import torch_device, torch_weights
from .workload import BF16, Config, Data, Entry


def programs(config: Config, entry: Entry, data: Data) -> dict[str, Program]:
    """``forward`` without a graph; ``train`` with gradients of weights and inputs.
    ``TF32`` by the entry's precision.
    """
    torch = require("torch")
    tf32 = entry.precision != "highest"
    device = torch_device(torch)
    layer = torch.nn.LSTM(config.H, config.H).to(
        device, torch.bfloat16 if entry.dtype == BF16 else torch.float32
    )
    with torch.no_grad():
        for name, value in torch_weights("LSTM", data.weights).items():
            getattr(layer, f"{name}_l0").copy_(
                torch.from_dlpack(jax.block_until_ready(value))
            )
    layer.flatten_parameters()
    xs, cotangent = (
        torch.from_dlpack(jax.block_until_ready(a)) for a in (data.xs, data.cotangent)
    )
    trained = xs.detach().clone().requires_grad_(True)

    def called(function):
        def run():
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
                tf32
            )
            result = function()
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    def forward():
        with torch.no_grad():
            return layer(xs)[0]

    def train():
        layer.zero_grad(set_to_none=True)
        trained.grad = None
        ys = layer(trained)[0]
        ys.backward(cotangent)
        return ys, layer, trained.grad

    return {"forward": Program(called(forward)), "train": Program(called(train))}


def parts(mode: str, result: Any) -> dict[str, Any]:
    """Outputs, or gradients in our layout, as float32 JAX arrays."""
    if mode == "forward":
        return {"outputs": _to_jax(result)}
    _, layer, input_gradient = result
    of = {
        name.removesuffix("_l0"): _to_jax(p.grad)
        for name, p in layer.named_parameters()
    }
    weights = {
        "input_kernel": of["weight_ih"].T,
        "recurrent_kernel": of["weight_hh"].T,
        "bias": of["bias_ih"],
    }
    return {"weight_gradient": weights, "input_gradient": _to_jax(input_gradient)}


def _to_jax(tensor: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jnp.from_dlpack(tensor.detach().contiguous()).astype(jnp.float32)


def free() -> None:
    """Give back what torch has cached, so that JAX may have it."""
    torch = require("torch")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
