"""Train a task and use what was trained: what the command line calls."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
from typing import Any

import jax

from ..training import Budget, Checkpoints, InputError, Run, fit
from ..training.devices import choose_devices, host_cores
from ..training.fit import check_patience
from . import captioning, charlm, hello, sentiment, tagging, translation
from .config import check_name
from .synthetic import adding, copying, group_words, parity, seq_mnist, temporal_order

SYNTHETIC = (
    adding.TASK,
    copying.TASK,
    temporal_order.TASK,
    parity.TASK,
    group_words.TASK,
    seq_mnist.TASK,
)
TASKS: dict[str, Any] = {
    "hello": hello,
    "charlm": charlm,
    "sentiment": sentiment,
    "tagging": tagging,
    "translation": translation,
    "captioning": captioning,
    **{task.name: task for task in SYNTHETIC},
}


def train(
    task: str,
    options: dict[str, Any] | None = None,
    budget: dict[str, Any] | None = None,
    *,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quick: bool = False,
) -> tuple[Run, dict[str, Any], list[str]]:
    """Train ``task`` in the run directory ``out``.

    Args:
        task: one of `TASKS`.
        options: fields of the task's ``Options`` that differ from its defaults.
        budget: fields of `Budget` that differ from the task's; ``seconds`` without
            ``steps`` takes the place of the steps.
        out: default ``runs/TASK``, numbered where there is one.
        resume: go on from the newest checkpoint of ``out``, with the options that it
            was begun with, on as many devices.
        overwrite: replace the run in ``out``.
        quick: a small model for a few seconds.

    Returns:
        The run, its result (empty if it was interrupted), and what the task has to
        show, as lines of text.

    Raises:
        BadInput: for options, data or a run directory that do not fit.
    """
    check_name("train", task, TASKS)
    module = TASKS[task]
    for given, kind in ((options or {}, module.Options), (budget or {}, Budget)):
        for name in given:
            check_name(
                f"{kind.__name__} of {task}",
                name,
                [field.name for field in dataclasses.fields(kind)],
            )
    if resume:
        if overwrite or quick:
            raise InputError(
                "--resume goes on with a run as it was begun: leave --overwrite and "
                "--quick out"
            )
        if out is None:
            raise InputError("--resume wants to know which run: --out RUN")
        run = Run.open(out, task)
        chosen, limits = _options_of(run, module), _stored(run, Budget, "budget")
        _check_unchanged(
            run, {**(options or {}), **(budget or {})}, {**vars(chosen), **vars(limits)}
        )
        try:
            chosen = _settled(chosen)
        except InputError as error:
            raise InputError(f"{run.path} was begun with {error}") from None
        experiment, extra = module.prepare(chosen)
        _check_unchanged(run, extra, run.config)
    else:
        chosen = _settled(
            module.Options(
                **{**(module.Options.QUICK if quick else {}), **(options or {})}
            )
        )
        limits = _budget(module.BUDGET, budget or {}, quick)
        experiment, extra = module.prepare(chosen)
        check_patience(experiment, limits)
        config = {
            "task": task,
            "options": dataclasses.asdict(chosen),
            "budget": dataclasses.asdict(limits),
            **extra,
        }
        run = Run.create(
            out or _fresh(pathlib.Path("runs") / task), config, overwrite=overwrite
        )
    state, result = fit(experiment, run, limits, resume=resume)
    if not result:
        return run, {}, []
    result |= {
        "device": jax.devices()[0].device_kind,
        "devices": getattr(chosen, "devices", 1),
        "cores": host_cores(),
    }
    result |= {"jax": jax.__version__, "python": platform.python_version()}
    run.write_result(result)
    functions, _ = module.build(chosen, run.config)
    return (
        run,
        result,
        module.Trained(functions, state.params, chosen, run.config).report(run),
    )


def load(path: str | os.PathLike) -> tuple[Any, list[str]]:
    """The trained model of a run, from its newest readable checkpoint, and notes on
    damaged ones.

    It has ``sample(prompt, length, temperature, top_k, seed)``, ``predict(text)``,
    ``evaluate(path)`` and ``evaluate_length(length)``; what a task cannot do is a
    `InputError`.

    Raises:
        BadInput: where there is no run, or none of its checkpoints can be read.
    """
    run, module, options, functions, (_, params), notes = restore(path)
    return module.Trained(functions, params, options, run.config), notes


def restore(
    path: str | os.PathLike,
) -> tuple[Run, Any, Any, Any, tuple[Any, Any], list[str]]:
    """A run, its task's module and options, the model's functions, its (first,
    trained) parameters, and notes as for `load`.
    """
    run = Run.open(path)
    task = run.config["task"]
    check_name(f"{path}/config.json", task, TASKS)
    module = TASKS[task]
    options = _options_of(run, module)
    if not run.checkpoints.is_dir():
        raise InputError(
            f"{path} holds no checkpoint yet; jaxrnn train {task} --out {path} "
            f"--resume goes on with it"
        )
    try:
        functions, template = module.build(options, run.config)
    except KeyError as error:
        raise InputError(
            f"{run.path}/config.json is damaged: it has no {error}"
        ) from None
    checkpoints = Checkpoints(run.checkpoints)
    try:
        params, notes = checkpoints.restore_params(template)
    finally:
        checkpoints.close()
    return run, module, options, functions, (template, params), notes


def _budget(default: Budget, given: dict[str, Any], quick: bool) -> Budget:
    """The task's budget, changed by what was given; one of steps and seconds takes
    the place of the other.
    """
    changes = dict(given)
    if (
        "report_every" in given
        and "evaluate_every" not in given
        and given["report_every"] > 0
    ):
        every = given["report_every"]
        changes["evaluate_every"] = -(-default.evaluate_every // every) * every
    if "seconds" in given and "steps" not in given:
        changes["steps"] = None
    elif quick and "steps" not in given:
        changes["steps"] = min(default.steps or 300, 300)
    return dataclasses.replace(default, **changes)


def _fresh(path: pathlib.Path) -> pathlib.Path:
    """``path``, or the first of ``path-2``, ``path-3``, ... that is not there."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _settled(options: Any) -> Any:
    """Options with their number of devices, so that the run's config holds it and
    ``--resume`` takes as many.
    """
    if not hasattr(options, "devices"):
        return options
    return dataclasses.replace(
        options, devices=choose_devices(options.devices, options.batch, options.hidden)
    )


