"""A study of gradient flow in a task's model: a table, ``gradients.json`` and plots.

The model is measured at initialization or, for a run, also after training.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .. import diagnostics
from ..core.records import fields_of
from ..diagnostics.style import save, title
from ..training import InputError
from .config import check_name, check_options, option
from .models.cell_registry import check_cell_name
from .models.own_cell import CellLike, label_of, labelled
from .probe import Findings, Probe, as_json, measure, measure_each_loss
from .runner import TASKS, restore
from .synthetic.task import SyntheticTask
from .task import Task

FIRST_LAG = 20  # first lag of the fit; before it the decay depends on the loss


@dataclasses.dataclass(frozen=True)
class Study:
    """The options of `gradients`; the field names are the flags of the command line."""

    cell: tuple[CellLike, ...] = option(
        ("elman", "gru", "lstm", "lstm:chrono"),
        "cells to compare, each NAME, NAME:VARIANT or module:Name(...) as for train",
    )
    task: str = option("adding", "task whose inputs and loss are used")
    hidden: int = option(64, "number of units", least=1)
    length: int = option(200, "number of steps before the loss", least=3)
    batch: int = option(32, "number of sequences", least=1)
    seeds: int = option(4, "number of initializations to average over", least=1)
    seed: int = option(
        0,
        "random seed of the first initialization and of the inputs",
        least=0,
        below=2**31,
    )

    def __post_init__(self):
        check_options(self)
        for cell in self.cell:
            check_cell_name("--cell", cell)


def gradients(
    study: dict[str, Any] | None = None,
    *,
    run: str | os.PathLike | None = None,
    out: str | os.PathLike,
    trust_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], list[str]]:
    """Measure gradient flow, and write ``gradients.json`` and plots to a directory.

    Args:
        study: fields of `Study` that differ from its defaults; ``cell`` holds names,
            import paths, cells and layers.
        run: a run directory, whose model before and after training replaces the cells,
            the task and the units of ``study``. The only cell that ``study`` may name
            is then that of the run, if it is code outside jaxrnn.
        out: the directory; it is made if it does not exist, and files of earlier
            studies in it are replaced.
        trust_code: import whatever code outside jaxrnn the run names as its cell.
        say: called with a line before each model is compiled and measured.

    Returns:
        The results, and a table as lines of text.

    Raises:
        InputError: for options that do not fit, or a run that cannot be read.
    """
    for name in study or {}:
        check_name(
            "gradients", name, [field.name for field in dataclasses.fields(Study)]
        )
    options = Study(**(study or {}))
    subjects, context = (
        _of_run(run, options, set(study or {}), trust_code)
        if run is not None
        else _of_cells(options)
    )
    findings = {}
    for number, (name, models) in enumerate(subjects.items(), 1):
        say(f"compiling and measuring {name} ({number} of {len(subjects)})")
        findings[name] = _measure(models, options, context["length"])
    results = {
        **context,
        "jax": jax.__version__,
        "models": {name: _summary(f) for name, f in findings.items()},
    }
    folder = pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gradients.json").write_text(
            json.dumps(results, indent=1) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror}; choose another --out"
        ) from None
    lines = [
        *_table(results, findings),
        *_draw(folder, findings, subjects, context, after=run is not None),
    ]
    return results, [*lines, f"written: {folder / 'gradients.json'}"]


# A probe, and the parameters at which it is measured.
Models = tuple[Callable[[Any], Probe], list[Any]]


def _measurable() -> dict[str, Any]:
    """Return what makes the probe of each task that has one."""
    return {name: task.probe for name, task in TASKS.items() if task.probe is not None}


def _of_cells(asked: Study) -> tuple[dict[str, Models], dict[str, Any]]:
    """Initialize one model per cell and seed; all get the same inputs."""
    measured = _measurable()
    check_name("--task", asked.task, TASKS)
    if asked.task not in measured:
        raise InputError(
            f"--task {asked.task} cannot be measured; these can: {', '.join(measured)}"
        )
    task = TASKS[asked.task]
    subjects: dict[str, Models] = {}
    for label, cell in labelled(asked.cell).items():
        options = [
            _options(task, cell, asked, asked.seed + i) for i in range(asked.seeds)
        ]
        _, config = task.prepare(options[0])
        probe = measured[asked.task](options[0], config, asked.length, asked.batch)
        params = [task.build(each, config)[1] for each in options]
        subjects[label] = (probe, params)
    return subjects, dataclasses.asdict(
        dataclasses.replace(asked, cell=tuple(map(label_of, asked.cell)))
    )


def _options(
    task: Task | SyntheticTask, cell: CellLike, asked: Study, seed: int
) -> Any:
    """Return the task's options for a study, restricted to those that it has."""
    wanted = {
        "cell": cell,
        "hidden": asked.hidden,
        "length": asked.length,
        "seed": seed,
    }
    names = {field.name for field in dataclasses.fields(task.Options)}
    return task.Options(
        **{name: value for name, value in wanted.items() if name in names}
    )


