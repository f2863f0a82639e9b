"""The arguments of all commands."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from ..core.records import fields_of
from ..tasks.about import ABOUT
from ..tasks.cell_comparison import Comparison
from ..tasks.config import check_name, ordered_fields
from ..tasks.dynamics import Study as Dynamics
from ..tasks.gradient_study import Study
from ..tasks.logs import LOGS
from ..tasks.runner import TASKS
from ..training import InputError
from . import commands as run
from . import listing
from .completion import SHELLS, completion
from .config_file import with_config
from .launch import HEARTBEAT_SECONDS, START_SECONDS
from .menu import menu, task_lines, version

# What flags can be added to
Flags = argparse._ActionsContainer

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
    """A parser that raises `InputError` instead of printing its usage.

    Flags cannot be abbreviated, because an abbreviation would change its meaning with
    the next flag that begins alike. A flag that does not exist is answered by the most
    similar one.
    """

    rest: str | None = None  # the argument that takes all words that are no flags

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the message as an error of one line."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        """Parse arguments, and refuse those that are not known."""
        namespace, unknown = super().parse_known_args(args, namespace)
        flags = [word for word in unknown if word[:1] == "-" and " " not in word]
        if self.rest and not flags:
            # Older versions of argparse stop at the first flag.
            vars(namespace)[self.rest] += unknown
            unknown = []
        elif unknown:
            self.error(self._about_unknown((flags or unknown)[0]))
        return namespace, unknown

    def _about_unknown(self, word: str) -> str:
        """Return what to say of an argument that is not known."""
        if not word.startswith("-"):
            return f"there is no place for the argument {word!r}"
        flag = word.partition("=")[0]
        known = [name for name in self._option_string_actions if name[:2] == "--"]
        # Dashes are in every flag, so that they say nothing of how near two are.
        names = {name.lstrip("-"): name for name in known}
        word = flag.lstrip("-")
        near = [
            names[name]
            for name in difflib.get_close_matches(word, names, n=1, cutoff=0.6)
        ]
        begins = [name for name in known if name.startswith(flag)]
        hint = f"; did you mean {(begins or near)[0]}?" if begins or near else ""
        return f"there is no flag {flag}{hint}"


# Under which heading the help lists an option; all others are of the task.
_MODEL = (
    "cell hidden layers embed dropout filters kernel word_dropout attention encoder "
    "channels readout"
)
_TRAINING = (
    "learning_rate optimizer schedule batch tbptt k1 k2 clip weight_decay devices seed "
    "gradient_method gradients scheduled_sampling loss"
)
GROUP_OF = dict.fromkeys(_MODEL.split(), "model") | dict.fromkeys(
    _TRAINING.split(), "training"
)


COMMANDS = {
    "train": "train a task",
    "sample": "generate text with a trained language model",
    "predict": "print the model's prediction for each input",
    "evaluate": "print the scores on held-out or other data, as JSON",
    "gradients": "measure gradient flow: a table and plots",
    "dynamics": "find fixed points of a run: a table and plots",
    "cells": "compare cells: scores, gradient decay, time, memory",
    "list": "show tasks, cells, data sets and runs",
    "info": "show a run: scores, options, parameters, files",
    "report": "write the page of a run, report.html",
    "compare": "compare runs: options, scores, learning curves",
    "completion": "print the script that completes words in a shell",
}


def parse(argv: list[str], *, read_files: bool = True) -> argparse.Namespace:
    """Parse the arguments of all commands, and the file that ``--config`` names.

    ``command`` of the result is the function to call with it.

    Raises:
        InputError: for arguments that do not fit, with the most similar ones that do.
    """
    if argv and not argv[0].startswith("-"):
        _check_command(argv[0])
    parser, parsers = _parsers(_task_of(argv))
    arguments = parser.parse_args(argv)
    if read_files and "config" in arguments and arguments.config is not None:
        return with_config(parsers["train"], arguments)
    return arguments


def _parsers(task: str | None) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of all commands, and that of each; ``train`` for one task."""
    parser = Parser(
        prog="jaxrnn",
        description="Recurrent networks in JAX: train models and use trained ones.",
    )
    parser.add_argument("--version", action="version", version=version())
    parser.set_defaults(command=lambda arguments: print(menu(COMMANDS)))
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    parsers = {
        name: commands.add_parser(name, help=help, description=_sentence(help))
        for name, help in COMMANDS.items()
    }
    _add_train(parsers["train"], task)
    _add_sample(parsers["sample"])
    _add_predict(parsers["predict"])
    _add_evaluate(parsers["evaluate"])
    _add_gradients(parsers["gradients"])
    _add_dynamics(parsers["dynamics"])
    _add_cells(parsers["cells"])
    _add_list(parsers["list"])
    _add_info(parsers["info"])
    _add_report(parsers["report"])
    _add_compare(parsers["compare"])
    _add_completion(parsers["completion"])
    return parser, parsers


