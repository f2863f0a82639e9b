"""What the tasks on labelled examples share: the experiment around a loss and its
batches, and what none of them does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax

from ..core.cell import Params
from ..training import (
    Experiment,
    InputError,
    TrainState,
    fresh_state,
    make_batch_step,
    make_optimizer,
    warmup_cosine,
)
from .data.bucketing import Buckets, Rows


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
) -> Experiment:
    """The experiment of a task: Adam on the mean loss of batches out of ``buckets``,
    the best parameters by validation.

    Args:
        options: have ``learning_rate``, ``clip``, ``weight_decay`` and ``seed``.
        loss: as for `jaxrnn.training.make_batch_step`: ``(params, batch, key) -> (sum
            of losses, their number)``.
        batch: the arrays of a batch's examples, padded to its width; ``rows`` of -1
            count for nothing.
        validate, test: scores by name; those of ``validate`` choose the parameters that
            ``test`` scores once, in the end.
        best_by: the name of a score of ``validate``, and "max" or "min".
        sample: a line to look at, such as one example and what the model makes of it.
    """
    optimizer = make_optimizer(clip=options.clip, weight_decay=options.weight_decay)
    schedule = warmup_cosine(options.learning_rate)
    step = make_batch_step(loss, optimizer, schedule)
    key = jax.random.fold_in(
        jax.random.key(options.seed), 1
    )  # the first parameters took the key itself

    def advance(state: TrainState, progress: Any) -> TrainState:
        return step(state, batch(buckets(int(state.step))), progress)

    return Experiment(
        start=lambda: fresh_state(optimizer, params, key),
        advance=advance,
        describe=lambda loss: {"loss": loss},
        evaluate=lambda state: validate(state.params),
        sample=lambda state: sample(state.params),
        learning_rate=schedule,
        unit=unit,
        best_by=best_by,
        finally_evaluate=lambda state: test(state.params),
        notes=notes,
    )


def digest(examples: Any) -> str:
    """A fingerprint of JSON-like data for a run's config, so that a resumed run
    meets the same examples.
    """
    return hashlib.sha256(json.dumps(examples, ensure_ascii=False).encode()).hexdigest()


def mean_loss(parts: Iterable[tuple[Any, Any]]) -> float:
    """Of sums of losses and their numbers."""
    total, count = map(
        sum,
        zip(*((float(losses), int(number)) for losses, number in parts), strict=True),
    )
    return total / count


class PredictsLabels:
    """What a trained task that answers does not do."""

    task: ClassVar[str]

    def sample(
        self,
        prompt: str,
        length: int | None,
        temperature: float | None,
        top_k: int | None,
        seed: int,
    ) -> str:
        raise InputError(
            f"{self.task} writes nothing of its own: sample is for language models. "
            f"Try jaxrnn predict RUN INPUT"
        )

    def evaluate_length(self, length: int) -> dict[str, Any]:
        raise InputError(
            f"{self.task} makes no sequences of its own: --data PATH evaluates it on a "
            f"file"
        )