def _of_run(
    path: Any, asked: Study, given_options: set[str], trust_code: bool
) -> tuple[dict[str, Models], dict[str, Any]]:
    """Return the model of a run at initialization and after training."""
    cells = asked.cell if "cell" in given_options else ()
    if given_options & {"task", "hidden", "seeds", "seed"} or len(cells) > 1:
        raise InputError(
            "--run determines cell, task and units: leave out --task, --hidden, "
            "--seeds and --seed, and give --cell only to name the code of its cell"
        )
    run, task, options, _, (initial, params), notes = restore(
        path, cell=cells[0] if cells else None, trust_code=trust_code
    )
    if task.probe is None:
        raise InputError(
            f"{run.path} is a run of {run.config['task']}, which has no gradients of "
            f"single steps to measure; runs of these have: {', '.join(_measurable())}"
        )
    length = (
        asked.length
        if "length" in given_options
        else fields_of(options).get("length", asked.length)
    )
    probe = task.probe(options, run.config, length, asked.batch)
    context = {
        "run": str(path),
        "task": run.config["task"],
        "cell": label_of(options.cell),
        "hidden": options.hidden,
    }
    context |= {"length": length, "batch": asked.batch, "notes": notes}
    return {
        "before training": (probe, [initial]),
        "after training": (probe, [params]),
    }, context


