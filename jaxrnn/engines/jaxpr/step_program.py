"""A step of a recurrence as a jaxpr whose variables are classed by what they depend on.

`StepJaxpr` is one step, ``(params, carry, inputs) -> carry``. Its ``program`` is the
step as a `DependencyGraph`, and its ``adjoint`` is the step together with its pullback,
``(params, carry, inputs, cotangent) -> (carry, d params, d carry, d inputs)``, as a
`StepVJP`. Both are jaxprs without nested calls. Every variable belongs to one class:

    CONST   depends on parameters alone: computed once per sequence.
    INPUT   depends on inputs, but not on the carry: computed for many steps at once,
            before the loop if it is hoisted.
    CARRY   depends on the carry: computed in the forward loop. In the backward pass all
            carries are known, so it is computed for many steps at once.
    COT     depends on the cotangent: computed in the backward loop if the carry's
            cotangent depends on it, otherwise for many steps at once after the loop.

An engine needs to know no more of a cell. So no cell has to define its derivative, and
a matmul of the inputs can be hoisted wherever it is written.
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

from ...core.convolution import can_sum_over_steps
from .costs import count_flops
from .dependency_graph import (
    CARRY,
    CONST,
    COT,
    EXPENSIVE,
    INPUT,
    DependencyGraph,
)
from .evaluate import (
    CUSTOM_VJP,
    Values,
    all_equations,
    deduplicate,
    eval_jaxpr,
    inline_calls,
    is_differentiable,
    nbytes,
    outputs_with_tangents,
    read_env,
    select_by_flag,
    split_by_sizes,
    vmap_options,
)
from .extrema import comparing_operands
from .min_cut import min_vertex_cut


@dataclasses.dataclass(frozen=True, eq=False)
class StepJaxpr:
    """A traced step, ``(params, carry, inputs) -> new carry``, on flat lists of arrays.

    It is hashed by identity.

    Attributes:
        closed: the closed jaxpr. It has no constants; they are its first params.
        params: the number of params.
        carry: the number of leaves of the carry.
        inputs: the number of inputs.
        differentiated: the positions, among params, leaves of the carry and inputs, of
            what has a tangent where the step is differentiated; None for all of
            floating point. See `for_derivative`.
    """

    closed: Any
    params: int
    carry: int
    inputs: int
    differentiated: frozenset[int] | None = None

    def __call__(self, params: Values, carry: Values, inputs: Values) -> list[Any]:
        return eval_jaxpr(
            self.closed.jaxpr, self.closed.consts, [*params, *carry, *inputs]
        )

    @property
    def avals(self) -> list[Any]:
        """The avals of params, carry and inputs."""
        return list(self.closed.in_avals)

    @property
    def carry_avals(self) -> list[Any]:
        """The avals of the carry."""
        return list(self.closed.out_avals)

    @functools.cached_property
    def program(self) -> DependencyGraph:
        """The step alone, as a dependency graph."""
        return DependencyGraph(
            inline_calls(self.closed),
            [CONST] * self.params + [CARRY] * self.carry + [INPUT] * self.inputs,
        )

    @functools.cached_property
    def adjoint(self) -> StepVJP:
        """The step and its pullback, as one dependency graph."""
        return StepVJP(self)

    def moved_by(self, wrt: Iterable[int]) -> frozenset[int]:
        """Return the leaves of the carry that have a nonzero tangent before some step.

        Args:
            wrt: positions among params, leaves of the first carry, and inputs: the
                operands that have a nonzero tangent.
        """
        return self._moved(frozenset(wrt))[0]

    def returned_with_tangent(self, wrt: Iterable[int]) -> frozenset[int]:
        """Return the leaves of the carry that have a nonzero tangent after some step.

        A leaf of the first carry that every step replaces is none of them.

        Args:
            wrt: as in `moved_by`.
        """
        return self._moved(frozenset(wrt))[1]

    def _moved(self, wrt: frozenset[int]) -> tuple[frozenset[int], frozenset[int]]:
        """Return the leaves with a tangent before some step, and after some step."""
        if wrt not in self._known_moved:
            first = range(self.params, self.params + self.carry)
            before = frozenset(i - self.params for i in wrt if i in first)
            # Iterate to the fixed point: a leaf with a tangent may give one to others.
            while not (after := self._given_tangents(wrt, before)) <= before:
                before |= after
            self._known_moved[wrt] = before, after
        return self._known_moved[wrt]

    def _given_tangents(
        self, wrt: frozenset[int], leaves: frozenset[int]
    ) -> frozenset[int]:
        """Return the leaves of the carry to which a step gives a tangent."""
        entering = {self.params + i for i in leaves}
        return outputs_with_tangents(self.closed, wrt | entering)

    @functools.cached_property
    def _known_moved(self) -> dict[frozenset[int], tuple[frozenset, frozenset]]:
        return {}

    @functools.cached_property
    def calls_custom_vjp(self) -> bool:
        """Whether the step calls a ``jax.custom_vjp`` function."""
        return any(
            eqn.primitive.name == CUSTOM_VJP for eqn in all_equations(self.closed.jaxpr)
        )

    def for_derivative(self, wrt: Iterable[int]) -> StepJaxpr:
        """Return the step for a derivative with respect to some operands.

        It is the step itself, but for one that calls ``jax.custom_vjp`` functions. As
        under ``jax.lax.scan``, the rule of a call is used up by a derivative if one of
        the call's operands has a tangent; other calls are left to the next derivative.

        Args:
            wrt: as in `moved_by`.
        """
        if not self.calls_custom_vjp:
            return self
        wrt = frozenset(wrt)
        moving = wrt | {self.params + i for i in self.moved_by(wrt)}
        if moving not in self._known_derivatives:
            self._known_derivatives[moving] = dataclasses.replace(
                self, differentiated=moving
            )
        return self._known_derivatives[moving]

    @functools.cached_property
    def _known_derivatives(self) -> dict[frozenset[int], StepJaxpr]:
        return {}

    @property
    def differentiable(self) -> list[bool]:
        """For each of params, leaves of the carry and inputs, whether it may move."""
        moving = self.differentiated
        return [
            is_differentiable(aval) and (moving is None or i in moving)
            for i, aval in enumerate(self.avals)
        ]

    @functools.cached_property
    def after_rules(self) -> StepJaxpr:
        """The step in whose place a derivative is taken a second time.

        JAX has then used the rules of ``jax.custom_vjp`` functions: what they compute
        forwards is ordinary code.
        """
        flags = self.differentiable

        def forwards(*flat):
            def of_floats(floats):
                full = _with_floats(flat, flags, floats)
                return self(*split_by_sizes(full, (self.params, self.carry)))

            return jax.vjp(of_floats, select_by_flag(flat, flags))[0]

        closed = inline_calls(jax.make_jaxpr(forwards)(*self.avals))
        jaxpr, _ = pe.dce_jaxpr(
            closed.jaxpr, [True] * len(closed.out_avals), instantiate=True
        )
        closed = core.ClosedJaxpr(jaxpr, closed.consts)
        return dataclasses.replace(self, closed=closed, differentiated=None)

    @functools.cached_property
    def reason_against_pullback(self) -> str | None:
        """Why the pullback cannot be traced, or None.

        An operation of the step may have no reverse mode, such as a ``while_loop``.
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
        """Return the step of all members of a mapped axis, which leads the batch axes.

        Args:
            in_axes: 0 or None for each of params, carry and inputs.
            axis_data: what a batching rule is told about the axis.
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
        return StepJaxpr(jax.make_jaxpr(call)(*avals), *groups, self.differentiated)


def trace_step(
    function: Callable[..., Values], params: Values, carry: Values, inputs: Values
) -> tuple[StepJaxpr, list[Any]]:
    """Trace a step on flat lists of arrays.

    Equations whose results are not used are left out, as under ``jax.jit``.

    Args:
        function: ``function(params, carry, inputs) -> carry``.
        params: the params.
        carry: the leaves of the carry.
        inputs: the inputs of one step.

    Returns:
        The traced step, and the list of params that it takes: first the arrays that
        ``function`` closes over, then ``params``.
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


