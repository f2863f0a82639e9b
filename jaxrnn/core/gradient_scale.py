"""Scaling of the gradient that passes through the carry from step to step.

With a scale w_t for each step, ``s_t = f(I_w(s_{t-1}), x_t)`` where ``I_w(s) = s`` and
``dI_w = w ds``: values are unchanged, derivatives are multiplied. In the backward pass
``delta_{t-1} = dl_{t-1}/ds_{t-1} + w_t delta_t J_t``. With w = 1 this is
backpropagation through time, and w = 0 cuts it before step t.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .cell import AbstractWrappedCell
from .flags import expand_flags, select
from .types import Carry, Inputs, Params, PyTree

# This is a primitive instead of a jax.custom_jvp function, because partial evaluation
# of a scan's JVP drops the custom rule from the known part, and second derivatives
# would be wrong.
_identity = Primitive("jaxrnn_gradient_scale")
_identity.def_impl(lambda x, scale: x)
_identity.def_abstract_eval(lambda x, scale: x)
mlir.register_lowering(
    _identity, mlir.lower_fun(lambda x, scale: x, multiple_results=False)
)


def _derivative(primals, tangents):
    """Multiply the tangent of x by the scale, which counts as a constant."""
    (x, scale), (x_dot, _) = primals, tangents
    out_dot = x_dot if isinstance(x_dot, ad.Zero) else x_dot * scale
    return _identity.bind(x, scale), out_dot


def _mapped(values, axes):
    """Move the mapped axis of both operands to the front."""
    size = next(
        v.shape[axis] for v, axis in zip(values, axes, strict=True) if axis is not None
    )
    x, scale = (
        jnp.broadcast_to(v, (size, *v.shape))
        if axis is None
        else jnp.moveaxis(v, axis, 0)
        for v, axis in zip(values, axes, strict=True)
    )
    return _identity.bind(x, scale), 0


ad.primitive_jvps[_identity] = _derivative
batching.primitive_batchers[_identity] = _mapped


def scale_gradient(carry: Carry, scale: Float[Array, "*B"]) -> Carry:
    """Return ``carry`` unchanged, with its derivative multiplied by ``scale``.

    Args:
        carry: a pytree of arrays ``(*B, ...)``. Integer leaves have no derivative and
            are returned as they are.
        scale: the factor for each sequence of the batch, a constant: no gradient flows
            to it.

    Returns:
        A pytree like ``carry``.

    Example::

        >>> import jax
        >>> def f(s):
        ...     return scale_gradient(s, jax.numpy.array([0.5])).sum()
        >>> jax.grad(f)(jax.numpy.ones((1, 2))).tolist()
        [[0.5, 0.5]]
    """

    def leaf(a):
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return a
        return _identity.bind(
            a, jnp.broadcast_to(expand_flags(scale.astype(a.dtype), a), a.shape)
        )

    return jax.tree.map(leaf, carry)


@dataclasses.dataclass(frozen=True)
class ScaledCell(AbstractWrappedCell):
    """A cell whose step scales the gradient of the carry that enters it.

    Engines unroll it in place of ``cell``. Its inputs are ``(scale (*B,), x of the
    cell, mask, resets)``, the last two ``(*B,)`` or None. Mask and resets are applied
    here instead of by the engine, so that the gradient is also scaled at masked steps,
    which keep the carry, but not that of the initial carry that a reset brings in.

    Args:
        cell: the cell that computes the step.
    """

    purpose: ClassVar[str] = "scaled gradients (gradient_scale, ARTBP)"

    def project(self, params: Params, x: Inputs) -> Any:
        scale, inputs, mask, reset = x
        return scale, self.cell.project(params, inputs), mask, reset

    def step(self, params: Params, carry: Carry, z: PyTree) -> Carry:
        scale, projected, mask, reset = z
        carry = scale_gradient(carry, scale)
        if reset is not None:
            carry = select(reset, self.cell.initial_carry(params, reset.shape), carry)
        new = self.cell.step(params, carry, projected)
        return new if mask is None else select(mask, new, carry)
