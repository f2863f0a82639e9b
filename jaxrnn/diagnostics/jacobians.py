"""Jacobians of the carry, their products, and the singular values of the products."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from ..core.arrays import is_array
from ..core.cell import Cell
from ..core.engine import AbstractEngine
from ..core.layer import Layer
from ..core.real_vectors import features, from_features, size_of
from ..core.types import Carry, Context, Inputs, Params
from ..core.validation import describe
from .scaled import CompensatedSum, normalize
from .transition import Transition, rollout, with_context


def jacobians(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    engine: AbstractEngine | None = None,
    context: Context = None,
) -> Float[Array, "T *B N N"]:
    """Compute the Jacobian ``J_t = ds_t/ds_{t-1}`` of every step.

    The state s is the whole carry as one vector of n real numbers, leaf after leaf: an
    LSTM's Jacobian is 2H x 2H, in the order h, c. A complex number counts as two, and
    all real parts of a leaf precede its imaginary parts. ``J[t, b, i, j]`` is the
    derivative of component i after step t by component j before it. The Jacobian of a
    masked step is the identity, that of a step with a reset is zero.

    The result holds T B n^2 numbers, none of them more precise than the carry's dtype.
    For long sequences use `lyapunov_spectrum`, which does not store the Jacobians.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters, from ``cell.init``.
        xs: the inputs, ``(T, *B, D)``.
        carry: the carry before the first step (default: the initial carry).
        mask, resets, engine: as for `jaxrnn.unroll`. The Jacobians are taken at the
            states that ``engine`` computes.
        context: as for `jaxrnn.unroll`, for a cell with ``takes_context``.

    Returns:
        The Jacobians, ``(T, *B, n, n)``.

    Raises:
        TypeError: if a leaf of the carry is not floating-point.
        ValueError: for a bidirectional layer or one that draws random numbers.

    Example::

        >>> import jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # h_t = tanh(x_t + h_{t-1} / 2)
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 0.5)}
        >>> print(jaxrnn.diagnostics.jacobians(cell, params, jnp.zeros((2, 1))).ravel())
        [0.5 0.5]
    """
    cell, params = with_context(cell, params, xs, context, mask, "jacobians")
    trajectory = rollout(cell, params, xs, carry, mask, resets, engine, "jacobians")
    return _jacobians(cell, params, trajectory)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _jacobians(cell: Cell | Layer, params: Params, trajectory: Any) -> Array:
    """Push the standard basis of the carry through the linearization of every step."""
    transition, batch_ndim = Transition(cell), len(trajectory.batch)

    def jacobian_of_step(_, step_inputs):
        carry, z, mask, reset = step_inputs
        dtype = features(carry, batch_ndim).dtype
        n = size_of(carry, batch_ndim)
        basis = jnp.broadcast_to(
            jnp.eye(n, dtype=dtype).reshape(n, *[1] * batch_ndim, n),
            (n, *trajectory.batch, n),
        )
        _, push = jax.linearize(
            lambda s: transition.step(params, s, z, mask, reset), carry
        )
        columns = jax.vmap(
            lambda v: features(push(from_features(v, carry, batch_ndim)), batch_ndim)
        )(basis)
        return None, jnp.moveaxis(columns, 0, -1)

    steps = (
        trajectory.carries_before,
        transition.prepare(params, trajectory.xs),
        trajectory.mask,
        trajectory.resets,
    )
    return jax.lax.scan(jacobian_of_step, None, steps)[1]


class JacobianProducts(NamedTuple):
    """Products of the last k Jacobians, for k = 0..T, in the log domain.

    ::

        J_T J_{T-1} ... J_{T-k+1} = exp(log_scale[k]) * unit[k]

    The product of k = 0 is the identity.

    Attributes:
        log_scale: ``(T + 1, *B)``; -inf where the product is exactly zero, and NaN or
            +inf where it is not finite.
        unit: ``(T + 1, *B, n, n)``, of Frobenius norm 1; zero where the product is.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.diagnostics import jacobian_products
        >>> products = jacobian_products(jnp.full((2, 1, 1), -0.5))
        >>> print(products.unit.round(3).ravel())
        [ 1. -1.  1.]
        >>> whole = jnp.exp(products.log_scale)[:, None, None] * products.unit
        >>> print(whole.round(3).ravel())
        [ 1.   -0.5   0.25]
    """

    log_scale: Float[Array, "K *B"]
    unit: Inexact[Array, "K *B N N"]


def jacobian_products(J: Inexact[Array, "T *B N N"]) -> JacobianProducts:
    """Multiply the last 0, 1, ..., T Jacobians, in the log domain.

    Args:
        J: the Jacobians, ``(T, *B, n, n)``, as `jacobians` returns them.

    Returns:
        `JacobianProducts`, with T + 1 products.

    Raises:
        ValueError: if ``J`` does not hold square matrices.

    Example::

        >>> import jax.numpy as jnp
        >>> from jaxrnn.diagnostics import jacobian_products
        >>> print(jnp.exp(jacobian_products(jnp.full((2, 1, 1), 0.5)).log_scale))
        [1.   0.5  0.25]
    """
    if (
        not is_array(J)
        or J.ndim < 3
        or J.shape[-1] != J.shape[-2]
        or not jnp.issubdtype(J.dtype, jnp.inexact)
    ):
        raise ValueError(
            f"jacobian_products: J must hold square matrices (T, *B, n, n), as "
            f"jacobians gives them, but it is {describe(J)}"
        )
    return _products(jnp.asarray(J))


@functools.partial(jax.jit, inline=True)
def _products(J: Array) -> JacobianProducts:
    """Multiply from the last step to the first, and renormalize after every product."""
    leading_ndim = J.ndim - 2  # the axes of time and batch
    identity = jnp.broadcast_to(jnp.eye(J.shape[-1], dtype=J.dtype), J.shape[1:])

    def scaled(product, log):
        unit, growth = normalize(product, leading_ndim - 1)
        return unit, log.plus(growth)

    start = scaled(
        identity, CompensatedSum.of(jnp.zeros(J.shape[1:-2], jnp.finfo(J.dtype).dtype))
    )

    def multiply(state, J_t):
        unit, log = scaled(state[0] @ J_t, state[1])
        return (unit, log), (unit, log.value)

    _, (units, logs) = jax.lax.scan(multiply, start, J, reverse=True)
    units, logs = units[::-1], logs[::-1]
    return JacobianProducts(
        jnp.concatenate([start[1].value[None], logs]),
        jnp.concatenate([start[0][None], units]),
    )


def log_singular_values(products: JacobianProducts) -> Float[Array, "K *B N"]:
    """Return the log singular values of each product, largest first, ``(K, *B, n)``.

    Values below machine epsilon times n times the largest are rounding errors of the
    product, from which their size cannot be computed; they are NaN. For small singular
    values over many steps use `lyapunov_spectrum`: the log singular values approach k
    times its exponents.

    Args:
        products: the products, as `jacobian_products` returns them.

    Returns:
        The logarithms, ``(K, *B, n)``; -inf where the whole product is zero.

    Example::

        >>> import jax.numpy as jnp
        >>> from jaxrnn.diagnostics import jacobian_products, log_singular_values
        >>> J = jnp.diag(jnp.array([1.0, 0.5]))[None]
        >>> logs = log_singular_values(jacobian_products(J))
        >>> print(jnp.exp(logs[1]).round(3))
        [1.  0.5]
    """
    values = jnp.linalg.svd(products.unit, compute_uv=False)
    floor = values[..., :1] * (jnp.finfo(values.dtype).eps * values.shape[-1])
    logs = jnp.where(values > floor, jnp.log(values), jnp.nan)
    zero = jnp.isneginf(products.log_scale)[..., None]
    return jnp.where(zero, -jnp.inf, logs + products.log_scale[..., None])
