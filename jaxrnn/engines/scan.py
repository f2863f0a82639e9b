"""Sequential time with a backward pass of its own: the default engine, for every
cell and every derivative mode.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Bool

from ..core.cell import Carry, Cell, Params, is_linear
from ..core.validation import check_positive
from .recurrence.heuristics import ALL, CARRIES, GATES
from .recurrence.passes import AUTO, Pace
from .recurrence.primitives import Plan
from .recurrence.run import check_hoist, run_plain_scan, run_recurrence


@dataclasses.dataclass(frozen=True)
class Scan:
    """Walk time one step after another with ``jax.lax.scan``, and back with only the
    carry's cotangent in the loop.

    The step of any cell is split by what depends on what. Forwards, all that needs no
    carry (a projection of the inputs) is done for a window of steps at once. Backwards,
    every carry is known, so the step is linearized for a window at once; the loop
    passes on the carry's cotangent alone; and each weight gradient is one matmul over
    the window's steps and the batch. ``vmap``, forward mode and derivatives of any
    order work as for ordinary JAX code, and ``grad`` of a ``vmap`` is that of the batch
    written out: no weight gradient an example.

    A `LinearCell` without options keeps its carries only and makes its factors before
    the loop; everywhere but on a CPU it is walked by parallel prefixes, as by
    `Associative`.

    A ``lax.cond`` whose branches are cheap runs both of them where it does not need the
    carry, as under ``vmap``; one with a dear branch, and every ``lax.while_loop``,
    stays in the loop. A gradient of a parameter that no product over time can sum, of
    an embedding looked up in the step, say, is added up in the loop as ``lax.scan``
    does it. Steps whose pullback cannot be traced (a ``while_loop`` has none), and
    those where a backward pass of its own has nothing to save, are differentiated as
    ``lax.scan`` is. Steps with side effects, callbacks or rbg random numbers, and
    arrays whose types belong to JAX's own loops (symbolic sizes, typed keys,
    ``jax.shard_map`` with ``check_vma=True``) are walked by ``lax.scan`` altogether.
    `jaxrnn.explain` says which it is and why.

    Args:
        unroll: steps per iteration of the compiled loops. More code, rarely faster.
        hoist: True: what needs no carry before the loop, a window at once; False: all
            in the loop; None: chosen for the platform. True is refused for a cell that
            has no such matmul.
        window: steps in a window; one longer than T is all of T. None: chosen for the
            platform when compiled, see `jaxrnn.engines.recurrence.heuristics`. A
            smaller one takes less memory, and more but smaller matmuls.
        residuals: what the forward pass keeps for the backward one besides the carries
            that it reads: ``"gates"``: what the step's matmuls gave, or less if that is
            enough, so that none is done twice; ``"carries"``: nothing, the gates are
            made again by one matmul a window; ``"all"``: JAX's own rule for
            ``lax.scan``, which keeps every intermediate and sums weight gradients in
            the loop (``window`` does not apply; over several devices XLA's CPU compiler
            adds them up between devices at every step, where the others do it once).
            None: one of the three, mostly ``"gates"``, chosen by counting bytes and
            operations, see `jaxrnn.engines.recurrence.heuristics`.

    Raises:
        ValueError: for options that are no sizes, or that cannot apply, to this cell or
            these arrays.
    """

    unroll: int = 1
    hoist: bool | None = None
    window: int | None = None
    residuals: str | None = None

    def __post_init__(self):
        check_positive(self, unroll=self.unroll)
        if self.window is not None:
            check_positive(self, window=self.window)
        if self.hoist not in (None, True, False):
            raise ValueError(
                f"Scan: hoist must be True, False or None, but it is {self.hoist!r}"
            )
        if self.residuals not in (None, GATES, CARRIES, ALL):
            raise ValueError(
                f"Scan: residuals must be {GATES!r}, {CARRIES!r}, {ALL!r} or None, but "
                f"it is {self.residuals!r}"
            )
        if self.residuals == ALL and self.window is not None:
            raise ValueError(
                f"Scan: residuals={ALL!r} is jax.lax.scan with JAX's own derivative, "
                f"which has no windows, but window is "
                f"{self.window}: leave one of the two out"
            )

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
        """Return the last carry, and the carries after every step ``(T, *B, ...)`` at
        the place of their input.

        ``xs`` is a pytree of ``(T, *B, ...)``. Where ``resets[t]``, the carry becomes
        the initial one before step t; where not ``mask[t]``, it holds.
        """
        if self.hoist:
            check_hoist(cell, params, carry, (xs, mask, resets))
        if self.residuals == ALL:
            return run_plain_scan(
                cell,
                params,
                carry,
                (xs, mask, resets),
                self.hoist is not False,
                reverse,
                self.unroll,
            )
        by_default = isinstance(self, Default)
        if is_linear(cell) and (by_default or self == Scan()):
            plan = Plan(
                Pace(AUTO, hoist=True, reverse=reverse, prefix=None),
                CARRIES,
                by_default,
            )
        else:
            plan = Plan(
                Pace(self.window or AUTO, self.unroll, self.hoist, reverse),
                self.residuals or AUTO,
                by_default,
            )
        return run_recurrence(cell, params, carry, (xs, mask, resets), plan)


class Default(Scan):
    """What ``engine=None`` is: `Scan()`, or a kernel on the platforms that
    `defaults.KERNELS` names.
    """
