"""The table of engines that every cell runs under: a new engine is one row.

What a row is compared on is in engines/test_engine_matrix.py. `CuDNN`, `Fused` and
`Across` need a chip or several devices, and have files of their own.
"""

import dataclasses

import jax
import jax.numpy as jnp
from reference import choose

from jaxrnn import Associative, Checkpoint, Newton, Scan
from jaxrnn.core.engine import Supports
from jaxrnn.extending import AbstractEngine


@dataclasses.dataclass(frozen=True)
class UserEngine(AbstractEngine):
    """An engine as a user writes one: a Python loop over the steps."""

    def run(self, cell, params, carry, xs, mask=None, resets=None, reverse=False):
        steps = len(jax.tree.leaves(xs)[0])
        if steps == 0:
            return carry, jax.tree.map(lambda leaf: jnp.stack([leaf])[:0], carry)
        carries = [None] * steps
        for t in reversed(range(steps)) if reverse else range(steps):
            x = jax.tree.map(lambda leaf, t=t: leaf[t], xs)
            if resets is not None:
                first = cell.initial_carry(params, resets.shape[1:])
                carry = choose(resets[t], first, carry)
            new = cell.step(params, carry, cell.project(params, x))
            carry = new if mask is None else choose(mask[t], new, carry)
            carries[t] = carry
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *carries)


ENGINES = {
    "default": None,
    "scan": Scan(),
    "chunk": Scan(chunk=2),
    "in_loop": Scan(hoist=False, unroll=2),
    "everything": Scan(save="everything"),
    "carries": Scan(save="carries", chunk=3),
    "checkpoint": Checkpoint(2),
    "associative": Associative(),
    "associative_chunk": Associative(2),
    "newton": Newton(3, fallback="nan"),
    "user": UserEngine(),
}


def supports(engine):
    """What an engine declares; the default engine supports everything."""
    return Supports.EVERYTHING if engine is None else engine.supports
