"""Recurrences on a matrix state: step by step, and in chunks, interleaved in one
process; and streaming.

    python -m benchmarks.cpu.matrix [--quick] [--rules gdn gla ...] [--rounds N]

Three parts, float32. *Rules*: S_t = (Diag(exp g) + b a^T) S_{t-1} + k v^T alone, its
terms given, T 2048, B 4, 4 heads of 64 x 64: the gradient of a fixed random projection
of all reads and of the last state with respect to all terms and the first state. Every
gradient is held against that of `lax.scan`; the largest relative difference stands
beside the times. Where memax is installed, `lax.associative_scan` over its semigroup of
gated delta rules runs after them (`pip install memax equinox`): it multiplies matrices
of 64 x 64 for every pair of steps that it joins. memax's own `GDN` layer erases along
the values instead of the keys; the row gives its semigroup the terms that make it the
rule. *Cells*: whole layers, projections, convolutions and outputs with them.
*Streaming*: 1,000 steps inside one compiled loop by the cell's streaming call, beside
the recurrence written out by hand; and tokens a second of a prompt that is read in
chunks, and of those decoded after it one by one.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn import Scan, Terms, cells
from jaxrnn.matrix import MatrixMemory
from jaxrnn.matrix.chunkwise import run_chunkwise
from jaxrnn.matrix.terms import take_step

from ..harness import host, report
from ..harness.options import Parser, command, one_of, positive
from ..harness.timing import compiled, interleave, statistics
from .linear import difference

T, B, N, K = 2048, 4, 4, 64
CHUNKS = (16, 32, 64, 128)
RULES = ("mamba2", "gla", "delta", "gdn", "kda", "rwkv7")
STEPS = "lax.scan"
STREAMED = 1000
FIGURES = ["ms (median)", "quartiles", "temporaries, MB", "compile s", "off"]


def draw(key: Any, *shape: int) -> Any:
    return jax.random.normal(key, shape)


def unit(x: Any) -> Any:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def terms_of(rule: str, steps: int) -> Terms:
    """Random terms of a rule."""
    keys = jax.random.split(jax.random.key(0), 6)
    q, k = (unit(draw(key, steps, B, N, K)) for key in keys[:2])
    v, beta = draw(keys[2], steps, B, N, K), draw(keys[3], steps, B, N, 1)
    head, channel = (
        -jax.nn.softplus(draw(key, steps, B, N, size) - 3)
        for key, size in zip(keys[4:], (1, K), strict=True)
    )
    beta = jax.nn.sigmoid(beta)
    return {
        "mamba2": lambda: Terms(q, k, v, head),
        "gla": lambda: Terms(q, k, v, channel),
        "delta": lambda: Terms(q, k, beta * v, a=-beta * k),
        "gdn": lambda: Terms(q, k, beta * v, head, -beta * jnp.exp(head) * k),
        "kda": lambda: Terms(q, k, beta * v, channel, -beta * jnp.exp(channel) * k),
        "rwkv7": lambda: Terms(q, k, v, channel, -k, beta * k),
    }[rule]()


def by_chunks(chunk: int) -> Callable:
    def run(terms, S):
        live = jnp.ones(terms.v.shape[:2], bool)
        memory, (y, _) = run_chunkwise(
            lambda z: z,
            lambda y, m, z: y.reshape(*y.shape[:-2], -1),
            MatrixMemory(S),
            None,
            terms,
            live,
            None,
            chunk=chunk,
            reverse=False,
        )
        return memory.S, y.reshape(terms.v.shape)

    return run


def by_steps(terms, S):
    def step(memory, now):
        return take_step(memory, now, "after")

    memory, y = jax.lax.scan(step, MatrixMemory(S), terms)
    return memory.S, y


def by_memax() -> Callable | None:
    """The gated delta rule by memax's semigroup and scan; None where it is missing."""
    try:
        scans = importlib.import_module("memax.equinox.scans")
        rules = importlib.import_module("memax.equinox.semigroups.gdn")
    except ImportError:
        return None
    join = rules.GDNSemigroup(K)

    def one_head(q, k, v, g, a, S):
        decay = jnp.exp(g)[..., None] * jnp.eye(K)
        steps = (decay + k[..., None] * a[..., None, :], k[..., None] * v[..., None, :])
        _, states = scans.semigroup_scan(join, (jnp.eye(K), S), steps)
        return states[-1], jnp.einsum("tkv,tk->tv", states, q)

    def run(terms, S):
        given = (terms.q, terms.k, terms.v, terms.g, terms.a)
        heads = jax.vmap(one_head, in_axes=(1,) * 5 + (0,), out_axes=(0, 1))
        return jax.vmap(heads, in_axes=(1,) * 5 + (0,), out_axes=(0, 1))(*given, S)

    return run


