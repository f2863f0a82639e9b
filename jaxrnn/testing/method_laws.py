"""Laws of the methods of a cell: ``project``, ``step``, ``output``, ``initial_carry``.

Each law takes a `Subject` and returns the largest difference that it found, or raises
`Broken` or `NotTried`.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core.cell import LinearCell, bind_context, is_linear
from ..core.layer import Layer, check_cell
from ..core.row_axes import check_rows
from ..core.types import Carry, Context, Inputs, Params, PyTree
from ..core.unroll_spec import UnrollSpec
from ..unrolling import check_step, unroll_unchecked
from .report import Broken, NotTried
from .subject import Subject, at, cast, difference, nudged, stacked, streamed

FEATURES_LAST = (
    "write methods for any leading axes, features last: x @ kernel, axis=-1 in sums, "
    "means and norms, and never axis=0"
)


def static(subject: Subject) -> None:
    """A cell is static configuration that compares by value."""
    cell = subject.cell
    try:
        check_cell(cell)
    except TypeError as error:
        raise Broken(str(error), "make it a frozen dataclass of options") from None
    again = dataclasses.replace(cell)
    if again != cell or hash(again) != hash(cell):
        raise Broken(
            "a cell that is made again with the same fields does not equal the first, "
            "so that every unroll compiles anew",
            "hold values that compare by value: jaxrnn.initializers instead of the "
            "functions that jax.nn.initializers return, named functions instead of "
            "lambdas, and no __eq__ of your own",
        )


def batch_axes(subject: Subject) -> None:
    """The initial carry has an entry for each row of the batch."""
    cell, batch = subject.cell, tuple(subject.mask.shape[1:])
    carry, wider = (
        jax.eval_shape(lambda p, b=b: cell.initial_carry(p, b), subject.params)
        for b in (batch, tuple(n + 1 for n in batch))
    )
    try:
        check_rows(type(cell).__name__, carry, wider, batch, "a batch")
    except ValueError as error:
        raise Broken(
            str(error), "jnp.zeros((*batch_shape, hidden_size), dtype)"
        ) from None


def returns_its_carry(subject: Subject) -> None:
    """A step returns a carry with the structure and shapes of the one before."""
    if subject.is_layer:
        raise NotTried("a layer's carry is compared in other laws")
    cell, params = subject.bound
    carry = jax.eval_shape(
        lambda p: subject.cell.initial_carry(p, subject.mask.shape[1:]), subject.params
    )
    check_step(cell, params, carry, subject.xs)


def dtypes(subject: Subject) -> None:
    """The carry keeps its dtypes, under float32, bfloat16 and float64 parameters."""
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            keeps_dtype(subject, dtype)


def keeps_dtype(subject: Subject, dtype: DTypeLike | None) -> None:
    """Raise `Broken` if the carry changes its dtype under parameters of ``dtype``."""
    arrays = subject.params, subject.xs, subject.context
    before, after = jax.eval_shape(
        lambda p, x, c: _two_carries(subject, p, x, c),
        *(_shapes(tree, dtype) for tree in arrays),
    )
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        if old.dtype != new.dtype:
            part = jax.tree_util.keystr(path)
            raise Broken(
                f"under {jnp.dtype(dtype).name} parameters the carry{part} begins as "
                f"{old.dtype} and is {new.dtype} after a step",
                f"return it in the dtype it came in, .astype(carry{part}.dtype), and "
                f"let initial_carry(params, batch_shape, dtype) follow dtype, or that "
                f"of the parameters where dtype is None",
            )


def _shapes(tree: PyTree, dtype: DTypeLike | None) -> Any:
    """Return shapes, with floating-point leaves in another dtype."""

    def leaf(array: Any) -> Any:
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            wide = jnp.complex128 if dtype == jnp.float64 else jnp.complex64
            return jax.ShapeDtypeStruct(array.shape, wide)
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(array.shape, dtype if floating else array.dtype)

    return jax.tree.map(leaf, tree)


def _two_carries(subject: Subject, params: Params, xs: Inputs, context: Context) -> Any:
    """Return the initial carry, and that after a step, unchecked."""
    cell, batch = subject.cell, tuple(subject.mask.shape[1:])
    before = cell.initial_carry(params, batch)
    if isinstance(cell, Layer):
        spec = UnrollSpec(engine=None, context=context)
        part = jax.tree.map(lambda leaf: leaf[:2], xs)
        return before, unroll_unchecked(cell, params, before, part, spec)[0]
    cell, params = bind_context(cell, params, context)
    return before, cell.step(params, before, cell.project(params, at(xs, 0)))


def _methods(cell: Any, params: Params, carry: Carry, x: Inputs) -> dict[str, Any]:
    """Return what the three methods give for one step."""
    z = cell.project(params, x)
    new = cell.step(params, carry, z)
    return {"project": z, "step": new, "output": cell.output(params, new, x)}


def pure(subject: Subject) -> float:
    """A method depends on its arguments alone."""
    if subject.is_layer:
        raise NotTried("the methods of a layer are those of its cells")
    cell, params = subject.bound
    x, carry = at(subject.xs, 0), subject.carry
    first = _methods(cell, params, carry, x)
    other = cast(nudged(carry, ...), jnp.float64 if subject.wide else jnp.float32)
    _methods(cell, params, other, nudged(at(subject.xs, 1), ...))
    again = {
        "output": cell.output(params, first["step"], x),
        "step": cell.step(params, carry, first["project"]),
        "project": cell.project(params, x),
    }
    for name, value in again.items():
        if found := difference(value, first[name]):
            raise Broken(
                f"{name} gives another result (by {found:.1e}) for equal arguments "
                f"after the methods were called with others: it reads something that a "
                f"call has left behind",
                "let output read its carry and x only, and step its carry and z: what "
                "either needs from the step belongs in the carry, as a part of a "
                "NamedTuple",
                found,
            )
    compiled = jax.jit(lambda p, s, x: _methods(cell, p, s, x))(params, carry, x)
    return _within(subject, "jax.jit of the methods", compiled, first, FEATURES_LAST)


def _within(subject: Subject, what: str, a: Any, b: Any, repair: str) -> float:
    """Return the difference, or raise `Broken` if it is more than rounding."""
    found = difference(a, b)
    if not found <= subject.tolerance:
        raise Broken(f"{what} differs by {found:.1e}", repair, found)
    return found


def rows(subject: Subject) -> float:
    """No row of a batch sees another."""
    if subject.mask.shape[1] < 2:
        raise NotTried("the batch has one row")
    if subject.is_layer:
        return _rows_of_layer(subject)
    cell, params = subject.bound
    call = jax.jit(lambda p, s, x: _methods(cell, p, s, x))
    carry, x = subject.carry, at(subject.xs, 0)
    first, worst = call(params, carry, x), 0.0
    for changed in ((nudged(carry, 0), x), (carry, nudged(x, 0))):
        other = call(params, *changed)
        for name in ("project", "step", "output"):
            found = _of_other_rows(other[name], first[name])
            if not found <= subject.tolerance:
                raise Broken(
                    f"{name} mixes the rows of a batch: what row 0 holds changes the "
                    f"result of other rows by {found:.1e}",
                    FEATURES_LAST,
                    found,
                )
            worst = max(worst, found)
    return worst


def _of_other_rows(a: Any, b: Any) -> float:
    def others(tree: PyTree) -> Any:
        return jax.tree.map(lambda leaf: leaf[1:] if jnp.ndim(leaf) else leaf, tree)

    return difference(others(a), others(b))


def _rows_of_layer(subject: Subject) -> float:
    spec = UnrollSpec(engine=None, context=subject.context)
    call = jax.jit(lambda p, s, xs: unroll_unchecked(subject.cell, p, s, xs, spec)[:2])
    first = call(subject.params, subject.carry, subject.xs)
    index = (slice(None), 0)
    last, ys = call(subject.params, subject.carry, nudged(subject.xs, index))
    found = max(
        _of_other_rows(last, first[0]),
        _of_other_rows(
            jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), ys),
            jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), first[1]),
        ),
    )
    if not found <= subject.tolerance:
        raise Broken(
            f"the inputs of row 0 change the results of other rows by {found:.1e}",
            FEATURES_LAST,
            found,
        )
    return found


def project_one_step(subject: Subject) -> float:
    """``project`` sees one time step at a time."""
    if subject.is_layer:
        raise NotTried("a layer has no project")
    cell, params = subject.bound
    call = jax.jit(cell.project)
    repair = (
        "project is given all of time at once, (T, *B, ...): let it mix no axis but "
        "the features. What needs an earlier input belongs in the carry, which step "
        "keeps; a convolution over time is a layer before the cell"
    )
    together = call(params, subject.xs)
    found = _other_steps(
        "project",
        subject,
        together,
        lambda t: call(params, nudged(subject.xs, t)),
        repair,
    )
    alone = stacked([call(params, at(subject.xs, t)) for t in range(len(subject.mask))])
    what = "project of all of time, and of each step by itself,"
    return max(found, _within(subject, what, together, alone, repair))


def output_one_step(subject: Subject) -> float:
    """``output`` at a step depends on the carry and the input of this step only."""
    if subject.is_layer:
        raise NotTried("a layer's output is compared in other laws")
    carries = streamed(subject)[2]
    cell, params = subject.bound
    call = jax.jit(cell.output)
    repair = (
        "output is given the carries and inputs of all of time at once, (T, *B, ...): "
        "let it mix no axis but the features"
    )
    found = _other_steps(
        "output",
        subject,
        call(params, carries, subject.xs),
        lambda t: call(params, nudged(carries, t), nudged(subject.xs, t)),
        repair,
    )
    alone = stacked(
        [
            call(params, at(carries, t), at(subject.xs, t))
            for t in range(len(subject.mask))
        ]
    )
    what = "output of all of time, and of each step by itself,"
    together = call(params, carries, subject.xs)
    return max(found, _within(subject, what, together, alone, repair))


def _other_steps(
    name: str, subject: Subject, first: Carry, changed_at: Any, repair: str
) -> float:
    """Change what a method is given at one step, and look at all the others."""
    steps, worst = range(len(subject.mask)), 0.0
    others = [changed_at(t) for t in steps]
    # The nearest steps first: they say best what is wrong.
    for t, s in sorted(
        itertools.permutations(steps, 2), key=lambda p: abs(p[0] - p[1])
    ):
        found = difference(at(others[t], s), at(first, s))
        if not found <= subject.tolerance:
            when = "an earlier" if t < s else "a later"
            raise Broken(
                f"{name} looks at {when} step: its result at step {s} changes by "
                f"{found:.1e} when step {t} alone is given something else",
                repair,
                found,
            )
        worst = max(worst, found)
    return worst


def affine_is_step(subject: Subject) -> float:
    """The step of a linear cell is ``a * carry + b`` of its ``affine``."""
    cell = subject.cell
    if not isinstance(cell, LinearCell) or is_linear(cell):
        raise NotTried("it defines no step beside an affine of its own")
    bound, params = subject.bound
    z = bound.project(params, at(subject.xs, 0))
    own = bound.step(params, subject.carry, z)
    extra = (subject.context,) if cell.takes_context else ()
    joined = LinearCell.step(cell, subject.params, subject.carry, z, *extra)
    return _within(
        subject,
        "step, and a * carry + b of affine,",
        own,
        joined,
        "define affine alone, and leave step to jaxrnn.LinearCell; or make it a "
        "jaxrnn.Cell, if the step is not linear in the carry",
    )
