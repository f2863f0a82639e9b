"""A cell or layer of one's own, by import path or as an object.

``module:Name`` or ``module:Name(arguments)`` names a class, a function that returns a
cell, or a cell. Arguments are Python literals; nothing is evaluated. Where ``Name``
takes a ``hidden_size`` and the arguments do not give it, it is that of ``--hidden``.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

from ...core.cell import Cell
from ...core.import_path import find
from ...core.layer import Layer, check_cell
from ...core.validation import describe
from ...training import InputError

# What an option that names a cell may hold.
CellLike = str | Cell | Layer


class OwnCell(NamedTuple):
    """``path(*args, **keywords)``; ``called`` is False for ``path`` alone."""

    path: str
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    called: bool = False


def parse_own_cell(what: str, spec: str) -> OwnCell | None:
    """Read ``module:Name`` or ``module:Name(arguments)``; None if it is neither.

    Raises:
        InputError: for arguments that are no literals.
    """
    module, colon, call = spec.partition(":")
    if not (colon and all(word.isidentifier() for word in module.split("."))):
        return None
    try:
        node = ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if isinstance(node, ast.Name):
        return OwnCell(f"{module}:{node.id}")
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return None
    try:
        args = tuple(ast.literal_eval(arg) for arg in node.args)
        keywords = {
            keyword.arg: ast.literal_eval(keyword.value)
            for keyword in node.keywords
            if keyword.arg is not None
        }
        if len(keywords) < len(node.keywords):
            raise ValueError
    except (ValueError, TypeError, SyntaxError):
        raise InputError(
            f"{what} {spec}: arguments are Python literals, such as 64, 0.5, 'text' or "
            f"(1, 2): for anything else write a function in {module} that returns the "
            f"cell, and name that"
        ) from None
    return OwnCell(f"{module}:{node.func.id}", args, keywords, called=True)


def why_no_own_cell(spec: str) -> str:
    """Say what is wrong with ``module:Name(arguments)``, or "" if it is another form.

    Only what has a colon and a parenthesis, a path of a file, or nothing after the
    colon was meant as an import path.
    """
    module, colon, call = spec.partition(":")
    form = "a cell of your own is module:Name or module:Name(arguments)"
    if colon and ("/" in module or "\\" in module):
        dotted = module.replace("\\", "/").removesuffix(".py").strip("./")
        return (
            f"{form}, with a module as Python imports it: "
            f"{dotted.replace('/', '.')}:{call}"
        )
    if colon and not call.strip():
        return f"there is no name after the colon: {form}, as in {module}:Mine"
    if not colon or not set("()") & set(call):
        return ""
    if call.count("(") > call.count(")"):
        return f"a parenthesis is not closed: write {spec})"
    if call.count("(") < call.count(")"):
        return "there is one closing parenthesis too many"
    return "" if parse_own_cell("--cell", spec) else f"this is not understood: {form}"


def make_own_cell(what: str, spec: str, own: OwnCell, hidden: int) -> Cell | Layer:
    """Import the class or function and call it.

    It runs code of the user: whoever reads ``spec`` from a file calls
    `stored_cell.restored_cell` first.

    Args:
        what: what errors call it, such as ``--cell``.
        spec: what the user wrote.
        own: the parts of it.
        hidden: the hidden size where the arguments give none.
    """
    try:
        made = find(own.path, trust=True)
    except (ImportError, ValueError) as error:
        raise InputError(f"{what} {error}") from None
    if callable(made) and not isinstance(made, (Cell, Layer)):
        made = _call(what, spec, made, own, hidden)
    elif own.called:
        raise InputError(f"{what} {spec}: {own.path} is {describe(made)}; leave () out")
    return checked(f"{what} {spec}", made)


def _call(what: str, spec: str, made: Any, own: OwnCell, hidden: int) -> Any:
    """Call a class or function with its arguments, and ``hidden`` if it takes it."""
    keywords = dict(own.keywords)
    try:
        signature = inspect.signature(made)
        given = signature.bind_partial(*own.args, **keywords).arguments
        if "hidden_size" in signature.parameters and "hidden_size" not in given:
            keywords["hidden_size"] = hidden
        return made(*own.args, **keywords)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} {spec}: {error}") from error


def checked(what: str, made: Any) -> Cell | Layer:
    """Return ``made`` if it is a cell or layer that a task can train."""
    try:
        check_cell(made)
    except TypeError as error:
        raise InputError(f"{what}: {error}") from None
    if made.requires_key:
        raise InputError(
            f"{what}: {type(made).__name__} draws random numbers, which the models of "
            f"the tasks do not: name one without dropout, zoneout or state noise"
        )
    return made


def label_of(cell: CellLike) -> str:
    """Return a short name: what the user wrote, or the class of an object."""
    return cell if isinstance(cell, str) else type(cell).__name__


def labelled(cells: Iterable[CellLike]) -> dict[str, CellLike]:
    """Return cells by their labels, numbered where two would have the same."""
    named: dict[str, CellLike] = {}
    for cell in cells:
        label = name = label_of(cell)
        number = 1
        while name in named:
            number += 1
            name = f"{label} ({number})"
        named[name] = cell
    return named
