"""Checks of what the methods of a `StateSpaceCell` return."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.types import PyTree
from ..core.validation import describe, describe_tree


def check_affine(cell: Any, pair: Any, state: PyTree) -> tuple[Any, Any]:
    """Check that ``affine`` returned two trees that fit the state.

    Raises:
        TypeError: if they are no pair, or not like the state.
        ValueError: if an array has the wrong shape.
    """
    name = f"{type(cell).__name__}.affine"
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(
            f"{name} must return a pair (a, b), with s_t = a * s_(t-1) + b, but it "
            f"returns {describe_tree(pair)}"
        )
    for letter, tree in zip("ab", pair, strict=True):
        structure: Any = jax.tree.structure(tree)
        if structure != jax.tree.structure(state):
            raise TypeError(
                f"{name}: {letter} must be a tree like the state, "
                f"{describe_tree(state)}, but it is {describe_tree(tree)}"
            )
        for x, s in zip(jax.tree.leaves(tree), jax.tree.leaves(state), strict=True):
            if not _broadcasts(jnp.shape(x), s.shape):
                raise ValueError(
                    f"{name}: {letter} must broadcast against the state {s.shape}, "
                    f"behind the leading axes of z, but its shape is {jnp.shape(x)}: "
                    f"write for example z[..., None] for an axis of state variables"
                )
    return pair[0], pair[1]


def _broadcasts(shape: tuple[int, ...], state: tuple[int, ...]) -> bool:
    """Whether the last axes of an array broadcast to those of the state."""
    last = shape[max(len(shape) - len(state), 0) :]
    want = state[len(state) - len(last) :]
    return all(size in (1, wanted) for size, wanted in zip(last, want, strict=True))


def check_read(cell: Any, y: Any, batch: tuple[int, ...]) -> Array:
    """Check that ``read`` returned one vector for every state.

    Raises:
        TypeError: if it is no array.
        ValueError: if it has the wrong leading axes.
    """
    name = f"{type(cell).__name__}.read"
    if not isinstance(y, jax.Array):
        raise TypeError(
            f"{name} must return an array (..., features), but it returns {describe(y)}"
        )
    end = y.ndim - 1
    if end < len(batch) or y.shape[end - len(batch) : end] != batch:
        raise ValueError(
            f"{name} must return an array with the leading axes of the state, which "
            f"end in {batch}, and one axis of features, but its shape is {y.shape}"
        )
    return y


def check_shown(cell: Any, hs: Any, shape: tuple[int, ...]) -> Array:
    """Check that ``readout`` returned h.

    Raises:
        ValueError: if it has the wrong shape.
    """
    if not isinstance(hs, jax.Array) or hs.shape != shape:
        raise ValueError(
            f"{type(cell).__name__}.readout must return h {shape}, as initial_carry "
            f"says, but it returns {describe(hs)}"
        )
    return hs
