"""What devices send each other, read from a compiled program: which operations, how
many bytes, and whether inside a loop.
"""

import math
import re
from typing import NamedTuple

NAMES = (
    "all-reduce",
    "all-gather",
    "collective-permute",
    "all-to-all",
    "reduce-scatter",
    "collective-broadcast",
)
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128} | {
    f"{kind}{n}": n for kind in "suf" for n in (8, 16, 32, 64)
}
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|branch_computations|true_computation|false_computation)=\{?([^,}\s]+)"
)


class Collective(NamedTuple):
    """``name`` of the operation, ``bytes`` that it gives each device, ``looped``
    where a while loop does it.
    """

    name: str
    bytes: int
    looped: bool


def collectives(compiled):
    """The `Collective` operations of a program that
    ``jax.jit(f).lower(...).compile()`` gave.
    """
    bodies, name, entry = {}, None, None
    for line in compiled.as_text().splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = name if line.startswith("ENTRY") else entry
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    return list(_inside(bodies, entry, False))


def _inside(bodies, name, looped):
    for line in bodies[name]:
        found = INSTRUCTION.match(line)
        if not found:
            continue
        shape, operation = found.groups()
        if operation.removesuffix("-start") in NAMES:
            yield Collective(operation.removesuffix("-start"), _bytes(shape), looped)
        for called in CALLED.findall(line):
            if (
                called.lstrip("%") in bodies
                and "to_apply" not in line.split(called)[0][-10:]
            ):
                yield from _inside(
                    bodies, called.lstrip("%"), looped or operation == "while"
                )


def _bytes(shape):
    sizes = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    return sum(
        BITS[kind] // 8 * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in sizes
        if kind in BITS
    )
