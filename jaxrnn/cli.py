"""The command line interface, which parses arguments and calls the library.

The exit status is 0, or 2 with one line on standard error for invalid arguments,
data or run directories. Ctrl-C saves the run and exits.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from typing import Any, NoReturn

import jax

from .tasks import compare_cells, load, train
from .tasks.cell_comparison import Comparison
from .tasks.config import check_name
from .tasks.gradient_study import Study, gradients
from .tasks.runner import TASKS
from .training import Budget, InputError
from .training.devices import host_cores
from .training.errors import unwritable

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


class _Parser(argparse.ArgumentParser):
    """A parser that raises `InputError` instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an error of one line."""
        raise InputError(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the arguments (default: those of the process).
    """
    argv = sys.argv[1:] if argv is None else argv
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that cannot show a character must not end a run.
        sys.stdout.reconfigure(errors="replace")
    try:
        arguments = _parse(argv)
        arguments.command(arguments)
        # Flush here, so that an error such as a full disk is reported below.
        sys.stdout.flush()
    except InputError as error:
        print(f"jaxrnn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has closed the pipe, as head does
        sys.stderr.close()
        return 0
    except Exception as error:
        reason = unwritable(error)
        if reason is None:
            raise
        _silence_stdout()
        print(
            f"jaxrnn: {getattr(error, 'filename', None) or 'the output'} could not be "
            f"written: {reason}",
            file=sys.stderr,
        )
        return 2
    return 0


def _silence_stdout() -> None:
    """Redirect standard output, if it cannot be flushed, to the null device.

    Otherwise the interpreter would try to write the rest again when it exits.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(argv: list[str]) -> argparse.Namespace:
    """Parse the arguments of all commands."""
    parser = _Parser(
        prog="jaxrnn",
        description="Recurrent networks in JAX: train models and use trained ones.",
    )
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=_Parser
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
    sample.set_defaults(command=_sample)

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
    predict.set_defaults(command=_predict)

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
    evaluate.set_defaults(command=_evaluate)
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
    parser.set_defaults(command=_train)
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
    parser.set_defaults(command=_gradients)
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
    parser.set_defaults(command=_cells)
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


def _show_cores() -> None:
    """Let JAX use every core of a CPU as a device, for ``--devices``.

    A number that the environment sets is not changed.
    """
    asked = getattr(jax.config, "jax_num_cpu_devices", -1)
    if asked >= 0 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    # Once JAX has been used, the number of devices is fixed.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", host_cores())


def _train(arguments: argparse.Namespace) -> None:
    """Train a task and print its result."""
    _show_cores()
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
    }
    budget_names = {field.name for field in dataclasses.fields(Budget)}
    option_names = {
        field.name for field in dataclasses.fields(TASKS[arguments.task].Options)
    }
    run, result, lines = train(
        arguments.task,
        {name: value for name, value in values.items() if name in option_names},
        {name: value for name, value in values.items() if name in budget_names},
        out=arguments.out,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        quick=arguments.quick,
        trust_code=arguments.trust_code,
    )
    for line in lines:
        print(line)
    if result:
        print(json.dumps(result))
    print(f"run: {run.path}")


def _gradients(arguments: argparse.Namespace) -> None:
    """Run the gradient study and print its table."""
    # Several threads slow down the small factorizations of the study.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    names = {field.name for field in dataclasses.fields(Study)}
    options = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in vars(arguments).items()
        if k in names
    }
    _, lines = gradients(
        options,
        run=arguments.run,
        out=arguments.out,
        trust_code=arguments.trust_code,
    )
    for line in lines:
        print(line)


def _cells(arguments: argparse.Namespace) -> None:
    """Compare cells and print the table."""
    names = {field.name for field in dataclasses.fields(Comparison)}
    options = {name: v for name, v in vars(arguments).items() if name in names}
    _, lines = compare_cells(arguments.cell, options, out=arguments.out)
    for line in lines:
        print(line)


def _load(arguments: argparse.Namespace) -> Any:
    """Load a trained run and print its notes to standard error."""
    trained, notes = load(
        arguments.run, cell=arguments.cell, trust_code=arguments.trust_code
    )
    for note in notes:
        print(f"jaxrnn: {note}", file=sys.stderr)
    return trained


def _sample(arguments: argparse.Namespace) -> None:
    """Print generated text, as it is generated where the task supports it."""
    trained = _load(arguments)
    request = (
        arguments.prompt,
        arguments.length,
        arguments.temperature,
        arguments.top_k,
        arguments.seed,
    )
    for piece in (
        trained.stream(*request)
        if hasattr(trained, "stream")
        else [trained.sample(*request)]
    ):
        print(piece, end="", flush=True)
    print()


def _predict(arguments: argparse.Namespace) -> None:
    """Print one prediction per input."""
    trained = _load(arguments)
    try:
        for text in arguments.inputs or (
            line.rstrip("\n").removeprefix("\ufeff") for line in sys.stdin
        ):
            print(trained.predict(text), flush=True)
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: {error}") from None


def _evaluate(arguments: argparse.Namespace) -> None:
    """Print the scores on other data, as JSON."""
    trained = _load(arguments)
    scores = (
        trained.evaluate(arguments.data)
        if arguments.length is None
        else trained.evaluate_length(arguments.length)
    )
    print(json.dumps(scores, ensure_ascii=False))
