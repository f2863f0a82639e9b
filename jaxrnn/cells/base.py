"""What the built-in cells share beyond the contract: sizes checked, and an initial state that can be learned."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..cell import Carry, Cell, Params
from ..checks import check_positive


@dataclasses.dataclass(frozen=True)
class BuiltinCell(Cell):
    """A cell of ``hidden_size`` units.

    With ``learned_initial_carry`` the state before the first step is a parameter, ``params["initial_carry"]`` (one vector
    per part of the carry, zero at first); it gets gradient from every sequence start and from every reset.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    learned_initial_carry: bool = False

    def __post_init__(self):
        check_positive(self, hidden_size=self.hidden_size)

    def zero_carry(self, params: Params, batch_shape: tuple[int, ...], dtype: Any) -> Carry:
        """Zeros with the shapes and dtypes of this cell's carry; ``dtype`` is that of the computation."""
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Carry:
        """Zeros ``(*batch_shape, H)`` per part of the carry, or the learned state spread over the batch."""
        zeros = self.zero_carry(params, tuple(batch_shape), dtype or params["recurrent_kernel"].dtype)
        if not self.learned_initial_carry:
            return zeros
        return jax.tree.map(
            lambda leaf, zero: jnp.broadcast_to(leaf.astype(zero.dtype), zero.shape), params["initial_carry"], zeros
        )

    def with_initial_carry(self, params: Params) -> Params:
        """``params`` completed by a learned initial state where the option asks for one."""
        if not self.learned_initial_carry:
            return params
        return {**params, "initial_carry": self.zero_carry(params, (), params["recurrent_kernel"].dtype)}
