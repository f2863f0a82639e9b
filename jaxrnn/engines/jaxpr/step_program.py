"""A step as a list of equations, sorted by what each depends on: that is all an engine
needs to know of a cell.

`DependencyGraph` holds one step of a recurrence, ``(params, carry, inputs) -> carry``
(`step_program`), or the step together with its pullback, ``(params, carry, inputs,
cotangent) -> (carry, d params, d carry, d inputs)`` (`adjoint_program`), as a jaxpr
without nested calls. Every variable falls in a class:

    CONST   made from parameters alone: computed once a sequence INPUT   made from
    inputs, not from the carry: computed for many steps at once (this is what hoisting
    is) CARRY   needs the carry before the step: forwards in the loop, backwards for
    many steps at once, since all carries are known COT     needs the cotangent:
    backwards, in the loop as far as the carry's cotangent needs it, else after it

So no cell has to say how it is differentiated, and a matmul of the inputs is hoisted
wherever it was written.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval as pe

from .costs import count_flops, is_slower_batched
from .evaluate import (
    Values,
    deduplicate,
    eval_jaxpr,
    inline_calls,
    is_differentiable,
    nbytes,
    outputs_with_tangents,
    read_env,
    split_by_sizes,
    vmap_options,
)
from .min_cut import min_vertex_cut

CONST, INPUT, CARRY, COT = range(4)
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


@dataclasses.dataclass(frozen=True, eq=False)
class StepJaxpr:
    """``(params, carry, inputs) -> new carry`` on flat lists of arrays, traced once,
    and hashed by identity.
    """

    closed: Any  # ClosedJaxpr without constants: they are its first params
    params: int
    carry: int
    inputs: int

    def __call__(self, params: Values, carry: Values, inputs: Values) -> list[Any]:
        return eval_jaxpr(
            self.closed.jaxpr, self.closed.consts, [*params, *carry, *inputs]
        )

    @property
    def avals(self) -> list[Any]:
        return list(self.closed.in_avals)

    @property
    def carry_avals(self) -> list[Any]:
        return list(self.closed.out_avals)

    @functools.cached_property
    def program(self) -> DependencyGraph:
        """The step alone."""
        return DependencyGraph(
            inline_calls(self.closed),
            [CONST] * self.params + [CARRY] * self.carry + [INPUT] * self.inputs,
        )

    @functools.cached_property
    def adjoint(self) -> StepVJP:
        """The step and its pullback."""
        return StepVJP(self)

    def moved_by(self, wrt: Iterable[int]) -> frozenset[int]:
        """The leaves of the carry that have, after any number of steps, a tangent other
        than zero where the given params, leaves of the first carry and inputs, which
        are counted through in this order, have one.
        """
        given = frozenset(wrt)
        if given not in self._moved_by:
            found = frozenset(
                i - self.params
                for i in given
                if self.params <= i < self.params + self.carry
            )
            while (
                not (
                    new := outputs_with_tangents(
                        self.closed, given | {self.params + i for i in found}
                    )
                )
                <= found
            ):
                found |= new
            self._moved_by[given] = found
        return self._moved_by[given]

    @functools.cached_property
    def _moved_by(self) -> dict[frozenset[int], frozenset[int]]:
        return {}

    @functools.cached_property
    def reason_against_pullback(self) -> str | None:
        """Why there is no `adjoint`, if there is none: an operation of the step has
        no reverse mode, a ``while_loop``'s.
        """
        try:
            self.adjoint  # noqa: B018
        except Exception as error:
            words = (str(error).splitlines() or ["without a word"])[0]
            return (
                f"the pullback of its step cannot be traced ({type(error).__name__}: "
                f"{words})"
            )
        return None

    def vmapped(self, in_axes: Values, axis_data: Any) -> StepJaxpr:
        """The step of every member of a mapped axis: the same equations, one batch
        axis more.
        """
        groups = (self.params, self.carry, self.inputs)
        avals = [
            aval
            if axis is None
            else jax.ShapeDtypeStruct((axis_data.size, *aval.shape), aval.dtype)
            for aval, axis in zip(self.avals, in_axes, strict=True)
        ]
        call = jax.vmap(
            lambda *flat: self(*split_by_sizes(flat, groups[:2])),
            in_axes=tuple(in_axes),
            **vmap_options(axis_data),
        )
        return StepJaxpr(jax.make_jaxpr(call)(*avals), *groups)


def trace_step(
    function: Callable[..., Values], params: Values, carry: Values, inputs: Values
) -> tuple[StepJaxpr, list[Any]]:
    """``function(params, carry, inputs) -> carry`` on flat lists as a `StepJaxpr`, and
    the params it takes: arrays that the function closes over come first. What nobody
    reads is left out, as ``jax.jit`` does.
    """
    groups = (len(params), len(carry))
    closed = jax.make_jaxpr(lambda *flat: function(*split_by_sizes(flat, groups)))(
        *params, *carry, *inputs
    )
    consts, (jaxpr, _) = (
        list(closed.consts),
        pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals), instantiate=True),
    )
    opened = jax.make_jaxpr(
        lambda *flat: eval_jaxpr(jaxpr, flat[: len(consts)], flat[len(consts) :])
    )
    avals = [jax.ShapeDtypeStruct(jnp.shape(a), a.dtype) for a in consts] + list(
        closed.in_avals
    )
    return StepJaxpr(
        opened(*avals), len(consts) + len(params), len(carry), len(inputs)
    ), [
        *consts,
        *params,
    ]


class DependencyGraph:
    """A jaxpr without calls, and the class of every variable."""

    def __init__(self, closed: Any, classes: Iterable[int]):
        jaxpr = closed.jaxpr
        self.jaxpr, self.eqns = jaxpr, list(jaxpr.eqns)
        self.literals = dict(
            zip(jaxpr.constvars, closed.consts, strict=True)
        )  # arrays written into the step itself
        self.kind: dict[Any, int] = dict.fromkeys(self.literals, CONST) | dict(
            zip(jaxpr.invars, classes, strict=True)
        )
        self.maker: dict[Any, Any] = {}
        for eqn in self.eqns:
            kind = max((self.kind_of(v) for v in eqn.invars), default=CONST)
            if kind == INPUT and is_slower_batched(eqn):
                kind = CARRY  # it stays in the loop
            for var in eqn.outvars:
                self.kind[var], self.maker[var] = kind, eqn

    def kind_of(self, var: Any) -> int:
        return CONST if isinstance(var, core.Literal) else self.kind[var]

    def needed(self, outs: Iterable[Any], given: Collection[Any]) -> list[Any]:
        """The equations between ``given`` and ``outs``, in order."""
        wanted, chosen = (
            {v for v in outs if not isinstance(v, core.Literal)} - set(given),
            [],
        )
        for eqn in reversed(self.eqns):
            if wanted.isdisjoint(eqn.outvars):
                continue
            chosen.append(eqn)
            wanted |= {
                v
                for v in eqn.invars
                if not isinstance(v, core.Literal) and v not in given
            }
        return chosen[::-1]

    def reads(self, eqns: Iterable[Any], below: int) -> list[Any]:
        """What ``eqns`` read and do not make, of a class above CONST and under
        ``below``.
        """
        eqns = list(eqns)
        made = {v for eqn in eqns for v in eqn.outvars}
        return deduplicate(
            v
            for eqn in eqns
            for v in eqn.invars
            if CONST < self.kind_of(v) < below and v not in made
        )

    def least_given(
        self, wanted: Iterable[Any], given: Collection[Any]
    ) -> tuple[list[Any], list[Any]]:
        """The fewest bytes from which ``wanted`` follows by cheap arithmetic, and that
        arithmetic.

        What is stored or sliced once a step is worth less than a multiplication or two:
        an LSTM's loop backwards reads its four gates, not the eight products of them
        that the chain rule names. ``given`` is what there is to begin with.
        """
        wanted = list(wanted)
        eqns = [
            eqn
            for eqn in self.needed(wanted, given)
            if self.kind[eqn.outvars[0]] > CONST
        ]
        cheap = [eqn for eqn in eqns if eqn.primitive.name in CHEAP]
        made = {v for eqn in cheap for v in eqn.outvars}
        edges = [
            (a, b)
            for eqn in cheap
            for a in eqn.invars
            for b in eqn.outvars
            if self.kind_of(a) > CONST
        ]
        sources = deduplicate(
            [v for v in wanted if v not in made]
            + [a for a, _ in edges if a not in made]
        )
        cut = min_vertex_cut(sources, wanted, edges, nbytes)
        return cut, [
            eqn for eqn in self.needed(wanted, cut) if self.kind[eqn.outvars[0]] > CONST
        ]


class StepVJP(DependencyGraph):
    """A step and its pullback as one program. ``new``, ``d_params``, ``d_carry`` and
    ``d_inputs`` are its outputs by position; those of integers and flags are None.
    ``cotangents`` are its inputs, None likewise.
    """

    def __init__(self, step: StepJaxpr):
        self.step = step
        groups = (step.params, step.carry, step.inputs)
        closed, differentiable = _trace_pullback(step)
        super().__init__(
            closed,
            [CONST] * groups[0]
            + [CARRY] * groups[1]
            + [INPUT] * groups[2]
            + [COT] * sum(differentiable[1]),
        )
        params, carry, inputs, cotangents = split_by_sizes(self.jaxpr.invars, groups)
        new, d_params, d_carry, d_inputs = split_by_sizes(
            self.jaxpr.outvars,
            (step.carry, sum(differentiable[0]), sum(differentiable[1])),
        )
        self.params, self.carry, self.inputs, self.new = params, carry, inputs, new
        self.cotangents = _spread(cotangents, differentiable[1])
        self.d_params = _spread(d_params, differentiable[0])
        self.d_carry = _spread(d_carry, differentiable[1])
        self.d_inputs = _spread(d_inputs, differentiable[2])
        self.dropped = self._dropped()

    @functools.cached_property
    def residuals(self) -> list[Any]:
        """What the equations of class COT read of the forward pass, whatever is
        asked for.
        """
        outs = [
            v for v in (*self.d_params, *self.d_carry, *self.d_inputs) if v is not None
        ]
        eqns = [
            eqn for eqn in self.needed(outs, ()) if self.kind[eqn.outvars[0]] == COT
        ]
        return deduplicate(
            [
                *self.reads(eqns, COT),
                *(v for v in outs if CONST < self.kind_of(v) < COT),
            ]
        )

    @functools.cached_property
    def matmul_values(self) -> list[Any]:
        """The least set of values from which, with the inputs and the carries that are
        kept, the residuals follow without a matmul.
        """
        return self._cut(self.dropped)

    @functools.cached_property
    def remade_operations(self) -> float:
        """Floating-point operations of the matmuls that are done again where
        `matmul_values` are not kept.
        """
        eqns = self.needed(
            self.matmul_values, {*self.inputs, *self.known_carries(self.unread)}
        )
        return count_flops(
            eqn
            for eqn in eqns
            if self.kind[eqn.outvars[0]] > CONST and eqn.primitive.name in EXPENSIVE
        )

    @functools.cached_property
    def sums_products(self) -> bool:
        """Whether the pullback multiplies what depends on the carry with a
        cotangent: a product that is summed over time.
        """
        return any(
            eqn.primitive.name == "dot_general"
            and {self.kind_of(v) for v in eqn.invars} == {CARRY, COT}
            for eqn in self.eqns
        )

    def known_carries(self, dropped: Collection[int]) -> set[Any]:
        """The variables of the carries before and after a step whose values at every
        step are kept: all but ``dropped``.

        One that is a parameter or the old carry has no equation, and is not named here.
        """
        old = {v for i, v in enumerate(self.carry) if i not in dropped}
        new = {
            v
            for i, v in enumerate(self.new)
            if i not in dropped and not isinstance(v, core.Literal) and v in self.maker
        }
        return old | new

    def _cut(self, dropped: Collection[int]) -> list[Any]:
        free = {*self.inputs, *self.known_carries(dropped)}
        eqns = [
            eqn
            for eqn in self.needed(self.residuals, free)
            if self.kind[eqn.outvars[0]] > CONST
        ]
        made = [
            v
            for eqn in eqns
            if eqn.primitive.name in EXPENSIVE
            for v in eqn.outvars
            if v not in free
        ]
        edges = [
            (a, b)
            for eqn in eqns
            if eqn.primitive.name not in EXPENSIVE
            for a in eqn.invars
            for b in eqn.outvars
            if self.kind_of(a) > CONST and a not in free and b not in free
        ]
        sources = [*made, *(self.carry[i] for i in dropped)]
        return min_vertex_cut(
            sources, [v for v in self.residuals if v not in free], edges, nbytes
        )

    def not_kept(self, with_values: bool) -> frozenset[int]:
        """The leaves of the carry that are not kept at every step, where
        `matmul_values` are, or are not.
        """
        return self.dropped if with_values else self.unread

    @functools.cached_property
    def unread(self) -> frozenset[int]:
        """The leaves of the carry that nobody reads, where the residuals are made
        again from the carries.
        """
        free = {*self.inputs, *self.known_carries(())}
        eqns = [
            eqn
            for eqn in self.needed(self.residuals, free)
            if self.kind[eqn.outvars[0]] > CONST
        ]
        read = {
            v for eqn in eqns for v in eqn.invars if not isinstance(v, core.Literal)
        } | set(self.residuals)

        def is_read(i: int) -> bool:
            new = self.new[i]
            return self.carry[i] in read or (
                not isinstance(new, core.Literal) and new in read
            )

        return frozenset(i for i in range(len(self.carry)) if not is_read(i))

    def _dropped(self) -> frozenset[int]:
        """The leaves of the carry that are not kept at every step: fewer bytes take
        their place, or none at all.

        The pullback of a ring buffer's step reads the row that the step read, not the
        buffer.
        """
        dropped: frozenset[int] = frozenset()
        kept = sum(map(nbytes, self._cut(dropped)))
        for i in sorted(range(len(self.carry)), key=lambda i: -nbytes(self.carry[i])):
            instead = sum(map(nbytes, self._cut(dropped | {i})))
            if (
                instead < kept + nbytes(self.carry[i])
                and instead - kept <= nbytes(self.carry[i]) / 2
            ):
                dropped, kept = dropped | {i}, instead
        return dropped


def _trace_pullback(step: StepJaxpr) -> tuple[Any, list[list[bool]]]:
    """The jaxpr, without calls, of step and pullback, and which params, carries and
    inputs are differentiable.
    """
    groups = (step.params, step.carry)
    flags = [is_differentiable(aval) for aval in step.avals]
    differentiable = split_by_sizes(flags, groups)

    def both(*flat):
        primals, cotangents = flat[: len(flags)], flat[len(flags) :]

        def differentiated(chosen):
            chosen = iter(chosen)
            new = step(
                *split_by_sizes(
                    [
                        next(chosen) if flag else a
                        for a, flag in zip(primals, flags, strict=True)
                    ],
                    groups,
                )
            )
            return [
                a for a, flag in zip(new, differentiable[1], strict=True) if flag
            ], new

        chosen = [a for a, flag in zip(primals, flags, strict=True) if flag]
        _, pull, new = jax.vjp(differentiated, chosen, has_aux=True)
        return [*new, *pull(list(cotangents))[0]]

    cotangents = [
        aval
        for aval, flag in zip(step.carry_avals, differentiable[1], strict=True)
        if flag
    ]
    return inline_calls(jax.make_jaxpr(both)(*step.avals, *cotangents)), differentiable


def pretranspose_constants(
    program: DependencyGraph, eqns: Iterable[Any], constants: dict[Any, Any]
) -> dict[int, Callable]:
    """For matmuls by the transpose of a constant matrix, matmuls by a transposed copy
    that is made here, before a loop.

    The pullback of ``h @ U`` is ``dz @ U.T``. Inside a loop XLA:CPU transposes U at
    every step: 4.5 us against 2.2 for U of (64, 256), 22 against 14 for (128, 512).
    """
    found: dict[int, Callable] = {}
    for eqn in eqns:
        if eqn.primitive.name != "dot_general":
            continue
        (_, matrix), params = eqn.invars, dict(eqn.params)
        (over, matrix_over), batch = params.pop("dimension_numbers")
        if (
            program.kind_of(matrix) == CONST
            and matrix.aval.ndim == 2
            and tuple(matrix_over) == (1,)
            and batch == ((), ())
        ):
            turned = read_env(constants, matrix).T

            def product(a, _, turned=turned, over=over, params=params):
                return jax.lax.dot_general_p.bind(
                    a, turned, dimension_numbers=((over, (0,)), ((), ())), **params
                )

            found[id(eqn)] = product
    return found


def _spread(items: Sequence[Any], flags: Sequence[bool]) -> list[Any]:
    rest = iter(items)
    return [next(rest) if flag else None for flag in flags]
