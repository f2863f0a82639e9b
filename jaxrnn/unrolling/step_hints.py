"""What may be wrong where ``project`` or ``step`` of a user's own cell fails."""

from __future__ import annotations

from typing import Any

import jax

from ..core.arrays import is_array
from ..core.cell import Cell, ContextCell, without_context
from ..core.layer import Layer
from ..core.types import Carry, Inputs, Params, PyTree
from ..core.validation import check_inputs

NO_CARRY = (
    "define initial_carry(self, params, batch_shape=(), dtype=None) that returns them"
)
# What arrays say of code that takes them for a carry of several parts.
_OF_PARTS = ("has no attribute", "string indexing", "unpack", "iterat")


def hint_of(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Inputs,
    method: str,
    error: Exception,
) -> str:
    """Say what may be wrong, given what ``project`` or ``step`` raised.

    The causes that are looked for are a missing ``initial_carry``, a carry without
    batch axes, pictures whose axes are taken for batch axes, parameters of another
    cell or input size, arguments in another order, and ``W @ x`` for ``x @ W``.

    Args:
        cell, params: the cell, and its parameters.
        carry: the carry before the first step.
        xs: the inputs, ``(T, *B, ...)``.
        method: the name of the method that failed.
        error: what it raised.
    """
    own = without_context(cell)
    name, said = type(own).__name__, str(error)
    of_parts = method == "step" and any(words in said for words in _OF_PARTS)
    if of_parts and has_default_carry(own):
        return (
            f"{name} defines no initial_carry, so its carry is one array of zeros, "
            f"{tuple(carry.shape)}: if step reads parts of it, {NO_CARRY}"
        )
    batch = batch_of(cell, xs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if batch and tuple(leaf.shape[: len(batch)]) != batch:
            return (
                f"{name}.initial_carry made {part_name(path)} without the batch axes "
                f"{batch}"
            )
    if len(batch) > 1 and cell.feature_ndim == 1:
        return (
            f"With feature_ndim = {cell.feature_ndim} {batch} are batch axes: for "
            f"pictures (T, *B, Y, X, C) set feature_ndim = 3 in the cell"
        )
    if cell.feature_ndim != 1 and has_default_carry(own):
        return (
            f"{name} defines no initial_carry, so its carry is one vector of zeros for "
            f"each input: define initial_carry(self, params, batch_shape=(), "
            f"dtype=None) that returns what the step takes"
        )
    if cell.feature_ndim != 1 and "convolution" in said and len(batch) != 1:
        return (
            f"A convolution takes one batch axis, and here the batch axes are {batch}: "
            f"reshape to x.reshape(-1, *x.shape[{len(batch)}:]) before it, and back "
            f"after it"
        )
    features = {leaf.shape[-1] for leaf in jax.tree.leaves(xs) if leaf.shape}
    if cell.feature_ndim != 1 or len(features) != 1:
        return ""
    size = features.pop()
    if not _are_of_init(cell, params, size):
        return f"Parameters for these inputs come of init(key, input_size={size})"
    if "convolution" in said and has_default_carry(own):
        return (
            f"With feature_ndim = 1 an input is a vector: for pictures (Y, X, C) set "
            f"feature_ndim = 3 in {name}, and {NO_CARRY}"
        )
    if method == "step" and _runs_swapped(cell, params, carry, xs):
        return (
            f"It runs with carry and z swapped: write {name}.step(self, params, carry, "
            f"z), the carry first"
        )
    if isinstance(error, KeyError):
        return ""
    order = "carry, z" if method == "step" else "x"
    return (
        f"Two common causes: W @ x for x @ W (features come last), and arguments of "
        f"{method} in another order than (self, params, {order})"
    )


def has_default_carry(cell: Cell) -> bool:
    """Whether the initial carry of a cell is one array of zeros, by default."""
    return type(cell).initial_carry is Cell.initial_carry


def looks_swapped(cell: Cell | Layer, params: Params, xs: Inputs, carry: Carry) -> bool:
    """Whether ``carry`` would do as the inputs, and ``xs`` as the carry for them."""
    if carry is None:
        return False
    try:
        batch = check_inputs(carry, cell.feature_ndim)[1:]
        expected = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)
        return _shapes(expected) == _shapes(xs)
    except Exception:  # whatever a user's initial_carry raises
        return False


def _are_of_init(cell: Cell, params: Params, input_size: int) -> bool:
    """Whether parameters have the names and shapes that ``init`` gives them."""
    own = without_context(cell)
    if isinstance(cell, ContextCell):
        params = params[0]
    try:
        made = jax.eval_shape(lambda: own.init(jax.random.key(0), input_size))
    except Exception:  # whatever a user's init raises
        return False
    return _shapes(made) == _shapes(params)


def _runs_swapped(cell: Cell, params: Params, carry: Carry, xs: Inputs) -> bool:
    """Whether the step returns a carry where the carry and z change places."""
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    try:
        new = jax.eval_shape(
            lambda p, s, x: cell.step(p, cell.project(p, x), s), params, carry, x
        )
    except Exception:  # whatever a user's step raises
        return False
    return _shapes(new) == _shapes(carry)


def _shapes(tree: PyTree) -> Any:
    return jax.tree.map(lambda leaf: str(jax.numpy.shape(leaf)), tree)


def batch_of(cell: Cell, xs: Inputs) -> tuple[int, ...]:
    """Return the batch axes of inputs that are one array; () for other inputs."""
    ndim = cell.feature_ndim
    if not is_array(xs) or not isinstance(ndim, int):
        return ()
    return tuple(xs.shape[1 : xs.ndim - ndim])


def part_name(path: Any) -> str:
    """Return what an error calls a leaf of the carry."""
    return f"part {jax.tree_util.keystr(path)} of the carry" if path else "the carry"
