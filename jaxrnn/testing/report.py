"""What trying the laws on a cell gives: a report, or an error that holds it."""

from __future__ import annotations

import dataclasses
import textwrap

HOLDS, BROKEN, SKIPPED = "holds", "broken", "not tried"


class Broken(Exception):
    """Raised inside a law that a cell breaks.

    Attributes:
        words: what was found.
        repair: what is likely to mend it.
        figure: the largest difference; None if there is none to measure.
    """

    def __init__(self, words: str, repair: str, figure: float | None = None):
        super().__init__(words)
        self.words, self.repair, self.figure = words, repair, figure


class NotTried(Exception):
    """Raised inside a law that does not apply to a cell; the message says why."""


@dataclasses.dataclass(frozen=True)
class LawResult:
    """One law, tried on one cell.

    Attributes:
        name: the name of the law, by which ``check_cell(laws=...)`` selects it.
        meaning: the law, as a sentence.
        status: ``"holds"``, ``"broken"`` or ``"not tried"``.
        figure: the largest difference that was found, relative to the largest number
            compared; None if nothing was compared.
        words: what is wrong, or why the law was not tried.
        repair: what is likely to mend it.

    Example:
        >>> import jaxrnn
        >>> from jaxrnn.testing import check_cell
        >>> result = check_cell(jaxrnn.IndRNN(4), 3, laws=["project"])["project"]
        >>> result.status, result.figure < 1e-12
        ('holds', True)
        >>> result.meaning
        '``project`` sees one time step at a time.'
    """

    name: str
    meaning: str
    status: str
    figure: float | None = None
    words: str = ""
    repair: str = ""

    def __str__(self) -> str:
        figure = "" if self.figure is None else f" ({self.figure:.1e})"
        lines = [f"{self.status:<9} {self.name}{figure}: {self.meaning}"]
        for text in (self.words, self.repair and f"Repair: {self.repair}"):
            if text:
                lines.append(textwrap.indent(textwrap.fill(text, 78), " " * 10))
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class CellReport:
    """What `check_cell` found.

    Attributes:
        cell: the cell or layer, as text, cut short.
        results: one for each law, in the order in which they were tried.
        notes: what else there is to know, as sentences.

    Example:
        >>> import jaxrnn
        >>> from jaxrnn.testing import check_cell
        >>> report = check_cell(jaxrnn.IndRNN(4), 3, laws=["project", "affine"])
        >>> [(result.name, result.status) for result in report.results], report.broken
        ([('project', 'holds'), ('affine', 'not tried')], ())
    """

    cell: str
    results: tuple[LawResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[LawResult, ...]:
        """Return the laws that the cell breaks."""
        return tuple(result for result in self.results if result.status == BROKEN)

    def __getitem__(self, name: str) -> LawResult:
        """Return the result of the law of this name."""
        return next(result for result in self.results if result.name == name)

    def __str__(self) -> str:
        tried = [result for result in self.results if result.status != SKIPPED]
        head = (
            f"{self.cell} breaks {len(self.broken)} of {len(tried)} laws"
            if self.broken
            else f"{self.cell} keeps all {len(tried)} laws that were tried"
        )
        left = ", ".join(r.name for r in self.results if r.status == SKIPPED)
        notes = [*self.notes, *([f"not tried: {left}"] if left else [])]
        return "\n".join([head, *map(str, tried), *notes])


class LawError(ValueError):
    """Raised by `check_cell` for a cell that breaks laws; the message names them.

    Attributes:
        report: the whole report, with the laws that hold.

    Example:
        >>> import dataclasses, jaxrnn
        >>> from jaxrnn.testing import LawError, check_cell
        >>> @dataclasses.dataclass(frozen=True)
        ... class Centered(jaxrnn.Cell):
        ...     hidden_size: int
        ...
        ...     def project(self, params, x):
        ...         return x - x.mean(0, keepdims=True)  # over all steps, not at each
        ...
        ...     def step(self, params, carry, z):
        ...         return 0.5 * carry + z
        >>> try:
        ...     check_cell(Centered(3), 3, params={}, laws=["project"])
        ... except LawError as error:
        ...     print([result.name for result in error.report.broken])
        ['project']
    """

    def __init__(self, report: CellReport):
        tried = [result for result in report.results if result.status != SKIPPED]
        lines = [f"{report.cell} breaks {len(report.broken)} of {len(tried)} laws"]
        super().__init__("\n".join([*lines, *map(str, report.broken), *report.notes]))
        self.report = report
