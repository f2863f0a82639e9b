"""The engine that is parallel in time for cells that are not linear in their state."""

from __future__ import annotations

import dataclasses
import math
import numbers

import jax

from ..core.cell import Cell
from ..core.types import Carry, Params, Size
from ..core.validation import check_auto, check_positive
from .engine import LoopEngine
from .jaxpr.carry_blocks import (
    AUTO,
    FULL,
    UNITS,
    blocks_of_step,
    bytes_of_blocks,
    program_of_step,
)
from .jaxpr.evaluate import is_differentiable
from .jaxpr.tangent_program import NoTangentError
from .jaxpr.unit_blocks import MixedUnitsError
from .loops.newton import MOST_BLOCK_BYTES, NAN, SCAN, NewtonIteration
from .recurrence.heuristics import CARRIES, DOTS, STARTS
from .recurrence.run import Sequence, flat_step, unsupported_arrays_reason
from .recurrence.schedule import LoopSchedule


@dataclasses.dataclass(frozen=True)
class Newton(LoopEngine):
    """Run the steps of any cell in parallel, by Newton's method on all states at once.

    ::

        r_t = f(s_{t-1}) - s_t,    d_t = A_t d_{t-1} + r_t,    s_t <- s_t + d_t

    From a guess of all states of a chunk, an iteration evaluates the step f and its
    Jacobian A at all of them at once, and solves the linear recurrence in parallel
    (Lim et al. 2024, arXiv:2309.12252; Gonzalez et al. 2024, arXiv:2407.19115). K steps
    take K iterations at most, and a handful where the recurrence contracts; near and
    above a Lyapunov exponent of zero they take so many that it does not pay.
    `jaxrnn.diagnostics.newton_report` counts them. A chunk that has not converged runs
    step by step, so values are always those of `Scan`, up to rounding.

    This engine is meant for accelerators, where a step of a loop costs a launch, and
    for small or unit-wise cells; it has not been measured on one. On a CPU the
    iterations cost more than they save (docs/explanation/newton.md). It is chosen by
    name only.

    A is an (m, m) block for each unit where no unit sees another, which is found from
    the equations of the step: one number for `IndRNN`, four for `DiagonalLSTM`. Where
    only units of the same head see each other, as in `SLSTM`, it is a block for each
    head. Otherwise A is a matrix of all n numbers of the carry, with n^3 operations a
    step.

    The gradient is that of the states that solve the equations. The loop backwards is
    linear and takes one iteration, by the whole Jacobian whatever ``jacobian`` is.
    Masks, resets, truncation and ``vmap`` work as for `Scan`; forward mode runs step by
    step. Under ``vmap`` the iterations go on until the slowest member has converged.

    Args:
        chunk: steps that are solved for together; the chunks run one after another. A
            smaller chunk takes less memory and, near an exponent of zero, fewer
            iterations. None is all of T. ``"auto"`` chooses by the rules in
            `jaxrnn.engines.recurrence.heuristics`.
        jacobian: ``"auto"`` for blocks by units, or else by heads, where they are the
            whole Jacobian, and otherwise one of all units; ``"full"`` for the latter
            in any case; ``"units"`` for blocks by units in any case, with the diagonals
            of the matmuls between them (quasi-Newton): cheaper iterations, and several
            times as many.
        max_iterations: the most iterations a chunk.
        tolerance: the largest change ``|d| / (1 + |s|)`` of the last iteration. None is
            50 epsilon of the carry's dtype, float32 at least.
        fallback: what becomes of a chunk that has not converged: ``"scan"``, it is run
            step by step; ``"nan"``, its states are NaN from the first that is not
            known.
        save: what the forward pass saves for the backward pass: ``"carries"`` and
            ``"dots"`` as in `Scan`; ``"starts"``, only the carries at chunk starts, as
            in `Checkpoint`, from which each chunk is solved again.

    Raises:
        TypeError: for a cell whose carry is not floating-point.
        ValueError: for options that are none of these; for ``jacobian="units"`` and a
            step that mixes its units otherwise than by matmuls; for a Jacobian that is
            too large; for a step without a derivative in forward mode; for arrays that
            only ``jax.lax.scan`` supports.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.DiagonalLSTM(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs, engine = jnp.ones((100, 3)), jaxrnn.Newton(chunk=50)
        >>> _, ys = jaxrnn.unroll(cell, params, xs, engine=engine)
        >>> bool(jnp.allclose(ys, jaxrnn.unroll(cell, params, xs)[1], atol=1e-5))
        True
    """

    chunk: int | str | None = AUTO
    jacobian: str = AUTO
    max_iterations: int = 32
    tolerance: float | None = None
    fallback: str = SCAN
    save: str = CARRIES

    def __post_init__(self):
        check_auto(self, chunk=self.chunk)
        check_positive(self, max_iterations=self.max_iterations)
        for name, value, words in (
            ("jacobian", self.jacobian, (AUTO, UNITS, FULL)),
            ("fallback", self.fallback, (SCAN, NAN)),
            ("save", self.save, (CARRIES, DOTS, STARTS)),
        ):
            if value not in words:
                raise ValueError(
                    f"Newton: {name} must be one of {', '.join(map(repr, words))}, but "
                    f"it is {value!r}"
                )
        # An infinite one would call the guess converged before the first iteration.
        if self.tolerance is not None and not (
            isinstance(self.tolerance, numbers.Real) and 0 <= self.tolerance < math.inf
        ):
            raise ValueError(
                f"Newton: tolerance must be a finite number of at least 0, or None for "
                f"50 epsilon, but it is {self.tolerance!r}"
            )
        if self.save == STARTS and self.chunk == AUTO:
            raise ValueError(
                "Newton: save='starts' saves the carries at chunk starts, so it needs "
                "a chunk, but chunk is 'auto': give a number of steps"
            )

    def schedule(self, cell: Cell, length: Size | None) -> LoopSchedule:
        loop = NewtonIteration(
            self.jacobian, self.max_iterations, self.tolerance, self.fallback
        )
        return LoopSchedule(loop, self.chunk, self.save, hoist=True)

    def check(
        self, cell: Cell, params: Params, carry: Carry, sequence: Sequence
    ) -> None:
        name = type(cell).__name__
        for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
            if not is_differentiable(jax.typeof(leaf)):
                raise TypeError(
                    f"Newton: carry{jax.tree_util.keystr(path)} of {name} is "
                    f"{leaf.dtype}, which has no derivative, so Newton's method cannot "
                    "solve for it: make it an input or a float, or use Scan()"
                )
        if unsupported_arrays_reason(jax.tree.leaves((params, carry, sequence))):
            return  # `run_schedule` says why
        step, _ = flat_step(cell, params, carry, sequence)
        try:
            form = blocks_of_step(step, self.jacobian)
        except MixedUnitsError as error:
            raise ValueError(
                f"Newton: jacobian='units', but of {name} {error}: leave jacobian out"
            ) from None
        except NoTangentError as error:
            raise ValueError(
                f"Newton: {name} has no Jacobian, because {error}: use Scan()"
            ) from None
        needed = bytes_of_blocks(form, program_of_step(step).part_avals)
        if needed > MOST_BLOCK_BYTES:
            raise ValueError(
                f"Newton: the Jacobian of a step of {name} takes {needed:,} bytes, "
                f"more than the {MOST_BLOCK_BYTES:,} that are allowed: use Scan(), a "
                "smaller cell or batch, jacobian='units' where the cell has units, or "
                "Associative() for a cell that is linear in its state"
            )
