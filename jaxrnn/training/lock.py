"""The lock on a run directory: one process at a time writes a run."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from . import processes
from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where runs are not locked
    fcntl = None  # type: ignore[assignment]

NAME = "lock"
# Locks of this process by directory, with the number of times each was taken.
_HELD: dict[pathlib.Path, int] = {}


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Lock a run directory against other processes.

    The directory is made if it does not exist. The operating system releases the lock
    of a process that ends, however it ends, so that the file ``lock`` of a run that was
    killed locks nobody out. A process may take a lock that it has. Where files cannot
    be locked (Windows, some network disks) this does nothing.

    Args:
        path: the directory.

    Raises:
        InputError: if another process holds the lock, or the directory cannot be
            written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(folder):
        ...     is_locked(folder)
        True
    """
    directory = pathlib.Path(path).absolute()
    if _HELD.get(directory):
        _HELD[directory] += 1
        try:
            yield
        finally:
            _HELD[directory] -= 1
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = _acquire(directory / NAME)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; choose another --out"
        ) from None
    if file is None:
        raise InputError(
            f"{path} is being written by another process{_holder(directory)}: wait for "
            f"it or stop it, or choose another --out"
        )
    _HELD[directory] = 1
    try:
        yield
    finally:
        del _HELD[directory]
        # Removed before it is released: nobody can lock a file that is about to go.
        with contextlib.suppress(OSError):
            (directory / NAME).unlink()
        os.close(file)


@contextlib.contextmanager
def locked_by_first(path: str | os.PathLike) -> Iterator[None]:
    """Lock a run directory by the first process, for all processes of a run."""
    with contextlib.ExitStack() as lock:
        with processes.together("the lock of the run directory"):
            if processes.is_first():
                lock.enter_context(locked(path))
        yield


def is_locked(path: str | os.PathLike) -> bool:
    """Return whether a process, this one included, holds the lock of a directory."""
    file = pathlib.Path(path).absolute() / NAME
    if fcntl is None or not file.exists():
        return False
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _BUSY
    finally:
        os.close(descriptor)
    return False


_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def _acquire(file: pathlib.Path) -> int | None:
    """Lock a file and write the number of this process to it; None if it is locked."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                os.close(descriptor)
                return None
        # The process that held the lock may have removed the file after it was opened
        # here; then another process may lock a new file of that name.
        if _is_same(descriptor, file):
            break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_same(descriptor: int, file: pathlib.Path) -> bool:
    """Return whether an open file still has its name."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), found)


def _holder(directory: pathlib.Path) -> str:
    """Return which process holds the lock, in parentheses, as far as it is known."""
    try:
        number = (directory / NAME).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f" (number {number})" if number.isdigit() else ""
