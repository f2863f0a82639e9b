"""What ``jax.experimental.checkify`` looks for, found inside the engines' primitives
too: NaN, division by zero, indices.

It asks a primitive for a rule of its own, and takes one without for an operation that
never fails. The rule here is that of the same computation under ``jax.jit``, which a
primitive of ordinary JAX code is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

try:  # no public name: where a version has moved it, checkify does not see inside
    from jax._src.checkify import error_checks as _RULES
except ImportError:  # pragma: no cover
    _RULES: dict[Any, Any] = {}  # type: ignore[no-redef]


def register_checkify_rule(primitive: Any, function: Callable[..., Any]) -> None:
    """Let checkify see into ``primitive``, which computes ``function(*args,
    **params)``.
    """

    def rule(*given: Any, **params: Any) -> tuple[Any, Any]:
        first = 1 + next(
            i for i, each in enumerate(given) if isinstance(each, (set, frozenset))
        )  # what is looked for
        before, args = given[:first], given[first:]
        closed = jax.make_jaxpr(jax.jit(functools.partial(function, **params)))(*args)
        (eqn,) = closed.jaxpr.eqns
        error, out = _RULES[eqn.primitive](*before, *closed.consts, *args, **eqn.params)
        return error, out if primitive.multiple_results else out[0]

    _RULES[primitive] = rule
