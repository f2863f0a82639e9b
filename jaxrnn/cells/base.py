"""The base class of the built-in cells.

Beyond the contract of `jaxrnn.Cell` it checks sizes, parameters and carries, and offers
an initial state that can be learned.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool

from ..core.cell import Cell
from ..core.dtypes import accumulator
from ..core.types import Carry, Context, Inputs, Params
from ..core.validation import (
    batch_of_step,
    check_batch_shape,
    check_carry,
    check_features,
    check_params,
    check_positive,
)
from .ops import along, dense


@dataclasses.dataclass(frozen=True)
class BuiltinCell(Cell):
    """A cell of ``hidden_size`` units.

    With ``learned_initial_carry`` the state before the first step is a parameter,
    ``params["initial_carry"]`` (one vector per part of the carry, initialized to zero);
    it receives gradient from every sequence start and from every reset.

    Args:
        hidden_size: H, the number of hidden units.
        learned_initial_carry: if True, the state before the first step is a parameter.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    learned_initial_carry: bool = False

    def __post_init__(self):
        check_positive(self, hidden_size=self.hidden_size)
        for field in dataclasses.fields(self):
            if field.name.endswith(("_init", "activation")) and not callable(
                vars(self)[field.name]
            ):
                raise TypeError(
                    f"{type(self).__name__}: {field.name} must be a function such as "
                    f"{field.default}, not "
                    f"{vars(self)[field.name]!r}"
                )

    def check(self, params: Params) -> None:
        """Check that ``params`` have the names and shapes of this cell's parameters.

        Raises:
            TypeError: if an entry is missing or unknown.
            ValueError: if an entry has the wrong shape.
        """
        # The expected shapes depend on D, which is known from the input kernel alone.
        shape = (
            jnp.shape(params.get("input_kernel", 0.0))
            if isinstance(params, dict)
            else ()
        )
        rows = shape[-2] if len(shape) > 1 else 1
        check_params(self, params, _expected_params(self, self.features_of_rows(rows)))

    def features_of_rows(self, rows: int) -> int:
        """Return D for so many rows of ``input_kernel``; by default as many."""
        return rows

    def __call__(
        self,
        params: Params,
        carry: Carry,
        x: Inputs,
        *,
        reset: Bool[Array, "*B"] | None = None,
        context: Context = None,
        key: Array | None = None,
    ) -> tuple[Carry, Any]:
        """Take one streaming step.

        Args:
            params: the parameters, from ``init``.
            carry: the state before the step, from ``initial_carry`` or the last call.
            x: one input ``(*B, D)``, in the parameters' dtype.
            reset: ``(*B)`` bool or None. Where True, a new sequence begins: the carry
                becomes the initial one before the step.
            context: None, unless a subclass sets ``takes_context``.
            key: None, because a cell draws no random numbers.

        Returns:
            ``(carry, y)``: the state after the step and the output ``(*B, O)``.

        Raises:
            TypeError, ValueError: if the parameters, the carry or the input do not have
                the names, shapes and dtypes that this cell expects.
        """
        batch = batch_of_step(x, self.feature_ndim)
        self.check(params)
        kernel = params["input_kernel"]
        features = kernel.shape[-2] if kernel.ndim > 1 else 1
        expected = _expected_carry(self, features, batch, kernel.dtype)
        check_carry(self, carry, expected, "the carry passed in")
        return super().__call__(params, carry, x, reset=reset, context=context, key=key)

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Carry:
        """Return zeros with the shapes and dtypes of this cell's carry.

        ``dtype`` is that of the computation; parts that accumulate may be wider.
        """
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)

    def initial_carry(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ) -> Carry:
        """Return the carry before the first step.

        Args:
            params: the parameters, from ``init``.
            batch_shape: the batch axes ``*B``.
            dtype: of the computation; by default that of the parameters.

        Returns:
            Zeros ``(*batch_shape, H)`` for each part of the carry, or the learned state
            broadcast over the batch.
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
        """Add ``initial_carry`` to ``params`` if ``learned_initial_carry`` is set."""
        if not self.learned_initial_carry:
            return params
        # All parts have the parameters' dtype; `initial_carry` casts those that
        # accumulate to their wider dtype.
        dtype = params["input_kernel"].dtype
        return {
            **params,
            "initial_carry": jax.tree.map(
                lambda a: a.astype(dtype), self.zero_carry(params, (), dtype)
            ),
        }


def projected(cell: Cell, params: Params, x: Array) -> Array:
    """Return ``x W + b`` in the accumulator's dtype, after a check of ``x``."""
    check_features(cell, params["input_kernel"], x)
    z = dense(x, params["input_kernel"]).astype(accumulator(x.dtype))
    return z + along(params["bias"], z)


@functools.lru_cache(maxsize=256)
def _expected_params(cell: Cell, input_size: int) -> Any:
    """Return the shapes of a cell's parameters.

    The result is cached because streaming calls need it at every step.
    """
    return jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))


@functools.lru_cache(maxsize=256)
def _expected_carry(
    cell: BuiltinCell, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike
) -> Any:
    """Return the shapes and dtypes of a cell's carry."""
    shapes = _expected_params(cell, input_size)
    return jax.eval_shape(lambda: cell.zero_carry(shapes, batch_shape, dtype))
