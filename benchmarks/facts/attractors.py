"""The fact about what a trained memory of three bits is made of."""

from __future__ import annotations

import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable

from jaxrnn.tasks import train
from jaxrnn.tasks.dynamics import dynamics

from .fact import Bound, Fact, Row, of

SMALL = {"bits": 1, "length": 8, "hidden": 4}


def flip_flop(seeds: tuple[int, ...], quick: bool) -> list[Row]:
    """Train each cell and seed, and count its points and the edges between them."""
    rows = []
    for cell, seed in itertools.product(("gru", "lstm"), seeds):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "run"
            options = {"cell": cell, "seed": seed} | (SMALL if quick else {})
            budget = {"steps": 10} if quick else {}
            _, result, _ = train("flip-flop", options, budget, out=path)
            found, _ = dynamics(path, {"starts": 16} if quick else {})
        (under,) = found["inputs"].values()
        edges = {
            tuple(sorted(point["leads_to"]))
            for point in under["points"]
            if point["leads_to"] is not None and None not in point["leads_to"]
        }
        edges = {edge for edge in edges if edge[0] != edge[1]}
        corners = [end for edge in edges for end in edge]
        kinds = under["kinds"]
        rows.append(
            {
                "cell": cell,
                "seed": seed,
                "mse": result["mse"],
                "attractors": kinds.get("attractor", 0),
                "edges": len(edges),
                # At each corner of a cube three edges meet.
                "is_cube": kinds.get("attractor", 0) == 8
                and sorted(corners.count(c) for c in set(corners)) == [3] * 8,
                "kinds": kinds,
                "seconds": time.perf_counter() - began,
            }
        )
    return rows


def cubes(cell: str) -> Callable[[list[Row]], float]:
    """Return the function that counts networks of a cell that are a cube."""
    return lambda rows: float(len(of(rows, cell=cell, is_cube=True)))


WHY = "eight contents of the memory, twelve pairs that differ in one bit; 2 of 3 seeds"
FLIP_FLOP = Fact(
    "flip-flop",
    "A network that keeps three bits has an attractor for each of their 8 contents, "
    "and saddles between contents that differ in one bit.",
    "Sussillo & Barak (2013)",
    "32 units, 3 channels, 64 steps, 1,500 updates of 64 sequences, Adam 0.003 with a "
    "cosine schedule; fixed points in float64, each saddle followed to both sides",
    (
        Bound(
            "GRUs whose 8 attractors are the corners of a cube with 12 saddles between",
            ">=",
            2,
            cubes("gru"),
            WHY,
        ),
        Bound("LSTMs of which the same holds", ">=", 2, cubes("lstm"), WHY),
    ),
    (0, 1, 2),
    3,
    flip_flop,
)
