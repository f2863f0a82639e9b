"""The directive ``benchmark``: a table out of a file in benchmarks/results.

::

    ```{benchmark} throughput_cpu_jax0.10.2.json
    :where: mode = forward, cell = LSTM
    :rows: shape
    :columns: entry
    :value: ms.median
    ```

Each row of the file is a dict; ``ms.median`` is a path in it. With ``columns`` the
table has one column for each value of that path, and ``value`` in its cells. Without,
``rows`` lists the paths that are shown, one a column: ``cell, ms.median as ms``. Behind
each table stand the machine, the versions, the date and the command.
"""

import json
import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
VERSIONS = ("jax", "flax", "dm-haiku", "equinox", "keras", "torch", "onnxruntime")


def at(row, path):
    """Return what stands in a row at a path, or None."""
    for name in path.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def shown(value, digits=3):
    """Return a value as a cell of a table."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
        case list():
            return ", ".join(map(shown, value))
        case float():
            large = abs(value) >= 10 ** (digits - 1)
            return f"{value:,.0f}" if large else f"{value:.{digits}g}"
        case int():
            return f"{value:,}" if value >= 10_000 else str(value)
    return str(value)


def listed(text):
    """Return the words between the commas of an option."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def chosen(rows, where):
    """Return the rows that have all values that ``where`` demands."""
    for condition in listed(where):
        path, _, value = (word.strip() for word in condition.partition("="))
        rows = [row for row in rows if shown(at(row, path)) == value]
    return rows


def pivot(rows, down, across, path):
    """Return the head and the lines of a table of one value, by two others."""
    columns = list(dict.fromkeys(shown(at(row, across)) for row in rows))
    lines: dict = {}
    for row in rows:
        line = lines.setdefault(shown(at(row, down)), {})
        line[shown(at(row, across))] = shown(at(row, path))
    body = [
        [name, *(line.get(column, "-") for column in columns)]
        for name, line in lines.items()
    ]
    return [down, *columns], body


def plain(rows, paths):
    """Return the head and the lines of a table of some values."""
    named = [path.partition(" as ") for path in paths]
    head = [name or path for path, _, name in named]
    return head, [[shown(at(row, path)) for path, _, _ in named] for row in rows]


def whence(result):
    """Return where the numbers of a file come from, in a line."""
    machine, versions = result.get("machine", {}), result.get("versions", {})
    versions = machine.get("versions") or versions
    cores = machine.get("cores")
    parts = [
        machine.get("processor", ""),
        cores and f"{cores} core{'s' * (cores > 1)}",
        machine.get("system", ""),
        result.get("dtype", ""),
        ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions),
        result.get("measured", "")[:10],
    ]
    return "; ".join(part for part in parts if part)


def command_of(result):
    """Return the command that measures again, under the names of today."""

    def today(match):
        found = sorted(ROOT.glob(f"benchmarks/*/{match[1]}.py"))
        path = found[0].relative_to(ROOT).with_suffix("") if found else Path(match[0])
        return ".".join(path.parts)

    return re.sub(r"benchmarks\.(\w+)", today, result.get("command", ""))


def table_of(head, body):
    """Return the node of a table."""

    def row(cells):
        # Quotes in names of engines stay as they are written in code.
        texts = [nodes.paragraph("", cell, support_smartquotes=False) for cell in cells]
        return nodes.row("", *(nodes.entry("", text) for text in texts))

    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", row(head))
    group += nodes.tbody("", *map(row, body))
    return nodes.table("", group, classes=["benchmark"])


class Benchmark(SphinxDirective):
    """Show one table."""

    required_arguments = 1
    option_spec = {
        "list": directives.unchanged,
        "where": directives.unchanged,
        "rows": directives.unchanged_required,
        "columns": directives.unchanged,
        "value": directives.unchanged,
    }

    def run(self):
        """Return the table, and where it comes from."""
        file = RESULTS / self.arguments[0]
        self.env.note_dependency(str(file))
        result = json.loads(file.read_text(encoding="utf-8"))
        rows = chosen(
            result[self.options.get("list", "rows")], self.options.get("where")
        )
        if not rows:
            raise self.error(f"{file.name} has no rows for {self.options}")
        down = self.options["rows"]
        if "columns" in self.options:
            head, body = pivot(
                rows, down, self.options["columns"], self.options["value"]
            )
        else:
            head, body = plain(rows, listed(down))
        note = nodes.paragraph("", whence(result) + ". ", classes=["whence"])
        if command := command_of(result):
            note += nodes.literal("", command)
        return [table_of(head, body), note]


def setup(app):
    """Add the directive."""
    app.add_directive("benchmark", Benchmark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
