"""Time that the type of an array splits, on a mesh of explicit axes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool

from ...core.cell import Cell, ContextCell
from ...core.engine import AbstractEngine, Request, Supports
from ...core.types import Carry, Inputs, Params
from .engine import Across


@dataclasses.dataclass(frozen=True)
class AcrossMesh(AbstractEngine):
    """Run `Across` by a ``jax.shard_map`` of its own, on whole arrays.

    Layers around it see all of time: what rolls or convolves there is split by XLA.

    Attributes:
        across: the engine of every device.
        batch: the mesh axes of each batch axis, or None for an axis that is not split.
    """

    supports: ClassVar[Supports] = Across.supports

    across: Across
    batch: tuple[Any, ...] = ()

    @property
    def devices(self) -> int:
        """The number of devices over which time is split."""
        axis, sizes = self.across.axis, jax.sharding.get_abstract_mesh().shape
        return math.prod(
            sizes[name] for name in ((axis,) if isinstance(axis, str) else axis)
        )

    def unsupported_reason(self, cell: Cell, request: Request) -> str | None:
        """Say why the engine does not support a request, or None."""
        return self.across.unsupported_reason(cell, request)

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
        """Run all steps; see `AbstractEngine.run`."""
        if (why := self.across.refusal(cell)) is not None:
            raise TypeError(
                f"the type of the inputs splits time over the mesh axis "
                f"{self.across.axis!r}. {why}"
            )
        whole, rows = PartitionSpec(), PartitionSpec(*self.batch)
        steps = PartitionSpec(self.across.axis, *self.batch)

        def run(params, carry, xs, mask, resets):
            return self.across.run(cell, params, carry, xs, mask, resets, reverse)

        with_context = isinstance(cell, ContextCell)
        of_params: Any = (whole, rows) if with_context else whole
        return jax.shard_map(
            run,
            in_specs=(of_params, rows, steps, steps, steps),
            out_specs=(rows, steps),
            check_vma=False,
        )(params, carry, xs, mask, resets)
