"""Lyapunov exponents: the rates at which a recurrence stretches and shrinks what it
remembers.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from ..core.cell import Carry, Cell, Layer, Params, expand_flags, weaken_scalars
from ..core.masked_inputs import fill_masked_inputs
from ..core.validation import (
    check_carry,
    check_flags,
    check_inputs,
    check_int,
    check_key_given,
)
from .scaled import CompensatedSum
from .transition import (
    WHOLE_CARRY,
    Transition,
    check_inexact,
    check_supported,
    features,
    from_features,
    size_of,
)


class LyapunovState(NamedTuple):
    """What one stretch of a long sequence hands to the next."""

    carry: Carry
    basis: Float[Array, "*B N K"]  # orthonormal columns
    log_growth: CompensatedSum  # (*B, K), summed over the steps that count
    steps: Int[Array, "*B"]  # how many those were


class LyapunovSpectrum(NamedTuple):
    """Exponents in nats per step, in the order of the basis: after a warm-up the
    largest first.

    -inf: a direction was crushed to nothing at some step, as by a dead relu unit or a
    saturated one; that is, what was left of it beside the larger ones is less than
    their rounding, n epsilon, so that its size is not known. NaN: no step was counted,
    or a Jacobian is not finite. ``state`` goes on with the sequence.
    """

    exponents: Float[Array, "*B K"]
    state: LyapunovState


def lyapunov_spectrum(
    cell: Cell | Layer,
    params: Params,
    xs: Inexact[Array, "T *B D"],
    carry: Carry = None,
    *,
    key: Array | None = None,
    count: int | None = None,
    warmup: int | None = None,
    stride: int = 1,
    mask: Bool[Array, "T *B"] | None = None,
    state: LyapunovState | None = None,
) -> LyapunovSpectrum:
    """The ``count`` largest Lyapunov exponents of a driven recurrence, by QR (Benettin
    et al. 1980; Engelken et al. 2023)::

        Q_t R_t = J_t Q_{t-1}        lambda_i = mean_t log |R_t,ii|        nats per step

    over the whole carry: an LSTM's (h, c) has 2H, a complex number counts as two. The
    singular values of a product of k Jacobians approach exp(k lambda_i), so lambda_1 is
    the rate at which gradients vanish (below zero) or explode (above). All n of them
    sum to the mean of log |det J|. One step at a time: memory does not grow with T
    beyond the inputs; a longer sequence comes in pieces, each call handing its
    ``state`` to the next.

    Args:
        key: draws the first basis, on which nothing depends after the warm-up. Demanded
            unless ``state`` is given.
        count: how many, n by default; fewer cost less: a step costs about count
            backward passes and a QR of n x count.
        warmup: steps before counting begins, in which carry and basis settle (default:
            a tenth of T; 0 with ``state``).
        stride: steps between factorisations. More is faster; directions that part by
            more than 1/epsilon of the dtype within so many steps are lost and marked
            -inf, the smallest first.
        mask: False holds carry and basis, and the step does not count. There are no
            resets: an exponent is a mean over one long path.
        state: of the call for the stretch before.

    Raises:
        ValueError: for a count beyond n, a warm-up beyond T, a T (or warm-up) that is
            no multiple of the stride.
    """
    what = "lyapunov_spectrum"
    check_supported(cell, what)
    check_inputs(xs)
    params = weaken_scalars(params)
    if mask is not None:
        check_flags("mask", mask, xs)
    cell.check(params)
    batch, steps = tuple(xs.shape[1:-1]), xs.shape[0]
    expected = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)
    if state is None:
        check_key_given(what, key)
        carry = cell.initial_carry(params, batch) if carry is None else carry
        check_carry(cell, carry, expected, "the carry passed in")
        check_inexact(f"{what}: carry", carry, WHOLE_CARRY)
    elif carry is not None or key is not None:
        raise ValueError(
            f"{what}: state already holds a carry and a basis: leave carry and key out"
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
    xs = fill_masked_inputs(jnp.asarray(xs), mask)
    return _spectrum(cell, params, xs, mask, state, warmup, stride)


def _begin(
    carry: Carry, batch: tuple[int, ...], n: int, count: int, key: Any
) -> LyapunovState:
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
    cell: Any,
    params: Params,
    xs: Array,
    mask: Array | None,
    state: LyapunovState,
    warmup: int,
    stride: int,
) -> LyapunovSpectrum:
    machine, batch = Transition(cell), xs.ndim - 2

    def push_forward(carry, basis, x, keep):
        """The next carry, and the Jacobian times every column of the basis."""
        new, push = jax.linearize(
            lambda s: machine.step_from_input(params, s, x, keep), carry
        )
        columns = jax.vmap(
            lambda v: features(push(from_features(v, carry, batch)), batch), -1, -1
        )
        return new, columns(basis)

    def block(state, now):
        xs, mask, counted = now
        carry, basis = state.carry, state.basis
        for i in range(stride):
            carry, basis = push_forward(
                carry, basis, xs[i], None if mask is None else mask[i]
            )
        basis, triangle = jnp.linalg.qr(basis)
        valid = jnp.full(xs.shape[1:-1], stride) if mask is None else mask.sum(0)
        steps = jnp.where(counted, valid, 0).astype(state.steps.dtype)
        growth = _log_growth(triangle, basis.shape[-2])
        total = state.log_growth.plus(
            jnp.where(expand_flags(steps > 0, growth), growth, jnp.zeros_like(growth))
        )
        return LyapunovState(carry, basis, total, state.steps + steps), None

    blocks = xs.shape[0] // stride
    counted = jnp.arange(blocks) >= warmup // stride
    rows = jax.tree.map(lambda a: a.reshape(blocks, stride, *a.shape[1:]), (xs, mask))
    state, _ = jax.lax.scan(block, state, (*rows, counted))
    total, steps = state.log_growth.value, state.steps[..., None]
    exponents = jnp.where(
        steps > 0, total / jnp.maximum(steps, 1).astype(total.dtype), jnp.nan
    )
    return LyapunovSpectrum(exponents, state)


def _log_growth(triangle: Array, n: int) -> Array:
    """Logarithms of R's diagonal, -inf where an entry is nothing but rounding of its
    column: of what it was made from.
    """
    sizes = jnp.abs(jnp.diagonal(triangle, axis1=-2, axis2=-1))
    floor = jnp.abs(triangle).max(-2) * (n * jnp.finfo(sizes.dtype).eps)
    return jnp.where(sizes <= floor, -jnp.inf, jnp.log(sizes))
