"""A window of steps at once, for steps that are elementwise affine in the carry::

    s_t = a_t * s_{t-1} + b_t

The maps ``s -> a s + b`` compose to maps of the same form, so all their prefixes take
O(log T) depth (Blelloch 1990). The loop backwards is of that form too, ``c_t = g_t +
a_{t+1} c_{t+1}`` (Martin & Cundy 2018, eq. 8-10): it is walked in the same way, and
nothing is kept of the prefix tree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def affine_scan(
    a: Inexact[Array, "T *S"],
    b: Inexact[Array, "T *S"],
    first: Inexact[Array, "*S"],
    reverse: bool = False,
) -> Inexact[Array, "T *S"]:
    """``s_t = a_t s_{t-1} + b_t`` for every t from ``s_{-1} = first``, or from the last
    step to the first.

    Nothing crosses a step whose a is 0, as after a reset, neither an infinity nor NaN.
    The product of the a's of any run of steps must be finite: |a| <= 1 is safe.
    """

    def apply(a, b, state):
        return jnp.where(a == 0, b, a * state + b)

    def after(early, late):
        return jnp.where(late[0] == 0, late[0], late[0] * early[0]), apply(
            late[0], late[1], early[1]
        )

    place = -1 if reverse else 0
    b = b.at[place].set(apply(a[place], b[place], first))
    return jax.lax.associative_scan(after, (a, b), reverse=reverse)[1]


@affine_scan.defjvp
def _prefixes_jvp(reverse: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """``ds_t = a_t ds_{t-1} + (da_t s_{t-1} + db_t)``: by the prefix tree's own rule
    a factor of 0 would have no derivative.
    """
    (a, b, first), (da, db, d_first) = primals, tangents
    states = affine_scan(a, b, first, reverse)
    before = carries_before(first, states, reverse)
    before = jnp.where((a == 0) & ~jnp.isfinite(before), jnp.zeros_like(before), before)
    return states, affine_scan(a, da * before + db, d_first, reverse)


def prefix_scan_into_buffers(
    body: Callable,
    carry: list[Any],
    given: Any,
    rows: list[Any],
    first: Any,
    steps: int,
    *,
    reverse: bool,
) -> tuple[list[Any], list[Any]]:
    """`jaxrnn.engines.loops.sequential.scan_into` for a body whose new carry is
    elementwise affine in the old one.
    """
    zeros, ones = ([like(s) for s in carry] for like in (jnp.zeros_like, jnp.ones_like))

    def maps(now):  # what a is, is what a tangent of ones becomes
        return jax.jvp(lambda carry: body(carry, now)[0], (zeros,), (ones,))

    b, a = jax.vmap(maps, axis_size=steps)(given)
    after = [affine_scan(*leaves, reverse) for leaves in zip(a, b, carry, strict=True)]
    before = [
        carries_before(s, states, reverse)
        for s, states in zip(carry, after, strict=True)
    ]
    outs = jax.vmap(lambda carry, now: body(carry, now)[1], axis_size=steps)(
        before, given
    )
    rows = [
        jax.lax.dynamic_update_slice_in_dim(r, out, first, 0)
        for r, out in zip(rows, outs, strict=True)
    ]
    return [states[0 if reverse else -1] for states in after], rows


def carries_before(first: Any, carries: Any, reverse: bool) -> Any:
    """The carry before every step, from the one before all and those after."""
    if carries.shape[0] == 1:
        return first[None]
    return jnp.concatenate(
        [carries[1:], first[None]] if reverse else [first[None], carries[:-1]]
    )
