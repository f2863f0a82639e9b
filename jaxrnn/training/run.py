"""A run directory: ``config.json``, ``metrics.jsonl``, ``timing.jsonl``,
``result.json``, ``checkpoints/`` and pictures.

``metrics.jsonl`` holds only what the run computes, never a clock, so that a run that
was killed and resumed ends with the same file, byte for byte, as the run left alone; so
does ``gradients.jsonl``, which a run may have. ``timing.jsonl`` holds the clock.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

from .errors import InputError

FORMAT = "jaxrnn run 1"
RECORDS = ("metrics.jsonl", "timing.jsonl", "gradients.jsonl")
FILES = ("config.json", *RECORDS, "result.json")


class Run:
    """One run directory. Make it with `Run.create` or `Run.open`."""

    def __init__(self, path: pathlib.Path, config: dict[str, Any]):
        self.path, self.config = pathlib.Path(path), config

    @classmethod
    def create(
        cls, path: str | os.PathLike, config: dict[str, Any], *, overwrite: bool = False
    ) -> Run:
        """A new run directory. One that holds anything already is refused, or with
        ``overwrite`` cleared if it is a run.
        """
        path, config = pathlib.Path(path), {"format": FORMAT, **config}
        if "task" not in config:
            raise ValueError("Run.create: the config must name its task, {'task': ...}")
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; --out wants a directory")
        if path.exists() and any(path.iterdir()):
            is_run = _is_run(path)
            if not (overwrite and is_run):
                what = (
                    "already holds a run: continue it with --resume, or replace it "
                    "with --overwrite"
                )
                raise InputError(
                    f"{path} "
                    f"{what if is_run else 'is not empty, and no run directory'}; or "
                    f"choose another --out"
                )
            for name in FILES:
                (path / name).unlink(missing_ok=True)
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write_whole(
                path / "config.json",
                json.dumps(config, indent=1, ensure_ascii=False) + "\n",
            )
        except OSError as error:
            raise InputError(
                f"{path} cannot be written: {error.strerror}; choose another --out"
            ) from None
        return cls(path, config)

    @classmethod
    def open(cls, path: str | os.PathLike, task: str | None = None) -> Run:
        """A run directory that exists; with ``task``, only one of that task."""
        path = pathlib.Path(path)
        if not path.is_dir():
            raise InputError(
                f"{path} is no run directory: there is no such directory; make one "
                f"with jaxrnn train TASK --out {path}"
            )
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            found = config["task"]
            if config["format"] != FORMAT:
                raise ValueError(f"its format is {config['format']!r}, not {FORMAT!r}")
        except FileNotFoundError:
            raise InputError(
                f"{path} is no run directory: it holds no config.json, which jaxrnn "
                f"train writes"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}/config.json is damaged: {error}") from None
        if task is not None and found != task:
            raise InputError(f"{path} is a run of {found}, not of {task}")
        return cls(path, config)

    def append(self, file: str, record: dict[str, Any]) -> None:
        """Add one object as a line, on disk before this returns."""
        with open(self.path / file, "a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def records(self, file: str) -> list[dict[str, Any]]:
        """The objects of a ``.jsonl`` file, as far as it is whole."""
        records = []
        path = self.path / file
        for line in (
            path.read_text(encoding="utf-8", errors="replace").splitlines()
            if path.exists()
            else []
        ):
            try:
                records.append(json.loads(line))
            except ValueError:
                break  # the line that was being written when the run was killed
        return records

    def rewind(self, step: int) -> None:
        """Drop what was recorded after ``step``, and closing scores: a resumed run
        writes them again.
        """
        for file in RECORDS:
            if not (self.path / file).exists():
                continue
            kept = [
                r
                for r in self.records(file)
                if r["step"] <= step and not r.get("final")
            ]
            _write_whole(
                self.path / file,
                "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept),
            )

    def write_result(self, result: dict[str, Any]) -> None:
        _write_whole(
            self.path / "result.json",
            json.dumps(result, indent=1, ensure_ascii=False) + "\n",
        )

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"


def _is_run(path: pathlib.Path) -> bool:
    """Whether a directory is one of ours, and not another program's that keeps a
    config.json too.
    """
    try:
        return (
            json.loads((path / "config.json").read_text(encoding="utf-8"))["format"]
            == FORMAT
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_whole(path: pathlib.Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees the old one or the new one,
    never a part.
    """
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, path)
