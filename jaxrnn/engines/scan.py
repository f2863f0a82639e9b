"""Sequential time: ``jax.lax.scan``. The reference engine, for every cell and every derivative mode."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool

from ..cell import Carry, Cell, Params, select
from ..checks import check_positive


@dataclasses.dataclass(frozen=True)
class Scan:
    """Walk time one step after another with ``jax.lax.scan``.

    Args:
        unroll: steps per iteration of the compiled loop. More code, rarely faster.
        hoist: project all inputs at once before the loop (one large matmul), or each inside it (less memory).
    """

    unroll: int = 1
    hoist: bool = True

    def __post_init__(self):
        check_positive(self, unroll=self.unroll)

    def walk(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Any,
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """Return the last carry, and the carries after every step ``(T, *B, ...)`` at the place of their input.

        ``xs`` is a pytree of ``(T, *B, ...)``. Where ``resets[t]``, the carry becomes the initial one before step t; where
        not ``mask[t]``, it holds.
        """
        inputs = cell.project(params, xs) if self.hoist else xs
        initial = None
        if resets is not None:
            initial = cell.initial_carry(params, resets.shape[1:])

        def step(carry, now):
            z, keep, reset = now
            if reset is not None:
                carry = select(reset, initial, carry)
            new = cell.step(params, carry, z if self.hoist else cell.project(params, z))
            if keep is not None:
                new = select(keep, new, carry)
            return new, new

        sequence = (inputs, mask, resets)
        if jax.tree.leaves(sequence)[0].shape[0] == 1:  # streaming: no loop
            carry, new = step(carry, jax.tree.map(lambda a: a[0], sequence))
            return carry, jax.tree.map(lambda a: a[None], new)
        return jax.lax.scan(step, carry, sequence, reverse=reverse, unroll=self.unroll)
