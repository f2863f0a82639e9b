"""Facts about gradients and engines that are computed and not trained."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import ARTBP, LSTM, Elman, Newton, truncated_unroll

from ..cpu.newton import D, inputs, measured
from .fact import Bound, Fact, Row, largest, least, of

# ------------------------------------------------------------------------------ ARTBP
STEPS = 8


def artbp(seeds: tuple[int, ...], quick: bool) -> list[Row]:
    """The expected gradient, by summing over all patterns of cuts."""
    steps = 4 if quick else STEPS
    # Before the first step there is nothing to cut off.
    patterns = itertools.product((False, True), repeat=steps - 1)
    cuts = np.array([(False, *pattern) for pattern in patterns])
    rows = []
    with jax.enable_x64(True):
        for seed, alpha in itertools.product(seeds, (4.0, math.inf)):
            rows.append(expected_gradient(seed, jnp.asarray(cuts), alpha))
    return rows


def expected_gradient(seed: int, cuts: Any, alpha: float) -> Row:
    """How far the expectation is from the gradient of full BPTT, with weights and
    without.
    """
    cell, steps = LSTM(4), cuts.shape[1]
    k_cell, k_xs, k_read = jax.random.split(jax.random.key(seed), 3)
    params = cell.init(k_cell, 3)
    xs = jax.random.normal(k_xs, (steps, 3))
    readout = jax.random.normal(k_read, (steps, 4))

    def gradient(scale: Any) -> Any:
        def loss(params: Any) -> Any:
            ys = truncated_unroll(cell, params, xs, gradient_scale=scale)[1]
            return jnp.sin(ys * readout).sum()

        return jax.flatten_util.ravel_pytree(jax.grad(loss)(params))[0]

    weights, log_probability = jax.vmap(ARTBP(3.0, alpha).scale_of)(cuts)
    probability = jnp.exp(log_probability)
    full = gradient(jnp.ones(steps))

    def off(scales: Any) -> float:
        expected = probability @ jax.lax.map(gradient, scales)
        return float(jnp.linalg.norm(expected - full) / jnp.linalg.norm(full))

    return {
        "seed": seed,
        "alpha": alpha if math.isfinite(alpha) else "inf",
        "patterns": len(cuts),
        "probability_beyond_one": float(abs(probability.sum() - 1)),
        "error": off(weights),
        "error_without_weights": off(1.0 - cuts),
    }


UNBIASED = Fact(
    "artbp",
    "Randomly truncated backpropagation whose gradient is divided by the probability "
    "of no cut (ARTBP) has the gradient of full BPTT as its expectation; without the "
    "weights truncation is biased.",
    "Tallec & Ollivier (2017)",
    f"an LSTM of 4 units over {STEPS} steps, float64; the expectation over all "
    f"{2 ** (STEPS - 1)} patterns of cuts, mean interval 3, constant and heavy-tailed",
    (
        Bound(
            "relative error of the expected gradient, the largest",
            "<=",
            1e-12,
            lambda rows: largest(rows, "error"),
            "equal to rounding",
        ),
        Bound(
            "relative error of the expectation without weights, the least",
            ">=",
            0.01,
            lambda rows: least(rows, "error_without_weights"),
            "so that the first figure could have failed",
        ),
    ),
    (0, 1, 2),
    0.5,
    artbp,
)

# ----------------------------------------------------------------------------- Newton
GAINS = (0.3, 0.6, 0.9, 1.2, 1.6, 2.0)
LENGTH, UNITS = 512, 16


def newton(seeds: tuple[int, ...], quick: bool) -> list[Row]:
    """Iterations and exponents of Elman networks whose recurrent weights grow."""
    steps, size = (64, 4) if quick else (LENGTH, UNITS)
    engine = Newton(None, max_iterations=steps, tolerance=1e-12)
    rows = []
    with jax.enable_x64(True):
        cell, xs = Elman(size), inputs(steps)
        for seed in seeds:
            params = cell.init(jax.random.key(seed), D)
            for gain in GAINS:
                kernel = gain * params["recurrent_kernel"]
                scaled = params | {"recurrent_kernel": kernel}
                row = measured(cell, scaled, xs, engine)
                rows.append({"seed": seed, "gain": gain, "steps": steps, **row})
    return rows


def rank_correlation(rows: list[Row]) -> float | None:
    """Spearman's correlation of exponent and iterations, the least of all seeds."""
    found = []
    for seed in {row["seed"] for row in rows}:
        mine = of(rows, seed=seed)
        ranks = [
            np.argsort(np.argsort([row[name] for row in mine], kind="stable"))
            for name in ("exponent", "iterations")
        ]
        found.append(float(np.corrcoef(*ranks)[0, 1]))
    return min(found, default=None)


def growth(rows: list[Row]) -> float | None:
    """Iterations nearest to the edge over those farthest from it, least of seeds."""
    found = []
    for seed in {row["seed"] for row in rows}:
        mine = sorted(of(rows, seed=seed), key=lambda row: row["exponent"])
        found.append(mine[-1]["iterations"] / mine[0]["iterations"])
    return min(found, default=None)


ITERATIONS = Fact(
    "newton",
    "Newton's method over all time steps at once converges in few iterations where the "
    "leading Lyapunov exponent is negative, and in more the nearer it comes to zero.",
    "Lim et al. (2024); Gonzalez, Kozachkov, Zoltowski, Clarkson & Linderman (2025)",
    f"Elman networks of {UNITS} units, {LENGTH} steps at once, float64, until no state "
    f"changes by more than 1e-12; recurrent weights times "
    f"{', '.join(f'{g:g}' for g in GAINS)}",
    (
        Bound(
            "iterations where the exponent is below -0.5, the largest",
            "<=",
            math.log2(LENGTH),
            lambda rows: largest(
                [row for row in rows if row["exponent"] < -0.5], "iterations"
            ),
            "work of order (log T)^2 means a number of iterations like log2 T",
        ),
        Bound(
            "rank correlation of exponent and iterations, the least of all seeds",
            ">=",
            0.9,
            rank_correlation,
            "the exponent orders the iterations; one exchange of neighbors out of six "
            "leaves 0.94",
        ),
        Bound(
            "iterations at the largest exponent over those at the smallest, the least "
            "of all seeds",
            ">=",
            10,
            growth,
            "an order of magnitude",
        ),
        Bound(
            "difference from the loop where the exponent is below -0.1, the largest",
            "<=",
            1e-9,
            lambda rows: largest(
                [row for row in rows if row["exponent"] < -0.1], "difference"
            ),
            "the same states",
        ),
    ),
    (0, 1, 2),
    1,
    newton,
)
