"""The scores of a run on the data that it has held out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arrays import plain_numbers
from ..core.records import fields_of
from ..training import InputError
from ..training.announced import announced
from .models.own_cell import CellLike
from .runner import as_stored, restore


def evaluate_held_out(
    path: str | os.PathLike,
    *,
    cell: CellLike | None = None,
    trust_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Score a run on its own held-out data, as at its end.

    Args:
        path: the run directory.
        cell: as for `jaxrnn.tasks.load`.
        trust_code: as for `jaxrnn.tasks.load`.
        say: is called with notes: which checkpoints are damaged, and what is scored.

    Returns:
        The scores, with their baselines.

    Raises:
        InputError: as for `jaxrnn.tasks.load`, or if the data cannot be read or are no
            longer those of the run.

    Example:
        >>> import contextlib, io, tempfile
        >>> from jaxrnn.tasks import train
        >>> small = {"length": 6, "hidden": 4}
        >>> with (
        ...     tempfile.TemporaryDirectory() as folder,
        ...     contextlib.redirect_stdout(io.StringIO()),
        ... ):
        ...     out = f"{folder}/run"
        ...     run, result, lines = train("adding", small, {"steps": 2}, out=out)
        ...     scores = evaluate_held_out(run.path)
        >>> abs(scores["mse"] - result["mse"]) < 1e-5
        True
    """
    run, declared, options, _, (_, params), notes = restore(
        path, cell=cell, trust_code=trust_code
    )
    if "devices" in fields_of(options):
        options = dataclasses.replace(options, devices=1)
    with announced("preparing the data"):
        experiment, config = declared.prepare(options)
    for name, value in as_stored(config).items():
        if value != run.config.get(name):
            raise InputError(
                f"{run.path} was trained on other data than its --data has now "
                f"({name} differs): restore them, or name a file to score with --data"
            )
    for note in notes:
        say(note)
    say(f"scoring what the run has held out; {experiment.data}")
    state = experiment.start()._replace(params=jax.tree.map(jnp.asarray, params))
    return plain_numbers((experiment.finally_evaluate or experiment.evaluate)(state))
