"""The shape of the source: sizes, imports, types and docstrings.

    python -m benchmarks.structure [--json PATH] [--root FOLDER]

These are the figures by which a redesign is judged: run it before and after. Everything
is read from the source by ast and tokenize; nothing of the library is run or imported.
Lengths of functions are those after ``ruff format --line-length 88`` of a temporary
copy, so that a change of the line length alone changes no figure.

What counts as public: functions, classes and methods whose names do not begin with an
underscore, in modules no part of whose name begins with one, at the top of a module or
of a public class. An import counts wherever it stands, inside functions too; those of
the front door, ``jaxrnn/__init__.py``, are left out, since it has to import everything.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

PACKAGE = "jaxrnn"
COLUMNS, MANY_LINES, LONGEST = 88, 250, 10
PRAGMAS = ("noqa", "type:", "pragma", "fmt:", "ruff:", "mypy:")
SECTIONS = ("Args", "Returns", "Raises")
FRONT, ROOT = f"{PACKAGE}.__init__", "(root)"
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """A file of the library, read and parsed; ``name`` has dots, __init__ included."""

    name: str
    path: str
    text: str
    tree: ast.Module

    @property
    def folder(self) -> str:
        """The first folder inside the library, or the root."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 2 else ROOT

    @property
    def is_public(self) -> bool:
        """Whether no part of its name begins with an underscore, but for __init__."""
        parts = self.name.removesuffix(".__init__").split(".")
        return not any(part.startswith("_") for part in parts)


def read(root: pathlib.Path) -> list[Module]:
    """All modules of the library under ``root``."""
    modules = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(root)
        name = ".".join(place.with_suffix("").parts)
        modules.append(Module(name, place.as_posix(), text, ast.parse(text)))
    return modules


def formatted(root: pathlib.Path) -> list[Module]:
    """The same modules as `read`, after formatting a copy at 88 columns."""
    ruff = shutil.which("ruff", path=str(pathlib.Path(sys.executable).parent))
    ruff = ruff or shutil.which("ruff")
    if ruff is None:
        raise SystemExit("benchmarks.structure needs ruff: pip install ruff")
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        shutil.copytree(root / PACKAGE, copy / PACKAGE)
        words = [ruff, "format", "--quiet", "--isolated", f"--line-length={COLUMNS}"]
        subprocess.run([*words, folder], check=True)
        return read(copy)


# --- sizes ----------------------------------------------------------------------------


def lengths_of_functions(modules: list[Module]) -> dict[str, Any]:
    """Lines of each function, its docstring counted in, and the same without it."""
    whole, bare, named = [], [], []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, Function):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                whole.append(lines)
                bare.append(lines - docstring_lines(node))
                named.append((lines, f"{module.path}:{node.name}"))
    longest = [list(each) for each in sorted(named, reverse=True)[:LONGEST]]
    return {
        "with_docstrings": spread(whole),
        "without_docstrings": spread(bare),
        "longest": longest,
    }


