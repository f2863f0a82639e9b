"""Functions of a user that are called with every record of a run."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ..core.validation import describe
from .errors import InputError

# hook(step, record)
Hook = Callable[[int, dict[str, Any]], Any]


class Hooks:
    """Hooks, of which none is called any more once one has failed.

    A failure must not lose the run, so that it is kept until the run has been saved.

    Attributes:
        failure: what the failure was, in words; empty before there is one.
    """

    def __init__(self, hooks: Sequence[Hook]):
        self.hooks, self.failure = tuple(hooks), ""
        self.error: Exception | None = None

    @classmethod
    def of(cls, on_record: Hook | Sequence[Hook]) -> Hooks:
        """Return one or several functions as hooks."""
        hooks: Any = [on_record] if callable(on_record) else on_record
        if not isinstance(hooks, (list, tuple)) or not all(map(callable, hooks)):
            raise TypeError(
                f"on_record must be a function of (step, record), or a list of such "
                f"functions, but it is {describe(on_record)}"
            )
        return cls(hooks)

    @property
    def failed(self) -> bool:
        """Return whether a hook has raised an exception."""
        return bool(self.failure)

    def __call__(self, step: int, record: dict[str, Any]) -> None:
        """Call every hook with a record of its own."""
        for hook in () if self.failed else self.hooks:
            try:
                hook(step, dict(record))
            except Exception as error:
                self.failure = (
                    f"on_record failed at step {step}: {type(error).__name__}: {error}"
                )
                self.error = error
                return

    def check(self, run: pathlib.Path, step: int, is_finished: bool) -> None:
        """Raise the failure of a run that has been saved."""
        if not self.failed:
            return
        saved = (
            "the run is finished and its result is written"
            if is_finished
            else "mend it, then continue with --resume"
        )
        raise InputError(
            f"{self.failure}; {run} is saved at step {step}: {saved}"
        ) from self.error
