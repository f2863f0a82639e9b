"""Online gradients: ``python -m benchmarks.gradients.online``.

- the time of a step, forward and gradient, of `Traces`, `RTRL`, `UORO` and
  backpropagation in windows
- the memory of a gradient over 100, 1,000 and 10,000 steps, from the compiled programs
- learning curves of the task `recall` at several delays, by `Traces(RTU)`, `RTRL`,
  `TBPTT(1, 1)`, `TBPTT(1, 32)` and of the readout alone: one update after each batch
  of sequences

A readout of random slow units knows something of the cue at short delays, without any
gradient through time. That is why few units and long delays are needed, and why the
readout alone stands in the table.

Writes a JSON file and a table, after every part. With ``--quick`` few delays and small
sizes are tried.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from jaxrnn.cells import RTU
from jaxrnn.online import RTRL, UORO, Traces
from jaxrnn.tasks.models.named_cells import slow_trace_units
from jaxrnn.tasks.synthetic import recall
from jaxrnn.tasks.synthetic.task import held_out_batches

from ..harness.host import where
from ..harness.options import Parser, command, one_of, positive
from ..harness.report import RESULTS, content, number, result_name, table, write
from ..harness.timing import compiled, interleave

PARTS = ("costs", "memory", "learning")
LENGTHS = (100, 1_000, 10_000)
K1 = 16  # steps of a window of RTRL and UORO
SOLVED = 0.995  # a held-out accuracy at which training ends
HIDDEN = 4  # units: few, so that a readout of random ones does not find the cue


class Model(NamedTuple):
    """A cell with a readout of one number or of classes."""

    cell: Any
    outputs: int

    def init(self, key: jax.Array, features: int) -> Any:
        k_rnn, k_readout = jax.random.split(key)
        rnn = self.cell.init(k_rnn, features)
        width = jax.eval_shape(
            lambda: self.cell(rnn, self.cell.initial_carry(rnn), jnp.ones(features))[1]
        ).shape[0]
        scale = width**-0.5
        kernel = scale * jax.random.normal(k_readout, (width, self.outputs))
        return {"rnn": rnn, "readout": kernel}

    def initial_carry(self, params: Any, batch_shape: tuple[int, ...]) -> Any:
        return self.cell.initial_carry(params["rnn"], batch_shape)

    def score(self, params: Any, ys: Any, target: Any) -> Any:
        """The loss of every step."""
        return optax.softmax_cross_entropy_with_integer_labels(
            ys @ params["readout"], target
        )

    def losses(self, params: Any, carry: Any, window: jaxrnn.Window) -> Any:
        _, ys, carries = jaxrnn.unroll(
            self.cell,
            params["rnn"],
            window.inputs,
            carry,
            mask=window.mask,
            return_carries=True,
        )
        targets, counts = window.targets
        return jnp.where(counts, self.score(params, ys, targets), 0), carries

    def by_traces(self, params: Any, window: jaxrnn.Window) -> Any:
        """The gradient of the sum of the losses, step by step."""
        traces = Traces(self.cell)

        def loss(params, state, now):
            x, target, counts = now
            state, y = traces.step(params["rnn"], state, x)
            return jnp.where(counts, self.score(params, y, target), 0).sum(), state

        def body(before, now):
            state, total = before
            (_, state), new = jax.value_and_grad(loss, has_aux=True)(params, state, now)
            return (state, jax.tree.map(jnp.add, total, new)), None

        first = traces.init(params["rnn"], window.inputs[0])
        zero = jax.tree.map(jnp.zeros_like, params)
        rows = (window.inputs, *window.targets)
        return jax.lax.scan(body, (first, zero), rows)[0][1]

    def by_readout(self, params: Any, window: jaxrnn.Window) -> Any:
        """The gradient of the readout; the cell stays as it was drawn."""
        ys = jaxrnn.unroll(self.cell, params["rnn"], window.inputs)[1]
        targets, counts = window.targets

        def loss(readout):
            scores = self.score({"readout": readout}, ys, targets)
            return jnp.where(counts, scores, 0).sum()

        still = jax.tree.map(jnp.zeros_like, params["rnn"])
        return {"rnn": still, "readout": jax.grad(loss)(params["readout"])}

    def by_windows(self, method: Any, params: Any, window: jaxrnn.Window) -> Any:
        """The gradient of the mean over steps, times their number."""
        batch = window.inputs.shape[1:-1]
        state = method.init(params, window, batch)
        key = {"key": jax.random.key(0)} if isinstance(method, UORO) else {}
        gradient = method.value_and_grad(params, window, state, **key)[1]
        steps = float(np.prod(window.inputs.shape[:-1]))
        return jax.tree.map(lambda g: steps * g, gradient)


def methods(model: Model, length: int, names: list[str]) -> dict[str, Callable]:
    """``gradient(params, window)`` by name."""
    pair = (model.losses, model.initial_carry)
    windows = {
        "RTRL": RTRL(*pair, k1=K1),
        "UORO": UORO(*pair, k1=K1),
        "TBPTT(1, 1)": jaxrnn.TBPTT(*pair, k1=1),
        "TBPTT(1, 32)": jaxrnn.TBPTT(*pair, k1=1, k2=32),
        "BPTT": jaxrnn.TBPTT(*pair, k1=length),
    }
    every: dict[str, Callable] = {
        "Traces": model.by_traces,
        "readout alone": model.by_readout,
        **{
            name: lambda params, window, m=method: model.by_windows(m, params, window)
            for name, method in windows.items()
        },
    }
    return {name: every[name] for name in names}


def random_window(length: int, batch: int, features: int) -> jaxrnn.Window:
    k_input, k_target = jax.random.split(jax.random.key(1))
    targets = jax.random.randint(k_target, (length, batch), 0, 2)
    counts = jnp.ones((length, batch), bool)
    inputs = jax.random.normal(k_input, (length, batch, features))
    return jaxrnn.Window(inputs, (targets, counts))


def costs(sizes: list[int], batch: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a step of every method, over 100 steps."""
    rows, length = [], 100
    names = ["Traces", "RTRL", "UORO", "TBPTT(1, 1)", "TBPTT(1, 32)", "BPTT"]
    for cell in (RTU, jaxrnn.GRU):
        for size in sizes:
            model = Model(cell(size), 2)
            params = model.init(jax.random.key(0), size)
            window = random_window(length, batch, size)
            programs = {
                name: compiled(call, params, window)
                for name, call in methods(model, length, names).items()
            }
            seconds = interleave(
                {name: program.run for name, program in programs.items()}, rounds
            )
            for name, times in seconds.items():
                rows.append(
                    {
                        "cell": cell.__name__,
                        "H": size,
                        "B": batch,
                        "T": length,
                        "method": name,
                        "us_a_step": {
                            "median": 1e6 * float(np.median(times)) / length,
                            "min": 1e6 * min(times) / length,
                            "max": 1e6 * max(times) / length,
                        },
                        "compile_seconds": programs[name].compile_seconds,
                    }
                )
    return rows


