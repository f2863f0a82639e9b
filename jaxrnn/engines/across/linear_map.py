"""A linear function whose transpose is given: JAX finds the rest.

``jax.custom_vjp`` would forbid forward mode, and JAX's own transpose of a time split
would run every stretch twice. This primitive is bound by the jvp rule of a function
(`jax.custom_jvp`). Forward mode evaluates it; reverse mode replaces it by its
transpose, so that nothing of it is left in a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Function = Callable[[Sequence, Sequence], Sequence]


def linear_map(
    function: Function, transpose: Function, known: Sequence, given: Sequence
) -> list:
    """Return ``function(known, given)``, which is linear in ``given``.

    Args:
        function: ``function(known, given) -> results``, all of them flat lists.
        transpose: ``transpose(known, cotangents) -> cotangents of given``.
        known: what both depend on in any way.
        given: what the results are linear in.
    """
    return linear_map_p.bind(
        *known, *given, function=function, transpose=transpose, count=len(known)
    )


linear_map_p = Primitive("jaxrnn_linear_map")
linear_map_p.multiple_results = True


def _evaluate(*args, function, transpose, count):
    return list(function(args[:count], args[count:]))


def _abstract(*avals, **how):
    made = jax.eval_shape(lambda *args: _evaluate(*args, **how), *avals)
    return [jax.typeof(a) for a in made]


def _jvp(primals, tangents, **how):
    count = how["count"]
    tangents = [
        ad.instantiate_zeros(t) if i >= count else t for i, t in enumerate(tangents)
    ]
    if all(type(t) is ad.Zero for t in tangents[:count]):
        results = linear_map_p.bind(*primals, **how)
        return results, linear_map_p.bind(*primals[:count], *tangents[count:], **how)
    tangents = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(
        lambda *args: _evaluate(*args, **how), tuple(primals), tuple(tangents)
    )


def _transposed(cotangents, *args, function, transpose, count):
    known, given = args[:count], args[count:]
    found = transpose(known, [ad.instantiate_zeros(c) for c in cotangents])
    return [None] * count + [
        d if ad.is_undefined_primal(g) else None
        for d, g in zip(found, given, strict=True)
    ]


def _batched(args, dims, *, function, transpose, count):
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    given = [
        jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(args[count:], dims[count:], strict=True)
    ]

    def mapped(f):
        def run(known, given):
            return jax.vmap(
                lambda *flat: list(f(flat[:count], flat[count:])),
                in_axes=(*dims[:count], *[0] * len(given)),
                axis_size=size,
            )(*known, *given)

        return run

    results = linear_map(mapped(function), mapped(transpose), args[:count], given)
    return results, [0] * len(results)


linear_map_p.def_impl(_evaluate)
linear_map_p.def_abstract_eval(_abstract)
mlir.register_lowering(linear_map_p, mlir.lower_fun(_evaluate, multiple_results=True))
ad.primitive_jvps[linear_map_p] = _jvp
ad.primitive_transposes[linear_map_p] = _transposed
batching.primitive_batchers[linear_map_p] = _batched
