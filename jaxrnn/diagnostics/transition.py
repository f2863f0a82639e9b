"""One step of a cell or layer as a map of its whole carry, and a trajectory to look at
it along.

The state of an LSTM is (h, c), that of a stack the carries of all its layers: an
instrument that looks at h alone gives other numbers, and wrong ones. All instruments
here take the whole carry.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.cell import (
    Carry,
    Cell,
    Layer,
    Params,
    UnrollSpec,
    accumulator,
    check_cell,
    select,
)
from ..core.masked_inputs import fill_masked_inputs
from ..engines import Scan
from ..unrolling import unroll, unroll_unchecked


@dataclasses.dataclass(frozen=True)
class Transition:
    """``s_t = step(params, s_{t-1}, now_t)``, for a cell or a causal layer without
    randomness.
    """

    cell: Cell | Layer

    def prepare(self, params: Params, xs: Array) -> Any:
        """What needs no carry, for all steps at once."""
        return self.cell.project(params, xs) if isinstance(self.cell, Cell) else xs

    def step(
        self,
        params: Params,
        carry: Carry,
        z: Any,
        keep: Array | None = None,
        reset: Array | None = None,
    ) -> Carry:
        """One step with its flags, from what `prepare` made for it."""
        if reset is not None:
            carry = select(reset, self.cell.initial_carry(params, reset.shape), carry)
        if isinstance(self.cell, Cell):
            new = self.cell.step(params, carry, z)
        else:
            how = UnrollSpec(engine=Scan(save="everything"))
            new = unroll_unchecked(
                self.cell, params, carry, jax.tree.map(lambda a: a[None], z), how
            )[0]
        return new if keep is None else select(keep, new, carry)

    def step_from_input(
        self,
        params: Params,
        carry: Carry,
        x: Array,
        keep: Any = None,
        reset: Any = None,
    ) -> Carry:
        """One step from its input, so that all that the parameters do is in it."""
        return self.step(params, carry, self.prepare(params, x), keep, reset)


class Trajectory(NamedTuple):
    """A walked sequence: inputs, flags, and the carries before and after every step,
    ``(T, *B, ...)``.
    """

    xs: Array
    mask: Array | None
    resets: Array | None
    befores: Carry
    afters: Carry

    @property
    def steps(self) -> int:
        return self.xs.shape[0]

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.xs.shape[1:-1])


def rollout(
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry,
    mask: Any,
    resets: Any,
    engine: Any,
    what: str,
) -> Trajectory:
    """Walk forwards by the engine asked for. ``what`` is the instrument, for its
    errors.
    """
    check_supported(cell, what)
    _, _, afters = unroll(
        cell,
        params,
        xs,
        carry,
        mask=mask,
        resets=resets,
        engine=engine,
        return_carries=True,
    )  # type: ignore[misc]
    xs = fill_masked_inputs(jnp.asarray(xs), mask)
    first = (
        cell.initial_carry(params, tuple(xs.shape[1:-1]))
        if carry is None
        else jax.tree.map(jnp.asarray, carry)
    )
    check_inexact(f"{what}: carry", first, WHOLE_CARRY)
    befores = jax.tree.map(
        lambda s, after: (
            jnp.concatenate([s[None], after[:-1]]) if len(after) else after
        ),
        first,
        afters,
    )
    return Trajectory(xs, mask, resets, befores, afters)


def check_supported(cell: Any, what: str) -> None:
    """The cell or layer has one state that goes forward, the same at every run."""
    check_cell(cell)
    if not getattr(cell, "causal", True):
        raise ValueError(
            f"{what}: a bidirectional layer has no one direction in which its state "
            f"goes: look at each of its layers by "
            "itself, the backward one over inputs turned round"
        )
    if cell.requires_key:
        raise ValueError(
            f"{what}: {type(cell).__name__} draws random numbers, so its Jacobians "
            f"differ from run to run: look at "
            "jaxrnn.inference(layer)"
        )


WHOLE_CARRY = (
    "every part of the carry must be floating-point (a counter can be a float, or an "
    "input)"
)


def check_inexact(what: str, tree: Any, demand: str) -> None:
    """Every leaf has a gradient. ``what`` names the tree, ``demand`` says what is
    asked of it.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{what}{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}, "
                f"through which no gradient flows: {demand}"
            )


def features(carry: Carry, batch: int) -> Array:
    """The carry as real vectors, ``(*B, n)``, in its accumulator's dtype; ``batch``
    leading axes stay.

    Leaf after leaf; of a complex one the real parts, then the imaginary: a cell need
    not be holomorphic in its carry.
    """
    leaves = [part for leaf in jax.tree.leaves(carry) for part in _real_parts(leaf)]
    dtype = max(
        (accumulator(leaf.dtype) for leaf in leaves), key=lambda d: jnp.finfo(d).bits
    )
    return jnp.concatenate(
        [leaf.astype(dtype).reshape(*leaf.shape[:batch], -1) for leaf in leaves],
        axis=-1,
    )


def _real_parts(leaf: Array) -> list[Array]:
    return [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]


def from_features(vectors: Array, like: Carry, batch: int) -> Carry:
    """The inverse of `features`: ``(..., n)`` as a carry with the leaves' trailing
    axes (after ``batch``) and dtypes.
    """
    leaves, structure = jax.tree.flatten(like)
    parts, begin = [], 0

    def take(leaf):
        nonlocal begin
        size = math.prod(leaf.shape[batch:])
        begin += size
        return vectors[..., begin - size : begin].reshape(
            *vectors.shape[:-1], *leaf.shape[batch:]
        )

    for leaf in leaves:
        pieces = [take(leaf) for _ in _real_parts(leaf)]
        parts.append(
            (jax.lax.complex(*pieces) if jnp.iscomplexobj(leaf) else pieces[0]).astype(
                leaf.dtype
            )
        )
    return jax.tree.unflatten(structure, parts)


def size_of(carry: Carry, batch: int) -> int:
    """n: the real numbers in the carry of one sequence."""
    return sum(
        math.prod(leaf.shape[batch:]) * (2 if jnp.iscomplexobj(leaf) else 1)
        for leaf in jax.tree.leaves(carry)
    )
