"""Evaluation of a loop body on blocks, in the layout of any kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import JaxprEqn

from .block_form import SHAPE_ONLY, BlockProgram, matrix_of

Blocks = list[Any]
# (equation, blocks of its operand, (matrix, contracted axis)) -> blocks of the result
Product = Callable[[Any, Blocks, Any], Blocks]


def evaluate(
    form: BlockProgram,
    constants: dict[Any, Blocks],
    carry: list[Blocks],
    given: list[Blocks],
    product: Product | None,
    full: Callable[[Any, Any], Any],
    instead: dict[str, Callable] | None = None,
) -> tuple[list[Blocks], list[Blocks]]:
    """Evaluate a loop body on blocks.

    Args:
        form: the body.
        constants: the blocks of every constant that is not a matrix.
        carry: the blocks of each leaf of the carry.
        given: the blocks of each input of the step.
        product: multiplies blocks by a matrix; None if there is no matrix.
        full: ``full(value, dtype)`` makes a block of one number.
        instead: by name, functions ``(params, *blocks)`` that replace elementwise
            primitives.

    Returns:
        The new carry and the outputs, a list of blocks for each value.
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


def _bind(eqn: JaxprEqn, values: Sequence[Any]) -> Any:
    """Apply an elementwise equation to one block of each operand."""
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
