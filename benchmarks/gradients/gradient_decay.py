"""The founding lesson in one table: how fast gradients vanish in each cell, and whether
it then learns what lies far back.

At initialization (inputs and loss of the adding task), averaged over seeds: the decay
rate beta of the gradient norm v_k, fitted over lags 20 to T - 1, tau = -1/log beta,
v_k/v_0 at three lags, and the leading Lyapunov exponent of the whole carry; in proof,
the largest difference of log v_k from products of explicit Jacobians in float64. Then
each cell is trained, from several seeds, on temporal order and adding at two lengths,
until its held-out score says that it has solved the task, or the updates are spent.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
from typing import Any

from jaxrnn.tasks.models.own_cell import parse_own_cell

from ..harness import host, report
from ..harness.options import Parser, command, one_of, positive
from . import decay_picture
from .decay_initial import explicit_difference, measure
from .decay_training import GOALS, train

SIZE = (12.5, 5.2)  # of the picture, in inches
SUBJECTS = {
    "tanh, gain 0.5": "elman:0.5",
    "tanh, gain 1": "elman:1",
    "tanh, gain 1.5": "elman:1.5",
    "tanh, orthogonal": "elman",
    "IRNN": "irnn",
    "GRU": "gru",
    "LSTM, forget bias 0": "lstm:0",
    "LSTM, forget bias 1": "lstm",
    "LSTM, chrono": "lstm:chrono",
}
MODERN = {  # not the mLSTM: the Jacobians of its matrix memory are H^2 by H^2
    "minGRU": "min-gru",
    "RG-LRU": "rg-lru",
    "LRU": "lru",
    "S5": "s5",
    "sLSTM": "slstm",
    "IndRNN": "indrnn",
    "diagonal GRU": "diagonal-gru",
}
CELLS = SUBJECTS | MODERN
PAGE = {  # beta of one seed in the project's notes, for comparison
    "tanh, gain 0.5": 0.444,
    "tanh, gain 1": 0.843,
    "tanh, gain 1.5": 1.033,
    "tanh, orthogonal": 0.820,
    "IRNN": 0.9999,
    "GRU": 0.792,
    "LSTM, forget bias 0": 0.740,
    "LSTM, forget bias 1": 0.904,
    "LSTM, chrono": 0.995,
}


QUICK = ("tanh, gain 1", "LSTM, chrono")


def own_cell(text: str) -> None:
    """Refuse what is neither a name of this table nor an import path."""
    if parse_own_cell("--cells", text) is None:
        raise ValueError("a cell of your own is module:Name")


def parse(argv: list[str] | None) -> Any:
    """The command line."""
    parser = Parser("gradients.gradient_decay", __doc__ or "", devices=False)
    parser.add_argument(
        "--cells",
        nargs="+",
        type=one_of(CELLS, "cell", also=own_cell),
        default=list(SUBJECTS),
        metavar="NAME",
        help="names, or cells of your own as module:Name",
    )
    parser.add_argument(
        "--modern",
        action="store_true",
        help="the linear and other modern cells instead",
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        default=20,
        help="initializations to average over (default: 20)",
    )
    parser.add_argument("--hidden", type=positive, default=64, help="(default: 64)")
    parser.add_argument(
        "--steps",
        type=positive,
        default=200,
        help="T at initialization, 6 at least (default: 200)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=32,
        help="sequences at initialization (default: 32)",
    )
    parser.add_argument(
        "--lengths",
        type=positive,
        nargs="*",
        default=[100, 200],
        help="to train at (default: 100 200)",
    )
    parser.add_argument(
        "--trainings",
        type=positive,
        default=3,
        help="seeds of each training (default: 3)",
    )
    parser.add_argument(
        "--updates",
        type=positive,
        default=4000,
        help="at most, of each training (default: 4000)",
    )
    args = parser.parse_args(argv)
    args.cells = list(MODERN) if args.modern else args.cells
    if args.steps < 6:
        parser.error(
            f"--steps must be at least 6, so that there are lags to fit beta over, but "
            f"it is {args.steps}"
        )
    if args.quick:
        args.seeds, args.steps, args.lengths, args.updates = (
            min(args.seeds, 2),
            50,
            [20],
            min(args.updates, 100),
        )
        args.cells, args.trainings = (
            [name for name in args.cells if name in QUICK] or args.cells,
            1,
        )
    return args


def run(args: Any) -> tuple[list[dict], list[dict]]:
    """The rows at initialization, and the trainings."""
    initial, trained = [], []
    for name in args.cells:
        row = measure(
            CELLS.get(name, name), args.seeds, args.hidden, args.steps, args.batch
        )
        row |= explicit_difference(
            CELLS.get(name, name), 0, args.hidden, args.steps, min(args.batch, 4)
        )
        initial.append(
            {
                "name": name,
                **row,
                "beta_of_the_notes": PAGE.get(name) if args.steps == 200 else None,
            }
        )
        print(f"{name}: beta {row['beta']}", file=sys.stderr, flush=True)
    for task, length, name, seed in itertools.product(
        GOALS, args.lengths, args.cells, range(args.trainings)
    ):
        one = train(
            task,
            CELLS.get(name, name),
            length,
            updates=args.updates,
            hidden=args.hidden,
            seed=seed,
        )
        trained.append({"name": name, **one})
        print(
            f"{task} {length} {name}: {one['final']}, {one['seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return initial, trained


def markdown(result: dict) -> str:
    """The two tables and what their columns are."""
    shape, lags = result["shape"], list(result["initial"][0]["log10_v"])
    head = [
        "cell",
        "beta",
        "sd over seeds",
        "of one seed, earlier",
        "tau",
        *(f"v_{k}/v_0" for k in lags),
        "lambda_1",
        "off float64 products (nats)",
    ]
    rows = [
        [
            row["name"],
            known(row["beta"], ".4f"),
            known(row["beta_sd"], ".4f"),
            known(row["beta_of_the_notes"], ""),
            "inf"
            if row["tau"] is None and row["beta"] is not None
            else known(row["tau"], ".3g"),
            *(share(row["log10_v"][k]) for k in lags),
            known(row["leading_exponent"], "+.3f"),
            known(row["largest_difference_nats"], ".0e"),
        ]
        for row in result["initial"]
    ]
    lines = [
        f"# Gradient decay, {machine_line(result)}",
        "",
        f"`{result['command']}`. At initialization, {shape['H']} units, {shape['T']} "
        f"steps, adding, {shape['seeds']} seeds of "
        f"{shape['B']} sequences: mean beta of log v_k over lags 20 to "
        f"{shape['T'] - 1}, tau = -1/log beta, geometric means of "
        "v_k/v_0, leading Lyapunov exponent in nats per step. One seed lies off by as "
        "much as the "
        "sd says: so do the betas of one seed, which other code measured before.",
        "",
        report.table(head, rows),
        "",
    ]
    groups = list(dict.fromkeys((r["task"], r["length"]) for r in result["trained"]))
    if groups:
        lines += [
            f"Trained, at most {result['updates']} updates of 50 sequences (Adam 1e-3, "
            f"clip 1): of how many seeds it solved "
            "the task (temporal order: held-out accuracy 0.99; adding: mean squared "
            "error below 0.01), and the median of the "
            "updates that took; or the median of the scores in the end, chance being "
            "0.25 and 0.167.",
            "",
            report.table(
                ["cell", *(f"{task} T = {length}" for task, length in groups)],
                [
                    [
                        name,
                        *(outcome(of_group(result, name, *group)) for group in groups),
                    ]
                    for name in dict.fromkeys(r["name"] for r in result["trained"])
                ],
            ),
        ]
    return "\n".join(lines)


def known(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def share(log10: float | None) -> str:
    """A share from its logarithm; zero has none."""
    return (
        "-"
        if log10 is None
        else f"10^{log10:.1f}"
        if log10 < -3
        else f"{10**log10:.2g}"
    )


def machine_line(result: dict) -> str:
    return host.where(result["machine"])


def of_group(result: dict, name: str, task: str, length: int) -> list[dict]:
    """The trainings of one cell on one task."""
    return [
        r
        for r in result["trained"]
        if (r["name"], r["task"], r["length"]) == (name, task, length)
    ]


def outcome(rows: list[dict]) -> str:
    """``3 of 3: 800`` or ``0 of 3 (0.250)``; a run whose held-out score was no
    longer finite diverged.
    """
    solved = [row["solved_after"] for row in rows if row["solved_after"]]
    diverged = sum(row["diverged"] for row in rows)
    share = f"{len(solved)} of {len(rows)}"
    if solved:
        return f"{share}: {statistics.median_low(solved)}" + (
            f", {diverged} diverged" if diverged else ""
        )
    scores = [row["final"] for row in rows if row["final"] is not None]
    if not scores:
        return f"{share}, diverged"
    middle = statistics.median(scores)
    return f"{share} ({middle:.3f})" if middle < 100 else f"{share} ({middle:.0e})"


def draw(result: dict, figure: Any) -> None:
    """Draw the picture of a result."""
    decay_picture.draw(result, machine_line(result), figure)


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 0."""
    args = parse(argv)
    # small factorisations: threads get in each other's way
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    host.prepare(1)
    result = report.content(
        "gradient_decay",
        command("gradients.gradient_decay", argv),
        updates=args.updates,
    )
    result["shape"] = {
        "H": args.hidden,
        "T": args.steps,
        "B": args.batch,
        "seeds": args.seeds,
    }
    result["initial"], result["trained"] = run(args)
    name = report.result_name("gradient_decay", args.out, args.quick)
    report.write(
        name,
        result,
        markdown(result),
        lambda figure: draw(result, figure),
        size=SIZE,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
