"""What a stretch of steps makes of any state that enters it, as one map.

Devices that split time exchange these maps instead of steps. The map of a matrix state
is ``S -> A S + S'``, where S' is the state that the stretch makes of zero, and A::

    diagonal, exp of a sum of decays    where nothing is erased
    the same after a rotation           with turns
    a matrix (d_k, d_k) a head          where something is erased

In the last case A is what the steps make of the identity if they write nothing, so that
it is computed as d_k more columns of values. A state that is multiplied elementwise has
an A like itself. After a reset nothing of what entered is left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.flags import expand_flags, select
from ..core.types import PyTree
from .inverse import exact_matmul
from .terms import MatrixMemory, bounded_exp, is_empty, rotate_keys


class Entering(NamedTuple):
    """What enters a stretch.

    Attributes:
        state: the state, ``(*B, ...)`` per leaf.
        spoiled: ``(*B)``, whether it is NaN because inputs were not finite. They are
            left out of ``state``, so that NaN does not come by a product behind a
            reset.
    """

    state: Any
    spoiled: Bool[Array, "*B"]


class Ends(NamedTuple):
    """What a stretch does to whatever enters it.

    Attributes:
        cut: ``(*B)``, whether there is a reset in it.
        spoiled: ``(*B)``, whether it ends with NaN because of its own inputs.
    """

    cut: Bool[Array, "*B"]
    spoiled: Bool[Array, "*B"]

    def after(self, spoiled: Array) -> Array:
        """Return whether the state after the stretch is NaN."""
        return self.spoiled | (spoiled & ~self.cut)

    def then(self, late: Ends) -> Ends:
        """Return what the stretch and a later one do."""
        return Ends(self.cut | late.cut, late.after(self.spoiled))


class MatrixStretch(NamedTuple):
    """The map of a stretch on a matrix state.

    Attributes:
        memory: the state that it makes of zero.
        ends: its resets and its NaNs.
        g: ``(*B, heads, 1 or d_k)``, the logarithm of the decay of what enters, or
            None.
        turn: ``(*B, heads, R)``, the angles by which the keys of what enters are
            rotated backwards, or None.
        factor: ``(*B, heads, d_k, d_k)``, the matrix that multiplies what enters, or
            None; then g and turn are None.
    """

    memory: MatrixMemory
    ends: Ends
    g: Array | None = None
    turn: Array | None = None
    factor: Array | None = None

    def after(self, entering: Entering) -> Entering:
        """Return what leaves the stretch."""
        state = self._memory_after(entering.state)
        return Entering(state, self.ends.after(entering.spoiled))

    def then(self, late: MatrixStretch) -> MatrixStretch:
        """Return the map of the stretch and a later one."""
        return MatrixStretch(
            late._memory_after(self.memory),
            self.ends.then(late.ends),
            _sum(self.g, late.g),
            _sum(self.turn, late.turn),
            None if self.factor is None else late._times(self.factor),
        )

    def _memory_after(self, memory: MatrixMemory) -> MatrixMemory:
        memory = select(self.ends.cut, jax.tree.map(jnp.zeros_like, memory), memory)
        if memory.m is not None:
            joined = self._weighted_after(memory)
        else:
            joined = MatrixMemory(self._times(memory.S) + self.memory.S)
        return select(self.ends.cut, self.memory, joined)

    def _times(self, S: Float[Array, "*B N K V"]) -> Array:
        """Return ``A S``."""
        if self.factor is not None:
            return exact_matmul(self.factor, S)
        kept = S if self.g is None else jnp.exp(self.g)[..., None] * S
        return kept if self.turn is None else rotate_keys(kept, -self.turn)

    def _weighted_after(self, memory: MatrixMemory) -> MatrixMemory:
        """Add two states at the scale of the larger weight; an empty one has none."""
        m: Any
        own_m: Any
        (S, m), (own, own_m) = memory, self.memory
        entered = m if self.g is None else m + self.g[..., 0]
        larger = jnp.maximum(entered, own_m)
        scale = jnp.where(is_empty(own), entered, larger)
        scale = jnp.where(is_empty(S), own_m, scale)
        old, new = (
            bounded_exp(log - scale)[..., None, None] for log in (entered, own_m)
        )
        return MatrixMemory(old * S + new * own, scale)


def _sum(x: Array | None, y: Array | None) -> Any:
    return None if x is None or y is None else x + y


class ElementwiseStretch(NamedTuple):
    """The map ``s -> a s + b`` of a stretch, leaf by leaf of a state.

    Attributes:
        a: what multiplies the state that enters; 0 after a reset.
        b: the state that the stretch makes of zero.
        ends: its resets and its NaNs.
    """

    a: PyTree
    b: PyTree
    ends: Ends

    def after(self, entering: Entering) -> Entering:
        """Return what leaves the stretch."""
        return Entering(
            self._times(entering.state, self.b), self.ends.after(entering.spoiled)
        )

    def then(self, late: ElementwiseStretch) -> ElementwiseStretch:
        """Return the map of the stretch and a later one."""
        a = late._times(self.a, jax.tree.map(jnp.zeros_like, self.a))
        return ElementwiseStretch(
            a, late._times(self.b, late.b), self.ends.then(late.ends)
        )

    def _times(self, state: PyTree, added: PyTree) -> Any:
        """Return ``a state + added``, and ``added`` where a reset cut the state off."""

        def leaf(a, b, s):
            s = jnp.where(expand_flags(self.ends.cut, s), jnp.zeros_like(s), s)
            return a * s + b

        return jax.tree.map(leaf, self.a, added, state)
