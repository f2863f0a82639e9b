"""Train one cell on one task until it has solved it or the updates are spent, by the
programs of `jaxrnn train`.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from jaxrnn.tasks.probe import as_json
from jaxrnn.tasks.runner import TASKS

GOALS = {  # the score that counts as solved, and its name
    "temporal-order": ("accuracy", lambda score: score >= 0.99),
    "adding": ("mse", lambda score: score < 0.01),
}
EVERY = 100  # updates between held-out evaluations


def train(
    task: str, spec: str, length: int, *, updates: int, hidden: int, seed: int
) -> dict[str, Any]:
    """One run: ``solved_after`` updates, or None; and the last held-out score beside
    its baseline.
    """
    module, (name, solved) = TASKS[task], GOALS[task]
    options = module.Options(cell=spec, hidden=hidden, length=length, seed=seed)
    experiment, _ = module.prepare(options)
    state, began, scores = experiment.start(), time.perf_counter(), []
    keep = max if name == "accuracy" else min
    for update in range(1, updates + 1):
        state = experiment.advance(state, np.float32(update / updates))
        if update % EVERY and update != updates:
            continue
        found = experiment.evaluate(state)
        scores.append(float(found[name]))
        if solved(scores[-1]) or not np.isfinite(scores[-1]):
            break
    jax.block_until_ready(state)
    return {
        "task": task,
        "length": length,
        "cell": spec,
        "hidden": hidden,
        "seed": seed,
        "updates": update,
        "solved_after": update if solved(scores[-1]) else None,
        "diverged": not np.isfinite(scores[-1]),
        "score": name,
        "final": as_json(scores[-1]),
        "best": as_json(keep(filter(np.isfinite, scores), default=np.nan)),
        "baseline": float(found["baseline"]),
        "scores": as_json(scores),
        "batch": options.batch,
        "learning_rate": options.learning_rate,
        "seconds": time.perf_counter() - began,
    }
