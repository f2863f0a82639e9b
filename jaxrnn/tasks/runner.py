"""Training of tasks and loading of trained ones, as the command line uses them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.records import fields_of
from ..training import Budget, Checkpoints, Experiment, InputError, Run, fit, processes
from ..training.announced import announced
from ..training.devices import choose_devices, host_cores
from ..training.fit import check_patience
from ..training.hooks import Hook
from ..training.lock import locked_by_first
from ..training.members import last_end, recorded
from . import captioning, charlm, hello, sentiment, tagging, translation
from .about import ABOUT
from .config import check_name, ordered_fields
from .introduction import introduction
from .logs import check_logs, logs
from .models.own_cell import CellLike
from .models.stored_cell import restored_cell, stored_cell
from .report import write_report
from .score_table import score_table
from .series.task import TASK as SERIES
from .synthetic import (
    adding,
    copying,
    flip_flop,
    group_words,
    integration,
    mqar,
    niah,
    parity,
    recall,
    seq_mnist,
    sine,
    squares,
    temporal_order,
)
from .synthetic.task import SyntheticTask
from .task import Task

SYNTHETIC = (
    adding.TASK,
    copying.TASK,
    temporal_order.TASK,
    parity.TASK,
    group_words.TASK,
    mqar.TASK,
    niah.TASK,
    recall.TASK,
    flip_flop.TASK,
    integration.TASK,
    sine.TASK,
    seq_mnist.TASK,
    squares.TASK,
)
TASKS: dict[str, Task | SyntheticTask] = {
    task.name: task
    for task in (
        hello.TASK,
        charlm.TASK,
        sentiment.TASK,
        tagging.TASK,
        translation.TASK,
        captioning.TASK,
        SERIES,
        *SYNTHETIC,
    )
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
    trust_code: bool = False,
    log: Iterable[str] = (),
    on_record: Hook | Sequence[Hook] = (),
) -> tuple[Run, dict[str, Any], list[str]]:
    """Train ``task`` in the run directory ``out``.

    Args:
        task: one of `TASKS`.
        options: fields of the task's ``Options`` that differ from its defaults.
            ``cell`` is a name, the import path of a cell of one's own such as
            ``"mine:Mine"``, or a cell or layer.
        budget: fields of `Budget` that differ from the task's; ``seconds`` without
            ``steps`` replaces the steps.
        out: the run directory (default: ``runs/TASK``, with a number if it exists).
        resume: continue from the newest checkpoint of ``out``, with the options of the
            run, on any number of devices and processes.
        overwrite: replace the run in ``out``.
        quick: train a small model for a few seconds.
        trust_code: with ``resume``, import whatever code the run names as its cell.
            Code that ``options`` name is imported in any case.
        log: names of `jaxrnn.tasks.logs.LOGS`, such as ``("csv", "tensorboard")``. A
            resumed run names them again.
        on_record: functions that are called with each record, as for `fit`.

    Returns:
        The run, its result (empty if it was interrupted), and a report as lines of
        text: the scores with their baselines, and what the task has to show.

    Raises:
        InputError: for options, data or a run directory that do not fit.

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
        >>> result["task"], result["steps"]
        ('adding', 2)
        >>> print(lines[0])
        score   held out   baseline
    """
    check_name("train", task, TASKS)
    check_logs(log := tuple(log))
    declared = TASKS[task]
    for arguments, kind in ((options or {}, declared.Options), (budget or {}, Budget)):
        for name in arguments:
            check_name(
                f"{kind.__name__} of {task}",
                name,
                [field.name for field in dataclasses.fields(kind)],
            )
    options = _with_hidden_size(dict(options or {}))
    with contextlib.ExitStack() as lock:
        if resume:
            if overwrite or quick:
                raise InputError(
                    "--resume continues a run as it was started: leave out "
                    "--overwrite and --quick"
                )
            if out is None:
                raise InputError("--resume needs the run to continue: --out RUN")
            run = _opened(out, task)
            lock.enter_context(locked_by_first(run.path))
            with processes.together("the data"):
                begun = _continued(run, options, budget or {}, trust_code)
        else:
            path = _chosen(out, task)
            Run.check_free(path, overwrite=overwrite)
            with processes.together("the data"):
                begun, config = _begun(task, options, budget or {}, quick)
            _check_alike(config)
            lock.enter_context(locked_by_first(path))
            processes.check_seen_by_all(path)
            run = Run.create(path, config, overwrite=overwrite)
        hooks = [on_record] if callable(on_record) else [*on_record]
        if processes.is_first():
            hooks += lock.enter_context(logs(log, run))
        lock.enter_context(recorded(run.path))
        return _trained(run, begun, resume, hooks if processes.is_first() else [])


def _opened(out: str | os.PathLike, task: str) -> Run:
    """Open the run to continue, which all processes must see."""
    with processes.together("the run directory"):
        if processes.is_first():
            Run.open(out, task)
    processes.check_seen_by_all(pathlib.Path(out))
    return Run.open(out, task)


def _chosen(out: str | os.PathLike | None, task: str) -> pathlib.Path:
    """Return the directory of a new run, which the first process chooses."""
    path = pathlib.Path(out) if out else _fresh(pathlib.Path("runs") / task)
    return pathlib.Path(processes.broadcast(str(path), "the run directory"))


def _check_alike(config: dict[str, Any]) -> None:
    """Check that all processes would train the same model on the same data."""
    text = json.dumps(config, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    digests = processes.gather(digest, "the data")
    for process, other in enumerate(digests):
        if other != digests[0]:
            raise InputError(
                f"process {process} has other options or other data than process 0: "
                f"start all of them by the same command, with the same --data"
            )


class _Begun(NamedTuple):
    """What a run is trained with."""

    experiment: Experiment
    options: Any
    budget: Budget


def _continued(
    run: Run, options: dict[str, Any], budget: dict[str, Any], trust_code: bool
) -> _Begun:
    """Return what a run was started with, if nothing else is asked for now."""
    declared = TASKS[run.config["task"]]
    task_options, run_budget = (
        _options_of(run, declared, options.get("cell"), trust_code),
        _stored(run, Budget, "budget"),
    )
    stored = {**vars(task_options), **vars(run_budget)}
    asked = options.pop("devices", None)
    _check_unchanged(run, {**options, **budget}, stored)
    try:
        task_options, notes = _devices_again(run, task_options, asked)
    except InputError as error:
        raise InputError(f"{run.path} cannot be continued here: {error}") from None
    with announced("preparing the data"):
        experiment, extra_config = declared.prepare(task_options)
    _check_unchanged(run, as_stored(extra_config), run.config)
    experiment = dataclasses.replace(
        experiment,
        notes=(*experiment.notes, *notes),
        last_end=last_end(run.path) or "",
    )
    return _Begun(experiment, task_options, run_budget)


def _begun(
    task: str, options: dict[str, Any], budget: dict[str, Any], quick: bool
) -> tuple[_Begun, dict[str, Any]]:
    """Return what a new run is trained with, and its configuration."""
    declared = TASKS[task]
    task_options = _resolve_devices(
        declared.Options(**{**(declared.Options.QUICK if quick else {}), **options})
    )
    run_budget = _budget(declared.BUDGET, budget, quick)
    with announced("preparing the data"):
        experiment, extra_config = declared.prepare(task_options)
    check_patience(experiment, run_budget)
    config = {
        "task": task,
        "options": _options_as_json(task_options),
        "budget": dataclasses.asdict(run_budget),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
        **extra_config,
    }
    return _Begun(experiment, task_options, run_budget), config


def _trained(
    run: Run, begun: _Begun, resume: bool, hooks: list[Hook]
) -> tuple[Run, dict[str, Any], list[str]]:
    """Train a run, and return what `train` returns."""
    task = run.config["task"]
    experiment = dataclasses.replace(
        begun.experiment,
        introduce=lambda state: introduction(
            run, begun.options, begun.budget, begun.experiment.data, state
        ),
        baselines=frozenset(ABOUT[task].baselines),
    )
    state, result = fit(experiment, run, begun.budget, resume=resume, on_record=hooks)
    if not result:
        return run, {}, []
    report = run.path / "report.html"
    if "python" in result and report.exists():  # the run was finished before
        shown = [*score_table(task, result), f"report: {report}"]
        return run, result, shown if processes.is_first() else []
    result |= {
        "device": jax.devices()[0].device_kind,
        "devices": fields_of(begun.options).get("devices", 1),
        "cores": host_cores(),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
    }
    result |= {"jax": jax.__version__, "python": platform.python_version()}
    run.write_result(result)
    if not processes.is_first():
        return run, result, []
    functions, _ = TASKS[task].build(begun.options, run.config)
    trained = TASKS[task].Trained(functions, state.params, begun.options, run.config)
    return run, result, [*score_table(task, result), *_shown(run, trained)]


def _shown(run: Run, trained: Any) -> list[str]:
    """Draw the pictures of a run and write its report, and return lines to print.

    The run has been saved: whatever goes wrong here must not look as if it had failed.
    """
    lines: list[str] = []
    try:
        lines += trained.report(run)
        is_whole = os.environ.get("JAXRNN_REPORT") != "plain"
        written = write_report(run, trained, is_whole=is_whole)
        lines.append(f"report: {written}")
    except Exception as error:
        lines.append(
            f"the report is not complete: {type(error).__name__}: {error}; try jaxrnn "
            f"report {run.path}"
        )
    return lines


def load(
    path: str | os.PathLike, *, cell: CellLike | None = None, trust_code: bool = False
) -> tuple[Any, list[str]]:
    """Load the trained model of a run from its newest readable checkpoint.

    A run whose cell is code outside jaxrnn is opened only if ``cell`` names that code,
    or with ``trust_code``: a run directory may come from a stranger, and an import runs
    code.

    Args:
        path: the run directory.
        cell: the cell that the run was trained with, or its import path, where that is
            code outside jaxrnn.
        trust_code: import whatever code the run names as its cell.

    Returns:
        The model, and notes on damaged checkpoints. The model has ``sample(prompt,
        length, temperature, top_k, seed)``, ``predict(text)``, ``evaluate(path)`` and
        ``evaluate_length(length)``; what a task does not support raises `InputError`.

    Raises:
        InputError: if there is no run, none of its checkpoints can be read, or its
            cell is code that may not, or cannot, be imported.

    Example:
        >>> import contextlib, io, tempfile
        >>> from jaxrnn.tasks import load, train
        >>> small = {"length": 6, "hidden": 4}
        >>> with (
        ...     tempfile.TemporaryDirectory() as folder,
        ...     contextlib.redirect_stdout(io.StringIO()),
        ... ):
        ...     out = f"{folder}/run"
        ...     run, result, lines = train("adding", small, {"steps": 2}, out=out)
        ...     model, notes = load(run.path)
        >>> notes
        []
        >>> scores = model.evaluate_length(6)
        >>> abs(scores["mse"] - result["mse"]) < 1e-5
        True
    """
    run, declared, options, functions, (_, params), notes = restore(
        path, cell=cell, trust_code=trust_code
    )
    return declared.Trained(functions, params, options, run.config), notes


def restore(
    path: str | os.PathLike, *, cell: CellLike | None = None, trust_code: bool = False
) -> tuple[Run, Any, Any, Any, tuple[Any, Any], list[str]]:
    """Return a run and everything that was stored in it.

    These are the run, its task and its options, the functions of the model, its
    (initial, trained) parameters, and notes as for `load`.
    """
    run = Run.open(path)
    task = run.config["task"]
    check_name(f"{path}/config.json", task, TASKS)
    declared = TASKS[task]
    options = _options_of(run, declared, cell, trust_code)
    if not run.checkpoints.is_dir():
        raise InputError(
            f"{path} has no checkpoint yet; jaxrnn train {task} --out {path} "
            f"--resume continues it"
        )
    try:
        functions, template = declared.build(options, run.config)
    except KeyError as error:
        raise InputError(
            f"{run.path}/config.json is damaged: it has no {error}"
        ) from None
    checkpoints = Checkpoints(run.checkpoints)
    try:
        params, notes = checkpoints.restore_params(template)
    finally:
        checkpoints.close()
    return run, declared, options, functions, (template, params), notes


def _budget(default: Budget, arguments: dict[str, Any], quick: bool) -> Budget:
    """Return the task's budget with changes.

    Given seconds replace the task's steps. A given interval of reports rounds the
    interval of evaluations up to a multiple.
    """
    changes = dict(arguments)
    if (
        "report_every" in arguments
        and "evaluate_every" not in arguments
        and arguments["report_every"] > 0
    ):
        every = arguments["report_every"]
        changes["evaluate_every"] = -(-default.evaluate_every // every) * every
    if "seconds" in arguments and "steps" not in arguments:
        changes["steps"] = None
    elif quick and "steps" not in arguments:
        changes["steps"] = min(default.steps or 300, 300)
    return dataclasses.replace(default, **changes)


def _fresh(path: pathlib.Path) -> pathlib.Path:
    """Return the first of ``path``, ``path-2``, ``path-3``, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _devices_again(run: Run, options: Any, asked: int | None) -> tuple[Any, list[str]]:
    """Resolve the number of devices of a run that is continued, and what to say of it.

    Without ``asked`` it is the number that the run was started with, where there are as
    many and no more processes than then; else it is chosen as for a new run.
    """
    if "devices" not in fields_of(options):
        return options, []
    before = options.devices
    same = processes.count() in (1, run.config.get("processes", 1))
    if asked is None and same:
        with contextlib.suppress(InputError):
            return _resolve_devices(options), []
    options = _resolve_devices(dataclasses.replace(options, devices=asked or 0))
    if options.devices == before:
        return options, []
    return options, [
        f"devices: {options.devices}, where the run was started with {before}; the "
        f"numbers are the same up to rounding"
    ]


