"""States of sequences, with noise: where searches for fixed points begin."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Carry, Inputs, Params
from ..core.validation import check_int, check_key_given, lead_ndim
from ..unrolling import unroll
from .transition import check_supported


def sample_states(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    count: int,
    *,
    key: Array,
    noise: float = 0.0,
    carry: Carry = None,
    mask: Bool[Array, "T *B"] | None = None,
) -> Carry:
    """Draw states from the trajectories of sequences, for `fixed_points`.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters.
        xs: the inputs, ``(T, *B, D)``.
        count: S, how many states to draw, with replacement.
        key: a random key.
        noise: the standard deviation of normal noise that is added to each number, in
            units of its own standard deviation over the trajectories. Parts that are
            not floating-point get none.
        carry: the carry before the first step (default: the initial carry).
        mask: as for `jaxrnn.unroll`. States of masked steps are not drawn.

    Returns:
        A carry with one leading axis, ``(S, ...)`` per leaf.

    Raises:
        ValueError: as `jaxrnn.unroll`, if there is no state to draw from, or for a
            negative noise.

    Example:
        >>> import jax, jaxrnn.diagnostics
        >>> cell = jaxrnn.LSTM(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (10, 2, 3))
        >>> starts = jaxrnn.diagnostics.sample_states(
        ...     cell, params, xs, 6, key=jax.random.key(2), noise=0.1)
        >>> starts.c.shape
        (6, 4)
    """
    what = "sample_states"
    check_supported(cell, what)
    check_key_given(what, key)
    count = check_int(what, "count", count, 1, 2**30, "of states")
    if not 0 <= noise < math.inf:
        raise ValueError(
            f"{what}: noise must be a finite number of at least 0, but it is {noise!r}"
        )
    _, _, carries = unroll(  # type: ignore[misc]
        cell, params, xs, carry, mask=mask, return_carries=True
    )
    lead = lead_ndim(xs, cell.feature_ndim)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[lead:]), carries)
    if mask is not None:
        valid = np.flatnonzero(np.asarray(mask))
        flat = jax.tree.map(lambda a: a[valid], flat)
    sizes = {len(a) for a in jax.tree.leaves(flat)}
    if not sizes or 0 in sizes:
        raise ValueError(
            f"{what}: there is no state to draw from: {type(cell).__name__} has no "
            f"carry, or the sequences have no valid step"
        )
    k_steps, k_noise = jax.random.split(key)
    chosen = jax.random.choice(k_steps, sizes.pop(), (count,))

    def noisy(number: int, states: Array) -> Array:
        drawn = states[chosen]
        if not noise or not jnp.issubdtype(states.dtype, jnp.inexact):
            return drawn
        k = jax.random.fold_in(k_noise, number)
        spread = jnp.std(states, 0).astype(states.dtype)
        scale = jnp.asarray(noise, spread.dtype) * spread[None]
        return drawn + scale * jax.random.normal(k, drawn.shape, drawn.dtype)

    leaves, structure = jax.tree.flatten(flat)
    drawn = [noisy(i, leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)
