"""One fact, in the process that `benchmarks.facts` starts for it: ``python -m
benchmarks.facts.one NAME [quick]``.
"""

from __future__ import annotations

import datetime
import sys

from ..harness import host, processes
from .plan import FACTS


def main(words: list[str]) -> int:
    """Measure one fact and tell its rows; 0."""
    fact, quick = FACTS[words[0]], "quick" in words[1:]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    machine = host.describe()
    rows = fact.measure(fact.seeds[:1] if quick else fact.seeds, quick)
    processes.tell({"measured": now, "machine": machine, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
