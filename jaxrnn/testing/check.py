"""`check_cell`, which tries the laws of cells and layers on one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax

from ..core.arrays import is_array
from ..core.cell import Cell, ContextCell
from ..core.layer import Layer
from ..core.layer import check_cell as check_is_cell
from ..core.types import Context, Inputs, Params
from ..core.validation import check_context, check_inputs, describe, describe_tree
from ..layers.stochastic import inference
from . import method_laws, sequence_laws
from .report import (
    BROKEN,
    HOLDS,
    SKIPPED,
    Broken,
    CellReport,
    LawError,
    LawResult,
    NotTried,
)
from .sequence_laws import Sequences
from .subject import Subject, draw

_METHODS: dict[str, Callable[[Subject], float | None]] = {
    "static": method_laws.static,
    "batch_axes": method_laws.batch_axes,
    "dtypes": method_laws.dtypes,
    "carry": method_laws.returns_its_carry,
    "pure": method_laws.pure,
    "project": method_laws.project_one_step,
    "output": method_laws.output_one_step,
    "rows": method_laws.rows,
    "affine": method_laws.affine_is_step,
}
_SEQUENCES: dict[str, Callable[[Sequences], float | None]] = {
    "finite": sequence_laws.finite,
    "streaming": sequence_laws.streaming,
    "masks": sequence_laws.masks,
    "padding": sequence_laws.padding,
    "resets": sequence_laws.resets,
    "reverse": sequence_laws.reverse,
    "vmap": sequence_laws.vmap,
    "gradients": sequence_laws.gradients,
    "chunks": sequence_laws.chunks,
}
# The names of the laws, in the order in which they are tried.
LAWS = (*_METHODS, *_SEQUENCES)
# Where one of these is broken, nothing can be said of the laws after it.
_FIRST = ("static", "batch_axes", "carry", "pure", "project", "rows")


def check_cell(
    cell: Cell | Layer,
    input_size: int | None = None,
    *,
    params: Params = None,
    xs: Inputs = None,
    context: Context = None,
    laws: Iterable[str] | None = None,
    seed: int = 0,
) -> CellReport:
    """Try the laws of cells and layers on one of one's own.

    They are what `jaxrnn.unroll` and everything above it rely on: single steps are an
    unroll, masked steps hold the carry and NaN in them reaches nothing, nothing crosses
    a reset, rows and time steps do not see each other where they must not, dtypes do
    not drift, gradients are finite differences, and joined steps are single steps. They
    are tried in float64, on five steps of three rows of random numbers. A layer that
    draws random numbers is tried as `jaxrnn.inference` of it.

    Args:
        cell: the cell or layer.
        input_size: D, the number of input features, as for ``init``.
        params: parameters to use instead of ``cell.init(key, input_size)``.
        xs: inputs ``(T, B, ...)`` to use instead of normal numbers ``(5, 3, D)``: for a
            cell that reads tokens, pictures or positive numbers.
        context: the context of a cell with ``takes_context``, ``(B, ...)`` per leaf.
        laws: the names of the laws to try (default: all); a report shows them.
        seed: the seed of all random numbers.

    Returns:
        A report of laws that hold, which prints as a table.

    Raises:
        LawError: if the cell breaks laws. The message says which, with figures and the
            likely repair; ``error.report`` is the whole report.
        TypeError, ValueError: for an unknown law, or inputs that cannot be drawn.

    Example:
        >>> import jaxrnn
        >>> from jaxrnn.testing import check_cell
        >>> report = check_cell(jaxrnn.MinGRU(4), 3, laws=("static", "project"))
        >>> [(result.name, result.status) for result in report.results]
        [('static', 'holds'), ('project', 'holds')]
    """
    chosen = LAWS if laws is None else tuple(laws)
    for law in chosen:
        if law not in LAWS:
            raise ValueError(f"there is no law {law!r}: there are {', '.join(LAWS)}")
    notes = []
    if not isinstance(cell, (Cell, Layer)):
        check_is_cell(cell)
    if isinstance(cell, ContextCell):
        raise TypeError(
            f"check_cell gives a cell its context itself: pass the cell that "
            f"ContextCell holds, check_cell({type(cell.cell).__name__}(...), "
            f"input_size, context=...), with arrays (B, ...), where B is 3 without xs="
        )
    if cell.requires_key:
        cell = inference(cell)
        notes.append("tried without its random numbers, as jaxrnn.inference makes it")
    _check_inputs(cell, input_size, xs, context)
    take = functools.partial(_draw, cell, input_size, params, xs, context, seed)
    with jax.enable_x64(True):
        subject: Any = _attempt(lambda: take(True))
    wide = isinstance(subject, Subject)
    if not wide:
        why = subject
        with jax.enable_x64(False):
            subject = _attempt(lambda: take(False))
        if subject != why:
            notes.append(f"tried in float32, because in float64 it fails: {why}")
    if isinstance(subject, Subject):
        with jax.enable_x64(wide):
            results = _results(subject, chosen)
    else:
        results = [LawResult("carry", "It takes a step.", BROKEN, None, str(subject))]
    report = CellReport(_shortened(repr(cell)), tuple(results), tuple(notes))
    if report.broken:
        raise LawError(report)
    return report


def _check_inputs(
    cell: Cell | Layer, input_size: Any, xs: Inputs, context: Context
) -> None:
    """Check that inputs and a context are given, or can be drawn."""
    name = type(cell).__name__
    if xs is None and cell.feature_ndim not in (1, None):
        raise ValueError(
            f"check_cell draws vectors, but {name}.feature_ndim is "
            f"{cell.feature_ndim}: pass xs=, inputs (T, B, ...) such as it reads"
        )
    if xs is None and (isinstance(input_size, bool) or not isinstance(input_size, int)):
        raise TypeError(
            f"check_cell needs input_size, the number of features that {name} reads, "
            f"or xs, but got {_named(input_size)}"
        )
    _, *batch = (5, 3) if xs is None else check_inputs(xs, cell.feature_ndim)
    if not batch:
        raise ValueError(
            f"check_cell: xs must have time and batch axes, (T, B, ...), but it is "
            f"{describe_tree(xs)}"
        )
    if cell.takes_context and context is None:
        rows = ", ".join(map(str, batch))
        raise ValueError(
            f"check_cell: {name} takes a context (takes_context is True): pass "
            f"context=, a pytree of arrays ({rows}, ...), an entry for each row of "
            f"{'the inputs that are drawn' if xs is None else 'xs'}"
        )
    check_context(cell, context, tuple(batch))


def _named(value: object) -> str:
    """Return what an error calls a value that is no size."""
    if not is_array(value):
        return repr(value)
    return f"{describe(value)}: pass xs=, or xs.shape[-1]"


def _draw(*arguments: Any) -> Subject:
    """Draw a subject; a wide one only if the cell computes in float64."""
    subject = draw(*arguments)
    if subject.wide:
        method_laws.keeps_dtype(subject, jax.numpy.float64)
    return subject


def _attempt(make: Callable[[], Subject]) -> Subject | str:
    """Return what ``make`` returns, or the first line of the error it raises."""
    try:
        return make()
    except Exception as error:
        return _first_line(error)


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, Broken):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}"


def _results(subject: Subject, chosen: tuple[str, ...]) -> list[LawResult]:
    """Try the laws one after another."""
    sequences, results, stopped = Sequences(subject), [], ""
    for name in LAWS:
        if name not in chosen:
            continue
        law: Any = _METHODS.get(name) or _SEQUENCES[name]
        meaning = (law.__doc__ or "").splitlines()[0]
        if stopped:
            why = f"{stopped} is broken, and this relies on it"
            results.append(LawResult(name, meaning, SKIPPED, words=why))
            continue
        result = _try(name, meaning, law, subject if name in _METHODS else sequences)
        if result.status == BROKEN and name in _FIRST:
            stopped = name
        results.append(result)
    return results


def _try(name: str, meaning: str, law: Callable[[Any], Any], on: Any) -> LawResult:
    """Try one law. An error that the cell raises breaks it, too."""
    try:
        return LawResult(name, meaning, HOLDS, law(on))
    except NotTried as why:
        return LawResult(name, meaning, SKIPPED, words=str(why))
    except Broken as broken:
        return LawResult(
            name, meaning, BROKEN, broken.figure, broken.words, broken.repair
        )
    except Exception as error:
        return LawResult(name, meaning, BROKEN, None, _first_line(error))