def _measure(models: Models, asked: Study, length: int) -> list[Findings]:
    """Apply all diagnostics to every initialization."""
    probe, all_params = models
    fit_range = (min(FIRST_LAG, length // 3), length - 1)
    keys = jax.random.split(jax.random.key(asked.seed), len(all_params))
    return [
        jax.tree.map(np.asarray, measure(probe, params, key, fit_range))
        for params, key in zip(all_params, keys, strict=True)
    ]


def _summary(findings: list[Findings]) -> dict[str, Any]:
    """Return means over seeds, and the values of each seed."""
    betas = np.array([f.fit.beta for f in findings], np.float64)
    curve = np.mean([f.log_v - f.log_v[0] for f in findings], 0)
    error = np.mean([f.truncation_error for f in findings], 0)
    beta = betas.mean()
    return {
        "beta": as_json(beta),
        "beta_of_seeds": as_json(betas),
        "beta_interval_of_first_seed": as_json(
            [findings[0].fit.low, findings[0].fit.high]
        ),
        "residual_nats": as_json(np.mean([f.fit.residual for f in findings])),
        "tau": as_json(-1 / np.log(beta) if 0 < beta < 1 else np.nan),
        "mean_log_v_over_v0": as_json(curve),
        "memory_horizon_of_seeds": as_json(np.array([f.horizon for f in findings])),
        "lyapunov_exponents_of_first_seed": as_json(findings[0].exponents),
        "leading_exponent": as_json(np.mean([f.exponents[0] for f in findings])),
        "truncation_error": as_json(error),
        "k2_for_a_tenth": int(np.argmax(error < 0.1)) + 1
        if (error < 0.1).any()
        else None,
    }


def _table(results: dict[str, Any], findings: dict[str, list[Findings]]) -> list[str]:
    """Return the table and a legend of its columns, as lines."""
    length = results["length"]
    lags = [k for k in (10, 50, 199) if k <= length] or [length]
    head = [
        "model",
        "beta",
        "tau",
        *(f"v_{k}/v_0" for k in lags),
        "memory",
        "lambda_1",
        "k2 for 10 %",
    ]
    rows = [head]
    for name, model in results["models"].items():
        curve = model["mean_log_v_over_v0"]
        ratios = ["-" if curve[k] is None else f"{np.exp(curve[k]):.2g}" for k in lags]
        # NaN, where a seed's is
        memory = np.median([each.horizon for each in findings[name]])
        tau, k2 = model["tau"], model["k2_for_a_tenth"]
        beta, leading = (
            "-" if x is None else f"{x:.{digits}f}"
            for x, digits in ((model["beta"], 4), (model["leading_exponent"], 3))
        )
        rows.append(
            [
                name,
                beta,
                f"{tau:.3g}"
                if tau is not None
                else "-"
                if model["beta"] is None
                else "inf",
                *ratios,
                "-"
                if np.isnan(memory)
                else f"> {length}"
                if np.isinf(memory)
                else f"{memory:.0f}",
                leading,
                str(k2 or f"> {length}"),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [
        *lines,
        "beta, tau: the gradient at the state shrinks by beta a step, to 1/e in tau "
        "steps (fit of log v_k, k from "
        f"{min(FIRST_LAG, length // 3)})",
        "v_k/v_0: gradient norm k steps before the loss; memory: lag after which it "
        "stays below a hundredth of its largest",
        "lambda_1: leading Lyapunov exponent, nats per step; k2: steps of truncated "
        "BPTT whose gradient is right to 10 %",
    ]


DECAY = "Gradient at the state k steps before the loss"


def _draw(
    folder: pathlib.Path,
    findings: Any,
    subjects: dict[str, Models],
    context: dict,
    after: bool,
) -> list[str]:
    """Draw the plots, and return one line per file."""
    plots = diagnostics.plots
    of = f"{context['task']}, {context['hidden']} units, {context['length']} steps"
    curves = {
        name: np.mean([f.log_v for f in each], 0) for name, each in findings.items()
    }
    maps = {
        name: measure_each_loss(probe, all_params[0])
        for name, (probe, all_params) in subjects.items()
    }
    errors = {
        name: np.mean([f.truncation_error for f in each], 0)
        for name, each in findings.items()
    }
    try:
        if after:
            cell = context["cell"]
            decay = plots.decay_curves(
                {cell: curves["before training"]},
                {cell: curves["after training"]},
                title=title(DECAY, of),
            )
        else:
            decay = plots.decay_curves(
                curves, title=title(DECAY, f"{of}, at initialization")
            )
        pictures = {
            "decay": decay,
            "maps": plots.gradient_maps(
                maps, title=title("Gradient of the loss of each step at each state", of)
            ),
            "spectra": plots.spectra(
                {name: each[0].exponents for name, each in findings.items()},
                title=title("Growth of small differences, by direction", of),
            ),
            "truncation": plots.truncation_curves(
                {n: (np.arange(1, len(e) + 1), e) for n, e in errors.items()},
                title=title("Error of gradients over k2 steps only", of),
            ),
        }
    except ImportError as error:
        return [f"no pictures: {error}"]
    for name, picture in pictures.items():
        save(picture, folder / f"{name}.png")
    return [f"picture: {folder / name}.png" for name in pictures]
