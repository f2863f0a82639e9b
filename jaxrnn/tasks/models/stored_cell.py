"""The cell of a run: what config.json holds of it, and who may import it.

A run directory may come from a stranger. Reading it imports code outside jaxrnn only if
the user has named that code now, or trusts whatever the file names.
"""

from __future__ import annotations

from typing import Any

from ...core.cell import Cell
from ...core.config import from_config, paths_in
from ...core.import_path import Trust, is_trusted
from ...core.layer import Layer
from ...training import InputError
from .cell_registry import KNOWN
from .own_cell import CellLike, checked, parse_own_cell


def stored_cell(cell: CellLike) -> str | dict[str, Any]:
    """Return what ``config.json`` holds of a cell: its name, or its configuration."""
    if isinstance(cell, str):
        return cell
    try:
        return cell.to_config()
    except TypeError as error:
        raise InputError(f"the cell of a run is written to config.json: {error}") from (
            None
        )


def code_of(stored: Any) -> list[str]:
    """Return the import paths outside jaxrnn that a stored cell names."""
    if isinstance(stored, str):
        known = stored.partition(":")[0] in KNOWN
        own = None if known else parse_own_cell("--cell", stored)
        paths = [own.path] if own else []
    else:
        paths = paths_in(stored)
    return [path for path in paths if not is_trusted(path, False)]


def restored_cell(where: str, stored: Any, named: Any, trust_code: bool) -> CellLike:
    """Return the cell of a run, if its code may be imported.

    Args:
        where: the file that names the cell.
        stored: what the file holds: a name or a configuration.
        named: the cell, its import path or its class, as the user has named it now;
            or None.
        trust_code: whether the user trusts whatever the file names.

    Raises:
        InputError: if code outside jaxrnn is named by nobody but the file, if it cannot
            be imported, or if the user has named another cell.
    """
    trust: Trust = trust_code or _named_paths(where, stored, named)
    strangers = [path for path in code_of(stored) if not is_trusted(path, trust)]
    if strangers:
        raise InputError(
            f"{where} names code outside jaxrnn, {', '.join(strangers)}, which is not "
            f"run unasked: if you trust it, name it with --cell {strangers[0]}, or use "
            f"--trust-code (in Python cell=, trust_code=True)"
        )
    if isinstance(stored, str):
        return stored
    if isinstance(named, (Cell, Layer)):
        return named
    try:
        return checked(where, from_config(stored, trust_code=trust))
    except (ImportError, ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}") from None


def _named_paths(where: str, stored: Any, named: Any) -> frozenset[str]:
    """Return the import paths that the user has named, if they are those of the run."""
    if named is None:
        return frozenset()
    if isinstance(named, (Cell, Layer)):
        if stored_cell(named) != stored:
            raise InputError(
                f"{where} was written for another cell than {named}: {stored}"
            )
        return frozenset(paths_in(stored))
    known = code_of(stored)
    if isinstance(named, str) and (named == stored or named in known):
        return frozenset({named.partition("(")[0]})
    raise InputError(
        f"{where} was written for the cell {stored}, but the one named is {named}"
        + (f": name {known[0]}" if known else ": leave --cell out")
    )
