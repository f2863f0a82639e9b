"""Accelerators that are described to their makers' compilers, none at hand.

XLA compiles for a GPU whose properties it is told, and libtpu for a TPU by its name. So
a program's kernels, bytes and expected cycles are known without the chip. The figures
of the GPUs are NVIDIA's published ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from ..core.types import PyTree
from .execution import PLATFORMS

# What XLA asks of a GPU: an H100 SXM, and where an A100 SXM of 80 GB differs from it.
_H100: dict[str, Any] = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49_152,
    "shared_memory_per_block_optin": 232_448,
    "shared_memory_per_core": 233_472,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535,
    "memory_bandwidth": 3_352_320_000_000,
    "l2_cache_size": 52_428_800,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 85_000_000_000,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
}
_A100 = _H100 | {
    "shared_memory_per_block_optin": 166_912,
    "shared_memory_per_core": 167_936,
    "core_count": 108,
    "fpus_per_core": 64,
    "memory_bandwidth": 2_039_000_000_000,
    "l2_cache_size": 41_943_040,
    "clock_rate_ghz": 1.41,
}
# Name, properties, compute capability, description.
_GPUS = {
    "H100": (_H100, (9, 0), "NVIDIA H100 80GB HBM3"),
    "A100": (_A100, (8, 0), "NVIDIA A100-SXM4-80GB"),
}
_TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
CHIPS = (*_GPUS, *_TPUS)
HOST = "cpu"  # stands for this machine's CPU, which is not described but here
# The chip that stands for a platform where none is named.
CHIP_OF_PLATFORM = {"gpu": "H100", "tpu": "v5e"}
# Read when a plugin starts. Compiling needs no library of a GPU and no TPU's host.
_SKIP = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
_VARIABLES = {_SKIP: "1", "TPU_SKIP_MDS_QUERY": "1"}


def platform_of(chip: str) -> str:
    """Return "gpu", "tpu", or "cpu" for `HOST`.

    Raises:
        ValueError: for a chip that is none of `CHIPS`.
    """
    if chip == HOST:
        return HOST
    if chip not in CHIPS:
        raise ValueError(
            f"the chip {chip!r} cannot be described: write one of {', '.join(CHIPS)}"
        )
    return "gpu" if chip in _GPUS else "tpu"


def compile_for(chip: str, function: Callable[..., Any], *args: PyTree) -> Any:
    """Compile a function for one device of a described chip, or of `HOST`.

    Args:
        chip: the chip; see `place_on`, which tells the errors, too.
        function: what to compile.
        *args: arrays, or their shapes.

    Returns:
        A ``jax.stages.Compiled``, which cannot run on a described chip.
    """
    at = place_on(chip)
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at), args
    )
    traced = jax.jit(function).trace(*placed)
    target = PLATFORMS[platform_of(chip)]
    return traced.lower(lowering_platforms=(target,)).compile()


def place_on(chip: str) -> SingleDeviceSharding:
    """Return the sharding of one device of a described chip, or of `HOST`.

    Programs are compiled for it if their arguments are ``jax.ShapeDtypeStruct`` with
    this sharding.

    Raises:
        ValueError: for a chip that is none of `CHIPS`.
        MissingCompilerError: if its compiler is not installed.
    """
    from jax.experimental import topologies

    kind = platform_of(chip)
    if kind == HOST:
        return SingleDeviceSharding(jax.local_devices(backend=HOST)[0])
    try:
        with _environment():
            if kind == "tpu":
                found = topologies.get_topology_desc(_TPUS[chip], "tpu")
            else:
                found = topologies.get_topology_desc(
                    "", "cuda", target_config=_target(chip), topology="1x1x1"
                )
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise MissingCompilerError(
            f"no compiler for {chip} is at hand ({needed(chip)}): {lines[0]}"
        ) from error
    return SingleDeviceSharding(found.devices[0])


class MissingCompilerError(RuntimeError):
    """The compiler for a described chip is not installed, or did not start."""


def needed(chip: str) -> str:
    """Say what to install for a chip's compiler."""
    version = jax.__version__
    if platform_of(chip) == "tpu":
        return "pip install 'jaxrnn[compilers]', or libtpu alone"
    if importlib.util.find_spec("jax_cuda13_plugin") is not None:
        return (
            f"it is installed and did not start: where a GPU's libraries are missing, "
            f"set {_SKIP}=1 in the environment before Python starts"
        )
    return (
        f"jax 0.11 or newer and pip install 'jaxrnn[compilers]', or jax-cuda13-plugin"
        f"=={version}, jax-cuda13-pjrt=={version} and nvidia-cuda-nvcc alone"
    )


def _target(chip: str) -> str:
    """Return the description of a GPU in XLA's text format."""
    properties, (major, minor), name = _GPUS[chip]
    lines = "\n".join(f"  {key}: {value}" for key, value in properties.items())
    return (
        f"gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ major: {major} "
        f'minor: {minor} }}\n}}\nplatform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 8 }\n"
        f'device_description_str: "{name}"\n'
    )


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set what the plugins read when they start, for as long as they start."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(_VARIABLES | {k: v for k, v in before.items() if v is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
