"""One step of a cell by units: what it adds to the traces of its parameters.

The carry's m parts (two for a complex one) belong to H units. The step's Jacobian by
units, D ``(*B, H, m, m)``, is that of `jaxrnn.engines.jaxpr.unit_blocks`. Its
derivative F by the parameters needs m backward passes, if each parameter moves one unit
only: the pullback of ones on part i of *all* units is then the derivative of part i of
the parameter's own unit.

That each parameter moves one unit only is checked, not trusted: its numbers are
labelled by units along one of its axes, and the labels are followed through the
equations of the step to the new carry.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.cell import Cell, ContextCell, without_context
from ..core.dtypes import accumulator
from ..core.flags import select
from ..core.real_vectors import WHOLE_CARRY, check_inexact
from ..core.types import Carry, Inputs, Params
from ..engines.jaxpr.dependence import NONE, follow
from ..engines.jaxpr.evaluate import inline_calls
from ..engines.jaxpr.grouping import Grouping
from ..engines.jaxpr.tangent_program import (
    NoTangentError,
    TangentProgram,
    from_real_parts,
    real_parts,
)
from ..engines.jaxpr.unit_blocks import (
    DIAGONAL,
    ZERO,
    BlockForm,
    MixedUnitsError,
    find_units,
)

INSTEAD = "jaxrnn.online.RTRL computes its exact gradient"


class Given(NamedTuple):
    """What a step reads beside the carry."""

    params: Params
    x: Inputs
    keep: Any


@dataclasses.dataclass(frozen=True)
class StepOf:
    """A step of a cell with its mask, from its input, on flat lists."""

    cell: Cell
    structure: Any

    def __call__(self, leaves: list[Any], given: Given) -> list[Any]:
        params, x, keep = given
        carry = self.structure.unflatten(leaves)
        new = self.cell.step(params, carry, self.cell.project(params, x))
        return jax.tree.leaves(new if keep is None else select(keep, new, carry))


@dataclasses.dataclass(frozen=True, eq=False)
class UnitStep:
    """The step of a cell, and how it divides into units.

    Attributes:
        step: the step.
        carry: the shapes and dtypes of the carry's leaves, ``(*B, k H)``.
        form: the units of its tangent.
        program: the step and its tangent.
        axes: for each leaf of the parameters the axis along which its units lie, or
            None if it does not reach the carry.
    """

    step: StepOf
    carry: Sequence[Any]
    program: TangentProgram
    form: BlockForm
    axes: list[int | None]

    @property
    def units(self) -> int:
        """Return H."""
        return self.form.grouping.units or 1

    @property
    def parts(self) -> int:
        """Return m, the number of real numbers of the carry a unit."""
        shapes = [v.aval.shape for v in self.program.primal.jaxpr.outvars]
        return sum(shape[-1] for shape in shapes) // self.units

    def zero_rows(self, params: Params) -> list[jax.ShapeDtypeStruct]:
        """Return the shapes of a trace: ``(m, *p)``, or ``(0, *p)`` without one."""
        return [
            jax.ShapeDtypeStruct(
                (0 if axis is None else self.parts, *jnp.shape(p)),
                accumulator(p.dtype) if axis is not None else p.dtype,
            )
            for p, axis in zip(jax.tree.leaves(params), self.axes, strict=True)
        ]

    def advance(self, rows: Sequence[Any], carry: Carry, given: Given) -> list[Any]:
        """Return the traces after a step: ``D M + F``.

        Args:
            rows: the traces before it, ``(*B, m, *p)`` for each parameter.
            carry: the carry before it.
            given: what else the step reads.
        """
        parts = real_parts(jax.tree.leaves(carry))
        _, blocks = self.form(self.program, parts, given)
        batch_ndim = blocks.ndim - 3

        def moved(leaves, x, keep):
            def parts_of(params):
                return real_parts(self.step(leaves, Given(params, x, keep)))

            return self._rows(parts_of, given.params)

        for _ in range(batch_ndim):
            moved = jax.vmap(moved)
        added = moved(jax.tree.leaves(carry), given.x, given.keep)
        return [
            row
            if axis is None
            else self._apply(blocks, row, axis) + new.astype(row.dtype)
            for row, new, axis in zip(rows, added, self.axes, strict=True)
        ]

    def first_rows(self, params: Params) -> list[Any]:
        """Return the traces of one stream's first carry, which may be learned."""
        shapes, cell = self.zero_rows(params), self.step.cell

        def parts_of(params):
            return real_parts(jax.tree.leaves(cell.initial_carry(params)))

        return [
            row.astype(like.dtype)
            for row, like in zip(self._rows(parts_of, params), shapes, strict=True)
        ]

    def _rows(self, parts_of: Any, params: Params) -> list[Any]:
        """Return the derivative of a carry by units, ``(m, *p)`` for each parameter."""
        structure: Any = jax.tree.structure(params)
        leaves = jax.tree.leaves(params)
        places = [i for i, axis in enumerate(self.axes) if axis is not None]

        def of_some(some):
            new = dict(enumerate(leaves)) | dict(zip(places, some, strict=True))
            return parts_of(structure.unflatten([new[i] for i in range(len(leaves))]))

        new, pull = jax.vjp(of_some, [leaves[i] for i in places])
        stream, m = Grouping(0, self.units), self.parts

        def row(direction):
            ones = jnp.broadcast_to(direction, (self.units, m))
            return pull(stream.join(ones, new))[0]

        found = jax.vmap(row)(jnp.eye(m, dtype=new[0].dtype))
        rows = dict(zip(places, found, strict=True))
        return [
            rows[i] if i in rows else jnp.zeros((0, *p.shape), p.dtype)
            for i, p in enumerate(leaves)
        ]

    def _apply(self, blocks: Array, row: Array, axis: int) -> Array:
        """Return ``sum_k D[u, i, k] M[k]``, where u is the unit of each number."""
        by_unit = self._by_unit(row, axis, blocks.ndim - 2)
        out = jnp.einsum(
            "...uik,...kabuc->...iabuc",
            blocks.astype(row.dtype),
            by_unit,
            precision="highest",
        )
        return out.reshape(row.shape)

    def contract(self, rows: Sequence[Any], changes: Sequence[Any]) -> Any:
        """Return the change of the carry by units, ``(*B, H, m)``.

        Args:
            rows: the traces, ``(*B, m, *p)`` for each parameter.
            changes: the changes of the parameters, ``(*p)`` each.
        """
        total = None
        for row, change, axis in zip(rows, changes, self.axes, strict=True):
            if axis is None:
                continue
            some = jnp.einsum(
                "...iabuc,abuc->...ui",
                self._by_unit(row, axis, row.ndim - change.ndim),
                self._by_unit(change.astype(row.dtype), axis, 0),
                precision="highest",
            )
            total = some if total is None else total + some
        return total

    def _by_unit(self, a: Array, axis: int, lead: int) -> Array:
        """Reshape ``(*lead, *p)`` to ``(*lead, a, b, H, c)``: units on an axis."""
        shape, units = a.shape[lead:], self.units
        before, after = shape[:axis], shape[axis + 1 :]
        return a.reshape(
            *a.shape[:lead],
            int(np.prod(before)),
            shape[axis] // units,
            units,
            int(np.prod(after)),
        )

    def to_carry(self, by_unit: Float[Array, "*B H M"]) -> list[Any]:
        """Return the leaves of a carry, from its numbers by units."""
        parts = jax.eval_shape(real_parts, list(self.carry))
        return from_real_parts(self.form.grouping.join(by_unit, parts), self.carry)


