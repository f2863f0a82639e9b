"""The first minutes with a GPU or TPU: what has never run there, most important first.

    python -m benchmarks.accelerator.first_light [--seconds 600] [--out NAME] [--plan]

1. *device*: what there is, whether it multiplies right, its memory and its ceilings.
2. *correct*: every engine's values and gradients against float64, beside lax.scan's.
3. *tests*: the tests that are marked ``gpu``, in order of importance.
4. *speed*: microseconds a step of every engine beside flax, lax.scan and torch's cuDNN
   at five shapes, with XLA's command buffers and without (`benchmarks.accelerator`).
5. *memory*: bytes of a gradient, as compiled and as the device counts them.
6. *matrix*: a gated delta rule by steps and in chunks.
7. *newton*: the loop, one kernel and Newton's method.

Each part is a process of its own with a limit, so that a kernel that kills or hangs its
process takes one part along. After each part NAME.json and the page NAME.md are written
anew. A second call with the same name goes on: parts that are done are kept, the others
are tried again. --plan prints what would run, in which order and within how many
seconds, and runs nothing. --quick runs small sizes, on a CPU too, and writes files only
with --out.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

from ..harness import processes
from ..harness.options import Parser, command, one_of, positive
from ..harness.processes import DONE, FAILED, LEFT, OVER, PYTHON
from ..harness.report import RESULTS, number, table

GPU_TESTS = ("tests/engines/test_cudnn.py", "tests/engines/test_fused_gpu.py")
SPEED = ("e16", "h256", "flashrnn", "linear-16k", "e2048")
NO_TEST = 5  # pytest's status where no test is chosen
MARGIN = 15  # seconds in which `benchmarks.accelerator` ends after its own limit


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: of `PARTS`.
        what: it shows, in a few words.
        seconds: its limit.
        least: seconds below which it is not begun.
        quick: its limit under ``--quick``; 0 leaves it out there.
    """

    name: str
    what: str
    seconds: int
    least: int
    quick: int

    def words(self, seconds: float, quick: bool, out: pathlib.Path | None) -> list[str]:
        """Return the command."""
        if self.name == "tests":
            options = ["-q", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider"]
            return [*PYTHON, "pytest", *options, "--maxfail=10", *GPU_TESTS]
        if self.name == "speed":
            inside = f"{max(seconds - MARGIN, 1):.0f}"
            words = [*PYTHON, "benchmarks.accelerator", "--seconds", inside]
            words += ["--quick"] if quick else ["--configs", *SPEED]
            return words + (["--out", f"{out}_speed"] if out and not quick else [])
        measured = [*PYTHON, "benchmarks.accelerator.parts", self.name]
        return measured + ["quick"] * quick


PARTS = (
    Part("device", "the device, a matmul, the ceilings", 45, 15, 30),
    Part("correct", "values and gradients against float64", 110, 40, 45),
    Part("tests", "tests marked gpu", 130, 40, 0),
    Part("speed", "microseconds a step beside flax, lax.scan and cuDNN", 190, 60, 0),
    Part("memory", "bytes of a gradient", 35, 15, 30),
    Part("matrix", "a gated delta rule in chunks", 45, 20, 30),
    Part("newton", "the loop, a kernel, Newton's method", 45, 20, 30),
)


def planned(parts: list[Part], seconds: float, quick: bool) -> list[tuple[Part, float]]:
    """Return each part with the seconds that it gets if those before it use theirs up.

    A part for which too few are left gets 0.
    """
    plan, left = [], seconds
    for part in parts:
        limit = min(part.quick if quick else part.seconds, left)
        enough = limit >= (1 if quick else part.least)
        plan.append((part, limit if enough else 0.0))
        left -= limit if enough else 0.0
    return plan


def measure(
    part: Part, seconds: float, quick: bool, out: pathlib.Path | None
) -> dict[str, Any]:
    """Return what came of a part."""
    words = part.words(seconds, quick, out)
    nothing_to_do = NO_TEST if "pytest" in words else None
    return {"part": part.name, **processes.measure(words, seconds, nothing_to_do)}


def left_out(part: Part, reason: str) -> dict[str, Any]:
    """Return what stands for a part that did not run."""
    return {"part": part.name, "status": LEFT, "output": reason, "seconds": 0.0}


def page(result: dict[str, Any]) -> str:
    """Return all parts as text."""
    machine = next((p["machine"] for p in result["parts"] if "machine" in p), None)
    where = machine["device_kind"] if machine else "no device answered"
    lines = [f"# First light: {where}", "", f"`{result['command']}`", ""]
    rows = [
        [part["part"], part["status"], number(part["seconds"]), part.get("limit", "-")]
        for part in result["parts"]
    ]
    lines.append(table(["part", "status", "seconds", "of"], rows))
    for part in result["parts"]:
        what = next(p.what for p in PARTS if p.name == part["part"])
        lines += ["", f"## {part['part']}: {what}", ""]
        if part.get("rows"):
            lines += [rows_as_table(part["rows"]), ""]
        if part["output"]:
            lines += ["```text", part["output"].strip(), "```", ""]
    return "\n".join(lines)


def rows_as_table(rows: list[dict[str, Any]]) -> str:
    """Return rows with whatever columns they have."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    body = [[shown(row.get(key)) for key in head] for row in rows]
    return table([name.replace("_", " ") for name in head], body)


def shown(value: Any) -> str:
    """Return a value as a cell of a table."""
    if isinstance(value, dict):
        return number(value["median"])
    if isinstance(value, float):
        small = value != 0 and abs(value) < 1e-3
        return f"{value:.0e}" if small else number(value)
    return "-" if value in (None, "") else str(value)


def parse(argv: list[str] | None) -> Any:
    """Return the options, with the parts that are to run."""
    parser = Parser("accelerator.first_light", __doc__ or "", devices=False)
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--seconds", type=positive, help="for everything (default: 600, quick: 115)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        type=one_of(names, "part"),
        metavar="PART",
        help=f"of {', '.join(names)} (default: all)",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print what would run, and run nothing"
    )
    parser.add_argument(
        "--again", action="store_true", help="run parts that are done once more"
    )
    args = parser.parse_args(argv)
    args.seconds = args.seconds or (115 if args.quick else 600)
    args.chosen = [p for p in PARTS if not args.parts or p.name in args.parts]
    if args.quick:
        args.chosen = [part for part in args.chosen if part.quick]
    if not args.chosen:
        parser.error("--quick leaves these parts out: they need an accelerator")
    return args


def plan_table(parts: list[Part], seconds: float, quick: bool) -> str:
    """Return the plan as a table."""
    rows, at = [], 0.0
    for part, limit in planned(parts, seconds, quick):
        words = " ".join(["python", *part.words(limit, quick, None)[1:]])
        begins = f"{at:.0f}" if limit else f"left out: needs {part.least} s"
        rows.append([part.name, begins, f"{limit:.0f}", f"`{words}`"])
        at += limit
    return table(["part", "begins at, s", "at most, s", "command"], rows)


def main(argv: list[str] | None = None) -> int:
    """Run the parts; 1 if one of them failed."""
    args = parse(argv)
    out = RESULTS / (args.out or "first_light") if args.out or not args.quick else None
    path = out.with_name(out.name + ".json") if out else None
    earlier: dict[str, dict] = {}
    if path and path.exists() and not args.again:
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        earlier = {p["part"]: p for p in parts}
    todo = [p for p in args.chosen if earlier.get(p.name, {}).get("status") != DONE]
    if args.plan:
        print(plan_table(todo, args.seconds, args.quick))
        return 0
    deadline = time.monotonic() + args.seconds
    for part in todo:
        # What those before it left is for this one, up to its own limit.
        ((_, limit),) = planned([part], deadline - time.monotonic(), args.quick)
        if not limit:
            reason = f"not measured: the {args.seconds} seconds given were over"
            earlier[part.name] = left_out(part, reason)
        else:
            print(f"{part.name}: {part.what}, at most {limit:.0f} s", file=sys.stderr)
            earlier[part.name] = measure(part, limit, args.quick, out)
            print(f"  {earlier[part.name]['status']}", file=sys.stderr, flush=True)
        write(earlier, argv, path)
    done = [earlier[p.name] for p in PARTS if p.name in earlier]
    print(page({"command": command("accelerator.first_light", argv), "parts": done}))
    return int(any(part["status"] in (FAILED, OVER) for part in done))


def write(
    found: dict[str, dict], argv: list[str] | None, path: pathlib.Path | None
) -> None:
    """Write the JSON and the page, where files are written at all."""
    if path is None:
        return
    parts = [found[part.name] for part in PARTS if part.name in found]
    line = command("accelerator.first_light", argv)
    result = {"benchmark": "first_light", "command": line, "parts": parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
