"""Checkpoints by orbax: atomic, the last few kept, verified when read, the previous
one where the newest is damaged.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from .errors import InputError

BEST = "best"  # what the names of its arrays begin with

BESIDES = 65_536  # bytes that a checkpoint takes besides its arrays


class Restored(NamedTuple):
    """A checkpoint; ``notes`` say in a sentence each which newer ones are damaged,
    ``best`` are the parameters with the best held-out score so far, None where the run
    keeps none.
    """

    step: int
    state: Any
    meta: dict[str, Any]
    notes: list[str]
    best: Any


class Checkpoints:
    """The checkpoints in a directory: ``save(step, state, meta)`` and
    ``restore(template)``.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 3):
        self.directory = pathlib.Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def save(
        self, step: int, state: Any, meta: dict[str, Any], best: Any = None
    ) -> None:
        """Write one checkpoint: it appears whole, or not at all. ``meta`` is a small
        JSON object, ``best`` the parameters that had the best held-out score so far.

        Arrays that are split over devices are written whole: the checkpoint does not
            depend on how many there are.
        """
        # As arrays of the host: orbax would note the devices that held them, and want
        # these when it reads them again.
        named = _named(state) | {
            f"{BEST}.{name}": leaf for name, leaf in _named(best).items()
        }
        arrays = {
            name: np.asarray(leaf) for name, leaf in named.items() if leaf.size
        }  # it takes no empty ones
        meta = {**meta, "checksum": _checksum(arrays)}
        needed = sum(a.nbytes for a in arrays.values()) + BESIDES
        if (
            shutil.disk_usage(self.directory).free < needed
        ):  # orbax would begin, and leave a part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
        with _without_threads_tracebacks():
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first."""
        return sorted(self.manager.all_steps())

    def restore(self, template: Any) -> Restored:
        """The newest checkpoint that can be read, with the structure of ``template``.

        One that is damaged is set aside as ``damaged-STEP`` beside ``checkpoints``, and
        ``notes`` says so, a sentence each.

        Raises:
            BadInput: where none can be read, or the state saved is another model's.
        """
        step, arrays, meta, notes = self._newest(set_aside=True)
        best = (
            _part(BEST, template.params, arrays, step)
            if hasattr(template, "params")
            else None
        )
        return Restored(step, _unnamed(template, arrays, step), meta, notes, best)

    def restore_params(self, template: Any) -> tuple[Any, list[str]]:
        """The parameters, those with the best score where there are such, and notes as
        for `restore`; nothing is moved: for readers of a run.
        """
        step, arrays, _, notes = self._newest(set_aside=False)
        best = _part(BEST, template, arrays, step)
        return (
            _part("params", template, arrays, step) if best is None else best
        ), notes

    def _newest(
        self, set_aside: bool
    ) -> tuple[int, dict[str, np.ndarray], dict[str, Any], list[str]]:
        notes: list[str] = []
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                arrays, meta = self._read(step)
            except (MemoryError, PermissionError):
                raise  # nothing is wrong with the checkpoint
            except (
                Exception
            ) as error:  # whatever orbax and tensorstore raise for broken files
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                notes.append(f"checkpoint {step} is damaged ({reason})")
                damaged.append(step)
                continue
            for each in (
                damaged if set_aside else ()
            ):  # only now that the run can go on without them
                self._set_aside(each)
            return (
                step,
                arrays,
                meta,
                [f"{note}, so the one before it is used" for note in notes],
            )
        raise InputError(
            f"no readable checkpoint in {self.directory}"
            + "".join(f"; {note}" for note in notes)
        )

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        read = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
            ),
        )
        arrays = {name: np.asarray(leaf) for name, leaf in read["state"].items()}
        if _checksum(arrays) != read["meta"]["checksum"]:
            raise ValueError("its checksum does not fit its contents")
        return arrays, read["meta"]

    def _set_aside(self, step: int) -> None:
        source = self.directory / str(step)
        target = self.directory.parent / f"damaged-{step}"
        number = 1
        while target.exists():
            number += 1
            target = self.directory.parent / f"damaged-{step}-{number}"
        source.rename(target)
        self.manager.reload()

    def close(self) -> None:
        self.manager.close()


@contextlib.contextmanager
def _without_threads_tracebacks() -> Iterator[None]:
    """orbax logs the traceback of every thread of its that fails, and then raises
    the same error: once is enough.
    """
    logger = logging.getLogger("absl")

    def keep(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _named(state: Any) -> dict[str, Any]:
    """A pytree as a flat dict of arrays, each under its path in words."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _part(part: str, template: Any, arrays: dict[str, np.ndarray], step: int) -> Any:
    """One field of what was saved; None for parameters of a best score where there
    were none.
    """
    inside = {
        name.removeprefix(part + "."): a
        for name, a in arrays.items()
        if name.startswith(part + ".")
    }
    return None if part == BEST and not inside else _unnamed(template, inside, step)


def _unnamed(template: Any, arrays: dict[str, np.ndarray], step: int) -> Any:
    """The pytree of ``template`` with the arrays of a checkpoint in it."""
    leaves = []
    for name, leaf in _named(template).items():
        found = arrays.get(
            name, np.zeros(leaf.shape, leaf.dtype) if leaf.size == 0 else None
        )
        if found is None or found.shape != leaf.shape or found.dtype != leaf.dtype:
            came = "nothing" if found is None else f"{found.shape} {found.dtype}"
            raise InputError(
                f"checkpoint {step} is of another model: {name} should be "
                f"{tuple(leaf.shape)} {leaf.dtype}, found {came}"
            )
        leaves.append(jnp.asarray(found))
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _checksum(arrays: dict[str, Any]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(
            np.ascontiguousarray(arrays[name]).tobytes(),
            zlib.crc32(name.encode(), total),
        )
    return total