def unit_step(
    cell: Cell, params: Params, carry: Carry, given: Given, through: str | None
) -> UnitStep:
    """Find the units of a cell's step, and check that they have traces.

    Only shapes and dtypes of the arrays are used.

    Args:
        cell: the cell.
        params: its parameters.
        carry: its carry, ``(*B, k H)`` per leaf.
        given: what the step reads beside the carry, with ``params``.
        through: whether a trace passes the own unit's recurrent weight.

    Raises:
        TypeError: if a part of the carry is not floating-point.
        ValueError: if the cell has no units, or a parameter moves more than one.
    """
    name = type(without_context(cell)).__name__
    if isinstance(cell, ContextCell):
        raise ValueError(
            f"Traces: {name} reads a context, through which one parameter moves many "
            f"units: {INSTEAD}"
        )
    check_inexact(f"Traces: the carry of {name}", carry, WHOLE_CARRY)
    leaves, structure = jax.tree.flatten(carry)
    one = jax.tree.leaves(jax.eval_shape(cell.initial_carry, params))
    if not one:
        raise ValueError(
            f"Traces: {name} has no carry, so its gradient is that of each step alone "
            f"and needs no traces"
        )
    if any(len(a.shape) != 1 for a in one):
        raise ValueError(
            f"Traces: the carry of {name} has the shapes "
            f"{[a.shape for a in one]}, but every one must be (k H,), k numbers for "
            f"each of H units: {INSTEAD}"
        )
    step = StepOf(cell, structure)
    try:
        program = TangentProgram(step, leaves, given, for_gradients=True)
        form = find_units(program, ZERO if through is None else DIAGONAL)
    except (MixedUnitsError, NoTangentError) as error:
        raise ValueError(f"Traces: {name}: {error}: {INSTEAD}") from None
    whole = math.gcd(*(a.shape[-1] for a in leaves))
    units = form.grouping.units or 1
    if units == 1 < whole and form.products:
        raise ValueError(
            f"Traces: {name}: all {whole} units of the carry see each other otherwise "
            f"than through one matrix: {INSTEAD}"
        )
    if form.products > 1 and through is not None:
        raise ValueError(
            f"Traces: {name} multiplies its carry by two matrices in a row, whose "
            f"product has no diagonal by units: pass through=None, or {INSTEAD}"
        )
    first = inline_calls(
        jax.make_jaxpr(
            lambda params: real_parts(jax.tree.leaves(cell.initial_carry(params)))
        )(params)
    )
    programs = [(program.primal.jaxpr, program.parts), (first.jaxpr, 0)]
    axes = _unit_axes(name, programs, params, units)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves]
    return UnitStep(step, shapes, program, form, axes)


