"""A synthetic task as `jaxrnn.tasks.runner` uses it: model, experiment and use."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import Inputs, Params, PyTree
from ...layers import stack
from ...training import (
    Budget,
    Experiment,
    InputError,
    Run,
    TrainState,
    fresh_state,
    make_batch_step,
)
from ...training.devices import mesh_of_processes, on_one_device
from ...training.sharding import on_mesh, split_batch
from ..models.sequence_model import Batch, Scores, SequenceModel
from ..optimizers import named_optimizer, named_schedule
from ..pictures import draw_run_curves
from ..probe import Probe
from .gradients import draw_gradients, record_lags
from .online import TBPTT, TRACES, check_online, online_loss
from .problem import LONGEST, Problem

# The held-out sequences are 4 batches of 256, the same ones at every evaluation.
PARTS, PART = 4, 256
STEPS_AT_ONCE = 2**18  # largest number of steps of a held-out batch
LOOKED_AT = 64  # number of held-out sequences for --gradients


@dataclasses.dataclass(frozen=True)
class SyntheticTask:
    """A task that is made from its problem, with the attributes of a `Task`."""

    name: str
    Options: Any
    BUDGET: Budget
    problem: Callable[[Any], Problem]

    def build(
        self, options: Any, config: dict[str, Any]
    ) -> tuple[SequenceModel, Params]:
        """Build the model and its initial parameters."""
        model = self._model(options)
        return model, model.init(keys(options.seed)[0])

    def _model(self, options: Any) -> SequenceModel:
        """Build the model."""
        problem = self.problem(options)
        cell = problem.make_cell(options.cell, options.hidden, problem.length)
        layer = stack(*[cell] * options.layers) if options.layers > 1 else cell
        return SequenceModel(
            layer,
            problem.input_size,
            problem.classes,
            options.tbptt,
            problem.pooled,
            problem.tokens,
            problem.values,
        )

    def prepare(self, options: Any) -> tuple[Experiment, dict[str, Any]]:
        """Return the experiment; the run's config needs only the options."""
        problem = self.problem(options)
        if options.gradients:
            self._check_measured(problem)
        model = self._model(options)
        # A method that cannot be is refused before large parameters are drawn.
        of_batch = self._loss(options, problem, model)
        k_init, k_train, _ = keys(options.seed)
        params = model.init(k_init)
        optimizer = named_optimizer(options.optimizer, clip=options.clip)
        schedule = named_schedule(options.schedule, options.learning_rate)
        data = problem.stored() if problem.stored else None
        held_out = functools.cache(
            functools.partial(held_out_batches, problem, options.seed)
        )

        def loss(params, batch, key):
            if batch is None:
                drawn_now = drawn(problem, key, problem.length, options.batch)
                batch = split_batch(drawn_now, mesh, axis=1)
            return of_batch(params, batch, key)

        mesh = mesh_of_processes(options)
        step = make_batch_step(loss, optimizer, schedule, mesh, axis=1)
        experiment = Experiment(
            start=lambda: on_mesh(fresh_state(optimizer, params, k_train), mesh),
            advance=lambda state, progress: step(
                state, data.train(int(state.step)) if data else None, progress
            ),
            describe=lambda loss: {"loss" if problem.classes else "mse": loss},
            evaluate=lambda state: all_scores(
                problem, model, on_one_device(state.params), held_out
            ),
            sample=lambda state: None,
            learning_rate=schedule,
            look=self._look(options, model, held_out, problem.length)
            if options.gradients
            else None,
            unit="targets",
            data=_described(problem),
        )
        return experiment, {}

    def _loss(
        self, options: Any, problem: Problem, model: SequenceModel
    ) -> Callable[[Params, Batch, Any], Any]:
        """Return the loss of a batch, whose gradient is by the method of ``options``.

        Without ``--tbptt`` the windows of real-time recurrent learning have as many
        steps as the layer has units, which is the cheapest.
        """
        method = options.gradient_method
        if method == TBPTT:
            return lambda params, batch, key: model.loss(params, batch)
        if method == TRACES and options.tbptt:
            raise InputError(
                f"--gradient-method {TRACES} goes step by step, without the windows of "
                f"--tbptt {options.tbptt}: leave one of them out"
            )
        window = options.tbptt or options.hidden
        batch = (
            problem.stored().train(0)
            if problem.stored
            else jax.eval_shape(
                lambda key: drawn(problem, key, problem.length, options.batch),
                keys(options.seed)[1],
            )
        )
        params = jax.eval_shape(model.init, keys(options.seed)[0])
        check_online(model, method, window, batch, params)
        return online_loss(model, method, window)

    def _look(
        self, options: Any, model: SequenceModel, held_out: Callable, length: int
    ) -> Callable:
        """Return the function that records gradient norms during training."""

        def look(state: TrainState) -> dict[str, Any]:
            batch = jax.tree.map(lambda a: a[:, :LOOKED_AT], held_out(length)[0])
            return record_lags(model, on_one_device(state.params), batch)

        return look

    def probe(
        self, options: Any, config: dict[str, Any], length: int, batch: int
    ) -> Callable[[Params], Probe]:
        """Return a function from parameters to a `Probe`, for the diagnostics.

        The probe reads held-out sequences of ``length`` steps (for copy, plus twice the
        number of tokens), without padding.
        """
        problem = self.problem(options)
        if problem.pooled:
            raise InputError(
                f"{self.name}: the diagnostics need the loss of single steps, but this "
                f"run reads the mean over all steps"
            )
        self._check_measured(problem)
        model, _ = self.build(options, config)
        check_length(self.name, problem, length)
        xs, targets = probed(problem, options.seed, length, batch)
        return functools.partial(_probe, model, xs, targets)

    def _check_measured(self, problem: Problem) -> None:
        """Check that there is a loss whose gradient can be measured."""
        if not problem.asks_last:
            raise InputError(
                f"{self.name}: gradient norms are those of the loss of the last step, "
                f"but this task asks at other steps; niah asks at the last one"
            )

    def Trained(
        self,
        functions: SequenceModel,
        params: Params,
        options: Any,
        config: dict[str, Any],
    ) -> Trained:
        """Return the trained model."""
        return Trained(self, functions, params, options)


