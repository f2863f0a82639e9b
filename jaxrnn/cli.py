"""The command line: parses, and calls the library.

Exit status 0, or 2 with one line on standard error for bad arguments, data or run
directories. Ctrl-C saves and exits.
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

from .tasks import load, train
from .tasks.config import check_name
from .tasks.gradient_study import Study, gradients
from .tasks.runner import TASKS
from .training import Budget, InputError
from .training.devices import host_cores
from .training.errors import unwritable

BUDGET_HELP = {
    "steps": "updates in all",
    "seconds": (
        "of wall-clock time, in place of steps; the learning rate then follows the "
        "clock"
    ),
    "report_every": "steps between reports",
    "evaluate_every": (
        "steps between held-out evaluations, a multiple of --report-every"
    ),
    "checkpoint_seconds": "between checkpoints; 0: at each report",
    "patience": (
        "evaluations without a better held-out score after which training stops; 0: "
        "never; for tasks on labelled data"
    ),
}


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, not argparse's usage and a line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(
            errors="replace"
        )  # a terminal that cannot show a character must not end a run
    try:
        arguments = _parse(argv)
        arguments.command(arguments)
        # or a full disk behind it would be found when nobody is left to say so
        sys.stdout.flush()
    except InputError as error:
        print(f"jaxrnn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output went away, as head does
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
    """What could not be written is not tried again at the interpreter's end."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="jaxrnn",
        description="Recurrent networks in JAX: train them, and use what was trained.",
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
            f"the task comes right after train: jaxrnn train TASK ..., TASK one of "
            f"{', '.join(TASKS)}"
        )
    _add_train(commands.add_parser("train", help="train a task"), task)

    sample = commands.add_parser("sample", help="let a trained language model write")
    sample.add_argument("run", metavar="RUN")
    sample.add_argument("--prompt", default="", help="text to begin with")
    sample.add_argument(
        "--length",
        type=_at_least(1),
        help="symbols to write (default: 400; hello: to the word's end)",
    )
    sample.add_argument(
        "--temperature",
        type=_temperature,
        help="0: always the likeliest; 1: as learned (default: 0.7; hello: 0)",
    )
    sample.add_argument(
        "--top-k",
        type=_at_least(1),
        help="draw among the likeliest so many (default: all)",
    )
    sample.add_argument("--seed", type=_at_least(0), default=0, help="(default: 0)")
    sample.set_defaults(command=_sample)

    predict = commands.add_parser(
        "predict",
        help="what the model makes of each input: see jaxrnn train TASK for the tasks",
    )
    predict.add_argument("run", metavar="RUN")
    predict.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="default: the lines of standard input",
    )
    predict.set_defaults(command=_predict)

    evaluate = commands.add_parser(
        "evaluate", help="the task's scores on other data, as JSON"
    )
    evaluate.add_argument("run", metavar="RUN")
    other = evaluate.add_mutually_exclusive_group(required=True)
    other.add_argument("--data", metavar="PATH", help="a file of the user's own")
    other.add_argument(
        "--length",
        type=_at_least(1),
        metavar="N",
        help="synthetic tasks: held-out sequences of this length",
    )
    evaluate.set_defaults(command=_evaluate)
    _add_gradients(
        commands.add_parser(
            "gradients", help="a table and pictures of where gradients go"
        )
    )
    return parser.parse_args(argv)


def _at_least(least: int):
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
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"must be a finite number of at least 0, but it is {text}"
        )
    return value


def _add_train(parser: argparse.ArgumentParser, task: str | None) -> None:
    """The flags of a task are the fields of its options and of the budget; one that
    is not given stays out.
    """
    parser.add_argument(
        "task",
        metavar="TASK",
        help=f"one of {', '.join(TASKS)}; see jaxrnn train TASK --help for its flags",
    )
    parser.add_argument(
        "--out",
        metavar="RUN",
        help="run directory (default: runs/TASK, numbered where there is one)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint of --out",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run in --out"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small model: seconds, or a minute on real data",
    )
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
    """The flags are the fields of `Study`; one that is not given stays out."""
    parser.add_argument(
        "--run",
        metavar="RUN",
        help="a trained run, before and after training, in place of cells and task",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="runs/gradients",
        help="(default: runs/gradients)",
    )
    parser.set_defaults(command=_gradients)
    for field in dataclasses.fields(Study):
        _add_flag(parser, field.name, field.default, field.metadata["help"])


def _add_flag(
    parser: argparse.ArgumentParser, name: str, default: Any, help: str
) -> None:
    """A flag of the default's type; a boolean one is ``--name`` or ``--no-name``."""
    if isinstance(default, bool):
        parser.add_argument(
            "--" + name.replace("_", "-"),
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=help,
        )
        return
    many = isinstance(default, tuple)
    kind = float if "seconds" in name else str if many else type(default)
    shown = " ".join(default) if many else default
    parser.add_argument(
        "--" + name.replace("_", "-"),
        type=kind,
        nargs="+" if many else None,
        action="extend" if many else "store",
        default=argparse.SUPPRESS,
        metavar="TEXT" if kind is str else kind.__name__.upper(),
        help=help if default is None else f"{help} (default: {shown})",
    )


def _show_cores() -> None:
    """Let JAX see every core of a CPU as a device, for ``--devices``, unless the
    environment says how many it shall see.
    """
    asked = getattr(jax.config, "jax_num_cpu_devices", -1)
    if asked >= 0 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(
        RuntimeError
    ):  # where JAX has been used already there are as many as there are
        jax.config.update("jax_num_cpu_devices", host_cores())


def _train(arguments: argparse.Namespace) -> None:
    _show_cores()
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
    }
    of_budget = {field.name for field in dataclasses.fields(Budget)}
    of_task = {
        field.name for field in dataclasses.fields(TASKS[arguments.task].Options)
    }
    run, result, lines = train(
        arguments.task,
        {name: value for name, value in given.items() if name in of_task},
        {name: value for name, value in given.items() if name in of_budget},
        out=arguments.out,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        quick=arguments.quick,
    )
    for line in lines:
        print(line)
    if result:
        print(json.dumps(result))
    print(f"run: {run.path}")


def _gradients(arguments: argparse.Namespace) -> None:
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # small factorisations: threads get in each other's way
    names = {field.name for field in dataclasses.fields(Study)}
    given = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in vars(arguments).items()
        if k in names
    }
    _, lines = gradients(given, run=arguments.run, out=arguments.out)
    for line in lines:
        print(line)


def _load(path: str) -> Any:
    trained, notes = load(path)
    for note in notes:
        print(f"jaxrnn: {note}", file=sys.stderr)
    return trained


def _sample(arguments: argparse.Namespace) -> None:
    trained = _load(arguments.run)
    asked = (
        arguments.prompt,
        arguments.length,
        arguments.temperature,
        arguments.top_k,
        arguments.seed,
    )
    for piece in (
        trained.stream(*asked)
        if hasattr(trained, "stream")
        else [trained.sample(*asked)]
    ):
        print(piece, end="", flush=True)
    print()


def _predict(arguments: argparse.Namespace) -> None:
    trained = _load(arguments.run)
    try:
        for text in arguments.inputs or (
            line.rstrip("\n").removeprefix("\ufeff") for line in sys.stdin
        ):
            print(trained.predict(text), flush=True)
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: {error}") from None


def _evaluate(arguments: argparse.Namespace) -> None:
    trained = _load(arguments.run)
    scores = (
        trained.evaluate(arguments.data)
        if arguments.length is None
        else trained.evaluate_length(arguments.length)
    )
    print(json.dumps(scores, ensure_ascii=False))