def _resolve_devices(options: Any) -> Any:
    """Resolve the number of devices, so that ``--resume`` uses as many if it can."""
    if "devices" not in fields_of(options):  # of a task that runs on one
        return options
    return dataclasses.replace(
        options, devices=choose_devices(options.devices, options.batch, options.hidden)
    )


def _with_hidden_size(options: dict[str, Any]) -> dict[str, Any]:
    """Let ``hidden`` be the hidden size of a cell that is given as an object."""
    cell = options.get("cell")
    if not isinstance(cell, (Cell, Layer)) or "hidden" in options:
        return options
    sizes = [v for name, v in vars(cell).items() if name == "hidden_size"]
    return {**options, "hidden": sizes[0]} if sizes else options


def _options_as_json(options: Any) -> dict[str, Any]:
    """Return the options of a task as config.json holds them, its own ones first."""
    found = fields_of(options)
    values = {each.name: found[each.name] for each in ordered_fields(type(options))}
    if "cell" in values:
        values["cell"] = stored_cell(values["cell"])
    return values


def _options_of(
    run: Run, declared: Task | SyntheticTask, cell: CellLike | None, trust_code: bool
) -> Any:
    """Return the options of a run, whose cell may be imported.

    The number of devices is 1 for runs that are older than this option.
    """
    stored = run.config.get("options")
    if isinstance(stored, dict) and "cell" in stored:
        where = f"{run.path}/config.json"
        found = restored_cell(where, stored["cell"], cell, trust_code)
        run = Run(run.path, {**run.config, "options": {**stored, "cell": found}})
    options = _stored(run, declared.Options, "options")
    return (
        dataclasses.replace(options, devices=1)
        if fields_of(options).get("devices") == 0
        else options
    )


