"""The experiment of tasks on labeled examples, and the commands that they lack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ..core.types import Params
from ..training import (
    Experiment,
    InputError,
    TrainState,
    fresh_state,
    make_batch_step,
)
from ..training.devices import mesh_of_processes, on_one_device
from ..training.sharding import on_mesh
from .data.bucketing import Buckets, Rows
from .optimizers import named_optimizer, named_schedule


def supervised(
    options: Any,
    params: Params,
    *,
    loss: Callable[[Params, Any, Any], tuple[Any, Any]],
    buckets: Buckets,
    batch: Callable[[Rows], Any],
    validate: Callable[[Params], dict[str, Any]],
    test: Callable[[Params], dict[str, Any]],
    best_by: tuple[str, str],
    sample: Callable[[Params], str | None] = lambda params: None,
    unit: str = "tokens",
    notes: tuple[str, ...] = (),
    data: str = "",
    axis: int = 0,
) -> Experiment:
    """Return an experiment that minimizes the mean loss of batches of ``buckets``.

    The best parameters are chosen by a validation score.

    Args:
        options: an object with ``optimizer``, ``learning_rate``, ``schedule``,
            ``clip``, ``weight_decay`` and ``seed``.
        params: the initial parameters.
        loss: ``(params, batch, key) -> (sum of losses, number of losses)``, as for
            `jaxrnn.training.make_batch_step`.
        buckets: the batches as rows of examples.
        batch: makes the arrays of a batch, padded to its width; ``rows`` of -1 must not
            count.
        validate, test: return scores by name. Those of ``validate`` choose the
            parameters that ``test`` scores once, at the end.
        best_by: the name of a score of ``validate``, and "max" or "min".
        sample: returns one line of text, such as an example with its prediction.
        unit: the unit of the number of losses.
        notes: lines printed before training.
        data: the sizes of the data, in words.
        axis: the axis of the rows in the arrays of a batch.
    """
    optimizer = named_optimizer(
        options.optimizer, clip=options.clip, weight_decay=options.weight_decay
    )
    schedule = named_schedule(options.schedule, options.learning_rate)
    mesh = mesh_of_processes(options)
    step = make_batch_step(loss, optimizer, schedule, mesh, axis)
    # The key itself has drawn the initial parameters.
    key = jax.random.fold_in(jax.random.key(options.seed), 1)

    def advance(state: TrainState, progress: Any) -> TrainState:
        return step(state, batch(buckets(int(state.step))), progress)

    return Experiment(
        start=lambda: on_mesh(fresh_state(optimizer, params, key), mesh),
        advance=advance,
        describe=lambda loss: {"loss": loss},
        evaluate=lambda state: validate(on_one_device(state.params)),
        sample=lambda state: sample(on_one_device(state.params)),
        learning_rate=schedule,
        unit=unit,
        best_by=best_by,
        finally_evaluate=lambda state: test(on_one_device(state.params)),
        notes=notes,
        part="validation",
        data=data,
    )


def summed_cross_entropy(
    logits: Float[Array, "*N C"], targets: Int[Array, "*N"], counts: Bool[Array, "*N"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Return the sum of the cross-entropies (nats) that count, and their number."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.where(counts, losses, jnp.zeros_like(losses)).sum(), counts.sum()


def digest(examples: object) -> str:
    """Return a hash of JSON-like data, by which a resumed run checks its examples."""
    return hashlib.sha256(json.dumps(examples, ensure_ascii=False).encode()).hexdigest()


def digest_of_parts(parts: Iterable[Iterable[Any]]) -> str:
    """Return the `digest` of lists of rows.

    They are written row by row: as one text they would need a multiple of their memory.
    """
    found, between = hashlib.sha256(b"["), b""
    for part in parts:
        found.update(between + b"[")
        inner = b""
        for row in part:
            found.update(inner + json.dumps(row, ensure_ascii=False).encode())
            inner = b", "
        found.update(b"]")
        between = b", "
    found.update(b"]")
    return found.hexdigest()


def mean_loss(parts: Iterable[tuple[Any, Any]]) -> float:
    """Return the mean from pairs of a sum of losses and their number."""
    total, count = map(
        sum,
        zip(*((float(losses), int(number)) for losses, number in parts), strict=True),
    )
    return total / count


class PredictsLabels:
    """The commands that a trained classifier or transducer does not have."""

    task: ClassVar[str]

    def sample(
        self,
        prompt: str,
        length: int | None,
        temperature: float | None,
        top_k: int | None,
        seed: int,
    ) -> str:
        """Refuse: the task is not a language model."""
        raise InputError(
            f"{self.task} does not generate text: sample is for language models. "
            f"Try jaxrnn predict RUN INPUT"
        )

    def evaluate_length(self, length: int) -> dict[str, Any]:
        """Refuse: the task has no synthetic sequences."""
        raise InputError(
            f"{self.task} has no synthetic sequences: --data PATH evaluates it on a "
            f"file"
        )
