"""What the benchmark programs take on their command line: shapes, entries, rounds;
errors in one line, with status 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import NamedTuple


class Shape(NamedTuple):
    """Batch, time steps, input features, hidden units."""

    B: int
    T: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"B {self.B}, T {self.T}, " + (
            f"I = H {self.H}" if self.I == self.H else f"I {self.I}, H {self.H}"
        )


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error, and whose help
    keeps the docstring's lines.
    """

    def __init__(self, program: str, text: str, devices: bool = True):
        super().__init__(
            prog=f"python -m benchmarks.{program}",
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--out",
            metavar="NAME",
            help="write NAME.json, NAME.md, NAME.png (default: benchmarks/results)",
        )
        self.add_argument(
            "--quick",
            action="store_true",
            help="small shapes, few rounds: within a minute",
        )
        if devices:
            self.add_argument(
                "--devices",
                type=positive,
                default=2,
                help="devices over which to split a batch (default: 2)",
            )

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (--help lists what there is)\n")


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of at least 1"
        )
    return int(text)


def shape(text: str) -> Shape:
    """``B,T,H`` (then I = H) or ``B,T,I,H``."""
    try:
        numbers = [positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        numbers = []
    if len(numbers) not in (3, 4):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shape: write B,T,H or B,T,I,H, such as 16,512,128"
        )
    return Shape(*numbers[:2], numbers[2], numbers[-1])


def one_of(names: Iterable[str], what: str, also=None):
    """An argument that must be one of ``names``, or something for which ``also``
    raises no ValueError.
    """
    names = list(names)

    def check(text: str) -> str:
        if text in names:
            return text
        try:
            if also is None:
                raise ValueError
            also(text)
        except ValueError as error:
            reason = f" ({error})" if str(error) else ""
            raise argparse.ArgumentTypeError(
                f"no {what} {text!r}{reason}: there are {', '.join(names)}"
            ) from None
        return text

    return check


def command(program: str, argv: list[str] | None) -> str:
    """The command as a person would type it again."""
    words = sys.argv[1:] if argv is None else argv
    return " ".join(
        [
            f"python -m benchmarks.{program}",
            *(f'"{w}"' if set(w) & set(" ()*") else w for w in words),
        ]
    )
