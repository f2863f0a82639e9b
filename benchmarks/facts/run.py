"""Published facts about recurrent networks, each tried and judged by the program.

    python -m benchmarks.facts [--only NAME ...] [--again NAME ...] [--list] [--quick]

Each fact has a claim with its source, and bounds that were written down before
anything was measured: where all of them hold, the verdict is "reproduced", otherwise
"not reproduced", with the figures. A fact runs in a process of its own with a limit.
After each, the JSON and the table are written anew; a second call keeps what is done
and runs the rest. --list prints the plan with the minutes that it takes, and runs
nothing. --quick runs small sizes, to test the program, and claims no verdict.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from ..harness import host, processes
from ..harness.options import Parser, command, one_of
from ..harness.processes import DONE, PYTHON
from ..harness.report import RESULTS, content, number, result_name, table, write
from .fact import NOT_REPRODUCED, REPRODUCED, Fact
from .plan import FACTS

NOT_YET, NOT_JUDGED, NO_RESULT = "not run yet", "not judged", "no result"
QUICK_SECONDS = 300  # the limit of a fact under --quick


def outcome(fact: Fact, found: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Return what is kept of a fact that ran: what was found, and the verdict."""
    kept = {**fact.declared(), "quick": quick, **found}
    kept["minutes"] = round(found["seconds"] / 60, 1)
    judged: list[dict[str, Any]] = []
    if found["status"] != DONE:
        verdict = f"{NO_RESULT}: {found['status']}"
    elif quick:
        verdict = NOT_JUDGED
    else:
        verdict, judged = fact.judge(found["rows"])
    if verdict == NOT_REPRODUCED:
        kept["tried"] = fact.tried
    return kept | {"verdict": verdict, "judged": judged}


def not_run(fact: Fact) -> dict[str, Any]:
    """Return what stands for a fact that did not run."""
    return {**fact.declared(), "verdict": NOT_YET, "judged": []}


def is_done(fact: Fact, kept: dict[str, Any] | None, quick: bool) -> bool:
    """Whether a fact ran to its end, under the same declaration as now."""
    if kept is None or kept.get("status") != DONE or kept.get("quick") != quick:
        return False
    return all(kept[name] == value for name, value in decisive(fact).items())


def decisive(fact: Fact) -> dict[str, Any]:
    """Return what must not have changed since a fact ran."""
    declared = fact.declared()
    return {name: declared[name] for name in ("configuration", "seeds", "bounds")}


def measure(fact: Fact, quick: bool) -> dict[str, Any]:
    """Run one fact in a process of its own."""
    words = [*PYTHON, "benchmarks.facts.one", fact.name, *["quick"] * quick]
    found = processes.measure(words, QUICK_SECONDS if quick else fact.limit)
    return outcome(fact, found, quick)


def result_of(kept: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Return everything as the content of the JSON file.

    Its command is the one that makes all of it, not that which ran the last fact.
    """
    facts = [kept.get(name) or not_run(fact) for name, fact in FACTS.items()]
    judged = [
        {"fact": each["fact"], **bound} for each in facts for bound in each["judged"]
    ]
    line = command("facts", ["--quick"] * quick)
    return content("facts", line, facts=facts, judged=judged)


def markdown(result: dict[str, Any]) -> str:
    """Return the verdicts and the figures as two tables."""
    facts = result["facts"]
    count = sum(each["verdict"] == REPRODUCED for each in facts)
    ran = sum(each["verdict"] in (REPRODUCED, NOT_REPRODUCED) for each in facts)
    verdicts = [
        [f["fact"], f["verdict"], f.get("minutes", "-"), f["claim"], f["source"]]
        for f in facts
    ]
    figures = [
        [
            j["fact"],
            j["what"],
            shown(j["found"]),
            j["bound"],
            "yes" * j["holds"] or "no",
        ]
        for j in result["judged"]
    ]
    lines = [
        f"# Facts: {host.where(result['machine'])}",
        "",
        f"`{result['command']}`. {count} of {ran} reproduced; {len(facts) - ran} of "
        f"{len(facts)} without a verdict.",
        "",
        table(["fact", "verdict", "minutes", "claim", "source"], verdicts),
    ]
    if figures:
        head = ["fact", "figure", "found", "bound", "holds"]
        lines += ["", table(head, figures)]
    failed = [each for each in facts if each.get("output")]
    for each in failed:
        lines += ["", f"## {each['fact']}", "", "```text", each["output"], "```"]
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """Return a figure as a cell of a table."""
    if value is None:
        return "-"
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else number(value)


def plan(facts: list[Fact]) -> str:
    """Return what would run, with the minutes that it takes."""
    rows = [
        [
            fact.name,
            number(fact.minutes),
            ", ".join(map(str, fact.seeds)),
            fact.configuration,
            "; ".join(f"{bound.what}: {bound.words()}" for bound in fact.bounds),
        ]
        for fact in facts
    ]
    minutes = sum(fact.minutes for fact in facts)
    head = ["fact", "minutes", "seeds", "configuration", "reproduced if"]
    return f"{table(head, rows)}\n\n{minutes:.0f} minutes in all"


def parse(argv: list[str] | None) -> Any:
    """Return the options."""
    parser = Parser("facts", __doc__ or "", devices=False)
    name = one_of(FACTS, "fact")
    for flag, what in (
        ("--only", "run these alone"),
        ("--again", "run these once more, though they are done"),
    ):
        parser.add_argument(
            flag,
            nargs="+",
            type=name,
            default=[],
            metavar="NAME",
            help=f"{what}: of {', '.join(FACTS)}",
        )
    parser.add_argument(
        "--list", action="store_true", help="print what would run, and run nothing"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run what is missing; 1 if a fact did not come to its end."""
    args = parse(argv)
    name = result_name("facts", args.out, args.quick)
    path = pathlib.Path(RESULTS / name)
    path = path.with_name(path.name + ".json")
    kept: dict[str, dict[str, Any]] = {}
    if path.exists():
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
        kept = {
            each["fact"]: each
            for each in facts
            if each["fact"] in FACTS and is_done(FACTS[each["fact"]], each, args.quick)
        }
    chosen = [*args.only, *args.again] or list(FACTS)
    todo = [
        FACTS[name]
        for name in FACTS
        if name in args.again or (name in chosen and name not in kept)
    ]
    if args.list:
        print(plan(todo))
        return 0
    for fact in todo:
        print(
            f"{fact.name}: some {fact.minutes:g} minutes", file=sys.stderr, flush=True
        )
        kept[fact.name] = measure(fact, args.quick)
        print(f"  {kept[fact.name]['verdict']}", file=sys.stderr, flush=True)
        result = result_of(kept, args.quick)
        write(name, result, markdown(result), None)
    if not todo:
        print(f"all of it is done: {path} (--again NAME runs one once more)")
    return int(any(kept[fact.name]["verdict"].startswith(NO_RESULT) for fact in todo))
