"""The machine: what a result was measured on, how many devices there are, and the
ceiling that matmuls reach on it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time

import jax
import jax.numpy as jnp

from .save_run import processor

PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "flax",
    "dm-haiku",
    "equinox",
    "keras",
    "torch",
    "onnx",
    "onnxruntime",
)
PACKAGES += ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")


def prepare(devices: int) -> None:
    """Split the processor into ``devices`` devices where JAX has not started yet; to be
    called before any computation.

    On a GPU nothing is split, and JAX takes memory as it needs it, so that a peer in
    the same process has some too.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        print(
            f"JAX has already started in this process: it has {jax.device_count()} "
            f"device(s), and keeps them"
        )


def cores() -> int:
    """Processor cores that this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def versions() -> dict[str, str]:
    """The versions of jax, of the peers and of what they stand on, where installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict:
    """Backend, devices, processor, cores and versions, for a result's JSON."""
    return {
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average_before": round(os.getloadavg()[0], 2)
        if hasattr(os, "getloadavg")
        else None,
        "python": platform.python_version(),
        "versions": versions(),
    }


def where(machine: dict) -> str:
    """One line of `describe` for titles."""
    device = (
        machine["processor"] if machine["backend"] == "cpu" else machine["device_kind"]
    )
    count = machine["cores"]
    return (
        f"{device}, {count} core{'' if count == 1 else 's'}, jax "
        f"{machine['versions']['jax']}"
    )


def ceiling(size: int | None = None, repeats: int = 8) -> dict:
    """The fastest of ``repeats`` float32 products of two ``size x size`` matrices
    through jax on one device, in GFLOP/s.

    At JAX's default precision, as everything else here: on some GPUs that is TF32.
        Size: 2048 on a CPU, 8192 elsewhere.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a, b: a @ b).lower(a, a).compile()
    jax.block_until_ready(product(a, a))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        seconds.append(time.perf_counter() - start)
    return {
        "gflops": 2 * size**3 / min(seconds) / 1e9,
        "size": size,
        "repeats": repeats,
    }
