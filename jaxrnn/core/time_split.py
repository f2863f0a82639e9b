"""Time that is split over the devices of a mesh axis, and what they send each other.

Device d of n holds the steps of the d-th stretch of time, as inside ``jax.shard_map``.
A stretch maps the carry before its first step to the carry after its last one. Where
such a map is known by a few arrays, whatever its length, the devices exchange those and
compose them: each finds the carry that enters its own stretch, and no step is sent.

The order of the stretches is that in which the steps run, so that with ``reverse`` the
last device comes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .flags import expand_flags
from .foreign import varying_axes
from .types import Carry, PyTree

AUTO, GATHER, PERMUTE = "auto", "gather", "permute"
# Devices up to which everybody is sent every map: one collective of n maps a device.
# Above, log2 n permutes of one map each.
MOST_GATHERED = 64

Axis = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TimeSplit:
    """The mesh axis over which time is split, and how maps are exchanged.

    Args:
        axis: the name of the axis, or a tuple of names.
        exchange: ``"gather"``, ``"permute"``, or ``"auto"`` to choose by the number of
            devices.
    """

    axis: Axis
    exchange: str = AUTO

    @property
    def size(self) -> int:
        """The number of devices on the axis.

        Raises:
            ValueError: if there is no such axis where it is asked for.
        """
        try:
            return jax.lax.axis_size(self.axis)
        except NameError:
            raise ValueError(
                f"Across: there is no mesh axis {self.axis!r} here: call unroll inside "
                f"jax.shard_map over a mesh with that axis, as in jax.shard_map(f, "
                f"mesh=jax.make_mesh((8,), ({self.axis!r},)), in_specs=..., "
                f"out_specs=..., check_vma=False)"
            ) from None

    @property
    def gathers(self) -> bool:
        """Whether every device is sent every map."""
        if self.exchange == AUTO:
            return self.size <= MOST_GATHERED
        return self.exchange == GATHER

    def check(self, values: PyTree) -> None:
        """Check that the axis is there, and that arrays can be sent along it.

        Raises:
            ValueError: if not.
        """
        size = self.size
        if any(varying_axes(jax.typeof(leaf)) for leaf in jax.tree.leaves(values)):
            raise ValueError(
                f"Across: jax.shard_map checks here over which axes values vary "
                f"(check_vma=True, its default), which the derivative of a time split "
                f"over the {size} devices of {self.axis!r} does not follow: pass "
                f"check_vma=False"
            )

    def rank(self, reverse: bool) -> Array:
        """Return this device's place in the order of the stretches, from 0."""
        index = jax.lax.axis_index(self.axis)
        return self.size - 1 - index if reverse else index

    def sends(self, by: int, reverse: bool, begin: int = 0) -> list[tuple[int, int]]:
        """Return who sends whom, if all places from ``begin`` send ``by`` places on."""
        last = self.size - 1

        def device(place: int) -> int:
            return last - place if reverse else place

        return [(device(p), device(p + by)) for p in range(begin, last + 1 - by)]

    def carry_before(
        self,
        stretch: PyTree,
        first: Carry,
        join: Callable[[Any, Any], Any],
        apply: Callable[[Any, Any], Any],
        reverse: bool,
    ) -> Any:
        """Return the carry before the first step of this device's stretch.

        With ``"gather"`` it is one collective operation, with ``"permute"`` one and
        ``log2(n - 1)`` more (Hillis & Steele 1986). Their bytes do not depend on T.

        Args:
            stretch: the map of this device's stretch.
            first: the carry before the first step of all, on every device.
            join: ``join(early, late)`` returns the map of two consecutive stretches.
            apply: ``apply(stretch, carry)`` returns the carry after a stretch.
            reverse: whether the steps run from the last to the first.
        """
        if self.size == 1:
            return first
        by = _by_gather if self.gathers else _by_permutes
        return by(self, stretch, first, join, apply, reverse)

    def of_last(self, tree: PyTree, reverse: bool) -> Any:
        """Return what the last device in the order of the stretches has."""
        return self.sum(self.kept(self.rank(reverse) == self.size - 1, tree))

    def kept(self, chosen: Array, tree: PyTree) -> Any:
        """Return the arrays of the device that is ``chosen``, at all or for a row
        ``(*B)``, and zeros on all others: their `sum` is what the chosen one has.
        """
        if self.size == 1:
            return tree
        return jax.tree.map(
            lambda leaf: jnp.where(
                expand_flags(chosen, leaf) if chosen.ndim else chosen,
                leaf,
                jnp.zeros_like(leaf),
            ),
            tree,
        )

    def sum(self, tree: PyTree) -> Any:
        """Return the sums over the devices, by one all-reduce for all arrays."""
        if self.size == 1:
            return tree
        return unpacked(jax.lax.psum(packed(tree), self.axis), tree)

    def latest(self, happened: Array, reverse: bool) -> Array:
        """Return, for each row ``(*B)``, whether this device is the last of all on
        which something ``happened``.
        """
        if self.size == 1:
            return happened
        rank = self.rank(reverse).astype(jnp.int32)
        place = jnp.where(happened, rank, jnp.full_like(rank, -1))
        return (jax.lax.pmax(place, self.axis) == place) & happened

    def row_before(self, rows: Array, reverse: bool, at_start: Any) -> Array:
        """Return the row before the first one of this device's stretch.

        Args:
            rows: ``(T, ...)``.
            reverse: whether the steps run from the last to the first.
            at_start: what the first device of all gets.
        """
        last, start = rows[0 if reverse else -1], jnp.asarray(at_start, rows.dtype)
        if self.size == 1:
            return jnp.full_like(last, start)
        sent = jax.lax.ppermute(last, self.axis, self.sends(1, reverse))
        return jnp.where(self.rank(reverse) == 0, jnp.full_like(sent, start), sent)


