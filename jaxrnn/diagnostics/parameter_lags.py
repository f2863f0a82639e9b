"""How much of a gradient reaches the parameters as they were used k steps earlier, and how far truncated sums fall short.

``F_t = ds_t/dtheta`` is the immediate effect of the parameters on the carry of step t. For a loss l of the output of step T::

    G(T, k) = dl/ds_{T-k} F_{T-k}          k = 0..T-1,  plus what goes through the carry before the first step
    dl/dtheta = sum_k G(T, k)              (Williams & Peng 1990; Pascanu, Mikolov & Bengio 2013, eq. 3-4)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from ..cell import Carry, Cell, Layer, Params
from .ending import Ending, check_loss, ending, seed_of
from .scaled import LongSum, log_norm, log_norms_by_leaf, normalise, scale_by_log
from .transition import Transition, follow


class ParameterLags(NamedTuple):
    """Logarithms of the norms of G(T, k), summed over the batch, for k = 0..K-1. -inf: exactly zero; NaN: not finite.

    ``log_sum[k]`` is for ``G(T, 0) + ... + G(T, k)``, the gradient truncated after lag k. ``terms`` are the G(T, k)
    themselves, ``(K, ...)`` per parameter, where they were asked for. ``initial`` is the part of the gradient that goes
    through the carry before the first step where that is made from the parameters (`learned_initial_carry`), a pytree as
    the parameters; NaN where ``lags`` stops before.
    """

    log_norm: Float[Array, " K"]
    by_leaf: Any
    log_sum: Float[Array, " K"]
    terms: Any
    initial: Params


def parameter_lags(
    cell: Cell | Layer,
    params: Params,
    xs: Inexact[Array, "T *B D"],
    loss: Callable[[Array], Array],
    carry: Carry = None,
    *,
    at: int | None = None,
    lags: int | None = None,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    engine: Any = None,
    terms: bool = False,
) -> ParameterLags:
    """The parameter-lag terms G(T, k) of a loss: their norms, those of their partial sums, or themselves.

    All terms and ``initial`` sum to the gradient of the loss with respect to ``params``; what the output takes from the
    parameters directly is in G(T, 0), and a learned initial carry that a reset brings in is in the term of that step.
    Ragged sequences count k from their own last step.

    Args:
        terms: also return the terms, K times the size of the parameters.
        lags: K, at most the number of steps that lead to the loss (default: all of them).
        cell, loss, at, carry, mask, resets, engine: as for `gradient_lags`.
    """
    path = follow(cell, params, xs, carry, mask, resets, engine, "parameter_lags")
    end = ending("parameter_lags", path, at, lags)
    check_loss("parameter_lags", cell, params, loss, end.carry, end.x)
    return _parameter_lags(cell, params, end, loss, terms, carry is None)


class _Sum(NamedTuple):
    """A pytree times exp(log)."""

    tree: Any
    log: Array

    def plus(self, tree: Any, log: Array) -> _Sum:
        most = _finite(jnp.maximum(self.log, log))
        return _Sum(
            jax.tree.map(jnp.add, scale_by_log(self.tree, self.log - most), scale_by_log(tree, log - most)),
            jnp.maximum(self.log, log),
        )

    def log_norm(self) -> Array:
        return log_norm(jax.tree.leaves(self.tree), 0) + _finite(self.log)


def _finite(log: Array) -> Array:
    """0 in place of -inf, which stands for nothing at all, so that differences are no NaN."""
    return jnp.where(jnp.isneginf(log), jnp.zeros_like(log), log)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5), inline=True)
def _parameter_lags(cell: Any, params: Params, end: Ending, loss: Callable, keep: bool, learned: bool) -> ParameterLags:
    part, machine = end.part, Transition(cell)
    kept = len(part.batch)
    direct, seed = seed_of(cell, params, loss, end)
    delta, log = normalise(seed, kept)
    nothing = _Sum(jax.tree.map(jnp.zeros_like, params), jnp.full((), -jnp.inf, log.dtype))

    def back(state, now):
        (delta, long_log, total), (before, x, keep_step, reset, first) = state, now
        log = long_log.value
        # The first cotangent is an ordinary number, and so is what the output takes directly: no scale between them.
        scale = jnp.where(first, jnp.zeros((), log.dtype), _finite(log.max()))
        _, pullback = jax.vjp(lambda p, s: machine.step_from_input(p, s, x, keep_step, reset), params, before)
        term, _ = pullback(scale_by_log(delta, log - scale))
        term = jax.tree.map(lambda a, b: a + jnp.where(first, b, jnp.zeros_like(b)), term, direct)
        new, growth = normalise(pullback(delta)[1], kept)
        total = total.plus(term, scale)
        norms = (log_norm(jax.tree.leaves(term), 0) + scale, jax.tree.map(lambda a: a + scale, log_norms_by_leaf(term, 0)))
        return (new, long_log.plus(growth), total), (*norms, total.log_norm(), scale_by_log(term, scale) if keep else None)

    first = jnp.arange(part.steps) == part.steps - 1
    rows = (part.befores, part.xs, part.mask, part.resets, first)
    (delta, log_left, _), met = jax.lax.scan(back, (delta, LongSum.of(log), nothing), rows, reverse=True)
    initial = jax.tree.map(jnp.zeros_like, params)
    if learned:
        _, pullback = jax.vjp(lambda p: cell.initial_carry(p, part.batch), params)
        (initial,) = pullback(scale_by_log(delta, log_left.value))
        initial = jax.tree.map(lambda a: jnp.where(end.whole, a, jnp.asarray(jnp.nan, a.dtype)), initial)
    log_norms, by_leaf, log_sum, terms = jax.tree.map(lambda a: a[::-1], met)
    return ParameterLags(log_norms, by_leaf, log_sum, terms, initial)
