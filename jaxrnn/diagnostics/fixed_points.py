"""Fixed points and slow points of a cell or layer under a held input."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Carry, Context, Inputs, Params
from ..core.validation import check_int, describe
from .fixed_point_report import FixedPoints, merged
from .fixed_point_search import Found, descend, gauss_newton
from .held_step import HeldStep, asked

LARGE = 256  # numbers in a state above which its Jacobian costs too much
ITERATIONS, UPDATES = 500, 5000


def fixed_points(
    cell: Cell | Layer,
    params: Params,
    x: Inputs,
    starts: Carry,
    *,
    held: Any = None,
    tolerance: float | None = None,
    same: float = 1e-3,
    far: float = 10.0,
    max_iterations: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    context: Context = None,
) -> FixedPoints:
    """Find states that a held input does not move: ``F(s, x) = s``.

    From each starting state it minimizes half the squared length of a step::

        q(s) = 1/2 |F(s, x) - s|^2

    where F is the step of the cell or layer, and s its whole carry: of an `LSTM` h and
    c, of a `stack` the carries of all layers. Where q is zero the state is a fixed
    point; where it has a small minimum that is not zero, the state moves slowly, and
    may steer what passes by. States that come to the same point are merged.

    The searches are damped Gauss-Newton steps (Levenberg-Marquardt) with the Jacobian
    of F, all at once. They compute in the dtype of the starting states: give float64
    for points to rounding.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters, from ``cell.init``.
        x: the held input, ``(D,)``, or a pytree as ``feature_ndim`` says.
        starts: the states to start from, a carry with one leading axis, ``(S, ...)``
            per leaf; `sample_states` takes them from sequences.
        held: the parts of the carry that stay as they are in each start and are not
            counted in q, such as counters: a pytree of bools like the carry, or a
            prefix of it. The default is none.
        tolerance: the largest speed ``|F(s, x) - s|`` of a fixed point. The default is
            the 2/3 power of the dtype's epsilon: 2e-5 for float32, 4e-11 for float64.
        same: the largest difference of any number of two points that are merged,
            relative to one plus the largest number.
        far: a point is marked as an outlier if its distance from the center of the
            starts is more than this many times their mean distance from it.
        max_iterations: of each search (default: 500 Gauss-Newton steps, or 5,000
            updates of an optimizer).
        optimizer: an optax optimizer of q in place of Gauss-Newton. The default is
            Gauss-Newton for states of up to 256 numbers; larger ones, whose Jacobians
            cost too much, take ``optax.adam`` with a rate that falls from 0.03 to zero.
        context: as for `jaxrnn.unroll`, without batch axes, for a cell with
            ``takes_context``.

    Returns:
        `FixedPoints`, which prints as a table. What did not converge is part of it, and
        marked.

    Raises:
        TypeError: if a part of the carry that is not held is not floating-point.
        ValueError: for an input or starts of other shapes, a layer that draws random
            numbers or runs in both directions, or one without a carry.

    Source: Sussillo & Barak (2013), Neural Computation 25(3); Golub & Sussillo (2018),
    Journal of Open Source Software 3(31).

    Example:
        >>> import jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.Elman(1)  # s_t = tanh(2 s_{t-1})
        >>> params = {"input_kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1),
        ...           "recurrent_kernel": jnp.full((1, 1), 2.0)}
        >>> points = jaxrnn.diagnostics.fixed_points(
        ...     cell, params, jnp.zeros(1), jnp.array([[-1.0], [-0.1], [0.1], [1.0]]))
        >>> sorted(f"{state:.2f}" for state in points.states[:, 0])
        ['-0.96', '0.00', '0.96']
    """
    what = "fixed_points"
    step, params, x, states = asked(what, cell, params, x, starts, held, context)
    vectors = jax.vmap(step.vector)(states)
    eps = float(jnp.finfo(vectors.dtype).eps)
    limits = {
        "tolerance": eps ** (2 / 3) if tolerance is None else tolerance,
        "same": same,
        "far": far,
    }
    for name, value in limits.items():
        check_limit(what, name, value)
    if optimizer is not None and not isinstance(
        optimizer, optax.GradientTransformation
    ):
        raise TypeError(
            f"{what}: optimizer must be one of optax, such as optax.adam(1e-2), but it "
            f"is {describe(optimizer)}"
        )
    newton = optimizer is None and vectors.shape[1] <= LARGE
    most = ITERATIONS if newton else UPDATES
    if max_iterations is not None:
        most = check_int(
            what, "max_iterations", max_iterations, 1, 2**30, "of each search"
        )
    limit = jnp.asarray(limits["tolerance"], vectors.dtype)
    found = (
        gauss_newton(step, params, x, states, limit, most)
        if newton
        else descend(step, params, x, states, limit, most, optimizer or _adam(most))
    )
    return _points(step, states, found, np.asarray(vectors), limits)


@functools.cache  # equal optimizers compile once
def _adam(updates: int) -> optax.GradientTransformation:
    """Return the optimizer of large states."""
    return optax.adam(optax.cosine_decay_schedule(0.03, updates))


def check_limit(what: str, name: str, value: object) -> None:
    """Check that a limit is a finite number of at least 0."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not 0 <= float(value) < math.inf
    ):
        raise ValueError(
            f"{what}: {name} must be a finite number of at least 0, but it is {value!r}"
        )


def _points(
    step: HeldStep,
    starts: Carry,
    found: Found,
    vectors: np.ndarray,
    limits: dict[str, float],
) -> FixedPoints:
    """Merge what was found, and return whole carries."""
    chosen, points = merged(found, vectors, **limits)
    states = jax.vmap(step.carry)(
        found.vectors[chosen], jax.tree.map(lambda a: a[chosen], starts)
    )
    return dataclasses.replace(points, states=jax.tree.map(np.asarray, states))
