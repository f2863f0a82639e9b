"""One number of devices, in a process of its own: ``python -m
benchmarks.scaling.worker counts|times|large DEVICES [--quick]`` prints rows as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn

from ..harness.timing import interleave, statistics
from .counting import count

MARK = "ROW "
CELLS: dict[str, Callable[[int], Any]] = {
    "LSTM": jaxrnn.LSTM,
    "GRU": jaxrnn.GRU,
    "LRU": jaxrnn.LRU,
    "MLSTM": lambda size: jaxrnn.MLSTM(size, num_heads=4),
}
SMALL = (16, 64, 64)  # B, T, D = H of the exact counts
LARGE = (32, 256, 1024)  # B a device, T, D = H of the programs of the prediction
TIMED = (16, 128, 128)  # B a device, T, D = H of what is timed


def loss_of(cell: Any, engine: Any = None) -> Callable[[Any, Any], Any]:
    """Return the mean square of outputs, as a function of params and inputs."""

    def loss(params, xs):
        return jnp.mean(jaxrnn.unroll(cell, params, xs, engine=engine)[1] ** 2)

    return loss


def gradient_of(cell: Any, mesh: Mesh) -> Any:
    """Return value and gradient under jit, with the rows of the batch split."""
    everywhere = NamedSharding(mesh, P())
    rows = NamedSharding(mesh, P(None, "batch"))
    return jax.jit(
        jax.value_and_grad(loss_of(cell)),
        in_shardings=(everywhere, rows),
        out_shardings=everywhere,
    )


def across_time(cell: Any, mesh: Mesh) -> Any:
    """Return value and gradient with time split over the devices, by `Across`."""
    engine = jaxrnn.Across("time")  # type: ignore[attr-defined]

    def ys(params, xs):
        return jaxrnn.unroll(cell, params, xs, engine=engine)[1]

    split = jax.shard_map(
        ys, mesh=mesh, in_specs=(P(), P("time")), out_specs=P("time"), check_vma=False
    )
    return jax.jit(
        jax.value_and_grad(lambda params, xs: jnp.mean(split(params, xs) ** 2)),
        in_shardings=(NamedSharding(mesh, P()), NamedSharding(mesh, P("time"))),
        out_shardings=NamedSharding(mesh, P()),
    )


def shapes_of(cell: Any, batch: int, steps: int, size: int) -> tuple[Any, Any]:
    """Return the shapes of parameters and inputs."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), size))
    return params, jax.ShapeDtypeStruct((steps, batch, size), jnp.float32)


def bytes_of(tree: Any) -> int:
    """Return the bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def counted(
    name: str, split: str, devices: int, batch: int, steps: int, size: int
) -> dict[str, Any]:
    """Compile a gradient, and return what one device sends, computes and keeps."""
    cell = CELLS[name](size)
    params, xs = shapes_of(cell, batch, steps, size)
    mesh = Mesh(jax.devices()[:devices], ("batch" if split == "batch" else "time",))
    program = (gradient_of if split == "batch" else across_time)(cell, mesh)
    compiled = program.lower(params, xs).compile()
    counts = count(compiled.as_text())
    carry = jax.eval_shape(
        lambda: cell.initial_carry(cell.init(jax.random.key(0), size), (batch,))
    )
    return {
        "cell": name,
        "split": split,
        "devices": devices,
        "shape": {"B": batch, "T": steps, "H": size},
        "collectives": dict(sorted(counts.collectives.items())),
        "looped": counts.looped,
        "bytes": counts.bytes,
        "gradient_bytes": bytes_of(params),
        "carry_bytes": bytes_of(carry),
        "flops": counts.flops,
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def counts(devices: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of every cell at a small shape, the same for any number of devices."""
    batch, steps, size = SMALL
    for name in ("LSTM", "LRU") if quick else CELLS:
        yield counted(name, "batch", devices, batch, steps, size)
    if hasattr(jaxrnn, "Across"):
        for name in ("LRU",) if quick else ("LRU", "MLSTM"):
            yield counted(name, "time", devices, batch, steps, size)


def large(devices: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of large layers, compiled and not run."""
    batch, steps, size = (2, 16, 64) if quick else LARGE
    for name in ("LSTM", "LRU") if quick else CELLS:
        yield counted(name, "batch", devices, batch * devices, steps, size)


def times(devices: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Milliseconds of one device with its rows, and of all with theirs, interleaved."""
    batch, steps, size = (4, 16, 32) if quick else TIMED
    runs: dict[tuple[str, int], Callable[[], Any]] = {}
    for name in ("LSTM", "LRU") if quick else CELLS:
        cell = CELLS[name](size)
        params = cell.init(jax.random.key(0), size)
        for some in (1, devices):
            mesh = Mesh(jax.devices()[:some], ("batch",))
            xs = jax.random.normal(jax.random.key(1), (steps, batch * some, size))
            placed = (
                jax.device_put(params, NamedSharding(mesh, P())),
                jax.device_put(xs, NamedSharding(mesh, P(None, "batch"))),
            )
            program = gradient_of(cell, mesh).lower(*placed).compile()
            runs[name, some] = lambda program=program, placed=placed: (
                jax.block_until_ready(program(*placed))
            )
    seconds = interleave(runs, 3 if quick else 31)
    for name in dict.fromkeys(name for name, _ in runs):
        one, many = seconds[name, 1], seconds[name, devices]
        yield {
            "cell": name,
            "devices": devices,
            "shape": {"B": batch, "T": steps, "H": size},
            "ms_one": statistics(one, 1e3),
            "ms_all": statistics(many, 1e3),
            "efficiency": statistics([a / b for a, b in zip(one, many, strict=True)]),
        }


def main(argv: list[str]) -> int:
    """Print the rows."""
    what, devices = argv[0], int(argv[1])
    rows = {"counts": counts, "large": large, "times": times}[what]
    for row in rows(devices, "--quick" in argv):
        print(MARK + json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
