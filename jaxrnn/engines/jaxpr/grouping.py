"""Divisions of a carry's numbers into groups, between which a Jacobian is zero.

A step keeps the examples of a batch apart, and perhaps the units or the heads of each
of them. Its Jacobian then consists of an (m, m) block for each group of m numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...core.dtypes import accumulator


def widest(parts: Sequence[Any]) -> Any:
    """Return the widest dtype of real arrays, float32 at least."""
    wide = [accumulator(a.dtype) for a in parts]
    return max(wide, key=lambda dtype: jnp.finfo(dtype).bits)


@dataclasses.dataclass(frozen=True)
class Grouping:
    """A division of real arrays, the parts of a carry, into groups.

    Args:
        lead: the number of leading axes, in common to all parts, whose indices tell
            the groups apart.
        units: H, where the last axis, behind these, is k blocks of H units: each unit
            is a group then. None where all numbers behind the leading axes are one
            group.
        width: the adjacent numbers of a block that count as one unit, as those of a
            head do: a block is H times as many numbers then.
    """

    lead: int
    units: int | None = None
    width: int = 1

    def size(self, parts: Sequence[Any]) -> int:
        """Return m, the numbers of a group."""
        behind = sum(math.prod(a.shape[self.lead :]) for a in parts)
        return behind // (self.units or 1)

    def shape(self, parts: Sequence[Any]) -> tuple[int, ...]:
        """Return the axes of the groups."""
        units = () if self.units is None else (self.units,)
        lead = parts[0].shape[: self.lead] if parts else ()
        return (*lead, *units)

    def split(self, parts: Sequence[Any]) -> Any:
        """Return the numbers group by group, ``(*groups, m)``.

        They are in the widest dtype of the parts, float32 at least.
        """
        dtype = widest(parts)
        return jnp.concatenate([self._split_part(a.astype(dtype)) for a in parts], -1)

    def _split_part(self, a: Any) -> Any:
        if self.units is None:
            return a.reshape(*a.shape[: self.lead], math.prod(a.shape[self.lead :]))
        count = a.shape[-1] // (self.units * self.width)
        a = a.reshape(*a.shape[:-1], count, self.units, self.width)
        a = jnp.moveaxis(a, -3, -2)
        return a.reshape(*a.shape[:-2], count * self.width)

    def join(self, vectors: Any, like: Sequence[Any]) -> list[Any]:
        """Return the parts: the inverse of `split`.

        Args:
            vectors: ``(..., *groups, m)``, with further axes in front.
            like: parts of the shapes and dtypes of the result, without these axes.
        """
        parts, start = [], 0
        front = vectors.shape[: vectors.ndim - 1 - len(self.shape(like))]
        for a in like:
            size = self.size([a])
            part = vectors[..., start : start + size]
            if self.units is not None:
                part = part.reshape(*part.shape[:-1], size // self.width, self.width)
                part = jnp.moveaxis(part, -2, -3)
            parts.append(part.reshape(*front, *a.shape).astype(a.dtype))
            start += size
        return parts

    def labels(self, parts: Sequence[Any]) -> list[np.ndarray]:
        """Return the number of its group for each number of the parts."""
        shape = self.shape(parts)
        index = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        labels = []
        for a in parts:
            if self.units is None:
                behind = (1,) * (len(a.shape) - self.lead)
                wide = index.reshape((*shape, *behind))
                labels.append(np.broadcast_to(wide, a.shape))
            else:
                block = np.repeat(index, self.width, -1)
                labels.append(np.tile(block, a.shape[-1] // block.shape[-1]))
        return labels
