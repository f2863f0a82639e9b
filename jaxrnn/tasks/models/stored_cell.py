"""The cell of a run: what config.json holds of it, and who may import it.

A run directory may come from a stranger. Reading it imports code outside jaxrnn only if
the user has named that code now, or trusts whatever the file names.
"""

from __future__ import annotations

from typing import Any

from ...core.cell import Cell
from ...core.config import from_config, paths_in
from ...core.import_path import find, is_of_library, is_trusted
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


def code_of(stored: object) -> list[str]:
    """Return the import paths that a stored cell names and that may run any code.

    Text such as ``"module:Name(2)"`` calls what it names with arguments from the file,
    so of this library, too, only the classes of cells and layers are harmless there.
    """
    if not isinstance(stored, str):
        return [path for path in paths_in(stored) if not is_trusted(path, False)]
    known = stored.partition(":")[0] in KNOWN
    own = None if known else parse_own_cell("--cell", stored)
    return [own.path] if own and not _is_cell_of_library(own.path) else []


def _is_cell_of_library(path: str) -> bool:
    """Return whether an import path names a class of cells or layers of jaxrnn."""
    if not is_of_library(path.partition(":")[0]):
        return False
    try:
        found = find(path)
    except (ImportError, ValueError):
        return False
    return isinstance(found, type) and issubclass(found, (Cell, Layer))


def restored_cell(
    where: str, stored: str | dict[str, Any], named: object, trust_code: bool
) -> CellLike:
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
    trust: Any = trust_code or _named_paths(where, stored, named)
    strangers = (
        [] if trust is True else [path for path in code_of(stored) if path not in trust]
    )
    if strangers:
        outside = not is_of_library(strangers[0].partition(":")[0])
        raise InputError(
            f"{where} names {'code outside' if outside else 'no cell of'} jaxrnn, "
            f"{', '.join(strangers)}, which is not run unasked: if you trust it, name "
            f"it with --cell {strangers[0]}, or use --trust-code (in Python cell=, "
            f"trust_code=True)"
        )
    if isinstance(stored, str):
        return stored
    if isinstance(named, (Cell, Layer)):
        return named
    try:
        return checked(where, from_config(stored, trust_code=trust))
    except (ImportError, ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}") from None


def _named_paths(where: str, stored: object, named: Any) -> frozenset[str]:
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
