"""What `jaxrnn.explain` says, as rows and as a table, and the names of the parts of
a layer in it.
"""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Callable
from typing import Any

import jax

from .execution import ExecutionPath

WIDTH = 118


@dataclasses.dataclass(frozen=True)
class Row:
    """A cell on a platform.

    ``place`` is where the cell's parameters are in the layer's, "layer_0/forward", or
    "" for a cell by itself; ``engine``, as one would name it, and ``why`` that one. The
    ways are `ExecutionPath`: ``forward`` without a gradient; ``recording`` and
    ``backward``, forwards and backwards for one; ``kernel``: what `jaxrnn.Fused` would
    do. ``number`` counts the cells in the order of walking.
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

    @property
    def error(self) -> str | None:
        """What compiling for the platform raises, forwards or else for the gradient."""
        return next(
            (
                way.reason
                for way in (self.forward, self.recording, self.backward)
                if way.kind == "error"
            ),
            None,
        )

    def lines(self) -> list[tuple[str, str]]:
        """What is printed of it: pairs of a word and a text."""
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
        found = (
            [("both ways", forward)]
            if forward == gradient
            else [("forward", forward), ("gradient", gradient)]
        )
        if self.forward.kind != "kernel":
            found.append(("with Fused", self._by_kernel()))
        return found

    def _by_kernel(self) -> str:
        if self.kernel.kind == "kernel":
            return f"one kernel ({self.kernel.reason})"
        short = self.kernel.reason.partition(": use ")[0].partition(". Use ")[
            0
        ]  # what to do instead is done
        return (
            f"no kernel: {short.removeprefix('ValueError: ').removeprefix('Fused: ')}"
        )


def _sentence(way: ExecutionPath) -> str:
    return f"{way} ({way.reason})" if way.reason else str(way)


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """Which engine walks where: ``rows``, by cell in the order of walking, then by
    platform; a table when printed.
    """

    title: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        lines = textwrap.wrap(self.title, WIDTH)
        if not self.rows:
            lines.append("no cell of it is walked by an engine")
        cells: dict[Any, list[str]] = {}  # those of which the same is true together
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
    """A cell's rows, platforms of which the same is true together."""
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


def brief(value: Any) -> str:
    """``repr`` without the fields that are as by default."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(brief, value))})"
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    fields = [
        f
        for f in dataclasses.fields(value)
        if f.repr and not _as_by_default(f, getattr(value, f.name))
    ]
    return f"{type(value).__name__.lstrip('_')}({', '.join(f'{f.name}={brief(getattr(value, f.name))}' for f in fields)})"  # noqa: E501


def _as_by_default(field: Any, value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return type(field.default) is type(value) and field.default == value
    return (
        field.default_factory is not dataclasses.MISSING
        and field.default_factory() == value
    )


def places_of(params: Any) -> Callable[[Any], str]:
    """Finds a part of ``params``, told by the identity of its leaves, and gives its
    path; "" for the whole, and where what is asked for holds none of them.
    """
    known: dict[Any, str] = {}

    def note(node: Any, path: tuple[str, ...]) -> None:
        known.setdefault(_identity(node), "/".join(path))
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
        if jax.tree.leaves(part) and _identity(part) in known:
            return known[_identity(part)]
        children, _ = jax.tree_util.tree_flatten(
            part, is_leaf=lambda inner: inner is not part
        )
        inside = (find(child) for child in children if child is not part)
        return next((place for place in inside if place), "")

    note(params, ())
    return find


def _identity(node: Any) -> Any:
    return (jax.tree.structure(node), *map(id, jax.tree.leaves(node)))
