"""Lyapunov exponents: the rates at which a recurrence stretches and shrinks what it remembers."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from ..cell import Carry, Cell, Layer, Params
from ..checks import check_carry, check_inputs, check_key_given
from .scaled import LongSum
from .transition import Transition, check_followed, check_inexact, features, from_features, size_of


class LyapunovState(NamedTuple):
    """What one stretch of a long sequence hands to the next."""

    carry: Carry
    basis: Float[Array, "*B N K"]  # orthonormal columns
    log_growth: LongSum  # (*B, K), summed over the steps that count
    steps: Int[Array, ""]


class LyapunovSpectrum(NamedTuple):
    """Exponents in nats per step, in the order of the basis: after a warm-up the largest first.

    -inf: a direction is crushed to exactly zero at some step (a dead relu unit, a saturated one). NaN: no step was counted,
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
    state: LyapunovState | None = None,
) -> LyapunovSpectrum:
    """The ``count`` largest Lyapunov exponents of a driven recurrence, by QR (Benettin et al. 1980; Engelken et al. 2023)::

        Q_t R_t = J_t Q_{t-1}        lambda_i = mean_t log |R_t,ii|        nats per step

    over the whole carry: an LSTM's (h, c) has 2H. The singular values of a product of k Jacobians approach exp(k lambda_i), so
    lambda_1 is the rate at which gradients vanish (below zero) or explode (above). All n of them sum to the mean of
    log |det J|. One step at a time: memory does not grow with T beyond the inputs; a longer sequence comes in pieces, each
    call handing its ``state`` to the next.

    Args:
        key: draws the first basis, on which nothing depends after the warm-up. Demanded unless ``state`` is given.
        count: how many, n by default; fewer cost less.
        warmup: steps before counting begins, in which carry and basis settle (default: a tenth of T; 0 with ``state``).
        stride: steps between factorisations. More is faster; directions that part by more than 1/epsilon of the dtype within
            so many steps are lost, so that the smallest exponents go wrong first.
        state: of the call for the stretch before.

    Raises:
        ValueError: for a count beyond n, a warm-up beyond T, a T (or warm-up) that is no multiple of the stride.
    """
    what = "lyapunov_spectrum"
    check_followed(cell, what)
    check_inputs(xs)
    cell.check(params)
    batch, steps = tuple(xs.shape[1:-1]), xs.shape[0]
    expected = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)
    if state is None:
        check_key_given(what, key)
        carry = cell.initial_carry(params, batch) if carry is None else carry
        check_carry(cell, carry, expected, "the carry passed in")
        check_inexact(carry, what)
    elif carry is not None or key is not None:
        raise ValueError(f"{what}: state already holds a carry and a basis: leave carry and key out")
    n = size_of(expected, len(batch))
    if state is not None:
        check_carry(cell, state.carry, expected, "the carry of the state")
        if count not in (None, state.basis.shape[-1]):
            raise ValueError(
                f"{what}: the state holds {state.basis.shape[-1]} directions, so count cannot be {count}: leave it out"
            )
        count = state.basis.shape[-1]
    count = n if count is None else count
    stride = min(stride, steps) if stride > 0 else stride
    warmup = (0 if state is not None else steps // 10 // max(stride, 1) * stride) if warmup is None else warmup
    _check_sizes(what, n, count, steps, warmup, stride)
    if state is None:
        state = _begin(carry, batch, n, count, key)
    return _spectrum(cell, params, jnp.asarray(xs), state, warmup, stride)


def _check_sizes(what: str, n: int, count: Any, steps: int, warmup: Any, stride: Any) -> None:
    for name, value, least, most in (
        ("count", count, 1, n),
        ("stride", stride, 1, max(steps, 1)),
        ("warmup", warmup, 0, steps),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            of = f"the {n} numbers of the carry" if name == "count" else f"the {steps} steps"
            raise ValueError(f"{what}: {name} must be an int from {least} to {most} ({of}), but it is {value!r}")
    if steps % stride or warmup % stride:
        raise ValueError(
            f"{what}: T = {steps} and warmup = {warmup} must be multiples of stride = {stride}: take another stride, or cut xs"
        )


def _begin(carry: Carry, batch: tuple[int, ...], n: int, count: int, key: Any) -> LyapunovState:
    dtype = features(carry, len(batch)).dtype
    basis, _ = jnp.linalg.qr(jax.random.normal(key, (n, count), dtype))
    real = jnp.finfo(dtype).dtype
    basis = jnp.broadcast_to(basis, (*batch, n, count))
    return LyapunovState(carry, basis, LongSum.of(jnp.zeros((*batch, count), real)), jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 4, 5), inline=True)
def _spectrum(cell: Any, params: Params, xs: Array, state: LyapunovState, warmup: int, stride: int) -> LyapunovSpectrum:
    machine, batch = Transition(cell), xs.ndim - 2
    dtype = state.basis.dtype

    def push_forward(carry, basis, x):
        """The next carry, and the Jacobian times every column of the basis."""
        new, push = jax.linearize(lambda s: machine.step_from_input(params, s, x), carry)
        columns = jax.vmap(lambda v: features(push(from_features(v, carry, batch)), batch).astype(dtype), -1, -1)
        return new, columns(basis)

    def block(state, now):
        xs, counted = now
        carry, basis = state.carry, state.basis
        for i in range(stride):
            carry, basis = push_forward(carry, basis, xs[i])
        basis, triangle = jnp.linalg.qr(basis)
        growth = jnp.log(jnp.abs(jnp.diagonal(triangle, axis1=-2, axis2=-1)))
        total = state.log_growth.plus(jnp.where(counted, growth, jnp.zeros_like(growth)))
        return LyapunovState(carry, basis, total, state.steps + stride * counted.astype(state.steps.dtype)), None

    blocks = xs.shape[0] // stride
    counted = jnp.arange(blocks) >= warmup // stride
    state, _ = jax.lax.scan(block, state, (xs.reshape(blocks, stride, *xs.shape[1:]), counted))
    total = state.log_growth.value
    exponents = jnp.where(state.steps > 0, total / jnp.maximum(state.steps, 1).astype(total.dtype), jnp.nan)
    return LyapunovSpectrum(exponents, state)