def gradient(run: Callable) -> Callable:
    def loss(terms, S, weights):
        last, y = run(terms, S)
        return (y * weights).sum() + last.sum()

    return jax.grad(loss, (0, 1))


def measure_rule(rule: str, steps: int, rounds: int) -> list[dict]:
    """Rows of one rule: `lax.scan` over steps, and every size of chunk."""
    S, weights = jnp.zeros((B, N, K, K)), draw(jax.random.key(1), steps, B, N, K)
    args = (terms_of(rule, steps), S, weights)
    entries = {STEPS: by_steps} | {f"chunks of {c}": by_chunks(c) for c in CHUNKS}
    made = {name: compiled(gradient(run), *args) for name, run in entries.items()}
    rows = rows_of("rule", rule, made, made[STEPS].run(), rounds)
    if rule == "gdn" and (run := by_memax()):
        # Apart from the others, which its gigabytes would disturb.
        peer = {"memax, associative_scan": compiled(gradient(run), *args)}
        rows += rows_of("rule", rule, peer, made[STEPS].run(), min(rounds, 3))
    return rows


def measure_cell(name: str, steps: int, rounds: int) -> list[dict]:
    """Rows of a whole cell: its steps, and the default engine."""
    cell = getattr(cells, name)(N * K, num_heads=N)
    params = cell.init(jax.random.key(0), N * K)
    xs = draw(jax.random.key(1), steps, B, N * K)

    def program(engine):
        def loss(params, xs):
            return (jaxrnn.unroll(cell, params, xs, engine=engine)[1] ** 2).sum()

        return jax.grad(loss, (0, 1))

    made = {
        STEPS: compiled(program(Scan(save="everything")), params, xs),
        "Scan()": compiled(program(Scan()), params, xs),
        "default": compiled(program(None), params, xs),
    }
    return rows_of("cell", name, made, made[STEPS].run(), rounds)


def measure_streaming(rounds: int, steps: int, prompt: int) -> list[dict]:
    """Rows of 1,000 steps in one loop, and of a prompt with what is decoded after."""
    cell = cells.GatedDeltaNet(N * K, num_heads=N, conv=None, use_gate=False)
    params = cell.init(jax.random.key(0), N * K)
    xs = draw(jax.random.key(1), steps, 1, N * K)
    carry = cell.initial_carry(params, (1,))

    def call(params, carry, xs):
        return jax.lax.scan(lambda c, x: cell(params, c, x), carry, xs)

    def by_hand(params, carry, xs):
        def step(S, x):
            z = x @ params["input_kernel"]
            q, k, v, b, a = jnp.split(
                z, [N * K, 2 * N * K, 3 * N * K, 3 * N * K + N], 1
            )
            q, k, v = (jax.nn.silu(y).reshape(1, N, K) for y in (q, k, v))
            q, k = (
                y * jax.lax.rsqrt((y * y).sum(-1, keepdims=True) + 1e-6) for y in (q, k)
            )
            step_size = jax.nn.softplus(a + params["dt_bias"])
            alpha = jnp.exp(-jnp.exp(params["A_log"]) * step_size)[..., None, None]
            beta = jax.nn.sigmoid(b)[..., None]
            S = alpha * S
            new = beta * (v - jnp.einsum("bnkv,bnk->bnv", S, k))
            S = S + k[..., None] * new[..., None, :]
            y = jnp.einsum("bnkv,bnk->bnv", S, q / K**0.5)
            y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5)
            h = (y * params["norm_scale"]).reshape(1, N * K)
            return S, h @ params["output_kernel"]

        S, ys = jax.lax.scan(step, carry.S, xs)
        return carry._replace(S=S), ys

    def prefilled(params, carry, xs):
        carry, ys = jaxrnn.unroll(cell, params, xs, carry)
        return carry, ys[-1]

    def decoded(params, carry, y):
        def step(state, _):
            carry, y = cell(params, *state)
            return (carry, y), y

        return jax.lax.scan(step, (carry, y), length=steps)[1]

    args = (params, carry, xs)
    made = {"by hand": compiled(by_hand, *args), "the cell": compiled(call, *args)}
    off = difference(made["the cell"].run()[1], made["by hand"].run()[1])
    rows = rows_of("streaming", f"{steps} steps", made, None, rounds)
    long = (params, carry, draw(jax.random.key(2), prompt, 1, N * K))
    prefill = compiled(prefilled, *long)
    more = {
        f"prefill, {prompt} steps": prefill,
        f"decode, {steps} steps": compiled(decoded, params, *prefill.run()),
    }
    rows += rows_of("streaming", "prefill and decode", more, None, rounds)
    counts = (steps, steps, prompt, steps)
    return [
        {
            **row,
            "relative_difference": off,
            "tokens_per_second": 1e3 * count / row["ms"]["median"],
        }
        for row, count in zip(rows, counts, strict=True)
    ]


