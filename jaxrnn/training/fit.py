"""The host loop: steps, reports, evaluations and checkpoints within a budget."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Container, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import plain_numbers
from ..core.types import Params
from . import processes
from .checkpoints import Checkpoints
from .devices import on_one_device
from .errors import InputError, stopped_writing, unwritable
from .experiment import Budget, Experiment
from .hooks import Hook, Hooks
from .lock import locked_by_first
from .progress import Report, reporting
from .run import Run
from .sharding import is_finite, zero_like
from .state import TrainState


def fit(
    experiment: Experiment,
    run: Run,
    budget: Budget,
    *,
    resume: bool = False,
    on_record: Hook | Sequence[Hook] = (),
) -> tuple[TrainState, dict[str, Any]]:
    """Train until the budget is used up.

    Ctrl-C (or SIGTERM) stops the run after the current step and saves it. A run that
    was killed loses what came after its last checkpoint; with ``resume`` it continues
    from there to the same numbers. A run that has ended, and whose budget has not grown
    since, is not scored again: its result is returned.

    Several processes that ``jax.distributed`` connects call this together, and train
    one run. The first of them writes the files, calls ``on_record``, and decides what
    depends on the clock or on scores. A signal to any of them stops all.

    Args:
        experiment: the task.
        run: the run directory.
        budget: the length of the run.
        resume: continue from the newest checkpoint of ``run``.
        on_record: ``on_record(step, record)``, or several such functions. They are
            called with each record of ``metrics.jsonl`` after it has been written; the
            steps that a resumed run repeats come again. An exception in one of them
            stops the run after the current step and saves it.

    Returns:
        ``(state, result)``, the last state and the result that was written; the result
        is empty if the run was interrupted.

    Raises:
        InputError: if the run has been trained and ``resume`` is False, another process
            is writing it, a loss is no
            longer finite, or the files of the run cannot be written, as on a full disk;
            the message names the last checkpoint. Also if ``on_record`` has failed.
        TypeError: if ``on_record`` is not callable.

    Example:
        >>> import contextlib, io, tempfile
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.training import (
        ...     Budget, Experiment, Run, constant, fit, fresh_state, make_batch_step,
        ...     make_optimizer)
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
        >>> budget = Budget(steps=60, report_every=20, evaluate_every=60)
        >>> with (
        ...     tempfile.TemporaryDirectory() as folder,
        ...     contextlib.redirect_stdout(io.StringIO()),
        ... ):
        ...     run = Run.create(folder, {"task": "two"})
        ...     state, result = fit(experiment, run, budget)
        ...     records = run.records("metrics.jsonl")
        >>> result["steps"], result["distance"] < 0.1
        (60, True)
        >>> [record["step"] for record in records if "loss" in record]
        [20, 40, 60]
    """
    check_patience(experiment, budget)
    hooks = Hooks.of(on_record)
    if not processes.is_first():
        hooks = Hooks(())
    with locked_by_first(run.path):
        with processes.together("the run directory"):
            trained = run.records("metrics.jsonl") or run.checkpoints.exists()
            if trained and not resume:
                raise InputError(
                    f"{run.path} has been trained already: resume it, or begin a new "
                    f"run"
                )
        return _fit_locked(experiment, run, budget, resume, hooks)


def _fit_locked(
    experiment: Experiment, run: Run, budget: Budget, resume: bool, hooks: Hooks
) -> tuple[TrainState, dict[str, Any]]:
    """Train a run that no other process writes."""
    checkpoints = None
    try:
        checkpoints = Checkpoints(run.checkpoints)
        with reporting() as report, stopping() as stop:
            loop = _Loop(experiment, run, budget, checkpoints, report, hooks)
            loop.begin(resume)
            if loop.result:
                loop.take_final_params()
                return loop.state, loop.result
            share, stopped = loop.decide(stop, hooks)
            while share < 1 and not loop.out_of_patience() and not stopped:
                loop.one_step(share)
                share, stopped = loop.decide(stop, hooks)
            result = loop.finish(stopped)
            with processes.together("the end of the run"):
                hooks.check(run.path, loop.step, bool(result))
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
    """Check that the experiment has a score by which ``patience`` can judge."""
    if budget.patience and experiment.best_by is None:
        raise InputError(
            "--patience is for tasks that choose their best parameters by a held-out "
            "score; this one has none"
        )


class _Loop:
    """The variables of `fit`.

    The order of writes makes a killed run resumable: records are appended before the
    checkpoint of the same step is written, and `begin` drops records that are newer
    than the checkpoint from which it continues. So no record is missing or occurs
    twice.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        budget: Budget,
        checkpoints: Checkpoints,
        report: Report,
        hooks: Hooks,
    ):
        self.experiment, self.run, self.budget = experiment, run, budget
        self.checkpoints, self.report, self.hooks = checkpoints, report, hooks
        self.state = experiment.start()
        self.step, self.earlier, self.saved_at = 0, 0.0, -1
        self.began = self.saved_time = self.marked = time.monotonic()
        self.tokens_seen, self.busy = 0.0, 0.0
        self.untimed: float | None = None
        self.best: Params = None  # the parameters with the best held-out score
        self.scores: list[float] = []
        self.result: dict[str, Any] = {}  # that of a run that has ended before

    def begin(self, resume: bool) -> None:
        """Restore the newest checkpoint if there is one, and drop newer records."""
        introduce = self.experiment.introduce
        for line in (
            *(introduce(self.state) if introduce else ()),
            *self.experiment.notes,
        ):
            self.report.line(line)
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
        if self.experiment.best_by is not None:
            self.scores = self.earlier_scores()
        if self.saved_at >= 0:
            self.result = self.earlier_result()
        self.say_where(resume)
        if self.result:
            return
        # Records that are newer than the checkpoint are written again by the steps that
        # are repeated.
        self.run.rewind(self.step)
        self.began = self.saved_time = self.marked = time.monotonic()
        if not self.report.progress:  # a bar says so itself
            self.report.line("compiling")
        if self.step == 0:
            self.look()
        processes.gather(None, "the first step")

    def earlier_scores(self) -> list[float]:
        """Return how good the evaluations up to this step were."""
        name = f"held_out_{(self.experiment.best_by or ('',))[0]}"
        return processes.broadcast(
            [
                self.goodness(record)
                for record in self.run.records("metrics.jsonl")
                if name in record and record["step"] <= self.step
            ],
            "the records of the run",
        )

    def earlier_result(self) -> dict[str, Any]:
        """Return the result of a run that has nothing left to do, else an empty dict.

        It was written by an earlier process, at the step of the newest checkpoint.
        """
        try:
            result = self.run.result() if processes.is_first() else {}
        except InputError:  # it is damaged, and is written again
            result = {}
        is_over = self.share() >= 1 or self.out_of_patience()
        is_its = result.get("steps") == self.step
        return processes.broadcast(result if is_over and is_its else {}, "the result")

    def say_where(self, resume: bool) -> None:
        """Say at which step the run goes on, and how its processes ended before."""
        if not resume:
            return
        end = f"{self.experiment.last_end}; " if self.experiment.last_end else ""
        if self.result:
            where = f"the run is finished, at {self.at_step()}, and is not scored again"
        elif self.saved_at >= 0:
            where = f"resumed at step {self.step}"
        else:
            where = "no checkpoint was written before: starting from the beginning"
        self.report.line(end + where)

    @property
    def speed_name(self) -> str:
        """Return the name under which the speed is recorded."""
        return f"{self.experiment.unit}_per_second"

    def elapsed(self) -> float:
        """Return the seconds used so far, including those before a resumption."""
        return self.earlier + time.monotonic() - self.began

    def at_step(self) -> str:
        """Return which step it is, and of how many, such as ``step 20/100``."""
        return f"step {self.step}" + (
            f"/{self.budget.steps}" if self.budget.steps else ""
        )

    def share(self) -> float:
        """Return the share of the budget that is used."""
        return self.budget.spent(self.step, self.elapsed())

    def decide(self, stop: _Stop, hooks: Hooks) -> tuple[float, bool]:
        """Return the share of the budget that is used, and whether to stop now.

        Of several processes, each may be asked to stop, and the first one has the
        clock.
        """
        share, asked = self.share(), stop.asked or hooks.failed
        agreed, asked = processes.agree(share, asked)
        return (share if self.budget.seconds is None else agreed), asked

    def one_step(self, share: float) -> None:
        """Take one step, and report, evaluate and save when they are due."""
        self.state = self.experiment.advance(self.state, np.float32(share))
        self.step += 1
        # Without this, hundreds of dispatched steps would queue up, beyond the budget
        # and beyond Ctrl-C.
        jax.block_until_ready(self.state.loss)
        # The first step includes compilation, so that its time and its tokens are left
        # out of the speed.
        if self.untimed is None:
            self.untimed, self.marked = float(self.state.tokens), time.monotonic()
        if self.step % self.budget.report_every == 0:
            self.record()
            if self.step % self.budget.evaluate_every == 0:
                self.record_held_out()
                self.look()
            waited = time.monotonic() - self.saved_time
            is_due = waited >= self.budget.checkpoint_seconds
            if processes.broadcast(is_due, "a report"):
                self.save()
            self.marked = time.monotonic()

    def goodness(self, record: dict[str, Any]) -> float:
        """Return the score by which the best parameters are chosen; larger is better.

        -inf where the score is not finite.
        """
        name, direction = self.experiment.best_by or ("", "max")
        value = record[f"held_out_{name}"]
        return (
            -math.inf
            if value is None or not math.isfinite(value)
            else value
            if direction == "max"
            else -value
        )

    def out_of_patience(self) -> bool:
        """Return whether the last ``patience`` evaluations brought no better score."""
        patience = self.budget.patience
        return len(self.scores) > patience > 0 and max(self.scores[-patience:]) <= max(
            self.scores[:-patience]
        )

    def look(self, final: bool = False) -> None:
        """Record the measurements of ``experiment.look``, once per step.

        In a resumed run the line of its step may already exist.
        """
        if self.experiment.look is None or not processes.is_first():
            return
        if self.step in {r["step"] for r in self.run.records("gradients.jsonl")}:
            return
        measurements = plain_numbers(self.experiment.look(self.state))
        self.run.append(
            "gradients.jsonl",
            {"step": self.step, **({"final": True} if final else {}), **measurements},
        )

    def record(self) -> None:
        """Report the mean loss since the last report, and start a new mean."""
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
        metrics = plain_numbers(self.experiment.describe(loss / max(tokens, 1.0)))
        rate = float(self.experiment.learning_rate(np.float32(self.share())))
        if self.budget.seconds is None:
            metrics |= {"learning_rate": rate}
        self.append(metrics)
        speed = timed / max(seconds, 1e-9)
        self.run.append(
            "timing.jsonl",
            {"step": self.step, "seconds": self.elapsed(), self.speed_name: speed},
        )
        numbers = [f"{name} {value:.4g}" for name, value in metrics.items()]
        self.report.advance(
            self.share(),
            self.at_step(),
            self.elapsed(),
            [*numbers, f"{speed:,.0f} {self.experiment.unit}/s"],
        )
        self.state = self.state._replace(
            loss=zero_like(self.state.loss), tokens=zero_like(self.state.tokens)
        )

    def record_held_out(self) -> None:
        """Evaluate, keep the best parameters, and record the scores."""
        # Every process computes the scores, so that none waits for long; those of the
        # first one count.
        scores, sample = processes.broadcast(
            [
                plain_numbers(self.experiment.evaluate(self.state)),
                self.experiment.sample(self.state) if processes.is_first() else None,
            ],
            "an evaluation",
        )
        named = {f"held_out_{name}": value for name, value in scores.items()}
        if self.experiment.best_by is not None:
            score = self.goodness(named)
            if self.best is None or score > max(self.scores):
                # These must be copies, because the next step donates the arrays.
                self.best = jax.tree.map(np.array, self.state.params)
            self.scores.append(score)
        self.append(named | ({"sample": sample} if sample else {}))
        shown = "  ".join(
            f"{_said(name, scores)} {value:.4g}"
            for name, value in scores.items()
            if name not in self.experiment.baselines
        )
        self.report.line(
            f"{self.at_step()}  {self.elapsed():.0f} s  {self.experiment.part}  {shown}"
        )
        if sample:
            self.report.line(f"sample  {sample}")

    def save(self) -> None:
        """Write a checkpoint of this step, unless one exists.

        Parameters that are not finite are refused.
        """
        if self.saved_at == self.step:
            return
        with processes.together("a checkpoint"):
            if not all(map(is_finite, jax.tree.leaves(self.state.params))):
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
        """Save the run; unless it was interrupted, evaluate it and write the result.

        What has been trained since the last report is reported first.
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
            self.report.line(f"stopped at {self.at_step()}, saved in {self.run.path}")
            return {}
        self.take_final_params()
        evaluate = self.experiment.finally_evaluate or self.experiment.evaluate
        scores = processes.broadcast(
            plain_numbers(evaluate(self.state)), "the last evaluation"
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
        self.append({"final": True, **scores})
        self.run.write_result(result)
        return result

    def take_final_params(self) -> None:
        """Let the parameters be those that the run is scored with."""
        if self.best is not None:
            self.state = self.state._replace(
                params=jax.tree.map(jnp.asarray, self.best)
            )
        elif processes.count() > 1:  # what follows is done by each process alone
            self.state = self.state._replace(params=on_one_device(self.state.params))

    def append(self, record: dict[str, Any]) -> None:
        """Append a record of this step to ``metrics.jsonl``, and call the hooks."""
        record = {"step": self.step, **record}
        self.run.append("metrics.jsonl", record)
        self.hooks(self.step, record)


def _said(name: str, scores: Container[str]) -> str:
    """Return what the lines call a score: ``accuracy_256`` is one at another length."""
    stem, _, length = name.rpartition("_")
    is_other = stem in scores and length.isdecimal()
    return f"{stem} at length {length}" if is_other else name


class _Stop:
    """Whether a signal has asked the run to stop."""

    asked = False


@contextlib.contextmanager
def stopping() -> Iterator[_Stop]:
    """Set ``stop.asked`` at the first SIGINT or SIGTERM.

    A second one interrupts at once.
    """
    stop = _Stop()

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        previous = {
            number: signal.signal(number, ask)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # handlers can be set in the main thread only
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            # A handler that was not set by Python, such as jax.distributed's, is None.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
