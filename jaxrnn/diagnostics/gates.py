"""What gates do over a sequence: how much they let through, how often they are
saturated, how long a unit keeps its state.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from ..core.cell import (
    Carry,
    Cell,
    Gate,
    Layer,
    Params,
    accumulator,
    expand_flags,
    weaken_scalars,
)
from ..core.validation import describe
from ..layers.compose import Residual, Stack
from ..layers.stochastic import Dropout, StochasticCellLayer
from ..unrolling import unroll
from .transition import Trajectory, Transition, rollout

MARGIN = 0.1  # a gate within a tenth of its range from an end counts as saturated there


class GateStatistics(NamedTuple):
    """One gate over all valid steps of all sequences, per unit ``(H,)``. NaN where no
    step is valid.

    ``left`` and ``right`` are the shares of steps in which it was saturated low or
    high: within a tenth of its range from an end (Karpathy, Johnson & Fei-Fei 2016,
    section 4.2), exactly at the end where the range is unbounded (a dead relu). NaN
    where there is no such end, as of an activation whose range is not known, and, as
    the others, where a value is NaN. ``timescale``, of a gate v that keeps the state,
    is -1/mean(log v): the steps after which e^-1 of a state is left of the way through
    this gate. inf: it never forgets, in this precision; 0: it was exactly zero once.
    NaN for other gates.
    """

    mean: Float[Array, " H"]
    left: Float[Array, " H"]
    right: Float[Array, " H"]
    timescale: Float[Array, " H"]


def gate_statistics(
    cell: Cell | Layer,
    params: Params,
    xs: Inexact[Array, "T *B D"],
    carry: Carry = None,
    *,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
    engine: Any = None,
) -> dict[str, Any]:
    """`GateStatistics` by the gate's name: i, f, g, o of an LSTM, r, z, n of a GRU, h
    of an Elman network.

    Of a stack, one such dict a layer, by the names that its parameters have. A cell of
    one's own tells its gates by a method ``gate_values(params, carry, z)`` that returns
    a dict of `jaxrnn.core.cell.Gate`.

    Raises:
        NotImplementedError: for a cell that has no such method.
    """
    params = weaken_scalars(params)
    path = rollout(cell, params, xs, carry, mask, resets, engine, "gate_statistics")
    if isinstance(cell, Cell):
        return _of_cell(cell, params, path)
    if isinstance(
        cell, StochasticCellLayer
    ):  # the carries of the noisy cell's expectation, the gates of the cell inside
        return _of_cell(cell.cell, params, path)
    if isinstance(cell, Residual):
        return gate_statistics(
            cell.layer, params, xs, carry, mask=mask, resets=resets, engine=engine
        )
    if isinstance(cell, Stack):
        found = {}
        for i, layer in enumerate(cell.layers):
            name = f"layer_{i}"
            first = None if carry is None else carry[i]
            if not isinstance(layer, Dropout):
                found[name] = gate_statistics(
                    layer,
                    params[name],
                    xs,
                    first,
                    mask=mask,
                    resets=resets,
                    engine=engine,
                )
            xs = unroll(
                layer, params[name], xs, first, mask=mask, resets=resets, engine=engine
            )[1]
        return found
    raise NotImplementedError(
        f"gate_statistics: {type(cell).__name__} is no cell: look at the cells inside "
        f"it"
    )


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _of_cell(cell: Cell, params: Params, path: Trajectory) -> dict[str, GateStatistics]:
    befores = path.befores
    if (resets := path.resets) is not None:
        initial = cell.initial_carry(params, path.batch)
        befores = jax.tree.map(
            lambda a, s: jnp.where(expand_flags(resets, a), s[None], a),
            befores,
            initial,
        )
    valid = (
        jnp.ones((path.steps, *path.batch), bool) if path.mask is None else path.mask
    )
    gates = _check_gates(
        cell,
        cell.gate_values(params, befores, Transition(cell).prepare(params, path.xs)),
        path,
    )
    return {name: _statistics(gate, valid) for name, gate in gates.items()}


def _statistics(gate: Gate, valid: Array) -> GateStatistics:
    value = gate.value.astype(accumulator(gate.value.dtype))
    flags = expand_flags(valid, value)
    axes = tuple(range(value.ndim - 1))

    def mean(of):
        return jnp.where(flags, of, jnp.zeros_like(of)).sum(axes) / valid.sum().astype(
            of.dtype
        )

    margin = MARGIN * (gate.high - gate.low)
    margin = margin if math.isfinite(margin) else 0.0
    wrong = (flags & jnp.isnan(value)).any(axes)
    left = _share(value <= gate.low + margin, gate.low, mean, wrong)
    right = _share(value >= gate.high - margin, gate.high, mean, wrong)
    time = (
        -1 / mean(jnp.log(value))
        if gate.keeps
        else jnp.full(value.shape[-1], jnp.nan, value.dtype)
    )
    return GateStatistics(mean(value), left, right, jnp.abs(time))


def _share(saturated: Array, end: float, mean: Any, wrong: Array) -> Array:
    share = mean(saturated.astype(jnp.result_type(float)))
    return jnp.where(wrong | (not math.isfinite(end)), jnp.nan, share)


def _check_gates(cell: Cell, gates: Any, path: Trajectory) -> dict[str, Gate]:
    """A dict of `Gate`, each with the units of every step."""
    name, steps = type(cell).__name__, (path.steps, *path.batch)
    for key, gate in (gates if isinstance(gates, dict) else {"": gates}).items():
        value = getattr(gate, "value", None)
        if (
            not isinstance(gates, dict)
            or not isinstance(gate, Gate)
            or value is None
            or value.shape[:-1] != steps
        ):
            raise TypeError(
                f"{name}.gate_values must return a dict of jaxrnn.core.cell.Gate with "
                f"values {(*steps, 'H')}, the leading axes "
                f"those of its input, but {key or 'it'} is "
                f"{describe(gate if value is None else value)}"
            )
    return gates
