"""Flags of ``train`` out of a file: ``--config FILE``."""

from __future__ import annotations

import argparse
import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tasks.runner import RENAMED_OPTIONS
from ..training import InputError

# Flags that say what to do with a run now, not what it is.
NOT_IN_FILES = {"config", "help", "json", "overwrite", "resume", "trust_code"}


def with_config(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> argparse.Namespace:
    """Add the flags of the file ``--config`` to parsed arguments, which come first.

    Args:
        parser: the parser of the task.
        arguments: what was parsed; ``config`` and ``task`` are read.

    Raises:
        InputError: for a file that cannot be read, unknown keys, and values that the
            flags do not take; the file is named.
    """
    path = arguments.config
    values = _flags_in(path, arguments.task)
    actions = {
        action.dest: action
        for action in parser._actions
        if action.option_strings and action.dest not in NOT_IN_FILES
    }
    words = [arguments.task]
    for key, value in values.items():
        # The configuration of an older run has former names.
        name = key if key in actions else RENAMED_OPTIONS.get(key, key)
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"
            raise InputError(f"{path}: there is no option {name!r}; {hint}")
        words += _words(f"{path}: {name}", actions[name], value)
    try:
        filed = vars(parser.parse_args(words))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    # A flag with a default is given if it differs, and any other if it is there.
    defaults = {action.dest: action.default for action in parser._actions}
    given = {k: v for k, v in vars(arguments).items() if v != defaults.get(k)}
    if {"steps", "seconds"} & given.keys():  # either says how long the run is
        filed = {k: v for k, v in filed.items() if k not in ("steps", "seconds")}
    return argparse.Namespace(**{**vars(arguments), **filed, **given})


def _flags_in(path: str, task: str) -> dict[str, Any]:
    """Return the flags in a file; a ``config.json`` of a run is such a file."""
    read = tomllib.loads if Path(path).suffix == ".toml" else json.loads
    try:
        data = read(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:  # also of both formats, and of UTF-8
        kind = "TOML" if read is tomllib.loads else "JSON; TOML ends in .toml"
        raise InputError(f"{path}: this is no {kind}: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected names with values, as in hidden = 64")
    if data.get("task", task) != task:
        raise InputError(f"{path} is for the task {data['task']}, not for {task}")
    if "format" in data:  # of a run, which holds a vocabulary and the like besides
        data = {name: data.get(name, {}) for name in ("options", "budget")}
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= value if name in ("options", "budget") else {name: value}
    return {
        name.replace("-", "_"): value
        for name, value in flat.items()
        if name != "task" and value is not None and value != []
    }


def _words(where: str, action: argparse.Action, value: Any) -> list[str]:
    """Return a flag with its value as words of a command line."""
    flag = action.option_strings[0]
    if isinstance(value, Mapping):
        raise InputError(f"{where} is an object of code: name it, {flag} module:Name")
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise InputError(f"{where} must be true or false, but it is {value!r}")
        no = [name for name in action.option_strings if name.startswith("--no-")]
        return [flag] if value else no[:1]
    if isinstance(value, bool):
        raise InputError(f"{where} must be a value, but it is {str(value).lower()}")
    if action.nargs == "+":
        return [flag, *map(str, value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        raise InputError(f"{where} must be one value, but it is a list")
    return [f"{flag}={value}"]
