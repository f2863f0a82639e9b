"""What cells share that run in chunks and may look back at their last few inputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ..core.cell import Cell
from ..core.dtypes import accumulator
from ..core.flags import expand_flags, select
from ..core.lagged_inputs import lagged_inputs
from ..core.types import Carry, Params, PyTree
from .chunkwise import steps_not_finite


class LookingBack(Cell):
    """A cell that may look back at its last few inputs, as a short convolution does.

    A subclass that does sets ``looks_back``, and defines ``look_back`` and
    ``remembered_size``. Its carry has a part ``recent`` for them.
    """

    @property
    def looks_back(self) -> int:
        """W, the number of steps, with the present one, that `look_back` is given.

        0, the default, if it is not called.
        """
        return 0

    def remembered(self, params: Params, z: PyTree) -> Float[Array, "*TB F"]:
        """Return the part of z that later steps look back at; by default all of it."""
        return z

    def look_back(
        self, params: Params, z: PyTree, recent: list[Float[Array, "*TB F"]]
    ) -> PyTree:
        """Return what the other methods are given in place of z.

        A short convolution stands here.

        Args:
            params: the parameters.
            z: ``project(params, x)``.
            recent: what is `remembered` of this step, of the one before it, and so on;
                W arrays, zero before the beginning of a sequence.
        """
        raise NotImplementedError(
            f"{type(self).__name__} sets looks_back, so it must define "
            f"look_back(self, params, z, recent)"
        )

    def remembered_size(self, params: Params) -> int:
        """Return F, the number of features that are `remembered`."""
        raise NotImplementedError(
            f"{type(self).__name__} sets looks_back, so it must define "
            f"remembered_size(self, params), the number of features that remembered "
            f"returns"
        )

    def empty_recent(
        self, params: Params, batch: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B W F"] | None:
        """Return zeros, what is remembered before a sequence, or None."""
        if not self.looks_back:
            return None
        shape = (*batch, self.looks_back, self.remembered_size(params))
        return jnp.zeros(shape, accumulator(dtype))

    # ------------------------------------------------------- time over devices
    def stretch(
        self,
        params: Params,
        carry: Carry,
        zs: PyTree,
        mask: Bool[Array, "T *B"] | None,
        resets: Bool[Array, "T *B"] | None,
        reverse: bool,
    ) -> Any:
        """Return what a stretch of steps makes of any state that enters it.

        Args:
            params: the parameters, from ``init``.
            carry: a carry; what is remembered before the stretch is read from it, and
                of its state only the shape.
            zs: ``project(params, xs)``.
            mask: False where a step keeps the carry, or None.
            resets: True where the initial carry replaces the carry before a step, or
                None.
            reverse: whether the steps run from the last to the first.

        Returns:
            A map that can be applied to a state and joined with another one; see
            `jaxrnn.matrix.stretch`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define stretch, which devices that split time "
            f"exchange"
        )

    def parts(self, carry: Carry) -> tuple[Any, Array | None]:
        """Return the state of a carry, and what later steps look back at."""
        raise NotImplementedError

    def with_parts(self, carry: Carry, state: Any, recent: Array | None) -> Carry:
        """Return a carry with another state, and with other inputs to look back at."""
        raise NotImplementedError

    def take_in(
        self, params: Params, recent: Array | None, z: PyTree
    ) -> tuple[Array | None, PyTree]:
        """Take one step's z in, and look back from it.

        Args:
            params: the parameters.
            recent: ``(*B, W, F)``, what was remembered before the step, or None.
            z: ``project(params, x)``.

        Returns:
            What is remembered after the step, and what `look_back` returns.
        """
        if recent is None:
            return None, z
        new = self.remembered(params, z).astype(recent.dtype)
        if new.shape != recent[..., 0, :].shape:
            raise ValueError(
                f"{type(self).__name__}: remembered must return one array (*B, F) with "
                f"the F = {recent.shape[-1]} features that remembered_size and the "
                f"carry say, {recent[..., 0, :].shape}, but its shape is {new.shape}"
            )
        recent = jnp.concatenate([recent[..., 1:, :], new[..., None, :]], -2)
        lags = [recent[..., -1 - j, :] for j in range(self.looks_back)]
        return recent, self.look_back(params, z, lags)

    def read_inputs(
        self,
        params: Params,
        recent: Array | None,
        zs: PyTree,
        batch_ndim: int,
        mask: Bool[Array, "T *B"] | None,
        resets: Bool[Array, "T *B"] | None,
        reverse: bool,
    ) -> tuple[Array | None, Any, Bool[Array, "T *B"]]:
        """Look back from all steps of a sequence, and find the steps that are not
        finite.

        Returns:
            What is remembered after the sequence; what `look_back` returns, zero at
            steps that are not finite; and which steps those are.
        """
        if recent is not None:
            batch = recent.shape[:batch_ndim]
            if resets is not None and not self.begins_with_zeros(params, batch, 1):
                raise ValueError(
                    f"{type(self).__name__}: initial_carry gives `recent`, what steps "
                    f"look back at, other values than zero, and chunks see zeros after "
                    f"a reset: leave it zero, or take single steps, "
                    f"engine=jaxrnn.Scan()"
                )
            recent, lags = lagged_inputs(
                recent, self.remembered(params, zs), mask, resets, reverse
            )
            zs = self.look_back(params, zs, lags)
        bad = steps_not_finite(zs, batch_ndim)
        zs = jax.tree.map(
            lambda z: jnp.where(expand_flags(bad, z), jnp.zeros_like(z), z), zs
        )
        return recent, zs, bad

    def begins_with_zeros(
        self, params: Params, batch: tuple[int, ...], part: int
    ) -> bool:
        """Whether part 0 or 1 of ``parts`` of the initial carry is known to be zero.

        It is not known where it depends on traced parameters.
        """
        with jax.ensure_compile_time_eval():
            leaves = jax.tree.leaves(
                self.parts(self.initial_carry(params, batch))[part]
            )
            if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
                return False
            return not any(bool(jnp.any(leaf)) for leaf in leaves)

    def run_one_step(
        self,
        params: Params,
        carry: Carry,
        zs: PyTree,
        mask: Bool[Array, "1 *B"] | None,
        resets: Bool[Array, "1 *B"] | None,
    ) -> tuple[Carry, Float[Array, "1 *B H"]]:
        """Take the step of a sequence of one, as when streaming.

        Returns:
            The carry after the step, and h as a sequence.
        """
        if resets is not None:
            batch, dtype = carry.h.shape[:-1], carry.h.dtype
            carry = select(resets[0], self.initial_carry(params, batch, dtype), carry)
        new = self.step(params, carry, jax.tree.map(lambda z: z[0], zs))
        if mask is not None:
            new = select(mask[0], new, carry)
        return new, new.h[None]
