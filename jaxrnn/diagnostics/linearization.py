"""The linear map near fixed points: eigenvalues, time constants, directions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Carry, Context, Inputs, Params
from .fixed_point_report import FixedPoints
from .fixed_points import check_limit
from .held_step import HeldStep, asked
from .linearization_report import Linearization
from .point_kinds import kinds_of_points


def linearize(
    cell: Cell | Layer,
    params: Params,
    x: Inputs,
    points: FixedPoints | Carry,
    *,
    held: Any = None,
    slow: float = 50.0,
    context: Context = None,
) -> Linearization:
    """Describe what a cell or layer does near states that a held input does not move.

    Near a fixed point s* the step is the linear map::

        s_t - s* = J (s_{t-1} - s*) + B (x_t - x),   J = dF/ds,   B = dF/dx

    Each eigenvalue of J is a mode: along its right eigenvector a displacement shrinks
    or grows by ``|eigenvalue|`` a step, and its left eigenvector, the *selection
    vector*, says how much of a displacement, or of an input, enters the mode. The
    vectors are scaled so that ``left @ right`` is the identity.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters.
        x: the held input ``(D,)`` of the points.
        points: what `fixed_points` returns, or states ``(P, ...)`` per leaf.
        held: as for `fixed_points`; held parts are no part of J.
        slow: a mode is slow if its time constant is at least this many steps.
        context: as for `fixed_points`.

    Returns:
        `Linearization`, which prints as a table.

    Raises:
        TypeError, ValueError: as `fixed_points`.

    Source: Sussillo & Barak (2013), Neural Computation 25(3); selection vectors: Mante,
    Sussillo, Shenoy & Newsome (2013), Nature 503.

    Example:
        >>> import jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # s_t = tanh(2 s_{t-1})
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 2.0)}
        >>> points = jaxrnn.diagnostics.fixed_points(
        ...     cell, params, jnp.zeros(1), jnp.array([[0.1], [0.9]]))
        >>> linear = jaxrnn.diagnostics.linearize(cell, params, jnp.zeros(1), points)
        >>> sorted(linear.kinds)
        ['attractor', 'repeller']
    """
    what = "linearize"
    found = points if isinstance(points, FixedPoints) else None
    states = points.states if isinstance(points, FixedPoints) else points
    step, params, x, states = asked(what, cell, params, x, states, held, context)
    check_limit(what, "slow", slow)
    vectors, drift, jacobian, input_jacobian = map(
        np.asarray, _derivatives(step, params, x, states)
    )
    eigenvalues, right = _eigenvectors(jacobian)
    left = _inverse(right)
    moves = np.zeros(len(vectors), bool) if found is None else ~found.converged
    return Linearization(
        vectors=vectors,
        drift=drift,
        jacobian=jacobian,
        input_jacobian=input_jacobian,
        eigenvalues=eigenvalues,
        right=right,
        left=left,
        slow=float(slow),
        kinds=kinds_of_points(vectors, moves, eigenvalues, right, slow),
    )


@functools.partial(jax.jit, static_argnums=0)
def _derivatives(
    step: HeldStep, params: Params, x: Inputs, states: Carry
) -> tuple[Array, Array, Array, Array]:
    """Return the points, their drifts, dF/ds and dF/dx, for all points."""
    flat, unflatten = _floating(x)

    def at(state: Carry) -> tuple[Array, Array, Array, Array]:
        v = step.vector(state)
        of_state = jax.jacfwd(lambda v: step(params, x, v, state))(v)
        # Fewer numbers of the input than of the state are the rule.
        of_input = jax.jacfwd(lambda u: step(params, unflatten(u), v, state))(flat)
        return v, step(params, x, v, state) - v, of_state, of_input

    return jax.vmap(at)(states)


def _floating(x: Inputs) -> tuple[Array, Any]:
    """Return the floating-point leaves of an input as one vector, and its inverse."""
    leaves, structure = jax.tree.flatten(x)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    floats = [leaf for leaf, yes in zip(leaves, is_float, strict=True) if yes]
    flat, unravel = ravel_pytree(floats)

    def unflatten(u: Array) -> Inputs:
        rest = iter(unravel(u))
        parts = zip(leaves, is_float, strict=True)
        merged = [next(rest) if yes else leaf for leaf, yes in parts]
        return jax.tree.unflatten(structure, merged)

    return flat, unflatten


def _eigenvectors(jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and right eigenvectors, the largest modulus first.

    numpy's decomposition runs on the host, because JAX has none for GPUs.
    """
    values, vectors = np.linalg.eig(jacobian)
    # Of a pair of conjugates the one with the positive imaginary part comes first.
    order = np.lexsort((-values.imag, -np.abs(values).round(12)), axis=-1)
    complex_dtype = np.result_type(values.dtype, np.complex64)
    return (
        np.take_along_axis(values, order, -1).astype(complex_dtype),
        np.take_along_axis(vectors, order[:, None], -1).astype(complex_dtype),
    )


def _inverse(right: np.ndarray) -> np.ndarray:
    """Return the left eigenvectors as rows; NaN for a matrix that has too few."""
    left = np.full_like(right, np.nan)
    for i, vectors in enumerate(right):
        if np.linalg.cond(vectors) < 1 / np.finfo(right.dtype).eps:
            left[i] = np.linalg.inv(vectors)
    return left
