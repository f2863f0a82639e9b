"""Jacobians of the whole carry, their products, and the singular values of these."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from ..core.cell import Carry, Cell, Layer, Params, weaken_scalars
from ..core.validation import describe
from .scaled import CompensatedSum, normalize
from .transition import Transition, features, from_features, rollout, size_of


def jacobians(
    cell: Cell | Layer,
    params: Params,
    xs: Inexact[Array, "T *B D"],
    carry: Carry = None,
    *,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    engine: Any = None,
) -> Float[Array, "T *B N N"]:
    """``J_t = ds_t/ds_{t-1}`` of every step, over the whole carry as one vector of n
    numbers, leaf after leaf.

    ``J[t, b, i, j]`` is how number i of the carry after step t follows number j of the
    one before. A masked step's is the identity, that of a step with a reset is zero. An
    LSTM's is 2H x 2H, in the order h, c; a complex number counts as two, all real parts
    of a leaf before its imaginary ones. Takes T B n^2 numbers, none of them finer than
    the carry's dtype; for long sequences look at `lyapunov_spectrum`.
    """
    params = weaken_scalars(params)
    path = rollout(cell, params, xs, carry, mask, resets, engine, "jacobians")
    return _jacobians(cell, params, path)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _jacobians(cell: Any, params: Params, path: Any) -> Array:
    machine, batch = Transition(cell), len(path.batch)

    def one(_, now):
        before, z, keep, reset = now
        dtype = features(before, batch).dtype
        n = size_of(before, batch)
        basis = jnp.broadcast_to(
            jnp.eye(n, dtype=dtype).reshape(n, *[1] * batch, n), (n, *path.batch, n)
        )
        _, push = jax.linearize(
            lambda s: machine.step(params, s, z, keep, reset), before
        )
        columns = jax.vmap(
            lambda v: features(push(from_features(v, before, batch)), batch)
        )(basis)
        return None, jnp.moveaxis(columns, 0, -1)

    rows = (path.befores, machine.prepare(params, path.xs), path.mask, path.resets)
    return jax.lax.scan(one, None, rows)[1]


class JacobianProducts(NamedTuple):
    """``J_T J_{T-1} ... J_{T-k+1} = exp(log_scale[k]) * unit[k]`` for k = 0..K,
    ``unit`` of Frobenius norm 1.

    k = 0 is the identity. log_scale is -inf (and unit zero) where the product is
    exactly zero, NaN or +inf where it is not finite.
    """

    log_scale: Float[Array, "K *B"]
    unit: Inexact[Array, "K *B N N"]


def jacobian_products(J: Inexact[Array, "T *B N N"]) -> JacobianProducts:
    """The products of the last 0, 1, ..., T Jacobians, in the log domain."""
    if (
        not hasattr(J, "dtype")
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
    kept = J.ndim - 2  # T and the batch
    first = jnp.broadcast_to(jnp.eye(J.shape[-1], dtype=J.dtype), J.shape[1:])

    def scaled(product, log):
        unit, growth = normalize(product, kept - 1)
        return unit, log.plus(growth)

    start = scaled(
        first, CompensatedSum.of(jnp.zeros(J.shape[1:-2], jnp.finfo(J.dtype).dtype))
    )

    def one(state, J_t):
        unit, log = scaled(state[0] @ J_t, state[1])
        return (unit, log), (unit, log.value)

    _, (units, logs) = jax.lax.scan(one, start, J, reverse=True)
    units, logs = units[::-1], logs[::-1]
    return JacobianProducts(
        jnp.concatenate([start[1].value[None], logs]),
        jnp.concatenate([start[0][None], units]),
    )


def log_singular_values(products: JacobianProducts) -> Float[Array, "K *B N"]:
    """Logarithms of the singular values of each product, largest first.

    Those below machine epsilon times n times the largest are rounding, and NaN: their
    size is not known from the product. For small ones over many steps use
    `lyapunov_spectrum`, whose n exponents times k they approach.
    """
    values = jnp.linalg.svd(products.unit, compute_uv=False)
    floor = values[..., :1] * (jnp.finfo(values.dtype).eps * values.shape[-1])
    logs = jnp.where(values > floor, jnp.log(values), jnp.nan)
    zero = jnp.isneginf(products.log_scale)[..., None]
    return jnp.where(zero, -jnp.inf, logs + products.log_scale[..., None])
