"""Gradient norms by lag, from one backward pass in the log domain.

``J_t = ds_t/ds_{t-1}`` is the Jacobian of the whole carry s (an LSTM's is (h, c)).
For a loss l that reads the output of step T, the gradient norm at the state k steps
earlier is::

    v_k = || dl/ds_{T-k} || = || dl/ds_T J_T J_{T-1} ... J_{T-k+1} ||

(Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013, eq. 5). The backward
pass carries a unit vector and the logarithm of the cotangent's norm, so that it stays
finite where the product itself is outside the range of a float.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.cell import Cell
from ..core.engine import AbstractEngine
from ..core.layer import Layer
from ..core.types import Carry, Context, Inputs, Params, PyTree
from ..core.validation import describe
from .cotangent import backpropagate_log_norms
from .readout import LossReadout, check_loss, loss_cotangent, select_readout
from .scaled import CompensatedSum, log_mean_exp, normalize
from .transition import Trajectory, Transition, rollout, with_context


class GradientLags(NamedTuple):
    """Log gradient norms by lag: entry k is for the state k steps before the loss.

    The last entry of all lags (k = T for the loss of the last of T steps) is the carry
    before the first step. Special values:

    - -inf: the gradient is exactly zero, because a reset cut the path, every unit is
      saturated in this precision, or the loss does not read this element or leaf.
      ``by_leaf`` is also -inf for a leaf whose part is smaller than the smallest float
      times that of the largest leaf of the same cell.
    - NaN: the sequence has no such step (it is before its first), or the gradient is
      not finite.
    - +inf: the Jacobian of a single step was outside the range of a float.

    A masked step holds the state and counts as a lag.

    Attributes:
        log_norm: log norms over the whole carry, ``(K + 1, *B)``.
        by_leaf: a pytree like the carry, each leaf ``(K + 1, *B)``.
        exists: whether the sequence has a state at this lag, ``(K + 1, *B)``.

    Example:
        >>> import jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # h_t = tanh(x_t + h_{t-1} / 2)
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 0.5)}
        >>> mask = jaxrnn.mask_from_lengths(jnp.array([3, 1]), 3)  # a ragged batch
        >>> lags = jaxrnn.diagnostics.gradient_lags(
        ...     cell, params, jnp.zeros((3, 2, 1)), jnp.sum, mask=mask)
        >>> print(jnp.exp(lags.log_norm[:, 1]).round(3), lags.exists.sum(0))
        [1.  0.5 nan nan] [4 2]
        >>> print(jnp.exp(lags.log_v).round(3))  # the mean over the sequences there are
        [1.    0.5   0.25  0.125]
    """

    log_norm: Float[Array, "K *B"]
    by_leaf: Any
    exists: Bool[Array, "K *B"]

    @property
    def log_v(self) -> Float[Array, " K"]:
        """Return log v_k, the log of the batch mean of the norms at each lag.

        The mean is over the sequences that have this lag. It is NaN if one of their
        norms is not finite.
        """
        lags = self.log_norm.shape[0]
        flat, exists = self.log_norm.reshape(lags, -1), self.exists.reshape(lags, -1)
        invalid = (exists & jnp.isnan(flat)).any(1)
        return jnp.where(invalid, jnp.nan, log_mean_exp(flat, 1))


def gradient_lags(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    loss: Callable[[Array], Array],
    carry: Carry = None,
    *,
    at: int | None = None,
    lags: int | None = None,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    engine: AbstractEngine | None = None,
    context: Context = None,
) -> GradientLags:
    """Compute ``log ||dl/ds_{T-k}||``, the gradient norm at every lag k = 0..K.

    The norms are computed per batch element, over the whole carry and per leaf, by one
    backward pass. The function can be called inside ``jit`` or eagerly; eagerly it
    compiles once for equal cells and shapes, whatever the loss. A stack of L layers
    takes L backward passes, because each layer has a scale of its own.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters, from ``cell.init``.
        xs: the inputs, ``(T, *B, D)``.
        loss: ``loss(y (*B, H)) -> scalar``, the loss of the output at one step. Sum it
            over the batch, so that the gradient of each element is its own (a mean
            divides all norms by the batch size).
        carry: the carry before the first step (default: the initial carry).
        at: the step whose output the loss reads (default: the last valid step of each
            sequence). Where step ``at`` is masked, the output is zero whatever the
            state, so the norms are exactly zero.
        lags: K, at most the number of steps up to the loss (default: all of them).
        mask, resets, engine: as for `jaxrnn.unroll`. The gradients are taken at the
            states that ``engine`` computes.
        context: as for `jaxrnn.unroll`, for a cell with ``takes_context``.

    Returns:
        `GradientLags`, with K + 1 entries.

    Raises:
        TypeError: if ``loss`` is not callable or a leaf of the carry is not
            floating-point.
        ValueError: if ``lags`` reaches beyond the sequence or ``loss`` does not return
            a real scalar; for a bidirectional layer or one that draws random numbers.

    Example::

        >>> import jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # h_t = tanh(x_t + h_{t-1} / 2)
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 0.5)}
        >>> xs = jnp.zeros((3, 1))
        >>> lags = jaxrnn.diagnostics.gradient_lags(cell, params, xs, jnp.sum)
        >>> print(jnp.exp(lags.log_norm).round(3))
        [1.    0.5   0.25  0.125]
    """
    cell, params = with_context(cell, params, xs, context, mask, "gradient_lags")
    trajectory = rollout(cell, params, xs, carry, mask, resets, engine, "gradient_lags")
    readout = select_readout("gradient_lags", trajectory, at, lags)
    check_loss("gradient_lags", cell, params, loss, readout.carry, readout.x)
    return _gradient_lags(
        cell, params, readout, loss_cotangent(cell, params, loss, readout)
    )


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _gradient_lags(
    cell: Cell | Layer, params: Params, readout: LossReadout, seed: Carry
) -> GradientLags:
    """Backpropagate the loss cotangent; mark the lags that a sequence does not have."""
    norms = backpropagate_log_norms(Transition(cell), params, readout.part, seed)
    log_norm, by_leaf = jax.tree.map(
        lambda a: jnp.where(readout.exists, a, jnp.nan), norms
    )
    return GradientLags(log_norm, by_leaf, readout.exists)


def gradient_map(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    loss: Callable[[Array, Any], Array],
    targets: PyTree = None,
    carry: Carry = None,
    *,
    resets: Bool[Array, "T *B"] | None = None,
    mask: Bool[Array, "T *B"] | None = None,
    engine: AbstractEngine | None = None,
    context: Context = None,
) -> Float[Array, "T T1 *B"]:
    """Compute ``log ||dl_t/ds_k||`` for every pair of a loss and a state.

    Row t is the loss of step t, column k + 1 the state after step k; column 0 is the
    carry before the first step. Above the diagonal, where the state comes after the
    loss, the entry is NaN. Other special values are those of `GradientLags`: -inf is
    exactly zero, as of a masked loss or beyond a reset; NaN below the diagonal, or
    +inf, is a gradient that is not finite. The losses of all steps are backpropagated
    together, at the cost of T backward passes and the memory of T states.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters, from ``cell.init``.
        xs: the inputs, ``(T, *B, D)``.
        loss: ``loss(y (*B, H), target) -> scalar``, summed over the batch.
        targets: a pytree of arrays ``(T, *B, ...)``, or None.
        carry: the carry before the first step (default: the initial carry).
        resets, mask, engine, context: as for `jaxrnn.unroll`.

    Returns:
        The logarithms, ``(T, T + 1, *B)``.

    Raises:
        TypeError: as for `gradient_lags`.
        ValueError: for a sequence without steps, for targets of another length, and as
            for `gradient_lags`.

    Example::

        >>> import jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # h_t = tanh(x_t + h_{t-1} / 2)
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 0.5)}
        >>> log_map = jaxrnn.diagnostics.gradient_map(
        ...     cell, params, jnp.zeros((2, 1)), lambda y, _: y.sum())
        >>> print(jnp.exp(log_map).round(3).tolist())
        [[0.5, 1.0, nan], [0.25, 0.5, 1.0]]
    """
    cell, params = with_context(cell, params, xs, context, mask, "gradient_map")
    trajectory = rollout(cell, params, xs, carry, mask, resets, engine, "gradient_map")
    _check_targets(trajectory, targets)
    first_step = jax.tree.map(
        lambda a: a[0], (trajectory.carries_after, trajectory.xs, targets)
    )
    check_loss(
        "gradient_map", cell, params, lambda y: loss(y, first_step[2]), *first_step[:2]
    )

    def one_loss(after, x, target, valid):
        seed = jax.grad(lambda s: loss(cell.output(params, s, x), target))(after)
        return (
            seed
            if valid is None
            else jax.tree.map(lambda a: jnp.where(_wide_as(valid, a), a, 0), seed)
        )

    return _gradient_map(
        cell,
        params,
        trajectory,
        jax.vmap(one_loss)(
            trajectory.carries_after, trajectory.xs, targets, trajectory.mask
        ),
    )


def _check_targets(trajectory: Trajectory, targets: PyTree) -> None:
    """Check that there is at least one step, and a target for each step."""
    if trajectory.steps == 0:
        raise ValueError(
            "gradient_map: the sequence has no step (T = 0), so there is no output for "
            "a loss to read"
        )
    for leaf in jax.tree.leaves(targets):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != trajectory.steps:
            raise ValueError(
                f"gradient_map: targets must be arrays (T, *B, ...) with "
                f"T = {trajectory.steps}, one per loss, but one is {describe(leaf)}"
            )


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _gradient_map(
    cell: Cell | Layer, params: Params, trajectory: Trajectory, cotangents: Carry
) -> Array:
    """Backpropagate the losses of all steps side by side, on a leading axis.

    The reverse scan over the steps holds one cotangent per loss. At a step before its
    loss a cotangent moves one step back; until then it stays the cotangent of the loss.
    """
    transition, batch_ndim = Transition(cell), len(trajectory.batch)
    cotangents, logs = normalize(cotangents, batch_ndim + 1)
    loss_steps = jnp.arange(trajectory.steps, dtype=jnp.int32)

    def back(state, step_inputs):
        (deltas, log), (carry, z, mask, reset, step) = state, step_inputs
        started = step <= loss_steps
        row = jnp.where(_wide_as(started, log.value), log.value, jnp.nan)
        _, pullback = jax.vjp(
            lambda s: transition.step(params, s, z, mask, reset), carry
        )
        units, growth = normalize(
            jax.vmap(lambda d: pullback(d)[0])(deltas), batch_ndim + 1
        )
        pulled_back = (units, log.plus(growth))
        return jax.tree.map(
            lambda a, b: jnp.where(_wide_as(started, a), a, b),
            pulled_back,
            (deltas, log),
        ), row

    steps = (
        trajectory.carries_before,
        transition.prepare(params, trajectory.xs),
        trajectory.mask,
        trajectory.resets,
        loss_steps,
    )
    (_, total), columns = jax.lax.scan(
        back, (cotangents, CompensatedSum.of(logs)), steps, reverse=True
    )
    return jnp.moveaxis(jnp.concatenate([total.value[None], columns]), 0, 1)


def _wide_as(flags: Array, leaf: Array) -> Array:
    """Append axes of size 1 to ``flags``, up to the number of axes of ``leaf``."""
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - flags.ndim))
