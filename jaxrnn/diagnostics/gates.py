"""Statistics of gate activations: means, saturation and time scales."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.cell import Cell, Gate
from ..core.dtypes import accumulator
from ..core.engine import AbstractEngine
from ..core.flags import expand_flags
from ..core.layer import Layer, parts_of
from ..core.types import Carry, Context, Inputs, Params
from ..core.validation import describe
from ..layers.compose import Residual, Stack
from ..layers.skip import Concat
from ..layers.stochastic import StochasticCellLayer
from ..unrolling import unroll
from .transition import Trajectory, Transition, rollout, with_context

# A gate is saturated where its distance from an end of its range is at most this share
# of the range.
MARGIN = 0.1


class GateStatistics(NamedTuple):
    """Statistics of one gate over all valid steps of all sequences, per unit ``(H,)``.

    A statistic is NaN where no step is valid or a value is NaN.

    Attributes:
        mean: the mean activation.
        left, right: the share of steps in which the gate was saturated low or high:
            within a tenth of its range from that end (Karpathy, Johnson & Fei-Fei 2016,
            section 4.2), or exactly at the end where the range is unbounded (a dead
            relu unit). NaN where the range has no such end or is not known.
        timescale: for a gate v that multiplies the previous state, -1/mean(log v): the
            number of steps after which this gate has reduced a state to a share e^-1.
            It is inf where the gate never forgets in this precision, 0 where it was
            exactly zero at least once, and NaN for other gates.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.LSTM(2)
        >>> params = cell.init(jax.random.key(0), 1)
        >>> gates = jaxrnn.diagnostics.gate_statistics(cell, params, jnp.zeros((3, 1)))
        >>> [f"{steps:.2f}" for steps in gates["f"].timescale]  # -1 / log sigmoid(1)
        ['3.19', '3.19']
        >>> print(gates["f"].right, gates["i"].timescale)
        [0. 0.] [nan nan]
    """

    mean: Float[Array, " H"]
    left: Float[Array, " H"]
    right: Float[Array, " H"]
    timescale: Float[Array, " H"]


def gate_statistics(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    engine: AbstractEngine | None = None,
    context: Context = None,
) -> dict[str, Any]:
    """Measure every gate of a cell or layer over a batch of sequences.

    The gates of a cell are those of its method ``gate_values(params, carry, z)``, which
    returns a dict of `jaxrnn.core.cell.Gate`: i, f, g, o of an LSTM, r, z, n of a GRU,
    h of an Elman network. Define this method to measure the gates of your own cell.

    Args:
        cell: a cell, or a `stack`, a `residual`, a `jaxrnn.layers.concat` or a
            stochastic wrapper of cells. `gate_values` sees into every layer.
        params: the parameters, from ``cell.init``.
        xs: the inputs, ``(T, *B, D)``.
        carry: the carry before the first step (default: the initial carry).
        mask, resets, engine, context: as for `jaxrnn.unroll`.

    Returns:
        A dict of `GateStatistics` by the name of the gate. For a stack, a dict of such
        dicts by the names ``layer_0``, ``layer_1``, ... of the parameters.

    Raises:
        NotImplementedError: if the cell does not define ``gate_values``, or a layer has
            no single cell to measure.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.LSTM(2)
        >>> params = cell.init(jax.random.key(0), 1)
        >>> gates = jaxrnn.diagnostics.gate_statistics(cell, params, jnp.zeros((3, 1)))
        >>> print(sorted(gates), gates["f"].mean)
        ['f', 'g', 'i', 'o'] [0.7310586 0.7310586]
    """
    cell, params = with_context(cell, params, xs, context, mask, "gate_statistics")
    trajectory = rollout(
        cell, params, xs, carry, mask, resets, engine, "gate_statistics"
    )
    if isinstance(cell, Cell):
        return _of_cell(cell, params, trajectory)
    if isinstance(cell, StochasticCellLayer):
        # `rollout` refuses a layer that needs a key, so the carries are those of the
        # expectation (`jaxrnn.inference`); the gates are those of the wrapped cell.
        return _of_cell(cell.cell, params, trajectory)
    if isinstance(cell, (Residual, Concat)):
        return gate_statistics(
            cell.layer, params, xs, carry, mask=mask, resets=resets, engine=engine
        )
    if isinstance(cell, Stack):
        statistics = {}
        for i, layer in enumerate(cell.layers):
            name = f"layer_{i}"
            layer_carry = None if carry is None else carry[i]
            if _has_cell(layer):
                statistics[name] = gate_statistics(
                    layer,
                    params[name],
                    xs,
                    layer_carry,
                    mask=mask,
                    resets=resets,
                    engine=engine,
                )
            xs = unroll(
                layer,
                params[name],
                xs,
                layer_carry,
                mask=mask,
                resets=resets,
                engine=engine,
            )[1]
        return statistics
    raise NotImplementedError(
        f"gate_statistics: {type(cell).__name__} is not a cell: measure the cells "
        f"inside it, or see all gates by jaxrnn.diagnostics.gate_values"
    )


def _has_cell(layer: Cell | Layer) -> bool:
    """Return whether there is a cell in a layer, unlike in dropout or a norm."""
    return isinstance(layer, Cell) or any(map(_has_cell, parts_of(layer)))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _of_cell(
    cell: Cell, params: Params, trajectory: Trajectory
) -> dict[str, GateStatistics]:
    """Evaluate the gates at every step from the carries before the steps."""
    # A reset replaces the carry before the gates read it.
    carries_before = trajectory.carries_before
    if (resets := trajectory.resets) is not None:
        initial = cell.initial_carry(params, trajectory.batch)
        carries_before = jax.tree.map(
            lambda a, s: jnp.where(expand_flags(resets, a), s[None], a),
            carries_before,
            initial,
        )
    valid = (
        jnp.ones((trajectory.steps, *trajectory.batch), bool)
        if trajectory.mask is None
        else trajectory.mask
    )
    gates = check_gates(
        cell,
        cell.gate_values(
            params, carries_before, Transition(cell).prepare(params, trajectory.xs)
        ),
        (trajectory.steps, *trajectory.batch),
    )
    return {name: _statistics(gate, valid) for name, gate in gates.items()}


def _statistics(gate: Gate, valid: Array) -> GateStatistics:
    """Reduce one gate over all valid steps of all sequences."""
    value = gate.value.astype(accumulator(gate.value.dtype))
    flags = expand_flags(valid, value)
    axes = tuple(range(value.ndim - 1))

    # The places of a picture count as sequences do.
    places = math.prod(value.shape[valid.ndim : -1])

    def mean(of):
        total = jnp.where(flags, of, jnp.zeros_like(of)).sum(axes)
        return total / (valid.sum().astype(of.dtype) * places)

    margin = MARGIN * (gate.high - gate.low)
    margin = margin if math.isfinite(margin) else 0.0
    has_nan = (flags & jnp.isnan(value)).any(axes)
    left = _share(value <= gate.low + margin, gate.low, mean, has_nan)
    right = _share(value >= gate.high - margin, gate.high, mean, has_nan)
    timescale = (
        -1 / mean(jnp.log(value))
        if gate.keeps
        else jnp.full(value.shape[-1], jnp.nan, value.dtype)
    )
    return GateStatistics(mean(value), left, right, jnp.abs(timescale))


def _share(saturated: Array, end: float, mean: Any, has_nan: Array) -> Array:
    """Return the share of saturated steps; NaN where the range has no finite end."""
    share = mean(saturated.astype(jnp.result_type(float)))
    return jnp.where(has_nan | (not math.isfinite(end)), jnp.nan, share)


def check_gates(cell: Cell, gates: Any, steps: tuple[int, ...]) -> dict[str, Gate]:
    """Check that ``gate_values`` returned a dict of `Gate` with one value per step.

    ``steps`` are the axes of time and batch.
    """
    name = type(cell).__name__
    for key, gate in (gates if isinstance(gates, dict) else {"": gates}).items():
        if (
            not isinstance(gates, dict)
            or not isinstance(gate, Gate)
            or gate.value is None
            or gate.value.ndim <= len(steps)
            or gate.value.shape[: len(steps)] != steps
        ):
            raise TypeError(
                f"{name}.gate_values must return a dict of jaxrnn.core.cell.Gate with "
                f"values {(*steps, 'H')}, the leading axes "
                f"those of its input, but {key or 'it'} is "
                f"{describe(gate.value if isinstance(gate, Gate) else gate)}"
            )
    return gates
