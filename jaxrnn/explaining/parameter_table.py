"""`summary`: the parameters of a layer, cell by cell."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ..core.cell import Cell
from ..core.layer import Layer, check_cell
from ..core.records import fields_of
from ..core.types import Params, PyTree
from ..core.validation import check_input_size, describe_tree
from .table import brief

WIDTH = 88


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """The parameters of one cell or layer.

    Attributes:
        place: the path of its parameters among those of the whole, such as
            "layer_0/forward"; "" for the whole.
        cell: the cell or layer, as one would write it.
        shapes: the shape of each parameter by its path below ``place``.
        parameters: the number of parameters.
        bytes: the bytes that they take.
        share: the part of all parameters, between 0 and 1.

    Example:
        >>> import jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.Elman(4), jaxrnn.layers.dense(2))
        >>> row = jaxrnn.summary(layer, input_size=3).rows[1]
        >>> row.place, row.shapes, row.parameters
        ('layer_1', {'bias': (2,), 'kernel': (4, 2)}, 10)
        >>> f"{row.share:.2f}"  # of 42 parameters
        '0.24'
    """

    place: str
    cell: str
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    bytes: int
    share: float


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """The parameters of a layer; it prints as a table.

    Attributes:
        title: the layer, as one would write it.
        rows: a `SummaryRow` for each cell, and for each layer with parameters of its
            own or without parts, in the order of their parameters' initialization.

    Example:
        >>> import jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.Elman(4), jaxrnn.layers.dense(2))
        >>> print(jaxrnn.summary(layer, input_size=3))
        Stack(layers=(Elman(hidden_size=4), Dense(features=2)))
        place    parameters  bytes   share
        layer_0          32    128   76.2%
            Elman(hidden_size=4)
            bias (4,), input_kernel (3,4), recurrent_kernel (4,4)
        layer_1          10     40   23.8%
            Dense(features=2)
            bias (2,), kernel (4,2)
        total            42    168  100.0%
    """

    title: str
    rows: tuple[SummaryRow, ...]

    @property
    def parameters(self) -> int:
        """The number of all parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def bytes(self) -> int:
        """The bytes of all parameters."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        numbers = [(r.place, r.parameters, r.bytes, r.share) for r in self.rows]
        numbers.append(("total", self.parameters, self.bytes, 1.0))
        cells = [
            ("place", "parameters", "bytes", "share"),
            *(
                (place, f"{count:,}", f"{size:,}", f"{share:.1%}")
                for place, count, size, share in numbers
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"{first:<{widths[0]}}  " + "  ".join(map(str.rjust, rest, widths[1:]))
            for first, *rest in cells
        ]
        written = [_wrapped(self.title, "  "), lines[0]]
        for line, row in zip(lines[1:-1], self.rows, strict=True):
            shapes = ", ".join(
                f"{name} {str(shape).replace(' ', '')}"  # so that no line ends in it
                for name, shape in row.shapes.items()
            )
            written += [line, _wrapped(f"    {row.cell}", " " * 6)]
            written += [_wrapped(f"    {shapes}", " " * 6)] if shapes else []
        return "\n".join([*written, lines[-1]])

    def __repr__(self) -> str:
        return str(self)


def _wrapped(text: str, indent: str) -> str:
    """Break a text into lines."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False)


def summary(
    layer: Cell | Layer, params: Params = None, input_size: int | None = None
) -> Summary:
    """List the parameters of a cell or layer: places, shapes, numbers and bytes.

    Nothing is computed: ``init`` is traced, and each parameter is counted for the
    innermost cell or layer whose ``init`` made it. Parameters that several places share
    are counted once.

    Args:
        layer: a cell or layer.
        params: its parameters, or their ``jax.ShapeDtypeStruct`` (default: those that
            ``init`` makes for ``input_size``).
        input_size: D, the number of input features; with ``params`` it is found by
            their shapes.

    Returns:
        A `Summary`, which prints as a table; ``rows`` holds it as data.

    Raises:
        TypeError: if ``layer`` is none, or neither ``params`` nor ``input_size`` is
            given.
        ValueError: if ``params`` are not those of the layer.

    Example:
        >>> import jaxrnn
        >>> layer = jaxrnn.stack(jaxrnn.GRU(8), jaxrnn.bidirectional(jaxrnn.LSTM(4)))
        >>> found = jaxrnn.summary(layer, input_size=3)
        >>> [(row.place, row.cell, row.parameters) for row in found.rows][:2]
        [('layer_0', 'GRU(hidden_size=8)', 296), ('layer_1/forward', 'LSTM(hidden_size=4)', 208)]
        >>> found.parameters, found.bytes
        (712, 2848)
    """  # noqa: E501
    check_cell(layer)
    if params is None and input_size is None:
        raise TypeError(
            "summary needs the parameters, or the number of input features from which "
            "init makes them: summary(layer, params) or summary(layer, input_size=3)"
        )
    if input_size is not None:
        check_input_size(layer, input_size)
    own, made = _made(layer, params, input_size)
    arrays = dict(_named(made if params is None else params))
    total = sum(map(_count, arrays.values()))
    rows = []
    for place, part, names in own:
        held = {name: arrays[name] for name in names}
        below = len(place) + 1 if place else 0
        rows.append(
            SummaryRow(
                place,
                brief(part),
                {name[below:]: tuple(a.shape) for name, a in held.items()},
                sum(map(_count, held.values())),
                sum(_count(a) * jnp.dtype(a.dtype).itemsize for a in held.values()),
                sum(map(_count, held.values())) / total if total else 0.0,
            )
        )
    return Summary(brief(layer), tuple(rows))


