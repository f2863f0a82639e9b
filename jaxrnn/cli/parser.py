"""The arguments of all commands."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, NoReturn

from ..tasks.cell_comparison import Comparison
from ..tasks.config import check_name
from ..tasks.gradient_study import Study
from ..tasks.runner import TASKS
from ..training import Budget, InputError
from . import commands as run

BUDGET_HELP = {
    "steps": "total number of updates",
    "seconds": (
        "wall-clock time of the run, instead of steps; the learning rate then follows "
        "the clock"
    ),
    "report_every": "number of steps between reports",
    "evaluate_every": (
        "number of steps between held-out evaluations, a multiple of --report-every"
    ),
    "checkpoint_seconds": "time between checkpoints; 0 writes one at each report",
    "patience": (
        "number of evaluations without a better held-out score after which training "
        "stops; 0 disables it; for tasks on labeled data"
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser that raises `InputError` instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an error of one line."""
        raise InputError(f"{message} (see {self.prog} --help)")


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the arguments of all commands."""
    parser = Parser(
        prog="jaxrnn",
        description="Recurrent networks in JAX: train models and use trained ones.",
    )
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=Parser
    )
    task = (
        argv[1]
        if argv[:1] == ["train"] and len(argv) > 1 and not argv[1].startswith("-")
        else None
    )
    if task is not None:
        check_name("train", task, TASKS)
    elif argv[:1] == ["train"] and len(argv) > 1 and argv[1] not in ("-h", "--help"):
        raise InputError(
            f"the task must follow train: jaxrnn train TASK ..., where TASK is one of "
            f"{', '.join(TASKS)}"
        )
    _add_train(commands.add_parser("train", help="train a task"), task)

    sample = commands.add_parser(
        "sample", help="generate text with a trained language model"
    )
    _add_run(sample)
    sample.add_argument("--prompt", default="", help="text to continue")
    sample.add_argument(
        "--length",
        type=_at_least(1),
        help=(
            "number of tokens to generate (default: 400; for hello, to the end of "
            "the word)"
        ),
    )
    sample.add_argument(
        "--temperature",
        type=_temperature,
        help=(
            "sampling temperature: 0 selects the most probable token, 1 samples from "
            "the model (default: 0.7; for hello, 0)"
        ),
    )
    sample.add_argument(
        "--top-k",
        type=_at_least(1),
        help="sample among this many most probable tokens (default: all)",
    )
    sample.add_argument(
        "--seed", type=_at_least(0), default=0, help="random seed (default: 0)"
    )
    sample.set_defaults(command=run.sample)

    predict = commands.add_parser(
        "predict",
        help="print the model's prediction for each input",
    )
    _add_run(predict)
    predict.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="inputs of the model (default: the lines of standard input)",
    )
    predict.set_defaults(command=run.predict)

    evaluate = commands.add_parser(
        "evaluate", help="print the task's scores on other data, as JSON"
    )
    _add_run(evaluate)
    other = evaluate.add_mutually_exclusive_group(required=True)
    other.add_argument("--data", metavar="PATH", help="a data file of your own")
    other.add_argument(
        "--length",
        type=_at_least(1),
        metavar="N",
        help="for synthetic tasks: the length of held-out sequences",
    )
    evaluate.set_defaults(command=run.evaluate)
    _add_gradients(
        commands.add_parser(
            "gradients", help="measure gradient flow: a table and plots"
        )
    )
    _add_cells(
        commands.add_parser(
            "cells", help="compare cells: scores, gradient decay, time and memory"
        )
    )
    return parser.parse_args(argv)


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add the run directory, and what allows to import its cell."""
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--cell",
        metavar="module:Name",
        help="the cell of the run, if it is code outside jaxrnn",
    )
    _add_trust(parser, "the cell")


def _add_trust(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the flag that allows to import code that a run names."""
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help=f"import whatever code outside jaxrnn the run names as {what}",
    )


def _at_least(least: int):
    """Return a parser of ints not less than ``least``."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(
                f"must be at least {least}, but it is {value}"
            )
        return value

    number.__name__ = "int"
    return number


def _temperature(text: str) -> float:
    """Parse a finite, non-negative float."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"must be a finite number of at least 0, but it is {text}"
        )
    return value


def _add_train(parser: argparse.ArgumentParser, task: str | None) -> None:
    """Add the flags of training a task.

    These are the fields of the task's options and of the budget; one that is not given
    is absent from the parsed arguments.
    """
    parser.add_argument(
        "task",
        metavar="TASK",
        help=f"one of {', '.join(TASKS)}; see jaxrnn train TASK --help for its flags",
    )
    parser.add_argument(
        "--out",
        metavar="RUN",
        help="run directory (default: runs/TASK, with a number if it exists)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest checkpoint of --out",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run in --out"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="train a small model: seconds, or about a minute on real data",
    )
    _add_trust(parser, "its cell, with --resume")
    parser.set_defaults(command=run.train)
    if task is None:
        return
    module = TASKS[task]
    for field in dataclasses.fields(module.Options):
        _add_flag(parser, field.name, field.default, field.metadata["help"])
    for field in dataclasses.fields(Budget):
        _add_flag(
            parser,
            field.name,
            getattr(module.BUDGET, field.name),
            BUDGET_HELP[field.name],
        )


def _add_gradients(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the gradient study, which are the fields of `Study`.

    One that is not given is absent from the parsed arguments.
    """
    parser.add_argument(
        "--run",
        metavar="RUN",
        help=(
            "measure a trained run, before and after training, instead of cells and "
            "a task"
        ),
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="runs/gradients",
        help="output directory (default: runs/gradients)",
    )
    _add_trust(parser, "its cell, with --run")
    parser.set_defaults(command=run.gradients)
    for field in dataclasses.fields(Study):
        _add_flag(parser, field.name, field.default, field.metadata["help"])


def _add_cells(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the comparison, which are the fields of `Comparison`."""
    parser.add_argument(
        "--cell",
        nargs="+",
        action="extend",
        required=True,
        metavar="CELL",
        help="cells to compare: NAME, NAME:VARIANT or module:Name(...) as for train",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="runs/cells",
        help="output directory (default: runs/cells)",
    )
    parser.set_defaults(command=run.cells)
    for field in dataclasses.fields(Comparison):
        _add_flag(parser, field.name, field.default, field.metadata["help"])


def _add_flag(
    parser: argparse.ArgumentParser, name: str, default: Any, help: str
) -> None:
    """Add a flag of the default's type; for a bool, ``--name`` and ``--no-name``."""
    if isinstance(default, bool):
        parser.add_argument(
            "--" + name.replace("_", "-"),
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=help,
        )
        return
    is_list = isinstance(default, tuple)
    kind = float if "seconds" in name else str if is_list else type(default)
    shown = " ".join(default) if is_list else default
    parser.add_argument(
        "--" + name.replace("_", "-"),
        type=kind,
        nargs="+" if is_list else None,
        action="extend" if is_list else "store",
        default=argparse.SUPPRESS,
        metavar="TEXT" if kind is str else kind.__name__.upper(),
        help=help if default is None else f"{help} (default: {shown})",
    )
