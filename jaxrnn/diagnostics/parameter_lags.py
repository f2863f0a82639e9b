"""How much of a gradient reaches the parameters as they were used k steps earlier, and
how far truncated sums fall short.

``F_t = ds_t/dtheta`` is the immediate effect of the parameters on the carry of step t.
For a loss l of the output of step T::

    G(T, k) = dl/ds_{T-k} F_{T-k}          k = 0..T-1,  plus what goes through the carry before the first step
    dl/dtheta = sum_k G(T, k)              (Williams & Peng 1990; Pascanu, Mikolov & Bengio 2013, eq. 3-4)
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from ..core.cell import Carry, Cell, Layer, Params, weaken_scalars
from .readout import (
    LossReadout,
    check_loss,
    loss_cotangent,
    readout_loss,
    select_readout,
)
from .scaled import (
    CompensatedSum,
    finite,
    log_norm,
    log_norms_by_leaf,
    normalize,
    scale_by_log,
)
from .transition import Transition, check_inexact, rollout


class ParameterLags(NamedTuple):
    """Logarithms of the norms of G(T, k), summed over the batch, for k = 0..K-1. -inf:
    exactly zero; NaN: not finite.

    ``by_leaf`` is -inf, too, where a parameter's part is smaller than the smallest
    float times the largest part of the term.

    ``log_sum[k]`` is for ``G(T, 0) + ... + G(T, k)``, the gradient truncated after lag
    k, ``log_rest[k]`` for all that this leaves out, ``log_whole`` for the whole
    gradient. ``terms`` are the G(T, k) themselves, ``(K, ...)`` per parameter, where
    they were asked for. ``initial`` is the part that goes through the carry before the
    first step where that is made from the parameters (``learned_initial_carry``), a
    pytree as the parameters. It, ``log_rest`` and ``log_whole`` are NaN where ``lags``
    stops before the first step.
    """

    log_norm: Float[Array, " K"]
    by_leaf: Any
    log_sum: Float[Array, " K"]
    log_rest: Float[Array, " K"]
    log_whole: Float[Array, ""]
    terms: Any
    initial: Params

    @property
    def truncation_error(self) -> Float[Array, " K"]:
        """``|| rest || / || whole ||`` of the gradient cut after lag k, that is of
        TBPTT(1, k + 1) for this loss alone.

        NaN where the whole gradient is zero, or ``lags`` left steps out.
        """
        return jnp.exp(self.log_rest - self.log_whole)


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
    """The parameter-lag terms G(T, k) of a loss: their norms, those of their partial
    sums, or themselves.

    All terms and ``initial`` sum to the gradient of the loss with respect to
    ``params``; what the output takes from the parameters directly is in G(T, 0), and a
    learned initial carry that a reset brings in is in the term of that step. Ragged
    sequences count k from their own last step.

    Args:
        terms: also return the terms, K times the size of the parameters.
        lags: K, at most the number of steps that lead to the loss (default: all of
            them).
        cell, loss, at, carry, mask, resets, engine: as for `gradient_lags`.
    """
    params = weaken_scalars(params)
    check_inexact(
        "parameter_lags: params", params, "every parameter must be floating-point"
    )
    path = rollout(cell, params, xs, carry, mask, resets, engine, "parameter_lags")
    end = select_readout("parameter_lags", path, at, lags)
    check_loss("parameter_lags", cell, params, loss, end.carry, end.x)
    direct = jax.grad(lambda p: readout_loss(cell, loss, end, p, end.carry))(params)
    return _parameter_lags(
        cell,
        params,
        end,
        direct,
        loss_cotangent(cell, params, loss, end),
        terms,
        carry is None,
    )


class _Sum(NamedTuple):
    """A pytree times exp(log)."""

    tree: Any
    log: Array

    def plus(self, tree: Any, log: Array) -> _Sum:
        most = finite(jnp.maximum(self.log, log))
        return _Sum(
            jax.tree.map(
                jnp.add,
                scale_by_log(self.tree, self.log - most),
                scale_by_log(tree, log - most),
            ),
            jnp.maximum(self.log, log),
        )

    def log_norm(self) -> Array:
        return log_norm(jax.tree.leaves(self.tree), 0) + finite(self.log)


@functools.partial(jax.jit, static_argnums=(0, 5, 6), inline=True)
def _parameter_lags(
    cell: Any,
    params: Params,
    end: LossReadout,
    direct: Params,
    seed: Carry,
    keep: bool,
    learned: bool,
) -> ParameterLags:
    part, machine = end.part, Transition(cell)
    flags = (part.mask, part.resets)
    before_all, deltas = _cotangents(machine, params, part, seed)
    first = jnp.arange(part.steps) == part.steps - 1

    def term_of(row):
        """G of one step, as a tree and the logarithm of its scale."""
        before, x, keep_step, reset, (delta, log), is_first = row
        # The first cotangent is an ordinary number, and so is what the output takes
        # directly: no scale between them.
        scale = jnp.where(is_first, jnp.zeros((), log.dtype), finite(log.max()))
        _, pullback = jax.vjp(
            lambda p: machine.step_from_input(p, before, x, keep_step, reset), params
        )
        (term,) = pullback(scale_by_log(delta, log - scale))
        return jax.tree.map(
            lambda a, b: a + jnp.where(is_first, b, jnp.zeros_like(b)), term, direct
        ), scale

    def newest(total, row):
        term, scale = term_of(row)
        total = total.plus(term, scale)
        norms = (
            log_norm(jax.tree.leaves(term), 0) + scale,
            jax.tree.map(lambda a: a + scale, log_norms_by_leaf(term, 0)),
        )
        return total, (
            *norms,
            total.log_norm(),
            scale_by_log(term, scale) if keep else None,
        )

    def oldest(total, row):
        return total.plus(*term_of(row)), total.log_norm()

    delta, log = before_all
    zero, far = jnp.full((), -jnp.inf, log.dtype), finite(log.max())
    oldest_sum = _Sum(jax.tree.map(jnp.zeros_like, params), zero)
    if learned:
        _, pullback = jax.vjp(lambda p: cell.initial_carry(p, part.batch), params)
        (through,) = pullback(scale_by_log(delta, log - far))
        oldest_sum = _Sum(
            through,
            jnp.where(jnp.isneginf(log_norm(jax.tree.leaves(through), 0)), zero, far),
        )
    whole_or_nan = jax.tree.map(
        lambda a: jnp.where(end.whole, a, jnp.asarray(jnp.nan, a.dtype)),
        oldest_sum.tree,
    )
    oldest_sum = oldest_sum._replace(tree=whole_or_nan)
    initial = scale_by_log(oldest_sum.tree, finite(oldest_sum.log))
    rows = (part.befores, part.xs, *flags, deltas, first)
    _, met = jax.lax.scan(
        newest, _Sum(jax.tree.map(jnp.zeros_like, params), zero), rows, reverse=True
    )
    whole, rest = jax.lax.scan(oldest, oldest_sum, rows)
    log_norms, by_leaf, log_sum, terms, log_rest = jax.tree.map(
        lambda a: a[::-1], (*met, rest)
    )
    return ParameterLags(
        log_norms, by_leaf, log_sum, log_rest, whole.log_norm(), terms, initial
    )


def _cotangents(
    machine: Transition, params: Params, part: Any, seed: Carry
) -> tuple[tuple, tuple]:
    """Of the state before all steps, and of that after every step: unit cotangents
    with the logarithms of their lengths.
    """
    kept = len(part.batch)
    delta, log = normalize(seed, kept)

    def back(state, now):
        (delta, log), (before, z, keep, reset) = state, now
        _, pullback = jax.vjp(lambda s: machine.step(params, s, z, keep, reset), before)
        new, growth = normalize(pullback(delta)[0], kept)
        return (new, log.plus(growth)), (delta, log.value)

    rows = (part.befores, machine.prepare(params, part.xs), part.mask, part.resets)
    (delta, total), every = jax.lax.scan(
        back, (delta, CompensatedSum.of(log)), rows, reverse=True
    )
    return (delta, total.value), every
