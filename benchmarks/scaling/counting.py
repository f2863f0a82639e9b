"""What a compiled program sends and multiplies, read from its text.

An operation inside a loop counts as often as the loop runs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

from jaxrnn.explaining.compiled_program import (
    CompiledProgram,
    Executed,
    arrays_of,
    known,
    operands_of,
    operation_of,
    size_of,
)

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)


class Counts(NamedTuple):
    """What one device does.

    Attributes:
        collectives: how often each collective operation runs.
        looped: how many of them run inside a loop.
        bytes: the bytes that they give the device.
        flops: twice the products of numbers of its matrix products.
    """

    collectives: Counter[str]
    looped: int
    bytes: int
    flops: int


def count(text: str) -> Counts:
    """Count the collective operations and the matrix products of a program.

    Args:
        text: what ``jax.jit(f).lower(...).compile().as_text()`` gives.

    Raises:
        ValueError: if a loop with any of them does not say how often it runs.
    """
    program = CompiledProgram(text)
    collectives: Counter[str] = Counter()
    looped = received = flops = 0
    for each in program.executed(into_fusions=True):
        kind = operation_of(each.line).removesuffix("-start")
        if kind in COLLECTIVES:
            times = known(each.times, each.line)
            collectives[kind] += times
            looped += times * each.is_looped
            received += times * size_of(each.line)
        elif kind == "dot":
            flops += known(each.times, each.line) * _flops(program, each)
    return Counts(collectives, looped, received, flops)


def _flops(program: CompiledProgram, product: Executed) -> int:
    """Return the operations of a product, in pairs of a multiplication and a sum.

    A product of complex numbers counts as four of real ones.
    """
    first = program.by_name[product.computation][operands_of(product.line)[0]]
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.line)
    [(kind, dims)], [(_, left)] = arrays_of(product.line), arrays_of(first)
    axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
    products = math.prod(dims) * math.prod(left[axis] for axis in axes)
    return 2 * products * (4 if kind.startswith("c") else 1)