def _options_of(run: Run, module: Any) -> Any:
    """The options a run was begun with; its number of devices is 1 where it was
    begun before there was such an option.
    """
    options = _stored(run, module.Options, "options")
    return (
        dataclasses.replace(options, devices=1)
        if getattr(options, "devices", None) == 0
        else options
    )


# Options of runs that were begun under older names.
_RENAMED_OPTIONS = {"window": "k1", "horizon": "k2", "truncate": "tbptt"}


def _stored(run: Run, kind: Any, name: str) -> Any:
    """Read a dataclass from a run's config, where JSON has lists for tuples."""
    try:
        return kind(
            **{
                _RENAMED_OPTIONS.get(k, k): tuple(v) if isinstance(v, list) else v
                for k, v in run.config[name].items()
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run.path}/config.json is damaged: {error}") from None


def _check_unchanged(run: Run, given: dict[str, Any], was: dict[str, Any]) -> None:
    """What is given on resuming is what the run was begun with."""
    for name, value in given.items():
        if name in ("vocabulary", "text") and value != was.get(name):
            raise InputError(
                f"{run.path} was begun with another text than --data gives now: "
                f"restore it, or begin a new run"
            )
        if value != was.get(name):
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{run.path} was begun with {flag} {was.get(name)}, not {value}; leave "
                f"{flag} out, or begin a new run"
            )
