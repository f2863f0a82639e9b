"""Steps that a researcher writes and that a backward pass of its own may serve badly:
time and memory beside ``jax.lax.scan``.

    python -m benchmarks.cpu.hidden [--cells ring_buffer ...]
        [--entries default carries scan] [--rounds 15]

Each cell is written as its users would write it, on plain arrays. ``default`` is
``unroll`` as it comes; ``scan`` is ``jax.lax.scan`` over the same step with the
projection before the loop; other entries are engines. Times are of value and gradient
with respect to params, first carry and inputs, or of the values alone where a row says
``forward``; all entries of a row are interleaved in one process. ``temp`` is what XLA
allocates beside arguments and results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import Cell

from ..harness import host
from ..harness.timing import interleave, statistics

ENTRIES = ("default", "scan")


def normal(key, *shape, scale=1.0):
    return scale * jax.random.normal(key, shape)


@dataclasses.dataclass(frozen=True)
class NewtonSchulz(Cell):
    """Recurrent weights made orthogonal in the step, by iterations of Newton and
    Schulz.
    """

    hidden_size: int
    iterations: int = 3

    def init(self, key, input_size):
        a, b = jax.random.split(key)
        H = self.hidden_size
        return {
            "W": normal(a, input_size, H, scale=0.3),
            "U": normal(b, H, H, scale=0.5 * H**-0.5),
        }

    def project(self, p, x):
        return x @ p["W"]

    def step(self, p, h, z):
        U = p["U"]
        for _ in range(self.iterations):
            U = 1.5 * U - 0.5 * U @ U.T @ U
        return jnp.tanh(z + h @ U)


class TokenState(NamedTuple):
    h: Any
    token: Any


@dataclasses.dataclass(frozen=True)
class OwnToken(Cell):
    """The token that the last step chose is in the carry, and its embedding is
    looked up in the step.
    """

    hidden_size: int
    vocabulary: int

    def init(self, key, input_size):
        a, b, c = jax.random.split(key, 3)
        H = self.hidden_size
        return {
            "W": normal(a, input_size, H, scale=0.3),
            "U": normal(b, H, H, scale=H**-0.5),
            "embedding": normal(c, self.vocabulary, H),
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return TokenState(
            jnp.zeros((*batch_shape, self.hidden_size)),
            jnp.zeros(batch_shape, jnp.int32),
        )

    def project(self, p, x):
        return x @ p["W"]

    def step(self, p, s, z):
        h = jnp.tanh(z + s.h @ p["U"] + p["embedding"][s.token])
        return TokenState(
            h, (s.token * 31 + jnp.argmax(h, -1).astype(jnp.int32)) % self.vocabulary
        )


@dataclasses.dataclass(frozen=True)
class LTC(Cell):
    """A liquid time-constant network: several small implicit steps an input."""

    hidden_size: int
    unfolds: int = 6

    def init(self, key, input_size):
        a, b = jax.random.split(key)
        H = self.hidden_size
        return {
            "W": normal(a, input_size, H, scale=0.3),
            "U": normal(b, H, H, scale=H**-0.5),
            "tau": jnp.ones((H,)),
            "A": jnp.ones((H,)),
        }

    def project(self, p, x):
        return x @ p["W"]

    def step(self, p, h, z):
        dt = 1.0 / self.unfolds

        def one(_, h):
            f = jax.nn.sigmoid(z + h @ p["U"])
            return (h + dt * f * p["A"]) / (1 + dt * (1 / p["tau"] + f))

        return jax.lax.fori_loop(0, self.unfolds, one, h)


@dataclasses.dataclass(frozen=True)
class Cayley(Cell):
    """The recurrent matrix is orthogonal by a Cayley map."""

    hidden_size: int

    def init(self, key, input_size):
        a, b = jax.random.split(key)
        H = self.hidden_size
        return {
            "W": normal(a, input_size, H, scale=0.3),
            "A": normal(b, H, H, scale=H**-0.5),
        }

    def project(self, p, x):
        return x @ p["W"]

    def step(self, p, h, z):
        skew, eye = p["A"] - p["A"].T, jnp.eye(self.hidden_size)
        return jnp.tanh(z + h @ jnp.linalg.solve(eye + skew, eye - skew))


class DeltaState(NamedTuple):
    h: Any
    S: Any


@dataclasses.dataclass(frozen=True)
class GatedDelta(Cell):
    """Gated DeltaNet (Yang et al. 2024), step by step."""

    keys: int
    values: int
    in_step: bool = False

    def init(self, key, input_size):
        names = {
            "q": self.keys,
            "k": self.keys,
            "v": self.values,
            "beta": 1,
            "decay": 1,
        }
        keys = jax.random.split(key, len(names))
        return {
            n: normal(k, input_size, size, scale=input_size**-0.5)
            for k, (n, size) in zip(keys, names.items(), strict=True)
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return DeltaState(
            jnp.zeros((*batch_shape, self.values)),
            jnp.zeros((*batch_shape, self.keys, self.values)),
        )

    def terms(self, p, x):
        k = x @ p["k"]
        k = k / jnp.sqrt(jnp.square(k).sum(-1, keepdims=True) + 1e-6)
        return (
            x @ p["q"],
            k,
            x @ p["v"],
            jax.nn.sigmoid(x @ p["beta"]),
            jax.nn.sigmoid(x @ p["decay"] + 2),
        )

    def project(self, p, x):
        return x if self.in_step else self.terms(p, x)

    def step(self, p, s, z):
        q, k, v, beta, decay = self.terms(p, z) if self.in_step else z
        S = decay[..., None] * s.S
        read = jnp.einsum("...k,...kv->...v", k, S)
        S = S + k[..., :, None] * (beta * (v - read))[..., None, :]
        return DeltaState(jnp.einsum("...k,...kv->...v", q, S), S)


class RingState(NamedTuple):
    h: Any
    buffer: Any
    at: Any


@dataclasses.dataclass(frozen=True)
class RingBuffer(Cell):
    """Old states come back after many steps, out of a ring buffer in the carry."""

    hidden_size: int
    rows: int

    def init(self, key, input_size):
        a, b, c = jax.random.split(key, 3)
        H = self.hidden_size
        return {
            "W": normal(a, input_size, H, scale=0.3),
            "U": normal(b, H, H, scale=H**-0.5),
            "V": normal(c, H, H, scale=H**-0.5),
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        H = self.hidden_size
        return RingState(
            jnp.zeros((*batch_shape, H)),
            jnp.zeros((*batch_shape, self.rows, H)),
            jnp.zeros(batch_shape, jnp.int32),
        )

    def project(self, p, x):
        return x @ p["W"]

    def step(self, p, s, z):
        if s.at.ndim:
            return jax.vmap(lambda s, z: self.step(p, s, z))(s, z)
        old = jax.lax.dynamic_index_in_dim(s.buffer, s.at, 0, keepdims=False)
        h = jnp.tanh(z + s.h @ p["U"] + old @ p["V"])
        buffer = jax.lax.dynamic_update_index_in_dim(s.buffer, h, s.at, 0)
        return RingState(h, buffer, (s.at + 1) % self.rows)


@dataclasses.dataclass(frozen=True)
class DearBranch(Cell):
    """Now and then an input asks for a dear branch."""

    hidden_size: int

    def init(self, key, input_size):
        a, b, c = jax.random.split(key, 3)
        H = self.hidden_size
        return {
            "W": normal(a, input_size, H, scale=0.3),
            "U": normal(b, H, H, scale=H**-0.5),
            "V": normal(c, H, H, scale=H**-0.5),
        }

    def step(self, p, h, x):
        def dear(z):
            for _ in range(16):
                z = jnp.tanh(z @ p["V"])
            return z

        z = x @ p["W"]
        z = jax.lax.cond(x[..., 0].max() > 1.8, dear, lambda z: z, z)
        return jnp.tanh(z + h @ p["U"])


@dataclasses.dataclass(frozen=True)
class MaskedPlain(Cell):
    """An Elman cell as one writes it, everything in the step."""

    hidden_size: int

    def init(self, key, input_size):
        a, b = jax.random.split(key)
        H = self.hidden_size
        return {
            "W": normal(a, input_size, H, scale=0.3),
            "U": normal(b, H, H, scale=H**-0.5),
            "b": jnp.zeros((H,)),
        }

    def step(self, p, h, x):
        return jnp.tanh(x @ p["W"] + h @ p["U"] + p["b"])


class Row(NamedTuple):
    cell: Cell
    shape: tuple[int, ...]  # of xs: (T, *B, D)
    forward: bool = False


ROWS: dict[str, Row] = {
    "newton_schulz": Row(NewtonSchulz(64), (128, 8, 16)),
    "own_token": Row(OwnToken(64, 5000), (100, 4, 16)),
    "own_token_one": Row(OwnToken(64, 5000), (100, 16)),
    "ltc": Row(LTC(256), (400, 4, 16)),
    "ltc_one": Row(LTC(256), (400, 16)),
    "cayley": Row(Cayley(64), (200, 4, 16)),
    "gated_delta": Row(GatedDelta(64, 64), (128, 2, 64)),
    "gated_delta_in_step": Row(GatedDelta(64, 64, True), (128, 2, 64)),
    "diagonal_gru_long": Row(jaxrnn.DiagonalGRU(8), (100_000, 1, 4)),
    "diagonal_gru_long_forward": Row(jaxrnn.DiagonalGRU(8), (100_000, 1, 4), True),
    "ring_buffer": Row(RingBuffer(16, 4000), (200, 4)),
    "ring_buffer_batch": Row(RingBuffer(16, 1000), (100, 4, 4)),
    "dear_branch_forward": Row(DearBranch(64), (256, 4, 16), True),
    "dear_branch": Row(DearBranch(64), (256, 4, 16)),
    "elman_prime": Row(jaxrnn.Elman(2), (100_003, 1, 2)),
    "elman_even": Row(jaxrnn.Elman(2), (100_000, 1, 2)),
    "elman_own": Row(MaskedPlain(64), (256, 8, 32)),
    "diagonal_gru": Row(jaxrnn.DiagonalGRU(128), (512, 16, 64)),
    "diagonal_lstm": Row(jaxrnn.DiagonalLSTM(128), (512, 16, 64)),
    "indrnn": Row(jaxrnn.IndRNN(128), (512, 16, 64)),
    "slstm": Row(jaxrnn.SLSTM(64), (256, 8, 32)),
    "lstm": Row(jaxrnn.LSTM(128), (512, 16, 128)),
    "lstm_small": Row(jaxrnn.LSTM(16), (512, 1, 8)),
    "gru": Row(jaxrnn.GRU(64), (1024, 8, 64)),
    "elman": Row(jaxrnn.Elman(128), (512, 16, 128)),
}


def by_scan(cell: Cell, params: Any, xs: Any, carry: Any) -> tuple[Any, Any]:
    """``jax.lax.scan`` over the cell's step, as one would write it without this
    library.
    """
    zs = cell.project(params, xs)

    def step(carry, now):
        z, x = now
        carry = cell.step(params, carry, z)
        return carry, cell.output(params, carry, x)

    return jax.lax.scan(step, carry, (zs, xs))


def program(name: str, row: Row) -> Callable:
    """Values, or value and gradient, of a weighted sum of outputs and last carry."""
    engine = (
        None
        if name in ENTRIES
        else eval(name, {"Scan": jaxrnn.Scan, "Checkpoint": jaxrnn.Checkpoint})
    )

    def run(params, xs, carry, weights):
        if name == "scan":
            last, ys = by_scan(row.cell, params, xs, carry)
        else:
            last, ys = jaxrnn.unroll(row.cell, params, xs, carry, engine=engine)
        if row.forward:
            return last, ys
        real = [
            leaf.sum()
            for leaf in jax.tree.leaves(last)
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
        return (ys * weights).sum() + sum(real)

    return run if row.forward else jax.value_and_grad(run, (0, 1, 2), allow_int=True)


def measure(name: str, row: Row, entries: list[str], rounds: int) -> list[dict]:
    """One row: every entry compiled, compared with ``scan``, and timed interleaved."""
    random = np.random.default_rng(0)
    params = row.cell.init(jax.random.key(0), row.shape[-1])
    xs = jnp.asarray(random.normal(size=row.shape), jnp.float32)
    carry = row.cell.initial_carry(params, row.shape[1:-1])
    like = jax.eval_shape(lambda *a: by_scan(row.cell, *a)[1], params, xs, carry)
    args = params, xs, carry, jnp.asarray(random.normal(size=like.shape), jnp.float32)
    compiled = {
        entry: jax.jit(program(entry, row)).lower(*args).compile() for entry in entries
    }
    want = jax.tree.leaves(compiled["scan"](*args)) if "scan" in compiled else None
    runs = {
        entry: (lambda c=c: jax.block_until_ready(c(*args)))
        for entry, c in compiled.items()
    }
    times = interleave(runs, rounds)
    rows = []
    for entry, seconds in times.items():
        found = jax.tree.leaves(compiled[entry](*args))
        difference = None
        if want is not None:
            pairs = [
                (a, b)
                for a, b in zip(found, want, strict=True)
                if jnp.issubdtype(a.dtype, jnp.floating)
            ]
            difference = max(
                float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-30))
                for a, b in pairs
            )
        rows.append(
            {
                "row": name,
                "shape": row.shape,
                "forward": row.forward,
                "entry": entry,
                "ms": statistics(seconds, 1e3),
                "temp_bytes": compiled[entry].memory_analysis().temp_size_in_bytes,
                "relative_difference": difference,
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "benchmarks.cpu.hidden", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--cells",
        nargs="+",
        choices=list(ROWS),
        default=list(ROWS),
        metavar="CELL",
        help=", ".join(ROWS),
    )
    parser.add_argument(
        "--entries",
        nargs="+",
        default=list(ENTRIES),
        help="default, scan, or engines such as 'Scan(chunk=8)'",
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", help="write JSON here")
    args = parser.parse_args(argv)
    found = []
    for name in args.cells:
        rows = measure(name, ROWS[name], args.entries, args.rounds)
        base = next((r for r in rows if r["entry"] == "scan"), rows[0])
        for r in rows:
            print(
                f"{name:26} {r['entry']:28} {r['ms']['median']:9.3f} ms (min "
                f"{r['ms']['min']:9.3f})"
                f" x{r['ms']['median'] / base['ms']['median']:5.2f}  "
                f"{r['temp_bytes'] / 1e6:9.3f} MB"
                f" x{r['temp_bytes'] / max(base['temp_bytes'], 1):6.2f}  diff "
                f"{r['relative_difference']:.1e}",
                flush=True,
            )
        found += rows
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"machine": host.describe(), "rows": found}, file, indent=1)
        print(f"written: {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
