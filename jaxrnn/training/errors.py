"""What a person who uses the programs can mend: one sentence, no traceback."""

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
    """Bad arguments, data or run directory; the message is one line that says what
    was expected, what came, how to mend it.
    """


def unwritable(error: BaseException) -> str | None:
    """Why a file could not be written, if that is what an error says: a full disk, a
    quota, a directory that is read-only.

    Libraries below wrap the system's words in their own, so those are looked for in
    what they raise, and in its causes.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, OSError) and each.errno in UNWRITABLE:
            return os.strerror(each.errno)
        text = str(each)
        for number in sorted(UNWRITABLE):
            if os.strerror(number) in text and (
                f"os_error_code='{number}'" in text or f"[Errno {number}]" in text
            ):
                return os.strerror(number)
        each = each.__cause__ or each.__context__
    return None


def stopped_writing(
    run: pathlib.Path, checkpoints: pathlib.Path, reason: str
) -> InputError:
    """What to tell of a run whose files could not be written: why, what there is of
    it, and how it goes on.
    """
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
        "room, then go on with --resume"
    )
