"""What was asked of an unroll, as layers pass it down to the engine."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from .time_split import TimeSplit


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "mask",
        "resets",
        "key",
        "reversed_resets",
        "gradient_scale",
        "reversed_scale",
        "context",
    ),
    meta_fields=("engine", "reverse", "window", "all_carries"),
)
@dataclasses.dataclass(frozen=True)
class UnrollSpec:
    """The arguments of `unroll` that are passed down through layers to the engine.

    Attributes:
        engine: the engine, or None for the default.
        mask: ``(T, *B)`` bool or None; where False, the carry is held.
        resets: ``(T, *B)`` bool or None; where True, the carry becomes the initial one
            before the step.
        reverse: whether the steps run from the last to the first.
        window: the truncation length, or None.
        key: a random key, or None.
        reversed_resets: the resets of the other direction, once they are computed.
        gradient_scale: ``(T, *B)`` or None; multiplies the cotangent of the carry that
            enters each step.
        reversed_scale: the gradient scale of the other direction, likewise.
        all_carries: whether the carries after every step are wanted, and not only the
            outputs.
        context: arrays ``(*B, ...)`` for cells with ``takes_context``, or None.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.extending import UnrollSpec
        >>> resets = jnp.array([True, False, True, False])  # two sequences of two steps
        >>> backward = UnrollSpec(engine=None, resets=resets).reversed()
        >>> backward.reverse, backward.resets.tolist()
        (True, [False, True, False, False])
    """

    engine: Any
    mask: Any = None
    resets: Any = None
    reverse: bool = False
    window: int | None = None
    key: Any = None
    reversed_resets: Any = None
    gradient_scale: Any = None
    reversed_scale: Any = None
    all_carries: bool = True
    context: Any = None

    def replace(self, **changes) -> UnrollSpec:
        """Return the specification with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def time_split(self) -> TimeSplit | None:
        """How time is split over devices, each of which holds its own steps, or None.

        A layer whose output depends on earlier inputs than a step's own, other than
        through a cell, must ask for it.
        """
        return None if self.engine is None else self.engine.time_split

    @property
    def key_of_steps(self) -> Any:
        """The key for what is drawn for each step: every device has a key of its own
        where time is split over devices.
        """
        if self.time_split is None:
            return self.key
        return jax.random.fold_in(self.key, self.time_split.rank(False))

    def reversed(self) -> UnrollSpec:
        """Return the specification for the same sequences in the other direction.

        A reset or a gradient scale belongs to the edge between two steps. It applies
        before step t in one direction, and before the step at the other end of the edge
        in the other direction. The entry of the first edge, at which the first carry
        enters, is dropped, because the other direction has no such edge.
        """
        return self.replace(
            reverse=not self.reverse,
            resets=self._across(self.resets, self.reversed_resets, False),
            reversed_resets=self.resets,
            gradient_scale=self._across(self.gradient_scale, self.reversed_scale, 1),
            reversed_scale=self.gradient_scale,
        )

    def _across(self, before: Any, known: Any, at_end: Any) -> Any:
        """Move ``before (T, *B)`` to the other end of each edge.

        ``at_end`` is put where the other direction begins. A result that is known
        already is returned.
        """
        if before is None or known is not None:
            return known
        if self.time_split is not None:
            # The entry behind this device's last step is that of the next device.
            row = self.time_split.row_before(before, not self.reverse, at_end)[None]
            parts = [row, before[:-1]] if self.reverse else [before[1:], row]
            return jnp.concatenate(parts)
        last = 0 if self.reverse else before.shape[0] - 1
        is_end = (jnp.arange(before.shape[0]) == last).reshape(
            -1, *[1] * (before.ndim - 1)
        )
        return jnp.where(
            is_end,
            jnp.asarray(at_end, before.dtype),
            jnp.roll(before, 1 if self.reverse else -1, axis=0),
        )
