"""What a compiled program sends and multiplies, read from its text.

An operation inside a loop counts as often as the loop runs.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from typing import NamedTuple

from jaxrnn.explaining.compiled_program import KNOWN_TRIPS, called

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)
BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16} | {
    f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)
}
OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
BEGINS = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")


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
        ValueError: if a loop does not say how often it runs.
    """
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if begins := BEGINS.match(line):
            lines = bodies[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        else:
            lines.append(line)

    @functools.cache
    def inside(name: str) -> Counts:
        shapes: dict[str, str] = {}
        total = Counts(Counter(), 0, 0, 0)
        for line in bodies[name]:
            if found := OPERATION.match(line):
                result, shape, operation, rest = found.groups()
                shapes[result] = shape
                total = _sum(total, of_line(line, shape, operation, rest, shapes))
        return total

    def of_line(line, shape, operation, rest, shapes) -> Counts:
        kind = operation.removesuffix("-start")
        if kind in COLLECTIVES:
            return Counts(Counter({kind: 1}), 0, _bytes(shape), 0)
        if operation == "dot":
            return Counts(Counter(), 0, 0, _flops(shape, rest, shapes))
        if operation == "while":
            trips = KNOWN_TRIPS.search(line)
            body = inside(called(line, "body"))
            if trips is None:
                if body.collectives or body.flops:
                    raise ValueError(
                        f"a loop of the program does not say how often it runs: "
                        f"{line[:99]}"
                    )
                return body
            times = int(trips[1])
            sent = Counter({k: times * n for k, n in body.collectives.items()})
            return Counts(sent, sent.total(), times * body.bytes, times * body.flops)
        total = Counts(Counter(), 0, 0, 0)
        if operation in ("fusion", "call", "conditional", "async-start"):
            for other in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
                total = _sum(total, inside(other))
        return total

    return inside(entry)


def _sum(a: Counts, b: Counts) -> Counts:
    """Add two counts."""
    return Counts(
        a.collectives + b.collectives,
        a.looped + b.looped,
        a.bytes + b.bytes,
        a.flops + b.flops,
    )


def _sizes(shape: str) -> list[tuple[str, list[int]]]:
    """Return the dtypes and dimensions of a shape, which may be a tuple."""
    return [
        (kind, [int(n) for n in dims.split(",") if n])
        for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    ]


def _bytes(shape: str) -> int:
    """Return the bytes of a shape."""
    return sum(BYTES.get(kind, 0) * math.prod(dims) for kind, dims in _sizes(shape))


def _flops(shape: str, rest: str, shapes: dict[str, str]) -> int:
    """Return the operations of a product, in pairs of a multiplication and a sum.

    A product of complex numbers counts as four of real ones.
    """
    first = re.match(r"(?:\S+\[[^ ]* )?%?([\w.\-]+)", rest)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    [(kind, dims)] = _sizes(shape)
    (_, left), *_ = _sizes(shapes[first[1]])  # type: ignore[index]
    axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
    products = math.prod(dims) * math.prod(left[axis] for axis in axes)
    return 2 * products * (4 if kind.startswith("c") else 1)
