"""A jaxpr whose variables are classed by what they depend on.

The classes are explained in `jaxrnn.engines.jaxpr.step_program`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from jax.extend import core
from jax.extend.core import ClosedJaxpr, Var

from .costs import is_slower_batched
from .evaluate import deduplicate, nbytes
from .min_cut import min_vertex_cut

CONST, INPUT, CARRY, COT = range(4)  # a class includes those before it
# Primitives whose results are saved rather than recomputed.
EXPENSIVE = {
    "dot_general",
    "conv_general_dilated",
    "scan",
    "while",
    "cond",
    "fft",
    "ragged_dot_general",
    "custom_call",
}
# Elementwise arithmetic and changes of shape, which are recomputed rather than stored.
CHEAP = {
    "add",
    "add_any",
    "sub",
    "mul",
    "neg",
    "max",
    "min",
    "select_n",
    "integer_pow",
    "square",
    "one_minus_square",
    "abs",
}
CHEAP |= {
    "broadcast_in_dim",
    "reshape",
    "expand_dims",
    "squeeze",
    "convert_element_type",
    "split",
    "slice",
    "copy",
    "sign",
}
CHEAP |= {"and", "or", "not", "xor", "eq", "ne", "lt", "le", "gt", "ge", "clamp"}


class DependencyGraph:
    """A jaxpr without nested calls, and the class of every variable.

    Args:
        closed: the closed jaxpr.
        classes: the class of each of its arguments.

    Attributes:
        jaxpr: the jaxpr.
        eqns: its equations.
        literals: the values of its constants, which the step contains.
        kind: the class of each variable.
        maker: the equation that computes each variable.
    """

    def __init__(self, closed: ClosedJaxpr, classes: Iterable[int]):
        jaxpr = closed.jaxpr
        self.jaxpr, self.eqns = jaxpr, list(jaxpr.eqns)
        self.literals = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self.kind: dict[Any, int] = dict.fromkeys(self.literals, CONST) | dict(
            zip(jaxpr.invars, classes, strict=True)
        )
        self.maker: dict[Any, Any] = {}
        for eqn in self.eqns:
            kind = max((self.kind_of(v) for v in eqn.invars), default=CONST)
            if kind == INPUT and is_slower_batched(eqn):
                kind = CARRY  # so that it stays in the loop
            for var in eqn.outvars:
                self.kind[var], self.maker[var] = kind, eqn

    def kind_of(self, var: Var | core.Literal) -> int:
        """Return the class of a variable or literal."""
        return CONST if isinstance(var, core.Literal) else self.kind[var]

    def needed(self, outs: Iterable[Any], given: Collection[Any]) -> list[Any]:
        """Return, in order, the equations that compute ``outs`` from ``given``."""
        required = {v for v in outs if not isinstance(v, core.Literal)} - set(given)
        needed_eqns = []
        for eqn in reversed(self.eqns):
            if required.isdisjoint(eqn.outvars):
                continue
            needed_eqns.append(eqn)
            required |= {
                v
                for v in eqn.invars
                if not isinstance(v, core.Literal) and v not in given
            }
        return needed_eqns[::-1]

    def reads(self, eqns: Iterable[Any], below: int) -> list[Any]:
        """Return the free variables of ``eqns`` of a class between CONST and ``below``.

        Both ends are excluded.
        """
        eqns = list(eqns)
        computed = {v for eqn in eqns for v in eqn.outvars}
        return deduplicate(
            v
            for eqn in eqns
            for v in eqn.invars
            if CONST < self.kind_of(v) < below and v not in computed
        )

    def least_given(
        self, wanted: Iterable[Any], given: Collection[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Find the fewest bytes from which cheap arithmetic computes some variables.

        Storing or slicing a value at every step costs more than a few multiplications.
        The backward loop of an LSTM, for example, reads its four gates, not the eight
        products of them that occur in the chain rule.

        The graph is that of the CHEAP equations between ``given`` and ``wanted``: an
        edge leads from each operand to each result. The variables found are its minimum
        vertex cut by bytes.

        Args:
            wanted: the variables to be computed.
            given: the variables whose values are known anyway.

        Returns:
            The variables of the cut, and the equations that compute ``wanted`` from
            them.
        """
        wanted = list(wanted)
        eqns = [
            eqn
            for eqn in self.needed(wanted, given)
            if self.kind[eqn.outvars[0]] > CONST
        ]
        cheap = [eqn for eqn in eqns if eqn.primitive.name in CHEAP]
        computed = {v for eqn in cheap for v in eqn.outvars}
        edges = [
            (a, b)
            for eqn in cheap
            for a in eqn.invars
            for b in eqn.outvars
            if self.kind_of(a) > CONST
        ]
        sources = deduplicate(
            [v for v in wanted if v not in computed]
            + [a for a, _ in edges if a not in computed]
        )
        cut = min_vertex_cut(sources, wanted, edges, nbytes)
        return cut, [
            eqn for eqn in self.needed(wanted, cut) if self.kind[eqn.outvars[0]] > CONST
        ]
