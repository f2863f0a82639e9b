"""The Jacobian of a step by units: an (m, m) block for each of H units.

A carry of m parts ``(*B, H)`` belongs to H units, with m numbers each. Where no unit
sees another, as in `jaxrnn.DiagonalLSTM`, the Jacobian of the step consists of an
(m, m) block for each unit, and m tangents give all of it: the tangent of a one in part
k of *every* unit is column k of every block.

Where units see each other through a matmul, as in `jaxrnn.LSTM`, each matmul of the
tangent is replaced by the one whose matrix is diagonal in the units. The m tangents
then give the same blocks as the whole Jacobian has, at the cost of a step, if no path
from the old carry to the new one goes through two matmuls. That is counted, as
`UnitBlocks.products`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float

from ...core.types import PyTree
from .dependence import MANY, NONE, follow, join_over, product_axes
from .grouping import Grouping
from .tangent_program import Step, TangentProgram, from_real_parts, real_parts

DIAGONAL, ZERO = "diagonal", "zero"  # what a matmul of the tangent is replaced by


class MixedUnitsError(ValueError):
    """Raised where a step mixes units in a way that has no diagonal."""


class UnitBlocks(NamedTuple):
    """A step's new carry, and its Jacobian by units.

    Attributes:
        new: the leaves of the new carry.
        blocks: ``(*B, H, m, m)``: ``blocks[..., u, i, k]`` is the derivative of part i
            of the new carry with respect to part k of the old one, both of unit u. The
            parts are in the order of the leaves; a complex leaf has a real and an
            imaginary part, and a leaf ``(*B, k H)`` has k parts.
        products: the largest number of replaced matmuls on a path from the old carry
            to the new one: 0 where no unit sees another and the blocks are the whole
            Jacobian; 1 where they are its blocks on the diagonal; from 2 on they are
            not.
    """

    new: list[Any]
    blocks: Float[Array, "*B H M M"]
    products: int


def unit_blocks(
    step: Step, carry: Sequence[Any], given: PyTree = (), *, products: str = DIAGONAL
) -> UnitBlocks:
    """Apply a step, and compute the (m, m) block of its Jacobian for every unit.

    Args:
        step: ``step(carry, given) -> carry``, on flat lists of floating-point arrays.
        carry: the leaves of the carry, ``(*B, k H)`` each: k blocks of H units. H is
            found: it is the size of the last axis, or a half, a third or a quarter of
            it where parts lie side by side in one array.
        given: what else the step reads, a pytree of arrays.
        products: what a matmul between units becomes in the tangent: ``"diagonal"``,
            its diagonal, or ``"zero"``, nothing, as in e-prop.

    Returns:
        A `UnitBlocks`.

    Raises:
        MixedUnitsError: if units see each other otherwise than through a matmul by a
            matrix ``(k H, l H)``, as under layer norm.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.array([[0.5, 2.0], [3.0, 0.25]])
        >>> found = unit_blocks(lambda s, x: [s[0] @ kernel + x], [jnp.ones(2)], 1.0)
        >>> print(found.blocks[:, 0, 0], found.products)
        [0.5  0.25] 1
    """
    program = TangentProgram(step, carry, given)
    form = find_units(program, products)
    new, blocks = form(program, real_parts(carry), given)
    return UnitBlocks(from_real_parts(new, carry), blocks, form.products)


class BlockForm(NamedTuple):
    """A step's Jacobian as an (m, m) block for each group of its carry's numbers.

    Attributes:
        grouping: the groups.
        products: the largest number of replaced matmuls in a row, as in `UnitBlocks`.
        instead: what replaces the matmuls, by the ``id`` of the equation.
    """

    grouping: Grouping
    products: int = 0
    instead: dict[int, Callable] = {}

    def __call__(
        self, program: TangentProgram, parts: Sequence[Any], given: PyTree
    ) -> tuple[list[Any], Float[Array, "*G M M"]]:
        """Return the new carry's parts, and the block of each group.

        The tangent of a one in number k of every group is column k of every block.
        """
        groups, size = self.grouping.shape(parts), self.grouping.size(parts)

        def column(direction):
            tangents = self.grouping.join(
                jnp.broadcast_to(direction, (*groups, size)), parts
            )
            new, moved = program(parts, tangents, given, self.instead)
            return new, self.grouping.split(moved)

        directions = jnp.eye(size, dtype=self.grouping.split(parts).dtype)
        return jax.vmap(column, out_axes=(None, -1))(directions)


def find_units(program: TangentProgram, products: str | None) -> BlockForm:
    """Find the units of a step.

    Args:
        program: the step and its tangent.
        products: as in `unit_blocks`; None if no matmul is to be replaced, so that the
            units must not see each other at all.

    Raises:
        MixedUnitsError: if they do, otherwise than ``products`` allows.
    """
    shapes = [a.shape for a in program.part_avals]
    if not shapes or not all(shapes) or len({shape[:-1] for shape in shapes}) != 1:
        raise MixedUnitsError(
            f"the parts of the carry have the shapes {', '.join(map(str, shapes))}, so "
            "they have no units in common: (*B, k H) is wanted of each"
        )
    mixing: list[Any] = []
    whole = math.gcd(*(shape[-1] for shape in shapes))
    # Parts may lie side by side in one array, as in `jaxrnn.cells.NonlinearRTU`; but
    # not so many that there is one unit only.
    halves = [whole // k for k in range(2, 5) if whole % k == 0 and whole > k]
    for units in [whole, *halves] if whole else []:
        form = follow_units(program, units, products, mixing)
        if form is not None:
            return form
    names = ", ".join(dict.fromkeys(eqn.primitive.name for eqn in mixing))
    raise MixedUnitsError(
        f"units of the carry see each other through {names or 'a change of places'} in "
        f"the step, so its Jacobian has no blocks by units"
    )


def follow_units(
    program: TangentProgram, units: int, products: str | None, mixing: list[Any]
) -> BlockForm | None:
    """Return the form with so many units, or None if that is not the step's.

    Args:
        program, products: as in `find_units`.
        units: H.
        mixing: a list to which the equations are added in which units meet.
    """
    grouping = Grouping(len(program.part_avals[0].shape) - 1, units)
    instead: dict[int, Callable] = {}

    def rule(eqn, labels):
        if products is None or all(a is not None for a in labels):
            return None
        side = 0 if labels[0] is not None else 1
        found = _diagonal_labels(eqn, labels[side], side, units)
        if found is None:
            return None
        out, period = found
        instead[id(eqn)] = _diagonal_product(eqn, side, period, products == DIAGONAL)
        return out if products == DIAGONAL else np.full_like(out, NONE)

    if not keeps_apart(program, grouping, rule, mixing):
        return None
    return BlockForm(grouping, _products_in_a_row(program, instead), instead)


def keeps_apart(
    program: TangentProgram,
    grouping: Grouping,
    rule: Any = None,
    mixing: list[Any] | None = None,
) -> bool:
    """Whether the tangent of each group depends on that of the same group alone.

    Args:
        program: the step and its tangent.
        grouping: the groups.
        rule, mixing: as in `jaxrnn.engines.jaxpr.dependence.follow`.
    """
    wanted = grouping.labels(program.part_avals)
    jaxpr = program.closed.jaxpr
    given = [None] * (len(jaxpr.invars) - 2 * program.parts)
    labels = [*[None] * program.parts, *wanted, *given]
    of_tangents = follow(jaxpr, labels, rule, mixing)[program.parts :]
    return all(
        found is None or bool(((found == label) | (found == NONE)).all())
        for found, label in zip(of_tangents, wanted, strict=True)
    )


def _diagonal_labels(
    eqn: Any, labels: np.ndarray, side: int, units: int
) -> tuple[np.ndarray, int] | None:
    """Return the labels of a product by a matrix that is diagonal in the units.

    Returns also the number of units after which the rows and columns of the matrix
    repeat; None if it has no diagonal.
    """
    batch, free, over = product_axes(eqn, side)
    _, columns, rows = product_axes(eqn, 1 - side)
    if len(over) != 1 or len(columns) != 1:
        return None
    shape = eqn.invars[1 - side].aval.shape
    period = math.gcd(shape[rows[0]], shape[columns[0]])
    period = units if period % units == 0 else period
    moved = labels.transpose((*batch, *free, *over))
    tiles = moved.reshape(*moved.shape[:-1], -1, period)
    one = join_over(tiles, [tiles.ndim - 2])
    if (one == MANY).any():
        return None
    out = np.tile(one[..., 0, :], shape[columns[0]] // period)
    return (out if side == 0 else np.moveaxis(out, -1, len(batch))), period


def _diagonal_product(eqn: Any, side: int, period: int, keep: bool) -> Callable:
    """Return a function that multiplies by the diagonals of a matrix's blocks."""
    batch, free, over = product_axes(eqn, side)
    matrix_batch, columns, rows = product_axes(eqn, 1 - side)
    out = eqn.outvars[0].aval

    def product(*operands):
        if not keep:
            return jnp.zeros(out.shape, out.dtype)
        a, matrix = operands[side], operands[1 - side]
        a = jnp.transpose(a, (*batch, *free, *over))
        matrix = jnp.transpose(matrix, (*matrix_batch, *rows, *columns))
        lead, n = matrix.shape[:-2], len(matrix_batch)
        k, m = matrix.shape[-2] // period, matrix.shape[-1] // period
        blocks = matrix.reshape(*lead, k, period, m, period)
        diagonals = jnp.diagonal(blocks, axis1=n + 1, axis2=n + 3)  # (*batch, k, m, H)
        diagonals = diagonals.reshape(*lead, *(1,) * len(free), k, m, period)
        a = a.reshape(*a.shape[:-1], k, 1, period)
        y = (a.astype(out.dtype) * diagonals.astype(out.dtype)).sum(-3)
        y = y.reshape(*y.shape[:-2], -1)
        return y if side == 0 else jnp.moveaxis(y, -1, n)

    return product


def _products_in_a_row(program: TangentProgram, instead: dict[int, Callable]) -> int:
    """Count the replaced products on the longest path to the new tangent."""
    jaxpr = program.closed.jaxpr
    depth: dict[Any, int] = {}

    def of(atom):
        return 0 if isinstance(atom, core.Literal) else depth.get(atom, 0)

    for eqn in jaxpr.eqns:
        most = max(map(of, eqn.invars), default=0) + (id(eqn) in instead)
        depth.update(dict.fromkeys(eqn.outvars, most))
    return max(map(of, jaxpr.outvars[program.parts :]), default=0)
