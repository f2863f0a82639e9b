"""Complex arithmetic as real arithmetic, since kernels have no complex numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend import core

from ....core.arrays import is_array
from .block_form import KernelUnsupportedError, LoopBody


def is_complex(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.complexfloating)


def split_complex(values: Sequence[Any]) -> list[Any]:
    """Replace every complex array by its real and its imaginary part."""
    return [
        part for v in values for part in ((v.real, v.imag) if is_complex(v) else (v,))
    ]


def merge_complex(parts: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Invert `split_complex`, for values of the dtypes of ``like``."""
    found = iter(parts)
    return [
        jax.lax.complex(next(found), next(found)) if is_complex(a) else next(found)
        for a in like
    ]


def real_body(body: LoopBody) -> LoopBody:
    """Return the same body on real and imaginary parts.

    Raises:
        KernelUnsupportedError: for complex arithmetic that has no rule here.
    """
    jaxpr, avals = body.flat.jaxpr, list(body.flat.in_avals)

    def run(*parts: Any) -> list[Any]:
        env: dict[Any, Any] = dict(
            zip(jaxpr.constvars, map(_pair, body.flat.consts), strict=True)
        )
        found = iter(parts)
        for v, aval in zip(jaxpr.invars, avals, strict=True):
            env[v] = (next(found), next(found)) if is_complex(aval) else next(found)
        for eqn in jaxpr.eqns:
            values = [
                _pair(v.val) if isinstance(v, core.Literal) else env[v]
                for v in eqn.invars
            ]
            env.update(zip(eqn.outvars, _evaluated(eqn, values), strict=True))
        outs = [
            _pair(v.val) if isinstance(v, core.Literal) else env[v]
            for v in jaxpr.outvars
        ]
        return [part for v in outs for part in (v if isinstance(v, tuple) else (v,))]

    half = [
        _real_aval(a)
        for aval in avals
        for a in ([aval, aval] if is_complex(aval) else [aval])
    ]
    sizes = [1 + is_complex(a) for a in avals]
    consts, carry = sum(sizes[: body.consts]), sum(sizes[body.consts :][: body.carry])
    return LoopBody(
        jax.make_jaxpr(run)(*half), consts, carry, sum(sizes) - consts - carry
    )


def _real_aval(aval: ShapedArray) -> Any:
    dtype = jnp.finfo(aval.dtype).dtype if is_complex(aval) else aval.dtype
    return jax.ShapeDtypeStruct(aval.shape, dtype)


def _pair(value: Any) -> Any:
    return (value.real, value.imag) if is_array(value) and is_complex(value) else value


def _evaluated(eqn: Any, values: list[Any]) -> list[Any]:
    name = eqn.primitive.name
    if not any(isinstance(v, tuple) for v in values) and not is_complex(
        eqn.outvars[0].aval
    ):
        made = eqn.primitive.bind(*values, **eqn.params)
        return list(made) if eqn.primitive.multiple_results else [made]
    if name in RULES:
        return [RULES[name](*values)]
    if name == "select_n":
        flag, *cases = values
        return [
            tuple(
                eqn.primitive.bind(flag, *parts) for parts in zip(*cases, strict=True)
            )
        ]
    if name == "convert_element_type" and not is_complex(
        eqn.outvars[0].aval
    ):  # the real part
        return [values[0][0].astype(eqn.outvars[0].aval.dtype)]
    if name == "convert_element_type":
        parts = (
            values[0]
            if isinstance(values[0], tuple)
            else (values[0], jnp.zeros_like(values[0]))
        )
        return [tuple(v.astype(_real_aval(eqn.outvars[0].aval).dtype) for v in parts)]
    if name == "jaxrnn_gradient_scale":
        scale = values[1][0] if isinstance(values[1], tuple) else values[1]
        return [tuple(eqn.primitive.bind(v, scale) for v in values[0])]
    if name in LINEAR:
        shape = eqn.outvars[0].aval.shape if name in ("add", "add_any", "sub") else None
        pairs = [
            _spread(v if isinstance(v, tuple) else (v, jnp.zeros_like(v)), shape)
            for v in values
        ]
        made = [
            eqn.primitive.bind(*parts, **eqn.params)
            for parts in zip(*pairs, strict=True)
        ]
        return (
            list(zip(*made, strict=True))
            if eqn.primitive.multiple_results
            else [tuple(made)]
        )
    raise KernelUnsupportedError(
        f"its step has a {name} of complex numbers, for which kernels have no rule"
    )


def _spread(pair: tuple[Any, Any], shape: tuple[int, ...] | None) -> tuple[Any, ...]:
    """Broadcast scalars, which only literals may be beside arrays, to a shape."""
    return (
        pair
        if shape is None
        else tuple(jnp.broadcast_to(v, shape) if jnp.ndim(v) == 0 else v for v in pair)
    )


def _multiplied(a: Array, b: Array) -> Any:
    (ar, ai), (br, bi) = a, b
    return ar * br - ai * bi, ar * bi + ai * br


LINEAR = {
    "add",
    "add_any",
    "sub",
    "neg",
    "jaxrnn_fence",
    "copy",
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
}
LINEAR |= {"slice", "split", "concatenate", "pad", "optimization_barrier"}
RULES: dict[str, Any] = {
    "mul": _multiplied,
    "conj": lambda a: (a[0], -a[1]) if isinstance(a, tuple) else (a, jnp.zeros_like(a)),
    "real": lambda a: a[0],
    "imag": lambda a: a[1],
    "complex": lambda re, im: (re, im),
}
