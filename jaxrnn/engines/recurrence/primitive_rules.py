"""How a primitive is defined by a function, and rules that it inherits from it."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from ...core.contraction import devices_of
from ..jaxpr.evaluate import vmap_options


def define_primitive(name: str, function: Any) -> Primitive:
    """Make a primitive that computes ``function(*operands, platform=, **params)``.

    Its implementation, abstract evaluation and lowering are all derived from
    ``function``. Only the lowering knows the platform and the number of devices, so
    only there is the schedule resolved for the platform that runs it.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.lru_cache(maxsize=256)
    def compiled(params):
        return jax.jit(functools.partial(function, **dict(params)))

    primitive.def_impl(lambda *args, **params: compiled(tuple(params.items()))(*args))

    # Tracing asks several times for the avals of the same operands.
    @functools.lru_cache(maxsize=256)
    def out_avals(avals, params):
        return list(
            jax.make_jaxpr(functools.partial(function, **dict(params)))(
                *avals
            ).out_avals
        )

    primitive.def_abstract_eval(
        lambda *avals, **params: out_avals(avals, tuple(params.items()))
    )
    for platform in (None, "cpu", "cuda", "tpu"):
        mlir.register_lowering(
            primitive, functools.partial(_lower, function, platform), platform=platform
        )
    return primitive


def _lower(
    function: Any, platform: str | None, ctx: Any, *args: Any, **params: Any
) -> Any:
    """Lower a primitive for a platform and the devices of the program."""
    here = functools.partial(function, platform=platform, devices=devices_of(ctx))
    return mlir.lower_fun(here, multiple_results=True)(ctx, *args, **params)


def jvp_as_code(function, primals, tangents, params):
    """Apply ``jax.jvp`` to a function, in the signature of a primitive's jvp rule."""
    nonzero = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

    def of_nonzero(values):
        full = list(primals)
        for i, v in zip(nonzero, values, strict=True):
            full[i] = v
        return function(*full, **params)

    if not nonzero:
        out = function(*primals, **params)
        return out, [no_tangent(a) for a in out]
    return jax.jvp(
        of_nonzero, ([primals[i] for i in nonzero],), ([tangents[i] for i in nonzero],)
    )


def no_tangent(value: object) -> Any:
    """Return the symbolic zero tangent of a value."""
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def batch_as_code(primitive: Primitive, function: Any):
    """Return the batching rule that applies ``jax.vmap`` to the implementation.

    Every example is treated by itself, its weight gradients included.
    """

    def rule(axis_data, args, dims, **params):
        if all(d is None for d in dims):
            return _without_mapped_axes(primitive.bind(*args, **params))
        mapped = jax.vmap(
            functools.partial(function, **params),
            in_axes=tuple(dims),
            **vmap_options(axis_data),
        )
        out = mapped(*args)
        return out, [0] * len(out)

    return rule


def _without_mapped_axes(out):
    """Mark all outputs as not mapped; JAX calls batching rules then, too."""
    return out, [None] * len(out)
