"""What cells with a matrix state learn that others do not: ``python -m
benchmarks.tasks.recall [ENTRY ...]``.

- parity of up to 40 bits, scored on words of 41 to 256, by DeltaNet with and without
  negative eigenvalues
- products of permutations of three things, by DeltaProduct and DeltaNet
- associative recall, by Gated DeltaNet and minGRU

Every entry is trained on fresh sequences until a held-out score is all but perfect, or
its updates or CPU seconds are spent; the scores are of sequences that no choice was
made by. With ``--add`` the rows of an earlier result are kept. Writes a JSON file and a
table.
"""

from __future__ import annotations

import json
from typing import Any

import jaxrnn
from jaxrnn.cells import DeltaNet, DeltaProduct, GatedDeltaNet, MinGRU
from jaxrnn.core.cell import Cell
from jaxrnn.core.layer import Layer
from jaxrnn.initializers import LecunNormal

from ..harness.host import where
from ..harness.options import Parser, command, one_of, positive
from ..harness.report import RESULTS, content, number, result_name, table, write
from ..harness.trainings import Entry, measure


def in_block(cell: Cell, width: int) -> Layer:
    """The cell in a residual block, as the programs use it."""
    return jaxrnn.residual_block(cell, width)


def delta(negative: bool) -> Layer:
    """DeltaNet for parity.

    The first state is a parameter, because a word has no first letter of its own at
    which something could be written into an empty state. There is no convolution,
    because every letter counts for itself.
    """
    cell = DeltaNet(
        32,
        num_heads=4,
        conv=None,
        allow_negative=negative,
        learned_initial_carry=True,
        input_init=LecunNormal(),
    )
    return in_block(cell, 32)


def product(count: int) -> Layer:
    """DeltaProduct for words, without a convolution and with a learned first state, as
    `delta`; with one product it is DeltaNet.
    """
    cell = DeltaProduct(
        64,
        num_heads=8,
        num_products=count,
        use_forget_gate=False,
        conv=None,
        use_gate=False,
        feature_map="identity",
        learned_initial_carry=True,
        input_init=LecunNormal(),
    )
    return in_block(cell, 64)


PARITY = {"answers": "every", "learning_rate": 1e-2, "hidden": 32}
WORDS = {"group": "S3", "length": 8, "learning_rate": 5e-3, "schedule": "cosine"}
RECALL = {"vocabulary": 32, "learning_rate": 1e-2}
ENTRIES = {
    "parity-negative": Entry(
        "parity",
        lambda: delta(True),
        PARITY,
        800,
        "accuracy_256",
        (">=", 0.99),
        {"answers": "last"},
    ),
    "parity-positive": Entry(
        "parity",
        lambda: delta(False),
        PARITY,
        800,
        "accuracy_256",
        ("<=", 0.55),
        {"answers": "last"},
    ),
    "words-product": Entry(
        "group-words", lambda: product(2), WORDS, 1000, "accuracy_32", (">=", 0.95)
    ),
    "words-one": Entry(
        "group-words", lambda: product(1), WORDS, 1000, "accuracy_32", ("<=", 0.8)
    ),
    "recall-gated-delta": Entry(
        "mqar",
        lambda: GatedDeltaNet(64, num_heads=4, input_init=LecunNormal()),
        RECALL,
        800,
        "accuracy",
        (">=", 0.99),
    ),
    "recall-min-gru": Entry(
        "mqar", lambda: in_block(MinGRU(64), 64), RECALL, 800, "accuracy", ("<=", 0.5)
    ),
}


def table_of(rows: list[dict[str, Any]]) -> str:
    """One line an entry, its seeds side by side."""
    head = ["entry", "score", "goal", "by seed", "chance", "updates", "CPU seconds"]
    lines = []
    for name in dict.fromkeys(row["entry"] for row in rows):
        of = [row for row in rows if row["entry"] == name]
        lines.append(
            [
                name,
                of[0]["score"],
                of[0]["goal"],
                ", ".join(f"{row['scores'][row['score']]:.4f}" for row in of),
                number(of[0]["scores"]["baseline"]),
                ", ".join(str(row["updates"]) for row in of),
                ", ".join(f"{row['cpu_seconds']:.0f}" for row in of),
            ]
        )
    return table(head, lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("tasks.recall", __doc__ or "", devices=False)
    parser.add_argument(
        "entries",
        nargs="*",
        metavar="ENTRY",
        type=one_of(ENTRIES, "entry"),
        help=f"of {', '.join(ENTRIES)}: all",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (0 1 2)"
    )
    parser.add_argument("--updates", type=positive, help="instead of the entry's own")
    parser.add_argument(
        "--seconds", type=positive, default=300, help="most CPU seconds of a run (300)"
    )
    parser.add_argument(
        "--every", type=positive, default=100, help="updates between scores (100)"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the rows of an earlier result"
    )
    args = parser.parse_args(argv)
    name = result_name("recall", args.out, args.quick)
    path = RESULTS / f"{name}.json"
    rows = []
    if args.add and path.exists():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for entry in args.entries or ENTRIES:
        for seed in args.seeds:
            declared = ENTRIES[entry]
            updates = args.updates or (20 if args.quick else declared.updates)
            row = measure(entry, declared, seed, updates, args.seconds, args.every)
            rows = [r for r in rows if (r["entry"], r["seed"]) != (entry, seed)]
            rows.append(row)
            order = {known: i for i, known in enumerate(ENTRIES)}
            rows.sort(key=lambda r: (order.get(r["entry"], 99), r["seed"]))
            result = content("recall", command("tasks.recall", argv), rows=rows)
            title = f"# State tracking and recall: {where(result['machine'])}"
            write(name, result, f"{title}\n\n{table_of(rows)}", None)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
