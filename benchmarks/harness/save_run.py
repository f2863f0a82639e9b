"""Keep what a run reached: ``python -m benchmarks.harness.save_run RUN NAME`` writes
``benchmarks/results/NAME.json`` and ``NAME.png``.

The JSON holds the run's options and budget, its result with device and versions, the
processor's name, and its learning curve against steps and seconds; the picture is the
run's ``curves.png``.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys

from jaxrnn.training import Run

RESULTS = pathlib.Path(__file__).parents[1] / "results"


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next(
        (
            line.split(":", 1)[1].strip()
            for line in lines
            if line.startswith("model name")
        ),
        "unknown",
    )


def record(run: Run, name: str) -> pathlib.Path:
    """Write the two files; the path of the JSON."""
    RESULTS.mkdir(exist_ok=True)
    seconds = {r["step"]: round(r["seconds"], 1) for r in run.records("timing.jsonl")}
    held_out = [
        {
            "step": r["step"],
            "seconds": seconds.get(r["step"]),
            **{k: v for k, v in r.items() if k.startswith("held_out")},
        }
        for r in run.records("metrics.jsonl")
        if any(k.startswith("held_out") for k in r)
    ]
    content = {
        "processor": processor(),
        "result": json.loads((run.path / "result.json").read_text(encoding="utf-8")),
        "options": run.config["options"],
        "budget": run.config["budget"],
        "held_out": held_out,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if (run.path / "curves.png").exists():
        shutil.copy(run.path / "curves.png", RESULTS / f"{name}.png")
    return path


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(record(Run.open(sys.argv[1]), sys.argv[2]))
