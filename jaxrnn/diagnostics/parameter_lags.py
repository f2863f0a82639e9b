"""The gradient by the lag at which the parameters were used, and its partial sums.

``F_t = ds_t/dtheta`` is the immediate effect of the parameters on the carry of step
t. For a loss l of the output of step T (Williams & Peng 1990; Pascanu, Mikolov &
Bengio 2013, eq. 3-4)::

    G(T, k) = dl/ds_{T-k} F_{T-k}          k = 0..T-1
    dl/dtheta = sum_k G(T, k)

plus the part of the gradient that passes through the carry before the first step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.cell import Cell
from ..core.dtypes import weaken_scalars
from ..core.engine import AbstractEngine
from ..core.layer import Layer
from ..core.real_vectors import check_inexact
from ..core.types import Carry, Context, Inputs, Params, PyTree
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
from .transition import Transition, rollout, with_context


class ParameterLags(NamedTuple):
    """Log norms of the terms G(T, k), k = 0..K-1, of a loss summed over the batch.

    -inf is exactly zero, NaN is not finite.

    Attributes:
        log_norm: log ||G(T, k)||, ``(K,)``.
        by_leaf: a pytree like the parameters with the log norm of each, ``(K,)``. Also
            -inf where the part of a parameter is smaller than the smallest float times
            the largest part of the term.
        log_sum: entry k is for ``G(T, 0) + ... + G(T, k)``, the gradient truncated
            after lag k, ``(K,)``.
        log_rest: entry k is for the part of the gradient that this truncation leaves
            out, ``(K,)``.
        log_whole: log norm of the whole gradient.
        terms: the terms G(T, k) themselves, ``(K, ...)`` per parameter, if requested;
            else None.
        initial: a pytree like the parameters, the part of the gradient that passes
            through the carry before the first step, if that carry is made from the
            parameters (``learned_initial_carry``). It, ``log_rest`` and ``log_whole``
            are NaN where ``lags`` stops before the first step.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # h_t = tanh(x_t + h_{t-1} / 2)
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 0.5)}
        >>> xs = jnp.full((3, 1), 0.1)
        >>> lags = jaxrnn.diagnostics.parameter_lags(
        ...     cell, params, xs, jnp.sum, terms=True)
        >>> def loss(params):
        ...     return jaxrnn.unroll(cell, params, xs)[1][-1].sum()
        >>> gradient = jax.grad(loss)(params)["bias"]  # the sum of its terms
        >>> bool(jnp.allclose(lags.terms["bias"].sum(0), gradient))
        True
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
        """Return ``|| rest || / || whole ||`` of the gradient truncated after lag k.

        This is the relative error of TBPTT(1, k + 1) for this loss alone. It is NaN
        where the whole gradient is zero, or ``lags`` left out steps.
        """
        return jnp.exp(self.log_rest - self.log_whole)


