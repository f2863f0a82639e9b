"""Lyapunov exponents: the rates at which a recurrence expands or contracts states."""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core.cell import Cell
from ..core.flags import expand_flags
from ..core.layer import Layer, check_cell
from ..core.masked_inputs import fill_masked_inputs
from ..core.real_vectors import (
    WHOLE_CARRY,
    check_inexact,
    features,
    from_features,
    size_of,
)
from ..core.types import Carry, Context, Inputs, Params
from ..core.validation import (
    check_carry,
    check_flags,
    check_inputs,
    check_int,
    check_key_given,
)
from .scaled import CompensatedSum
from .transition import Transition, check_supported, with_context


class LyapunovState(NamedTuple):
    """The state that is passed from one part of a long sequence to the next.

    Attributes:
        carry: the carry after the last step.
        basis: orthonormal columns, ``(*B, n, count)``.
        log_growth: ``log |R_ii|``, ``(*B, count)``, summed over the steps that count.
        steps: the number of these steps, ``(*B,)``.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # h_t = tanh(x_t + h_{t-1} / 2)
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 0.5)}
        >>> xs = jnp.zeros((4, 1))
        >>> begun = jaxrnn.diagnostics.lyapunov_spectrum(
        ...     cell, params, xs, key=jax.random.key(0)).state
        >>> state = jaxrnn.diagnostics.lyapunov_spectrum(
        ...     cell, params, xs, state=begun).state
        >>> int(begun.steps), int(state.steps), state.basis.shape
        (4, 8, (1, 1))
    """

    carry: Carry
    basis: Float[Array, "*B N K"]
    log_growth: CompensatedSum
    steps: Int[Array, "*B"]


class LyapunovSpectrum(NamedTuple):
    """Lyapunov exponents in nats per step, in the order of the basis.

    After a warm-up this order is largest first. An exponent is -inf where a direction
    was contracted to nothing at some step, as by a dead or saturated relu unit: what
    remained of it beside the larger directions is less than their rounding error, n
    epsilon, so that its size is unknown. It is NaN where no step was counted or a
    Jacobian is not finite.

    Attributes:
        exponents: ``(*B, count)``.
        state: the `LyapunovState` with which to continue the sequence.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(2)  # h_t = tanh(x_t + h_{t-1} U)
        >>> params = {"input_kernel": jnp.ones((1, 2)), "bias": jnp.zeros(2),
        ...           "recurrent_kernel": jnp.diag(jnp.array([0.5, 0.25]))}
        >>> spectrum = jaxrnn.diagnostics.lyapunov_spectrum(
        ...     cell, params, jnp.zeros((40, 1)), key=jax.random.key(0))
        >>> print(jnp.exp(spectrum.exponents).round(3))  # the eigenvalues of U
        [0.5  0.25]
    """

    exponents: Float[Array, "*B K"]
    state: LyapunovState


