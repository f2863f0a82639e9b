"""Trainings with a goal: a cell on a task, until a held-out score is good enough or the
updates are spent, and scored on sequences that no choice was made by.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn.core.cell import Cell
from jaxrnn.core.layer import Layer
from jaxrnn.tasks.runner import TASKS
from jaxrnn.tasks.synthetic.problem import Problem
from jaxrnn.tasks.synthetic.task import all_scores, held_out_batches, scores_at

SOLVED = 0.9995  # an accuracy at which training ends
HELD_OUT = 1  # added to the seed of the batches by which training ends


class Entry(NamedTuple):
    """A cell on a task.

    Attributes:
        task: the name of the task.
        cell: makes the cell or layer, or gives its name.
        options: those of the task that differ from its defaults.
        updates: the largest number of them.
        score: the name of the score that is asked for.
        goal: what it should be: ``(">=", 0.99)``.
        judged: options of the task by which it is scored, where they differ.
        solved: the accuracy at which training ends, or the squared error of a task
            whose targets are numbers; None where all updates are made.
        further: lengths at which it is scored in the end, besides those of the task.
    """

    task: str
    cell: Callable[[], Cell | Layer | str]
    options: dict[str, Any]
    updates: int
    score: str
    goal: tuple[str, float]
    judged: dict[str, Any] = {}
    solved: float | None = SOLVED
    further: tuple[int, ...] = ()


def measure(
    name: str, entry: Entry, seed: int, updates: int, seconds: float, every: int
) -> dict[str, Any]:
    """Train and score one entry.

    Args:
        name: the name of the entry.
        entry: the cell on the task.
        seed: of the parameters and the sequences.
        updates: the largest number of them.
        seconds: the largest number of processor seconds.
        every: the number of updates between looks at whether it is solved.

    Returns:
        A row for a result: what was run, ``solved_after`` updates or None, the curve
        of looks, and the scores of the end.
    """
    module, cell = TASKS[entry.task], entry.cell()
    options = module.Options(cell=cell, seed=seed, **entry.options)
    problem = module.problem(dataclasses.replace(options, **entry.judged))
    model, _ = module.build(options, {})
    experiment, _ = module.prepare(options)
    state = experiment.start()
    lengths = (problem.length, *problem.other_lengths)
    watched = {
        length: held_out_batches(problem, seed + HELD_OUT, length)[:1]
        for length in lengths
    }
    began, began_cpu = time.perf_counter(), time.process_time()
    solved_after, curve = None, []
    for update in range(1, updates + 1):
        state = experiment.advance(state, np.float32(update / updates))
        if update % every and update != updates:
            continue
        found = [
            looked_at(problem, scores_at(problem, model, state.params, batches))
            for batches in watched.values()
        ]
        worst = min(found) if problem.classes else max(found)
        curve.append((update, worst))
        if is_solved(problem, entry.solved, worst):
            solved_after = update
            break
        if time.process_time() - began_cpu > seconds or not np.isfinite(worst):
            break
    took, took_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    scores = all_scores(
        problem,
        model,
        state.params,
        functools.partial(held_out_batches, problem, seed),
    )
    for length in entry.further:
        batches = held_out_batches(problem, seed, length)
        longer = scores_at(problem, model, state.params, batches)
        scores[f"{problem.score}_{length}"] = longer[problem.score]
    sign, bound = entry.goal
    value = scores[entry.score]
    return {
        "entry": name,
        "task": entry.task,
        "cell": repr(cell),
        "options": {
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(options)
            if field.name not in ("cell", "gradients")
        },
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "seed": seed,
        "updates": update,
        "most_updates": updates,
        "solved_after": solved_after,
        "curve": curve,
        "seconds": took,
        "cpu_seconds": took_cpu,
        "score": entry.score,
        "judged": entry.judged,
        "goal": f"{sign} {bound}",
        "reached": bool(value >= bound if sign == ">=" else value <= bound),
        "value": value,
        "scores": scores,
        "sequences": sum(
            batch.targets.shape[1]
            for batch in held_out_batches(problem, seed, lengths[-1])
        ),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def looked_at(problem: Problem, scores: dict[str, float]) -> float:
    """Return the score by which training ends."""
    return scores["accuracy" if problem.classes else "mse"]


def is_solved(problem: Problem, solved: float | None, score: float) -> bool:
    """Return whether a score is as good as it has to be."""
    if solved is None:
        return False
    return score >= solved if problem.classes else score <= solved
