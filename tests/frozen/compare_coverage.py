"""Compare the coverage of the suite before the rebuilding with that of today's.

``python tests/frozen/compare_coverage.py OLD.json NEW.json OLD_TREE`` reads two reports
of coverage.py (``--cov-branch --cov-report=json``). Files were renamed and split, so
that an old file is compared with those that hold its functions, classes and methods
today: with each by as many lines as it took over. A definition that is gone counts
nowhere. What is less covered than before is printed, worst first, and then the sums.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import json
import pathlib
import sys

from paths import ROOT


@dataclasses.dataclass
class Part:
    """Lines and branches of a piece of code, and how many of them a suite reached."""

    lines: int = 0
    reached: int = 0
    branches: int = 0
    taken: int = 0

    def __iadd__(self, other: Part) -> Part:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    @property
    def line_share(self) -> float:
        return self.reached / self.lines if self.lines else 1.0

    @property
    def branch_share(self) -> float:
        return self.taken / self.branches if self.branches else 1.0


def definitions(tree: pathlib.Path, file: str) -> dict[str, range]:
    """The functions and methods of a file, by ``function`` or ``Class.method``."""
    found: dict[str, range] = {}

    def look(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                found[prefix + node.name] = range(node.lineno, node.end_lineno + 1)

    look(ast.parse((tree / file).read_text()).body, "")
    return found


def part_of(report: dict, lines: range) -> Part:
    """The lines and branches of a report that begin within some lines."""
    reached = [n for n in report["executed_lines"] if n in lines]
    missing = [n for n in report["missing_lines"] if n in lines]
    taken = [b for b in report.get("executed_branches", ()) if b[0] in lines]
    untaken = [b for b in report.get("missing_branches", ()) if b[0] in lines]
    return Part(
        len(reached) + len(missing),
        len(reached),
        len(taken) + len(untaken),
        len(taken),
    )


def parts(tree: pathlib.Path, report: dict) -> dict[str, dict[str, Part]]:
    """The parts of every file, by definition."""
    return {
        file: {
            name: part_of(entry, lines)
            for name, lines in definitions(tree, file).items()
        }
        for file, entry in report["files"].items()
    }


def compare(old: dict, new: dict) -> list[tuple[str, Part, Part, list[str]]]:
    """For every old file its part, that of its definitions today, and where they are.

    A name that is in several files today is looked for in the one that holds most of
    the old file's names.
    """
    places = collections.defaultdict(set)
    for file, defs in new.items():
        for name in defs:
            places[name].add(file)
    rows = []
    for file, defs in old.items():
        votes = collections.Counter(
            place for name in defs for place in places[name] if len(places[name]) < 4
        )
        before, after, where = Part(), Part(), collections.Counter()
        for name, part in defs.items():
            homes = sorted(places[name], key=lambda place: (-votes[place], place))
            if homes and (votes[homes[0]] or len(homes) == 1):
                before += part
                after += new[homes[0]][name]
                where[homes[0]] += 1
        rows.append((file, before, after, [place for place, _ in where.most_common()]))
    return rows


def main(old: str, new: str, old_tree: str) -> None:
    reports = [json.loads(pathlib.Path(path).read_text()) for path in (old, new)]
    trees = [pathlib.Path(old_tree), ROOT]
    rows = compare(*map(parts, trees, reports))
    found: list[Part] = [Part(), Part()]
    for _, before, after, _ in rows:
        found[0] += before
        found[1] += after
    rows.sort(key=lambda row: row[2].line_share - row[1].line_share)
    for file, before, after, where in rows:
        less = [
            getattr(before, kind) > getattr(after, kind) + 1e-9
            for kind in ("line_share", "branch_share")
        ]
        if any(less):
            print(
                f"{file}: lines {before.line_share:.1%} to {after.line_share:.1%} "
                f"({before.lines - before.reached} and {after.lines - after.reached} "
                f"missing), branches {before.branch_share:.1%} to "
                f"{after.branch_share:.1%} ({before.branches - before.taken} and "
                f"{after.branches - after.taken}); {', '.join(where[:3])}"
            )
    for name, part in zip(("before", "today"), found, strict=True):
        print(
            f"{name}: {part.lines:,} lines, {part.line_share:.2%}; "
            f"{part.branches:,} branches, {part.branch_share:.2%}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
