"""The structure of a step's Jacobian, found from its equations.

It is the finest of these divisions of the carry between which the Jacobian is zero:
units (`jaxrnn.engines.jaxpr.unit_blocks`); heads, which are adjacent units of the last
axis; or the leading axes of the carry, as many as the step keeps apart: heads with an
axis of their own, the examples of a batch, or at worst none.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from .dependence import product_axes
from .evaluate import all_equations
from .grouping import Grouping
from .step_program import StepJaxpr
from .tangent_program import TangentProgram
from .unit_blocks import DIAGONAL, BlockForm, MixedUnitsError, find_units, keeps_apart

AUTO, UNITS, FULL = "auto", "units", "full"  # the choices of `jaxrnn.Newton.jacobian`
HEADS = "heads"


def find_blocks(program: TangentProgram, jacobian: str = AUTO) -> BlockForm:
    """Find the blocks of a step's Jacobian.

    Args:
        program: the step and its tangent.
        jacobian: ``"units"`` for blocks of single units even where the step mixes
            them by matmuls, whose diagonals are taken then; ``"full"`` for blocks of
            all units; ``"auto"`` for units, or else heads, where that is the whole
            Jacobian, and otherwise as ``"full"``.

    Raises:
        MixedUnitsError: for ``"units"``, if the step mixes units otherwise.
    """
    if jacobian == UNITS:
        return find_units(program, DIAGONAL)
    if jacobian == AUTO:
        try:
            return find_units(program, None)
        except MixedUnitsError:
            pass
        form = _find_heads(program)
        if form is not None:
            return form
    shapes = [a.shape for a in program.part_avals]
    most = min(map(len, shapes), default=0)
    if all(len(shape) == most for shape in shapes):
        most -= 1  # the last axis is that of the units
    for lead in range(max(most, 0), 0, -1):
        grouping = Grouping(lead)
        if len({shape[:lead] for shape in shapes}) == 1 and keeps_apart(
            program, grouping
        ):
            return BlockForm(grouping)
    return BlockForm(Grouping(0))


def _find_heads(program: TangentProgram) -> BlockForm | None:
    """Find the most heads in which only units of the same head see each other.

    A step that mixes the units of each head multiplies heads apart, in a product with
    an axis for them. So the sizes of such axes are all that is tried.
    """
    shapes = [a.shape for a in program.part_avals]
    if not shapes or not all(shapes) or len({shape[:-1] for shape in shapes}) != 1:
        return None
    H = math.gcd(*(shape[-1] for shape in shapes))
    sizes = {
        eqn.invars[0].aval.shape[axis]
        for eqn in all_equations(program.closed.jaxpr)
        if eqn.primitive.name == "dot_general"
        for axis in product_axes(eqn, 0)[0]
    }
    for heads in sorted(sizes, reverse=True):
        if 1 < heads < H and H % heads == 0:
            grouping = Grouping(len(shapes[0]) - 1, heads, H // heads)
            if keeps_apart(program, grouping):
                return BlockForm(grouping)
    return None


def kind_of_blocks(form: BlockForm) -> str:
    """Return what the blocks are of: ``"units"``, ``"heads"`` or ``"full"``."""
    if form.grouping.units is None:
        return FULL
    return UNITS if form.grouping.width == 1 else HEADS


@functools.lru_cache(maxsize=64)
def blocks_of_step(step: StepJaxpr, jacobian: str = AUTO) -> BlockForm:
    """Find the blocks of a traced step; see `find_blocks`."""
    return find_blocks(program_of_step(step), jacobian)


@functools.lru_cache(maxsize=64)
def program_of_step(step: StepJaxpr) -> TangentProgram:
    """Return a traced step and its tangent."""
    avals = step.avals
    first, last = step.params, step.params + step.carry
    return TangentProgram(
        lambda carry, given: step(given[0], carry, given[1]),
        avals[first:last],
        (avals[:first], avals[last:]),
    )


def bytes_of_blocks(form: BlockForm, parts: list[Any]) -> int:
    """Return the bytes of the blocks of one step, and of one vector beside them."""
    size = form.grouping.size(parts)
    groups = math.prod(form.grouping.shape(parts))
    itemsize = max([4, *(a.dtype.itemsize for a in parts)])
    return groups * size * (size + 1) * itemsize


def describe(form: BlockForm, parts: list[Any]) -> str:
    """Return the structure in words, such as ``units 2x2`` or ``full 10x10``."""
    size = form.grouping.size(parts)
    return f"{kind_of_blocks(form)} {size}x{size}" + (
        ", by diagonals" if form.products else ""
    )
