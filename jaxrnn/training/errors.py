"""Errors that the user of the programs can repair: one sentence, without traceback."""

import errno
import os
import pathlib

UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
}


class InputError(ValueError):
    """Raised for invalid arguments, data or run directories, which the user can repair.

    The message is one line that says what was expected, what was received, and how to
    repair it. It is a ``ValueError``.

    Example:
        >>> from jaxrnn.training import Budget, InputError
        >>> try:
        ...     Budget(steps=0)
        ... except InputError as error:
        ...     print(error)
        --steps must be more than 0, but it is 0
    """


def unwritable(error: BaseException) -> str | None:
    """Return why a file could not be written, or None for another error.

    Such reasons are a full disk, a quota, or a read-only directory. The libraries below
    wrap the message of the operating system in their own, so that it is searched for in
    the error and in its causes.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in UNWRITABLE:
            return os.strerror(current.errno)
        text = str(current)
        for number in sorted(UNWRITABLE):
            if os.strerror(number) in text and (
                f"os_error_code='{number}'" in text or f"[Errno {number}]" in text
            ):
                return os.strerror(number)
        current = current.__cause__ or current.__context__
    return None


def stopped_writing(
    run: pathlib.Path, checkpoints: pathlib.Path, reason: str
) -> InputError:
    """Describe a run whose files could not be written, and how to resume it."""
    steps = (
        [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
        if checkpoints.is_dir()
        else []
    )
    if not steps:
        return InputError(
            f"{run} could not be written: {reason}; no checkpoint was saved: make "
            f"room, or choose another --out"
        )
    return InputError(
        f"{run} could not be written: {reason}; the last checkpoint saved is that of "
        f"step {max(steps)}, in {checkpoints}: make "
        "room, then continue with --resume"
    )
