"""How far a linearization predicts what the network does."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Carry, Context, Inputs, Params
from ..core.validation import check_int, check_key_given
from .fixed_point_report import FixedPoints
from .fixed_points import check_limit
from .held_step import HeldStep, asked


class LinearError(NamedTuple):
    """The error of the linear prediction after k = 0, ..., K steps.

    Attributes:
        error: ``|s_k - p_k| / |d|``, where s is the state of the network, p that of the
            linear map, and d the first displacement: the mean over directions,
            ``(K + 1, P)``.
        size: ``|s_k - s*| / |d|``, how large the displacement of the network has
            become: the mean over directions, ``(K + 1, P)``.

    Example:
        >>> import jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell, zero = jaxrnn.Elman(1), jnp.zeros(1)  # s_t = tanh(2 s_{t-1})
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": zero,
        ...           "recurrent_kernel": jnp.full((1, 1), 2.0)}
        >>> starts = jnp.array([[0.0], [0.5], [0.9]])
        >>> points = jaxrnn.diagnostics.fixed_points(cell, params, zero, starts)
        >>> import jax
        >>> error = jaxrnn.diagnostics.linear_error(
        ...     cell, params, zero, points, key=jax.random.key(0), steps=3)
        >>> error.size[:, 1].round(1).tolist()  # doubles at every step away from zero
        [1.0, 2.0, 4.0, 8.0]
    """

    error: Float[Array, "K P"]
    size: Float[Array, "K P"]


def linear_error(
    cell: Cell | Layer,
    params: Params,
    x: Inputs,
    points: FixedPoints | Carry,
    *,
    key: Array,
    steps: int = 20,
    size: float = 0.01,
    directions: int = 8,
    held: Any = None,
    context: Context = None,
) -> LinearError:
    """Compare the network near points with its linearization there, step by step.

    From ``s* + d`` with d in random directions, the network goes to ``s_k`` and the
    linear map to ``p_k = s* + J^k d``, both under the held input.

    Args:
        cell, params, x, points, held, context: as for `linearize`.
        key: a random key, for the directions.
        steps: K.
        size: the length of d.
        directions: the number of directions at each point.

    Returns:
        `LinearError`. At a fixed point the error is of the order of ``size``, as long
        as the displacement stays small.

    Raises:
        TypeError, ValueError: as `linearize`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.GRU(3)
        >>> params = cell.init(jax.random.key(0), 2)
        >>> x, starts = jnp.zeros(2), jax.random.normal(jax.random.key(1), (4, 3))
        >>> points = jaxrnn.diagnostics.fixed_points(cell, params, x, starts)
        >>> error = jaxrnn.diagnostics.linear_error(
        ...     cell, params, x, points, key=jax.random.key(2))
        >>> bool((error.error < 0.01).all())
        True
    """
    what = "linear_error"
    states = points.states if isinstance(points, FixedPoints) else points
    step, params, x, states = asked(what, cell, params, x, states, held, context)
    check_key_given(what, key)
    check_limit(what, "size", size)
    steps = check_int(what, "steps", steps, 1, 2**20, "of the network")
    directions = check_int(what, "directions", directions, 1, 2**20, "at each point")
    return _compared(step, params, x, states, key, steps, directions, float(size))


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _compared(
    step: HeldStep,
    params: Params,
    x: Inputs,
    states: Carry,
    key: Array,
    steps: int,
    directions: int,
    size: float,
) -> LinearError:
    """Step from all displaced points, by the network and by the linear map."""

    def at(state: Carry, key: Array) -> LinearError:
        v = step.vector(state)
        moved, push = jax.linearize(lambda v: step(params, x, v, state), v)
        drift = moved - v
        d = jax.random.normal(key, (directions, v.size), v.dtype)
        d = size * d / jnp.linalg.norm(d, axis=-1, keepdims=True)

        def step_both(now: tuple[Array, Array], _: None) -> tuple[Any, LinearError]:
            there, linear = now
            error = jnp.linalg.norm(there - v[None] - linear, axis=-1).mean() / size
            length = jnp.linalg.norm(there - v[None], axis=-1).mean() / size
            new = jax.vmap(lambda s: step(params, x, s, state))(there)
            return (new, jax.vmap(lambda d: push(d) + drift)(linear)), LinearError(
                error, length
            )

        return jax.lax.scan(step_both, (v[None] + d, d), None, length=steps + 1)[1]

    keys = jax.random.split(key, jax.tree.leaves(states)[0].shape[0])
    return jax.vmap(at, out_axes=1)(states, keys)
