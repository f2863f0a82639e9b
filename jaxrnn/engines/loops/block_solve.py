"""Linear recurrences with matrices, parallel in time::

    d_t = A_t d_{t-1} + b_t,        d_0 = 0

with an (m, m) block ``A_t`` for each of any number of groups. The composition of two
such maps is one again, ``(A2, b2) o (A1, b1) = (A2 A1, A2 b1 + b2)``.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .parallel_prefix import carries_before

SMALL = 4  # blocks up to this size are multiplied by broadcasting
SHORT = 8  # so few steps are run one after another


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def solve_blocks(
    blocks: Inexact[Array, "T *G M M"],
    addends: Inexact[Array, "T *G M"],
    reverse: bool = False,
    prefix: bool = False,
    guard: bool = False,
) -> Inexact[Array, "T *G M"]:
    """Compute ``d_t = A_t d_{t-1} + b_t`` for all t, from ``d_0 = 0``.

    By default about sqrt(T) parts of sqrt(T) steps run side by side: first each part's
    product of blocks, and its ``d`` from zero; then, one after another, the ``d`` at
    their ends; then the steps of all parts from there. That takes m^3 operations a step
    and some 4 sqrt(T) steps one after another. Parallel prefixes take twice as many
    operations and log T steps, and are slow to compile.

    A step whose block is zero, as after a reset, does not depend on what was before,
    even if that is not finite.

    Args:
        blocks: the matrices A, ``(T, *groups, m, m)``.
        addends: the vectors b, ``(T, *groups, m)``.
        reverse: whether the steps run from the last to the first.
        prefix: whether parallel prefixes are computed.
        guard: whether a zero in ``d_{t-1}`` stays zero if ``A_t`` is not finite. The
            result is then not linear in b.

    Returns:
        The vectors d, ``(T, *groups, m)``.

    Example:
        >>> import jax.numpy as jnp
        >>> blocks = jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)
        >>> print(solve_blocks(blocks, jnp.ones((3, 1)))[:, 0])
        [ 1.  3. 10.]
    """
    return _solve(blocks, addends, reverse, prefix, _GUARDED if guard else apply_block)


def _solve(blocks: Any, addends: Any, reverse: bool, prefix: bool, apply: Any) -> Any:
    """Solve the recurrence; ``apply`` multiplies a vector by a block."""
    if prefix:
        compose = functools.partial(_compose, apply=apply)
        return jax.lax.associative_scan(compose, (blocks, addends), reverse=reverse)[1]
    steps = addends.shape[0]
    if steps <= SHORT:
        return _run(apply, jnp.zeros_like(addends[0]), blocks, addends, reverse)
    if reverse:
        blocks, addends = blocks[::-1], addends[::-1]
    size = math.isqrt(steps - 1) + 1
    count = -(-steps // size)

    def in_parts(a):
        a = jnp.pad(a, [(0, count * size - steps), *[(0, 0)] * (a.ndim - 1)])
        return a.reshape(count, size, *a.shape[1:]).swapaxes(0, 1)

    blocks, addends = in_parts(blocks), in_parts(addends)
    # JAX transposes a scan whose carry is linear in the addends, so the products are
    # computed apart.
    products, _ = jax.lax.scan(
        lambda early, late: (_multiply(late, early, apply is not _times), None),
        blocks[0],
        blocks[1:],
    )
    ends = _run(apply, jnp.zeros_like(addends[0]), blocks, addends, False)[-1]
    after = _run(apply, jnp.zeros_like(ends[0]), products, ends, False)
    starts = carries_before(jnp.zeros_like(ends[0]), after, False)
    d = _run(apply, starts, blocks, addends, False)
    d = d.swapaxes(0, 1).reshape(count * size, *d.shape[2:])[:steps]
    return d[::-1] if reverse else d


@solve_blocks.defjvp
def _solve_blocks_jvp(
    reverse: bool, prefix: bool, guard: bool, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    """Differentiate: ``d'_t = A_t d'_{t-1} + (A'_t d_{t-1} + b'_t)``.

    By the rules of the operations, a block of zeros would have no derivative. So the
    tangents are solved for without tests for zeros: they are differentiated again.
    """
    (blocks, addends), (d_blocks, d_addends) = primals, tangents
    d = solve_blocks(blocks, addends, reverse, prefix, guard)
    before = carries_before(jnp.zeros_like(d[0]), d, reverse)
    moved = _times(d_blocks, before) + d_addends
    return d, _solve(blocks, moved, reverse, prefix, _times)


def _run(apply: Any, first: Any, blocks: Any, addends: Any, reverse: bool) -> Any:
    """Run the recurrence step by step."""

    def step(d, now):
        d = apply(now[1], d) + now[0]
        return d, d

    return jax.lax.scan(step, first, (addends, blocks), reverse=reverse)[1]


def _compose(early: Any, late: Any, apply: Any) -> tuple[Any, Any]:
    """Compose two maps."""
    moved = apply(late[0], early[1])
    return _multiply(late[0], early[0], apply is not _times), moved + late[1]


def _multiply(late: Any, early: Any, forgets: bool) -> Any:
    """Multiply blocks in full precision; ``forgets``: a block of zeros gives zeros."""
    if late.shape[-1] <= SMALL:
        product = (late[..., :, :, None] * early[..., None, :, :]).sum(-2)
    else:
        product = jnp.matmul(late, early, precision=jax.lax.Precision.HIGHEST)
    if not forgets:
        return product
    return jnp.where(_is_zero(late), jnp.zeros_like(product), product)


def apply_block(block: Any, vector: Any, guard: bool = False) -> Any:
    """Multiply vectors by blocks, in full precision.

    Args:
        block: ``(*groups, m, m)``.
        vector: ``(*groups, m)``.
        guard: whether a zero of the vector stays zero whatever it is multiplied by.
    """
    row = vector[..., None, :]
    if guard:
        block = jnp.where(row == 0, jnp.zeros_like(block), block)
    moved = _times(block, vector)
    return jnp.where(_is_zero(block)[..., 0], jnp.zeros_like(moved), moved)


def _times(block: Any, vector: Any) -> Any:
    """Multiply vectors by blocks; linear in both."""
    if block.shape[-1] <= SMALL:
        return (block * vector[..., None, :]).sum(-1)
    return jnp.einsum(
        "...ij,...j->...i", block, vector, precision=jax.lax.Precision.HIGHEST
    )


_GUARDED = functools.partial(apply_block, guard=True)


def _is_zero(block: Any) -> Any:
    return (block == 0).all((-2, -1), keepdims=True)
