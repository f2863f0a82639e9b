"""How much memory an influence takes, said before it is made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def check_bytes(
    who: str,
    shapes: Iterable[Any],
    batch: tuple[int, ...],
    limit: int,
    what: str,
    instead: str,
) -> None:
    """Check that arrays of these shapes, batch axes first, fit into ``limit`` bytes.

    Args:
        who: the name of the method.
        shapes: the shapes and dtypes.
        batch: the batch axes ``*B``, one stream for each of their places.
        limit: the largest sum of bytes.
        what: what the arrays hold, in words.
        instead: what takes less, in words.

    Raises:
        ValueError: if they do not fit.
    """
    total = sum(math.prod(s.shape) * s.dtype.itemsize for s in shapes)
    if total <= limit:
        return
    streams = math.prod(batch)
    each = total // max(streams, 1)
    raise ValueError(
        f"{who}: {what} would take {each:,} bytes a stream, {total:,} for {streams:,} "
        f"{'stream' if streams == 1 else 'streams'}, which is more than "
        f"max_bytes={limit:,}: {'use fewer streams, ' if streams > 1 else 'use '}"
        f"{instead}; or pass a larger max_bytes where there is the memory, of which a "
        f"step needs about three times as much"
    )
