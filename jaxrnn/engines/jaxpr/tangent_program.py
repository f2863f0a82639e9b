"""A step and its tangent as one jaxpr, on the real parts of the carry."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval as pe

from ...core.types import PyTree
from .evaluate import (
    CUSTOM_VJP,
    all_equations,
    bind_equation,
    eval_jaxpr,
    inline_calls,
    split_by_sizes,
)
from .linearity import linear_operands

# ``step(carry, given) -> carry`` on flat lists of arrays.
Step = Callable[[list[Any], Any], list[Any]]
BARRIERS = ("jaxrnn_fence", "optimization_barrier")  # which return their operands


def real_parts(leaves: Sequence[Any]) -> list[Any]:
    """Return the leaves, with each complex one as its real and its imaginary part."""
    return [
        part
        for leaf in leaves
        for part in ([leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf])
    ]


def from_real_parts(parts: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Return leaves with the kinds of ``like``: the inverse of `real_parts`."""
    rest = iter(parts)
    return [
        jax.lax.complex(next(rest), next(rest))
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        else next(rest)
        for leaf in like
    ]


class NoTangentError(ValueError):
    """Raised where a step has no derivative in forward mode."""


class TangentProgram:
    """The jaxpr of ``(s, s', x) -> (step(s, x), s' ds_new/ds)``, without nested calls.

    A complex leaf of the carry counts as two real ones, because a step need not be
    holomorphic.

    Args:
        step: ``step(carry, given) -> carry``, on flat lists of floating-point arrays.
        carry: the leaves of the carry, or their shapes and dtypes.
        given: what else the step reads, a pytree of arrays or of their shapes.
        for_gradients: whether the tangent is the one that gradients follow: with the
            factors by which only derivatives are multiplied (``gradient_scale``), and
            with the derivatives that ``jax.custom_vjp`` functions declare. Otherwise
            it is that of the values.

    Raises:
        NoTangentError: if the step has no derivative in forward mode.

    Attributes:
        closed: the closed jaxpr.
        primal: the closed jaxpr of the step alone, ``(s, x) -> step(s, x)``.
        parts: the number of real parts.
        part_avals: their shapes and dtypes.
    """

    def __init__(
        self,
        step: Step,
        carry: Sequence[Any],
        given: PyTree,
        *,
        for_gradients: bool = False,
    ):
        given_leaves, given_tree = jax.tree.flatten(given)
        parts = jax.eval_shape(real_parts, list(carry))
        self.parts, self.part_avals = len(parts), parts

        def of_parts(parts, given):
            now = jax.tree.unflatten(given_tree, given)
            return real_parts(step(from_real_parts(parts, carry), now))

        primal = inline_calls(jax.make_jaxpr(of_parts)(parts, given_leaves))
        if not for_gradients:
            primal = _of_values(primal)
        declared = {
            id(eqn): functools.partial(_forward_mode, eqn)
            for eqn in primal.jaxpr.eqns
            if eqn.primitive.name == CUSTOM_VJP
        }

        def both(parts, tangents, given):
            def function(parts):
                return eval_jaxpr(
                    primal.jaxpr, primal.consts, [*parts, *given], declared
                )

            return jax.jvp(function, (parts,), (tangents,))

        try:
            closed = jax.make_jaxpr(both)(parts, parts, given_leaves)
        except (TypeError, NotImplementedError) as error:
            # The step itself could be traced.
            raise NoTangentError(
                f"the step has no derivative in forward mode: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if any(
            eqn.primitive.name == "custom_lin" for eqn in all_equations(closed.jaxpr)
        ):
            raise NoTangentError(
                "the step calls a jax.custom_vjp function inside a loop or a branch, "
                "so it has no derivative in forward mode"
            )
        jaxpr, _ = pe.dce_jaxpr(
            closed.jaxpr, [True] * len(closed.out_avals), instantiate=True
        )
        self.primal = primal
        self.closed = inline_calls(ClosedJaxpr(jaxpr, closed.consts))

    def __call__(
        self,
        parts: Sequence[Any],
        tangents: Sequence[Any],
        given: PyTree,
        instead: Mapping[int, Callable] | None = None,
    ) -> tuple[list[Any], list[Any]]:
        """Return the new carry and its tangent, as real parts.

        Args:
            parts: the real parts of the carry.
            tangents: those of its tangent.
            given: what else the step reads.
            instead: equations that are computed in another way, as in
                `jaxrnn.engines.jaxpr.evaluate.eval_equations`.
        """
        arguments = [*parts, *tangents, *jax.tree.leaves(given)]
        found = eval_jaxpr(self.closed.jaxpr, self.closed.consts, arguments, instead)
        new, d_new = split_by_sizes(found, (self.parts,))
        return new, d_new

    @functools.cached_property
    def is_affine(self) -> bool:
        """Whether the new carry is affine in the old one, by its equations.

        The tangent would not show it: a custom derivative need not be that of the
        values.
        """
        jaxpr = self.primal.jaxpr
        moving = set(jaxpr.invars[: self.parts])

        def is_constant(atom):
            return isinstance(atom, core.Literal) or atom not in moving

        for eqn in jaxpr.eqns:
            if all(map(is_constant, eqn.invars)):
                continue
            if (
                eqn.primitive.name not in BARRIERS
                and linear_operands(eqn, is_constant) is None
            ):
                return False
            moving.update(eqn.outvars)
        return True


def _of_values(closed: ClosedJaxpr) -> Any:
    """Return the same jaxpr without what only derivatives know of.

    Those are the factors of derivatives alone, and the rules of ``jax.custom_vjp``
    functions, which forward mode does not have.
    """
    instead: dict[int, Callable] = {}
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "jaxrnn_gradient_scale":
            instead[id(eqn)] = lambda x, scale: x
        elif eqn.primitive.name == CUSTOM_VJP:
            instead[id(eqn)] = functools.partial(_inlined, eqn.params["call_jaxpr"])
    if not instead:
        return closed
    plain = jax.make_jaxpr(
        lambda *args: eval_jaxpr(closed.jaxpr, closed.consts, args, instead)
    )(*closed.in_avals)
    return _of_values(inline_calls(plain))


def _inlined(closed: ClosedJaxpr, *values: Any) -> list[Any]:
    return eval_jaxpr(closed.jaxpr, closed.consts, values)


def _forward_mode(eqn: Any, *values: Any) -> list[Any]:
    """Call a ``jax.custom_vjp`` function, with the transpose of its rule as its jvp."""

    @jax.custom_jvp
    def call(*values):
        return bind_equation(eqn, list(values))

    @call.defjvp
    def _(primals, tangents):
        out, pull = jax.vjp(lambda *a: bind_equation(eqn, list(a)), *primals)
        floats = [i for i, a in enumerate(primals) if _is_inexact(a)]
        moving = [i for i, a in enumerate(out) if _is_inexact(a)]
        still = [np.zeros(jnp.shape(a), jax.dtypes.float0) for a in out]

        def pulled(cotangents):
            some = dict(zip(moving, cotangents, strict=True))
            full = pull([some.get(i, zero) for i, zero in enumerate(still)])
            return [full[i] for i in floats]

        try:
            (moved,) = jax.linear_transpose(pulled, [out[i] for i in moving])(
                [tangents[i] for i in floats]
            )
        except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
            raise NoTangentError(
                "the step calls a jax.custom_vjp function whose backward pass is not "
                "linear in the cotangent"
            ) from error
        some = dict(zip(moving, moved, strict=True))
        return out, [some.get(i, zero) for i, zero in enumerate(still)]

    return call(*values)


def _is_inexact(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)
