"""Recurrent layers on the accelerator: jaxrnn's engines beside lax.scan, flax and
torch's cuDNN.

    python -m benchmarks.accelerator [--quick] [--configs flashrnn e16 ...]
        [--seconds 540] [--rounds 15] [--out NAME]
    python -m benchmarks.accelerator --render NAME.json

An LSTM of FlashRNN's size (B 16, T 1024, H 768), small ones (H 128, B 16 and 2048; H
256), one long sequence (T 65,536), and the linear recurrence (8, 1536) over 16,384 and
65,536 steps, in order of importance. `forward` makes the outputs, `train` the gradients
of weights and inputs too. float32 with jax's default matmuls (TF32 on NVIDIA's newer
GPUs; "highest" without), bfloat16 beside it. Scans also with XLA's command buffers for
loops. All programs of a configuration run interleaved in one process; medians and
quartiles; the shares are of a matmul of the same precision and of copying, measured in
that process. Every answer is held against lax.scan in float32 with float32 matmuls.

Each configuration has a process of its own, and its result is written as soon as it is
there: where a program kills or hangs that process, it is left out with the reason and
the others are measured again. What cannot run is listed, never dropped. After --seconds
no new measurement begins. --quick runs tiny sizes, on a CPU too, and writes files only
with --out.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import queue
import subprocess
import sys
import threading
import time
from typing import Any

from ..harness import report
from ..harness.options import Parser, command, one_of, positive
from . import tables
from .measure import MARK
from .workload import CONFIGS, QUICK, Config

# seconds without a word, after which a process counts as hung; the longest steps are
# compilations
STALL = 90.0
TRIES = 3
LEAST = 20.0  # seconds that a configuration needs to be begun
# of the seconds that are left, for one configuration; but as many as these at least
SHARE, ENOUGH = (
    0.4,
    120.0,
)


def parse(argv: list[str] | None) -> Any:
    parser = Parser("accelerator", __doc__ or "", devices=False)
    parser.add_argument(
        "--configs",
        nargs="+",
        type=one_of([c.name for c in CONFIGS], "configuration"),
        metavar="CONFIG",
    )
    parser.add_argument(
        "--seconds", type=positive, help="for everything (default: 540, quick: 50)"
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        help="interleaved samples of each, at most (default: 15, quick: 2)",
    )
    parser.add_argument(
        "--render",
        metavar="JSON",
        help="write the table and the picture of a result, and measure nothing",
    )
    args = parser.parse_args(argv)
    args.seconds = args.seconds or (50 if args.quick else 540)
    args.rounds = args.rounds or (2 if args.quick else 15)
    known = QUICK if args.quick else CONFIGS
    args.configs = [c for c in known if not args.configs or c.name in args.configs]
    if not args.configs:
        parser.error(f"--quick has {', '.join(c.name for c in known)} only")
    args.parser = parser
    return args


def run_config(
    config: Config, seconds: float, rounds: int, quick: bool, start: Any = None
) -> dict:
    """The result of a configuration's process, begun again without an entry that
    killed or hung it.
    """
    deadline, without, left_out = time.monotonic() + seconds, [], []
    for _ in range(TRIES):
        remaining = deadline - time.monotonic()
        if remaining < min(LEAST, seconds):
            break
        found = (start or in_process)(config, remaining, rounds, tuple(without), quick)
        if "rows" in found or "refused" in found:
            return found | {"left_out": left_out + found.get("left_out", [])}
        at, reason = found["at"], found["failed"]
        entry = at.partition(":")[0] if ":" in at else None
        left_out.append(
            {
                "config": config.name,
                "entry": entry or "all",
                "mode": None,
                "reason": f"{reason}, at {at!r}",
            }
        )
        if entry is None:
            break
        without.append(entry)
    else:
        left_out.append(_not_measured(config, f"{TRIES} processes were lost"))
    return {"config": config._asdict(), "rows": [], "left_out": left_out}


def _not_measured(config: Config, reason: str) -> dict:
    return {
        "config": config.name,
        "entry": "all",
        "mode": None,
        "reason": f"not measured: {reason}",
    }


def in_process(
    config: Config, seconds: float, rounds: int, without: tuple[str, ...], quick: bool
) -> dict:
    """`accelerator_measure` in a process of its own: the result, or why there is
    none and what the process was at.
    """
    words = [
        sys.executable,
        "-m",
        "benchmarks.accelerator.measure",
        config.name,
        f"{seconds:.0f}",
        str(rounds),
    ]
    words += ["quick"] * quick + (["--without", *without] if without else [])
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )
    lines: queue.Queue = queue.Queue()
    errors: list[str] = []
    for stream, sink in ((process.stdout, lines.put), (process.stderr, errors.append)):
        threading.Thread(target=_pump, args=(stream, sink), daemon=True).start()
    found: dict = {"at": "the start"}
    deadline = time.monotonic() + seconds + 30
    while (line := _next(lines, min(STALL, deadline - time.monotonic()))) not in (
        None,
        "",
    ):
        if line.startswith(MARK):
            found |= json.loads(line.removeprefix(MARK))
    if line is None:
        process.kill()
        found["failed"] = f"hung: no word for {STALL:.0f} s, or over time"
    status = process.wait()
    if "result" in found:
        return found["result"]
    if "failed" not in found:
        last = next(
            (text.strip() for text in reversed(errors) if text.strip()), "no message"
        )
        found["failed"] = f"the process ended with status {status}: {last[:300]}"
    return found


def _pump(stream: Any, sink: Any) -> None:
    for line in stream:
        sink(line)
    sink("")


def _next(lines: queue.Queue, seconds: float) -> str | None:
    try:
        return lines.get(timeout=max(seconds, 0.1))
    except queue.Empty:
        return None


def path_of(args: Any, result: dict) -> pathlib.Path | None:
    """The JSON's: ``--out``, or by backend and version; None: --quick without --out
    writes nothing.
    """
    where = result["machine"]
    if args.out is None and (args.quick or where is None):
        return None
    name = args.out or f"accelerator_{where['backend']}_jax{where['versions']['jax']}"
    return (report.RESULTS / name).with_name(pathlib.Path(name).name + ".json")


def gather(args: Any, result: dict) -> str | None:
    """Every configuration, written as soon as it is measured; a reason to stop, if
    there is one.
    """
    deadline = time.monotonic() + args.seconds
    for config in args.configs:
        remaining = deadline - time.monotonic()
        if remaining < min(LEAST, args.seconds):
            result["left_out"].append(
                _not_measured(config, f"the {args.seconds} seconds given were over")
            )
            continue
        print(f"{config.name}: {config}", file=sys.stderr, flush=True)
        found = run_config(
            config,
            min(remaining, max(SHARE * remaining, ENOUGH)),
            args.rounds,
            args.quick,
        )
        if "refused" in found:
            return found["refused"]
        result["rows"] += found["rows"]
        result["left_out"] += found["left_out"]
        result["machine"] = result["machine"] or found.get("machine")
        for name, value in found.get("ceilings", {}).items():
            result["ceilings"][name] = max(value, result["ceilings"].get(name, 0.0))
        for row in result["rows"]:
            row["share_of_matmul"] = (
                row["gflops"] / result["ceilings"][row["ceiling"]]
                if row["gflops"]
                else None
            )
            row["share_of_copy"] = (
                row["gigabytes_per_second"] / result["ceilings"]["copy GB/s"]
            )
        path = path_of(args, result)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return None


def write(path: pathlib.Path, result: dict) -> int:
    """The JSON at ``path``, and its table and picture beside it; 0."""
    name = str(path.resolve()).removesuffix(".json")
    picture = (lambda figure: tables.draw(result, figure)) if result["rows"] else None
    report.write(
        name, result, tables.markdown(result), picture, tables.picture_size(result)
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 0."""
    args = parse(argv)
    if args.render:
        try:
            return write(
                pathlib.Path(args.render),
                json.loads(pathlib.Path(args.render).read_text(encoding="utf-8")),
            )
        except (OSError, ValueError, KeyError) as error:
            args.parser.error(
                f"--render {args.render}: not a result of this program "
                f"({type(error).__name__}: {error})"
            )
    result = {
        "benchmark": "accelerator",
        "command": command("accelerator", argv),
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": None,
        "quick": args.quick,
        "dtype": "float32 and bfloat16, see rows",
        "configs": [config._asdict() for config in args.configs],
        "quoted": [] if args.quick else tables.quoted_for(args.configs),
        "ceilings": {},
        "rows": [],
        "left_out": [],
    }
    refused = gather(args, result)
    if refused:
        args.parser.error(refused)
    path = path_of(args, result)
    if path is not None:
        return write(path, result)
    print(tables.markdown(result))
    print(
        "\nnothing is written"
        + (" by --quick without --out" if args.quick else ": nothing was measured")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
