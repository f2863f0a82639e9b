"""Cells by name and variant: ``NAME``, ``NAME:VARIANT``, or ``module:Name(...)``."""

from __future__ import annotations

import difflib

from ...core.cell import Cell
from ...core.import_path import module_exists
from ...core.layer import Layer
from ...core.validation import describe
from ...training import InputError
from .named_cells import NAMED
from .own_cell import (
    CellLike,
    checked,
    make_own_cell,
    parse_own_cell,
    why_no_own_cell,
)

KNOWN = {name: cell.words for name, cell in NAMED.items()}


def make_cell(spec: CellLike, hidden: int, length: int) -> Cell | Layer:
    """Make the cell that ``spec`` names; a cell or layer is returned as it is.

    The names and their variants stand in `NAMED`: the IRNN is that of Le, Jaitly &
    Hinton (2015); ``chrono`` draws biases by Tallec & Ollivier (2018, eq. 16) for
    memories as long as the task's sequences. Cells that are linear in their state are
    each wrapped in a `jaxrnn.residual_block` of ``hidden`` features, unless the variant
    is ``alone``; those with a matrix state, beside `MLSTM`, in the block that they were
    published in, or in a `jaxrnn.layers.pre_norm_block`. A cell of one's own is
    ``module:Name(...)`` (see `own_cell`), and its module is imported.

    Args:
        spec: the name, optionally with a variant; an import path; or a cell or layer.
        hidden: the number of units.
        length: the number of steps of the task's sequences, which is the longest time
            of chrono biases (at least 3).

    Raises:
        InputError: for an unknown name, with the most similar known one, or an unknown
            variant.
    """
    check_cell_name("--cell", spec)
    if not isinstance(spec, str):
        return spec
    name, _, variant = spec.partition(":")
    if name not in KNOWN and (own := parse_own_cell("--cell", spec)):
        return make_own_cell("--cell", spec, own, hidden)
    named = NAMED[name]
    heads = named.heads(variant) if named.heads is not None else 1
    if named.of_heads * hidden % heads:
        times = f"{named.of_heads} times " if named.of_heads > 1 else ""
        raise InputError(
            f"--cell {spec}: {heads} heads do not divide {times}--hidden {hidden}"
        )
    return named.make(hidden, variant, length)


def check_cell_name(what: str, spec: CellLike) -> None:
    """Check that ``spec`` names a cell, and a variant that it has.

    What is no built-in cell's name may be an import path; nothing is imported here.
    """
    if isinstance(spec, (Cell, Layer)):
        checked(what, spec)
        return
    if not isinstance(spec, str):
        raise InputError(
            f"{what} takes the name of a cell, such as lstm or gru:chrono, the import "
            f"path of one of your own, such as mine:Mine, or a cell, but it is "
            f"{describe(spec)}"
        )
    name, colon, variant = spec.partition(":")
    if name not in KNOWN:
        near = difflib.get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.5)
        is_path = parse_own_cell(what, spec) is not None
        if is_path and (
            module_exists(name) or not near or not _is_variant(near[0], variant)
        ):
            return
        if why := why_no_own_cell(spec):
            raise InputError(f"{what} {spec}: {why}")
        own = "a cell of your own is module:Name or module:Name(arguments)"
        if near and colon:
            hint = f"did you mean {near[0]}{colon}{variant}?"
        elif near:
            mine = name if module_exists(name) else "mine"
            hint = f"did you mean {near[0]}? Or {own}, as in {mine}:Mine(64)"
        else:
            hint = f"known: {', '.join(KNOWN)}; {own}"
        raise InputError(f"{what}: there is no {name!r}; {hint}")
    if colon and not _is_variant(name, variant):
        raise InputError(
            f"{what}: {variant!r} is no variant of {name}; {name}: {KNOWN[name]}"
        )


def _is_variant(name: str, variant: str) -> bool:
    """Return whether the cell has this variant."""
    return NAMED[name].takes(variant)
