"""How much of an LSTM's time its matrix products take, in XLA and in torch: ``python -m
benchmarks.cpu.products [--shapes B,T,H ...] [--quick]``.

The gradient of an LSTM multiplies matrices in five ways: all inputs by the input kernel
before the loop, the state by the recurrent kernel at each step, the gates' cotangent by
its transpose at each step back, and at the end the weights' and the inputs' gradients.
Here these products run alone, with nothing between them, by XLA and by torch, beside
both libraries' whole gradients, all interleaved in one process. What the products of
XLA take more than those of torch, no arrangement of a loop can give back. Torch's
products are called one by one from Python, as nobody trains, so that for small matrices
they take longer than its LSTM, which is one call: then the ratio says nothing. The last
column is the time of the whole divided by ``1.05 x torch x max(1, XLA's products /
torch's products)``: up to 1 the loop around the products is as good as torch's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..harness import report
from ..harness.host import where
from ..harness.options import Parser, Shape, command, positive, shape
from ..harness.timing import Program, compiled, interleave, statistics
from ..harness.workload import Work
from ..peers.adapters import SkipEntryError, require
from ..peers.registry import prepare_entries

SHAPES = ("1,1024,128", "8,1024,64", "16,512,128", "32,256,128", "32,128,256")
SHAPES += ("64,64,512",)
ALLOWED = 1.05


def operands(size: Shape) -> dict[str, np.ndarray]:
    """Return random numbers in the shapes of an LSTM's products."""
    random = np.random.default_rng(0)

    def draw(*dims: int) -> np.ndarray:
        return random.normal(size=dims).astype(np.float32) / np.sqrt(dims[-1])

    B, T, I, H = size
    recurrent = draw(H, 4 * H)
    # Multiplied again and again, a state neither grows nor becomes denormal.
    recurrent[:, :H] = np.linalg.qr(recurrent[:, :H])[0]
    return {
        "xs": draw(T * B, I),
        "W": draw(I, 4 * H),
        "U": recurrent,
        "hs": draw(T, B, H),
        "dz": draw(T, B, 4 * H),
    }


def by_xla(size: Shape) -> Program:
    """Return the products as one compiled program, in two loops over time."""
    B, T, _, H = size

    def products(xs, W, U, hs, dz):
        z = xs @ W

        def forwards(h, _):
            # The next product waits for this one, and for nothing else.
            return (h @ U)[:, :H], None

        def backwards(total, d):
            return total + d @ U.T, None

        h, _ = jax.lax.scan(forwards, hs[0], None, length=T)
        dh, _ = jax.lax.scan(backwards, jnp.zeros_like(hs[0]), dz)
        d = dz.reshape(T * B, 4 * H)
        return z, h, dh, xs.T @ d, hs.reshape(T * B, H).T @ d, d @ W.T

    return compiled(products, *operands(size).values())


def by_torch(size: Shape) -> Program:
    """Return the products by torch, each loop as one scripted function."""
    torch: Any = require("torch")
    B, T, _, H = size
    xs, W, U, hs, dz = (torch.from_numpy(a) for a in operands(size).values())
    transposed = U.T.contiguous()

    def run():
        with torch.no_grad():
            z = xs @ W
            h, total = hs[0], torch.zeros_like(hs[0])
            for _ in range(T):
                h = torch.mm(h, U)[:, :H]
            for t in range(T):
                total = torch.addmm(total, dz[t], transposed)
            d = dz.reshape(T * B, 4 * H)
            return z, h, total, xs.T @ d, hs.reshape(T * B, H).T @ d, d @ W.T

    return Program(run)


def measure(size: Shape, rounds: int) -> dict[str, Any]:
    """Return a row: the wholes, the products, and what the aim allows."""
    work = Work("LSTM", size)
    ready, left_out = prepare_entries(("jaxrnn", "torch"), work, modes=("train",))
    if left_out:
        raise SkipEntryError(left_out[0]["reason"])
    runs: dict[Any, Callable[[], Any]] = {
        name: entry.programs["train"].run for name, entry in ready.items()
    }
    xla, torch = by_xla(size), by_torch(size)
    check(xla.run(), torch.run())
    runs |= {"XLA's products": xla.run, "torch's products": torch.run}
    ms = {
        name: statistics(values, 1e3)
        for name, values in interleave(runs, rounds).items()
    }
    ours, theirs, mine, other = (ms[name]["median"] for name in runs)
    return {
        "shape": size._asdict(),
        "ms": ms,
        "share_of_jaxrnn": mine / ours,
        "share_of_torch": other / theirs,
        "products_ratio": mine / other,
        "whole_ratio": ours / theirs,
        "of_what_is_allowed": ours / (ALLOWED * theirs * max(1.0, mine / other)),
    }


def check(ours: Any, theirs: Any) -> None:
    """Check that both have multiplied the same matrices."""
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if not np.allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()):
            raise ValueError("the products of XLA and torch are not the same")


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    head = ["LSTM", "jaxrnn, ms", "torch, ms", "XLA's products", "torch's products"]
    head += ["whole, ratio", "products, ratio", "of what is allowed"]
    lines = [
        [
            str(Shape(**row["shape"])),
            *(report.number(row["ms"][name]["median"]) for name in row["ms"]),
            f"{row['whole_ratio']:.2f}",
            f"{row['products_ratio']:.2f}",
            f"{row['of_what_is_allowed']:.2f}",
        ]
        for row in result["rows"]
    ]
    title = "# The matrix products of an LSTM's gradient, alone and in the whole"
    rounds = f"{result['rounds']} interleaved rounds, medians, float32."
    return (
        f"{title}\n\n{where(result['machine'])}. {rounds}\n\n"
        f"{report.table(head, lines)}"
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; 0."""
    parser = Parser("cpu.products", __doc__ or "", devices=False)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        metavar="B,T,H",
        default=[shape(text) for text in SHAPES],
        help=f"default: {' '.join(SHAPES)}",
    )
    parser.add_argument(
        "--rounds", type=positive, help="interleaved rounds (default: 15, quick: 3)"
    )
    args = parser.parse_args(argv)
    rounds = args.rounds or (3 if args.quick else 15)
    sizes = [shape("4,32,16")] if args.quick else args.shapes
    try:
        rows = [measure(size, rounds) for size in sizes]
    except SkipEntryError as reason:
        parser.exit(2, f"nothing was measured: {reason}\n")
    result = report.content(
        "products", command("cpu.products", argv), rounds=rounds, rows=rows
    )
    if args.quick and not args.out:
        print(markdown(result))
        return 0
    name = args.out or f"products_cpu_jax{jax.__version__}"
    report.write(name, result, markdown(result), None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
