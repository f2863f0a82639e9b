"""Gradient norms by lag during training: ``gradients.jsonl`` and ``gradients.png``."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ... import diagnostics
from ...core.types import Params
from ...diagnostics.style import save, title
from ...training import Run
from ...training.curves import new_figure
from ..models.sequence_model import Batch, SequenceModel
from ..pictures import subject_of


@functools.partial(jax.jit, static_argnums=0)
def log_v(model: SequenceModel, params: Params, batch: Batch) -> Float[Array, " K"]:
    """Return log v_k, k = 0..T, the log batch mean of ``||dl/ds_{T-k}||``.

    l is the loss of the last step of a sequence and s is the whole carry. Gradients are
    full ones, also for a model that is trained with truncated BPTT. Words shorter than
    k steps do not count at lag k.
    """
    lengths = (
        jnp.full(batch.inputs.shape[1], len(batch.inputs))
        if batch.mask is None
        else batch.mask.sum(0)
    )
    last = batch.targets[lengths - 1, jnp.arange(len(lengths))]

    def loss(y):
        return model.losses(model.read(params, y), last).sum()

    return diagnostics.gradient_lags(
        model.layer,
        params["rnn"],
        model.embed(params, batch.inputs),
        loss,
        mask=batch.mask,
    ).log_v


def record_lags(model: SequenceModel, params: Params, batch: Batch) -> dict[str, Any]:
    """Return ``{"log_v": [...]}``.

    A value is null where the norm is exactly zero (JSON has no -inf) or NaN.
    """
    logs = np.asarray(log_v(model, params, batch), np.float64)
    return {"log_v": [float(value) if np.isfinite(value) else None for value in logs]}


def draw_gradients(run: Run) -> pathlib.Path | None:
    """Draw ``gradients.png``: log v_k / v_0 against k, one curve per record.

    None without records, or without matplotlib.
    """
    records = run.records("gradients.jsonl")
    if not records or new_figure(1, 1) is None:
        return None
    # Norms of exactly zero are NaN here, so that the curve ends there.
    log_v = np.asarray(
        [
            [np.nan if value is None else value for value in record["log_v"]]
            for record in records
        ]
    )
    what = "Gradient at the state k steps before the loss"
    figure = diagnostics.plots.training_curves(
        [record["step"] for record in records],
        log_v,
        title=title(what, subject_of(run)),
    )
    path = run.path / "gradients.png"
    save(figure, path)
    return path