def _described(problem: Problem) -> str:
    """Return where the sequences come from, in words."""
    return f"sequences of {problem.length} steps, " + (
        "the same ones in every epoch" if problem.stored else "new ones in every update"
    )


def keys(seed: int) -> tuple[Any, Any, Any]:
    """Return keys for the initial parameters, for training, and for held-out data."""
    first, train, held_out = jax.random.split(jax.random.key(seed), 3)
    return first, train, held_out


def drawn(problem: Problem, key: Any, length: int, batch: int) -> Batch:
    """Draw sequences of a task without stored data."""
    if problem.draw is None:
        raise TypeError("the problem has stored sequences and cannot draw any")
    return problem.draw(key, length, batch)


def held_out_batches(problem: Problem, seed: int, length: int) -> list[Batch]:
    """Return held-out sequences, the same ones for equal seed and length.

    There are fewer if they are very long.
    """
    if problem.stored:
        return problem.stored().held_out
    count = max(min(PART, STEPS_AT_ONCE // length), 1)
    draw = jax.jit(lambda key: drawn(problem, key, length, count))
    return [draw(jax.random.fold_in(keys(seed)[2], part)) for part in range(PARTS)]


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: SequenceModel, params: Params, batch: Batch) -> Scores:
    """Compute the scores of a batch."""
    return model.scores(params, batch)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _scores_of_parts(
    model: SequenceModel, params: Params, batch: Batch, count: int
) -> tuple[Any, Any]:
    """Compute the numbers of right and of all answers of each part of a batch."""
    return model.scores_of_parts(params, batch, count)


def probed(problem: Problem, seed: int, length: int, batch: int) -> tuple[Any, Any]:
    """Return inputs and targets of up to ``batch`` held-out sequences.

    The padding of a short word is treated as part of it.
    """
    if problem.stored:
        sequences = problem.stored().held_out[0]
        return sequences.inputs[:, :batch], sequences.targets[:, :batch]
    sequences = jax.jit(lambda key: drawn(problem, key, length, batch))(keys(seed)[2])
    return sequences.inputs, sequences.targets


def _probe(model: SequenceModel, xs: Inputs, targets: PyTree, params: Params) -> Probe:
    """Return the `Probe` at given parameters."""

    def loss(y, target):
        return model.losses(model.read(params, y), target).sum()

    xs = model.embed(params, xs)
    return Probe(model.layer, params["rnn"], xs, loss, targets)


def check_length(name: str, problem: Problem, length: int) -> None:
    """Check that the task has sequences of this length."""
    if problem.stored and length != problem.length:
        raise InputError(
            f"{name} has sequences of {problem.length} steps only, but --length is "
            f"{length}"
        )
    if not problem.least <= length < LONGEST:
        raise InputError(
            f"--length must be at least {problem.least} and less than {LONGEST} for "
            f"{name}, but it is {length}"
        )


def scores_at(
    problem: Problem, model: SequenceModel, params: Params, batches: list[Batch]
) -> dict[str, float]:
    """Return the mean loss and, for classes, the accuracy.

    The loss is over the steps that count, the accuracy over those that are scored.
    """
    total = [
        sum(map(float, parts))
        for parts in zip(
            *(_scores(model, params, batch) for batch in batches), strict=True
        )
    ]
    scores = Scores(*total)  # type: ignore[arg-type]
    loss = float(scores.loss / scores.losses)
    return (
        {"loss": loss, "accuracy": float(scores.right / scores.answers)}
        if problem.classes
        else {"mse": loss}
    )


def all_scores(
    problem: Problem, model: SequenceModel, params: Params, held_out: Callable
) -> dict[str, float]:
    """Return the main score first, then its baseline and further scores.

    Scores at other lengths are named after them, such as ``accuracy_256``.
    """
    others = scores_at(problem, model, params, held_out(problem.length))
    scores = {
        problem.score: others.pop(problem.score),
        "baseline": problem.baseline[1](problem.length),
        **others,
    }
    for length in problem.other_lengths:
        scores[f"{problem.score}_{length}"] = scores_at(
            problem, model, params, held_out(length)
        )[problem.score]
    parts = scores_of_parts(problem, model, params, held_out(problem.length))
    return scores | parts | problem.references()


def scores_of_parts(
    problem: Problem, model: SequenceModel, params: Params, batches: list[Batch]
) -> dict[str, float]:
    """Return the accuracy of each part of the data, such as ``accuracy_depth_0_20``.

    A part that no sequence belongs to is left out.
    """
    if not problem.parts:
        return {}
    found = [
        _scores_of_parts(model, params, batch, len(problem.parts)) for batch in batches
    ]
    right, scored = (np.stack(each).sum(0) for each in zip(*found, strict=True))
    return {
        f"accuracy_{name}": float(right[i] / scored[i])
        for i, name in enumerate(problem.parts)
        if scored[i]
    }


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, for `predict` and `evaluate`."""

    task: SyntheticTask
    model: SequenceModel = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    options: Any

    @property
    def problem(self) -> Problem:
        """Return the problem of the run."""
        return self.task.problem(self.options)

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
            f"{self.task.name} does not generate text: sample is for language models. "
            f"Try jaxrnn evaluate RUN --length N"
        )

    def predict(self, text: str) -> str:
        """Return the prediction at the end of the sequence that ``text`` describes."""
        problem = self.problem
        if problem.read is None or problem.say is None:
            raise InputError(
                f"{self.task.name} has no inputs that can be typed; jaxrnn evaluate "
                f"RUN --length {problem.length}"
            )
        dtype = int if problem.tokens else float
        inputs = jnp.asarray(problem.read(text), jnp.result_type(dtype))
        return problem.say(np.asarray(self.model(self.params, inputs)))

    def evaluate(self, path: str) -> dict[str, Any]:
        """Refuse: the task has no data files."""
        raise InputError(
            f"{self.task.name} reads no files: --length N evaluates it on sequences of "
            f"N steps"
        )

    def evaluate_length(self, length: int) -> dict[str, Any]:
        """Return scores and baseline on held-out sequences of another length."""
        problem = self.problem
        check_length(self.task.name, problem, length)
        batches = held_out_batches(problem, self.options.seed, length)
        scores = scores_at(problem, self.model, self.params, batches)
        sequences = sum(batch.targets.shape[1] for batch in batches)
        return {
            "length": length,
            "sequences": sequences,
            **scores,
            **scores_of_parts(problem, self.model, self.params, batches),
            "baseline": problem.baseline[1](length),
        }

    def report(self, run: Run) -> list[str]:
        """Draw the curves and gradients, and return lines to print."""
        pictures = [draw_run_curves(run), draw_gradients(run)]
        return [f"picture: {path}" for path in pictures if path]
