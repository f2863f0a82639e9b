"""The result of `jaxrnn.explain`, as rows and as a printed table."""

from __future__ import annotations

import dataclasses
import itertools
import re
import textwrap
from collections.abc import Callable
from typing import Any

import jax

from ..core.types import Params
from ..core.written import written
from .compiled_cost import CompiledCost
from .execution import ExecutionPath

WIDTH = 118  # columns of the printed table


@dataclasses.dataclass(frozen=True)
class Row:
    """How one cell runs on one platform.

    Attributes:
        place: the path of the cell's parameters among those of the layer, such as
            "layer_0/forward"; "" for a cell that is not in a layer.
        cell: the cell, as one would write it.
        platform: "cpu", "gpu" or "tpu".
        engine: the engine, as one would write it.
        forward: the forward pass without a gradient.
        recording: the forward pass for a gradient.
        backward: the backward pass.
        kernel: what `jaxrnn.Fused` would do.
        why: why this engine runs.
        number: the position of the cell in the order in which cells run.
        compiled: what the run costs, without a gradient and with it, for each chip of
            the platform that `explain` was asked to compile for.
    """

    place: str
    cell: str
    platform: str
    engine: str
    forward: ExecutionPath
    recording: ExecutionPath
    backward: ExecutionPath
    kernel: ExecutionPath
    why: str
    number: int = 0
    compiled: tuple[CompiledCost, ...] = ()

    @property
    def error(self) -> str | None:
        """The error of compiling for the platform, or None."""
        return next(
            (
                path.reason
                for path in (self.forward, self.recording, self.backward)
                if path.kind == "error"
            ),
            None,
        )

    def lines(self) -> list[tuple[str, str]]:
        """Return what is printed of the row: pairs of a word and a text."""
        if self.forward.kind == "error":
            return [("raises", self.forward.reason)]
        forward, gradient = _sentence(self.forward), _sentence(self.backward)
        if self.error is not None:
            gradient = f"raises {self.error}"
        elif (self.recording.kind, self.recording.steps) != (
            self.backward.kind,
            self.backward.steps,
        ):
            gradient = f"forwards {_sentence(self.recording)}; backwards {gradient}"
        lines = (
            [("both ways", forward)]
            if forward == gradient
            else [("forward", forward), ("gradient", gradient)]
        )
        if self.forward.kind != "kernel" and not self.forward.across:
            lines.append(("with Fused", self._by_kernel()))
        return lines + self._costs()

    def _costs(self) -> list[tuple[str, str]]:
        """Say what the compiled programs cost, chip by chip."""
        pairs = zip(self.compiled[::2], self.compiled[1::2], strict=True)
        return [
            (
                "compiled",
                f"nothing: {forward.error}"
                if forward.error
                else f"for {forward.chip}, not run: {forward}; with its gradient "
                f"{gradient}",
            )
            for forward, gradient in pairs
        ]

    def _by_kernel(self) -> str:
        """Say what `jaxrnn.Fused` would do."""
        if self.kernel.kind == "kernel":
            return f"one kernel ({self.kernel.reason})"
        # Leave out the advice to use another engine, which is what runs.
        short = self.kernel.reason.partition(": use ")[0].partition(". Use ")[0]
        return "no kernel: " + re.sub(
            r"^(\w+Error: )?(Fused: )?(\w+ has no kernel: )?", "", short
        )


def _sentence(path: ExecutionPath) -> str:
    """Return a path with its reason."""
    return f"{path} ({path.reason})" if path.reason else str(path)


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """Which engine runs each cell on each platform; it prints as a table.

    Attributes:
        title: the layer, the inputs and the engine that was asked for.
        rows: one `Row` per cell and platform, in the order in which the cells run.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.MinGRU(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.ShapeDtypeStruct((20, 2, 3), "float32")
        >>> found = jaxrnn.explain(cell, params, xs)
        >>> {row.platform: row.forward.kind for row in found.rows}
        {'cpu': 'loop', 'gpu': 'prefixes', 'tpu': 'prefixes'}
    """

    title: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        lines = textwrap.wrap(self.title, WIDTH)
        if not self.rows:
            lines.append("no cell of it is run by an engine")
        cells: dict[Any, list[str]] = {}  # the places of cells with equal rows
        for _, rows in itertools.groupby(self.rows, key=lambda row: row.number):
            first, *more = rows
            alike = tuple(
                dataclasses.replace(row, place="", number=0) for row in (first, *more)
            )
            cells.setdefault(alike, []).append(first.place)
        for rows, places in cells.items():
            lines += ["", *_of_cell(rows, ", ".join(filter(None, places)))]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def _of_cell(rows: tuple[Row, ...], places: str) -> list[str]:
    """Print the rows of a cell, with equal platforms in one group."""
    first = rows[0]
    lines = textwrap.wrap(
        f"{places}: {first.cell}" if places else first.cell,
        WIDTH,
        subsequent_indent="  ",
    )
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.engine, *row.lines()), []).append(row)
    for (engine, *pairs), members in groups.items():
        lines.append(
            f"  {', '.join(row.platform for row in members):<15}{engine}, {first.why}"
        )
        for word, text in pairs:
            lines += textwrap.wrap(
                " ".join(text.split()),
                WIDTH,
                initial_indent=f"    {word:<13}",
                subsequent_indent=" " * 17,
                break_on_hyphens=False,
            )
    return lines


def brief(value: object) -> str:
    """Return a value as one would write it, without underscores of private classes."""
    return re.sub(r"\b_+(?=[A-Z]\w*\()", "", written(value))


def places_of(params: Params) -> Callable[[Any], str]:
    """Return a function that finds the path of a part of ``params``.

    The part is identified by the identity of its leaves. The path is "" for the whole,
    and for a tree that contains no part of ``params``.
    """
    paths: dict[Any, str] = {}

    def note(node: Any, path: tuple[str, ...]) -> None:
        paths.setdefault(_identity(node), "/".join(path))
        children, tree = jax.tree_util.tree_flatten_with_path(
            node, is_leaf=lambda inner: inner is not node
        )
        if not jax.tree_util.treedef_is_leaf(tree):
            for step, child in children:
                note(
                    child,
                    (
                        *path,
                        *(
                            str(jax.tree_util.keystr((key,), simple=True))
                            for key in step
                        ),
                    ),
                )

    def find(part: Any) -> str:
        if jax.tree.leaves(part) and _identity(part) in paths:
            return paths[_identity(part)]
        children, _ = jax.tree_util.tree_flatten(
            part, is_leaf=lambda inner: inner is not part
        )
        inside = (find(child) for child in children if child is not part)
        return next((place for place in inside if place), "")

    note(params, ())
    return find


def _identity(node: Any) -> Any:
    """Return a key of a tree: its structure and the identity of its leaves."""
    return (jax.tree.structure(node), *map(id, jax.tree.leaves(node)))
