"""What XLA made of a program: kernel launches, estimated cycles, bytes.

The text of a compiled program names every operation that its platform starts, and how
often each loop runs. A GPU launches a kernel, a copy or a library call for each; libtpu
writes beside each how many cycles it expects. Nothing is run.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# What a compiled program does without a kernel of its own.
NO_KERNEL = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "while",
    "call",
    "conditional",
    "iota",
}
_OPERATION = re.compile(r"[\])}]\s+([a-z][\w\-]*)\(")
_BYTES = {
    "pred": 1,
    **{f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)},
    "bf16": 2,
    "c64": 8,
    "c128": 16,
}
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Loop:
    """One iteration of a loop of a compiled program.

    Attributes:
        trips: how often the loop runs.
        alone: the kernels that one iteration launches one after another.
        beside: those that run beside them.
        kinds: how many of each kind, "matmul", "copy", "arithmetic" or "beside".
        cycles: the cycles of one iteration that libtpu expects; 0 on other platforms.
    """

    trips: int
    alone: int
    beside: int
    kinds: dict[str, int]
    cycles: int


class Executed(NamedTuple):
    """An operation that a compiled program runs.

    Attributes:
        computation: the computation in which it stands.
        line: the operation, behind the name of its result.
        times: how often it runs; None within a loop that does not say how often.
        is_looped: whether it runs in a loop.
    """

    computation: str
    line: str
    times: int | None
    is_looped: bool


class CompiledProgram:
    """The operations of a compiled program, read from its text.

    Args:
        text: what ``jax.stages.Compiled.as_text`` returns.
    """

    def __init__(self, text: str):
        # What stands behind the name of each result, computation by computation.
        self.computations: dict[str, list[str]] = {}
        self.by_name: dict[str, dict[str, str]] = {}
        self._roots: dict[str, str] = {}
        self.entry, computation, lines, names = "", "", [], {}
        for line in text.splitlines():
            begins = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if begins:
                computation = begins[2]
                lines = self.computations[computation] = []
                names = self.by_name[computation] = {}
                self.entry = computation if begins[1] else self.entry
            elif " = " in line:
                name, operation = line.split(" = ", 1)
                lines.append(operation)
                label = name.split()[-1].lstrip("%")
                names[label] = operation
                if name.split()[0] == "ROOT":
                    self._roots[computation] = label

    def launches(self) -> tuple[int, int]:
        """Count the launches of the whole program, loops by their iterations.

        Returns:
            Those one after another, and those that run beside them.

        Raises:
            ValueError: if the iterations of a loop are not known.
        """
        return (
            self._total(lambda _, line: kind_of(line) not in ("", "beside")),
            self._total(lambda _, line: kind_of(line) == "beside"),
        )

    def cycles(self) -> int:
        """Sum the cycles that libtpu expects of the whole program, loops included.

        Copies that run beside other operations are not counted.

        Raises:
            ValueError: if the iterations of a loop are not known.
        """
        return self._total(lambda _, line: _cycles_of(line))

    def bytes_moved(self) -> int:
        """Sum what the operations read and write, loops by their iterations.

        Each operand and each result of an operation that a device launches counts
        once; a part of an array that an operation reads or overwrites in place counts
        as the part. What a cache saves is not known.

        Raises:
            ValueError: if the iterations of a loop are not known.
        """
        return self._total(self._bytes_of)

    def loops(self) -> list[Loop]:
        """Count one iteration of every loop, in the order of the text."""
        found = []
        for line in (line for lines in self.computations.values() for line in lines):
            if operation_of(line) == "while":
                body = self.computations[called(line, "body")]
                kinds = collections.Counter(map(kind_of, body))
                del kinds[""]
                beside = kinds.get("beside", 0)
                cycles = sum(map(_cycles_of, body))
                alone = kinds.total() - beside
                kinds_by_name = dict(sorted(kinds.items()))
                trips = known(self._trips(line), line)
                found.append(Loop(trips, alone, beside, kinds_by_name, cycles))
        return found

    def executed(self, *, into_fusions: bool = False) -> Iterator[Executed]:
        """Yield every operation that runs, those of loops and calls among them.

        Args:
            into_fusions: whether to yield what a fusion consists of in its place.
        """

        def of(name: str, times: int | None, is_looped: bool) -> Iterator[Executed]:
            for line in self.computations[name]:
                operation = operation_of(line)
                if operation == "while":
                    trips = self._trips(line)
                    both = None if trips is None or times is None else times * trips
                    yield from of(called(line, "body"), both, True)
                elif operation == "call":
                    yield from of(called(line, "to_apply"), times, is_looped)
                elif into_fusions and operation in ("fusion", "async-start"):
                    yield from of(called(line, "calls"), times, is_looped)
                else:
                    yield Executed(name, line, times, is_looped)

        return of(self.entry, 1, False)

    def _total(self, amount: Callable[[str, str], int]) -> int:
        """Sum ``amount`` of (computation, operation) of every operation that runs."""
        return sum(
            known(each.times, each.line) * amount(each.computation, each.line)
            for each in self.executed()
        )

    def _trips(self, line: str) -> int | None:
        """Return how often a loop runs, or None where it does not say so.

        XLA says it for CPUs and GPUs. For TPUs it is the constant with which the
        loop's condition compares a counter that starts at 0.
        """
        if said := _TRIPS.search(line):
            return int(said[1])
        bounds = {
            int(n)
            for inner in self._reached(called(line, "condition"))
            for n in re.findall(r"^s32\[\]\S* constant\((\d+)\)", inner)
        }
        return bounds.pop() if len(bounds) == 1 else None

    def _bytes_of(self, computation: str, line: str) -> int:
        """Return what an operation reads and writes."""
        if kind_of(line) == "":
            return 0
        names = self.by_name[computation]
        operands = [names.get(name, "") for name in operands_of(line)]
        operation = operation_of(line).removesuffix("-start")
        if operation == "fusion":
            inside = called(line, "calls")
            reads = [self._read(inside, i, size_of(x)) for i, x in enumerate(operands)]
            return sum(reads) + self._written(inside, self._roots[inside])
        if operation == "dynamic-slice":
            return 2 * size_of(line)
        if operation == "dynamic-update-slice":
            return 2 * size_of(operands[1])
        return size_of(line) + sum(map(size_of, operands))

    def _read(self, fusion: str, number: int, size: int) -> int:
        """Return how much of an operand a fusion reads: parts, or all of it."""
        names = self.by_name[fusion]
        starts = [n for n, x in names.items() if f" parameter({number})" in x]
        parts = 0
        while starts:
            name = starts.pop()
            for user, line in names.items():
                places = [i for i, used in enumerate(operands_of(line)) if used == name]
                operation = operation_of(line)
                if places == [0] and operation == "bitcast":
                    starts.append(user)
                elif places == [0] and operation == "dynamic-slice":
                    parts += size_of(line)
                elif places and operation == "fusion":  # within this one
                    inner = called(line, "calls")
                    parts += sum(self._read(inner, i, size) for i in places)
                elif places and not (
                    places == [0] and operation == "dynamic-update-slice"
                ):
                    return size
        return min(parts, size)

    def _written(self, fusion: str, name: str) -> int:
        """Return how much of a result a fusion writes: what it updates, or all."""
        line = self.by_name[fusion][name]
        operands = operands_of(line)
        if operation_of(line) == "tuple":
            return sum(self._written(fusion, each) for each in operands)
        if operation_of(line) == "bitcast" and operands[0] in self.by_name[fusion]:
            return self._written(fusion, operands[0])
        if operation_of(line) == "dynamic-update-slice":
            return size_of(self.by_name[fusion][operands[1]])
        return size_of(line)

    def _reached(self, name: str) -> Iterator[str]:
        """Yield the operations of a computation and of those that it calls."""
        for line in self.computations[name]:
            yield line
            if "calls=" in line:
                yield from self._reached(called(line, "calls"))


def known(times: int | None, line: str) -> int:
    """Return how often a line of the program runs.

    Raises:
        ValueError: if it is not known.
    """
    if times is None:
        raise ValueError(
            f"a loop of the program does not say how often it runs: {line[:99]}"
        )
    return times


def called(line: str, role: str) -> str:
    """Return the computation that an operation calls."""
    found = re.search(rf"{role}=%?([\w.\-]+)", line)
    if found is None:
        raise ValueError(f"an operation names no {role}: {line[:99]}")
    return found[1]


def kind_of(line: str) -> str:
    """Return what an operation of the compiled program launches; "" for nothing."""
    name = operation_of(line)
    if name in NO_KERNEL or name.endswith("-done"):
        return ""
    if name.endswith("-start"):
        return "beside"
    if name == "custom-call" or "gemm" in line.split("(")[0] or "kCustom" in line:
        return "matmul"
    return "copy" if name == "copy" else "arithmetic"


def operation_of(line: str) -> str:
    """Return the name of an operation; "" if the line has none."""
    found = _OPERATION.search(line)
    return found[1] if found else ""


def operands_of(line: str) -> list[str]:
    """Return the names of the operands of an operation."""
    found = _OPERATION.search(line)
    if not found:
        return []
    return re.findall(r"%([\w.\-]+)", line[found.end() : line.find(")", found.end())])


def arrays_of(line: str) -> list[tuple[str, list[int]]]:
    """Return dtype and dimensions of each array of the result of an operation."""
    found = _OPERATION.search(line)
    result = line[: found.start() + 1] if found else ""
    return [
        (dtype, [int(n) for n in dims.split(",") if n])
        for dtype, dims in _ARRAY.findall(result)
    ]


def size_of(line: str) -> int:
    """Return the bytes of the result of an operation."""
    return sum(
        _BYTES.get(dtype, 0) * math.prod(dims) for dtype, dims in arrays_of(line)
    )


def _cycles_of(line: str) -> int:
    """Return the cycles that libtpu expects of an operation that nothing overlaps."""
    found = _CYCLES.search(line)
    return int(found[1]) if found and not operation_of(line).endswith("-start") else 0


def temporaries_of(compiled: Any) -> int | None:
    """Return the bytes that a compiled program keeps besides arguments and results."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)