def parameter_lags(
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
    terms: bool = False,
    context: Context = None,
) -> ParameterLags:
    """Compute the parameter-lag terms G(T, k) of a loss and their partial sums.

    All terms and ``initial`` sum to the gradient of the loss with respect to
    ``params``. The direct effect of the parameters on the output is part of G(T, 0),
    and a learned initial carry that a reset restores is part of the term of that step.
    In a ragged batch, k counts from the last step of each sequence.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters, from ``cell.init``; all must be floating-point.
        xs: the inputs, ``(T, *B, D)``.
        loss: ``loss(y (*B, H)) -> scalar``, summed over the batch.
        carry: the carry before the first step (default: the initial carry).
        at: the step whose output the loss reads (default: the last valid step of each
            sequence).
        lags: K, at most the number of steps up to the loss (default: all of them).
        mask, resets, engine: as for `jaxrnn.unroll`.
        terms: also return the terms, which take K times the memory of the parameters.
        context: as for `jaxrnn.unroll`, for a cell with ``takes_context``. It is no
            parameter, and has no terms.

    Returns:
        `ParameterLags`.

    Raises:
        TypeError, ValueError: as for `gradient_lags`; also for integer parameters.

    Example::

        >>> import jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # h_t = tanh(x_t + h_{t-1} / 2)
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 0.5)}
        >>> lags = jaxrnn.diagnostics.parameter_lags(
        ...     cell, params, jnp.full((3, 1), 0.1), jnp.sum)
        >>> print([f"{error:.2f}" for error in lags.truncation_error])
        ['0.42', '0.14', '0.00']
    """
    params = weaken_scalars(params)
    check_inexact(
        "parameter_lags: params", params, "every parameter must be floating-point"
    )
    cell, bound = with_context(cell, params, xs, context, mask, "parameter_lags")
    trajectory = rollout(cell, bound, xs, carry, mask, resets, engine, "parameter_lags")
    readout = select_readout("parameter_lags", trajectory, at, lags)
    check_loss("parameter_lags", cell, bound, loss, readout.carry, readout.x)
    held = None if context is None else bound[1]
    direct = jax.grad(
        lambda p: readout_loss(cell, loss, readout, _bind(p, held), readout.carry)
    )(params)
    return _parameter_lags(
        cell,
        params,
        held,
        readout,
        direct,
        loss_cotangent(cell, bound, loss, readout),
        terms,
        carry is None,
    )


def _bind(params: Params, context: Context) -> Params:
    """Return the parameters of a cell whose parameters hold its context, if any."""
    return params if context is None else (params, context)


class _Sum(NamedTuple):
    """A running sum of pytrees, stored as a pytree times exp(log)."""

    tree: Any
    log: Array

    def plus(self, tree: PyTree, log: Array) -> _Sum:
        """Add ``tree * exp(log)`` at the larger of the two scales."""
        scale = finite(jnp.maximum(self.log, log))
        return _Sum(
            jax.tree.map(
                jnp.add,
                scale_by_log(self.tree, self.log - scale),
                scale_by_log(tree, log - scale),
            ),
            jnp.maximum(self.log, log),
        )

    def log_norm(self) -> Array:
        """Return the log norm over all leaves."""
        return log_norm(jax.tree.leaves(self.tree), 0) + finite(self.log)


@functools.partial(jax.jit, static_argnums=(0, 6, 7), inline=True)
def _parameter_lags(
    cell: Cell | Layer,
    params: Params,
    context: Context,
    readout: LossReadout,
    direct: Params,
    seed: Carry,
    return_terms: bool,
    learned_carry: bool,
) -> ParameterLags:
    """Compute the terms and their partial sums by two scans over the steps.

    The reverse scan adds the terms from the newest to the oldest, which gives
    ``log_sum``. The forward scan adds them from the oldest to the newest, starting from
    the part that goes through the initial carry: before it adds the term of lag k, its
    sum is what the gradient truncated after lag k leaves out, which gives ``log_rest``.
    Computing the rest as whole minus sum would lose it to cancellation where it is
    small.
    """
    trajectory, transition = readout.part, Transition(cell)
    flags = (trajectory.mask, trajectory.resets)
    initial_cotangent, deltas = _cotangents(
        transition, _bind(params, context), trajectory, seed
    )
    is_newest = jnp.arange(trajectory.steps) == trajectory.steps - 1

    term_of = functools.partial(_term_of_step, transition, params, context, direct)

    def add_from_newest(total, step_inputs):
        term, scale = term_of(step_inputs)
        total = total.plus(term, scale)
        norms = (
            log_norm(jax.tree.leaves(term), 0) + scale,
            jax.tree.map(lambda a: a + scale, log_norms_by_leaf(term, 0)),
        )
        return total, (
            *norms,
            total.log_norm(),
            scale_by_log(term, scale) if return_terms else None,
        )

    def add_from_oldest(total, step_inputs):
        return total.plus(*term_of(step_inputs)), total.log_norm()

    nothing = _Sum(
        jax.tree.map(jnp.zeros_like, params),
        jnp.full((), -jnp.inf, initial_cotangent[1].dtype),
    )
    initial_sum = (
        _term_of_initial_carry(
            cell, params, context, trajectory.batch, initial_cotangent
        )
        if learned_carry
        else nothing
    )
    whole_or_nan = jax.tree.map(
        lambda a: jnp.where(readout.whole, a, jnp.asarray(jnp.nan, a.dtype)),
        initial_sum.tree,
    )
    initial_sum = initial_sum._replace(tree=whole_or_nan)
    initial = scale_by_log(initial_sum.tree, finite(initial_sum.log))
    steps = (trajectory.carries_before, trajectory.xs, *flags, deltas, is_newest)
    _, from_newest = jax.lax.scan(add_from_newest, nothing, steps, reverse=True)
    whole, rest = jax.lax.scan(add_from_oldest, initial_sum, steps)
    log_norms, by_leaf, log_sum, terms, log_rest = jax.tree.map(
        lambda a: a[::-1], (*from_newest, rest)
    )
    return ParameterLags(
        log_norms, by_leaf, log_sum, log_rest, whole.log_norm(), terms, initial
    )


