"""One step under a held input, as a map of real vectors: what fixed points are of."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.real_vectors import check_inexact, features, from_features
from ..core.types import Carry, Context, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import describe_tree, lead_ndim
from ..unrolling import validate
from .transition import Transition, check_supported, with_context

HELD = (
    "fixed points are those of real numbers: name a counter in held=, a pytree of "
    "bools like the carry that is True there, or measure a cell without it"
)


@dataclasses.dataclass(frozen=True)
class HeldStep:
    """The map v -> F(v, x) of the free parts of a carry, as one vector of n numbers.

    Attributes:
        cell: a cell, or a causal layer without randomness.
        held: for each leaf of the carry, whether it stays as it is.
    """

    cell: Cell | Layer
    held: tuple[bool, ...]

    def vector(self, carry: Carry, batch_ndim: int = 0) -> Float[Array, "*B n"]:
        """Return the free parts of a carry as real vectors."""
        return features(self._free(carry), batch_ndim)

    def carry(self, vector: Array, like: Carry) -> Carry:
        """Return ``like`` with its free parts out of one vector: undoes `vector`."""
        free = iter(from_features(vector, self._free(like), 0))
        leaves, structure = jax.tree.flatten(like)
        parts = zip(leaves, self.held, strict=True)
        merged = [a if held else next(free) for a, held in parts]
        return jax.tree.unflatten(structure, merged)

    def __call__(self, params: Params, x: Inputs, vector: Array, like: Carry) -> Array:
        """Return F of one vector, whose held parts are those of ``like``."""
        transition = Transition(self.cell)
        z = transition.prepare(params, jax.tree.map(lambda a: a[None], x))
        z = jax.tree.map(lambda a: a[0], z)
        return self.vector(transition.step(params, self.carry(vector, like), z))

    def _free(self, carry: Carry) -> list[Array]:
        leaves = zip(jax.tree.leaves(carry), self.held, strict=True)
        return [leaf for leaf, held in leaves if not held]


class Asked(NamedTuple):
    """Checked arguments: the map, its parameters and input, and states ``(S, ...)``."""

    step: HeldStep
    params: Params
    x: Inputs
    states: Carry


def asked(
    what: str,
    cell: Cell | Layer,
    params: Params,
    x: Inputs,
    states: Carry,
    held: Any,
    context: Context,
) -> Asked:
    """Check the arguments of a diagnostic of one held input.

    ``what`` is the name of the diagnostic, for error messages.
    """
    check_supported(cell, what)
    x = jax.tree.map(jnp.asarray, x)
    if lead_ndim(x, cell.feature_ndim) != 0:
        raise ValueError(
            f"{what}: x must be one input, (D,), without axes for time or batch, but "
            f"it is {describe_tree(x)}: give x[t, b] of a sequence, or jnp.zeros(D)"
        )
    xs = jax.tree.map(lambda a: a[None], x)
    cell, params = with_context(cell, params, xs, context, None, what)
    states = jax.tree.map(jnp.asarray, states)
    leads = {a.shape[:1] for a in jax.tree.leaves(states)}
    if len(leads) > 1 or () in leads or (0,) in leads:
        raise ValueError(
            f"{what}: the states must be a carry with one leading axis, (S, ...) per "
            f"leaf, of at least one state, but they are {describe_tree(states)}"
        )
    first = jax.tree.map(lambda a: a[0], states)
    params, _ = validate(cell, params, xs, first, UnrollSpec(None))
    flags = _flags(what, first, held)
    if not leads or all(flags):
        raise ValueError(
            f"{what}: {type(cell).__name__} has no carry that is free to move, so "
            f"there is no recurrence whose fixed points could be found"
        )
    free = [
        (jax.tree_util.keystr(path), leaf)
        for (path, leaf), is_held in zip(
            jax.tree_util.tree_leaves_with_path(first), flags, strict=True
        )
        if not is_held
    ]
    for name, leaf in free:
        check_inexact(f"{what}: the carry{name}", leaf, HELD)
    return Asked(HeldStep(cell, flags), params, x, states)


def _flags(what: str, carry: Carry, held: Any) -> tuple[bool, ...]:
    """Return for each leaf whether it is held."""
    if held is None:
        return (False,) * len(jax.tree.leaves(carry))
    try:
        flags = jax.tree.leaves(jax.tree.broadcast(held, carry))
    except ValueError:
        flags = [None]
    if any(not isinstance(flag, bool) for flag in flags):
        raise ValueError(
            f"{what}: held must be True or False for every part of the carry, "
            f"{describe_tree(carry)}, as a pytree of bools like it or a prefix of it, "
            f"but it is {held!r}"
        )
    return tuple(flags)