# A place, the part there, and the names of the parameters that are its own.
_Own = list[tuple[str, Cell | Layer, list[str]]]


def _made(
    layer: Cell | Layer, params: Params, input_size: int | None
) -> tuple[_Own, PyTree]:
    """Trace ``init`` for the input size that gives ``params``."""
    if params is None:
        return _traced(layer, input_size)
    want = _shapes(params)
    # A layer without parameters, as a shift, may name the number of its inputs itself.
    sizes = sorted({1, *(s for shape in want.values() for s in shape), *_ints(layer)})
    for size in sizes if input_size is None else [input_size]:
        try:
            own, made = _traced(layer, size)
        except (TypeError, ValueError):  # a size that the layer does not take
            continue
        if _shapes(made) == want:
            return own, made
    raise ValueError(
        f"summary: these are not the parameters of {brief(layer)}: no number of input "
        f"features gives {describe_tree(params)}; pass what init returned"
        if input_size is None
        else f"summary: for {input_size} input features init does not make these "
        f"parameters, {describe_tree(params)}; pass what init returned, or leave out "
        f"input_size"
    )


def _ints(value: Any) -> Iterator[int]:
    """Yield the positive whole numbers in the fields of a layer and of its parts."""
    if type(value) is int and value > 0:
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _ints(item)
    elif isinstance(value, (Cell, Layer)):
        for item in fields_of(value).values():
            yield from _ints(item)


def _traced(layer: Cell | Layer, input_size: Any) -> tuple[_Own, PyTree]:
    """Trace ``init``, and return what each part made."""
    seen: list[tuple[Cell | Layer, PyTree]] = []
    found: _Own = []

    def init(key):
        made = _watched(layer, seen).init(key, input_size)
        found[:] = _places(made, seen)
        return made

    return found, jax.eval_shape(init, jax.random.key(0))


def _watched(part: Any, seen: list[tuple[Any, PyTree]]) -> Any:
    """Return a copy of a cell or layer that notes what ``init`` returns, inside too.

    It is an object of a subclass, so that whoever asks for its class is answered.
    """
    if isinstance(part, tuple) and type(part) is tuple:
        return tuple(_watched(item, seen) for item in part)
    if not isinstance(part, (Cell, Layer)):
        return part
    kind: Any = type(part)

    def init(self: Any, *args: Any, **options: Any) -> Params:
        made = kind.init(self, *args, **options)
        seen.append((part, made))
        return made

    copy: Any = object.__new__(type(kind.__name__, (kind,), {"init": init}))
    for name, value in fields_of(part).items():
        inside = _watched(value, seen) if isinstance(part, Layer) else value
        object.__setattr__(copy, name, inside)
    return copy


def _places(made: PyTree, seen: list[tuple[Any, PyTree]]) -> _Own:
    """Return where the trees that parts made stand in the whole, and what is their own.

    Parts come before what they are in. What is not in the whole, because another place
    shares it, is left out.
    """
    names = {id(leaf): name for name, leaf in _named(made)}
    nodes = {id(node): place for place, node in _nodes(made)}
    taken: set[int] = set()
    found: _Own = []
    for part, tree in seen:
        leaves = [leaf for leaf in jax.tree.leaves(tree) if id(leaf) in names]
        own = [leaf for leaf in leaves if id(leaf) not in taken]
        has_parts = isinstance(part, Layer) and len(leaves) > len(own)
        if (own or not has_parts) and (leaves or id(tree) in nodes):
            paths = [names[id(leaf)] for leaf in own]
            place = nodes.get(id(tree), _common(paths))
            found.append((place, part, paths))
        taken.update(map(id, own))
    return found


def _common(paths: list[str]) -> str:
    """Return the folder in which all paths are."""
    words = [path.split("/")[:-1] for path in paths]
    shared = []
    for step in zip(*words, strict=False):
        if len(set(step)) > 1:
            break
        shared.append(step[0])
    return "/".join(shared)


def _path(keys: tuple[Any, ...]) -> str:
    """Return a path in a pytree as words between slashes."""
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in keys)


def _named(tree: PyTree) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree with their paths."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield _path(keys), leaf


def _nodes(tree: PyTree) -> Iterator[tuple[str, Any]]:
    """Yield all containers of a tree with their paths, the whole first."""
    yield "", tree
    inner: Callable[[Any], bool] = lambda node: node is not tree  # noqa: E731
    children = jax.tree_util.tree_leaves_with_path(tree, is_leaf=inner)
    for keys, child in children:
        if child is not tree:
            for place, node in _nodes(child):
                yield "/".join(filter(None, (_path(keys), place))), node


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by its path."""
    return {name: tuple(jnp.shape(leaf)) for name, leaf in _named(params)}


def _count(array: Any) -> int:
    """Return the number of elements of an array."""
    return math.prod(jnp.shape(array))