def flags() -> dict[str, list[str]]:
    """Return the flags of each command, and of ``train`` with each task."""
    _, parsers = _parsers(None)
    parsers |= {f"train {task}": _parsers(task)[1]["train"] for task in TASKS}
    return {
        name: [
            option
            for action in parser._actions
            if action.help is not argparse.SUPPRESS
            for option in action.option_strings
            if option.startswith("--")
        ]
        for name, parser in parsers.items()
    }


def _sentence(help: str) -> str:
    """Return a help text as a sentence."""
    return f"{help[0].upper()}{help[1:]}."


def _check_command(name: str) -> None:
    """Check the name of the command; a task may stand there by mistake."""
    if name in TASKS:
        raise InputError(f"{name} is a task; did you mean jaxrnn train {name}?")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COMMANDS)}"
        raise InputError(f"there is no command {name!r}; {hint}")


def _task_of(argv: list[str]) -> str | None:
    """Return the task that follows ``train``, if this is the command."""
    if argv[:1] != ["train"] or argv[1:2] in (["-h"], ["--help"]):
        return None
    if len(argv) == 1 or argv[1].startswith("-"):
        raise InputError(
            f"the task must follow train: jaxrnn train TASK ..., where TASK is one of "
            f"{', '.join(TASKS)}"
        )
    check_name("train", argv[1], TASKS)
    return argv[1]


def _add_sample(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sample``."""
    _add_run(parser)
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument(
        "--length",
        type=_at_least(1),
        help=(
            "number of tokens to generate (default: 400; for hello, to the end of "
            "the word)"
        ),
    )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        help=(
            "sampling temperature: 0 selects the most probable token, 1 samples from "
            "the model (default: 0.7; for hello, 0)"
        ),
    )
    parser.add_argument(
        "--top-k",
        type=_at_least(1),
        help="sample among this many most probable tokens (default: all)",
    )
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, help="random seed (default: 0)"
    )
    parser.set_defaults(command=run.sample)


def _add_predict(parser: Parser) -> None:
    """Add the arguments of ``predict``."""
    _add_run(parser)
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="inputs of the model (default: the lines of standard input)",
    )
    parser.add_argument(
        "--steps",
        type=_at_least(1),
        metavar="N",
        help="for forecasts: the number of future samples (default: the horizon)",
    )
    parser.rest = "inputs"
    parser.set_defaults(command=run.predict)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate``."""
    _add_run(parser)
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--data",
        metavar="PATH",
        help="a data file of your own (default: what the run has held out)",
    )
    other.add_argument(
        "--length",
        type=_at_least(1),
        metavar="N",
        help="for synthetic tasks: the length of held-out sequences",
    )
    parser.set_defaults(command=run.evaluate)


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add the run directory, and what allows to import its cell."""
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--cell",
        metavar="module:Name",
        help="the cell of the run, if it is code outside jaxrnn",
    )
    _add_trust(parser, "the cell")


def _add_trust(parser: Flags, what: str) -> None:
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


_temperature.__name__ = "float"  # for the words of argparse


def _add_train(parser: argparse.ArgumentParser, task: str | None) -> None:
    """Add the flags of training a task.

    These are the fields of the task's options and of the budget; one that is not given
    is absent from the parsed arguments.
    """
    parser.add_argument("task", metavar="TASK", help=argparse.SUPPRESS)
    parser.set_defaults(command=run.train)
    if task is None:
        parser.usage = "jaxrnn train TASK [--FLAG VALUE ...]"
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = "\n".join(
            ["tasks:", *task_lines(), "", "flags of a task: jaxrnn train TASK --help"]
        )
    else:
        parser.prog = f"jaxrnn train {task}"
        parser.usage = f"{parser.prog} [--FLAG VALUE ...]"
        parser.description = _sentence(f"learn {ABOUT[task].sentence}")
        _add_task_flags(parser, task)
    _add_run_flags(parser.add_argument_group("run directory"))
    _add_process_flags(parser.add_argument_group("several processes"))


def _add_task_flags(parser: argparse.ArgumentParser, task: str) -> None:
    """Add the fields of the task's options, and of the budget."""
    module = TASKS[task]
    groups = {
        name: parser.add_argument_group(name) for name in ("task", "model", "training")
    }
    for field in ordered_fields(module.Options):
        group = groups[GROUP_OF.get(field.name, "task")]
        _add_flag(
            group, field.name, field.default, field.metadata["help"], field.metadata
        )
    budget = parser.add_argument_group("length of the run")
    for name, default in fields_of(module.BUDGET).items():
        # A task without labels refuses --patience with its own words.
        is_shown = name != "patience" or ABOUT[task].labeled
        help_text = BUDGET_HELP[name] if is_shown else argparse.SUPPRESS
        _add_flag(budget, name, default, help_text)
    budget.add_argument(
        "--quick",
        action="store_true",
        help="train a small model: seconds, or about a minute on real data",
    )