def rows_of(part: str, name: str, made: dict, expected: Any, rounds: int) -> list[dict]:
    """Time the programs together; a row for each."""
    off = {
        entry: 0.0 if expected is None else difference(each.run(), expected)
        for entry, each in made.items()
    }
    runs: dict = {entry: each.run for entry, each in made.items()}
    return [
        {
            "part": part,
            "name": name,
            "entry": entry,
            "ms": statistics(seconds, 1e3),
            "temporary_bytes": made[entry].temporary_bytes,
            "compile_seconds": made[entry].compile_seconds,
            "relative_difference": off[str(entry)],
        }
        for entry, seconds in interleave(runs, rounds).items()
    ]


def figures(row: dict) -> list[str]:
    """The columns `FIGURES` of a row."""
    number, ms = report.number, row["ms"]
    return [
        number(ms["median"]),
        f"{number(ms['q1'])} - {number(ms['q3'])}",
        number(row["temporary_bytes"] / 1e6),
        number(row["compile_seconds"], 2),
        f"{row['relative_difference']:.0e}",
    ]


def order(row: dict) -> tuple[int, int]:
    """Where a row stands in the tables."""
    rules = {name: i for i, name in enumerate(RULES)}
    return ("rule", "cell", "streaming").index(row["part"]), rules.get(row["name"], 0)


def markdown(result: dict) -> str:
    """A table for each rule, cell and stream."""
    number = report.number
    lines = [f"# Matrix states: {host.where(result['machine'])}", ""]
    lines.append(f"`{result['command']}`, {result['rounds']} rounds.")
    head = ["entry", *FIGURES]
    groups = dict.fromkeys((row["part"], row["name"]) for row in result["rows"])
    for part, name in groups:
        rows = [r for r in result["rows"] if (r["part"], r["name"]) == (part, name)]
        cells_of = [[row["entry"], *figures(row)] for row in rows]
        lines += ["", f"## {part}: {name}", "", report.table(head, cells_of)]
    streams = [row for row in result["rows"] if "tokens_per_second" in row]
    lines += ["", "## streaming: tokens a second of one stream", ""]
    lines.append(
        report.table(
            ["entry", "tokens a second"],
            [[row["entry"], number(row["tokens_per_second"])] for row in streams],
        )
    )
    names = dict.fromkeys(row["entry"] for row in result["rows"])
    times = {
        name: [row["ms"] for row in result["rows"] if row["entry"] == name]
        for name in names
    }
    return "\n".join([*lines, "", *(f"- {x}" for x in report.disturbed_lines(times))])


def parse(argv: list[str] | None) -> Any:
    parser = Parser("cpu.matrix", __doc__ or "", devices=False)
    parser.add_argument(
        "--rules", nargs="*", type=one_of(RULES, "rule"), metavar="RULE"
    )
    parser.add_argument("--cells", nargs="*", metavar="CELL", help="default: four")
    parser.add_argument(
        "--rounds",
        type=positive,
        help="interleaved samples of each (default: 7, quick: 3)",
    )
    parser.add_argument(
        "--no-streaming",
        dest="streaming",
        action="store_false",
        help="leave streaming out",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep the rows of an earlier result that are not measured now",
    )
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (3 if args.quick else 7)
    if args.rules is None:
        args.rules = ("gdn",) if args.quick else RULES
    if args.cells is None:
        args.cells = () if args.quick else ("GatedDeltaNet", "Mamba2", "GLA", "MLSTM")
    args.steps = 128 if args.quick else T
    return args


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 0, or 2 where rows of two machines would be mixed."""
    args = parse(argv)
    host.prepare(1)
    out = report.result_name("matrix", args.out, args.quick)
    earlier = report.RESULTS / f"{out}.json"
    known = None
    if args.add and earlier.exists():
        known = json.loads(earlier.read_text(encoding="utf-8"))
        before, now = known["machine"]["processor"], host.processor()
        if before != now:
            print(
                f"--add: the rows of {earlier} are of {before}, and this is {now}; "
                f"measure all rows anew, or name another --out",
                file=sys.stderr,
            )
            return 2
    result = report.content(
        "matrix", command("cpu.matrix", argv), rounds=args.rounds, rows=[]
    )
    for rule in args.rules:
        print(rule, file=sys.stderr, flush=True)
        result["rows"] += measure_rule(rule, args.steps, args.rounds)
    for name in args.cells:
        print(name, file=sys.stderr, flush=True)
        result["rows"] += measure_cell(name, args.steps, args.rounds)
    if args.streaming:
        steps = 100 if args.quick else STREAMED
        result["rows"] += measure_streaming(args.rounds, steps, args.steps)
    if known is not None:
        new = {(row["part"], row["name"]) for row in result["rows"]}
        kept = [row for row in known["rows"] if (row["part"], row["name"]) not in new]
        result["rows"] = sorted([*result["rows"], *kept], key=order)
    report.write(out, result, markdown(result), None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
