"""The fact about random networks: where they become chaotic."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn.diagnostics import lyapunov_spectrum
from jaxrnn.initializers import Normal

from .fact import Bound, Fact, Row, largest, least, of

UNITS, STEPS, WARMUP = 1024, 3000, 1000
GAINS = (0.5, 0.7, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0)
DRIVEN, NOISE = 1.2, 1.0  # a gain beyond the edge, and the size of a random input


class MeanField(NamedTuple):
    """What infinitely many units do without input."""

    activity: float  # the root mean square of a unit
    exponent: float  # the leading Lyapunov exponent, nats a step


def mean_field(gain: float) -> MeanField:
    """Solve the mean-field equations of ``s_t = tanh(W s_{t-1})`` at one gain.

    The variance q of what a unit receives solves ``q = g^2 E[tanh(sqrt(q) z)^2]`` for
    a standard normal z, and a small difference of two states grows by the factor
    ``g^2 E[tanh'(sqrt(q) z)^2]`` a step in its square (Molgedey et al. 1992).
    """
    z, weights = np.polynomial.hermite_e.hermegauss(101)
    weights = weights / weights.sum()
    q = 1.0
    for _ in range(20_000):
        q = gain**2 * float(weights @ np.tanh(math.sqrt(q) * z) ** 2)
    slope = 1 - np.tanh(math.sqrt(q) * z) ** 2
    growth = gain**2 * float(weights @ slope**2)
    return MeanField(math.sqrt(q) / gain, 0.5 * math.log(growth))


def chaos(seeds: tuple[int, ...], quick: bool) -> list[Row]:
    """The leading exponent of random tanh networks, alone and under noise."""
    size, steps, warmup = (16, 60, 20) if quick else (UNITS, STEPS, WARMUP)
    cell = jaxrnn.Elman(size, recurrent_init=Normal(1.0))

    @jax.jit
    def run(params: Any, xs: Any, start: Any, key: Any) -> tuple[Any, Any]:
        found = lyapunov_spectrum(
            cell, params, xs, start, key=key, count=1, warmup=warmup
        )
        last = found.state.carry
        return found.exponents[0], jnp.sqrt(jnp.square(last).mean())

    rows = []
    for seed in seeds:
        k_cell, k_start, k_basis, k_noise = jax.random.split(jax.random.key(seed), 4)
        params = cell.init(k_cell, size)
        params["input_kernel"] = jnp.eye(size)  # a noise of its own for each unit
        start = jax.random.normal(k_start, (size,))
        noise = NOISE * jax.random.normal(k_noise, (steps, size))
        silence = jnp.zeros_like(noise)
        for gain, xs in (*((g, silence) for g in GAINS), (DRIVEN, noise)):
            scaled = params | {"recurrent_kernel": gain * params["recurrent_kernel"]}
            exponent, activity = run(scaled, xs, start, k_basis)
            rows.append(
                {
                    "gain": gain,
                    "noise": 0.0 if xs is silence else NOISE,
                    "seed": seed,
                    "exponent": float(exponent),
                    "activity": float(activity),
                    "mean_field_exponent": mean_field(gain).exponent,
                    "mean_field_activity": mean_field(gain).activity,
                }
            )
    return rows


def mean_of(rows: list[Row], gain: float, field: str) -> float:
    """The mean of a field over seeds, at one gain without input."""
    found = [row[field] for row in of(rows, noise=0.0, gain=gain)]
    return float(np.mean(found)) if found else math.nan


def crossing(rows: list[Row]) -> float | None:
    """The gain at which the mean exponent without input becomes positive."""
    means = [mean_of(rows, gain, "exponent") for gain in GAINS]
    for i in range(len(GAINS) - 1):
        if means[i] <= 0 < means[i + 1]:
            share = -means[i] / (means[i + 1] - means[i])
            return GAINS[i] + share * (GAINS[i + 1] - GAINS[i])
    return None


def off_exponent(rows: list[Row]) -> float:
    """The largest distance of a mean exponent from mean field, off the edge."""
    return max(
        abs(
            mean_of(rows, gain, "exponent") - mean_of(rows, gain, "mean_field_exponent")
        )
        for gain in (0.5, 0.7, 1.5, 2.0)
    )


def off_activity(rows: list[Row]) -> float:
    """The largest distance of a mean activity from mean field, relative to that."""
    return max(
        abs(
            mean_of(rows, gain, "activity") / mean_of(rows, gain, "mean_field_activity")
            - 1
        )
        for gain in (1.2, 1.5, 2.0)
    )


CHAOS = Fact(
    "chaos",
    "A random tanh network without input falls silent below gain 1 and stays active "
    "above it, where it becomes chaotic, with the exponent that mean-field theory "
    "gives; noise moves the edge of chaos to larger gains.",
    "Sompolinsky, Crisanti & Sommers (1988); Molgedey, Schuchhardt & Schuster (1992)",
    f"Elman networks of {UNITS:,} units, leading Lyapunov exponent over "
    f"{STEPS - WARMUP:,} steps, gains {', '.join(f'{g:g}' for g in GAINS)}; noise of "
    f"size {NOISE:g} on each unit at gain {DRIVEN:g}",
    (
        Bound(
            "activity of a unit after all steps at gain 0.9, the largest of the seeds",
            "<=",
            1e-3,
            lambda rows: largest(rows, "activity", gain=0.9),
            "silent",
        ),
        Bound(
            "distance of the activity from mean field at gains 1.2, 1.5 and 2, as a "
            "share of it, the largest",
            "<=",
            0.2,
            off_activity,
            "active; a finite network fluctuates",
        ),
        Bound(
            "distance of the exponent from mean field at gains 0.5, 0.7, 1.5 and 2 "
            "(nats a step), the largest",
            "<=",
            0.05,
            off_exponent,
            "finite networks differ from the limit by about one over the square root "
            "of their size, 0.031",
        ),
        Bound(
            "gain at which the mean exponent becomes positive",
            "<=",
            1.5,
            crossing,
            "mean field has 1, but an exponent of 0.005 at 1.1 and 0.017 at 1.2; there "
            "finite networks often settle in a cycle",
        ),
        Bound(
            "exponent at gain 2, the least of all seeds",
            ">=",
            0.1,
            lambda rows: least(rows, "exponent", gain=2.0),
            "mean field has 0.155",
        ),
        Bound(
            "exponent at gain 1.2 under noise, the largest of all seeds",
            "<=",
            0,
            lambda rows: largest(rows, "exponent", noise=NOISE),
            "not chaotic",
        ),
    ),
    tuple(range(3)),
    1,
    chaos,
)
