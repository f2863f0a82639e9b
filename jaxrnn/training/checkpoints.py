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
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ..core.types import PyTree
from . import processes
from .checksum import spans_processes, split_checksum
from .errors import InputError
from .sharding import placed
from .state import TrainState

BEST = "best"  # prefix of the names of the best parameters

# Parts of names, and what checkpoints of older versions call them.
RENAMED = MappingProxyType({"normalize": "normalise"})

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

        Arrays on the devices of one process are written whole; of arrays over several
        processes each writes its part. Either kind is read again on any number of
        devices and processes. All processes must call this.

        Args:
            step: the name of the checkpoint.
            state: a pytree of arrays.
            meta: a small JSON object.
            best: the parameters with the best held-out score so far, if the run keeps
                them.

        Raises:
            OSError: if the disk does not have enough space.
        """
        # Arrays of one process are copied to the host: orbax would record the devices
        # that held them, and require the same devices when it reads them again. Empty
        # arrays are left out, because orbax does not accept them.
        named = _named(state) | {
            f"{BEST}.{name}": leaf for name, leaf in _named(best).items()
        }
        arrays = {
            name: leaf if spans_processes(leaf) else np.asarray(leaf)
            for name, leaf in named.items()
            if leaf.size
        }
        self._check_space(sum(a.nbytes for a in arrays.values()) + BESIDES)
        meta = {**meta, **_described(arrays)}
        with _without_threads_tracebacks():
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )

    def _check_space(self, needed: int) -> None:
        """Check that the disk has room, which the first process does for all.

        orbax would start to write, and leave a partial checkpoint on a full disk.
        """
        free = shutil.disk_usage(self.directory).free if processes.is_first() else 0
        if processes.broadcast(free, "a checkpoint") < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))

    def steps(self) -> list[int]:
        """Return the steps of the existing checkpoints, oldest first."""
        return processes.broadcast(sorted(self.manager.all_steps()), "the checkpoints")

    def restore(self, template: PyTree) -> Restored:
        """Read the newest undamaged checkpoint, with the structure of ``template``.

        A damaged checkpoint is moved to ``damaged-STEP`` beside ``checkpoints``, and
        ``notes`` says so, in one sentence each.

        Args:
            template: a pytree like the saved state, with its shapes and dtypes. What
                spans several processes there does so again, with the same sharding.

        Returns:
            A `Restored`: the step, the state, its ``meta``, notes, the best parameters.

        Raises:
            InputError: if no checkpoint can be read, or the saved state is that of
                another model.
        """
        step, arrays, meta, notes = self._newest(set_aside=True, like=_named(template))
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
        self, set_aside: bool, like: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[int, dict[str, Any], dict[str, Any], list[str]]:
        """Read the newest checkpoint whose contents fit their checksum.

        Args:
            set_aside: whether to move damaged checkpoints.
            like: the arrays that may span several processes, by name.
        """
        notes: list[str] = []
        damaged: list[int] = []
        for step in reversed(self.steps()):
            found, reason = self._attempt(step, like)
            if found is None:
                notes.append(f"checkpoint {step} is damaged ({reason})")
                damaged.append(step)
                continue
            # The damaged checkpoints are moved only after an older one could be read:
            # before that, they may be all that is left of the run.
            for damaged_step in damaged if set_aside else ():
                self._set_aside(damaged_step)
            return (
                step,
                *found,
                [f"{note}, so the one before it is used" for note in notes],
            )
        raise InputError(
            f"no readable checkpoint in {self.directory}"
            + "".join(f"; {note}" for note in notes)
        )

    def _attempt(
        self, step: int, like: Mapping[str, Any]
    ) -> tuple[tuple[dict[str, Any], dict[str, Any]] | None, str]:
        """Read a checkpoint; or return None, and why a process cannot read it."""
        found, reason = None, ""
        try:
            found = self._read(step, like)
        except (MemoryError, PermissionError):
            raise  # the checkpoint itself may be intact
        except Exception as error:  # orbax and tensorstore raise many types
            reason = " ".join(str(error).split())[:120] or type(error).__name__
        reasons = [why for why in processes.gather(reason, "a checkpoint") if why]
        return (None, reasons[0]) if reasons else (found, "")

    def _read(
        self, step: int, like: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read one checkpoint and verify its checksum."""
        meta = self.manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        )["meta"]
        wanted = _wanted(meta, like)
        saved = self.manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        )["state"]
        arrays = {
            name: leaf if spans_processes(leaf) else np.asarray(leaf)
            for name, leaf in saved.items()
        }
        # Where all arrays are whole, they have the checksum of a single process.
        kind = "split_checksum" if wanted else "checksum"
        if _checksums[kind](arrays) != meta[kind]:
            raise ValueError("its checksum does not fit its contents")
        return arrays, meta

    def _set_aside(self, step: int) -> None:
        """Move a damaged checkpoint to a new name outside the directory."""
        source = self.directory / str(step)
        target = self.directory.parent / f"damaged-{step}"
        number = 1
        while target.exists():
            number += 1
            target = self.directory.parent / f"damaged-{step}-{number}"
        if processes.is_first():
            source.rename(target)
        processes.gather(None, "a damaged checkpoint")
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


