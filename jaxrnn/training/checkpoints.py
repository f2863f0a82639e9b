"""Checkpoints by orbax: written atomically, limited in number, verified when read.

A damaged checkpoint is detected by its checksum, and the previous one is used.
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

from ..core.types import PyTree
from .errors import InputError
from .state import TrainState

BEST = "best"  # prefix of the names of the best parameters

BESIDES = 65_536  # bytes that a checkpoint needs in addition to its arrays


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        step: the step at which it was written.
        state: the saved pytree.
        meta: the JSON object that was saved with it.
        notes: one sentence for each newer checkpoint that is damaged.
        best: the parameters with the best held-out score so far; None if the run does
            not keep them.
    """

    step: int
    state: Any
    meta: dict[str, Any]
    notes: list[str]
    best: Any


class Checkpoints:
    """The checkpoints in a directory.

    Args:
        directory: made if it does not exist.
        keep: the number of checkpoints to keep; older ones are deleted.

    Example:
        >>> import pathlib, tempfile
        >>> import jax.numpy as jnp
        >>> from jaxrnn.training import Checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(pathlib.Path(folder, "checkpoints"), keep=2)
        ...     for step in (10, 20, 30):
        ...         checkpoints.save(step, {"w": jnp.arange(2) + step}, {"loss": 1.5})
        ...     steps = checkpoints.steps()
        ...     found = checkpoints.restore({"w": jnp.arange(2)})
        ...     checkpoints.close()
        >>> steps, found.step, found.state["w"].tolist(), found.meta["loss"]
        ([20, 30], 30, [30, 31], 1.5)
    """

    def __init__(self, directory: pathlib.Path, keep: int = 3):
        self.directory = pathlib.Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def save(
        self, step: int, state: PyTree, meta: dict[str, Any], best: PyTree = None
    ) -> None:
        """Write one checkpoint, which appears complete or not at all.

        Arrays that are split over devices are written whole, so that the checkpoint
        does not depend on the number of devices.

        Args:
            step: the name of the checkpoint.
            state: a pytree of arrays.
            meta: a small JSON object.
            best: the parameters with the best held-out score so far, if the run keeps
                them.

        Raises:
            OSError: if the disk does not have enough space.
        """
        # The arrays are copied to the host: orbax would record the devices that held
        # them, and require the same devices when it reads them again. Empty arrays are
        # left out, because orbax does not accept them.
        named = _named(state) | {
            f"{BEST}.{name}": leaf for name, leaf in _named(best).items()
        }
        arrays = {name: np.asarray(leaf) for name, leaf in named.items() if leaf.size}
        meta = {**meta, "checksum": _checksum(arrays)}
        needed = sum(a.nbytes for a in arrays.values()) + BESIDES
        # orbax would start to write, and leave a partial checkpoint on a full disk.
        if shutil.disk_usage(self.directory).free < needed:
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
        """Return the steps of the existing checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def restore(self, template: PyTree) -> Restored:
        """Read the newest undamaged checkpoint, with the structure of ``template``.

        A damaged checkpoint is moved to ``damaged-STEP`` beside ``checkpoints``, and
        ``notes`` says so, in one sentence each.

        Args:
            template: a pytree like the saved state, with its shapes and dtypes.

        Returns:
            A `Restored`: the step, the state, its ``meta``, notes, the best parameters.

        Raises:
            InputError: if no checkpoint can be read, or the saved state is that of
                another model.
        """
        step, arrays, meta, notes = self._newest(set_aside=True)
        best = (
            _part(BEST, template.params, arrays, step)
            if isinstance(template, TrainState)
            else None
        )
        return Restored(step, _unnamed(template, arrays, step), meta, notes, best)

    def restore_params(self, template: PyTree) -> tuple[Any, list[str]]:
        """Read the parameters, those with the best score if the run keeps them.

        Nothing is moved, because the caller only reads the run.

        Args:
            template: a pytree like the parameters.

        Returns:
            The parameters, and notes as for `restore`.

        Raises:
            InputError: as for `restore`.
        """
        step, arrays, _, notes = self._newest(set_aside=False)
        best = _part(BEST, template, arrays, step)
        return (
            _part("params", template, arrays, step) if best is None else best
        ), notes

    def shapes(self, part: str) -> tuple[dict[str, tuple[int, ...]], list[str]]:
        """Return the shapes of the arrays in one field of the newest saved state.

        Args:
            part: the name of the field, such as ``params``.

        Returns:
            The shapes by name, and notes as for `restore`. Empty arrays are left out.
        """
        _, arrays, _, notes = self._newest(set_aside=False)
        return {
            name.removeprefix(f"{part}."): array.shape
            for name, array in sorted(arrays.items())
            if name.startswith(f"{part}.")
        }, notes

    def _newest(
        self, set_aside: bool
    ) -> tuple[int, dict[str, np.ndarray], dict[str, Any], list[str]]:
        """Read the newest checkpoint whose contents fit their checksum."""
        notes: list[str] = []
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                arrays, meta = self._read(step)
            except (MemoryError, PermissionError):
                raise  # the checkpoint itself may be intact
            except Exception as error:  # orbax and tensorstore raise many types
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                notes.append(f"checkpoint {step} is damaged ({reason})")
                damaged.append(step)
                continue
            # The damaged checkpoints are moved only after an older one could be read:
            # before that, they may be all that is left of the run.
            for damaged_step in damaged if set_aside else ():
                self._set_aside(damaged_step)
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
        """Read one checkpoint and verify its checksum."""
        saved = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
            ),
        )
        arrays = {name: np.asarray(leaf) for name, leaf in saved["state"].items()}
        if _checksum(arrays) != saved["meta"]["checksum"]:
            raise ValueError("its checksum does not fit its contents")
        return arrays, saved["meta"]

    def _set_aside(self, step: int) -> None:
        """Move a damaged checkpoint to a new name outside the directory."""
        source = self.directory / str(step)
        target = self.directory.parent / f"damaged-{step}"
        number = 1
        while target.exists():
            number += 1
            target = self.directory.parent / f"damaged-{step}-{number}"
        source.rename(target)
        self.manager.reload()

    def close(self) -> None:
        """Release the resources of orbax."""
        self.manager.close()


@contextlib.contextmanager
def _without_threads_tracebacks() -> Iterator[None]:
    """Silence orbax's log of failing threads.

    orbax logs the traceback of each thread that fails, and then raises the same error.
    """
    logger = logging.getLogger("absl")

    def is_not_from_orbax(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger.addFilter(is_not_from_orbax)
    try:
        yield
    finally:
        logger.removeFilter(is_not_from_orbax)


def _named(state: PyTree) -> dict[str, Any]:
    """Flatten a pytree to a dict of arrays by their paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _part(part: str, template: PyTree, arrays: dict[str, np.ndarray], step: int) -> Any:
    """Extract one field of a saved state.

    None for the best parameters of a run that does not keep them.
    """
    leaves = {
        name.removeprefix(part + "."): a
        for name, a in arrays.items()
        if name.startswith(part + ".")
    }
    return None if part == BEST and not leaves else _unnamed(template, leaves, step)


def _unnamed(template: PyTree, arrays: dict[str, np.ndarray], step: int) -> Any:
    """Fill the structure of ``template`` with the arrays of a checkpoint."""
    leaves = []
    for name, leaf in _named(template).items():
        array = arrays.get(
            name, np.zeros(leaf.shape, leaf.dtype) if leaf.size == 0 else None
        )
        if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
            saved = "nothing" if array is None else f"{array.shape} {array.dtype}"
            raise InputError(
                f"checkpoint {step} is of another model: {name} should be "
                f"{tuple(leaf.shape)} {leaf.dtype}, found {saved}"
            )
        leaves.append(jnp.asarray(array))
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _checksum(arrays: dict[str, Any]) -> int:
    """Compute the CRC-32 of all names and arrays, in the order of the names."""
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(
            np.ascontiguousarray(arrays[name]).tobytes(),
            zlib.crc32(name.encode(), total),
        )
    return total
