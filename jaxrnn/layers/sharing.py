"""Parameters that several places of a network share.

A place is a `tied` layer with a name; `share` is the layer that holds the parameters.
Where `share` stands says which places belong together, and its parameters hold one
entry for each name. A place holds ``{"tied:name": {}}`` in their stead, so that it is
found in any tree of parameters, whichever layers lie between. Before the layers inside
are called, the shared parameters are put in their places; the gradient of an entry is
then the sum over its places, by the usual rules.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
from jax.typing import DTypeLike
from jaxtyping import Array

from ..core.cell import Cell
from ..core.layer import Layer, check_cell
from ..core.types import Carry, Inputs, Params, PyTree
from ..core.unroll_spec import UnrollSpec
from ..core.validation import describe_tree
from ..unrolling import unroll_unchecked
from .compose import check_parts, init_in, output_size

PREFIX = "tied:"


def tied(name: str, layer: Cell | Layer) -> Tied:
    """Name a place of a network whose parameters are shared by all places so named.

    The places stand inside one `share`. They have one set of parameters and a carry
    each. The layers at the places may differ in whatever leaves their parameters alike.

    Args:
        name: the name that the places have in common.
        layer: a cell or layer.

    Returns:
        A layer for `stack`, or any other layer inside `share`.

    Raises:
        TypeError: if ``name`` is no string, or ``layer`` no cell or layer.

    Example::

        >>> import jax, jaxrnn
        >>> core = jaxrnn.layers.tied("core", jaxrnn.GRU(4))
        >>> layer = jaxrnn.layers.share(jaxrnn.stack(jaxrnn.LSTM(4), core, core))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> sorted(params["shared"]), params["layer"]["layer_1"]
        (['core'], {'tied:core': {}})
    """
    check_cell(layer)
    if not isinstance(name, str) or not name:
        raise TypeError(f"tied: the name must be a string, but it is {name!r}")
    return Tied(name, layer)


def share(layer: Layer) -> Share:
    """Hold one set of parameters for all places in ``layer`` that are `tied` alike.

    Parameters: ``{"shared": {name: ...}, "layer": ...}``; those of ``layer`` hold
    ``{"tied:name": {}}`` at the tied places. Carry and outputs are those of ``layer``.

    Args:
        layer: a layer that contains tied places at any depth: in stacks of stacks, in
            both directions of a `bidirectional` layer, or in layers of your own whose
            parameters are dicts, lists or tuples. A `share` inside it keeps its own
            names to itself.

    Returns:
        A layer for `unroll` and `stack`. Its ``init`` raises ValueError if two places
        of one name need parameters of different structures or shapes.

    Raises:
        TypeError: if ``layer`` is no layer.

    Example::

        >>> import jax, jaxrnn
        >>> both = jaxrnn.layers.tied("both", jaxrnn.GRU(4))
        >>> layer = jaxrnn.layers.share(jaxrnn.bidirectional(both, both))
        >>> params = layer.init(jax.random.key(0), input_size=3)
        >>> jaxrnn.unroll(layer, params, jax.numpy.ones((5, 2, 3)))[1].shape
        (5, 2, 8)
    """
    check_cell(layer)
    return Share(layer)


# Whether a `share` is making its parameters: only then may a tied place make some.
_SHARING: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "jaxrnn_sharing", default=False
)


@contextlib.contextmanager
def _sharing() -> Iterator[None]:
    token = _SHARING.set(True)
    try:
        yield
    finally:
        _SHARING.reset(token)


@dataclasses.dataclass(frozen=True)
class Tied(Layer):
    """The layer that `tied` builds: a place whose parameters a `share` around it holds.

    Attributes:
        name: the name that the places have in common.
        layer: the cell or layer at this place.

    Example:
        >>> import jax, jaxrnn
        >>> place = jaxrnn.layers.tied("core", jaxrnn.GRU(4))
        >>> place.name, place.layer == jaxrnn.GRU(4)
        ('core', True)
        >>> place.init(jax.random.key(0), input_size=3)
        Traceback (most recent call last):
        ValueError: tied('core', ...) stands in no share, ...
    """

    name: str
    layer: Cell | Layer
    reads_inputs: ClassVar[bool] = False

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        if not _SHARING.get():
            raise ValueError(
                f"tied({self.name!r}, ...) stands in no share, so nothing says which "
                f"places have its parameters: wrap the whole network, "
                f"jaxrnn.layers.share(jaxrnn.stack(...))"
            )
        return {PREFIX + self.name: init_in(self.layer, key, input_size, dtype)}

    def check(self, params: Params) -> None:
        self.layer.check(self._own(params))

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        return self.layer.initial_carry(self._own(params), batch_shape, dtype)

    def unroll(
        self, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        return unroll_unchecked(self.layer, self._own(params), carry, xs, spec)

    def output_features(self, params: Params, input_size: int) -> int | None:
        return output_size(self.layer, self._own(params), input_size)

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        return self.layer.output(self._own(params), carry, x)

    def _own(self, params: Params) -> Params:
        """Return the parameters of the layer at this place."""
        key = PREFIX + self.name
        if not isinstance(params, dict) or set(params) != {key}:
            raise TypeError(
                f"tied({self.name!r}, ...): its params are a dict of [{key!r}], but "
                f"got {describe_tree(params)}: init of the share around it makes the "
                f"right ones"
            )
        return params[key]


@dataclasses.dataclass(frozen=True)
class Share(Layer):
    """The layer that `share` builds, which holds the parameters of its tied places.

    Attributes:
        layer: the layer that contains the places.

    Example:
        >>> import jaxrnn
        >>> both = jaxrnn.layers.tied("both", jaxrnn.GRU(4))
        >>> layer = jaxrnn.layers.share(jaxrnn.bidirectional(both, both))
        >>> jaxrnn.summary(layer, input_size=3).parameters
        100
        >>> jaxrnn.summary(jaxrnn.bidirectional(jaxrnn.GRU(4)), input_size=3).parameters
        200
    """

    layer: Layer | Cell
    reads_inputs: ClassVar[bool] = False

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        with _sharing():
            params = init_in(self.layer, key, input_size, dtype)
        shared: dict[str, Params] = {}
        return {"layer": _lifted(params, shared), "shared": shared}

    def check(self, params: Params) -> None:
        if not isinstance(params, dict) or set(params) != {"layer", "shared"}:
            check_parts(self, params, {"layer": self.layer, "shared": self.layer})
        self.layer.check(self._inside(params))

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        return self.layer.initial_carry(self._inside(params), batch_shape, dtype)

    def unroll(
        self, params: Params, carry: Carry, xs: Inputs, spec: UnrollSpec
    ) -> tuple[Carry, Any, Carry]:
        return unroll_unchecked(self.layer, self._inside(params), carry, xs, spec)

    def output_features(self, params: Params, input_size: int) -> int | None:
        return output_size(self.layer, self._inside(params), input_size)

    def output(self, params: Params, carry: Carry, x: Inputs) -> Any:
        return self.layer.output(self._inside(params), carry, x)

    def _inside(self, params: Params) -> Params:
        """Return the parameters of the layer, the shared ones in their places."""
        return _filled(params["layer"], params["shared"])


def _name_of(node: Any) -> str | None:
    """Return the name of a tied place in a tree of parameters, or None."""
    if not isinstance(node, dict) or len(node) != 1:
        return None
    (key,) = node
    return (
        key.removeprefix(PREFIX)
        if isinstance(key, str) and key.startswith(PREFIX)
        else None
    )


def _lifted(params: Params, shared: dict[str, Params]) -> Params:
    """Take the parameters of tied places out of a tree, into ``shared``."""

    def lift(node: Any) -> Any:
        name = _name_of(node)
        # A place without parameters has none to share, or a share inside holds them.
        if name is None or not jax.tree.leaves(node):
            return node
        own = _lifted(node[PREFIX + name], shared)
        if name in shared and _shapes(shared[name]) != _shapes(own):
            raise ValueError(
                f"share: the places tied by the name {name!r} need equal parameters, "
                f"but one has {describe_tree(shared[name])} and another "
                f"{describe_tree(own)}: they need layers of equal sizes and equally "
                f"many input features, or names of their own"
            )
        shared.setdefault(name, own)
        return {PREFIX + name: {}}

    return jax.tree.map(lift, params, is_leaf=lambda node: _name_of(node) is not None)


def _filled(params: Params, shared: dict[str, Params]) -> Params:
    """Put shared parameters in their places: the inverse of `_lifted`."""

    def fill(node: Any) -> Any:
        name = _name_of(node)
        if name is None or name not in shared:
            return node
        return {PREFIX + name: _filled(shared[name], shared)}

    return jax.tree.map(fill, params, is_leaf=lambda node: _name_of(node) is not None)


def _shapes(tree: PyTree) -> Any:
    """Return what must agree between the parameters of two places."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