def _add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``completion``."""
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.set_defaults(
        command=lambda arguments: print(
            completion(arguments.shell, COMMANDS, flags()), end=""
        )
    )


def _add_run_flags(group: Flags) -> None:
    """Add the flags of the run directory."""
    group.add_argument(
        "--config",
        metavar="FILE",
        help="flags out of a file, TOML or JSON, such as the config.json of a run; "
        "flags that are given as well come first",
    )
    group.add_argument(
        "--out",
        metavar="RUN",
        help="run directory (default: runs/TASK, or runs/TASK-2, ...)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest checkpoint of --out",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace the run in --out"
    )
    _add_trust(group, "its cell, with --resume")
    group.add_argument(
        "--log",
        nargs="+",
        action="extend",
        default=[],
        metavar="LOG",
        help=f"also write the records to: {', '.join(LOGS)}",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print only the result, as JSON, on standard output",
    )


def _add_process_flags(group: Flags) -> None:
    """Add the flags by which several processes train one run."""
    group.add_argument(
        "--coordinator",
        metavar="ADDR",
        help="HOST:PORT of process 0, where no launcher has one",
    )
    group.add_argument(
        "--processes",
        type=_at_least(1),
        metavar="N",
        help="number of processes; 1 trains alone",
    )
    group.add_argument(
        "--process", type=_at_least(0), metavar="I", help="this process, from 0"
    )
    for name, default, help in (
        ("--start-seconds", START_SECONDS, "how long to wait for all processes"),
        (
            "--heartbeat-seconds",
            HEARTBEAT_SECONDS,
            "silence after which a process is lost",
        ),
    ):
        group.add_argument(
            name,
            type=_at_least(1),
            default=default,
            metavar="INT",
            help=f"{help} (default: {default})",
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


def _add_dynamics(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the study of dynamics, which are the fields of its `Study`."""
    _add_run(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="output directory (default: the run directory)"
    )
    parser.add_argument(
        "--length",
        type=_at_least(1),
        metavar="N",
        help="number of steps of the sequences (default: as in the task)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print nothing but the results on standard output, as JSON",
    )
    parser.set_defaults(command=run.dynamics)
    for field in dataclasses.fields(Dynamics):
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


def _add_list(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``list``."""
    parser.add_argument(
        "what",
        nargs="?",
        choices=("tasks", "cells", "data", "runs"),
        help="one of them (default: all)",
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        default="runs",
        help="where to look for runs (default: runs)",
    )
    parser.set_defaults(command=listing.listed)


def _add_info(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``info``."""
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(command=listing.info)


def _add_report(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``report``."""
    _add_run(parser)
    parser.set_defaults(command=run.report)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``compare``."""
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument(
        "--out", metavar="FILE.png", help="draw the learning curves into this file"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(command=listing.compare)


METAVARS = {"data": "FILE", "cell": "CELL", "task": "TASK", "tasks": "TASK"}


def _add_flag(
    parser: Flags,
    name: str,
    default: Any,
    help: str,
    metadata: Mapping[str, Any] = MappingProxyType({}),
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
    plain = "NAME" if "names" in metadata else "TEXT" if kind is str else None
    hidden = default is None or help is argparse.SUPPRESS
    parser.add_argument(
        "--" + name.replace("_", "-"),
        type=kind,
        nargs="+" if is_list else None,
        action="extend" if is_list else "store",
        default=argparse.SUPPRESS,
        metavar=METAVARS.get(name) or plain or kind.__name__.upper(),
        help=help if hidden else f"{help} (default: {shown})",
    )
