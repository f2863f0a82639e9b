"""Layers that an engine walks as one network, where it can: cuDNN computes the
layers of a stack side by side.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jaxtyping import Array

from ..cells import LSTMState
from ..core.cell import Carry, Params, UnrollSpec
from ..core.engine import AbstractNetworkEngine
from ..unrolling import current_observer


def unroll_network(
    parts: list[tuple[Any, ...]],
    params: Params,
    carry: Carry,
    xs: Array,
    spec: UnrollSpec,
) -> tuple[Carry, Array, Carry] | None:
    """As a layer's ``unroll``, in one call of the engine's ``run_network``; None where
    every part is to be walked by itself.

    Args:
        parts: for every layer what walks in it: one cell, or of a bidirectional one
            two, their outputs side by side.
        params, carry: of the whole, cells in the order of ``parts``.
    """
    engine, cells = spec.engine, [cell for part in parts for cell in part]
    by_window = spec.window is not None and spec.window < xs.shape[0]
    if (
        not isinstance(engine, AbstractNetworkEngine)
        or by_window
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
    observer = current_observer()
    run = (
        engine.run_network
        if observer is None
        else functools.partial(observer.run_network, engine)
    )
    last, ys = run(params, states, xs, spec.mask, spec.reverse, len(parts[0]) == 2)
    return (
        jax.tree.unflatten(jax.tree.structure(carry), jax.tree.leaves(last)),
        ys,
        jax.tree.map(lambda _: None, carry),
    )