def _name_before(name: str) -> str:
    """Return the name of an array in checkpoints of older versions."""
    return ".".join(RENAMED.get(part, part) for part in name.split("."))


def _unnamed(template: PyTree, arrays: dict[str, np.ndarray], step: int) -> Any:
    """Fill the structure of ``template`` with the arrays of a checkpoint."""
    leaves = []
    for name, leaf in _named(template).items():
        array = arrays.get(name, arrays.get(_name_before(name)))
        if array is None and leaf.size == 0:
            array = np.zeros(leaf.shape, leaf.dtype)
        if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
            saved = "nothing" if array is None else f"{array.shape} {array.dtype}"
            raise InputError(
                f"checkpoint {step} is of another model: {name} should be "
                f"{tuple(leaf.shape)} {leaf.dtype}, found {saved}"
            )
        leaves.append(_at(array, leaf))
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _at(array: Any, like: Any) -> Any:
    """Return an array of a checkpoint where ``like`` is, if that spans processes."""
    if spans_processes(array):
        return array
    return placed(array, like.sharding) if spans_processes(like) else jnp.asarray(array)


def _described(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the checksum of a checkpoint, and what reading it needs.

    The shapes are needed to read arrays that were written by several processes as whole
    arrays.
    """
    if not any(map(spans_processes, arrays.values())):
        return {"checksum": _checksum(arrays)}
    shapes = {name: [list(a.shape), str(a.dtype)] for name, a in arrays.items()}
    return {"split_checksum": split_checksum(arrays), "arrays": shapes}


def _wanted(meta: dict[str, Any], like: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how each array of a checkpoint is to be read; None for whole arrays.

    An array that spans several processes in ``like`` is read in parts, if it has the
    right shape.
    """
    if "arrays" not in meta:
        return None
    wanted: dict[str, Any] = {}
    for name, (shape, dtype) in meta["arrays"].items():
        whole = np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)
        leaf: Any = like.get(name)
        wanted[name] = whole
        if spans_processes(leaf) and _kind(leaf) == _kind(whole):
            wanted[name] = jax.ShapeDtypeStruct(*_kind(leaf), sharding=leaf.sharding)
    return wanted


def _kind(array: Any) -> tuple[tuple[int, ...], Any]:
    """Return the shape and the dtype of an array."""
    return array.shape, array.dtype


def _checksum(arrays: dict[str, Any]) -> int:
    """Compute the CRC-32 of all names and arrays, in the order of the names."""
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(
            np.ascontiguousarray(arrays[name]).tobytes(),
            zlib.crc32(name.encode(), total),
        )
    return total


_checksums = {"checksum": _checksum, "split_checksum": split_checksum}
