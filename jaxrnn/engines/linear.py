"""The elementwise linear recurrence, walked one step after another, in parallel, or in parallel chunks::

    s_t = a_t * s_{t-1} + b_t

One primitive, so that every derivative mode and ``vmap`` use the same walk. Its derivative is the recurrence itself, driven by
``da_t s_{t-1} + db_t``; its transpose is the recurrence backwards, ``c_t = g_t + a_{t+1} c_{t+1}``: no transposed prefix
tree, and nothing kept but ``a`` and the states (Martin & Cundy 2018, eq. 8-10).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Inexact

from ..cell import Carry, LinearCell, Params, expand

SCAN, PREFIX = "scan", "prefix"


def linear_recurrence(
    a: Inexact[Array, "T *S"],
    b: Inexact[Array, "T *S"],
    first: Inexact[Array, "*S"],
    *,
    method: str = SCAN,
    chunk: int | None = None,
    reverse: bool = False,
) -> Inexact[Array, "T *S"]:
    """The states after every step, all of one shape and dtype.

    Args:
        first: s before the first step.
        method: "scan": ``lax.scan``; "prefix": parallel prefixes of the maps ``s -> a s + b`` (Blelloch 1990), in O(log T)
            depth.
        chunk: for "prefix": steps in a chunk, the chunks one after another, so that what is alive at a time is bounded.
        reverse: from the last step to the first: ``s_t = a_t * s_{t+1} + b_t``.
    """
    return _recurrence.bind(a, b, first, method=method, chunk=chunk, reverse=reverse)


def before(states: Array, first: Array, reverse: bool) -> Array:
    """The state that entered each step."""
    parts = [states[1:], first[None]] if reverse else [first[None], states[:-1]]
    return jnp.concatenate(parts) if len(states) else states


def _walk(a: Array, b: Array, first: Array, *, method: str, chunk: int | None, reverse: bool) -> Array:
    steps = a.shape[0]
    if steps == 0:
        return b
    if method == SCAN:
        return _scan(a, b, first, reverse)
    if chunk is None or chunk >= steps:
        return _prefix(a, b, first, reverse)
    count = -(-steps // chunk)
    missing = count * chunk - steps

    def cut(leaf, fill):  # held steps at the end, where a reversed walk begins and nothing happens yet
        held = jnp.full((missing, *leaf.shape[1:]), fill, leaf.dtype)
        return jnp.concatenate([leaf, held]).reshape(count, chunk, *leaf.shape[1:])

    def one(state, part):
        states = _prefix(part[0], part[1], state, reverse)
        return states[0 if reverse else -1], states

    _, states = jax.lax.scan(one, first, (cut(a, 1), cut(b, 0)), reverse=reverse)
    return states.reshape(count * chunk, *a.shape[1:])[:steps]


def _scan(a: Array, b: Array, first: Array, reverse: bool) -> Array:
    def one(state, now):
        state = _apply(now[0], now[1], state)
        return state, state

    return jax.lax.scan(one, first, (a, b), reverse=reverse)[1]


def _apply(a: Array, b: Array, state: Array) -> Array:
    """``a state + b``, and b alone where a is zero, as after a reset: what is infinite or NaN does not cross either."""
    return jnp.where(a == 0, b, a * state + b)


def _prefix(a: Array, b: Array, first: Array, reverse: bool) -> Array:
    """All prefixes, the first state being a part of the first step's b."""
    place = -1 if reverse else 0
    b = b.at[place].set(_apply(a[place], b[place], first))

    def after(early, late):
        return late[0] * early[0], _apply(late[0], late[1], early[1])

    return jax.lax.associative_scan(after, (a, b), reverse=reverse)[1]


_recurrence = Primitive("jaxrnn_linear_recurrence")
_recurrence.def_impl(jax.jit(_walk, static_argnames=("method", "chunk", "reverse")))
_recurrence.def_abstract_eval(lambda a, b, first, **_: b)
mlir.register_lowering(_recurrence, mlir.lower_fun(_walk, multiple_results=False))


