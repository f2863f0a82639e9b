"""Write down values and gradients of every cell and layer, and what the rest computes.

    PYTHONPATH=.:tests python -m frozen.make_numbers

All engines agree, so numbers stand once for each walk; that they do is checked here.
``supports.json`` says which engines take which cells.
"""

import json

import jax
import numpy as np

from . import others, store, walks
from .paths import DATA

TOLERANCE = 1e-12


def of_walks() -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """All numbers of the walks, and by engine the cells it takes."""
    arrays: dict[str, np.ndarray] = {}
    supports: dict[str, list[str]] = {engine: [] for engine in walks.COMPARED}
    for name in walks.layers():
        given = walks.draw(name)
        arrays |= walks.stored(name, given)
        for walk in walks.walks_of(name):
            found = walks.outcome(name, walk, given)
            arrays |= {f"{name}/{walk}/{part}": a for part, a in found.items()}
            if walk == "flags":
                taken = agreeing(name, given, found)
                supports |= {engine: supports[engine] + [name] for engine in taken}
        print(name, flush=True)
    return arrays, supports


def agreeing(name: str, given: walks.Given, expected: dict) -> list[str]:
    """The engines that take a cell; each has to give the same numbers."""
    taken = []
    for engine in walks.COMPARED:
        try:
            found = walks.outcome(name, "flags", given, engine)
        except (TypeError, ValueError):
            continue
        error = walks.difference(found, expected)
        assert error <= TOLERANCE, (name, engine, error)
        taken.append(engine)
    return taken


def main() -> None:
    """Write both files."""
    with jax.enable_x64(True):
        arrays, supports = of_walks()
        for name, function in others.FUNCTIONS.items():
            found = function()
            arrays |= {f"{name}/{part}": np.asarray(a) for part, a in found.items()}
            print(name, flush=True)
    store.save(DATA / "numbers.npz", arrays)
    text = json.dumps(supports, indent=1)
    (DATA / "supports.json").write_text(text + "\n", encoding="utf-8")
    kept = store.load(DATA / "numbers.npz")
    assert list(kept) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(kept[name], array)
    print(f"{len(arrays)} arrays, {(DATA / 'numbers.npz').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
