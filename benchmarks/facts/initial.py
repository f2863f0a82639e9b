"""Facts about networks as they are drawn: decay of gradients, and the edge of chaos."""

from __future__ import annotations

import math

import jax
import numpy as np

from jaxrnn.diagnostics import fit_decay
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.tasks.probe import as_json, lags_of

from ..gradients.decay_initial import draw_all, fit_range, probe_of
from .fact import Bound, Fact, Row, largest, least, median

HIDDEN, BATCH = 64, 32
STEPS = 200


def decay(spec: str, steps: int, seed: int, quick: bool) -> Row:
    """How the gradient of the adding task's loss decays in one network."""
    hidden, batch = (8, 4) if quick else (HIDDEN, BATCH)
    cell = make_cell(spec, hidden, steps)
    lags = lags_of(probe_of(cell, draw_all(cell, seed, hidden, steps, batch)))
    fit = fit_decay(lags, fit_range(steps), key=jax.random.key(seed))
    log_v = np.asarray(lags.log_v)
    beta = float(fit.beta)
    return {
        "cell": spec,
        "steps": steps,
        "seed": seed,
        "beta": as_json(beta),
        "tau_over_steps": as_json(-1 / math.log(beta) / steps if 0 < beta < 1 else 1e9),
        "decades": as_json((log_v[steps - 1] - log_v[0]) / math.log(10)),
    }


def vanishing(seeds: tuple[int, ...], quick: bool) -> list[Row]:
    """The decay of every cell and seed."""
    cells = ("elman:0.5", "elman:1", "elman", "lstm", "irnn")
    steps = 30 if quick else STEPS
    return [decay(cell, steps, seed, quick) for cell in cells for seed in seeds]


def chrono(seeds: tuple[int, ...], quick: bool) -> list[Row]:
    """The decay of LSTMs with biases for as many steps as there are, and without."""
    lengths = (30, 40) if quick else (100, 200, 400)
    return [
        decay(cell, steps, seed, quick)
        for cell in ("lstm:chrono", "lstm")
        for steps in lengths
        for seed in seeds
    ]


def decades_ahead(rows: list[Row]) -> float | None:
    """How many powers of ten more of the gradient an LSTM lets through than tanh."""
    ours, theirs = (median(rows, "decades", cell=c) for c in ("lstm", "elman"))
    return None if ours is None or theirs is None else ours - theirs


VANISHING = Fact(
    "vanishing",
    "The gradient of a tanh network vanishes exponentially with the lag, at least as "
    "fast as its gain to the power of the lag; less so in an LSTM, and not at all in a "
    "ReLU network that begins with the identity (IRNN).",
    "Hochreiter (1991); Bengio, Simard & Frasconi (1994); Pascanu, Mikolov & Bengio "
    "(2013); Le, Jaitly & Hinton (2015)",
    f"{HIDDEN} units, adding over {STEPS} steps, batch {BATCH}, loss of the last step",
    (
        Bound(
            "decay a step of tanh with gain 0.5, median",
            "<=",
            0.525,
            lambda rows: median(rows, "beta", cell="elman:0.5"),
            "the derivative of tanh is at most 1, so a random matrix shrinks a vector "
            "by its gain at least: 0.5, and 5 % for 64 units",
        ),
        Bound(
            "powers of ten left after 199 steps, tanh with gain 0.5, 1 or an "
            "orthogonal matrix, the largest of all seeds",
            "<=",
            -7,
            lambda rows: max(
                (row["decades"] for row in rows if row["cell"].startswith("elman")),
                default=math.nan,
            ),
            "less than float32 resolves beside a gradient of ordinary size",
        ),
        Bound(
            "powers of ten that an LSTM (forget bias 1) lets through beyond an "
            "orthogonal tanh network, medians",
            ">=",
            3,
            decades_ahead,
            "the LSTM is a remedy if it is so by orders of magnitude",
        ),
        Bound(
            "powers of ten left after 199 steps in an IRNN, the least of all seeds",
            ">=",
            -1,
            lambda rows: least(rows, "decades", cell="irnn"),
            "the identity neither shrinks nor stretches",
        ),
    ),
    tuple(range(10)),
    1,
    vanishing,
)

CHRONO = Fact(
    "chrono",
    "With chrono biases for T steps an LSTM forgets over about T steps, whatever T is; "
    "with the standard bias over a fixed few.",
    "Tallec & Ollivier (2018)",
    f"{HIDDEN} units, adding over 100, 200 and 400 steps, batch {BATCH}; the time "
    "constant of the gradient's decay, over T",
    (
        Bound(
            "time constant over T with chrono biases, the least of all T and seeds",
            ">=",
            0.5,
            lambda rows: least(rows, "tau_over_steps", cell="lstm:chrono"),
            "the slowest units forget over T steps; within a factor of 2",
        ),
        Bound(
            "time constant over T with chrono biases, the largest",
            "<=",
            2,
            lambda rows: largest(rows, "tau_over_steps", cell="lstm:chrono"),
            "the same",
        ),
        Bound(
            "time constant over T with forget bias 1, T = 400, the largest",
            "<=",
            0.1,
            lambda rows: largest(rows, "tau_over_steps", cell="lstm", steps=400),
            "a gate of sigmoid(1) = 0.73 forgets over 1 / (1 - 0.73) = 3.7 steps, and "
            "other paths over some more",
        ),
    ),
    tuple(range(5)),
    1,
    chrono,
)
