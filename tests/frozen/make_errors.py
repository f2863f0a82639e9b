"""Write down every error the library raises: where, its class, and its words.

    PYTHONPATH=.:tests python -m frozen.make_errors

Read from the source, nothing is run. Places in f-strings stand as ``{expression}``.
``errors.json`` has three lists. ``raises`` are the raise statements. ``made`` are
exceptions built without being raised there, those an engine returns as its refusal.
``sentences`` are all other texts of at least four words in the code, docstrings left
out: many become part of a message by way of a variable or a helper.
"""

import ast
import builtins
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from .paths import DATA, ROOT

LEAST_WORDS = 4
OF_PYTHON = {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}


def template(node: ast.expr) -> str:
    """The text an expression makes, with whatever is not literal in braces."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(template, values))
        case ast.FormattedValue():
            return ast.unparse(ast.JoinedStr([node]))[2:-1]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left) + template(right)
    return "{" + ast.unparse(node) + "}"


def is_text(node: ast.expr) -> bool:
    """Whether an expression is a literal text, or a sum that has one."""
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return is_text(left) or is_text(right)
    return False


def class_and_words(node: ast.expr) -> tuple[str, list[str]]:
    """The class of what is raised, and the template of each argument."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.func), [template(argument) for argument in node.args]
    return ast.unparse(node), []


class Reader:
    """Collects the three lists from one file."""

    def __init__(self, file: str, own: set[str]):
        self.file, self.exceptions = file, OF_PYTHON | own
        self.told: set[int] = set()  # nodes that are in a row already
        self.raises: list[dict[str, Any]] = []
        self.made: list[dict[str, Any]] = []
        self.sentences: list[dict[str, Any]] = []

    def read(self, node: ast.AST, inside: tuple[str, ...] = ()) -> None:
        """Walk a node; ``inside`` names the classes and functions around it."""
        for child in children(node):
            self.note(child, ".".join(inside))
            name = getattr(child, "name", None)
            opens = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            self.read(child, (*inside, name) if opens else inside)

    def note(self, node: ast.AST, where: str) -> None:
        """Put a node into the list it belongs to, if there is one."""
        place = {"file": self.file, "line": getattr(node, "lineno", 0), "in": where}
        if isinstance(node, ast.Raise):
            name, words = self.told_of(node.exc) if node.exc else ("", [])
            self.raises.append(place | {"class": name, "words": words})
        elif id(node) in self.told:
            return
        elif isinstance(node, ast.Call) and self.is_exception(node):
            name, words = self.told_of(node)
            self.made.append(place | {"class": name, "words": words})
        elif isinstance(node, ast.expr) and is_text(node):
            text = template(node)
            if len(text.split()) >= LEAST_WORDS:
                self.sentences.append(place | {"words": text})

    def is_exception(self, call: ast.Call) -> bool:
        """Whether a call makes an exception, by the name of what is called."""
        return ast.unparse(call.func).rpartition(".")[2] in self.exceptions

    def told_of(self, node: ast.expr) -> tuple[str, list[str]]:
        """The class and the words of an exception; its nodes are told with it."""
        self.told |= {id(node), *map(id, getattr(node, "args", []))}
        return class_and_words(node)


def children(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes inside one, docstrings left out, and a text not taken apart."""
    if isinstance(node, ast.expr) and is_text(node):
        return
    body = getattr(node, "body", None)
    has_docstring = isinstance(
        node, (ast.Module, ast.ClassDef, ast.FunctionDef)
    ) and ast.get_docstring(node, clean=False)
    for child in ast.iter_child_nodes(node):
        if not (has_docstring and child is body[0]):
            yield child


def errors_of_its_own(trees: dict[str, ast.Module]) -> set[str]:
    """Names of the exception classes that the library defines."""
    found: set[str] = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                found |= {node.name} if bases & OF_PYTHON else set()
    return found


def table(root: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists for all files of the library under ``root``."""
    trees = {
        path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((root / "jaxrnn").rglob("*.py"))
    }
    own = errors_of_its_own(trees)
    found: dict[str, list[dict[str, Any]]] = {"raises": [], "made": [], "sentences": []}
    for file, tree in trees.items():
        reader = Reader(file, own)
        reader.read(tree)
        for name, rows in found.items():
            rows += sorted(getattr(reader, name), key=lambda row: row["line"])
    return found


def main() -> None:
    """Write the table, a row on each line."""
    found = table(ROOT)
    parts = [
        f" {json.dumps(name)}: [\n"
        + ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
        + "\n ]"
        for name, rows in found.items()
    ]
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    (DATA / "errors.json").write_text(text, encoding="utf-8")
    print(", ".join(f"{len(rows)} {name}" for name, rows in found.items()))


if __name__ == "__main__":
    main()
