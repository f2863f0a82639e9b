"""Rotations of the keys of a matrix state, which stand for positions.

Rotary embeddings rotate q and k of every step by its position, and what a query reads
depends on differences of positions only. So no position has to be stored: every step
may as well rotate the state backwards, by the angle between two steps. Then the state
is bounded, exact after any number of steps, and a masked step that holds it also holds
the position.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .inverse import exact_matmul
from .terms import Terms, rotate


def without_turns(
    terms: Terms, segment: Int[Array, "T *B"] | None
) -> tuple[Terms, Float[Array, "*B N R"]]:
    """Rotate the terms of a chunk instead of the state.

    With Theta_t the sum of the angles of the chunk up to step t, or since its last
    reset, ``R(Theta_t) S_t`` follows the recurrence with ``R(Theta_t) q_t``, and with
    k, a and b rotated alike, without a rotation in between.

    Args:
        terms: those of the chunk, ``(C, *B, heads, ...)``, with ``turn``.
        segment: the number of resets in the chunk up to each step, or None.

    Returns:
        The terms without ``turn``, and Theta of the last step, by which the state after
        the chunk has to be rotated back.
    """
    turn: Any = terms.turn
    place = np.arange(len(turn))
    sees = jnp.asarray(place[:, None] >= place, turn.dtype)
    if segment is not None:
        by_step = jnp.moveaxis(segment, 0, -1)
        same = by_step[..., :, None] == by_step[..., None, :]
        sees = jnp.where(same, sees, jnp.zeros((), turn.dtype))
    angles = jnp.moveaxis(turn, 0, -3)
    flat = angles.reshape(*angles.shape[:-2], math.prod(angles.shape[-2:]))
    summed = exact_matmul(sees, flat).reshape(angles.shape)
    angles = jnp.moveaxis(summed, -3, 0)

    turned = terms._replace(
        q=_rotate_heads(terms.q, angles),
        k=_rotate_heads(terms.k, angles),
        a=None if terms.a is None else _rotate_heads(terms.a, angles),
        b=None if terms.b is None else _rotate_heads(terms.b, angles),
        turn=None,
    )
    return turned, angles[-1]


def _rotate_heads(x: Array, angles: Array) -> Array:
    """Rotate x where it, or the angles, may serve several heads of the other."""
    heads, of_angles = x.shape[-2], angles.shape[-2]
    if heads < of_angles:
        x = jnp.repeat(x, of_angles // heads, axis=-2)
    elif of_angles < heads:
        angles = jnp.repeat(angles, heads // of_angles, axis=-2)
    return rotate(x, angles.astype(x.dtype))