class StepVJP(DependencyGraph):
    """A step and its pullback as one dependency graph.

    Attributes:
        step: the step.
        params, carry, inputs: the arguments of the step.
        cotangents: the cotangents of the new carry, which are arguments too; None for
            integer leaves.
        new: the new carry, which is a result.
        d_params, d_carry, d_inputs: the other results, the cotangents of the arguments;
            None for integer ones.
        dropped: the leaves of the carry that are not saved at every step where
            `matmul_values` are.
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
        """The variables of the forward pass that the pullback reads.

        They are those for all cotangents of arguments.
        """
        outs = [
            v for v in (*self.d_params, *self.d_carry, *self.d_inputs) if v is not None
        ]
        eqns = [
            eqn for eqn in self.needed(outs, ()) if self.kind[eqn.outvars[0]] == COT
        ]
        at_steps = [v for v in (*self.d_carry, *self.d_inputs) if v is not None]
        # No cotangent may enter the gradient of a weight: a jax.custom_vjp may say so.
        # Whatever the sum over time is made of follows from carries and inputs.
        weights = [v for v in self.d_params if v is not None]
        weights = [v for v in weights if CONST < self.kind_of(v) < COT]
        return deduplicate(
            [
                *self.reads(eqns, COT),
                *(v for v in at_steps if CONST < self.kind_of(v) < COT),
                *self.reads(self.needed(weights, ()), COT),
                *(v for v in weights if v not in self.maker),
            ]
        )

    @functools.cached_property
    def matmul_values(self) -> list[Any]:
        """The fewest bytes from which the residuals are computed without a matmul.

        The inputs and the saved carries are known besides.
        """
        return self._cut(self.dropped)

    @functools.cached_property
    def remade_operations(self) -> float:
        """The operations per step of the matmuls that are repeated under "carries"."""
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
        """Whether a weight gradient is a product of the carry and a cotangent.

        One matmul or convolution then sums it over time.
        """
        return any(
            (eqn.primitive.name == "dot_general" or can_sum_over_steps(eqn))
            and {self.kind_of(v) for v in eqn.invars} == {CARRY, COT}
            for eqn in self.eqns
        )

    def known_carries(self, dropped: Collection[int]) -> set[Any]:
        """Return the variables of the old and new carry that are saved at every step.

        These are all leaves but ``dropped``. A leaf of the new carry without an
        equation, which is a param or a leaf of the old carry, is not among them.
        """
        old = {v for i, v in enumerate(self.carry) if i not in dropped}
        new = {
            v
            for i, v in enumerate(self.new)
            if i not in dropped and not isinstance(v, core.Literal) and v in self.maker
        }
        return old | new

    def _cut(self, dropped: Collection[int]) -> list[Any]:
        """Find the fewest bytes from which the residuals follow without a matmul.

        They are the minimum vertex cut, by bytes, of the graph that leads from the
        results of EXPENSIVE equations, and from the ``dropped`` leaves of the carry, to
        the residuals, by the other equations. The inputs and the leaves of the carry
        that are not dropped are known.
        """
        free = {*self.inputs, *self.known_carries(dropped)}
        eqns = [
            eqn
            for eqn in self.needed(self.residuals, free)
            if self.kind[eqn.outvars[0]] > CONST
        ]
        expensive = [
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
        sources = [*expensive, *(self.carry[i] for i in dropped)]
        return min_vertex_cut(
            sources, [v for v in self.residuals if v not in free], edges, nbytes
        )

    def not_kept(self, with_values: bool) -> frozenset[int]:
        """Return the leaves of the carry that are not saved at every step.

        ``with_values`` says whether `matmul_values` are saved.
        """
        return self.dropped if with_values else self.unread

    @functools.cached_property
    def unread(self) -> frozenset[int]:
        """The leaves of the carry from which no residual is recomputed."""
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
        """Choose the leaves of the carry that are not saved at every step.

        They are replaced by at most half their bytes of other values. The pullback of a
        ring buffer's step, for example, reads the row that the step read, not the whole
        buffer. Leaves are tried greedily, the largest first.
        """
        dropped: frozenset[int] = frozenset()
        cut_bytes = sum(map(nbytes, self._cut(dropped)))
        for i in sorted(range(len(self.carry)), key=lambda i: -nbytes(self.carry[i])):
            bytes_without = sum(map(nbytes, self._cut(dropped | {i})))
            if (
                bytes_without < cut_bytes + nbytes(self.carry[i])
                and bytes_without - cut_bytes <= nbytes(self.carry[i]) / 2
            ):
                dropped, cut_bytes = dropped | {i}, bytes_without
        return dropped


def _with_floats(flat: Values, flags: Sequence[bool], floats: Iterable[Any]) -> Any:
    """Return the values, with others in the place of those that are flagged."""
    rest = iter(floats)
    return [next(rest) if flag else a for a, flag in zip(flat, flags, strict=True)]


def _trace_pullback(step: StepJaxpr) -> tuple[Any, list[list[bool]]]:
    """Trace a step and its pullback together.

    Returns the jaxpr, without nested calls, and a flag for each of the params, the
    leaves of the carry and the inputs: whether it is differentiable.
    """
    groups = (step.params, step.carry)
    flags = [is_differentiable(aval) for aval in step.avals]
    moving = step.differentiable
    differentiable = split_by_sizes(flags, groups)
    plain = inline_calls(step.closed)
    extrema = comparing_operands(plain.jaxpr.eqns)

    def run(*flat):
        if not extrema:
            return step(*split_by_sizes(flat, groups))
        return eval_jaxpr(plain.jaxpr, plain.consts, flat, extrema)

    def both(*flat):
        primals, cotangents = flat[: len(flags)], flat[len(flags) :]

        def of_floats(floats):
            new = run(*_with_floats(primals, moving, floats))
            return select_by_flag(new, differentiable[1]), new

        floats = select_by_flag(primals, moving)
        _, pull, new = jax.vjp(of_floats, floats, has_aux=True)
        pulled = iter(pull(list(cotangents))[0])
        # What does not move has no influence on the gradient of what does.
        return [
            *new,
            *(
                next(pulled) if moves else jnp.zeros_like(a)
                for a, flag, moves in zip(primals, flags, moving, strict=True)
                if flag
            ),
        ]

    cotangents = [
        aval
        for aval, flag in zip(step.carry_avals, differentiable[1], strict=True)
        if flag
    ]
    return inline_calls(jax.make_jaxpr(both)(*step.avals, *cotangents)), differentiable


def pretranspose_constants(
    program: DependencyGraph, eqns: Iterable[Any], constants: dict[Any, Any]
) -> dict[int, Callable]:
    """Replace matmuls by the transpose of a constant matrix, before a loop.

    The pullback of ``h @ U`` is ``dz @ U.T``. Inside a loop XLA:CPU would transpose U
    at every step: 4.5 us instead of 2.2 for U of (64, 256), 22 instead of 14 for
    (128, 512). So U is transposed once, here.

    Args:
        program: the program to which the equations belong.
        eqns: the equations of the loop.
        constants: the values of the variables of class CONST.

    Returns:
        Functions of an equation's operands, by the ``id`` of the equation, as
        `eval_equations` takes them.
    """
    replacements: dict[int, Callable] = {}
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
            transposed = read_env(constants, matrix).T

            def product(a, _, transposed=transposed, over=over, params=params):
                return jax.lax.dot_general_p.bind(
                    a, transposed, dimension_numbers=((over, (0,)), ((), ())), **params
                )

            replacements[id(eqn)] = product
    return replacements


def _spread(items: Sequence[Any], flags: Sequence[bool]) -> list[Any]:
    """Put the items where a flag is True, and None elsewhere."""
    rest = iter(items)
    return [next(rest) if flag else None for flag in flags]