def packed(tree: PyTree) -> Array:
    """Return all arrays in one real vector, so that one operation sends them.

    Its dtype is the widest real one among them. Flags and counts are numbers in it.
    """
    leaves = [part for leaf in jax.tree.leaves(tree) for part in _real_parts(leaf)]
    floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = max(floats, key=lambda d: jnp.finfo(d).bits, default=jnp.dtype(jnp.int32))
    return jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves])


def unpacked(vector: Array, like: PyTree) -> Any:
    """Return the arrays in a vector that `packed` has made of a tree like this."""
    leaves, structure = jax.tree.flatten(like)
    offset, found = 0, []
    for leaf in leaves:
        pieces = []
        for _ in _real_parts(leaf):
            pieces.append(vector[offset : offset + leaf.size].reshape(leaf.shape))
            offset += leaf.size
        whole = jax.lax.complex(*pieces) if len(pieces) == 2 else pieces[0]
        is_flag = leaf.dtype == jnp.bool_
        found.append(whole != 0 if is_flag else whole.astype(leaf.dtype))
    return jax.tree.unflatten(structure, found)


def _real_parts(leaf: Array) -> list[Array]:
    return [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]


def gathered(leaf: Array, axis: Axis) -> Array:
    """Return the arrays of all devices, ``(n, ...)``.

    They are joined along an axis that is there, ``tiled``: the derivative of the other
    form fails in JAX where it is mapped over (``vmap`` of ``grad``, jax 0.12).
    """
    return jax.lax.all_gather(leaf[None], axis, tiled=True)


def _by_gather(split, stretch, first, join, apply, reverse):
    """Compose the maps of all stretches before this one, which everybody is sent."""
    rank = split.rank(reverse)
    sent = gathered(packed(stretch), split.axis)
    sent = jnp.flip(sent, 0) if reverse else sent

    def advance(carry, now):
        place, vector = now
        # No branch: where XLA splits a batch over other axes it may put a collective
        # into one, which not all devices would take. What comes later may not be
        # finite, and must not reach a product, not even a derivative's.
        vector = jnp.where(place < rank, vector, jnp.zeros_like(vector))
        entered = apply(unpacked(vector, stretch), carry)
        return _chosen(place < rank, entered, carry), None

    # Nobody needs the last one.
    places = jnp.arange(split.size - 1, dtype=rank.dtype)
    return jax.lax.scan(advance, first, (places, sent[:-1]))[0]


def _by_permutes(split, stretch, first, join, apply, reverse):
    """Compose them by doubling: the map of 1, 2, 4, ... stretches is sent on."""
    rank = split.rank(reverse)

    def send(tree, by, begin=0):
        pairs = split.sends(by, reverse, begin)
        return unpacked(jax.lax.ppermute(packed(tree), split.axis, pairs), tree)

    # From now on the map of the stretch before, and of as many before that.
    before, known = send(stretch, 1), 1
    while known < split.size - 1:
        earlier = send(before, known, 1)
        before = _chosen(rank > known, join(earlier, before), before)
        known *= 2
    return _chosen(rank > 0, apply(before, first), first)


def _chosen(flag: Array, yes: PyTree, no: PyTree) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), yes, no)
