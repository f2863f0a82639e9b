"""The long run: ``make fuzz``, or ``PYTHONPATH=.:tests:tests/helpers python -m fuzz
--programs 2000``.

Programs come in batches of 25, each drawn from its number alone, so that a run can be
cut in two: ``--first 40 --programs 500`` are those of the batches from number 40 on.
Counts go to a JSON file after every batch; differences are made small and printed as
they come.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import pathlib
import sys
import time

import jax

from .compare import MODES, WINDOW, Difference, Result, engines_of, tried
from .programs import Program, random_program, smaller

BATCH = 25
MOST_MAPS = 20_000


def batch_of(number: int, most: int = 5) -> list[Program]:
    """The programs of a batch."""
    return [random_program(number * BATCH + i, most) for i in range(BATCH)]


def made_small(difference: Difference, seconds: float = 120) -> Difference:
    """A difference of the same kind, of a program of which nothing can be left out."""
    stop = time.monotonic() + seconds
    mode = difference.mode if difference.mode in MODES else "gradients"
    mode = "gradients" if mode == "values" else mode
    improved = True
    while improved:
        improved = False
        for program in smaller(difference.program):
            if time.monotonic() > stop:
                return difference
            if difference.engine not in engines_of(program):
                continue
            again = [
                d
                for d in tried(program, [(difference.engine, mode)]).differences
                if same_kind(d, difference)
            ]
            if again:
                difference, improved = again[0], True
                break
    return difference


def same_kind(a: Difference, b: Difference) -> bool:
    return (
        a.mode == b.mode
        and a.what.startswith("raised") == b.what.startswith("raised")
        and (not a.what.startswith("raised") or a.kind[:60] == b.kind[:60])
    )


def described(difference: Difference) -> dict[str, str]:
    return {
        "engine": difference.engine,
        "mode": difference.mode,
        "what": difference.what,
        "program": repr(difference.program),
    }


class Report:
    """Counts of a run."""

    def __init__(self, path: pathlib.Path, first: int):
        self.path, self.first, self.begun = path, first, time.monotonic()
        self.tried, self.compared, self.batches = 0, 0, 0
        self.dropped, self.refused, self.cannot = (
            collections.Counter() for _ in range(3)
        )
        self.differences: list[dict] = []
        self.fused: list[dict] = []
        self.slowest: tuple[float, str] = (0.0, "")

    def add(self, result: Result, seconds: float) -> None:
        self.tried += 1
        self.compared += result.compared
        self.slowest = max(self.slowest, (seconds, repr(result.program)))
        if result.dropped:
            self.dropped[result.dropped] += 1
        self.fused += [described(difference) for difference in result.fused]
        for engine, reason in result.refused.items():
            self.refused[f"{engine}: {reason}"] += 1
        for mode, reason in result.cannot.items():
            self.cannot[f"{mode}: {reason}"] += 1

    def write(self) -> None:
        self.path.write_text(
            json.dumps(
                {
                    "jax": jax.__version__,
                    "first_batch": self.first,
                    "next_batch": self.first + self.batches,
                    "programs": self.tried,
                    "comparisons": self.compared,
                    "seconds": round(time.monotonic() - self.begun),
                    "dropped": dict(self.dropped.most_common()),
                    "refused": dict(self.refused.most_common()),
                    "the loop itself has none": dict(self.cannot.most_common()),
                    "differences": self.differences,
                    "differences where XLA fuses, and else none": self.fused,
                    "slowest": self.slowest,
                },
                indent=1,
            )
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=2000, help="how many to try")
    parser.add_argument(
        "--first", type=int, default=0, help="the number of the first batch"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("fuzz.json"),
        help="where counts go",
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after this long"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one drawn engine and mode each, beside the default's gradient",
    )
    parser.add_argument(
        "--most",
        type=int,
        default=5,
        help="instructions in a step, without those that use their values",
    )
    parser.add_argument(
        "--no-shrink", action="store_true", help="do not make differing programs small"
    )
    options = parser.parse_args(arguments)
    for name, value in (
        ("enable_x64", True),
        ("numpy_dtype_promotion", "strict"),
        ("numpy_rank_promotion", "raise"),
    ):
        jax.config.update(f"jax_{name}", value)
    report, number = Report(options.out, options.first), options.first
    gc.set_threshold(50_000, 20, 50)
    while (
        report.tried < options.programs
        and time.monotonic() - report.begun < options.seconds
    ):
        for program in batch_of(number, options.most)[
            : options.programs - report.tried
        ]:
            before = time.monotonic()
            result = tried(program, drawn_pairs(program) if options.quick else None)
            report.add(result, time.monotonic() - before)
            for difference in one_of_each(result.differences):
                print(
                    f"\nDIFFERENCE {difference.engine}, {difference.mode}: "
                    f"{difference.what}\n  {difference.program}",
                    flush=True,
                )
                small = difference if options.no_shrink else made_small(difference)
                print(f"  small: {small.what}\n  {small.program}", flush=True)
                also = sorted({f"{d.engine}, {d.mode}" for d in result.differences})
                report.differences.append(described(small) | {"also": also})
            make_room()
        number, report.batches = number + 1, report.batches + 1
        report.write()
        spent = time.monotonic() - report.begun
        print(
            f"{report.tried} programs, {report.compared} comparisons, "
            f"{len(report.differences)} differences, "
            f"{sum(report.dropped.values())} dropped, {spent:.0f} s, "
            f"{spent / report.tried:.1f} s a program",
            flush=True,
        )
    return bool(report.differences)


def make_room() -> None:
    """Drop compiled programs before they fill the process's memory maps: Linux gives
    65,530, and XLA dies without.
    """
    try:
        maps = pathlib.Path("/proc/self/maps").read_text().count("\n")
    except OSError:
        maps = MOST_MAPS
    if maps >= MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def drawn_pairs(program: Program) -> list[tuple[str, str]]:
    """The default's gradient, and one more engine and mode, which follow from the
    program's seed. The loop needs no program of its own more for a mapped gradient than
    for one alone, so those are drawn more often.
    """
    engines = [name for name in engines_of(program) if name != "default"]
    engine = engines[program.seed % len(engines)]
    mode = ("gradients", "members", "gradients", "tangents", "gradients", "batch")[
        program.seed // 7 % 6
    ]
    return [
        ("default", "gradients"),
        (engine, "gradients" if engine == WINDOW else mode),
    ]


def one_of_each(differences: list[Difference]) -> list[Difference]:
    """One difference of each mode: the rest is most often the same fault."""
    found: dict[str, Difference] = {}
    for difference in differences:
        found.setdefault(
            difference.kind[:60]
            if difference.what.startswith("raised")
            else difference.mode,
            difference,
        )
    return list(found.values())


if __name__ == "__main__":
    sys.exit(main())
