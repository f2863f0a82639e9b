"""Checksums of arrays that do not depend on how the arrays are split over devices.

With b_i the bits of element i of an array, in row-major order, as an unsigned integer::

    sum = sum_i b_i w_i  mod 2^64      w_i = (i 0x9E3779B97F4A7C15 mod 2^64) | 1

The weights are odd, so that a change of any one element changes the sum. Every process
adds up what its devices hold, and the sums of all processes are added.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import jax
import numpy as np

from . import processes

WEIGHT = np.uint64(0x9E3779B97F4A7C15)
AT_ONCE = 2**20  # elements whose weights are held at once


def spans_processes(leaf: Any) -> bool:
    """Return whether parts of an array are on devices of other processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def split_checksum(arrays: dict[str, Any]) -> str:
    """Return the checksum of named arrays, of which some span several processes.

    All processes must call it. Arrays that every process has whole are counted by the
    first one.
    """
    names = sorted(arrays)
    own = [_own_sum(arrays[name]) for name in names]
    sums = [
        sum(parts) % 2**64
        for parts in zip(*processes.gather(own, "a checksum"), strict=True)
    ]
    lines = [f"{name} {total}\n" for name, total in zip(names, sums, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _own_sum(array: Any) -> int:
    """Return the sum of what this process counts of an array."""
    if not spans_processes(array):
        whole = np.asarray(array)
        every = tuple(slice(None) for _ in whole.shape)
        return weighted_sum(whole, every, whole.shape) if processes.is_first() else 0
    return sum(
        weighted_sum(np.asarray(shard.data), shard.index, array.shape)
        for shard in array.addressable_shards
        if shard.replica_id == 0
    )


def weighted_sum(
    part: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]
) -> int:
    """Return the sum of a part of an array.

    Args:
        part: the elements.
        index: where they are in the array.
        shape: the shape of the array.
    """
    width = min(part.dtype.itemsize, 8)
    bits = np.ascontiguousarray(part).reshape(-1).view(f"u{width}")
    # A complex number of 16 bytes is two neighbors.
    pair = part.dtype.itemsize // width
    bits = bits.reshape(*part.shape, pair)
    axes = [
        np.arange(*at.indices(size), dtype=np.uint64)
        for at, size in zip((*index, slice(None)), (*shape, pair), strict=True)
    ]
    strides = [math.prod((*shape, pair)[k + 1 :]) for k in range(len(axes))]
    places = [axis * np.uint64(step) for axis, step in zip(axes, strides, strict=True)]
    total = 0
    rows = max(AT_ONCE // max(math.prod(bits.shape[1:]), 1), 1)
    for begin in range(0, len(bits), rows):
        block = bits[begin : begin + rows].astype(np.uint64)
        at = _outer_sum([places[0][begin : begin + rows], *places[1:]])
        total += int((block * (at * WEIGHT | np.uint64(1))).sum(dtype=np.uint64))
    return total % 2**64


def _outer_sum(vectors: list[np.ndarray]) -> np.ndarray:
    """Return the sum of one element of each vector, for all choices of elements."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = total[..., None] + vector
    return total
