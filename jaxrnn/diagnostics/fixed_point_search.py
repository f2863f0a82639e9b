"""Minimize q(s) = 1/2 |F(s, x) - s|^2 from many starting states at once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ..core.types import Carry, Inputs, Params
from .held_step import HeldStep

# The damping is a number times |r|, at first one. It is divided by FACTOR after a step
# that reduces q, and multiplied by it after any other.
LEAST, MOST, FACTOR = 1e-10, 1e16, 4.0


class Found(NamedTuple):
    """Where the searches ended.

    Attributes:
        vectors: the free parts of the states, ``(S, n)``.
        speed: ``|F(s, x) - s|``, ``(S,)``.
        stationary: whether the gradient of q vanishes there, ``(S,)``.
        iterations: ``(S,)``.
    """

    vectors: Float[Array, "S n"]
    speed: Float[Array, " S"]
    stationary: Bool[Array, " S"]
    iterations: Int[Array, " S"]


class _Search(NamedTuple):
    """One search: the best state so far, the next to try, and whether it has ended."""

    vector: Array
    residual: Array
    slope: Array  # dF/ds - I
    trial: Array
    damping: Array
    tried: Array
    ended: Array


@functools.partial(jax.jit, static_argnums=(0, 5))
def gauss_newton(
    step: HeldStep,
    params: Params,
    x: Inputs,
    starts: Carry,
    tolerance: Array,
    max_iterations: int,
) -> Found:
    """Search by damped Gauss-Newton steps, for states of some hundred numbers.

    A step d solves ``(G^T G + c |r| I) d = -G^T r`` with ``r = F(s) - s`` and
    ``G = dF/ds - I``. With damping that goes to zero as |r| does, the search converges
    quadratically to a point of a line of fixed points, too, where G is singular (Fan &
    Yuan 2005, Computing 74(1)).
    """
    return jax.vmap(
        lambda start: _search(step, params, x, start, tolerance, max_iterations)
    )(starts)


def _search(
    step: HeldStep,
    params: Params,
    x: Inputs,
    start: Carry,
    tolerance: Array,
    max_iterations: int,
) -> Found:
    """Search from one state."""

    def at(v: Array) -> tuple[Array, Array]:
        r, push = jax.linearize(lambda v: step(params, x, v, start) - v, v)
        return r, jax.vmap(push, out_axes=1)(jnp.eye(v.size, dtype=v.dtype))

    def advance(now: _Search) -> _Search:
        residual, slope = at(now.trial)
        before, after = _norm(now.residual), _norm(residual)
        is_better = after < before  # False for NaN
        vector, r, slope, damping = jax.tree.map(
            lambda a, b: jnp.where(is_better, a, b),
            (now.trial, residual, slope, jnp.maximum(now.damping / FACTOR, LEAST)),
            (now.vector, now.residual, now.slope, now.damping * FACTOR),
        )
        new = _Search(vector, r, slope, now.trial, damping, now.tried + 1, now.ended)
        eps = jnp.finfo(residual.dtype).eps
        moved = _norm(now.trial - now.vector)
        is_stuck = (moved <= 4 * eps * (1 + _norm(now.vector))) | (
            (before <= tolerance) | (now.damping >= MOST)
        )
        speed = _norm(new.residual)
        ended = jnp.where(
            speed <= tolerance,
            (speed == 0) | (after > before / 2),
            _relative_slope(new) <= jnp.sqrt(eps),
        )
        return new._replace(
            trial=new.vector + _damped_step(new), ended=ended | (is_stuck & ~is_better)
        )

    v = step.vector(start)
    n, one = v.size, jnp.ones((), v.dtype)
    # The first state that is tried is the start: it is better than an infinite speed.
    infinite = jnp.full(n, jnp.inf, v.dtype)
    none = jnp.zeros((n, n), v.dtype)
    first = _Search(
        v, infinite, none, v, FACTOR * one, jnp.asarray(0), jnp.asarray(False)
    )
    last = jax.lax.while_loop(
        lambda now: ~now.ended & (now.tried <= max_iterations), advance, first
    )
    speed = _norm(last.residual)
    flat = _relative_slope(last) <= jnp.cbrt(jnp.finfo(v.dtype).eps)
    return Found(last.vector, speed, flat & (speed > tolerance), last.tried - 1)


def _damped_step(now: _Search) -> Array:
    """Solve the damped least squares by the QR factors of ``[G; sqrt(c |r|) I]``.

    The normal equations would square the condition of G.
    """
    n = now.vector.size
    damping = jnp.sqrt(now.damping * _norm(now.residual))
    q, r = jnp.linalg.qr(
        jnp.concatenate([now.slope, damping * jnp.eye(n, dtype=now.vector.dtype)])
    )
    return jax.scipy.linalg.solve_triangular(r, -(q[:n].T @ now.residual))


def _relative_slope(now: _Search) -> Array:
    """Return the gradient of q relative to that of the residuals.

    Where it vanishes and q does not, G is singular, so that the steps converge at a
    linear rate only.
    """
    scale = 1 + jnp.sqrt(jnp.square(now.slope).mean() * now.vector.size)
    return _norm(now.residual @ now.slope) / (scale * _norm(now.residual))


class _Descent(NamedTuple):
    """All searches by an optimizer; ``best`` is the state of the least speed so far."""

    vectors: Array
    state: Any
    best: Array
    speed: Array
    iterations: Array
    steps: Array


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def descend(
    step: HeldStep,
    params: Params,
    x: Inputs,
    starts: Carry,
    tolerance: Array,
    max_iterations: int,
    optimizer: optax.GradientTransformation,
) -> Found:
    """Search by an optimizer, for states whose Jacobians are too large."""

    def residual(v: Array) -> Array:
        return jax.vmap(lambda v, start: step(params, x, v, start) - v)(v, starts)

    def advance(now: _Descent) -> _Descent:
        r, pull = jax.vjp(residual, now.vectors)
        speed = jnp.linalg.norm(r, axis=-1)
        is_better = speed < now.speed
        updates, state = optimizer.update(pull(r)[0], now.state, now.vectors)
        return _Descent(
            jnp.asarray(optax.apply_updates(now.vectors, updates)),
            state,
            jnp.where(is_better[:, None], now.vectors, now.best),
            jnp.where(is_better, speed, now.speed),
            now.iterations + (now.speed > tolerance).astype(now.iterations.dtype),
            now.steps + 1,
        )

    v = jax.vmap(step.vector)(starts)
    infinite = jnp.full(len(v), jnp.inf, v.dtype)
    count = jnp.zeros(len(v), int)
    last = jax.lax.while_loop(
        lambda now: (now.speed > tolerance).any() & (now.steps < max_iterations),
        advance,
        _Descent(v, optimizer.init(v), v, infinite, count, jnp.asarray(0)),
    )
    r, pull = jax.vjp(residual, last.best)
    speed = jnp.linalg.norm(r, axis=-1)
    slope = jnp.linalg.norm(pull(r)[0], axis=-1)
    # An optimizer of the first order comes less near to a minimum.
    flat = slope <= jnp.finfo(v.dtype).eps ** 0.25 * speed
    return Found(last.best, speed, flat & (speed > tolerance), last.iterations)


def _norm(vector: Array) -> Array:
    return jnp.linalg.norm(vector)
