"""The parallel loop, for steps that are elementwise affine in the carry::

    s_t = a_t * s_{t-1} + b_t

The composition of two maps ``s -> a s + b`` has the same form,
``(a2, b2) o (a1, b1) = (a2 a1, a2 b1 + b2)``, so all prefixes of a chunk are computed
in O(log T) depth (Blelloch 1990). The backward loop has that form, too,
``c_t = g_t + a_{t+1} c_{t+1}`` (Martin & Cundy 2018, eq. 8-10). It runs in the
same way, and nothing of the prefix tree is saved for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ...core.types import Carry, Inputs, Size


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def affine_scan(
    a: Inexact[Array, "T *S"],
    b: Inexact[Array, "T *S"],
    first: Inexact[Array, "*S"],
    reverse: bool = False,
) -> Inexact[Array, "T *S"]:
    """Compute ``s_t = a_t s_{t-1} + b_t`` for all t, in parallel.

    A step whose factor is 0, as after a reset, does not depend on the state before it,
    even if that is infinite or NaN.

    Args:
        a: the factors, ``(T, *S)``. The product of the factors of any run of steps must
            be finite; ``|a| <= 1`` is safe.
        b: the other terms, ``(T, *S)``.
        first: the state before the first step, ``(*S)``.
        reverse: whether the steps run from the last to the first.

    Returns:
        The states after every step, ``(T, *S)``.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.array([1.0, 2.0, 0.0]), jnp.array([1.0, 1.0, 5.0])
        >>> print(affine_scan(a, b, jnp.array(1.0)))
        [2. 5. 5.]
    """

    def apply(a, b, state):
        return jnp.where(a == 0, b, a * state + b)

    def compose(early, late):
        return jnp.where(late[0] == 0, late[0], late[0] * early[0]), apply(
            late[0], late[1], early[1]
        )

    # The first state is applied to the first map, so that prefixes need no state.
    first_step = -1 if reverse else 0
    b = b.at[first_step].set(apply(a[first_step], b[first_step], first))
    return jax.lax.associative_scan(compose, (a, b), reverse=reverse)[1]


@affine_scan.defjvp
def _affine_scan_jvp(reverse: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiate: ``s'_t = a_t s'_{t-1} + (a'_t s_{t-1} + b'_t)``.

    By the rules of the prefix tree's operations, a factor of 0 would have no
    derivative.
    """
    (a, b, first), (da, db, d_first) = primals, tangents
    states = affine_scan(a, b, first, reverse)
    before = carries_before(first, states, reverse)
    before = jnp.where((a == 0) & ~jnp.isfinite(before), jnp.zeros_like(before), before)
    return states, affine_scan(a, da * before + db, d_first, reverse)


def prefix_scan_into_buffers(
    body: Callable,
    carry: list[Any],
    xs: Inputs,
    buffers: list[Any],
    offset: Size,
    steps: int,
    *,
    reverse: bool,
) -> tuple[list[Any], list[Any]]:
    """Run a body whose new carry is elementwise affine in the old one.

    The arguments are those of `jaxrnn.engines.loops.sequential.scan_into_buffers`.
    """
    zeros, ones = ([like(s) for s in carry] for like in (jnp.zeros_like, jnp.ones_like))

    # At a carry of zeros the body returns b, and a tangent of ones becomes a.
    def affine_terms(x):
        return jax.jvp(lambda carry: body(carry, x)[0], (zeros,), (ones,))

    b, a = jax.vmap(affine_terms, axis_size=steps)(xs)
    after = [affine_scan(*leaves, reverse) for leaves in zip(a, b, carry, strict=True)]
    before = [
        carries_before(s, states, reverse)
        for s, states in zip(carry, after, strict=True)
    ]
    # With all carries known, the outputs of all steps are computed at once.
    ys = jax.vmap(lambda carry, x: body(carry, x)[1], axis_size=steps)(before, xs)
    buffers = [
        jax.lax.dynamic_update_slice_in_dim(b, y, offset, 0)
        for b, y in zip(buffers, ys, strict=True)
    ]
    return [states[0 if reverse else -1] for states in after], buffers


def carries_before(first: Carry, carries: Carry, reverse: bool) -> Any:
    """Return the carry before every step, ``(T, ...)``.

    Args:
        first: the carry before the first step that runs.
        carries: the carries after every step, ``(T, ...)``.
        reverse: whether the steps run from the last to the first.
    """
    if carries.shape[0] == 1:
        return first[None]
    return jnp.concatenate(
        [carries[1:], first[None]] if reverse else [first[None], carries[:-1]]
    )
