"""How the gradient of this very model decays with the lag."""

from __future__ import annotations

import functools
import io
from typing import Any

import jax
import numpy as np

from ... import diagnostics
from ...core.types import Params
from ...diagnostics.style import save, title
from ...training import InputError
from ...training.curves import new_figure
from .. import charlm
from ..pictures import subject_of
from ..probe import Probe, lags_of
from ..synthetic.task import Trained as TrainedSynthetic
from .facts import Facts
from .markup import Markup, element, picture, section

LENGTH, BATCH = 100, 8  # steps and sequences that are measured


def decay_section(facts: Facts, trained: object) -> Markup:
    """Return the section on gradients; empty for tasks without a loss of each step."""
    try:
        log_v = decay_of(trained)
    except InputError:  # the text is not there any more, or too short
        return Markup("")
    if log_v is None or new_figure(1, 1) is None:
        return Markup("")
    length, what = len(log_v) - 1, "Gradient at the state k steps before the loss"
    drawn = diagnostics.plots.decay_curves(
        {"after training": log_v}, title=title(what, subject_of(facts.run))
    )
    data = io.BytesIO()
    save(drawn, data)
    kept = float(np.exp(log_v[-1] - log_v[0]))
    text = (
        f"How much of the gradient of the last loss arrives at earlier states, on "
        f"average over {BATCH} held-out sequences: {kept:.2g} of it is left after "
        f"{length} steps."
    )
    return section("Gradients", element("p", text), picture(data.getvalue(), what))


def decay_of(trained: object) -> np.ndarray | None:
    """Return log v_k, k = 0..K, of a trained model; None where it has no probe."""
    probe: Any
    if isinstance(trained, charlm.Trained):
        text = charlm.held_out_of(trained.options, trained.vocabulary)
        length = min(LENGTH, len(text) - 2)
        starts = np.linspace(0, len(text) - length - 1, BATCH).astype(int)
        rows = starts[None, :] + np.arange(length)[:, None]
        probe = functools.partial(trained.functions.probe, text[rows], text[rows + 1])
    elif isinstance(trained, TrainedSynthetic):
        problem = trained.problem
        if problem.pooled or (problem.stored and problem.length > 2 * LENGTH):
            return None
        length = problem.length if problem.stored else min(problem.length, LENGTH)
        probe = trained.task.probe(
            trained.options, {}, max(length, problem.least), BATCH
        )
    else:
        return None
    return np.asarray(_lags(probe, trained.params), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _lags(probe: Any, params: Params) -> Any:
    """Return log v_k at given parameters."""
    probed: Probe = probe(params)
    return lags_of(probed).log_v
