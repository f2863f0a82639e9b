"""The logs of ``--log`` by name."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator

from ..training import Run, sinks
from ..training.hooks import Hook
from .config import check_name

LOGS = {
    "csv": sinks.csv_file,
    "tensorboard": sinks.tensorboard,
    "wandb": sinks.wandb,
    "trackio": sinks.trackio,
}


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


def check_logs(names: Iterable[str]) -> None:
    """Check the names of logs, and that what they need is installed."""
    for name in names:
        check_name("--log", name, LOGS)
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise sinks.missing(PACKAGES[name])


@contextlib.contextmanager
def logs(names: Iterable[str], run: Run) -> Iterator[list[Hook]]:
    """Open logs by their names, and yield their hooks.

    Raises:
        InputError: for an unknown name, or a package that is not installed.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(LOGS[name](run)) for name in dict.fromkeys(names)]
