"""Which part of a layer an error comes from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

LONGEST = 160  # characters of the part's description


@contextlib.contextmanager
def naming_part(where: str, part: object) -> Iterator[None]:
    """Let a refusal in the body say in which part of a layer it arose.

    Two parts of a stack may be of the same kind, so that the name of their class does
    not say which one it is. The words are a note of the exception, behind its message;
    parts within parts have a line each, the innermost first.

    Args:
        where: the name or number of the part.
        part: the cell or layer.

    Example:
        >>> try:
        ...     with naming_part("layer_1", "a cell"):
        ...         raise ValueError("too few heads")
        ... except ValueError as error:
        ...     print(error, error.__notes__)
        too few heads ["in layer_1, 'a cell'"]
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        described = _repr_of(part)
        if len(described) > LONGEST:
            described = f"{described[:LONGEST]}..."
        error.add_note(f"in {where}, {described}")
        raise


def _repr_of(part: object) -> str:
    """Return the repr of a part, or its class where the repr itself fails."""
    try:
        return repr(part)
    except Exception:
        return type(part).__name__
