"""What a compiled run costs on a chip: launches, bytes, temporaries, cycles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend import core

from .chips import (
    CHIP_OF_PLATFORM,
    HOST,
    MissingCompilerError,
    compile_for,
    platform_of,
)
from .compiled_program import CompiledProgram, temporaries_of


@dataclasses.dataclass(frozen=True)
class CompiledCost:
    """What a compiled program does on one chip. Nothing was run.

    Attributes:
        chip: "cpu", or a name such as "H100".
        launches: the kernels, library calls and copies that run one after another, over
            all steps; None on a CPU.
        overlapped: those that run beside them.
        loops: the launches of one iteration of each loop, as ``(alone, beside)``.
        bytes_moved: the bytes that all operations read and write.
        temporary_bytes: the memory besides arguments and results.
        cycles: how many cycles libtpu expects; None on other chips.
        error: why there are no figures, or "".

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.GRU(8)
        >>> params = cell.init(jax.random.key(0), 4)
        >>> xs = jax.ShapeDtypeStruct((20, 2, 4), "float32")
        >>> found = jaxrnn.explain(cell, params, xs, compile=["cpu"])
        >>> forward, gradient = found.rows[0].compiled
        >>> forward.chip, forward.launches, forward.bytes_moved < gradient.bytes_moved
        ('cpu', None, True)
    """

    chip: str
    launches: int | None = None
    overlapped: int | None = None
    loops: tuple[tuple[int, int], ...] = ()
    bytes_moved: int | None = None
    temporary_bytes: int | None = None
    cycles: int | None = None
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return self.error
        parts = []
        if self.launches is not None:
            text = f"{self.launches:,} launches and {self.overlapped:,} beside them"
            if self.loops:
                steps = ", ".join(
                    f"{alone} (+{beside})" for alone, beside in self.loops
                )
                text += f", {steps} an iteration"
            parts.append(text)
        if self.cycles is not None:
            parts.append(f"{self.cycles:,} cycles expected")
        if self.bytes_moved is not None:
            parts.append(f"{_megabytes(self.bytes_moved)} MB moved")
        if self.temporary_bytes is not None:
            parts.append(f"{_megabytes(self.temporary_bytes)} MB of temporaries")
        return ", ".join(parts)


def chips_to_compile_for(compile: bool | Sequence[str]) -> tuple[str, ...]:
    """Return the chips that `jaxrnn.explain` compiles for.

    Args:
        compile: True for this machine's CPU and one chip of each other platform, False
            for none, or names: "cpu" and those of `jaxrnn.explaining.chips.CHIPS`.

    Raises:
        ValueError: for a name that is none of them.
        TypeError: for a single name, which would be read letter by letter.
    """
    if isinstance(compile, str):
        raise TypeError(f"compile={compile!r}: write a list of chips, [{compile!r}]")
    if isinstance(compile, bool):
        return (HOST, *CHIP_OF_PLATFORM.values()) if compile else ()
    for chip in compile:
        platform_of(chip)
    return tuple(compile)


def cost_on(closed: Any, chip: str) -> CompiledCost:
    """Compile a jaxpr for a chip, and read what was made.

    Args:
        closed: the jaxpr, or the text of the error that tracing raised.
        chip: "cpu", or one of `jaxrnn.explaining.chips.CHIPS`.
    """
    if isinstance(closed, str):
        return CompiledCost(chip, error=closed)
    try:
        made = compile_for(chip, core.jaxpr_as_fun(closed), *closed.in_avals)
        return _read(made, chip)
    except MissingCompilerError as error:
        return CompiledCost(chip, error=str(error))
    except Exception as error:  # whatever the compilers raise is what it costs to know
        line = (str(error).splitlines() or [""])[0]
        return CompiledCost(chip, error=f"{type(error).__name__}: {line}")


def _read(made: Any, chip: str) -> CompiledCost:
    """Read the text of a compiled program."""
    program = CompiledProgram(made.as_text())
    cost = CompiledCost(
        chip,
        bytes_moved=program.bytes_moved(),
        temporary_bytes=temporaries_of(made),
        cycles=program.cycles() if platform_of(chip) == "tpu" else None,
    )
    if chip == HOST:
        return cost
    alone, beside = program.launches()
    return dataclasses.replace(
        cost,
        launches=alone,
        overlapped=beside,
        loops=tuple((loop.alone, loop.beside) for loop in program.loops()),
    )


def _megabytes(count: int) -> str:
    """Return bytes as megabytes in three digits."""
    return f"{count / 1e6:,.3g}" if count < 1e9 else f"{count / 1e6:,.0f}"
