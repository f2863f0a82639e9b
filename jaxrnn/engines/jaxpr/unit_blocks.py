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

from ...core.dtypes import accumulator
from ...core.types import PyTree
from .dependence import MANY, NONE, follow, join_over, product_axes
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
            parts are those of `split_units`.
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
        carry: the leaves of the carry, ``(*B, k H)`` each: k blocks of H units. A
            complex leaf has two real parts. H is found; see `unit_counts`.
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
        >>> blocks = unit_blocks(lambda s, x: [s[0] @ kernel + x], [jnp.ones(2)], 1.0)
        >>> print(blocks.blocks[:, 0, 0], blocks.products)
        [0.5  0.25] 1
    """
    program = TangentProgram(step, carry, given)
    diagonals = find_units(program, products)
    new, _ = program(real_parts(carry), real_parts(carry), given)
    blocks = diagonals.blocks(program, real_parts(carry), given)
    return UnitBlocks(from_real_parts(new, carry), blocks, diagonals.products)


def split_units(parts: Sequence[Any], units: int) -> Any:
    """Stack the parts of a carry unit by unit, ``(*B, H, m)``.

    Args:
        parts: real arrays ``(*B, k H)``; the k blocks of each follow one another.
        units: H.
    """
    wide = [accumulator(a.dtype) for a in parts]
    dtype = max(wide, key=lambda dtype: jnp.finfo(dtype).bits)
    blocks = [
        a.astype(dtype).reshape(*a.shape[:-1], a.shape[-1] // units, units)
        for a in parts
    ]
    return jnp.moveaxis(jnp.concatenate(blocks, -2), -2, -1)


def join_units(vectors: Any, like: Sequence[Any]) -> list[Any]:
    """Return the parts of a carry: the inverse of `split_units`.

    Args:
        vectors: ``(..., *B, H, m)``, with further axes in front.
        like: parts with the last axes and dtypes of the result.
    """
    units, parts, start = vectors.shape[-2], [], 0
    for a in like:
        count = a.shape[-1] // units
        part = jnp.moveaxis(vectors[..., start : start + count], -1, -2)
        parts.append(part.reshape(*part.shape[:-2], -1).astype(a.dtype))
        start += count
    return parts


class UnitForm(NamedTuple):
    """How a tangent program divides into units.

    Attributes:
        units: H.
        products: as in `UnitBlocks`.
        instead: what replaces the matmuls, by the ``id`` of the equation.
    """

    units: int
    products: int
    instead: dict[int, Callable]

    def blocks(
        self, program: TangentProgram, parts: Sequence[Any], given: PyTree
    ) -> Float[Array, "*B H M M"]:
        """Return the block of each unit, by m tangents of ones."""
        size = sum(a.shape[-1] for a in parts) // self.units

        def column(direction):
            lead = (*parts[0].shape[:-1], self.units, size)
            tangents = join_units(jnp.broadcast_to(direction, lead), parts)
            _, moved = program(parts, tangents, given, self.instead)
            return split_units(moved, self.units)

        return jax.vmap(column, out_axes=-1)(jnp.eye(size, dtype=parts[0].dtype))


def find_units(program: TangentProgram, products: str | None) -> UnitForm:
    """Find the units of a step.

    Args:
        program: the step and its tangent.
        products: as in `unit_blocks`; None if no matmul is to be replaced, so that the
            units must not see each other at all.

    Raises:
        MixedUnitsError: if they do, otherwise than ``products`` allows.
    """
    shapes = [v.aval.shape for v in program.closed.jaxpr.invars[: program.parts]]
    if not all(shapes) or len({shape[:-1] for shape in shapes}) != 1:
        raise MixedUnitsError(
            f"the parts of the carry have the shapes {', '.join(map(str, shapes))}, so "
            "they have no units in common: (*B, k H) is wanted of each"
        )
    mixing: list[Any] = []
    for units in unit_counts(shapes):
        form = _form(program, shapes, units, products, mixing)
        if form is not None:
            return form
    names = ", ".join(dict.fromkeys(eqn.primitive.name for eqn in mixing))
    raise MixedUnitsError(
        f"units of the carry see each other through {names or 'a change of places'} in "
        f"the step, so its Jacobian has no blocks by units"
    )


def unit_counts(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Return the numbers of units that are tried, the largest first.

    Parts may lie side by side in one array, as the halves of
    `jaxrnn.cells.NonlinearRTU`'s carry.
    """
    whole = math.gcd(*(shape[-1] for shape in shapes))
    return [whole // k for k in range(1, 5) if whole and whole % k == 0]


def _form(
    program: TangentProgram,
    shapes: Sequence[tuple[int, ...]],
    units: int,
    products: str | None,
    mixing: list[Any],
) -> UnitForm | None:
    """Return the form with so many units, or None if that is not the step's."""
    batch = shapes[0][:-1]
    index = np.arange(math.prod(batch) * units, dtype=np.int32).reshape(*batch, units)
    wanted = [np.tile(index, shape[-1] // units) for shape in shapes]
    jaxpr = program.closed.jaxpr
    rest = [None] * (len(jaxpr.invars) - 2 * program.parts)
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

    of_tangents = follow(
        jaxpr, [*[None] * program.parts, *wanted, *rest], rule, mixing
    )[program.parts :]
    for found, label in zip(of_tangents, wanted, strict=True):
        if found is not None and not ((found == label) | (found == NONE)).all():
            return None
    return UnitForm(units, _products_in_a_row(program, instead), instead)


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
    moved = labels.transpose(*batch, *free, *over)
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
        blocks = matrix.reshape(
            *lead,
            matrix.shape[-2] // period,
            period,
            matrix.shape[-1] // period,
            period,
        )
        diagonals = jnp.diagonal(blocks, axis1=n + 1, axis2=n + 3)  # (*batch, k, l, H)
        diagonals = diagonals.reshape(*lead, *(1,) * len(free), *diagonals.shape[n:])
        a = a.reshape(*a.shape[:-1], -1, 1, period)
        y = (a.astype(out.dtype) * diagonals.astype(out.dtype)).sum(-3)
        y = y.reshape(*y.shape[:-2], -1)
        return y if side == 0 else jnp.moveaxis(y, -1, n)

    return product


def _products_in_a_row(program: TangentProgram, instead: dict[int, Callable]) -> int:
    """Count the replaced products on the longest path to the new tangent."""
    jaxpr, depth = program.closed.jaxpr, dict[Any, int]()

    def of(atom):
        return 0 if isinstance(atom, core.Literal) else depth.get(atom, 0)

    for eqn in jaxpr.eqns:
        most = max(map(of, eqn.invars), default=0) + (id(eqn) in instead)
        depth.update(dict.fromkeys(eqn.outvars, most))
    return max(map(of, jaxpr.outvars[program.parts :]), default=0)
