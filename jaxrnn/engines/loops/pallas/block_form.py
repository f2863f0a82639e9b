"""Loop bodies as arithmetic on blocks of H units, which kernels are generated from.

A body ``(constants, carry, inputs of a step) -> (carry, outputs)`` is supported if each
of its values has one of the kinds

    UNITS     ``(*B, k H)``: k blocks of H units; ``(1, .., k H)`` if all examples share
              the values
    ROWS      ``(*B,)`` or ``(*B, 1)``: one number per example, such as a mask
    SCALAR    one number, whatever shape it was broadcast to
    MATRIX    ``(k H, m H)``: a constant by which blocks are multiplied

and each of its equations is elementwise arithmetic, a product of UNITS and a MATRIX, or
a split or concatenation of whole blocks. A matrix then consists of k m blocks
``(H, H)``, each of which is padded to the tile of a chip's matrix unit, and no slice
begins inside a tile.

`BlockProgram` finds the kind of every value, or the equation that is not supported.
`block_eval.evaluate` runs the body on blocks in the layout of any kernel: there, all
values are lists of arrays of one shape, to which numbers per example are broadcast.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import JaxprEqn, Var

from ....core.foreign import precision_word
from ...jaxpr.evaluate import CALLS, eval_jaxpr, read_env

UNITS, ROWS, SCALAR, MATRIX = "units", "rows", "scalar", "matrix"
SHAPE_ONLY = {
    "jaxrnn_fence",
    "jaxrnn_gradient_scale",
    "optimization_barrier",
    "copy",
    "copy_p",
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
}
ELEMENTWISE = {
    "add",
    "add_any",
    "sub",
    "mul",
    "div",
    "neg",
    "max",
    "min",
    "abs",
    "sign",
    "select_n",
    "integer_pow",
    "square",
}
ELEMENTWISE |= {
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "logistic",
    "sqrt",
    "rsqrt",
    "convert_element_type",
}
ELEMENTWISE |= {
    "one_minus_square",
    "and",
    "or",
    "not",
    "xor",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "is_finite",
    "stop_gradient",
    "sin",
    "cos",
}
CUSTOM = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


class KernelUnsupportedError(ValueError):
    """Raised when a loop body cannot be expressed as a kernel."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoopBody:
    """A traced loop body, ``(consts, carry, given) -> (carry, outs)``, on flat lists.

    It is hashed by identity.

    Attributes:
        closed: the closed jaxpr.
        consts: the number of constants of the loop.
        carry: the number of leaves of the carry.
        given: the number of inputs of a step.
    """

    closed: Any
    consts: int
    carry: int
    given: int

    @functools.cached_property
    def flat(self) -> Any:
        """The same jaxpr without nested calls, and without custom derivatives."""
        return jax.make_jaxpr(
            lambda *args: _opened(self.closed.jaxpr, self.closed.consts, args)
        )(*self.closed.in_avals)

    @functools.cached_property
    def form(self) -> BlockProgram:
        """The body as a block program."""
        return BlockProgram(self)

    def __call__(
        self, consts: Sequence[Any], carry: Sequence[Any], given: Sequence[Any]
    ) -> tuple[list, list]:
        out = eval_jaxpr(
            self.closed.jaxpr, self.closed.consts, [*consts, *carry, *given]
        )
        return out[: self.carry], out[self.carry :]


@dataclasses.dataclass(frozen=True)
class OperandKind:
    """The kind of a value, and its number of blocks."""

    name: str
    blocks: int = 1


