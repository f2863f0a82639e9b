"""Gradients scaled on the carry's way from step to step: values unchanged, derivatives
multiplied.

With a scale w_t per step, ``s_t = f(I_w(s_{t-1}), x_t)`` where ``I_w(s) = s`` and
``dI_w = w ds``. Going backwards, ``delta_{t-1} = dl_{t-1}/ds_{t-1} + w_t delta_t J_t``:
w = 1 is backpropagation through time, w = 0 cuts it before step t.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .cell import AbstractWrappedCell, Carry, Params, expand_flags, select

# A primitive and not jax.custom_jvp: when JAX splits a scan's derivative into its known
# and linear parts, it drops that one's rule from the known part, and second derivatives
# come out wrong.
_identity = Primitive("jaxrnn_gradient_scale")
_identity.def_impl(lambda x, scale: x)
_identity.def_abstract_eval(lambda x, scale: x)
mlir.register_lowering(
    _identity, mlir.lower_fun(lambda x, scale: x, multiple_results=False)
)


def _derivative(primals, tangents):
    (x, scale), (moving, _) = primals, tangents  # the scale is a constant
    return _identity.bind(x, scale), moving if isinstance(
        moving, ad.Zero
    ) else moving * scale


def _mapped(values, axes):
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
    """``carry``, its derivative multiplied by ``scale (*B,)``; integer leaves have
    none and pass as they are.
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
    """A cell whose step scales the gradient of the carry that enters it: what the
    engines walk.

    Inputs are ``(scale (*B,), the cell's, mask, resets)``, these two ``(*B,)`` or None.
    Mask and resets are applied here, not by the engine: the gradient is scaled where
    the carry is held, too, and that of the initial carry which a reset brings in is
    not.
    """

    purpose: ClassVar[str] = "scaled gradients (gradient_scale, ARTBP)"

    def project(self, params: Params, x: Any) -> Any:
        scale, inputs, mask, reset = x
        return scale, self.cell.project(params, inputs), mask, reset

    def step(self, params: Params, carry: Carry, z: Any) -> Carry:
        scale, projected, mask, reset = z
        carry = scale_gradient(carry, scale)
        if reset is not None:
            carry = select(reset, self.cell.initial_carry(params, reset.shape), carry)
        new = self.cell.step(params, carry, projected)
        return new if mask is None else select(mask, new, carry)