def _unit_axes(
    name: str, programs: list[tuple[Any, int]], params: Params, units: int
) -> list[int | None]:
    """Return along which axis of each parameter its units lie.

    Args:
        name: the name of the cell.
        programs: the jaxprs of the step and of the initial carry, each with the place
            of the first parameter among its arguments.
        params: the parameters.
        units: H.

    Raises:
        ValueError: if a parameter moves units of which it is no part.
    """
    own = [
        [_unit_labels(v.aval.shape, -1, units) for v in jaxpr.outvars]
        for jaxpr, _ in programs
    ]

    def reached(place, labels):
        """The labels of the carry after a step, and of the initial one."""
        found = []
        for jaxpr, first in programs:
            arguments = [None] * len(jaxpr.invars)
            arguments[first + place] = labels
            found.append(follow(jaxpr, arguments))
        return found

    def axis_of(place, path, shape):
        every = reached(place, np.zeros(shape, np.int32))
        if all(a is None for found in every for a in found):
            return None
        for axis in reversed(range(len(shape))):
            if shape[axis] % units:
                continue
            every = reached(place, _unit_labels(shape, axis, units))
            if all(
                a is None or ((a == b) | (a == NONE)).all()
                for found, wanted in zip(every, own, strict=True)
                for a, b in zip(found, wanted, strict=True)
            ):
                return axis
        raise ValueError(
            f"Traces: params{jax.tree_util.keystr(path)} of {name} moves more than one "
            f"of its {units} units within a step, so it has no trace by units: "
            f"{INSTEAD}"
        )

    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [axis_of(i, path, jnp.shape(p)) for i, (path, p) in enumerate(leaves)]


def _unit_labels(shape: tuple[int, ...], axis: int, units: int) -> np.ndarray:
    """Label the numbers of an array by their units, which lie along an axis."""
    index = np.arange(shape[axis], dtype=np.int32) % units
    ndim = len(shape)
    return np.broadcast_to(
        index.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)]), shape
    )
