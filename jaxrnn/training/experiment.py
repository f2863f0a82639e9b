"""What is trained and for how long, as the host loop sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .errors import InputError
from .state import TrainState


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A task as the host loop sees it: functions of a `TrainState`.

    Attributes:
        start: ``start() -> state``, the initial state.
        advance: ``advance(state, progress) -> state``, one step. ``progress`` in [0, 1]
            is the share of the budget that is used.
        describe: ``describe(loss) -> metrics``, named metrics of a mean loss in nats.
        evaluate: ``evaluate(state) -> scores``, the held-out scores.
        sample: ``sample(state) -> text``, a sample of the model's output, or None.
        learning_rate: ``learning_rate(progress)``, for the record.
        look: ``look(state) -> measurements``, optional. It is called before the first
            step, at every evaluation and at the end; its result is one line of
            ``gradients.jsonl``.
        unit: the unit that `TrainState.tokens` counts.
        best_by: the name of a held-out score and "max" or "min". The parameters with
            the best score (the first of equals) are kept: `fit` returns them,
            ``finally_evaluate`` scores them, and readers of the run get them.
        finally_evaluate: replaces ``evaluate`` at the end of the run.
        notes: lines printed before the first step, such as how the data were split.
        part: what ``evaluate`` scores, in a word or two: ``validation`` where it
            chooses the best parameters.
        data: the sizes of the data, in words.
        introduce: ``introduce(state) -> lines``, optional. They say what is trained and
            are printed before all else.
        baselines: names of scores that stay the same, which the lines of evaluations
            leave out.
        last_end: how the processes of a run that is resumed ended, in words, if they
            did not end in order.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.training import (
        ...     Experiment, constant, fresh_state, make_batch_step, make_optimizer)
        >>> optimizer, rate, key = make_optimizer(), constant(0.1), jax.random.key(0)
        >>> step = make_batch_step(
        ...     lambda params, *_: (jnp.square(params["w"] - 2), jnp.asarray(1)),
        ...     optimizer,
        ...     rate,
        ... )
        >>> experiment = Experiment(
        ...     start=lambda: fresh_state(optimizer, {"w": jnp.zeros(())}, key),
        ...     advance=lambda state, progress: step(state, None, progress),
        ...     describe=lambda loss: {"loss": loss},
        ...     evaluate=lambda state: {"distance": abs(2 - float(state.params["w"]))},
        ...     sample=lambda state: None,
        ...     learning_rate=rate,
        ... )
        >>> state = experiment.advance(experiment.start(), 0.0)
        >>> f"{experiment.evaluate(state)['distance']:.2f}"  # Adam's step
        '1.90'
    """

    start: Callable[[], TrainState]
    advance: Callable[[TrainState, Any], TrainState]
    describe: Callable[[float], dict[str, float]]
    evaluate: Callable[[TrainState], dict[str, Any]]
    sample: Callable[[TrainState], str | None]
    learning_rate: Callable[[Any], Any]
    look: Callable[[TrainState], dict[str, Any]] | None = None
    unit: str = "tokens"
    best_by: tuple[str, str] | None = None
    finally_evaluate: Callable[[TrainState], dict[str, Any]] | None = None
    notes: tuple[str, ...] = ()
    part: str = "held out"
    data: str = ""
    introduce: Callable[[TrainState], tuple[str, ...]] | None = None
    baselines: frozenset[str] = frozenset()
    last_end: str = ""


@dataclasses.dataclass(frozen=True)
class Budget:
    """The length of a run, and the intervals of its reports.

    Args:
        steps: the total number of updates. The run is then deterministic, whether it is
            killed and resumed or not.
        seconds: the wall-clock time, including compilation, evaluation, and earlier
            parts of a resumed run. The learning rate follows the clock, so that such a
            run is not reproducible.
        report_every: the steps between two reports.
        evaluate_every: the steps between two evaluations, a multiple of
            ``report_every``.
        checkpoint_seconds: the time between checkpoints, which are written at reports;
            0 writes one at each report.
        patience: the number of evaluations without a better held-out score after which
            training stops; 0 disables it. Only for experiments with ``best_by``.

    Raises:
        InputError: for a budget without an end, or a value out of range.

    Example:
        >>> from jaxrnn.training import Budget
        >>> Budget(steps=200).spent(50, elapsed=3.0)
        0.25
        >>> Budget(steps=200, seconds=6.0).spent(50, elapsed=3.0)  # the larger share
        0.5
    """

    steps: int | None = None
    seconds: float | None = None
    report_every: int = 50
    evaluate_every: int = 500
    checkpoint_seconds: float = 20.0
    patience: int = 0

    def __post_init__(self):
        if self.steps is None and self.seconds is None:
            raise InputError("a run needs a budget: --steps, --seconds or both")
        for name in ("steps", "seconds", "report_every", "evaluate_every"):
            value = vars(self)[name]
            if value is not None and not value > 0:
                raise InputError(
                    f"--{name.replace('_', '-')} must be more than 0, but it is {value}"
                )
        if self.evaluate_every % self.report_every:
            raise InputError(
                f"--evaluate-every must be a multiple of --report-every, but "
                f"{self.evaluate_every} is not one of "
                f"{self.report_every}"
            )
        if self.checkpoint_seconds < 0:
            raise InputError(
                f"--checkpoint-seconds must not be negative, but it is "
                f"{self.checkpoint_seconds}"
            )
        if self.patience < 0:
            raise InputError(
                f"--patience must not be negative, but it is {self.patience}"
            )

    def spent(self, step: int, elapsed: float) -> float:
        """Return the share of the budget that is used, by steps or by the clock.

        Args:
            step: the number of updates so far.
            elapsed: the seconds so far.

        Returns:
            The larger of the two shares, at most 1.
        """
        shares = [step / self.steps] if self.steps else []
        if self.seconds:
            shares.append(elapsed / self.seconds)
        return min(max(shares), 1.0)
