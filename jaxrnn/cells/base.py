"""What the built-in cells share beyond the contract: sizes checked, and an initial
state that can be learned.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.cell import Carry, Cell, Params, accumulator
from ..core.validation import (
    check_batch_shape,
    check_carry,
    check_features,
    check_inputs,
    check_params,
    check_positive,
)
from .ops import along, dense


@dataclasses.dataclass(frozen=True)
class BuiltinCell(Cell):
    """A cell of ``hidden_size`` units.

    With ``learned_initial_carry`` the state before the first step is a parameter,
    ``params["initial_carry"]`` (one vector per part of the carry, zero at first); it
    gets gradient from every sequence start and from every reset.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    learned_initial_carry: bool = False

    def __post_init__(self):
        check_positive(self, hidden_size=self.hidden_size)
        for field in dataclasses.fields(self):
            if field.name.endswith(("_init", "activation")) and not callable(
                getattr(self, field.name)
            ):
                raise TypeError(
                    f"{type(self).__name__}: {field.name} must be a function such as "
                    f"{field.default}, not "
                    f"{getattr(self, field.name)!r}"
                )

    def check(self, params: Params) -> None:
        """The parameters are this cell's, by name and shape."""
        shape = (
            jnp.shape(params.get("input_kernel", 0.0))
            if isinstance(params, dict)
            else ()
        )
        check_params(
            self, params, _expected_params(self, shape[0] if len(shape) == 2 else 1)
        )

    def __call__(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """One streaming step: ``(carry, y)`` after input ``x (*B, D)``."""
        check_inputs(x[None])
        self.check(params)
        check_carry(
            self,
            carry,
            _expected_carry(self, x.shape[:-1], params["input_kernel"].dtype),
            "the carry passed in",
        )
        return super().__call__(params, carry, x)

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: Any
    ) -> Carry:
        """Zeros with the shapes and dtypes of this cell's carry; ``dtype`` is that
        of the computation.
        """
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)

    def initial_carry(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Carry:
        """Zeros ``(*batch_shape, H)`` per part of the carry, or the learned state
        spread over the batch.
        """
        check_batch_shape(batch_shape)
        zeros = self.zero_carry(
            params, tuple(batch_shape), dtype or params["input_kernel"].dtype
        )
        if not self.learned_initial_carry:
            return zeros
        return jax.tree.map(
            lambda leaf, zero: jnp.broadcast_to(leaf.astype(zero.dtype), zero.shape),
            params["initial_carry"],
            zeros,
        )

    def with_initial_carry(self, params: Params) -> Params:
        """``params`` completed by a learned initial state where the option asks for
        one.
        """
        if not self.learned_initial_carry:
            return params
        dtype = params[
            "input_kernel"
        ].dtype  # all of it; initial_carry casts what accumulates
        return {
            **params,
            "initial_carry": jax.tree.map(
                lambda a: a.astype(dtype), self.zero_carry(params, (), dtype)
            ),
        }


def projected(cell: Cell, params: Params, x: Array) -> Array:
    """``x W + b`` for inputs that fit, in the accumulator's dtype."""
    check_features(cell, params["input_kernel"], x)
    z = dense(x, params["input_kernel"]).astype(accumulator(x.dtype))
    return z + along(params["bias"], z)


@functools.lru_cache(maxsize=256)
def _expected_params(cell: Any, input_size: int) -> Any:
    """The shapes of a cell's parameters; kept, because streaming asks at every step."""
    return jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))


@functools.lru_cache(maxsize=256)
def _expected_carry(cell: Any, batch_shape: tuple[int, ...], dtype: Any) -> Any:
    """The shapes and dtypes of a cell's carry."""
    return jax.eval_shape(lambda: cell.zero_carry({}, batch_shape, dtype))
