"""One step of a cell or layer as a map of its whole carry, and trajectories of it.

The state of an LSTM is (h, c), that of a stack the carries of all its layers. Every
diagnostic here takes the Jacobian of the whole carry: the derivative by h alone is
another number, and not the one by which gradients decay.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.cell import Cell, bind_context
from ..core.dtypes import weaken_scalars
from ..core.flags import select
from ..core.layer import Layer, check_cell
from ..core.masked_inputs import fill_masked_inputs
from ..core.real_vectors import WHOLE_CARRY, check_inexact
from ..core.types import Carry, Context, Inputs, Params, PyTree
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_context, check_flags, check_inputs
from ..engines import Scan
from ..unrolling import fill_context, unroll, unroll_unchecked


@dataclasses.dataclass(frozen=True)
class Transition:
    """The map ``s_t = step(params, s_{t-1}, z_t)`` of a cell or a causal layer.

    The layer must not draw random numbers.
    """

    cell: Cell | Layer

    def prepare(self, params: Params, xs: Inputs) -> Any:
        """Compute the part of all steps that does not depend on the carry, ``z``."""
        return self.cell.project(params, xs) if isinstance(self.cell, Cell) else xs

    def step(
        self,
        params: Params,
        carry: Carry,
        z: PyTree,
        keep: Array | None = None,
        reset: Array | None = None,
    ) -> Carry:
        """Apply one step with its mask and reset, given its part of `prepare`."""
        if reset is not None:
            carry = select(reset, self.cell.initial_carry(params, reset.shape), carry)
        if isinstance(self.cell, Cell):
            new = self.cell.step(params, carry, z)
        else:
            spec = UnrollSpec(engine=Scan(save="everything"))
            new = unroll_unchecked(
                self.cell, params, carry, jax.tree.map(lambda a: a[None], z), spec
            )[0]
        return new if keep is None else select(keep, new, carry)

    def step_from_input(
        self,
        params: Params,
        carry: Carry,
        x: Inputs,
        keep: Array | None = None,
        reset: Any = None,
    ) -> Carry:
        """Apply one step from its input, to differentiate it by all parameters.

        The derivative of `step` alone lacks the parameters of the input projection.
        """
        return self.step(params, carry, self.prepare(params, x), keep, reset)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("xs", "mask", "resets", "carries_before", "carries_after"),
    meta_fields=("batch",),
)
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """An unrolled sequence: inputs, flags, and the carries before and after every step.

    All arrays are ``(T, *B, ...)``, and ``batch`` is ``*B``.
    """

    xs: Any
    mask: Array | None
    resets: Array | None
    carries_before: Carry
    carries_after: Carry
    batch: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Return T."""
        return jax.tree.leaves(self.xs)[0].shape[0]


def rollout(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry,
    mask: Any,
    resets: Any,
    engine: Any,
    what: str,
) -> Trajectory:
    """Unroll the cell by ``engine`` and return all carries.

    ``what`` is the name of the diagnostic, for error messages.
    """
    check_supported(cell, what)
    _, _, carries_after = unroll(
        cell,
        params,
        xs,
        carry,
        mask=mask,
        resets=resets,
        engine=engine,
        return_carries=True,
    )  # type: ignore[misc]
    xs = fill_masked_inputs(jax.tree.map(jnp.asarray, xs), mask)
    batch = check_inputs(xs, cell.feature_ndim)[1:]
    initial_carry = (
        cell.initial_carry(params, batch)
        if carry is None
        else jax.tree.map(jnp.asarray, carry)
    )
    check_inexact(f"{what}: carry", initial_carry, WHOLE_CARRY)
    if not jax.tree.leaves(initial_carry):
        raise ValueError(
            f"{what}: {type(cell).__name__} has no carry, so nothing can be measured"
        )
    carries_before = jax.tree.map(
        lambda s, after: (
            jnp.concatenate([s[None], after[:-1]]) if len(after) else after
        ),
        initial_carry,
        carries_after,
    )
    return Trajectory(xs, mask, resets, carries_before, carries_after, batch)


def with_context(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    context: Context,
    mask: Any,
    what: str,
) -> tuple[Any, Params]:
    """Return a cell without context that computes the same, and its parameters.

    They are a pair that holds the context, which is constant in time. What takes no
    context is returned as it is.

    Args:
        cell, params, xs, mask: as for `jaxrnn.unroll`.
        context: the context, or None.
        what: the name of the diagnostic, for error messages.
    """
    check_cell(cell)
    params = weaken_scalars(params)
    lead = check_inputs(xs, cell.feature_ndim)
    check_context(cell, context, lead[1:])
    if context is None:
        return cell, params
    if mask is not None:
        check_flags("mask", mask, lead)
    if isinstance(cell, Layer):
        raise ValueError(
            f"{what}: {type(cell).__name__} is a layer that takes a context, whose "
            f"parts cannot be measured together: measure the cell that reads the "
            f"context by itself, on the outputs of the layers below it"
        )
    cell.check(params)
    return bind_context(cell, params, fill_context(context, mask))


def check_supported(cell: Cell | Layer, what: str) -> None:
    """Check that the cell or layer is causal, and draws nothing."""
    check_cell(cell)
    if not cell.causal:
        raise ValueError(
            f"{what}: the state of a bidirectional layer has no single direction: "
            f"measure each of its layers separately, the backward one on reversed "
            f"inputs"
        )
    if cell.requires_key:
        raise ValueError(
            f"{what}: {type(cell).__name__} draws random numbers, so its Jacobians "
            f"differ from run to run: measure jaxrnn.inference(layer)"
        )