def _term_of_step(
    transition: Transition,
    params: Params,
    context: Context,
    direct: Params,
    step_inputs: tuple,
) -> tuple[Params, Array]:
    """Return G of one step, as a pytree and the logarithm of its scale.

    Args:
        transition: the cell's step with its flags.
        params: the parameters.
        context: the context of the cell, or None.
        direct: the gradient of the output at the newest step with its carry held.
        step_inputs: the carry before the step, its input, mask and reset, the cotangent
            of the carry after it with its log norm, and whether it is the newest.
    """
    carry, x, valid, reset, (delta, log), is_newest_step = step_inputs
    # The cotangent of the newest step and the direct gradient of the output are both
    # ordinary numbers, so they are added at scale 1. All other cotangents are scaled by
    # the largest of the batch before the pullback and the term is scaled back
    # afterwards, so that it is not lost to underflow.
    scale = jnp.where(is_newest_step, jnp.zeros((), log.dtype), finite(log.max()))
    _, pullback = jax.vjp(
        lambda p: transition.step_from_input(_bind(p, context), carry, x, valid, reset),
        params,
    )
    (term,) = pullback(scale_by_log(delta, log - scale))
    return jax.tree.map(
        lambda a, b: a + jnp.where(is_newest_step, b, jnp.zeros_like(b)), term, direct
    ), scale


def _term_of_initial_carry(
    cell: Cell | Layer,
    params: Params,
    context: Context,
    batch: tuple[int, ...],
    cotangent: tuple[Carry, Array],
) -> _Sum:
    """Return the part of the gradient that goes through the initial carry."""
    delta, log = cotangent
    scale = finite(log.max())
    _, pullback = jax.vjp(
        lambda p: cell.initial_carry(_bind(p, context), batch), params
    )
    (term,) = pullback(scale_by_log(delta, log - scale))
    is_zero = jnp.isneginf(log_norm(jax.tree.leaves(term), 0))
    return _Sum(term, jnp.where(is_zero, jnp.full((), -jnp.inf, log.dtype), scale))


def _cotangents(
    transition: Transition, params: Params, trajectory: Any, seed: Carry
) -> tuple[tuple, tuple]:
    """Return the cotangent of the first carry, and those after every step.

    Each is a unit vector with the logarithm of its norm.
    """
    batch_ndim = len(trajectory.batch)
    delta, log = normalize(seed, batch_ndim)

    def back(state, step_inputs):
        (delta, log), (carry, z, mask, reset) = state, step_inputs
        _, pullback = jax.vjp(
            lambda s: transition.step(params, s, z, mask, reset), carry
        )
        unit, growth = normalize(pullback(delta)[0], batch_ndim)
        return (unit, log.plus(growth)), (delta, log.value)

    steps = (
        trajectory.carries_before,
        transition.prepare(params, trajectory.xs),
        trajectory.mask,
        trajectory.resets,
    )
    (delta, total), cotangents = jax.lax.scan(
        back, (delta, CompensatedSum.of(log)), steps, reverse=True
    )
    return (delta, total.value), cotangents