# Former names of options, for runs that were started with them.
RENAMED_OPTIONS = {"window": "tbptt", "horizon": "k2", "truncate": "tbptt"}


def _stored(run: Run, kind: Any, name: str) -> Any:
    """Read a dataclass from a run's config, where tuples are stored as lists."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    older = {name: field.metadata.get("before") for name, field in fields.items()}
    known = fields.keys()
    try:
        return kind(
            **{k: v for k, v in older.items() if v is not None}
            | {
                k if k in known else RENAMED_OPTIONS.get(k, k): tuple(v)
                if isinstance(v, list)
                else v
                for k, v in run.config[name].items()
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run.path}/config.json is damaged: {error}") from None


def as_stored(config: dict[str, Any]) -> dict[str, Any]:
    """Return entries of a config as config.json gives them back: tuples are lists."""
    return json.loads(json.dumps(config))


def _check_unchanged(
    run: Run, arguments: dict[str, Any], stored: dict[str, Any]
) -> None:
    """Check that what is given on resuming equals what the run was started with."""
    for name, value in arguments.items():
        if name in ("vocabulary", "text") and value != stored.get(name):
            raise InputError(
                f"{run.path} was started with another text than --data has now: "
                f"restore it, or start a new run"
            )
        if value != stored.get(name):
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{run.path} was started with {flag} {stored.get(name)}, not {value}; "
                f"leave out {flag}, or start a new run"
            )