class BlockProgram:
    """The kinds of all values of a loop body.

    Attributes:
        units: H.
        batch: the batch axes, ``*B``.
        rows: the number of examples, the product of the batch axes.
        consts, carry, given, new, outs: the variables of the body's arguments and
            results.
        matrices: the constant matrices, each with the axis that is contracted.
        vectors: the constants that are not matrices.
        products: the equations that multiply blocks by a matrix.
        kinds: the kind of each variable.

    Raises:
        KernelUnsupportedError: for the first value or equation that is not supported.
    """

    def __init__(self, body: LoopBody):
        jaxpr = body.flat.jaxpr
        self.jaxpr = jaxpr
        self.literals = dict(zip(jaxpr.constvars, body.flat.consts, strict=True))
        n = body.consts, body.consts + body.carry
        self.consts, self.carry, self.given = (
            jaxpr.invars[: n[0]],
            jaxpr.invars[n[0] : n[1]],
            jaxpr.invars[n[1] :],
        )
        self.new, self.outs = jaxpr.outvars[: body.carry], jaxpr.outvars[body.carry :]
        shapes = {v.aval.shape for v in self.carry}
        if len(shapes) != 1 or not all(v.aval.ndim for v in self.carry):
            raise KernelUnsupportedError(
                f"the parts of its carry have the shapes {sorted(map(str, shapes))}; a "
                f"kernel wants (*B, H) of each"
            )
        *batch, self.units = shapes.pop()
        self.batch = tuple(batch)
        self.rows = functools.reduce(lambda a, b: a * b, self.batch, 1)
        self.products = [
            eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"
        ]
        self.matrices = list(
            dict.fromkeys(matrix_of(eqn, self.consts) for eqn in self.products)
        )
        self.kinds: dict[Any, OperandKind] = {
            v: OperandKind(MATRIX) for v, _ in self.matrices
        }
        self.vectors = [v for v in self.consts if v not in self.kinds]
        for v in [*self.consts, *self.carry, *self.given, *self.literals]:
            if v not in self.kinds:
                self.kinds[v] = self.kind_of_shape(v.aval.shape, "an input of its step")
        for eqn in jaxpr.eqns:
            self._check(eqn)
        for atom in [*self.new, *self.outs]:
            self.shown(atom)

    def kind_of_shape(self, shape: tuple[int, ...], what: str) -> OperandKind:
        """Return the kind of a value of some shape; errors call the value ``what``."""
        *lead, last = shape or (1,)
        over = self.batch[max(len(self.batch) - len(lead), 0) :]
        fits = len(lead) == len(over) and all(
            d in (1, b) for d, b in zip(lead, over, strict=True)
        )
        # A value with fewer axes is shared along the leading ones, which were mapped.
        whole = len(shape) == len(self.batch) + 1
        if (
            fits
            and last % self.units == 0
            and (whole or shape not in (self.batch, (*self.batch, 1)))
        ):
            return OperandKind(UNITS, last // self.units)
        if shape == self.batch or shape == (*self.batch, 1):
            return OperandKind(ROWS)
        if all(d == 1 for d in shape):
            return OperandKind(SCALAR)
        raise KernelUnsupportedError(
            f"{what} has the shape {shape}, neither (*B, k H) nor (*B,), with *B = "
            f"{self.batch} and H = {self.units}"
        )

    def kind(self, atom: Any) -> OperandKind:
        """Return the kind of a variable or literal."""
        return (
            OperandKind(SCALAR) if isinstance(atom, core.Literal) else self.kinds[atom]
        )

    def blocks(self, var: Var) -> int:
        """Return the number of blocks of a variable."""
        return self.kind(var).blocks

    def shown(self, atom: Any) -> OperandKind:
        """Return the kind of a result of the loop, by its shape.

        A result that is one number, broadcast, thus has the kind of its shape.
        """
        return self.kind_of_shape(atom.aval.shape, "a result of its step")

    def _check_product(self, eqn: Any, kind: OperandKind) -> None:
        shape = eqn.invars[1].aval.shape
        if kind.name != UNITS or any(d % self.units for d in shape):
            raise KernelUnsupportedError(
                f"it multiplies {eqn.invars[0].aval.shape} by {shape}, which are not "
                f"blocks of H = {self.units}"
            )

    def _check_same(self, eqn: Any, kind: OperandKind, out: OperandKind) -> None:
        """Check that a change of shape keeps each number at its example and unit."""
        name, new = eqn.primitive.name, eqn.outvars[0].aval.shape
        old, n = eqn.invars[0].aval.shape, len(self.batch)
        moved = name == "broadcast_in_dim" and tuple(
            eqn.params["broadcast_dimensions"]
        ) != tuple(range(len(new) - len(old), len(new)))
        if kind.name == UNITS and (kind != out or moved):
            raise KernelUnsupportedError(f"its step has a {name} from {old} to {new}")
        if kind.name == ROWS and new[:n] != self.batch:
            raise KernelUnsupportedError(
                f"its step moves a number an example to another axis ({name} to {new})"
            )
        if (
            kind.name == ROWS
            and name == "broadcast_in_dim"
            and tuple(eqn.params["broadcast_dimensions"])[:n] != tuple(range(n))
        ):
            raise KernelUnsupportedError(
                "its step spreads a number an example over another axis than the "
                "batch's"
            )

    def _check(self, eqn: Any) -> None:
        name = eqn.primitive.name
        kinds = [self.kind(v) for v in eqn.invars]
        uniform = all(k.name == SCALAR for k in kinds)
        for v in eqn.outvars:
            self.kinds[v] = (
                OperandKind(SCALAR)
                if uniform
                else self.kind_of_shape(v.aval.shape, f"the result of {name}")
            )
        out = self.kinds[eqn.outvars[0]]
        if uniform and name in SHAPE_ONLY | ELEMENTWISE:
            return
        if name == "dot_general":
            self._check_product(eqn, kinds[0])
        elif any(k.name == MATRIX for k in kinds):
            raise KernelUnsupportedError(
                f"its step does more with a matrix than multiply blocks by it ({name})"
            )
        elif name in SHAPE_ONLY:
            self._check_same(eqn, kinds[0], out)
        elif name in ("split", "slice", "concatenate", "pad"):
            if any(
                k.name != UNITS
                for k, v in zip(kinds, eqn.invars, strict=True)
                if v.aval.shape
            ):
                raise KernelUnsupportedError(
                    f"its step has a {name} of what is not blocks of H = {self.units} "
                    f"units"
                )
            _check_cut(eqn, self.units)
        elif name not in ELEMENTWISE:
            raise KernelUnsupportedError(
                f"its step has a {name}, for which kernels have no code"
            )


def _opened(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr with all calls inlined, those with custom derivatives, too."""
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        values = [read_env(env, v) for v in eqn.invars]
        inner = (
            eqn.params.get("jaxpr")
            if eqn.primitive.name in CALLS
            else eqn.params.get(CUSTOM.get(eqn.primitive.name, ""))
        )
        if inner is None:
            made = eqn.primitive.bind(*values, **eqn.params)
            made = made if eqn.primitive.multiple_results else [made]
        elif isinstance(inner, core.ClosedJaxpr):
            made = _opened(inner.jaxpr, inner.consts, values)
        else:
            made = _opened(inner, (), values)
        env.update(zip(eqn.outvars, made, strict=True))
    return [read_env(env, v) for v in jaxpr.outvars]


def matrix_of(eqn: Any, consts: Sequence[Any]) -> tuple[Any, int]:
    """Return the constant matrix of a product, and the axis that is contracted."""
    a, matrix = eqn.invars
    (a_over, over), batch = eqn.params["dimension_numbers"]
    if batch != ((), ()):
        raise KernelUnsupportedError(
            "each example has a matrix of its own (mapped parameters, or heads)"
        )
    if (
        matrix not in consts
        or len(matrix.aval.shape) != 2
        or tuple(a_over) != (len(a.aval.shape) - 1,)
    ):
        raise KernelUnsupportedError(
            "it has a product that is not h @ kernel with a constant kernel (k H, m H)"
        )
    return matrix, over[0]


def _check_cut(eqn: Any, units: int) -> None:
    """Check that a split or concatenation is one of whole blocks of the last axis."""
    name, params, last = (
        eqn.primitive.name,
        eqn.params,
        len(eqn.invars[0].aval.shape) - 1,
    )
    whole = [v.aval.shape[-1] % units == 0 for v in eqn.outvars if v.aval.shape]
    if name == "split":
        fits = params["axis"] == last
    elif name == "concatenate":
        fits = params["dimension"] == last and all(
            v.aval.shape[-1] % units == 0 for v in eqn.invars
        )
    elif name == "pad":
        *others, (low, high, inner) = params["padding_config"]
        fits = (
            all(tuple(o) == (0, 0, 0) for o in others)
            and low % units == high % units == inner == 0
            and low >= 0 <= high
        )
    else:
        starts, limits = params["start_indices"], params["limit_indices"]
        strides = params["strides"] or (1,) * (last + 1)
        shape = eqn.invars[0].aval.shape
        fits = all(
            s == 0 and e == d
            for s, e, d in zip(starts[:-1], limits[:-1], shape[:-1], strict=True)
        )
        fits = fits and set(strides) == {1} and starts[-1] % units == 0
    if not (fits and all(whole)):
        raise KernelUnsupportedError(
            f"its step has a {name} that cuts through a block of H = {units} units"
        )


def precision_of(eqn: JaxprEqn) -> str:
    """Return the precision of a product: "default", "high" or "highest" (float32)."""
    asked = eqn.params["precision"]
    asked = asked if isinstance(asked, tuple) else (asked,)
    words = {precision_word(p) for p in asked}
    if words <= {"none", "default", "bf16_bf16_f32", "tf32_tf32_f32"}:
        return "default"
    if words <= {"none", "default", "high", "bf16_bf16_f32_x3", "tf32_tf32_f32_x3"}:
        return "high"
    if words <= {
        "none",
        "default",
        "high",
        "highest",
        "f32_f32_f32",
        "bf16_bf16_f32_x6",
        "bf16_bf16_f32_x9",
        "any_f32",
        "f64_f64_f64",
    }:
        return "highest"
    raise KernelUnsupportedError(
        f"its product has the precision {asked[0]}, and kernels have 'default', 'high' "
        f"and 'highest'"
    )
