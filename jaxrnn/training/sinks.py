"""Sinks: each opens one kind of log for a run, and yields a hook that writes it.

They are context managers, for ``with sink(run) as hook: fit(..., on_record=hook)``.
What a sink needs is imported when it is opened. Text, such as samples, stays in
``metrics.jsonl``: the sinks take numbers.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from typing import Any

from .errors import InputError
from .hooks import Hook
from .run import Run

PROJECT = "jaxrnn"


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a record without its step.

    The final scores get the prefix ``final/``, because they are of another part of the
    data than a score of the same name while training.

    Example:
        >>> numbers_of({"step": 9, "loss": 0.5, "sample": "text"})
        {'loss': 0.5}
        >>> numbers_of({"step": 9, "final": True, "loss": 0.25})
        {'final/loss': 0.25}
    """
    prefix = "final/" if record.get("final") else ""
    return {
        prefix + name: value
        for name, value in record.items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and name != "step"
    }


def config_of(run: Run) -> dict[str, Any]:
    """Return what a run was started with, without its vocabulary."""
    return {name: run.config.get(name) for name in ("task", "options", "budget")}


def missing(package: str) -> InputError:
    """Describe a package that a log needs."""
    return InputError(
        f"this log needs {package}, which is not installed: pip install {package}"
    )


@contextlib.contextmanager
def csv_file(run: Run) -> Iterator[Hook]:
    """Write ``metrics.csv``: a row for each record, a column for each name.

    The file is written anew for a name that is new, and when a run is resumed.
    """
    path = run.path / "metrics.csv"
    columns: dict[str, None] = {}

    def write(step: int, record: dict[str, Any]) -> None:
        is_new = not numbers_of(record).keys() <= columns.keys()
        rows = run.records("metrics.jsonl") if is_new else [record]
        columns.update(
            dict.fromkeys(["step", *(n for r in rows for n in numbers_of(r))])
        )
        with open(path, "w" if is_new else "a", encoding="utf-8", newline="") as out:
            table = csv.DictWriter(out, columns)
            if is_new:
                table.writeheader()
            table.writerows({"step": r["step"], **numbers_of(r)} for r in rows)

    yield write


@contextlib.contextmanager
def tensorboard(run: Run) -> Iterator[Hook]:
    """Write event files into ``RUN/tensorboard``, by tensorboardX."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise missing("tensorboardX") from None
    with contextlib.ExitStack() as stack:
        writers: list[Any] = []

        def write(step: int, record: dict[str, Any]) -> None:
            if not writers:  # events that a resumed run writes again are dropped
                writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step)
                writers.append(stack.enter_context(writer))
            for name, value in numbers_of(record).items():
                writers[0].add_scalar(name, value, step)
            writers[0].flush()

        yield write


@contextlib.contextmanager
def wandb(run: Run) -> Iterator[Hook]:
    """Log to Weights & Biases; a resumed run is a second one of the same group."""
    try:
        import wandb
    except ImportError:
        raise missing("wandb") from None
    name, config = run.path.name, config_of(run)
    with wandb.init(
        project=PROJECT, name=name, group=name, config=config, dir=str(run.path)
    ) as log:
        yield lambda step, record: log.log(numbers_of(record), step=step)


@contextlib.contextmanager
def trackio(run: Run) -> Iterator[Hook]:
    """Log to trackio, whose data stay on this machine unless you say otherwise."""
    try:
        import trackio
    except ImportError:
        raise missing("trackio") from None
    name, config = run.path.name, config_of(run)
    trackio.init(project=PROJECT, name=name, config=config, resume="allow")
    try:
        yield lambda step, record: trackio.log(numbers_of(record), step=step)
    finally:
        trackio.finish()
