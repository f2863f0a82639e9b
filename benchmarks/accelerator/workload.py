"""What `benchmarks.accelerator` measures: configurations in order of importance, who
takes part, and published figures.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn

from ..cpu.linear import ACCELERATED_SCAN
from ..harness.options import Shape
from ..harness.workload import Work, naive
from ..peers import jax_libraries
from ..peers.adapters import SkipEntryError, require

LSTM, LINEAR = "LSTM", "linear"
F32, BF16 = "float32", "bfloat16"
COMMAND_BUFFERS = {  # what XLA has by default, and loops; a graph however small
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE",
    "xla_gpu_graph_min_graph_size": 1,
}


class Config(NamedTuple):
    """One layer over one batch: B sequences, T steps, H units and as many input
    features.
    """

    name: str
    kind: str
    B: int
    T: int
    H: int

    def __str__(self) -> str:
        return f"{self.kind}, B {self.B:,}, T {self.T:,}, H {self.H:,}"

    def flops(self, mode: str) -> float:
        """Of the matmuls, once: 16 B H^2 a step forwards, three times that for
        training; none in the linear recurrence.
        """
        once = Work(LSTM, Shape(self.B, self.T, self.H, self.H)).flops(mode)
        return once if self.kind == LSTM else 0.0

    def bytes(self, mode: str, dtype: str) -> float:
        """What any implementation must move, once: inputs, weights and cotangents
        in; outputs, and gradients, out.
        """
        arrays = 2 if self.kind == LINEAR else 1  # a and b, or x
        weights = 0 if self.kind == LINEAR else 4 * self.H * (2 * self.H + 1)
        rows = arrays + 1 if mode == "forward" else 2 * (arrays + 1)
        weights *= 1 if mode == "forward" else 2
        return jnp.dtype(dtype).itemsize * (rows * self.B * self.T * self.H + weights)


CONFIGS = (
    Config("flashrnn", LSTM, 16, 1024, 768),
    Config("e16", LSTM, 16, 1024, 128),
    Config("e2048", LSTM, 2048, 1024, 128),
    Config("linear-16k", LINEAR, 8, 16384, 1536),
    Config("h256", LSTM, 16, 1024, 256),
    Config("long", LSTM, 1, 65536, 128),
    Config("linear-64k", LINEAR, 8, 65536, 1536),
)
# stands in for what has that name
QUICK = (
    Config("flashrnn", LSTM, 2, 12, 16),
    Config("linear-16k", LINEAR, 2, 33, 8),
)

_FLASHRNN = "NX-AI/flashrnn, head_dim--lstm.svg, Nov 2024, GPU not stated"
QUOTED = [
    {
        "config": "flashrnn",
        "entry": entry,
        "mode": mode,
        "ms": ms,
        "source": _FLASHRNN,
        "note": note,
    }
    for entry, note, times in (
        ("FlashRNN fused", "bfloat16, without the input projection", (4.87, 13.61)),
        (
            "torch nn.LSTM (cuDNN)",
            "dtype not stated, with the input projection",
            (2.01, 5.19),
        ),
    )
    for mode, ms in zip(("forward", "train"), times, strict=True)
] + [
    {
        "config": f"linear-{T // 1024}k",
        "entry": "accelerated-scan",
        "mode": "forward",
        "ms": ACCELERATED_SCAN[T],
        "source": "proger/accelerated-scan, README, GPU not stated",
        "note": "float32",
    }
    for T in (16384, 65536)
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """Who takes part: ``build(config, dtype)`` gives ``(forward, mapping)``, a function
    of weights and inputs and how our weights become its own, or raises
    `SkipEntryError`. A ``runner`` brings its programs along, as torch does.
    """

    name: str
    kind: str
    dtype: str
    build: Callable[[Config, str], tuple[Callable, Callable]]
    options: dict[str, Any] | None = None  # of XLA's
    precision: str | None = None  # of jax's matmuls
    runner: str | None = None

    @property
    def key(self) -> str:
        return f"{self.name} {'bf16' if self.dtype == BF16 else 'f32'}"

    @property
    def risky(self) -> bool:
        """Whether it may kill or hang the process: kernels, and options that XLA has
        off. Compiled last, by itself.
        """
        return self.options is not None or "Fused" in self.name


def engine(name: str, *args: Any, **options: Any) -> Any:
    """An engine of jaxrnn's by name, or `SkipEntryError` where this jaxrnn has none of
    that name.
    """
    made = getattr(jaxrnn, name, None)
    if made is None:
        raise SkipEntryError(f"not here: this jaxrnn has no {name}()")
    return made(*args, **options)


def _same(weights: Any) -> Any:
    return weights


def _naive(config: Config, dtype: str):
    return naive(jaxrnn.LSTM(config.H)), _same


def _unrolled(name: str, *args: Any, **options: Any):
    def build(config: Config, dtype: str):
        chosen, cell = engine(name, *args, **options), jaxrnn.LSTM(config.H)
        return lambda weights, xs: jaxrnn.unroll(cell, weights, xs, engine=chosen)[
            1
        ], _same

    return build


def _flax(config: Config, dtype: str):
    nn = require("flax.linen")
    cell = nn.OptimizedLSTMCell(config.H, dtype=dtype, param_dtype=dtype)
    layer = nn.RNN(cell, time_major=True)
    return layer.apply, jax_libraries.flax(
        Work(LSTM, Shape(config.B, config.T, config.H, config.H)), True
    ).mapping


def _torch(config: Config, dtype: str):
    if jax.default_backend() != "gpu":
        raise SkipEntryError(
            f"torch's cuDNN is measured on GPUs, and this is a {jax.default_backend()}"
        )
    if not require("torch").cuda.is_available():
        raise SkipEntryError(
            "torch as installed has no CUDA: a build with CUDA for this driver is "
            "needed"
        )
    return _same, _same  # see accelerator_torch


@dataclasses.dataclass(frozen=True)
class Pair(jaxrnn.LinearCell):
    """The bare recurrence s_t = a_t s_{t-1} + b_t; inputs are the pair (a, b)."""

    hidden_size: int

    def init(self, key: Any, input_size: int) -> dict:
        return {}

    def project(self, params: Any, x: Any) -> Any:
        return x

    def affine(self, params: Any, z: Any) -> tuple[Any, Any]:
        return z


def _linear(name: str, *args: Any, **options: Any):
    """The engine alone, for `jaxrnn.unroll` takes one array, and two side by side
    would have to be taken apart.
    """

    def build(config: Config, dtype: str):
        chosen, cell = engine(name, *args, **options), Pair(config.H)

        def forward(weights, ab):
            carry = jnp.zeros(ab[1].shape[1:], ab[1].dtype)
            return chosen.run(cell, weights, carry, ab)[1]

        return forward, _same

    return build


def _linear_scan(config: Config, dtype: str):
    def forward(weights, ab):
        def step(s, now):
            s = now[0] * s + now[1]
            return s, s

        return jax.lax.scan(step, jnp.zeros(ab[1].shape[1:], ab[1].dtype), ab)[1]

    return forward, _same


def _associative_scan(config: Config, dtype: str):
    def joined(early, late):
        return late[0] * early[0], late[0] * early[1] + late[1]

    return lambda weights, ab: jax.lax.associative_scan(joined, ab)[1], _same


NAIVE, SCAN, LINEAR_SCAN = "lax.scan naive", "jaxrnn Scan", "lax.scan"
ENTRIES = (  # by importance: where time runs out, the last are left out
    Entry(NAIVE, LSTM, F32, _naive),
    Entry(SCAN, LSTM, F32, _unrolled("Scan")),
    Entry("jaxrnn Fused", LSTM, BF16, _unrolled("Fused")),
    Entry("jaxrnn Fused", LSTM, F32, _unrolled("Fused")),
    Entry("jaxrnn CuDNN (TF32)", LSTM, F32, _unrolled("CuDNN", "high")),
    Entry("torch cuDNN", LSTM, BF16, _torch, runner="torch"),
    Entry("torch cuDNN (TF32)", LSTM, F32, _torch, precision="high", runner="torch"),
    Entry(NAIVE, LSTM, BF16, _naive),
    Entry(SCAN, LSTM, BF16, _unrolled("Scan")),
    Entry(f"{SCAN}, command buffers", LSTM, F32, _unrolled("Scan"), COMMAND_BUFFERS),
    Entry("flax", LSTM, F32, _flax),
    Entry(f"{SCAN}, one step at a time", LSTM, F32, _unrolled("Scan", unroll=1)),
    Entry(f"{NAIVE}, command buffers", LSTM, F32, _naive, COMMAND_BUFFERS),
    Entry("jaxrnn Fused (highest)", LSTM, F32, _unrolled("Fused"), precision="highest"),
    Entry("jaxrnn CuDNN (highest)", LSTM, F32, _unrolled("CuDNN", "highest")),
    Entry(
        "torch cuDNN (highest)", LSTM, F32, _torch, precision="highest", runner="torch"
    ),
    Entry(f"{SCAN}, command buffers", LSTM, BF16, _unrolled("Scan"), COMMAND_BUFFERS),
    Entry("flax", LSTM, BF16, _flax),
    Entry(LINEAR_SCAN, LINEAR, F32, _linear_scan),
    Entry("jaxrnn Fused", LINEAR, F32, _linear("Fused")),
    Entry(SCAN, LINEAR, F32, _linear("Scan")),
    Entry("jaxrnn Associative", LINEAR, F32, _linear("Associative")),
    Entry("associative_scan", LINEAR, F32, _associative_scan),
    Entry(f"{SCAN} step by step", LINEAR, F32, _linear("Scan", save="dots")),
    Entry(
        f"{SCAN} step by step, command buffers",
        LINEAR,
        F32,
        _linear("Scan", save="dots"),
        COMMAND_BUFFERS,
    ),
)
BASELINE = {LSTM: f"{NAIVE} f32", LINEAR: f"{LINEAR_SCAN} f32"}


class Data(NamedTuple):
    """Weights in jaxrnn's layout, inputs and the cotangent of the outputs, float32,
    on the device.
    """

    weights: Any
    xs: Any
    cotangent: Any

    def cast(self, dtype: str) -> Data:
        return jax.tree.map(lambda a: a.astype(dtype), self)


def draw(config: Config) -> Data:
    """Random everything, made on the device; the recurrence's factors lie in [0.5,
    1).
    """
    first, second, third = jax.random.split(jax.random.key(0), 3)
    shape = (config.T, config.B, config.H)
    cotangent = jax.random.normal(third, shape)
    if config.kind == LINEAR:
        return Data(
            {},
            (
                jax.random.uniform(first, shape, minval=0.5),
                jax.random.normal(second, shape),
            ),
            cotangent,
        )
    weights = jax.tree.map(
        jnp.asarray, Work(LSTM, Shape(config.B, config.T, config.H, config.H)).weights
    )
    return Data(weights, jax.random.normal(first, shape), cotangent)


def entries_of(config: Config) -> list[Entry]:
    return [entry for entry in ENTRIES if entry.kind == config.kind]


@functools.cache
def config_named(name: str, quick: bool) -> Config:
    return next(
        config for config in (QUICK if quick else CONFIGS) if config.name == name
    )
