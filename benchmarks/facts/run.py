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


def is_current(fact: Fact, kept: dict[str, Any], quick: bool) -> bool:
    """Whether a fact was run under the same declaration as now."""
    if "status" not in kept or kept["quick"] != quick:
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


def plan(facts: list[Fact], todo: list[Fact]) -> str:
    """Return the facts, and which would run in how many minutes."""
    rows = [
        [
            fact.name,
            "yes" if fact in todo else "no, it is done",
            number(fact.minutes),
            ", ".join(map(str, fact.seeds)),
            fact.configuration,
            "; ".join(f"{bound.what}: {bound.words()}" for bound in fact.bounds),
        ]
        for fact in facts
    ]
    minutes = sum(fact.minutes for fact in todo)
    head = ["fact", "would run", "minutes", "seeds", "configuration", "reproduced if"]
    return (
        f"{table(head, rows)}\n\n{minutes:.0f} minutes in all "
        f"(--again NAME runs what is done once more)"
    )


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


def path_of(name: str) -> pathlib.Path:
    """Return the path of the JSON file of a result."""
    base = pathlib.Path(RESULTS / name)
    return base.with_name(base.name + ".json")


def stored(name: str, quick: bool) -> dict[str, dict[str, Any]]:
    """Return what a result holds of the facts as they are declared now."""
    path = path_of(name)
    if not path.exists():
        return {}
    facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
    return {
        each["fact"]: each
        for each in facts
        if each["fact"] in FACTS and is_current(FACTS[each["fact"]], each, quick)
    }


def say(words: str) -> None:
    """Print where the run is."""
    print(words, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run what is missing; 1 if a fact did not come to its end."""
    args = parse(argv)
    name = result_name("facts", args.out, args.quick)
    done = [k for k, each in stored(name, args.quick).items() if each["status"] == DONE]
    chosen = [*args.only, *args.again] or list(FACTS)
    todo = [
        fact
        for key, fact in FACTS.items()
        if key in args.again or (key in chosen and key not in done)
    ]
    if args.list:
        print(plan([FACTS[key] for key in FACTS if key in chosen], todo))
        return 0
    failed = False
    for fact in todo:
        say(f"{fact.name}: some {fact.minutes:g} minutes")
        found = measure(fact, args.quick)
        say(f"  {found['verdict']}")
        failed |= found["status"] != DONE
        # Read anew: another call may have written other facts meanwhile.
        result = result_of(stored(name, args.quick) | {fact.name: found}, args.quick)
        write(name, result, markdown(result), None)
    if not todo:
        print(f"all of it is done: {path_of(name)} (--again NAME runs one once more)")
    return int(failed)
