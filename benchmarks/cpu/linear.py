"""Linear recurrences: step by step, in parallel, in parallel chunks, and as others
write them, interleaved in one process.

    python -m benchmarks.cpu.linear [--quick] [--cells MinGRU LRU ...]
        [--shapes T,B,D ...] [--rounds N]

Two parts, float32. *Recurrence*: s_t = a_t s_{t-1} + b_t alone, a and b given. *Cells*:
a whole layer, projections and all, with as many features as units. `forward` computes
the states or outputs, `train` also the gradients of a fixed random projection of them
with respect to everything. Every answer is held against `lax.scan`; the largest
relative difference stands beside the times. Bytes are those that any implementation
must move: what comes in and what goes out, once; their share is of what copying a large
array reached in the same run. Beside ours:

    lax.scan        the recurrence as one writes it in JAX, factors made before the
    loop, JAX's own derivative associative     jax.lax.associative_scan used directly,
    JAX's own derivative heinsen         two cumulative sums in the log domain (Heinsen
    2023, arXiv:2311.06281); positive a and b only griffin         the RG-LRU with
    Griffin's formula a = exp(-8 r softplus(p)), in a lax.scan
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn import Associative, Scan

from ..harness import host, report
from ..harness.options import Parser, command, one_of, positive
from ..harness.timing import compiled, interleave, statistics

CELLS = ("MinGRU", "MinLSTM", "LRU", "S5", "RGLRU")
GRID = ("512,16,128", "4096,8,256", "16384,1,128", "65536,1,16")
QUICK = ("512,4,32",)
MODES = ("forward", "train")
PICTURED = ("default", "chunked", "whole", "lax.scan")
SIZE = (11.5, 7.5)  # of the picture, in inches
RECURRENCE = "recurrence"
# accelerated-scan's README, an unnamed NVIDIA GPU, (8, 1536, T), forward, milliseconds:
# to stand beside a GPU's figures
ACCELERATED_SCAN = {1024: 0.18, 16384: 2.82, 65536: 11.3}
ENGINES = {
    "default": None,
    "scan": Scan(save="dots"),
    "chunked": Associative(),
    "chunks of 64": Associative(64),
    "whole": Associative(10**9),
}


class Size(NamedTuple):
    """Steps, batch, features and units."""

    T: int
    B: int
    D: int

    def __str__(self) -> str:
        return f"T {self.T:,}, B {self.B}, D {self.D}"


def size(text: str) -> Size:
    """``T,B,D``."""
    parts = text.split(",")
    if len(parts) != 3:
        raise ValueError(f"{text!r} is not a shape: write T,B,D, such as 4096,8,256")
    return Size(*map(positive, parts))


@dataclasses.dataclass(frozen=True)
class Given(jaxrnn.LinearCell):
    """The bare recurrence: inputs are a and b side by side."""

    hidden_size: int

    def init(self, key: Any, input_size: int) -> dict:
        return {"none": jnp.zeros(())}

    def affine(self, params: Any, z: Any) -> tuple[Any, Any]:
        a, b = jnp.split(z, 2, axis=-1)
        return a, b


class Work(NamedTuple):
    """A layer, its parameters and its inputs."""

    name: str
    cell: Any
    params: Any
    xs: Any
    ys_size: int

    @property
    def size(self) -> Size:
        return Size(*self.xs.shape[:2], self.cell.hidden_size)

    def bytes(self, mode: str) -> int:
        """What must be moved: inputs and outputs; training reads the cotangent of ys
        and writes that of xs too.
        """
        through = self.xs.nbytes + 4 * self.ys_size
        return (
            through
            if mode == "forward"
            else through + 4 * self.ys_size + self.xs.nbytes
        )


def make_work(name: str, shape: Size) -> Work:
    """Random parameters and inputs; the recurrence's factors lie in [0.5, 1), its
    drive is positive.
    """
    k_params, k_xs, k_more = jax.random.split(jax.random.key(0), 3)
    T, B, D = shape
    if name == RECURRENCE:
        a = jax.random.uniform(k_xs, (T, B, D), minval=0.5, maxval=0.999)
        b = jax.random.uniform(k_more, (T, B, D), minval=0.01)
        return Work(
            name,
            Given(D),
            Given(D).init(k_params, D),
            jnp.concatenate([a, b], -1),
            T * B * D,
        )
    cell = getattr(jaxrnn, name)(D)
    return Work(
        name,
        cell,
        cell.init(k_params, D),
        jax.random.normal(k_xs, (T, B, D)),
        T * B * D,
    )


# --------------------------------------------------------------------------------------
# who takes part


def by_engine(engine: Any) -> Callable:
    return lambda cell, params, xs: jaxrnn.unroll(cell, params, xs, engine=engine)[1]


def factors(cell: Any, params: Any, xs: Any) -> tuple[Any, Any]:
    a, b = cell.affine(params, cell.project(params, xs))
    return jnp.broadcast_to(a, b.shape), b


def by_scan(cell: Any, params: Any, xs: Any) -> Any:
    return cell.output(params, scanned(*factors(cell, params, xs)), xs)


def scanned(a: Any, b: Any) -> Any:
    def step(s, ab):
        s = ab[0] * s + ab[1]
        return s, s

    return jax.lax.scan(step, jnp.zeros_like(b[0]), (a, b))[1]


def by_associative_scan(cell: Any, params: Any, xs: Any) -> Any:
    def joined(early, late):
        return late[0] * early[0], late[0] * early[1] + late[1]

    return cell.output(
        params, jax.lax.associative_scan(joined, factors(cell, params, xs))[1], xs
    )


def by_heinsen(cell: Any, params: Any, xs: Any) -> Any:
    """log s_t = A_t + logcumsumexp(log b_t - A_t), A the cumulative sum of log a."""
    a, b = factors(cell, params, xs)
    total = jnp.cumsum(jnp.log(a), axis=0)
    return jnp.exp(total + jax.lax.cumlogsumexp(jnp.log(b) - total, axis=0))


def by_griffin(cell: Any, params: Any, xs: Any) -> Any:
    z, x = cell.project(params, xs)
    r, i = jnp.split(jax.nn.sigmoid(z), 2, axis=-1)
    a = jnp.exp(-8 * r * jax.nn.softplus(-params["decay"]))
    return scanned(a, jnp.sqrt(1 - a * a) * i * x)


ENTRIES: dict[str, Callable] = {
    name: by_engine(engine) for name, engine in ENGINES.items()
}
ENTRIES |= {
    "lax.scan": by_scan,
    "associative": by_associative_scan,
    "heinsen": by_heinsen,
    "griffin": by_griffin,
}
ONLY = {"heinsen": RECURRENCE, "griffin": "RGLRU"}


def program(work: Work, entry: str, mode: str) -> Callable:
    unrolled = ENTRIES[entry]
    if mode == "forward":
        return lambda params, xs, _: unrolled(work.cell, params, xs)
    return jax.grad(
        lambda params, xs, weights: jnp.sum(unrolled(work.cell, params, xs) * weights),
        (0, 1),
    )


def difference(actual: Any, expected: Any) -> float:
    """The largest difference of any leaf, relative to its largest number."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(
        float(jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(b)), 1e-30))
        for a, b in pairs
    )


