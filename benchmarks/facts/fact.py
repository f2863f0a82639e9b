"""What a fact is: a published claim, how it is tried, and the bounds that decide."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"


class Bound(NamedTuple):
    """A number that decides, written down before anything was measured.

    Attributes:
        what: the number, in words.
        sign: ``">="`` or ``"<="``.
        limit: the largest or least number that agrees with the claim.
        figure: computes the number from the rows; None or NaN agrees with nothing.
        why: where the limit comes from.
    """

    what: str
    sign: str
    limit: float
    figure: Callable[[list[Row]], float | None]
    why: str

    def words(self) -> str:
        """Return the bound in words."""
        return f"{'at least' if self.sign == '>=' else 'at most'} {self.limit:g}"

    def judge(self, rows: list[Row]) -> dict[str, Any]:
        """Return the number that was found, and whether it agrees with the claim."""
        found = self.figure(rows)
        known = found is not None and not math.isnan(found)
        holds = known and (
            found >= self.limit if self.sign == ">=" else found <= self.limit
        )
        return {
            "what": self.what,
            "bound": self.words(),
            "found": found if known and math.isfinite(found) else None,
            "holds": bool(holds),
            "why": self.why,
        }


@dataclasses.dataclass(frozen=True)
class Fact:
    """A published fact.

    Attributes:
        name: of one word.
        claim: what was published, in a sentence.
        source: who published it.
        configuration: what is run here.
        bounds: that all must hold.
        seeds: one number for each repetition.
        minutes: about how long it takes, on two cores.
        measure: ``measure(seeds, quick)`` returns rows; ``quick`` is for tests.
        tried: what else was tried, where the fact is not reproduced.
    """

    name: str
    claim: str
    source: str
    configuration: str
    bounds: tuple[Bound, ...]
    seeds: tuple[int, ...]
    minutes: float
    measure: Callable[[tuple[int, ...], bool], list[Row]]
    tried: str = ""

    @property
    def limit(self) -> float:
        """Return the seconds after which its process is ended."""
        return 120 + 4 * 60 * self.minutes

    def declared(self) -> dict[str, Any]:
        """Return what is said of it before it runs."""
        return {
            "fact": self.name,
            "claim": self.claim,
            "source": self.source,
            "configuration": self.configuration,
            "seeds": list(self.seeds),
            "bounds": [f"{bound.what}: {bound.words()}" for bound in self.bounds],
            "estimated_minutes": self.minutes,
        }

    def judge(self, rows: list[Row]) -> tuple[str, list[dict[str, Any]]]:
        """Return the verdict, and each bound with what was found."""
        found = [bound.judge(rows) for bound in self.bounds]
        agrees = all(each["holds"] for each in found)
        return REPRODUCED if agrees else NOT_REPRODUCED, found


def of(rows: list[Row], **where: Any) -> list[Row]:
    """Return the rows that have these values."""
    return [r for r in rows if all(r.get(k) == v for k, v in where.items())]


def median(rows: list[Row], field: str, **where: Any) -> float | None:
    """Return the median of a field over rows; None where there are none."""
    values = [row[field] for row in of(rows, **where)]
    known = [math.nan if value is None else value for value in values]
    return (
        None if not known or any(map(math.isnan, known)) else statistics.median(known)
    )


def largest(rows: list[Row], field: str, **where: Any) -> float | None:
    """Return the largest value of a field over rows; None where one is missing."""
    values = [row[field] for row in of(rows, **where)]
    return None if not values or None in values else max(values)


def least(rows: list[Row], field: str, **where: Any) -> float | None:
    """Return the least value of a field over rows; None where one is missing."""
    values = [row[field] for row in of(rows, **where)]
    return None if not values or None in values else min(values)
