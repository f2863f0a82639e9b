"""The host loop: steps, reports, evaluations and checkpoints until the budget is
spent or somebody stops it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.cell import Params
from .checkpoints import Checkpoints
from .errors import InputError, stopped_writing, unwritable
from .progress import Report, reporting
from .run import Run
from .state import TrainState


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A task as the host loop sees it: functions of a `TrainState`.

    ``start()`` makes the first state; ``advance(state, progress)`` takes one step,
    ``progress`` in [0, 1] being the share of the budget that is spent;
    ``describe(loss)`` turns a mean loss in nats into named metrics; ``evaluate(state)``
    gives held-out scores; ``sample(state)`` something to look at, or None;
    ``learning_rate(progress)`` is for the record. ``look(state)``, if there is one,
    looks inside: before the first step, at every evaluation and at the end its result
    is a line of ``gradients.jsonl``. ``unit`` is what `TrainState.tokens` counts.

    ``best_by``, a held-out score and "max" or "min", keeps the parameters that had the
    best one (the first of equals): they are what `fit` returns, what
    ``finally_evaluate(state)`` scores in the end, in place of ``evaluate``, and what a
    reader of the run gets. ``notes`` are told before the first step, such as how the
    data were split.
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


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a run goes on, and what it does on the way.

    Args:
        steps: updates in all; the run is then the same numbers each time, killed and
            resumed or not.
        seconds: of wall-clock time, compilation and evaluation included, earlier parts
            of a resumed run counted in. The learning rate follows the clock, so such a
            run is not the same numbers twice.
        report_every, evaluate_every: in steps.
        checkpoint_seconds: between checkpoints, which are written at reports; 0 writes
            one at each report.
        patience: evaluations without a better held-out score after which training
            stops; 0: it does not. Only for experiments that say by which score
            (``best_by``).
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
            value = getattr(self, name)
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
        """The share of the budget that is spent, by steps or by the clock, whichever
        is further.
        """
        shares = [step / self.steps] if self.steps else []
        if self.seconds:
            shares.append(elapsed / self.seconds)
        return min(max(shares), 1.0)


def fit(
    experiment: Experiment, run: Run, budget: Budget, *, resume: bool = False
) -> tuple[TrainState, dict[str, Any]]:
    """Train until the budget is spent; return the last state and the result that was
    written.

    Ctrl-C (or SIGTERM) stops after the step at hand and saves; a run that was killed
    loses what came after its last checkpoint, and with ``resume`` goes on from there to
    the same numbers.

    Raises:
        BadInput: where there is no checkpoint to resume from, a loss is no longer
            finite, or the run's files can not be written, as on a full disk: it says
            which checkpoint was saved.
    """
    check_patience(experiment, budget)
    if not resume and (run.records("metrics.jsonl") or run.checkpoints.exists()):
        raise InputError(
            f"{run.path} has been trained already: resume it, or begin a new run"
        )
    checkpoints = None
    try:
        checkpoints = Checkpoints(run.checkpoints)
        with reporting() as report, stopping() as stop:
            loop = _Loop(experiment, run, budget, checkpoints, report)
            loop.begin(resume)
            while loop.share() < 1 and not loop.out_of_patience() and not stop.asked:
                loop.one_step()
            result = loop.finish(stop.asked)
            return loop.state, result
    except Exception as error:
        reason = unwritable(error)
        if reason is None:
            raise
        raise stopped_writing(run.path, run.checkpoints, reason) from None
    finally:
        if checkpoints is not None:
            checkpoints.close()


def check_patience(experiment: Experiment, budget: Budget) -> None:
    """There is a score to be patient about, if the budget has patience."""
    if budget.patience and experiment.best_by is None:
        raise InputError(
            "--patience is for tasks that choose their best parameters by a held-out "
            "score; this one has none"
        )


class _Loop:
    """The variables of `fit`."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        budget: Budget,
        checkpoints: Checkpoints,
        report: Report,
    ):
        self.experiment, self.run, self.budget, self.checkpoints, self.report = (
            experiment,
            run,
            budget,
            checkpoints,
            report,
        )
        self.state = experiment.start()
        self.step, self.earlier, self.saved_at = 0, 0.0, -1
        self.began = self.saved_time = self.marked = time.monotonic()
        self.tokens_seen, self.busy = 0.0, 0.0
        self.untimed: float | None = None
        self.best: Params = None  # with the best of the held-out scores
        self.scores: list[float] = []

    def begin(self, resume: bool) -> None:
        for note in self.experiment.notes:
            self.report.line(note)
        if resume and self.checkpoints.steps():
            self.step, self.state, meta, notes, self.best = self.checkpoints.restore(
                self.state
            )
            for note in notes:
                self.report.line(note)
            self.earlier, self.tokens_seen, self.busy = (
                meta["seconds"],
                meta["tokens"],
                meta["busy"],
            )
            self.saved_at = self.step
            self.report.line(f"resumed at step {self.step}")
        elif resume:
            self.report.line("no checkpoint yet: beginning anew")
        self.run.rewind(self.step)
        if self.experiment.best_by is not None:
            name = f"held_out_{self.experiment.best_by[0]}"
            self.scores = [
                self.goodness(r) for r in self.run.records("metrics.jsonl") if name in r
            ]
        self.began = self.saved_time = self.marked = time.monotonic()
        if self.step == 0:
            self.look()

    @property
    def speed_name(self) -> str:
        return f"{self.experiment.unit}_per_second"

    def elapsed(self) -> float:
        return self.earlier + time.monotonic() - self.began

    def share(self) -> float:
        return self.budget.spent(self.step, self.elapsed())

    def one_step(self) -> None:
        self.state = self.experiment.advance(self.state, np.float32(self.share()))
        self.step += 1
        jax.block_until_ready(
            self.state.loss
        )  # or hundreds of steps would queue up past the clock and past Ctrl-C
        if (
            self.untimed is None
        ):  # the first step compiled: neither its time nor its tokens say how fast the run is  # noqa: E501
            self.untimed, self.marked = float(self.state.tokens), time.monotonic()
        if self.step % self.budget.report_every == 0:
            self.record()
            if self.step % self.budget.evaluate_every == 0:
                self.record_held_out()
                self.look()
            if time.monotonic() - self.saved_time >= self.budget.checkpoint_seconds:
                self.save()
            self.marked = time.monotonic()

    def goodness(self, record: dict[str, Any]) -> float:
        """The score of a record by which the best parameters are chosen; larger is
        better, -inf where it is not finite.
        """
        name, way = self.experiment.best_by or ("", "max")
        value = record[f"held_out_{name}"]
        return (
            -math.inf
            if value is None or not math.isfinite(value)
            else value
            if way == "max"
            else -value
        )

    def out_of_patience(self) -> bool:
        """Whether the last ``patience`` evaluations brought nothing better."""
        patience = self.budget.patience
        return len(self.scores) > patience > 0 and max(self.scores[-patience:]) <= max(
            self.scores[:-patience]
        )

    def look(self, final: bool = False) -> None:
        """Record what ``experiment.look`` sees, once a step: a resumed run may find
        the line of its step there already.
        """
        if self.experiment.look is None or self.step in {
            r["step"] for r in self.run.records("gradients.jsonl")
        }:
            return
        seen = _plain(self.experiment.look(self.state))
        self.run.append(
            "gradients.jsonl",
            {"step": self.step, **({"final": True} if final else {}), **seen},
        )

    def record(self) -> None:
        """Report the mean loss since the last report, and begin a new mean."""
        loss, tokens = float(self.state.loss), float(self.state.tokens)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {self.step}: nothing was saved after step "
                f"{max(self.saved_at, 0)}; "
                "try a smaller --learning-rate"
            )
        seconds, timed = time.monotonic() - self.marked, tokens - (self.untimed or 0.0)
        self.tokens_seen, self.busy, self.untimed = (
            self.tokens_seen + timed,
            self.busy + seconds,
            0.0,
        )
        metrics = _plain(self.experiment.describe(loss / max(tokens, 1.0)))
        rate = float(self.experiment.learning_rate(np.float32(self.share())))
        if self.budget.seconds is None:
            metrics |= {"learning_rate": rate}
        self.run.append("metrics.jsonl", {"step": self.step, **metrics})
        speed = timed / max(seconds, 1e-9)
        self.run.append(
            "timing.jsonl",
            {"step": self.step, "seconds": self.elapsed(), self.speed_name: speed},
        )
        words = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        of = f"/{self.budget.steps}" if self.budget.steps else ""
        text = (
            f"step {self.step}{of}  {self.elapsed():.0f} s  {words}  {speed:,.0f} "
            f"{self.experiment.unit}/s"
        )
        self.report.advance(
            self.share(), text
        ) if self.report.progress else self.report.line(text)
        self.state = self.state._replace(
            loss=jnp.zeros_like(self.state.loss),
            tokens=jnp.zeros_like(self.state.tokens),
        )

    def record_held_out(self) -> None:
        scores = _plain(self.experiment.evaluate(self.state))
        sample = self.experiment.sample(self.state)
        named = {f"held_out_{name}": value for name, value in scores.items()}
        if self.experiment.best_by is not None:
            score = self.goodness(named)
            if self.best is None or score > max(self.scores):
                self.best = jax.tree.map(
                    np.array, self.state.params
                )  # copies: the next step gives the arrays up
            self.scores.append(score)
        self.run.append(
            "metrics.jsonl",
            {"step": self.step, **named} | ({"sample": sample} if sample else {}),
        )
        self.report.line(
            "held out  " + "  ".join(f"{k} {v:.4g}" for k, v in scores.items())
        )
        if sample:
            self.report.line(f"sample    {sample}")

    def save(self) -> None:
        if self.saved_at == self.step:
            return
        if not all(
            np.isfinite(np.asarray(leaf)).all()
            for leaf in jax.tree.leaves(self.state.params)
        ):
            raise InputError(
                f"parameters are not finite at step {self.step}; try a smaller "
                f"--learning-rate"
            )
        meta = {
            "seconds": self.elapsed(),
            "tokens": self.tokens_seen,
            "busy": self.busy,
        }
        self.checkpoints.save(self.step, self.state, meta, self.best)
        self.saved_at, self.saved_time = self.step, time.monotonic()

    def finish(self, interrupted: bool) -> dict[str, Any]:
        """Save; and unless the run was interrupted, report what is left, evaluate
        and write the result.
        """
        if not interrupted and float(self.state.tokens):
            self.record()
        if (
            not interrupted
            and self.experiment.best_by is not None
            and self.step % self.budget.evaluate_every
        ):
            self.record_held_out()
        self.save()
        if interrupted:
            self.report.line(
                f"stopped at step {self.step}, saved: continue with --resume --out "
                f"{self.run.path}"
            )
            return {}
        if self.best is not None:
            self.state = self.state._replace(
                params=jax.tree.map(jnp.asarray, self.best)
            )
        scores = _plain(
            (self.experiment.finally_evaluate or self.experiment.evaluate)(self.state)
        )
        speed = round(self.tokens_seen / self.busy, 1) if self.busy else None
        result = {
            "task": self.run.config["task"],
            "steps": self.step,
            "seconds": round(self.elapsed(), 1),
            **scores,
        }
        result[self.speed_name] = speed
        self.look(final=True)
        self.run.append("metrics.jsonl", {"step": self.step, "final": True, **scores})
        self.run.write_result(result)
        return result


def _plain(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores as JSON takes them: jax and numpy scalars as Python numbers."""
    return {
        name: value.item() if hasattr(value, "item") else value
        for name, value in scores.items()
    }


class _Stop:
    asked = False


@contextlib.contextmanager
def stopping() -> Iterator[_Stop]:
    """Turn the first SIGINT or SIGTERM into ``stop.asked``; a second one interrupts
    at once.
    """
    stop = _Stop()

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {
            number: signal.signal(number, ask)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not in the main thread: signals go elsewhere
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
