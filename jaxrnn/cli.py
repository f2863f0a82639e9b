"""The command line: parses, and calls the library.

Exit status 0, or 2 with one line on standard error for bad arguments, data or run directories. Ctrl-C saves and exits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any, NoReturn

from .tasks import charlm, hello
from .tasks.options import check_name
from .training import BadInput, Budget, Checkpoints, Run, fit

TASKS: dict[str, Any] = {"hello": hello, "charlm": charlm}
BUDGET_HELP = {
    "steps": "updates in all",
    "seconds": "of wall-clock time; the learning rate then follows the clock",
    "report_every": "steps between reports",
    "evaluate_every": "steps between held-out evaluations (a multiple of --report-every)",
    "checkpoint_seconds": "between checkpoints; 0: at each report",
}


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, not argparse's usage and a line."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parse(argv)
        arguments.command(arguments)
    except BadInput as error:
        print(f"jaxrnn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away, as head does
        sys.stderr.close()
        return 0
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="jaxrnn", description="Recurrent networks in JAX: train them, and use what was trained.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    task = _first_word(argv[1:]) if argv[:1] == ["train"] else None
    if task is not None:
        check_name("train", task, TASKS)
    _add_train(commands.add_parser("train", help="train a task"), task)

    sample = commands.add_parser("sample", help="let a trained language model write")
    sample.add_argument("run", metavar="RUN")
    sample.add_argument("--prompt", default="", help="text to begin with")
    sample.add_argument("--length", type=_at_least(1), help="symbols to write")
    sample.add_argument("--temperature", type=_temperature, help="0: always the likeliest; 1: as learned")
    sample.add_argument("--top-k", type=_at_least(1), help="draw among the likeliest so many")
    sample.add_argument("--seed", type=_at_least(0), default=0)
    sample.set_defaults(command=_sample)

    predict = commands.add_parser("predict", help="charlm: bits per character of each input; hello: the next letters")
    predict.add_argument("run", metavar="RUN")
    predict.add_argument("inputs", nargs="*", metavar="INPUT", help="default: the lines of standard input")
    predict.set_defaults(command=_predict)

    evaluate = commands.add_parser("evaluate", help="the task's scores on other data, as JSON")
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument("--data", required=True, metavar="PATH")
    evaluate.set_defaults(command=_evaluate)
    return parser.parse_args(argv)


def _first_word(words: list[str]) -> str | None:
    return words[0] if words and not words[0].startswith("-") else None


def _at_least(least: int):
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, but it is {value}")
        return value

    number.__name__ = "int"
    return number


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, but it is {text}")
    return value


def _add_train(train: argparse.ArgumentParser, task: str | None) -> None:
    """The flags of a task are the fields of its options and of the budget; one that is not given stays out."""
    train.add_argument("task", metavar="TASK", help=f"one of {', '.join(TASKS)}; see jaxrnn train TASK --help for its flags")
    train.add_argument("--out", metavar="RUN", help="run directory (default: runs/TASK, numbered where there is one)")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of --out")
    train.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    train.add_argument("--quick", action="store_true", help="a small model for a few seconds")
    train.set_defaults(command=_train)
    if task is None:
        return
    module = TASKS[task]
    for field in dataclasses.fields(module.Options):
        _add_flag(train, field.name, field.default, field.metadata["help"])
    for field in dataclasses.fields(Budget):
        _add_flag(train, field.name, getattr(module.BUDGET, field.name), BUDGET_HELP[field.name])


def _add_flag(train: argparse.ArgumentParser, name: str, default: Any, help: str) -> None:
    """A flag of the default's type."""
    many = isinstance(default, tuple)
    kind = float if "seconds" in name else str if many else type(default)
    shown = " ".join(default) if many else default
    train.add_argument(
        "--" + name.replace("_", "-"),
        type=kind,
        nargs="+" if many else None,
        default=argparse.SUPPRESS,
        metavar="TEXT" if kind is str else kind.__name__.upper(),
        help=f"{help} (default: {shown})",
    )


