"""Run directories: configuration, records, results and checkpoints of one run.

The files are ``config.json``, ``metrics.jsonl``, ``timing.jsonl``, ``result.json``,
``checkpoints/``, images, ``report.html`` and ``README.md``. ``metrics.jsonl`` holds
only what the run computes and nothing that depends on the clock, so that a run that
was killed and resumed ends with the same file, byte for byte, as an undisturbed run; so
does the optional
``gradients.jsonl``. ``timing.jsonl`` holds what depends on the clock.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

from . import processes
from .errors import InputError
from .lock import NAME as LOCK
from .lock import locked

FORMAT = "jaxrnn run 1"
MEMBERS = "processes.json"  # of a run that several processes train
RECORDS = ("metrics.jsonl", "timing.jsonl", "gradients.jsonl")
PICTURES = tuple(
    f"{name}.png"
    for name in (
        *("curves", "distribution", "confusion", "f1", "attention", "captions"),
        *("gradients", "forecast"),
    )
)
FILES = (
    *("config.json", *RECORDS, "result.json", "metrics.csv"),
    *("report.html", "README.md", MEMBERS, *PICTURES),
)


class Run:
    """A run directory, made by `Run.create` or `Run.open`.

    In a run of several processes every process has the `Run`, and only the first one
    writes files.

    Attributes:
        path: the directory.
        config: the contents of ``config.json``.

    Example:
        >>> import tempfile
        >>> from jaxrnn.training import Run
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run.create(f"{folder}/run", {"task": "adding", "seed": 3})
        ...     run.append("metrics.jsonl", {"step": 100, "loss": 0.5})
        ...     run = Run.open(run.path, task="adding")
        ...     records = run.records("metrics.jsonl")
        >>> run.config["seed"], records
        (3, [{'step': 100, 'loss': 0.5}])
    """

    def __init__(self, path: pathlib.Path, config: dict[str, Any]):
        self.path, self.config = pathlib.Path(path), config

    @classmethod
    def create(
        cls, path: str | os.PathLike, config: dict[str, Any], *, overwrite: bool = False
    ) -> Run:
        """Create a run directory.

        Args:
            path: the directory, which must be empty or not exist.
            config: the configuration, which must name its ``task``.
            overwrite: clear the directory first if it is a run.

        Raises:
            InputError: if the directory is not empty (and not a run to overwrite), is a
                file, cannot be written, or is being written by another process.
            ValueError: if the configuration does not name its task.
        """
        path, config = pathlib.Path(path), {"format": FORMAT, **config}
        if "task" not in config:
            raise ValueError("Run.create: the config must name its task, {'task': ...}")
        with processes.together("the run directory"):
            if processes.is_first():
                cls._create(path, config, overwrite)
        return cls(path, config)

    @classmethod
    def _create(cls, path: pathlib.Path, config: dict, overwrite: bool) -> None:
        """Create the directory, which no other program writes at the same time."""
        cls._check_free(path, overwrite)
        with locked(path):
            cls._check_free(path, overwrite)
            if _is_run(path):
                for name in FILES:
                    (path / name).unlink(missing_ok=True)
                shutil.rmtree(path / "checkpoints", ignore_errors=True)
            try:
                write_whole(
                    path / "config.json",
                    json.dumps(config, indent=1, ensure_ascii=False) + "\n",
                )
            except OSError as error:
                raise InputError(
                    f"{path} cannot be written: {error.strerror}; choose another --out"
                ) from None

    @staticmethod
    def check_free(path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Check that `create` would make a run here; nothing is written.

        Args:
            path: the directory.
            overwrite: whether a run that is there may be replaced.

        Raises:
            InputError: as for `create`.
        """
        with processes.together("the run directory"):
            if processes.is_first():
                Run._check_free(pathlib.Path(path), overwrite)

    @staticmethod
    def _check_free(path: pathlib.Path, overwrite: bool) -> None:
        """Check it in this process."""
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file, but --out must be a directory")
        if not path.exists() or {file.name for file in path.iterdir()} <= {LOCK}:
            return
        is_run = _is_run(path)
        if not (overwrite and is_run):
            what = (
                "already holds a run: continue it with --resume, or replace it "
                "with --overwrite"
            )
            raise InputError(
                f"{path} "
                f"{what if is_run else 'is not empty and not a run directory'}; or "
                f"choose another --out"
            )

    @classmethod
    def open(cls, path: str | os.PathLike, task: str | None = None) -> Run:
        """Open an existing run directory.

        Args:
            path: the directory.
            task: the task that it must be of; None for any.

        Returns:
            The `Run`.

        Raises:
            InputError: if the directory is not a run, is damaged, or is of another
                task.
        """
        path = pathlib.Path(path)
        if not path.is_dir():
            raise InputError(
                f"{path} is not a run directory: it does not exist; make one "
                f"with jaxrnn train TASK --out {path}"
            )
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            found_task = config["task"]
            if config["format"] != FORMAT:
                raise ValueError(f"its format is {config['format']!r}, not {FORMAT!r}")
        except FileNotFoundError:
            raise InputError(
                f"{path} is not a run directory: it has no config.json, which jaxrnn "
                f"train writes"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}/config.json is damaged: {error}") from None
        if task is not None and found_task != task:
            raise InputError(f"{path} is a run of {found_task}, not of {task}")
        return cls(path, config)

    def append(self, file: str, record: dict[str, Any]) -> None:
        """Append one object as a line; it is on disk before this returns.

        Args:
            file: the name of a ``.jsonl`` file of the run.
            record: a JSON object.
        """
        if not processes.is_first():
            return
        with open(self.path / file, "a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def records(self, file: str) -> list[dict[str, Any]]:
        """Read the objects of a ``.jsonl`` file, up to the first incomplete line.

        Args:
            file: the name of the file; one that does not exist has no objects.

        Returns:
            A list of dicts, whose scores have the names of today as in `result`.
        """
        records = []
        path = self.path / file
        for line in (
            path.read_text(encoding="utf-8", errors="replace").splitlines()
            if path.exists()
            else []
        ):
            try:
                records.append(_renamed(json.loads(line)))
            except ValueError:
                break  # the run was killed while it wrote this line
        return records

    def rewind(self, step: int) -> None:
        """Drop the records after a step and the final scores.

        A resumed run writes them again.

        Args:
            step: the last step whose records stay.
        """
        for file in RECORDS if processes.is_first() else ():
            if not (self.path / file).exists():
                continue
            kept = [
                r
                for r in self.records(file)
                if r["step"] <= step and not r.get("final")
            ]
            write_whole(
                self.path / file,
                "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept),
            )

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``.

        Args:
            result: a JSON object.
        """
        if processes.is_first():
            write_whole(
                self.path / "result.json",
                json.dumps(result, indent=1, ensure_ascii=False) + "\n",
            )

    def result(self) -> dict[str, Any]:
        """Read ``result.json``.

        Returns:
            Its contents; an empty dict if there is no such file. Scores that older
            versions spelled ``neighbour`` have the names that they have today.

        Raises:
            InputError: if the file is damaged.
        """
        try:
            text = (self.path / "result.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        try:
            return _renamed(json.loads(text))
        except ValueError as error:
            raise InputError(f"{self.path}/result.json is damaged: {error}") from None

    @property
    def checkpoints(self) -> pathlib.Path:
        """Return the directory of the checkpoints."""
        return self.path / "checkpoints"


def _renamed(scores: Any) -> dict[str, Any]:
    """Return scores under the names that they have today."""
    if not isinstance(scores, dict):
        raise ValueError("it holds no JSON object")
    return {name.replace("neighbour", "neighbor"): x for name, x in scores.items()}


def _is_run(path: pathlib.Path) -> bool:
    """Return whether a directory is a run of this library.

    Another program may keep a config.json, too.
    """
    try:
        return (
            json.loads((path / "config.json").read_text(encoding="utf-8"))["format"]
            == FORMAT
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_whole(path: pathlib.Path, text: str) -> None:
    """Write a file atomically: readers see the old contents or the new ones.

    The text is written to a temporary file, forced to disk and then renamed.
    """
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, path)
