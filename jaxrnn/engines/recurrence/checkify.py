"""Rules that let ``jax.experimental.checkify`` look inside the engines' primitives.

Checkify finds NaN, division by zero and indices out of bounds by a rule for each
primitive, and takes a primitive without a rule for one that never fails. The rule here
is that of the same computation under ``jax.jit``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

try:  # not public: where a version of jax has moved it, checkify sees no errors here
    from jax._src.checkify import error_checks as _RULES
except ImportError:  # pragma: no cover
    _RULES: dict[Any, Any] = {}  # type: ignore[no-redef]


def register_checkify_rule(primitive: Any, function: Callable[..., Any]) -> None:
    """Let checkify look inside ``primitive``, which computes ``function``.

    Both are called as ``function(*args, **params)``.
    """

    def rule(*operands: Any, **params: Any) -> tuple[Any, Any]:
        # Checkify's own operands come first. The set of enabled errors is their last.
        num_own = 1 + next(
            i for i, a in enumerate(operands) if isinstance(a, (set, frozenset))
        )
        own, args = operands[:num_own], operands[num_own:]
        closed = jax.make_jaxpr(jax.jit(functools.partial(function, **params)))(*args)
        (eqn,) = closed.jaxpr.eqns
        error, out = _RULES[eqn.primitive](*own, *closed.consts, *args, **eqn.params)
        return error, out if primitive.multiple_results else out[0]

    _RULES[primitive] = rule
