"""Networks that an engine runs in one call, such as a stack of LSTMs by cuDNN."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from ..cells import LSTMState
from ..core.arrays import is_array
from ..core.engine import AbstractNetworkEngine
from ..core.types import Carry, Inputs, Params
from ..core.unroll_spec import UnrollSpec
from ..unrolling import run_network


def unroll_network(
    parts: list[tuple[Any, ...]],
    params: Params,
    carry: Carry,
    xs: Inputs,
    spec: UnrollSpec,
) -> tuple[Carry, Array, Carry] | None:
    """Apply a whole network by one call of the engine's ``run_network``, if possible.

    Args:
        parts: the cells of every layer: one, or the two of a bidirectional layer, whose
            outputs are concatenated.
        params: the parameters of the network.
        carry: the carry of the network, with the cells in the order of ``parts``.
        xs: the inputs, ``(T, *B, D)``.
        spec: the other arguments of `jaxrnn.unroll`.

    Returns:
        What a layer's ``unroll`` returns, with None for the carries after every step;
        or None if the cells must run one by one, because the engine is not an
        `AbstractNetworkEngine` or does not support the cells or the arguments.
    """
    engine, cells = spec.engine, [cell for part in parts for cell in part]
    steps = jax.tree.leaves(xs)[0].shape[0]
    is_truncated = spec.window is not None and spec.window < steps
    if (
        not isinstance(engine, AbstractNetworkEngine)
        or not is_array(xs)
        or is_truncated
        or spec.gradient_scale is not None
        or spec.all_carries
    ):
        return None
    states = jax.tree.leaves(carry, is_leaf=lambda node: isinstance(node, LSTMState))
    if (
        len(states) != len(cells)
        or len({len(part) for part in parts}) > 1
        or len(cells) == 1
    ):
        return None
    pairs = zip(cells, states, strict=True)
    if any(
        engine.refusal(cell, params, state, xs, spec.mask, spec.resets)
        for cell, state in pairs
    ):
        return None
    if len({cell.hidden_size for cell in cells}) > 1:
        return None
    last, ys = run_network(
        engine, params, states, xs, spec.mask, spec.reverse, len(parts[0]) == 2
    )
    return (
        jax.tree.unflatten(jax.tree.structure(carry), jax.tree.leaves(last)),
        ys,
        jax.tree.map(lambda _: None, carry),
    )