def memory(size: int, batch: int, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Bytes that a gradient takes besides inputs and outputs, by length."""
    rows = []
    for cell in (RTU, jaxrnn.GRU):
        model = Model(cell(size), 2)
        params = model.init(jax.random.key(0), size)
        for length in lengths:
            window = jax.eval_shape(lambda n=length: random_window(n, batch, size))
            for name, call in methods(
                model, length, ["Traces", "RTRL", "UORO", "BPTT"]
            ).items():
                program = jax.jit(call).lower(params, window).compile()
                rows.append(
                    {
                        "cell": cell.__name__,
                        "H": size,
                        "B": batch,
                        "T": length,
                        "method": name,
                        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
                    }
                )
    return rows


def learn(
    name: str, delay: int, seed: int, updates: int, seconds: float
) -> dict[str, Any]:
    """The learning curve of the task `recall` by one method."""
    options = recall.Options(delay=delay, hidden=HIDDEN, seed=seed)
    problem = recall.problem(options)
    # With the default ring few units would hold anything after 128 steps, whatever
    # computes the gradient.
    model = Model(slow_trace_units(options.hidden), options.symbols)
    (gradient,) = methods(model, problem.length, [name]).values()
    params = model.init(jax.random.key(seed), problem.input_size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(options.clip), optax.adam(options.learning_rate)
    )
    batches = held_out_batches(problem, seed, problem.length)

    @jax.jit
    def update(params, opt_state, key):
        drawn = problem.draw(key, problem.length, options.batch)
        window = jaxrnn.Window(drawn.inputs, (drawn.targets, drawn.counts))
        changes = jax.tree.map(lambda g: g / options.batch, gradient(params, window))
        changes, opt_state = optimizer.update(changes, opt_state, params)
        return optax.apply_updates(params, changes), opt_state

    @jax.jit
    def right(params, batch):
        ys = jaxrnn.unroll(model.cell, params["rnn"], batch.inputs)[1]
        return ((ys[-1] @ params["readout"]).argmax(-1) == batch.targets[-1]).mean()

    def accuracy(params):
        return float(np.mean([right(params, batch) for batch in batches]))

    opt_state, curve = optimizer.init(params), []
    began, every = time.process_time(), max(updates // 20, 1)
    for step in range(1, updates + 1):
        key = jax.random.fold_in(jax.random.key(seed + 1), step)
        params, opt_state = update(params, opt_state, key)
        if step % every == 0 or step == updates:
            curve.append({"update": step, "accuracy": accuracy(params)})
            spent = time.process_time() - began
            if curve[-1]["accuracy"] >= SOLVED or spent > seconds:
                break
    return {
        "method": name,
        "delay": delay,
        "seed": seed,
        "cell": repr(model.cell),
        "updates": step,
        "most_updates": updates,
        "cpu_seconds": time.process_time() - began,
        "accuracy": curve[-1]["accuracy"],
        "best": max(point["accuracy"] for point in curve),
        "chance": 1 / options.symbols,
        "curve": curve,
    }


def spread(values: list[float], form: str) -> str:
    """The mean, and the least and the most where they differ."""
    mean, least, most = (form.format(f(values)) for f in (np.mean, np.min, np.max))
    return mean if least == most else f"{mean} ({least}-{most})"


def by_delay(rows: list[dict[str, Any]], cell: Callable) -> str:
    """A table with a row for each method and a column for each delay."""
    delays = sorted({row["delay"] for row in rows})
    body = []
    for name in dict.fromkeys(row["method"] for row in rows):
        each = [
            [r for r in rows if (r["method"], r["delay"]) == (name, delay)]
            for delay in delays
        ]
        body.append([name, *(cell(some) if some else "-" for some in each)])
    return table(["method", *map(str, delays)], body)


def tables(result: dict[str, Any]) -> str:
    """All tables as text."""
    rows = result["learning"]
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    lines = [
        "## Accuracy on recall, by delay",
        "",
        f"RTU({HIDDEN}); the mean of the seeds {seeds}, and the least and the most.",
        "",
        by_delay(
            rows, lambda some: spread([row["accuracy"] for row in some], "{:.3f}")
        ),
        "",
        f"## Updates until an accuracy of {SOLVED}, or the most that were allowed",
        "",
        by_delay(rows, lambda some: spread([row["updates"] for row in some], "{:.0f}")),
        "",
        "## CPU seconds of these updates",
        "",
        by_delay(
            rows, lambda some: number(np.mean([row["cpu_seconds"] for row in some]))
        ),
        "",
    ]
    lines += ["## Microseconds a step, over 100 steps, with the gradient", ""]
    head = ["method"]
    shapes = list(dict.fromkeys((r["cell"], r["H"], r["B"]) for r in result["costs"]))
    head += [f"{cell}({H}), B {B}" for cell, H, B in shapes]
    names = dict.fromkeys(r["method"] for r in result["costs"])
    body = [
        [name]
        + [
            number(r["us_a_step"]["median"])
            for shape in shapes
            for r in result["costs"]
            if (r["method"], (r["cell"], r["H"], r["B"])) == (name, shape)
        ]
        for name in names
    ]
    lines += [table(head, body), "", "## Temporary bytes of a gradient", ""]
    columns = list(dict.fromkeys((r["cell"], r["T"]) for r in result["memory"]))
    body = [
        [name]
        + [
            f"{r['temporary_bytes']:,}"
            for column in columns
            for r in result["memory"]
            if (r["method"], (r["cell"], r["T"])) == (name, column)
        ]
        for name in dict.fromkeys(r["method"] for r in result["memory"])
    ]
    lines.append(table(["method", *(f"{c}, T {T:,}" for c, T in columns)], body))
    return "\n".join(lines)


def plan(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Which methods learn at which delays, with which seeds."""
    delays = args.delays or ([4] if args.quick else [2, 8, 32, 128])
    seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    names = ["Traces", "RTRL", "TBPTT(1, 32)", "TBPTT(1, 1)", "readout alone"]
    # RTRL is exact, as the traces of this cell are, and costs more.
    return [
        (n, d, s)
        for n in names
        for d in delays
        for s in seeds
        if n != "RTRL" or d <= 32
    ]


def main(argv: list[str] | None = None) -> int:
    parser = Parser("gradients.online", __doc__ or "", devices=False)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        type=one_of(PARTS, "part"),
        help=f"of {', '.join(PARTS)}: all; the others keep what an earlier run found",
    )
    parser.add_argument(
        "--delays", type=positive, nargs="+", help="of recall (2 8 32 128)"
    )
    parser.add_argument("--updates", type=positive, help="most updates (600)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of recall (0 1 2)")
    parser.add_argument(
        "--seconds", type=positive, default=40, help="most CPU seconds of a run (40)"
    )
    args = parser.parse_args(argv)
    name = result_name("online", args.out, args.quick)
    found: dict[str, Any] = {part: [] for part in PARTS} | {"commands": {}}
    path = RESULTS / f"{name}.json"
    if args.parts and path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        found |= {name: earlier[name] for name in found}

    def keep(part: str, rows: list[dict[str, Any]]) -> None:
        found[part] = rows
        found["commands"][part] = command("gradients.online", argv)
        commands = "; ".join(dict.fromkeys(found["commands"].values()))
        result = content("online", commands, k1=K1, **found)
        title = f"# Online gradients: {where(result['machine'])}"
        write(name, result, f"{title}\n\n{tables(result)}", None)

    parts = args.parts or PARTS
    updates = args.updates or (20 if args.quick else 600)
    sizes, rounds = ([4], 2) if args.quick else ([16, 64], 5)
    if "costs" in parts:
        keep("costs", costs(sizes, batch=1, rounds=rounds))
    if "memory" in parts:
        lengths = LENGTHS[:2] if args.quick else LENGTHS
        keep("memory", memory(sizes[0], batch=1, lengths=lengths))
    rows = []
    for run in plan(args) if "learning" in parts else []:
        rows.append(learn(*run, updates, args.seconds))
        keep("learning", rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
