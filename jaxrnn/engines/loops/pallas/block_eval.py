"""A loop's body run on blocks, in any layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from .block_form import SHAPE_ONLY, BlockProgram, matrix_of

Blocks = list[Any]
Product = Callable[
    [Any, Blocks, Any], Blocks
]  # (equation, blocks of its operand, (matrix, axis)) -> blocks


def evaluate(
    form: BlockProgram,
    constants: dict[Any, Blocks],
    carry: list[Blocks],
    given: list[Blocks],
    product: Product | None,
    full: Callable[[Any, Any], Any],
    instead: dict[str, Callable] | None = None,
) -> tuple[list[Blocks], list[Blocks]]:
    """The body on blocks: ``(carry, outs)``, each a list of blocks per value.

    Args:
        constants: blocks of every constant that is no matrix.
        product: multiplies blocks by a matrix.
        full: ``full(value, dtype)``, a block of one number.
        instead: functions ``(params, *blocks)`` in place of elementwise primitives, by
            name.
    """
    env: dict[Any, Blocks] = {v: [a] for v, a in form.literals.items()} | constants
    env |= dict(zip([*form.carry, *form.given], [*carry, *given], strict=True))

    def blocks_of(atom, count):
        found = [atom.val] if isinstance(atom, core.Literal) else env[atom]
        return found if len(found) == count else list(found) * count

    for eqn in form.jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        count = form.blocks(eqn.outvars[0])
        if name == "dot_general":
            made = (
                product(eqn, env[eqn.invars[0]], matrix_of(eqn, form.consts))
                if product
                else []
            )
        elif name in SHAPE_ONLY:
            made = blocks_of(eqn.invars[0], count)
        elif name == "concatenate":
            made = [b for v in eqn.invars for b in blocks_of(v, form.blocks(v))]
        elif name == "slice":
            made = env[eqn.invars[0]][params["start_indices"][-1] // form.units :][
                :count
            ]
        elif name == "pad":
            low, high, _ = params["padding_config"][-1]
            zero = full(0, eqn.outvars[0].aval.dtype)
            made = (
                [zero] * (low // form.units)
                + env[eqn.invars[0]]
                + [zero] * (high // form.units)
            )
        elif name == "split":
            rest = env[eqn.invars[0]]
            for v in eqn.outvars:
                env[v], rest = rest[: form.blocks(v)], rest[form.blocks(v) :]
            continue
        else:
            operands = zip(*(blocks_of(v, count) for v in eqn.invars), strict=True)
            rule = instead.get(name) if instead else None
            made = [
                rule(params, *values) if rule else _bind(eqn, values)
                for values in operands
            ]
        env[eqn.outvars[0]] = made

    def result(atom):
        found = blocks_of(atom, form.shown(atom).blocks)
        return [full(b, atom.aval.dtype) if jnp.ndim(b) == 0 else b for b in found]

    return [result(v) for v in form.new], [result(v) for v in form.outs]


def _bind(eqn: Any, values: Sequence[Any]) -> Any:
    """An elementwise equation on one block."""
    shapes = {jnp.shape(v) for v in values} - {()}
    if len(shapes) > 1:  # what is the same for every example meets what is not
        shape = jnp.broadcast_shapes(*shapes)
        values = [
            v if jnp.ndim(v) == 0 or v.shape == shape else jnp.broadcast_to(v, shape)
            for v in values
        ]
    if eqn.primitive.name == "convert_element_type":
        return jnp.asarray(values[0]).astype(eqn.params["new_dtype"])
    if eqn.primitive.name == "add_any":
        return jax.lax.add(*values)
    if eqn.primitive.name == "stop_gradient":
        return values[0]
    return eqn.primitive.bind(*values, **eqn.params)