def lyapunov_spectrum(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    key: Array | None = None,
    count: int | None = None,
    warmup: int | None = None,
    stride: int = 1,
    mask: Bool[Array, "T *B"] | None = None,
    state: LyapunovState | None = None,
    context: Context = None,
) -> LyapunovSpectrum:
    """Compute the ``count`` largest Lyapunov exponents of a driven recurrence by QR.

    ::

        Q_t R_t = J_t Q_{t-1}        lambda_i = mean_t log |R_t,ii|        nats per step

    (Benettin et al. 1980; Engelken et al. 2023). ``J_t`` is the Jacobian of the whole
    carry of n real numbers: an LSTM's (h, c) has n = 2H, and a complex number counts as
    two. The singular values of a product of k Jacobians approach exp(k lambda_i), so
    lambda_1 is the rate at which gradients vanish (below zero) or explode (above). The
    sum of all n exponents is the mean of ``log |det J|``.

    The computation takes one step at a time, so that beyond the inputs its memory does
    not grow with T. A longer sequence can be passed in parts: pass the ``state`` of
    each call to the next.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters, from ``cell.init``.
        xs: the inputs, ``(T, *B, D)``.
        carry: the carry before the first step (default: the initial carry).
        key: the key that draws the first basis, on which nothing depends after the
            warm-up. Required unless ``state`` is given.
        count: the number of exponents (default: n). Fewer cost less: a step costs about
            ``count`` backward passes and a QR factorization of n x count.
        warmup: the number of steps before counting starts, in which carry and basis
            converge (default: a tenth of T; 0 with ``state``).
        stride: the number of steps between factorizations. A larger stride is faster;
            directions whose growth differs by more than 1/epsilon of the dtype within
            that many steps are lost and marked -inf, the smallest first.
        mask: ``(T, *B)`` bool. Where False the carry and the basis hold, and the step
            does not count. There are no resets: an exponent is a mean over one long
            trajectory.
        state: the state returned for the preceding part of the sequence.
        context: as for `jaxrnn.unroll`, for a cell with ``takes_context``.

    Returns:
        A `LyapunovSpectrum`.

    Raises:
        TypeError: if a leaf of the carry is not floating-point.
        ValueError: if ``count`` is beyond n, ``warmup`` is beyond T, or T or ``warmup``
            is not a multiple of ``stride``; for ``carry``, ``key`` or another ``count``
            beside a ``state``.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # h_t = tanh(x_t + h_{t-1} / 2)
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 0.5)}
        >>> spectrum = jaxrnn.diagnostics.lyapunov_spectrum(
        ...     cell, params, jnp.zeros((4, 1)), key=jax.random.key(0))
        >>> print(jnp.exp(spectrum.exponents))
        [0.5]
    """
    what = "lyapunov_spectrum"
    check_cell(cell)
    lead = check_inputs(xs, cell.feature_ndim)
    if mask is not None:
        check_flags("mask", mask, lead)
    cell, params = with_context(cell, params, xs, context, mask, what)
    check_supported(cell, what)
    cell.check(params)
    batch, steps = lead[1:], lead[0]
    expected = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)
    if state is None:
        check_key_given(what, key)
        carry = cell.initial_carry(params, batch) if carry is None else carry
        check_carry(cell, carry, expected, "the carry passed in")
        check_inexact(f"{what}: carry", carry, WHOLE_CARRY)
    elif carry is not None or key is not None:
        raise ValueError(
            f"{what}: state already holds a carry and a basis: leave out carry and key"
        )
    n = size_of(expected, len(batch))
    if state is not None:
        check_carry(cell, state.carry, expected, "the carry of the state")
        if count not in (None, state.basis.shape[-1]):
            raise ValueError(
                f"{what}: the state holds {state.basis.shape[-1]} directions, so count "
                f"cannot be {count}: leave it out"
            )
        count = state.basis.shape[-1]
    count = n if count is None else count
    stride = check_int(what, "stride", stride, 1, max(steps, 1), f"the {steps} steps")
    warmup = (
        (0 if state is not None else steps // 10 // stride * stride)
        if warmup is None
        else warmup
    )
    warmup = check_int(what, "warmup", warmup, 0, steps, f"the {steps} steps")
    count = check_int(what, "count", count, 1, n, f"the {n} numbers of the carry")
    if steps % stride or warmup % stride:
        raise ValueError(
            f"{what}: T = {steps} and warmup = {warmup} must be multiples of stride = "
            f"{stride}: take another stride, or cut xs"
        )
    if state is None:
        state = _begin(carry, batch, n, count, key)
    xs = fill_masked_inputs(jax.tree.map(jnp.asarray, xs), mask)
    return _spectrum(cell, params, xs, mask, state, warmup, stride)


def _begin(
    carry: Carry, batch: tuple[int, ...], n: int, count: int, key: Any
) -> LyapunovState:
    """Draw a random orthonormal basis, the same one for every batch element."""
    dtype = features(carry, len(batch)).dtype
    basis, _ = jnp.linalg.qr(jax.random.normal(key, (n, count), dtype))
    basis = jnp.broadcast_to(basis, (*batch, n, count))
    return LyapunovState(
        carry,
        basis,
        CompensatedSum.of(jnp.zeros((*batch, count), dtype)),
        jnp.zeros(batch, jnp.int32),
    )


@functools.partial(jax.jit, static_argnums=(0, 5, 6), inline=True)
def _spectrum(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    mask: Array | None,
    state: LyapunovState,
    warmup: int,
    stride: int,
) -> LyapunovSpectrum:
    """Scan over chunks of ``stride`` steps, with one QR factorization per chunk."""
    transition, batch = Transition(cell), state.steps.shape
    batch_ndim = len(batch)

    def push_forward(carry, basis, x, valid):
        """Return the next carry, and the Jacobian times every column of the basis."""
        next_carry, jvp = jax.linearize(
            lambda s: transition.step_from_input(params, s, x, valid), carry
        )
        columns = jax.vmap(
            lambda v: features(jvp(from_features(v, carry, batch_ndim)), batch_ndim),
            -1,
            -1,
        )
        return next_carry, columns(basis)

    def chunk(state, chunk_inputs):
        # The Jacobians J of the chunk map the orthonormal basis Q to J Q = Q' R. Q' is
        # the next basis, and |R_ii| is the factor by which direction i has grown
        # orthogonally to directions 1..i-1. Without the factorization every column
        # would turn to the first direction, and the others would be lost in rounding.
        xs, mask, counted = chunk_inputs
        carry, basis = state.carry, state.basis
        for i in range(stride):
            x = jax.tree.map(operator.itemgetter(i), xs)
            valid = None if mask is None else mask[i]
            carry, basis = push_forward(carry, basis, x, valid)
        basis, triangle = jnp.linalg.qr(basis)
        valid = jnp.full(batch, stride) if mask is None else mask.sum(0)
        steps = jnp.where(counted, valid, 0).astype(state.steps.dtype)
        log_growth = _log_growth(triangle, basis.shape[-2])
        log_growth_sum = state.log_growth.plus(
            jnp.where(
                expand_flags(steps > 0, log_growth),
                log_growth,
                jnp.zeros_like(log_growth),
            )
        )
        return LyapunovState(carry, basis, log_growth_sum, state.steps + steps), None

    num_chunks = jax.tree.leaves(xs)[0].shape[0] // stride
    counted = jnp.arange(num_chunks) >= warmup // stride
    chunk_rows = jax.tree.map(
        lambda a: a.reshape(num_chunks, stride, *a.shape[1:]), (xs, mask)
    )
    state, _ = jax.lax.scan(chunk, state, (*chunk_rows, counted))
    log_growth_sum, steps = state.log_growth.value, state.steps[..., None]
    exponents = jnp.where(
        steps > 0,
        log_growth_sum / jnp.maximum(steps, 1).astype(log_growth_sum.dtype),
        jnp.nan,
    )
    return LyapunovSpectrum(exponents, state)


def _log_growth(triangle: Array, n: int) -> Array:
    """Return log |R_ii|, or -inf where R_ii is just the rounding error of a column."""
    # Column i of R holds the coordinates, in the new basis, of the vector that J made
    # of direction i. Its rounding error is about n epsilon times its largest entry; a
    # diagonal entry below that is not known, not even in size.
    sizes = jnp.abs(jnp.diagonal(triangle, axis1=-2, axis2=-1))
    floor = jnp.abs(triangle).max(-2) * (n * jnp.finfo(sizes.dtype).eps)
    return jnp.where(sizes <= floor, -jnp.inf, jnp.log(sizes))