def _train(arguments: argparse.Namespace) -> None:
    module = TASKS[arguments.task]
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(arguments).items()}
    names = {f.name for f in dataclasses.fields(module.Options)}, {f.name for f in dataclasses.fields(Budget)}
    options, budget = ({k: v for k, v in given.items() if k in names[i]} for i in (0, 1))
    if arguments.resume:
        if arguments.overwrite:
            raise BadInput("--resume and --overwrite contradict each other: go on with a run, or replace it")
        run = Run.open(arguments.out or f"runs/{arguments.task}", arguments.task)
        stored = _options_of(run, module)
        for name, value in {**options, **budget}.items():
            was = getattr(stored, name) if name in names[0] else run.config["budget"][name]
            if value != was:
                flag = "--" + name.replace("_", "-")
                raise BadInput(
                    f"{run.path} was begun with {flag} {was}, not {value}; leave {flag} out to resume it, or begin a new run"
                )
        chosen, limits = stored, Budget(**run.config["budget"])
        experiment, extra = module.prepare(chosen)
        for name, value in extra.items():
            if run.config.get(name) != value:
                raise BadInput(
                    f"the data is not what {run.path} was begun with (its {name} differs): restore it, or begin a new run"
                )
    else:
        chosen = module.Options(**{**(module.Options.QUICK if arguments.quick else {}), **options})
        limits = _budget(module.BUDGET, budget, arguments.quick)
        experiment, extra = module.prepare(chosen)
        config = {"task": arguments.task, "options": dataclasses.asdict(chosen), "budget": dataclasses.asdict(limits), **extra}
        out = arguments.out or _fresh(pathlib.Path("runs") / arguments.task)
        run = Run.create(out, config, overwrite=arguments.overwrite)
    state, result = fit(experiment, run, limits, resume=arguments.resume)
    if not result:
        return
    functions, _ = module.Trained.template(run, chosen)
    for line in module.Trained.of(run, chosen, functions, state.params).report(run):
        print(line)
    print(json.dumps(result))
    print(f"run: {run.path}")


def _budget(default: Budget, given: dict[str, Any], quick: bool) -> Budget:
    """The task's budget, changed by what was given; one of --steps and --seconds takes the place of the other."""
    changes = dict(given)
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


def _options_of(run: Run, module: Any) -> Any:
    try:
        stored = run.config["options"].items()
        return module.Options(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored})
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{run.path}/config.json is damaged: {error}") from None


def _load(path: str) -> Any:
    """The trained model of a run, from its newest readable checkpoint."""
    run = Run.open(path)
    check_name(f"{path}/config.json", run.config["task"], TASKS)
    module = TASKS[run.config["task"]]
    options = _options_of(run, module)
    if not run.checkpoints.is_dir():
        raise BadInput(
            f"{path} holds no checkpoint yet: train it first, jaxrnn train {run.config['task']} --out {path} --resume"
        )
    functions, template = module.Trained.template(run, options)
    checkpoints = Checkpoints(run.checkpoints)
    params, notes = checkpoints.restore_part("params", template)
    checkpoints.close()
    for note in notes:
        print(f"jaxrnn: {note}", file=sys.stderr)
    return module.Trained.of(run, options, functions, params)


def _sample(arguments: argparse.Namespace) -> None:
    trained = _load(arguments.run)
    print(trained.sample(arguments.prompt, arguments.length, arguments.temperature, arguments.top_k, arguments.seed))


def _predict(arguments: argparse.Namespace) -> None:
    trained = _load(arguments.run)
    inputs = arguments.inputs or (line.rstrip("\n") for line in sys.stdin)
    for text in inputs:
        print(trained.predict(text), flush=True)


def _evaluate(arguments: argparse.Namespace) -> None:
    print(json.dumps(_load(arguments.run).evaluate(arguments.data), ensure_ascii=False))
