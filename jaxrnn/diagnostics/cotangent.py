"""A cotangent of the carry on its way back, as unit vectors and the logarithms of
their lengths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.cell import Carry, Params
from ..layers.compose import Residual, Stack
from .scaled import CompensatedSum, finite, log_norm, normalize, scale_by_log
from .transition import Trajectory, Transition


class Cotangent(NamedTuple):
    """The gradient at one state: ``exp(logs[g])`` times ``leaves[i]``, g being the
    layer that leaf i belongs to.

    Every layer of a stack has a scale of its own, since an upper layer's gradient may
    be smaller than the smallest float times a lower one's: it gets nothing back from
    it. Inside a cell, where every leaf feeds the others, there is one scale.
    """

    leaves: list[Array]
    logs: list[CompensatedSum]

    def log_norm(self) -> Array:
        """Over all layers."""
        if len(self.logs) == 1:
            return self.logs[0].value
        logs = jnp.stack([log.value for log in self.logs])
        most = finite(logs.max(0))
        return most + log_norm(
            [jnp.moveaxis(jnp.exp(logs - most[None]), 0, -1)], logs.ndim - 1
        )


def layer_of_leaves(layer: Any, carry: Carry) -> list[int]:
    """For every leaf of the carry the number of its layer, from 0."""
    if isinstance(layer, Residual):
        return layer_of_leaves(layer.layer, carry)
    if not isinstance(layer, Stack):
        return [0] * len(jax.tree.leaves(carry))
    found: list[int] = []
    for inner, part in zip(layer.layers, carry, strict=True):
        begin = max(found, default=-1) + 1
        found += [begin + number for number in layer_of_leaves(inner, part)]
    return found


def begin(layers: list[int], delta: Carry, kept: int) -> Cotangent:
    """Of a gradient; ``kept`` leading axes are the batch."""
    leaves, logs = list(jax.tree.leaves(delta)), []
    for members in _groups(layers):
        units, log = normalize([leaves[i] for i in members], kept)
        logs.append(CompensatedSum.of(log))
        for i, unit in zip(members, units, strict=True):
            leaves[i] = unit
    return Cotangent(leaves, logs)


def pull_back(
    layers: list[int],
    pullback: Callable[[Carry], Carry],
    structure: Any,
    now: Cotangent,
    kept: int,
) -> Cotangent:
    """One step back: a pullback for every layer, added up in the logarithms."""
    groups, came = _groups(layers), []
    for members in groups:
        alone = [
            leaf if i in members else jnp.zeros_like(leaf)
            for i, leaf in enumerate(now.leaves)
        ]
        came.append(jax.tree.leaves(pullback(jax.tree.unflatten(structure, alone))))
    leaves, logs = list(now.leaves), []
    for members, before in zip(groups, now.logs, strict=True):
        # In units of where this layer was, so that the small step of a long sum is not
        # the difference of two large numbers.
        unit = finite(before.value)
        parts = [normalize([leaf[i] for i in members], kept) for leaf in came]
        sizes = [
            log.value - unit + size
            for log, (_, size) in zip(now.logs, parts, strict=True)
        ]
        most = finite(jnp.stack(sizes).max(0))
        total = jax.tree.map(
            lambda *each: sum(each),
            *(
                scale_by_log(part, size - most)
                for (part, _), size in zip(parts, sizes, strict=True)
            ),
        )
        total, size = normalize(total, kept)
        # A layer that nothing had reached begins a sum of its own.
        first = functools.partial(jnp.where, jnp.isneginf(before.value))
        logs.append(
            jax.tree.map(
                first, CompensatedSum.of(most + size), before.plus(most + size)
            )
        )
        for i, leaf in zip(members, total, strict=True):
            leaves[i] = leaf
    return Cotangent(leaves, logs)


def backpropagate_log_norms(
    machine: Transition, params: Params, part: Trajectory, delta: Carry
) -> tuple[Array, Any]:
    """The gradient's log norms 0, 1, ... steps back over ``part``, over the whole
    carry and by leaf.
    """
    kept, structure = len(part.batch), jax.tree.structure(delta)
    layers = layer_of_leaves(machine.cell, delta)

    def norms(now):
        by_leaf = [
            log_norm([leaf], kept) + now.logs[layer].value
            for leaf, layer in zip(now.leaves, layers, strict=True)
        ]
        return now.log_norm(), jax.tree.unflatten(structure, by_leaf)

    def back(now, row):
        before, z, keep, reset = row
        _, pullback = jax.vjp(lambda s: machine.step(params, s, z, keep, reset), before)
        return pull_back(layers, lambda d: pullback(d)[0], structure, now, kept), norms(
            now
        )

    rows = (part.befores, machine.prepare(params, part.xs), part.mask, part.resets)
    last, met = jax.lax.scan(back, begin(layers, delta, kept), rows, reverse=True)
    return jax.tree.map(
        lambda a, b: jnp.concatenate([a[::-1], b[None]]), met, norms(last)
    )


def _groups(layers: list[int]) -> list[list[int]]:
    """The leaves of each layer."""
    return [
        [i for i, layer in enumerate(layers) if layer == number]
        for number in range(max(layers, default=-1) + 1)
    ]
