"""The sequential engine: any cell, and every mode of differentiation."""

from __future__ import annotations

import dataclasses

from ..core.cell import Cell, is_linear
from ..core.types import Carry, Params, Size
from ..core.validation import check_auto, check_positive
from .engine import LoopEngine
from .loops.kinds import AutoLoop, Sequential
from .recurrence.heuristics import AUTO, CARRIES, DOTS, EVERYTHING
from .recurrence.run import Sequence, check_hoist
from .recurrence.schedule import LoopSchedule


@dataclasses.dataclass(frozen=True)
class Scan(LoopEngine):
    """Run the steps one after another by ``jax.lax.scan``, with its own backward pass.

    The step of a cell is split by what depends on what. Forwards, everything that
    needs no carry (a projection of the inputs) is computed for a chunk of steps at
    once. Backwards, every carry is known, so the step is linearized for a chunk at
    once; only the carry's cotangent is sequential, and each weight gradient is one
    matmul over the chunk's steps and the batch. ``vmap``, forward mode and derivatives
    of any order work as for ordinary JAX code, and ``grad`` of a ``vmap`` costs what
    the written-out batch costs: there is no weight gradient per example.

    A `LinearCell` without options saves its carries only and computes its factors
    before the loop; on every platform but a CPU it runs by parallel prefixes, as under
    `Associative`.

    A ``lax.cond`` with cheap branches runs both of them where it does not need the
    carry, as under ``vmap``; one with an expensive branch, and every
    ``lax.while_loop``, stays in the loop. A gradient that no product over time can
    sum, that of an embedding which is looked up in the step, is accumulated in the
    loop, as ``lax.scan`` does it. Steps whose pullback cannot be traced (a
    ``while_loop`` has none), and steps for which our backward pass saves nothing, are
    differentiated as ``lax.scan`` is. Steps with side effects, callbacks or rbg random
    numbers, and arrays whose types only JAX's own loops support (symbolic sizes, typed
    keys, ``jax.shard_map`` with ``check_vma=True``) run by ``lax.scan`` altogether.
    `jaxrnn.explain` prints which of these it is, and why.

    Args:
        unroll: steps per iteration of the compiled loops. ``"auto"`` is two on
            NVIDIA GPUs and TPUs, where it saves launches and copies of the carry, and
            one elsewhere: on CPUs more is rarely faster.
        hoist: whether what needs no carry is computed before the loop, a chunk at a
            time (True), or in the loop (False). ``"auto"`` chooses for the platform.
            True is refused for a cell that has no such matmul.
        chunk: consecutive steps that are run together: a smaller chunk takes less
            memory, and more but smaller matmuls. None is all of T. ``"auto"`` chooses
            when the program is compiled for a platform, by the rules in
            `jaxrnn.engines.recurrence.heuristics`.
        save: what the forward pass saves for the backward pass besides the carries
            that it reads. The choices correspond to `jax.checkpoint_policies`:
            ``"dots"`` (``dots_saveable``) saves the results of the step's matmuls, or
            less where a minimum cut finds less, so that no matmul is repeated;
            ``"carries"`` (``nothing_saveable``) saves nothing more, and repeats the
            step's matmuls as one matmul a chunk; ``"everything"``
            (``everything_saveable``) is ``jax.lax.scan`` with JAX's own derivative,
            which saves every intermediate value and sums weight gradients in the loop
            (``chunk`` does not apply; over several devices XLA's CPU compiler reduces
            the sums between devices at every step, where the other choices reduce them
            once). ``"auto"`` chooses by counting bytes and operations, mostly
            ``"dots"``. Choose ``"carries"`` where memory is short, ``"everything"``
            to compare with ``lax.scan``.

    Raises:
        ValueError: for options that are not sizes, or that cannot apply to the cell or
            its arrays.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.GRU(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> engine = jaxrnn.Scan(chunk=16, save="carries")
        >>> xs = jnp.ones((100, 2, 3))
        >>> carry, ys = jaxrnn.unroll(cell, params, xs, engine=engine)
        >>> ys.shape
        (100, 2, 4)
    """

    unroll: int | str = AUTO
    hoist: bool | str = AUTO
    chunk: int | str | None = AUTO
    save: str = AUTO

    def __post_init__(self):
        if isinstance(self.unroll, str) and self.unroll != AUTO:
            raise ValueError(
                f"Scan: unroll must be an int of at least 1 or {AUTO!r}, but it is "
                f"{self.unroll!r}"
            )
        if self.unroll != AUTO:
            check_positive(self, unroll=self.unroll)
        check_auto(self, chunk=self.chunk)
        if self.hoist not in (AUTO, True, False):
            raise ValueError(
                f"Scan: hoist must be True, False or 'auto', but it is {self.hoist!r}"
            )
        if self.save not in (AUTO, DOTS, CARRIES, EVERYTHING):
            raise ValueError(
                f"Scan: save must be {DOTS!r}, {CARRIES!r}, {EVERYTHING!r} or "
                f"{AUTO!r}, "
                f"but it is {self.save!r}"
            )
        if self.save == EVERYTHING and self.chunk != AUTO:
            raise ValueError(
                f"Scan: save={EVERYTHING!r} is jax.lax.scan with JAX's own derivative, "
                f"which has no chunks, but chunk is {self.chunk}: leave one of the two "
                "out"
            )

    def schedule(self, cell: Cell, length: Size | None) -> LoopSchedule:
        if is_linear(cell) and self == Scan():
            return LoopSchedule(AutoLoop(prefix=True), save=CARRIES, hoist=True)
        return LoopSchedule(Sequential(self.unroll), self.chunk, self.save, self.hoist)

    def check(
        self, cell: Cell, params: Params, carry: Carry, sequence: Sequence
    ) -> None:
        if self.hoist != AUTO and self.hoist:
            check_hoist(cell, params, carry, sequence)
