"""States from which `jaxrnn.tasks.dynamics` searches, besides those of the sequences.

Searches for minima of q from the states of sequences may all miss what the network
comes to when it runs, and the saddles, which no sequence stays at.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Inputs, Params
from ..diagnostics import FixedPoints

SETTLE, SETTLED = 500, 64  # steps under the held input, and how many states take them
MOST_ATTRACTORS = 16
PLACES = (0.3, 0.5, 0.7)  # between two attractors


def settled(
    layer: Cell | Layer,
    params: Params,
    x: Inputs,
    starts: Any,
    most: int = SETTLED,
    steps: int = SETTLE,
) -> Any:
    """Return the states to which the network comes under the held input.

    At most ``most`` of the starting states are followed, for so many steps.
    """

    def step(_: Any, states: Any) -> Any:
        return jax.vmap(lambda carry: layer(params, carry, x)[0])(states)

    def run(states: Any) -> Any:
        return jax.lax.fori_loop(0, steps, step, states)

    return jax.jit(run)(jax.tree.map(lambda a: a[:most], starts))


def between_attractors(points: FixedPoints, kinds: Sequence[str]) -> Any:
    """Return states between every two attractors, where saddles stand.

    It is None where there are no two attractors.
    """
    chosen = [i for i, kind in enumerate(kinds) if kind == "attractor"]
    pairs = np.array(list(itertools.combinations(chosen[:MOST_ATTRACTORS], 2)), int)
    if not len(pairs):
        return None

    def mixed(a: Any) -> Any:
        first, second = a[pairs[:, 0]], a[pairs[:, 1]]
        if not is_real_or_complex(a):
            return np.concatenate([first] * len(PLACES))
        return np.concatenate([w * first + (1 - w) * second for w in PLACES])

    return jax.tree.map(mixed, points.states)


def joined(*starts: Any) -> Any:
    """Return all starting states in one batch."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *starts)


def is_real_or_complex(a: Any) -> bool:
    """Whether a leaf of a carry has derivatives."""
    return jnp.issubdtype(a.dtype, jnp.inexact)