def copy_bandwidth(megabytes: int = 256, repeats: int = 8) -> float:
    """Bytes read and written in a second by adding 1 to a large array: the best of
    ``repeats``.
    """
    x = jnp.zeros((megabytes * 250_000,), jnp.float32)
    add = jax.jit(lambda x: x + 1).lower(x).compile()
    jax.block_until_ready(add(x))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(add(x))
        seconds.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(seconds)


def measure(work: Work, rounds: int) -> list[dict]:
    """Time all that apply, together; a row for each entry and mode."""
    weights = jax.random.normal(
        jax.random.key(1),
        (*work.xs.shape[:2], work.ys_size // (work.size.T * work.size.B)),
    )
    names = [name for name in ENTRIES if ONLY.get(name, work.name) == work.name]
    args = (work.params, work.xs, weights)
    off, made = {}, {}
    for mode in MODES:
        expected = jax.jit(program(work, "lax.scan", mode))(*args)
        for name in names:
            made[name, mode] = compiled(program(work, name, mode), *args)
            off[name, mode] = difference(made[name, mode].run(), expected)
        del expected
    return [
        {
            "cell": work.name,
            "shape": work.size._asdict(),
            "entry": name,
            "mode": mode,
            "ms": statistics(seconds, 1e3),
            "gigabytes_per_second": work.bytes(mode)
            / statistics(seconds)["median"]
            / 1e9,
            "temporary_bytes": made[name, mode].temporary_bytes,
            "compile_seconds": made[name, mode].compile_seconds,
            "relative_difference": off[name, mode],
        }
        for (name, mode), seconds in interleave(
            {key: each.run for key, each in made.items()}, rounds
        ).items()
    ]


# --------------------------------------------------------------------------------------
# reporting


def groups_of(rows: Iterable[dict]) -> list[tuple]:
    return list(dict.fromkeys((r["cell"], Size(**r["shape"]), r["mode"]) for r in rows))


def verdicts(rows: list[dict]) -> list[str]:
    """For every cell, shape and mode: the default against the best of ours, and
    against associative_scan used directly.
    """
    lines = []
    for group in groups_of(rows):
        ms = {
            r["entry"]: r["ms"]["median"]
            for r in rows
            if (r["cell"], Size(**r["shape"]), r["mode"]) == group
        }
        best = min((name for name in ENGINES if name != "default"), key=ms.__getitem__)
        cell, shape, mode = group
        lines.append(
            f"{cell}, {shape}, {mode}: default {ms['default'] / ms[best]:.2f} times "
            f"the best of ours ({best}), "
            f"{ms['associative'] / ms['default']:.2f} times as fast as "
            f"jax.lax.associative_scan"
        )
    return lines


def markdown(result: dict) -> str:
    """A table for each cell, shape and mode, and the verdicts."""
    head = [
        "entry",
        "ms (median)",
        "quartiles",
        "GB/s",
        "of copying",
        "temporaries, MB",
        "compile s",
        "difference",
    ]
    number, rows = report.number, result["rows"]
    lines = [f"# Linear recurrences: {host.where(result['machine'])}", ""]
    lines.append(
        f"`{result['command']}`, {result['rounds']} rounds. Copying: "
        f"{result['copy_gigabytes_per_second']:.1f} GB/s."
    )
    for group in groups_of(rows):
        cell, shape, mode = group
        lines += [
            "",
            f"## {cell}, {shape}: "
            f"{'forward' if mode == 'forward' else 'forward and backward'}",
            "",
        ]
        these = [r for r in rows if (r["cell"], Size(**r["shape"]), r["mode"]) == group]
        lines.append(report.table(head, [_cells(r, result, number) for r in these]))
        if (
            cell == RECURRENCE
            and mode == "forward"
            and result["machine"]["backend"] == "gpu"
            and shape.T in ACCELERATED_SCAN
        ):
            lines.append(
                f"\naccelerated-scan publishes {ACCELERATED_SCAN[shape.T]} ms for (8, "
                f"1536, {shape.T})."
            )
    times = {
        name: [r["ms"] for r in rows if r["entry"] == name]
        for name in dict.fromkeys(r["entry"] for r in rows)
    }
    tail = [*verdicts(rows), *report.disturbed_lines(times)]
    return "\n".join([*lines, "", *(f"- {line}" for line in tail)])


def _cells(row: dict, result: dict, number: Any) -> list[str]:
    ms, rate = row["ms"], row["gigabytes_per_second"]
    return [
        row["entry"],
        number(ms["median"]),
        f"{number(ms['q1'])} - {number(ms['q3'])}",
        number(rate),
        f"{100 * rate / result['copy_gigabytes_per_second']:.0f} %",
        number(row["temporary_bytes"] / 1e6),
        number(row["compile_seconds"], 2),
        f"{row['relative_difference']:.0e}",
    ]


def draw(result: dict, figure: Any) -> None:
    """Draw how many times as fast each way is as jax.lax.associative_scan: a panel for
    each mode, a row for each work.
    """
    ms = {
        (r["cell"], Size(**r["shape"]), r["mode"], r["entry"]): r["ms"]["median"]
        for r in result["rows"]
    }
    panels = figure.subplots(1, 2, sharey=True)
    for axes, mode in zip(panels, reversed(MODES), strict=True):
        groups = [g for g in groups_of(result["rows"]) if g[2] == mode]
        series = {
            name: [ms[*g, "associative"] / ms[*g, name] for g in groups]
            for name in PICTURED
        }
        labels = [f"{cell} ({s.T:,}, {s.B}, {s.D})" for cell, s, _ in groups]
        report.dots(axes, labels, series)
        axes.set_xlabel("times as fast as jax.lax.associative_scan")
        axes.set_title("Gradients" if mode == "train" else "The forward pass alone")
    panels[0].set_ylabel("cell (steps, batch, features)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"Ways to run a linear recurrence, float32\n{host.where(result['machine'])}",
        x=0.01,
        ha="left",
    )


def parse(argv: list[str] | None) -> Any:
    parser = Parser("cpu.linear", __doc__ or "", devices=False)
    parser.add_argument(
        "--cells", nargs="+", type=one_of((RECURRENCE, *CELLS), "cell"), metavar="CELL"
    )
    parser.add_argument("--shapes", nargs="+", type=size, metavar="T,B,D")
    parser.add_argument(
        "--rounds",
        type=positive,
        help="interleaved samples of each (default: 9, quick: 3)",
    )
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (3 if args.quick else 9)
    args.shapes = args.shapes or list(map(size, QUICK if args.quick else GRID))
    args.cells = args.cells or (
        (RECURRENCE, "MinGRU") if args.quick else (RECURRENCE, *CELLS)
    )
    return args


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 0."""
    args = parse(argv)
    host.prepare(1)
    result = report.content(
        "linear", command("cpu.linear", argv), rounds=args.rounds, rows=[]
    )
    result["copy_gigabytes_per_second"] = (
        copy_bandwidth(16 if args.quick else 256) / 1e9
    )
    for name in args.cells:
        for shape in args.shapes:
            print(f"{name}, {shape}", file=sys.stderr, flush=True)
            result["rows"] += measure(make_work(name, shape), args.rounds)
    name = report.result_name("linear", args.out, args.quick)
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
