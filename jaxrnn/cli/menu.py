"""What ``jaxrnn`` says when it is called without a command, and its version."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import jax

from ..tasks.about import ABOUT
from ..version import __version__

OBJECTS = {"train": "TASK"}
OBJECTS["compare"] = "RUN RUN"
OBJECTS["completion"] = "SHELL"
OBJECTS |= dict.fromkeys(("sample", "predict", "evaluate", "info", "report"), "RUN")


def version() -> str:
    """Return the version, and those of what numbers depend on."""
    return (
        f"jaxrnn {__version__} (jax {jax.__version__}, "
        f"Python {platform.python_version()})"
    )


def menu(commands: Mapping[str, str]) -> str:
    """Return the commands with a few words each, and where to begin.

    Args:
        commands: the help text of each command by its name.
    """
    rows = [
        (f"jaxrnn {name} {OBJECTS.get(name, '')}".rstrip(), help)
        for name, help in commands.items()
    ]
    begin = [
        ("jaxrnn train hello", "the smallest language model, in seconds"),
        ("jaxrnn train charlm --data FILE.txt", "a language model of your own text"),
        ("jaxrnn COMMAND --help", "all flags of a command"),
    ]
    title = f"jaxrnn {__version__}: recurrent networks in JAX"
    return "\n".join([title, "", *aligned(rows), "", "begin with", *aligned(begin)])


def task_lines() -> list[str]:
    """Return the tasks, with a sentence each."""
    return aligned([(name, about.sentence) for name, about in ABOUT.items()])


def aligned(rows: list[tuple[str, str]]) -> list[str]:
    """Return rows of two columns as lines that are indented by two spaces."""
    width = max((len(first) for first, _ in rows), default=0)
    return [f"  {first:<{width}}  {second}".rstrip() for first, second in rows]
