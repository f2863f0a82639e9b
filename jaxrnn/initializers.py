"""Initializers that compare by value, so that two cells configured alike are equal and
do not retrace.

Each is called as ``init(key, shape, dtype)`` for ONE gate block at a time: a packed
LSTM kernel ``(D, 4H)`` is four draws laid side by side. That matters for orthogonal
matrices: drawn over the packed kernel, each gate's block would have singular values
near 0.5 instead of 1, and every gradient-decay baseline would move.

Any function ``(key, shape, dtype) -> array`` may be used where one of these is; a
closure made anew each time (``jax.nn.initializers.orthogonal()``) compares by identity,
and makes the cell compile again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .core.cell import accumulator

Initializer = Callable[[Array, tuple[int, ...], Any], Array]


@dataclasses.dataclass(frozen=True)
class Zeros:
    """All zeros."""

    def __call__(self, key, shape, dtype):
        return jnp.zeros(shape, dtype)


@dataclasses.dataclass(frozen=True)
class LecunNormal:
    """Normal of variance 1/fan_in, cut at two standard deviations (LeCun et al.
    1998).
    """

    def __call__(self, key, shape, dtype):
        return jax.nn.initializers.lecun_normal()(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class GlorotUniform:
    """U(-a, a), a = sqrt(6 / (fan_in + fan_out)) of the gate block (Glorot & Bengio
    2010).
    """

    def __call__(self, key, shape, dtype):
        return jax.nn.initializers.glorot_uniform()(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal of standard deviation ``gain / sqrt(fan_in)``: a random recurrent
    matrix of spectral radius near ``gain``.
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype):
        return (
            self.gain
            / math.sqrt(shape[0])
            * jax.random.normal(key, shape, accumulator(dtype))
        ).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Orthogonal:
    """``gain * Q sign(diag R)`` with ``Q R = qr(normal)``: uniform over orthogonal
    matrices (Saxe et al. 2014; Mezzadri 2007).

    A rectangular block has orthonormal rows or columns, whichever are fewer.
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype):
        wide = accumulator(dtype)  # qr has no half-precision form
        return jax.nn.initializers.orthogonal(self.gain)(key, shape, wide).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Identity:
    """``gain * I``. With relu and zero bias it is the IRNN (Le, Jaitly & Hinton
    2015, arXiv:1504.00941).
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype):
        return self.gain * jnp.eye(shape[0], shape[1], dtype=dtype)


@dataclasses.dataclass(frozen=True)
class TorchUniform:
    """U(-1/sqrt(H), 1/sqrt(H)) for every kernel and bias, as torch.nn.RNN, LSTM and GRU
    draw them.

    torch adds nothing to the forget gate: ``LSTM(H, forget_bias=0.0, input_init=u,
        recurrent_init=u, bias_init=u)``.
    """

    hidden_size: int

    def __call__(self, key, shape, dtype):
        bound = 1 / math.sqrt(self.hidden_size)
        return jax.random.uniform(key, shape, dtype, -bound, bound)


@dataclasses.dataclass(frozen=True)
class Chrono:
    """Gate biases for memories between ``min_time`` and ``max_time`` steps (Tallec &
    Ollivier 2018, arXiv:1804.11188, eq. 16).

    LSTM: ``b_f = log(U(1, max_time - 1))`` and ``b_i = -b_f``. GRU, whose update gate
    keeps: ``b_z = log(U(1, max_time - 1))``. The time constant of a unit is 1 + exp(b)
    steps.
    """

    max_time: float

    def __post_init__(self):
        if not self.max_time > 2:
            raise ValueError(
                f"Chrono: max_time must be more than 2 steps, but it is "
                f"{self.max_time!r}"
            )

    def __call__(self, key, shape, dtype):
        return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, self.max_time - 1.0))


@dataclasses.dataclass(frozen=True)
class Linspace:
    """Evenly spaced from ``low`` to ``high``, ends included: forget biases that
    spread the time constants of the units.
    """

    low: float
    high: float

    def __call__(self, key, shape, dtype):
        return (
            jnp.linspace(
                self.low, self.high, math.prod(shape), dtype=accumulator(dtype)
            )
            .astype(dtype)
            .reshape(shape)
        )


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """``first + (last - first) (j / (n - 1))^exponent`` for unit j of n: most units
    near ``last`` where exponent < 1.
    """

    first: float
    last: float
    exponent: float

    def __call__(self, key, shape, dtype):
        places = jnp.linspace(0, 1, math.prod(shape), dtype=accumulator(dtype)).reshape(
            shape
        )
        return (self.first + (self.last - self.first) * places**self.exponent).astype(
            dtype
        )


@dataclasses.dataclass(frozen=True)
class Uniform:
    """U(low, high)."""

    low: float
    high: float

    def __call__(self, key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, self.low, self.high)


def gate_blocks(
    init: Initializer, key: Array, gates: int, rows: int, columns: int, dtype: Any
) -> Array:
    """A packed kernel ``(rows, gates * columns)``, each gate's block drawn by
    itself.
    """
    return jnp.concatenate(
        [init(k, (rows, columns), dtype) for k in jax.random.split(key, gates)], axis=-1
    )


def gate_biases(
    init: Initializer, key: Array, gates: int, size: int, dtype: Any
) -> list[Array]:
    """One bias ``(size,)`` a gate, each drawn by itself."""
    return [init(k, (size,), dtype) for k in jax.random.split(key, gates)]
