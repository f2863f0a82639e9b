"""What the laws are tried on: a cell with parameters, inputs and a carry."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..core.cell import Cell, bind_context
from ..core.flags import select
from ..core.layer import Layer
from ..core.types import Carry, Context, Inputs, Params, PyTree
from ..core.validation import check_inputs
from ..unrolling import check_step
from .report import Broken


@dataclasses.dataclass(frozen=True)
class Subject:
    """A cell or layer with everything that an unroll takes, drawn at random.

    Attributes:
        cell: the cell or layer.
        params: its parameters; those that ``init`` makes constant are moved a little.
        xs: inputs ``(T, B, ...)``.
        carry: a carry ``(B, ...)`` that the cell reaches after two steps.
        context: for a cell with ``takes_context``, or None.
        mask: ``(T, B)`` bool with holes, as many valid steps in each row.
        resets: ``(T, B)`` bool.
        wide: whether everything is float64, and not float32.
    """

    cell: Any
    params: Params
    xs: Any
    carry: Carry
    context: Any
    mask: Any
    resets: Any
    wide: bool

    @property
    def is_layer(self) -> bool:
        """Return whether the laws of a layer are tried, and not those of a cell."""
        return isinstance(self.cell, Layer)

    @property
    def causal(self) -> bool:
        """Return whether it can take one step at a time."""
        return self.cell.causal if isinstance(self.cell, Layer) else True

    @property
    def tolerance(self) -> float:
        """Return the largest relative difference that is rounding."""
        return 1e-9 if self.wide else 2e-4

    @property
    def given(self) -> dict[str, Any]:
        """Return the keyword arguments that every call needs."""
        return {"context": self.context} if self.cell.takes_context else {}

    @property
    def bound(self) -> tuple[Any, Params]:
        """Return the cell without its context, and parameters that hold it."""
        return bind_context(self.cell, self.params, self.context)

    def initial_carry(self) -> Carry:
        """Return the carry before a sequence."""
        return self.cell.initial_carry(self.params, self.mask.shape[1:])


def draw(
    cell: Cell | Layer,
    input_size: Any,
    params: Params,
    xs: Inputs,
    context: Context,
    seed: int,
    wide: bool,
) -> Subject:
    """Draw a subject in float64 (``wide``) or float32; see `check_cell`."""
    dtype = jnp.float64 if wide else jnp.float32
    keys = jax.random.split(jax.random.key(seed), 4)
    if params is None:
        params = moved(cell.init(keys[0], input_size), keys[1])
    params, xs, context = (cast(tree, dtype) for tree in (params, xs, context))
    if xs is None:
        xs = jax.random.normal(keys[2], (5, 3, input_size), dtype)
    steps, *batch = check_inputs(xs, cell.feature_ndim)
    order = np.argsort(np.random.default_rng(seed).random((steps, *batch)), axis=0)
    random = np.random.default_rng(seed + 1).random((steps, *batch))
    subject = Subject(
        cell=cell,
        params=params,
        xs=xs,
        carry=cell.initial_carry(params, tuple(batch)),
        context=context,
        mask=jnp.asarray(order < max(steps - 2, 1)),
        resets=jnp.asarray(random < 0.3),
        wide=wide,
    )
    return dataclasses.replace(subject, carry=_reached(subject))


def _reached(subject: Subject) -> Carry:
    """Return a carry of two steps: random numbers need not be one that exists."""
    carry = subject.carry
    if not subject.causal:
        return carry
    try:
        for t in range(min(2, subject.mask.shape[0])):
            carry, _ = subject.cell(
                subject.params, carry, at(subject.xs, -1 - t), **subject.given
            )
    except (TypeError, ValueError, LookupError, AttributeError):
        if not subject.is_layer:  # it says in words what fails
            check_step(*subject.bound, subject.carry, subject.xs)
        raise
    return carry


def moved(params: Params, key: Any) -> Params:
    """Move parameters that are all equal, such as zero biases, a little apart."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))

    def move(leaf: Any, key: Any) -> Any:
        leaf = jnp.asarray(leaf)
        constant = leaf.size and bool((leaf == leaf.reshape(-1)[0]).all())
        if not (constant and jnp.issubdtype(leaf.dtype, jnp.floating)):
            return leaf
        return leaf + jnp.asarray(0.1, leaf.dtype) * jax.random.normal(
            key, leaf.shape, leaf.dtype
        )

    return jax.tree.unflatten(structure, map(move, leaves, keys))


