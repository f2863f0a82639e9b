"""Where the gradient of a loss goes: its norm at every lag, by one backward pass, in
the log domain.

``J_t = ds_t/ds_{t-1}`` is over the whole carry s (an LSTM's is (h, c)). For a loss l
that reads the output of step T, what reaches the state k steps earlier is::

    v_k = || dl/ds_{T-k} || = || dl/ds_T J_T J_{T-1} ... J_{T-k+1} ||

(Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013, eq. 5). The backward
pass keeps a unit vector and the logarithm of its length, so it is finite where the
product has left a float's range.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from ..core.cell import Carry, Cell, Layer, Params, weaken_scalars
from ..core.validation import describe
from .cotangent import backpropagate_log_norms
from .readout import LossReadout, check_loss, loss_cotangent, select_readout
from .scaled import CompensatedSum, log_mean_exp, normalize
from .transition import Trajectory, Transition, rollout


class GradientLags(NamedTuple):
    """Logarithms of gradient norms, lag by lag: entry k is for the state k steps before
    the one that the loss reads.

    The last entry of all lags (k = T for the loss of the last of T steps) is the carry
    before the first step. Marks: -inf is exactly zero, because a reset cut the path,
    every unit is saturated in this precision, or the loss does not read this element or
    leaf; NaN is no such step (before the sequence's first), or a gradient that is not
    finite; +inf means that one step's Jacobian alone left the float's range. A masked
    step holds the state and counts as a lag. ``by_leaf`` is -inf, too, for a leaf whose
    part is smaller than the smallest float times that of the largest leaf of the same
    cell.
    """

    log_norm: Float[Array, "K *B"]  # over the whole carry
    by_leaf: Any  # the carry's structure, each leaf (K, *B)
    exists: Bool[Array, "K *B"]  # whether the sequence has such a step

    @property
    def log_v(self) -> Float[Array, " K"]:
        """log v_k: the logarithm of the batch mean of the norms, of those with this
        lag; NaN if one is not finite.
        """
        lags = self.log_norm.shape[0]
        flat, there = self.log_norm.reshape(lags, -1), self.exists.reshape(lags, -1)
        wrong = (there & jnp.isnan(flat)).any(1)
        return jnp.where(wrong, jnp.nan, log_mean_exp(flat, 1))


def gradient_lags(
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
) -> GradientLags:
    """``log ||dl/ds_{T-k}||`` for k = 0..K, per batch element and per leaf of the
    carry, by one backward pass.

    Inside ``jit`` or on its own, where it compiles once for equal cells and shapes,
    whatever the loss. A stack of L layers takes L backward passes, since each layer has
    a scale of its own.

    Args:
        cell: a cell, or a causal layer that draws nothing.
        loss: ``loss(y (*B, H)) -> scalar``: the loss of the output at one step. Sum it
            over the batch, so that each element's gradient is its own (a mean divides
            all norms by the batch size).
        at: the step whose output the loss reads (default: each sequence's last valid
            one). Where ``at`` is masked the output is zero whatever the state, so the
            norms are exactly zero.
        lags: K, at most the number of steps that lead there (default: all of them).
        carry, mask, resets, engine: as for `jaxrnn.unroll`; the states are those that
            ``engine`` computes.

    Returns:
        `GradientLags`, with K + 1 entries.

    Raises:
        ValueError, TypeError: for lags beyond the sequence, a loss that is not a real
            scalar, a carry with integer leaves, a bidirectional layer, or one that
            draws.
    """
    params = weaken_scalars(params)
    path = rollout(cell, params, xs, carry, mask, resets, engine, "gradient_lags")
    end = select_readout("gradient_lags", path, at, lags)
    check_loss("gradient_lags", cell, params, loss, end.carry, end.x)
    return _gradient_lags(cell, params, end, loss_cotangent(cell, params, loss, end))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _gradient_lags(
    cell: Any, params: Params, end: LossReadout, seed: Carry
) -> GradientLags:
    norms = backpropagate_log_norms(Transition(cell), params, end.part, seed)
    whole, by_leaf = jax.tree.map(lambda a: jnp.where(end.exists, a, jnp.nan), norms)
    return GradientLags(whole, by_leaf, end.exists)


def gradient_map(
    cell: Cell | Layer,
    params: Params,
    xs: Inexact[Array, "T *B D"],
    loss: Callable[[Array, Any], Array],
    targets: Any = None,
    carry: Carry = None,
    *,
    resets: Bool[Array, "T *B"] | None = None,
    mask: Bool[Array, "T *B"] | None = None,
    engine: Any = None,
) -> Float[Array, "T T1 *B"]:
    """``log ||dl_t/ds_k||`` for every pair of steps: the loss of step t (row), the
    state after step k (column k + 1).

    Column 0 is the carry before the first step; above the diagonal, where the state
    comes after the loss, it is NaN. Other marks are those of `GradientLags`: -inf is
    exactly zero, as of a masked loss or beyond a reset; NaN below the diagonal, or
    +inf, is a gradient that is not finite. All losses go back together, so the cost is
    T backward passes, and the memory that of T states.

    Args:
        loss: ``loss(y (*B, H), target) -> scalar``, summed over the batch.
        targets: a pytree of ``(T, *B, ...)``, or None.

    Raises:
        ValueError, TypeError: for a sequence without steps, targets of another length,
            and as `gradient_lags`.
    """
    params = weaken_scalars(params)
    path = rollout(cell, params, xs, carry, mask, resets, engine, "gradient_map")
    _check_targets(path, targets)
    first = jax.tree.map(lambda a: a[0], (path.afters, path.xs, targets))
    check_loss("gradient_map", cell, params, lambda y: loss(y, first[2]), *first[:2])

    def one_loss(after, x, target, valid):
        seed = jax.grad(lambda s: loss(cell.output(params, s, x), target))(after)
        return (
            seed
            if valid is None
            else jax.tree.map(lambda a: jnp.where(_wide_as(valid, a), a, 0), seed)
        )

    return _gradient_map(
        cell, params, path, jax.vmap(one_loss)(path.afters, path.xs, targets, path.mask)
    )


def _check_targets(path: Trajectory, targets: Any) -> None:
    """There is a step, and a target for each."""
    if path.steps == 0:
        raise ValueError(
            "gradient_map: the sequence has no step (T = 0), so there is no output for "
            "a loss to read"
        )
    for leaf in jax.tree.leaves(targets):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != path.steps:
            raise ValueError(
                f"gradient_map: targets must be arrays (T, *B, ...), T = {path.steps}, "
                f"one a loss, but one is {describe(leaf)}"
            )


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _gradient_map(cell: Any, params: Params, path: Trajectory, seeds: Carry) -> Array:
    machine, kept = Transition(cell), len(path.batch)
    seeds, logs = normalize(seeds, kept + 1)
    numbers = jnp.arange(path.steps, dtype=jnp.int32)

    def back(state, now):
        (deltas, log), (before, z, keep, reset, step) = state, now
        begun = step <= numbers
        row = jnp.where(_wide_as(begun, log.value), log.value, jnp.nan)
        _, pullback = jax.vjp(lambda s: machine.step(params, s, z, keep, reset), before)
        new, growth = normalize(jax.vmap(lambda d: pullback(d)[0])(deltas), kept + 1)
        grown = (new, log.plus(growth))
        return jax.tree.map(
            lambda a, b: jnp.where(_wide_as(begun, a), a, b), grown, (deltas, log)
        ), row

    rows = (
        path.befores,
        machine.prepare(params, path.xs),
        path.mask,
        path.resets,
        numbers,
    )
    (_, total), columns = jax.lax.scan(
        back, (seeds, CompensatedSum.of(logs)), rows, reverse=True
    )
    return jnp.moveaxis(jnp.concatenate([total.value[None], columns]), 0, 1)


def _wide_as(flags: Array, leaf: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - flags.ndim))