def docstring_lines(node: Function) -> int:
    """Lines that the docstring of a function takes."""
    if ast.get_docstring(node, clean=False) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def spread(values: list[int]) -> dict[str, float]:
    """Count, median, 90th percentile (the nearest rank) and maximum."""
    ordered = sorted(values) or [0]
    rank = -(-9 * len(ordered) // 10) - 1
    return {
        "count": len(values),
        "median": statistics.median(ordered),
        "percentile_90": ordered[rank],
        "maximum": ordered[-1],
    }


def sizes(modules: list[Module]) -> dict[str, Any]:
    """Files and lines, long files, and lines that are too wide."""
    lines = {module.path: module.text.count("\n") for module in modules}
    long = {path: count for path, count in lines.items() if count > MANY_LINES}
    rows = [row for module in modules for row in module.text.splitlines()]
    return {
        "files": len(modules),
        "lines": sum(lines.values()),
        f"files_over_{MANY_LINES}_lines": long,
        f"lines_over_{COLUMNS}_columns": sum(len(row) > COLUMNS for row in rows),
    }


def comments(modules: list[Module]) -> dict[str, float]:
    """Comments that say something to people, for each hundred lines."""
    count = 0
    for module in modules:
        for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
            if token.type == tokenize.COMMENT:
                words = token.string.lstrip("#").strip()
                count += bool(words) and not words.startswith(PRAGMAS)
    lines = sum(module.text.count("\n") for module in modules)
    return {"count": count, "per_100_lines": round(100 * count / lines, 2)}


# --- types and docstrings -------------------------------------------------------------


def attribute_questions(modules: list[Module]) -> dict[str, Any]:
    """Calls of hasattr and getattr, by file."""
    by_file: dict[str, dict[str, int]] = {}
    for module in modules:
        calls = [n.func for n in ast.walk(module.tree) if isinstance(n, ast.Call)]
        names = Counter(f.id for f in calls if isinstance(f, ast.Name))
        found = {name: names[name] for name in ("hasattr", "getattr") if names[name]}
        if found:
            by_file[module.path] = found
    total = sum((Counter(found) for found in by_file.values()), Counter())
    ordered = sorted(by_file.items(), key=lambda item: -sum(item[1].values()))
    return {"total": total.total(), **total, "by_file": dict(ordered)}


def public(modules: list[Module]) -> Iterator[tuple[Module, Function | ast.ClassDef]]:
    """Public functions, classes and their methods."""
    for module in modules:
        if module.is_public:
            yield from ((module, node) for node in public_in(module.tree))


def public_in(node: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    for child in node.body:
        named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if named and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public_in(child)


def any_types(modules: list[Module]) -> dict[str, Any]:
    """How many annotated parameters of public functions are of type Any.

    ``by_alias`` counts those annotated with a name that the library sets to Any.
    """
    aliases = set()
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, ast.AnnAssign) and unparsed(node.value) == "Any":
                aliases.add(unparsed(node.target))
            elif isinstance(node, ast.Assign) and unparsed(node.value) == "Any":
                aliases |= set(map(unparsed, node.targets))
    annotations = [
        unparsed(argument.annotation)
        for _, node in public(modules)
        if isinstance(node, Function)
        for argument in arguments_of(node)
        if argument.annotation is not None
    ]
    count = len(annotations)
    exactly = sum(text == "Any" for text in annotations)
    by_alias = sum(text.removesuffix(" | None") in aliases for text in annotations)
    return {
        "annotated_parameters": count,
        "any": exactly,
        "share": share(exactly, count),
        "aliases_of_any": sorted(aliases),
        "by_alias": by_alias,
        "share_with_aliases": share(exactly + by_alias, count),
    }


def arguments_of(node: Function) -> list[ast.arg]:
    given = node.args
    starred = [argument for argument in (given.vararg, given.kwarg) if argument]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *starred]


def unparsed(node: ast.AST | None) -> str:
    """The source of a node, quotation marks around a whole annotation taken off."""
    return "" if node is None else ast.unparse(node).strip("'\"")


def docstrings(nodes: list[Function | ast.ClassDef]) -> dict[str, float]:
    """Of some public names, the share with a docstring, and with each section in it."""
    texts = [ast.get_docstring(node) or "" for node in nodes]
    found = {"names": len(texts), "docstring": share(sum(map(bool, texts)), len(texts))}
    for section in SECTIONS:
        found[section] = share(sum(f"{section}:" in text for text in texts), len(texts))
    found["example"] = share(sum(map(has_example, texts)), len(texts))
    return found


def has_example(text: str) -> bool:
    """Whether a docstring shows code: a prompt, a fence or an indented block."""
    return any(mark in text for mark in (">>>", "```", "::\n"))


def share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


# --- names and imports ----------------------------------------------------------------