def _derivative(primals: Any, tangents: Any, **how: Any) -> tuple[Array, Any]:
    a, b, first = primals
    of_a, of_b, of_first = tangents
    states = _recurrence.bind(a, b, first, **how)
    if all(isinstance(t, ad.Zero) for t in tangents):
        return states, ad.Zero(jax.typeof(states).to_tangent_aval())
    drive = ad.instantiate_zeros(of_b)
    if not isinstance(of_a, ad.Zero):
        drive = drive + of_a * before(states, first, how["reverse"])
    return states, _recurrence.bind(a, drive, ad.instantiate_zeros(of_first), **how)


def _transpose(cotangent: Any, a: Any, b: Any, first: Any, *, reverse: bool, **how: Any) -> list[Any]:
    if ad.is_undefined_primal(a):
        raise NotImplementedError("the linear recurrence is not linear in a")
    if isinstance(cotangent, ad.Zero):
        return [None, ad.Zero(b.aval), ad.Zero(first.aval)]
    zero = jnp.zeros_like(a[0]) if a.shape[0] else jnp.zeros(a.shape[1:], a.dtype)
    following = before(a, zero, not reverse)  # a of the step after
    back = _recurrence.bind(following, cotangent, zero, reverse=not reverse, **how)
    to_first = (a[-1] * back[-1] if reverse else a[0] * back[0]) if a.shape[0] else zero
    return [
        None,
        back if ad.is_undefined_primal(b) else None,
        to_first if ad.is_undefined_primal(first) else None,
    ]


def _mapped(values: Any, axes: Any, **how: Any) -> tuple[Array, int]:
    size = next(v.shape[axis] for v, axis in zip(values, axes, strict=True) if axis is not None)

    def placed(value, axis, place):  # the mapped axis behind time
        if axis is None:
            return jnp.broadcast_to(jnp.expand_dims(value, place), (*value.shape[:place], size, *value.shape[place:]))
        return jnp.moveaxis(value, axis, place)

    moved = [placed(v, axis, place) for v, axis, place in zip(values, axes, (1, 1, 0), strict=True)]
    return _recurrence.bind(*moved, **how), 1


ad.primitive_jvps[_recurrence] = _derivative
ad.primitive_transposes[_recurrence] = _transpose
batching.primitive_batchers[_recurrence] = _mapped


@functools.partial(jax.jit, static_argnames=("method", "chunk", "reverse"), inline=True)
def walk_affine(a: Any, b: Any, carry: Any, *, method: str, chunk: int | None, reverse: bool) -> tuple[Any, Any]:
    """The last carry and the carries after every step, leaf by leaf; leaves of ``a`` and ``b`` broadcast to the carry's."""

    def leaf(a, b, first):
        shape = (max(a.shape[0], b.shape[0]), *first.shape)
        a, b = (jnp.broadcast_to(v, shape).astype(first.dtype) for v in (a, b))
        return linear_recurrence(a, b, first, method=method, chunk=chunk, reverse=reverse)

    carries = jax.tree.map(leaf, a, b, carry)
    last = jax.tree.map(lambda s, first: s[0 if reverse else -1] if len(s) else first, carries, carry)
    return last, carries


def affine_maps(cell: LinearCell, params: Params, carry: Carry, xs: Any, mask: Any, resets: Any) -> tuple[Carry, Carry]:
    """a and b of every step, a masked one's being 1 and 0, and one with a reset beginning from the initial carry."""
    a, b = cell.affine(params, cell.project(params, xs))

    def like_carry(tree):  # flags need the carry's own batch axes
        return jax.tree.map(lambda v, s: jnp.broadcast_to(v, (v.shape[0], *s.shape)).astype(s.dtype), tree, carry)

    if mask is None and resets is None:
        return a, b
    a, b = like_carry(a), like_carry(b)
    if mask is not None:
        a = jax.tree.map(lambda v: jnp.where(expand(mask, v), v, jnp.ones_like(v)), a)
        b = jax.tree.map(lambda v: jnp.where(expand(mask, v), v, jnp.zeros_like(v)), b)
    if resets is not None:
        initial = cell.initial_carry(params, resets.shape[1:])
        b = jax.tree.map(lambda a, b, s: jnp.where(expand(resets, b), a * s[None] + b, b), a, b, initial)
        a = jax.tree.map(lambda v: jnp.where(expand(resets, v), jnp.zeros_like(v), v), a)
    return a, b
