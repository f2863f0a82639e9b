"""Backpropagation of the carry's cotangent as unit vectors and logarithms of norms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef
from jaxtyping import Array

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Carry, Params
from ..layers.compose import Residual, Stack
from .scaled import CompensatedSum, finite, log_norm, normalize, scale_by_log
from .transition import Trajectory, Transition


class Cotangent(NamedTuple):
    """The gradient with respect to one carry, with one scale per layer.

    Leaf i is ``exp(logs[g]) * leaves[i]``, where g is the layer of leaf i. Every layer
    of a stack has a scale of its own, because the gradient of an upper layer may be
    smaller than the smallest float times that of a lower layer: the upper layer
    receives no gradient from the lower one. Inside a cell every leaf depends on the
    others, so a cell has a single scale.
    """

    leaves: list[Array]
    logs: list[CompensatedSum]

    def log_norm(self) -> Array:
        """Return the log norm over all layers, ``(*B,)``."""
        if len(self.logs) == 1:
            return self.logs[0].value
        logs = jnp.stack([log.value for log in self.logs])
        largest = finite(logs.max(0))
        return largest + log_norm(
            [jnp.moveaxis(jnp.exp(logs - largest[None]), 0, -1)], logs.ndim - 1
        )


def layer_of_leaves(layer: Cell | Layer, carry: Carry) -> list[int]:
    """Return the index of its layer, from 0, for every leaf of the carry."""
    if isinstance(layer, Residual):
        return layer_of_leaves(layer.layer, carry)
    if not isinstance(layer, Stack):
        return [0] * len(jax.tree.leaves(carry))
    layers: list[int] = []
    for inner, inner_carry in zip(layer.layers, carry, strict=True):
        offset = max(layers, default=-1) + 1
        layers += [offset + number for number in layer_of_leaves(inner, inner_carry)]
    return layers


def begin(layers: list[int], delta: Carry, batch_ndim: int) -> Cotangent:
    """Normalize a gradient; its first ``batch_ndim`` axes are the batch."""
    leaves, logs = list(jax.tree.leaves(delta)), []
    for members in _groups(layers):
        units, log = normalize([leaves[i] for i in members], batch_ndim)
        logs.append(CompensatedSum.of(log))
        for i, unit in zip(members, units, strict=True):
            leaves[i] = unit
    return Cotangent(leaves, logs)


def pull_back(
    layers: list[int],
    pullback: Callable[[Carry], Carry],
    structure: PyTreeDef,
    cotangent: Cotangent,
    batch_ndim: int,
) -> Cotangent:
    """Backpropagate one step: one pullback per layer, summed in logarithms."""
    # The pullback is linear, so that it is applied to the cotangent of one layer at a
    # time, with zeros for the others: each result then has a single, known scale.
    groups, contributions = _groups(layers), []
    for members in groups:
        one_layer = [
            leaf if i in members else jnp.zeros_like(leaf)
            for i, leaf in enumerate(cotangent.leaves)
        ]
        contributions.append(
            jax.tree.leaves(pullback(jax.tree.unflatten(structure, one_layer)))
        )
    # The new cotangent of a layer is the sum of what all layers contribute to it, at
    # the scale of the largest contribution.
    leaves, logs = list(cotangent.leaves), []
    for members, previous_log in zip(groups, cotangent.logs, strict=True):
        # Logs are taken relative to this layer's previous log, so that the small
        # increment of a long sum is not the difference of two large numbers.
        unit = finite(previous_log.value)
        parts = [
            normalize([leaf[i] for i in members], batch_ndim) for leaf in contributions
        ]
        sizes = [
            log.value - unit + size
            for log, (_, size) in zip(cotangent.logs, parts, strict=True)
        ]
        largest = finite(jnp.stack(sizes).max(0))
        total = jax.tree.map(
            lambda *each: sum(each),
            *(
                scale_by_log(part, size - largest)
                for (part, _), size in zip(parts, sizes, strict=True)
            ),
        )
        total, size = normalize(total, batch_ndim)
        # A layer that no gradient had reached yet starts a new sum.
        if_zero_before = functools.partial(jnp.where, jnp.isneginf(previous_log.value))
        logs.append(
            jax.tree.map(
                if_zero_before,
                CompensatedSum.of(largest + size),
                previous_log.plus(largest + size),
            )
        )
        for i, leaf in zip(members, total, strict=True):
            leaves[i] = leaf
    return Cotangent(leaves, logs)


def backpropagate_log_norms(
    transition: Transition, params: Params, part: Trajectory, delta: Carry
) -> tuple[Array, Any]:
    """Return the log norms of the gradient 0, 1, ... steps back over ``part``.

    The first result is the norm over the whole carry, ``(K + 1, *B)``, the second a
    pytree like the carry with the norm of each leaf.
    """
    batch_ndim, structure = len(part.batch), jax.tree.structure(delta)
    layers = layer_of_leaves(transition.cell, delta)

    def norms(cotangent):
        by_leaf = [
            log_norm([leaf], batch_ndim) + cotangent.logs[layer].value
            for leaf, layer in zip(cotangent.leaves, layers, strict=True)
        ]
        return cotangent.log_norm(), jax.tree.unflatten(structure, by_leaf)

    def back(cotangent, step_inputs):
        before, z, mask, reset = step_inputs
        _, pullback = jax.vjp(
            lambda s: transition.step(params, s, z, mask, reset), before
        )
        return pull_back(
            layers, lambda d: pullback(d)[0], structure, cotangent, batch_ndim
        ), norms(cotangent)

    steps = (
        part.carries_before,
        transition.prepare(params, part.xs),
        part.mask,
        part.resets,
    )
    earliest, norms_of_steps = jax.lax.scan(
        back, begin(layers, delta, batch_ndim), steps, reverse=True
    )
    # The reverse scan stacks its outputs in the order of time; entry k of the result
    # is for the carry k steps before the loss.
    return jax.tree.map(
        lambda a, b: jnp.concatenate([a[::-1], b[None]]),
        norms_of_steps,
        norms(earliest),
    )


def _groups(layers: list[int]) -> list[list[int]]:
    """Return the indices of the leaves of each layer."""
    return [
        [i for i, layer in enumerate(layers) if layer == number]
        for number in range(max(layers, default=-1) + 1)
    ]