def exported(modules: list[Module]) -> list[str]:
    """The names of ``import jaxrnn``: ``__all__``, or what is imported as itself."""
    tree = next(module.tree for module in modules if module.name == FRONT)
    for node in tree.body:
        if isinstance(node, ast.Assign) and unparsed(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = [alias.asname or "_" for node in imported for alias in node.names]
    return sorted(name for name in names if not name.startswith("_"))


def exported_nodes(modules: list[Module]) -> list[Function | ast.ClassDef]:
    """The public definitions, methods left out, of the exported names."""
    names = set(exported(modules))
    return [
        node
        for module in modules
        if module.is_public
        for node in module.tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names
    ]


def imports_of(module: Module, names: set[str]) -> set[str]:
    """The modules of the library that a module imports; ``names`` are all there are."""
    found = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {resolved(alias.name, names) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.name.split(".")[: -node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            inside = {resolved(f"{source}.{alias.name}", names) for alias in node.names}
            found |= {each or resolved(source, names) for each in inside}
    return {name for name in found if name and name != module.name}


def resolved(name: str, names: set[str]) -> str | None:
    """The module of that dotted name, if it is one."""
    return next((each for each in (name, f"{name}.__init__") if each in names), None)


def imports(modules: list[Module]) -> dict[str, Any]:
    """Modules of each folder, edges between modules and folders, and circles."""
    names = {module.name for module in modules}
    folder_of = {module.name: module.folder for module in modules}
    edges = {m.name: sorted(imports_of(m, names)) for m in modules if m.name != FRONT}
    between: dict[str, Counter[str]] = {}
    for name, targets in edges.items():
        for target in targets:
            if folder_of[target] != folder_of[name]:
                between.setdefault(folder_of[name], Counter())[folder_of[target]] += 1
    # A file at the top of the library is a place of its own: initializers are below
    # cells, and __main__ is above everything.
    place_of = {m.name: m.name if m.folder == ROOT else m.folder for m in modules}
    places: dict[str, set[str]] = {}
    for name, targets in edges.items():
        beyond = {place_of[target] for target in targets} - {place_of[name]}
        places.setdefault(place_of[name], set()).update(beyond)
    members: dict[str, list[str]] = {}
    for module in modules:
        members.setdefault(module.folder, []).append(module.name)
    crossing = sum(sum(targets.values()) for targets in between.values())
    return {
        "edges": sum(map(len, edges.values())),
        "edges_between_folders": crossing,
        "folders": {
            folder: {
                "modules": len(inside),
                "lines": sum(m.text.count("\n") for m in modules if m.folder == folder),
                "imports_from": dict(sorted(between.get(folder, {}).items())),
            }
            for folder, inside in sorted(members.items())
        },
        "circles_of_folders": circles(places),
        "circles_of_modules": circles({m: set(found) for m, found in edges.items()}),
        "module_edges": {name: targets for name, targets in edges.items() if targets},
    }


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes each of which can be reached from each other."""
    reached = {node: reachable(graph, node) for node in graph}
    groups = set()
    for node in graph:
        both = [o for o in reached[node] if node in reached.get(o, ())]
        groups |= {tuple(sorted(both))} if both else set()
    return sorted(list(group) for group in groups)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All nodes to which a path of at least one edge leads."""
    seen: set[str] = set()
    waiting = list(graph.get(start, ()))
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += graph.get(node, ())
    return seen


# --- the command ----------------------------------------------------------------------


def measure(root: pathlib.Path) -> dict[str, Any]:
    """All measures of the library under ``root``."""
    modules = read(root)
    top = exported(modules)
    return {
        "sizes": sizes(modules),
        "functions_at_88_columns": lengths_of_functions(formatted(root)),
        "comments": comments(modules),
        "hasattr_getattr": attribute_questions(modules),
        "any_in_public_parameters": any_types(modules),
        "docstrings_of_public_names": docstrings([node for _, node in public(modules)]),
        "docstrings_of_exported_names": docstrings(exported_nodes(modules)),
        "exported_names": {"count": len(top), "names": top},
        "imports": imports(modules),
    }


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """What is printed: the figures, without the lists behind them."""
    size, imported = found["sizes"], found["imports"]
    long = size[f"files_over_{MANY_LINES}_lines"]
    wide = size[f"lines_over_{COLUMNS}_columns"]
    yield f"{size['files']} files, {size['lines']} lines"
    yield f"{len(long)} files over {MANY_LINES} lines: {told(long)}"
    yield f"{wide} lines over {COLUMNS} columns"
    for name, spread in found["functions_at_88_columns"].items():
        if name != "longest":
            yield f"functions {name.replace('_', ' ')}: {told(spread)}"
    said = found["comments"]
    yield f"comments: {said['count']}, {said['per_100_lines']} in 100 lines"
    asked = found["hasattr_getattr"]
    yield f"hasattr and getattr: {asked['total']}, in {len(asked['by_file'])} files"
    types = found["any_in_public_parameters"]
    yield (
        f"public parameters that are Any: {types['share']:.1%} of "
        f"{types['annotated_parameters']}, with {', '.join(types['aliases_of_any'])} "
        f"{types['share_with_aliases']:.1%}"
    )
    for kind in ("public", "exported"):
        shares = found[f"docstrings_of_{kind}_names"]
        yield f"docstrings of {kind} names: {told(shares)}"
    yield f"exported names: {found['exported_names']['count']}"
    yield f"imports: {imported['edges']} edges"
    yield f"imports between folders: {imported['edges_between_folders']} edges"
    for folder, row in imported["folders"].items():
        needs = told(row["imports_from"]) or "none"
        size = f"{row['modules']} modules, {row['lines']} lines"
        yield f"  {folder}: {size}; from: {needs}"
    for kind in ("folders", "modules"):
        groups = imported[f"circles_of_{kind}"]
        text = "; ".join(" ".join(group) for group in groups)
        yield f"circles of {kind}: {text or 'none'}"


def told(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items())


def main(argv: list[str] | None = None) -> int:
    """Print the measures, and save them where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.structure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    here, path = pathlib.Path(__file__).resolve().parents[1], pathlib.Path
    parser.add_argument("--json", type=path, metavar="PATH", help="save them here")
    parser.add_argument("--root", type=path, default=here, help="(default: this clone)")
    arguments = parser.parse_args(argv)
    found = measure(arguments.root)
    print("\n".join(lines_of(found)))
    if arguments.json is not None:
        text = json.dumps(found, indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
