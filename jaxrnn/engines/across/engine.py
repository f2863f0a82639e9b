"""The engine that splits time over devices."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Bool

from ...core.cell import (
    Cell,
    is_chunkwise,
    is_linear,
    unsupported_chunkwise_reason,
    without_context,
)
from ...core.engine import AbstractEngine, Request, Supports
from ...core.time_split import AUTO, GATHER, PERMUTE, Axis, TimeSplit
from ...core.types import Carry, Inputs, Params
from ...matrix.looking_back import LookingBack
from ..associative import Associative
from ..engine import DefaultEngine
from .chunkwise import run_chunkwise
from .linear import run_linear

INSTEAD = (
    "split the batch over the devices instead, or the layers of a stack by "
    "jaxrnn.distributed.wavefront; engine=jaxrnn.Newton() solves for many steps at "
    "once, of whole sequences that are not split"
)


@dataclasses.dataclass(frozen=True)
class Across(AbstractEngine):
    """Split time over the devices of a mesh axis, for cells linear in their state.

    Inside ``jax.shard_map(..., check_vma=False)`` every device is given its own stretch
    of the steps, ``(T / n, *B, D)``. A whole stretch maps the state that enters it to
    ``A s + S``. The devices exchange A and S, two states a cell; each finds the state
    that enters its own stretch, and runs its steps from there by ``engine``. Backwards
    the cotangents of the state go through the same maps. So the bytes that are
    exchanged do not depend on T, and what a device holds is what its own steps need.
    (LASP-2, Sun et al. 2025, arXiv:2502.07563, exchanges states in this way.)

    It runs every `jaxrnn.LinearCell`, `jaxrnn.MatrixCell` and
    `jaxrnn.extending.StateSpaceCell`, alone or inside layers. Results are those of one
    device up to rounding: with masks, resets, ``reverse``, learned and given carries,
    and `bidirectional` layers. Convolutions are sent the last inputs of the devices
    before. Gradients are JAX's outside of ``shard_map``; inside of it, they are those
    of the sum of all devices' losses, and those of parameters and of the first carry
    must be summed over the axis.

    ``params`` and the first carry are the same on every device, and so is the carry
    that `unroll` returns, which is that after the last step of all. A layer of one's
    own that reads earlier inputs, other than through cells, has to ask
    ``spec.time_split``. Noise is drawn for each device. On a stretch without any valid
    step a mask fills padding from other rows, or by 0.5. A carry in float16 that is NaN
    or infinite does not reach a device behind decays whose product rounds to 0; in all
    other dtypes it does.

    On a mesh of explicit axes `unroll` uses this engine by itself where the type of the
    inputs splits time.

    Args:
        axis: the name of the mesh axis, or a tuple of names.
        engine: the engine that runs the steps of a device. The default is that of
            `unroll`.
        exchange: ``"gather"``: every device is sent all maps, by one collective
            operation and in n times their bytes. ``"permute"``: ``log2 n`` operations,
            each of the bytes of one map. ``"auto"`` gathers up to 64 devices.

    Raises:
        TypeError: at trace time, for a cell that is not linear in its state.
        ValueError: for options that do not exist; at trace time, where there is no such
            axis, under ``check_vma=True``, and for truncation.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jax.sharding import PartitionSpec as P
        >>> mesh = jax.sharding.Mesh(jax.devices(), ("time",))
        >>> cell = jaxrnn.MinGRU(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> def run(params, xs):
        ...     return jaxrnn.unroll(cell, params, xs, engine=jaxrnn.Across("time"))
        >>> split = jax.shard_map(
        ...     run, mesh=mesh, in_specs=(P(), P("time")), out_specs=(P(), P("time")),
        ...     check_vma=False,
        ... )
        >>> carry, ys = split(params, jnp.ones((8 * len(mesh.devices), 3)))
        >>> carry.shape, ys.shape == (8 * len(mesh.devices), 4)
        ((4,), True)
    """

    supports: ClassVar[Supports] = Supports.RESETS | Supports.ALL_CARRIES

    axis: Axis
    engine: AbstractEngine | None = None
    exchange: str = AUTO

    def __post_init__(self):
        if self.exchange not in (AUTO, GATHER, PERMUTE):
            raise ValueError(
                f"Across: exchange must be {GATHER!r}, {PERMUTE!r} or {AUTO!r}, but it "
                f"is {self.exchange!r}"
            )
        names = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError(
                f"Across: axis must be the name of a mesh axis, or a tuple of names, "
                f"but it is {self.axis!r}"
            )
        inner = self.engine
        if inner is not None and not isinstance(inner, AbstractEngine):
            raise TypeError(
                f"Across: engine must be an engine such as jaxrnn.Scan(), but it is "
                f"{inner!r}"
            )
        if isinstance(inner, Across):
            raise ValueError(
                f"Across: engine is {inner!r}, but time is split once: name both axes "
                f"in a tuple, Across(('outer', 'inner'))"
            )

    @property
    def time_split(self) -> TimeSplit:
        return TimeSplit(self.axis, self.exchange)

    @property
    def devices(self) -> int:
        """The number of devices over which time is split."""
        return self.time_split.size

    def unsupported_reason(self, cell: Cell, request: Request) -> str | None:
        """Say why the engine does not support a request, or None."""
        reason = super().unsupported_reason(cell, request)
        if reason is None and request.all_carries and is_chunkwise(cell):
            return (
                f"Across does not know the carries of {type(cell).__name__} after "
                f"every step, which return_carries asks for, on any device"
            )
        return reason or self.engine_for(cell).unsupported_reason(cell, request)

    def engine_for(self, cell: Cell) -> AbstractEngine:
        """Return the engine that runs the steps of a device."""
        if self.engine is not None:
            return self.engine
        return Associative() if is_chunkwise(cell) else DefaultEngine()

    def run(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Inputs,
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """Run this device's steps; see `AbstractEngine.run`.

        Returns:
            The carry after the last step of all, and the carries after every step of
            this device.
        """
        sequence = (xs, mask, resets)
        split, engine = self.time_split, self.engine_for(cell)
        split.check((params, carry, sequence))
        if (why := self.refusal(cell)) is not None:
            raise TypeError(why)
        if split.size == 1 or not jax.tree.leaves(xs)[0].shape[0]:
            return engine.run(cell, params, carry, *sequence, reverse)
        run: Any = run_linear if is_linear(cell) else run_chunkwise
        return run(split, engine, cell, params, carry, sequence, reverse)

    def refusal(self, cell: Cell) -> str | None:
        """Say why time cannot be split for a cell, and what to do instead, or None."""
        if is_linear(cell):
            return None
        plain = without_context(cell)
        name = type(plain).__name__
        if isinstance(plain, LookingBack) and is_chunkwise(plain):
            why = unsupported_chunkwise_reason(plain)
            if plain is not cell:
                why = "it takes a context, so its steps run one by one"
            return None if why is None else f"Across: {name}: {why}: {INSTEAD}"
        return (
            f"Across: {name} is not linear in its state, so the state that enters a "
            f"device's steps is not known before all earlier steps have run: {INSTEAD}"
        )
