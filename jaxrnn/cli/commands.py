"""The commands: each calls the library and prints."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax

from .. import tasks
from ..tasks.about import next_commands, resume_command
from ..tasks.cell_comparison import Comparison
from ..tasks.charlm import Trained as CharacterModel
from ..tasks.dynamics import Study as Dynamics
from ..tasks.dynamics import dynamics as study_dynamics
from ..tasks.gradient_study import Study
from ..tasks.gradient_study import gradients as study_gradients
from ..tasks.held_out import evaluate_held_out
from ..tasks.run_report import report as write_report
from ..tasks.runner import TASKS
from ..tasks.series.forecaster import TrainedForecaster
from ..tasks.series.labels import TrainedLabeler
from ..training import Budget, InputError, processes
from ..training.devices import host_cores
from . import launch

INTERRUPTED = 130  # as a shell says of a program that Ctrl-C ended


def _show_cores() -> None:
    """Let JAX use every core of a CPU as a device, for ``--devices``.

    A number that the environment sets is not changed.
    """
    asked = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    if asked >= 0 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    # Once JAX has been used, the number of devices is fixed.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", host_cores())


def train(arguments: argparse.Namespace) -> int:
    """Train a task and print its result; of several processes the first prints.

    The result is a table on a terminal, and JSON elsewhere. With ``--json`` standard
    output holds nothing but the JSON; all else goes to standard error.

    Returns:
        130 if the run was interrupted, else 0.
    """
    _show_cores()
    if launch.begin(arguments):
        return launch.guarded(lambda: _train(arguments))
    return _train(arguments)


def _train(arguments: argparse.Namespace) -> int:
    """Train a task, when all processes are connected."""
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
    }
    budget_names = {field.name for field in dataclasses.fields(Budget)}
    option_names = {
        field.name for field in dataclasses.fields(TASKS[arguments.task].Options)
    }
    output = sys.stderr if arguments.json else sys.stdout
    with contextlib.redirect_stdout(output):
        run, result, lines = tasks.train(
            arguments.task,
            {name: value for name, value in values.items() if name in option_names},
            {name: value for name, value in values.items() if name in budget_names},
            out=arguments.out,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            quick=arguments.quick,
            trust_code=arguments.trust_code,
            log=arguments.log,
        )
        if not result:
            if not processes.is_first():
                return INTERRUPTED
            print(f"jaxrnn: continue with: {resume_command(run)}", file=sys.stderr)
            return INTERRUPTED
        for line in lines:
            print(line)
    if not processes.is_first():
        return 0
    if arguments.json:
        print(json.dumps({"run": str(run.path), **result}))
    elif sys.stdout.isatty():
        commands = [f"  {line}" for line in next_commands(run)]
        print("\n".join([_speed(result), "", "next", *commands]))
    else:
        print(json.dumps(result))
        print(f"run: {run.path}")
    return 0


def _speed(result: dict[str, Any]) -> str:
    """Return how long a run took."""
    speeds = [
        f", {value:,.0f} {name.removesuffix('_per_second')}/s"
        for name, value in result.items()
        if name.endswith("_per_second") and value is not None
    ]
    return f"{result['steps']:,} steps in {result['seconds']:g} s{''.join(speeds)}"


def gradients(arguments: argparse.Namespace) -> None:
    """Run the gradient study and print its table."""
    # Several threads slow down the small factorizations of the study.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    names = {field.name for field in dataclasses.fields(Study)}
    options = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in vars(arguments).items()
        if k in names
    }
    _, lines = study_gradients(
        options,
        run=arguments.run,
        out=arguments.out,
        trust_code=arguments.trust_code,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    for line in lines:
        print(line)


def dynamics(arguments: argparse.Namespace) -> None:
    """Find the fixed points of a run, and print a table or JSON."""
    names = {field.name for field in dataclasses.fields(Dynamics)}
    results, lines = study_dynamics(
        arguments.run,
        {name: v for name, v in vars(arguments).items() if name in names},
        length=arguments.length,
        out=arguments.out,
        cell=arguments.cell,
        trust_code=arguments.trust_code,
    )
    for line in [json.dumps(results)] if arguments.json else lines:
        print(line)


def cells(arguments: argparse.Namespace) -> None:
    """Compare cells and print the table."""
    names = {field.name for field in dataclasses.fields(Comparison)}
    options = {name: v for name, v in vars(arguments).items() if name in names}
    _, lines = tasks.compare_cells(arguments.cell, options, out=arguments.out)
    for line in lines:
        print(line)


def _load(arguments: argparse.Namespace) -> Any:
    """Load a trained run and print its notes to standard error."""
    trained, notes = tasks.load(
        arguments.run, cell=arguments.cell, trust_code=arguments.trust_code
    )
    for note in notes:
        print(f"jaxrnn: {note}", file=sys.stderr)
    return trained


def report(arguments: argparse.Namespace) -> None:
    """Write the report of a run, and print its path."""
    path, notes = write_report(
        arguments.run, cell=arguments.cell, trust_code=arguments.trust_code
    )
    for note in notes:
        print(f"jaxrnn: {note}", file=sys.stderr)
    print(f"report: {path}")


def sample(arguments: argparse.Namespace) -> None:
    """Print generated text, as it is generated where the task supports it."""
    trained = _load(arguments)
    if isinstance(trained, CharacterModel):
        _say_unknown(arguments.prompt, trained.vocabulary.characters)
    request = (
        arguments.prompt,
        arguments.length,
        arguments.temperature,
        arguments.top_k,
        arguments.seed,
    )
    for piece in (
        trained.stream(*request)
        if isinstance(trained, CharacterModel)
        else [trained.sample(*request)]
    ):
        print(piece, end="", flush=True)
    print()


def _say_unknown(text: str, known: str) -> None:
    """Say on standard error which characters of a prompt the model does not know."""
    unknown = dict.fromkeys(character for character in text if character not in known)
    if unknown:
        print(
            f"jaxrnn: not in the training text, so read as unknown: "
            f"{' '.join(map(repr, unknown))}",
            file=sys.stderr,
        )


def _say_unscored(text: str, known: str) -> None:
    """Say on standard error what the bits per character of a text do not tell."""
    _say_unknown(text, known)
    if len(text) < 2:
        print(
            f"jaxrnn: {text!r} has no bits per character (nan), because no character "
            f"of it is predicted from one before: give two or more",
            file=sys.stderr,
        )


def predict(arguments: argparse.Namespace) -> None:
    """Print one prediction per input."""
    trained = _load(arguments)
    say: Callable[[str], str] = trained.predict
    if arguments.steps is not None:
        if not isinstance(trained, (TrainedForecaster, TrainedLabeler)):
            raise InputError(
                f"--steps is the number of samples to forecast, but {arguments.run} "
                f"is no run of series: leave it out"
            )
        say = functools.partial(trained.forecast, steps=arguments.steps)
    try:
        for text in arguments.inputs or (
            line.rstrip("\n").removeprefix("\ufeff") for line in sys.stdin
        ):
            if isinstance(trained, CharacterModel):
                _say_unscored(text, trained.vocabulary.characters)
            print(say(text), flush=True)
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: {error}") from None


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the scores on held-out data, or on other data, as JSON."""
    if arguments.data is not None:
        scores = _load(arguments).evaluate(arguments.data)
    elif arguments.length is not None:
        scores = _load(arguments).evaluate_length(arguments.length)
    else:
        scores = evaluate_held_out(
            arguments.run,
            cell=arguments.cell,
            trust_code=arguments.trust_code,
            say=lambda line: print(f"jaxrnn: {line}", file=sys.stderr, flush=True),
        )
    print(json.dumps(scores, ensure_ascii=False))