def cast(tree: PyTree, dtype: DTypeLike | None) -> Any:
    """Cast floating-point leaves to ``dtype``, and complex ones to its complex twin."""
    twin = jnp.complex128 if dtype == jnp.float64 else jnp.complex64

    def leaf(value: Any) -> Any:
        value = jnp.asarray(value)
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            return value.astype(twin)
        return (
            value.astype(dtype)
            if jnp.issubdtype(value.dtype, jnp.floating)
            else (value)
        )

    return jax.tree.map(leaf, tree)


def at(tree: PyTree, t: int) -> Any:
    """Return the entry ``t`` of the first axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[t], tree)


def stacked(trees: list[Any]) -> Any:
    """Stack equal pytrees along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def is_inexact(leaf: object) -> bool:
    """Return whether a leaf has derivatives."""
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact)


def nudged(tree: PyTree, where: Any) -> Any:
    """Change the floating-point leaves at an index of their first axes."""

    def leaf(value: Any) -> Any:
        if not is_inexact(value):
            return value
        return value.at[where].set(value[where] * 0.5 + jnp.asarray(0.3, value.dtype))

    return jax.tree.map(leaf, tree)


def difference(a: PyTree, b: PyTree) -> float:
    """Return the largest difference, relative to the largest number (at least 1).

    NaN in the same places are equal. Trees that differ in structure or shapes raise
    `Broken`.
    """
    structure: Any = jax.tree.structure(a)
    if structure != jax.tree.structure(b):
        raise Broken("the two results have different structures", "return the same")
    worst = 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if np.shape(x) != np.shape(y):
            raise Broken(
                f"one result has shape {np.shape(x)} and the other {np.shape(y)}",
                "write methods for any leading axes: features last, x @ kernel",
            )
        if not is_number(x):
            continue
        p, q = _host(x), _host(y)
        with np.errstate(all="ignore"):
            apart = np.where((p == q) | (np.isnan(p) & np.isnan(q)), 0, abs(p - q))
        scale = max(1.0, float(np.max(abs(q), initial=0, where=np.isfinite(q))))
        largest = float(np.max(np.nan_to_num(apart, nan=np.inf), initial=0))
        worst = max(worst, largest / scale)
    return worst


def is_number(leaf: object) -> bool:
    """Return whether a leaf holds numbers or flags, rather than keys or float0."""
    dtype = leaf.dtype if isinstance(leaf, (jax.Array, np.ndarray)) else np.dtype(float)
    return dtype != jax.dtypes.float0 and not jnp.issubdtype(dtype, jax.dtypes.extended)


def _host(leaf: object) -> Any:
    array = jnp.asarray(leaf)
    wide = np.complex128 if jnp.iscomplexobj(array) else np.float64
    return np.asarray(array).astype(wide)


def streamed(subject: Subject, mask: Any = None, resets: Any = None) -> Any:
    """Return the last carry, outputs and carries of a Python loop of single steps.

    A masked step holds the carry and gives zero; a reset brings the initial carry.
    """
    step = jax.jit(lambda p, s, x, c: subject.cell(p, s, x, **c))
    carry, ys, carries = subject.carry, [], []
    for t in range(subject.mask.shape[0]):
        if resets is not None:
            carry = select(resets[t], subject.initial_carry(), carry)
        new, y = step(subject.params, carry, at(subject.xs, t), subject.given)
        if mask is not None:
            new = select(mask[t], new, carry)
            y = select(mask[t], y, jax.tree.map(jnp.zeros_like, y))
        carry = new
        ys.append(y)
        carries.append(carry)
    return carry, stacked(ys), stacked(carries)
