"""Hidden units and gates over a text, colored symbol by symbol."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ...diagnostics import gate_values
from ...unrolling import unroll
from .facts import Facts
from .markup import Markup, data_script, element, section
from .readings import Reading, reading_of

UNITS = 8  # the number of units to choose from


def unit_section(facts: Facts, trained: object) -> Markup:
    """Return the section in which a unit is chosen and a text is colored."""
    reading = reading_of(facts.run, trained)
    if reading is None:
        return Markup("")
    shown = views(reading)
    data = {"symbols": reading.symbols, "between": reading.between, "views": shown}
    return section(
        f"Inside: units over {reading.kind}",
        element(
            "p",
            f"The colors are values of one unit at each step of {reading.what}: blue "
            f"is positive, orange negative. The units are those that change most, and "
            f"those that change most slowly.",
        ),
        element(
            "div",
            element("label", "values of ", element("select", id="view")),
            element("label", "unit ", element("select", id="unit")),
            class_="choose",
        ),
        element(
            "div",
            element("span", id="least"),
            element("i", id="ramp"),
            element("span", id="most"),
            class_="scale",
        ),
        element("pre", id="reading-text", class_="reading"),
        element("noscript", element("p", "This part needs JavaScript.")),
        data_script("reading-data", data),
    )


def views(reading: Reading) -> list[dict[str, Any]]:
    """Return what can be chosen: outputs, gates and surprise, with some units each.

    Args:
        reading: a sequence as a layer reads it.

    Returns:
        Dicts of ``name``, ``scale`` (the largest magnitude), ``units`` (their names)
        and ``values``, a list for each unit of whole per cent of the scale.
    """
    layer, params, xs = reading.layer, reading.params, reading.xs
    outputs = _plain(jax.jit(lambda p, x: unroll(layer, p, x)[1])(params, xs))
    chosen = choose(outputs)
    found = [_view("output", outputs, chosen)]
    try:
        gates = gate_values(layer, params, xs)
    except NotImplementedError:
        gates = {}
    for name, value in gates.items():
        values = _plain(value)
        same = values.shape[1] == outputs.shape[1]
        found.append(_view(f"gate {name}", values, chosen if same else choose(values)))
    if reading.surprise is not None:
        bits = np.nan_to_num(reading.surprise)[:, None]
        found.append(
            {**_view("surprise in bits", bits, [0]), "units": ["of the model"]}
        )
    return found


def _plain(values: Any) -> np.ndarray:
    """Return values ``(T, 1, ...)`` as real numbers ``(T, U)``."""
    array = np.asarray(values)
    real = np.abs(array) if np.iscomplexobj(array) else array
    return real.astype(np.float64).reshape(len(array), -1)


def choose(values: np.ndarray) -> list[int]:
    """Choose units: the half that change most, and then those that change slowly.

    Args:
        values: ``(T, U)``.

    Returns:
        At most `UNITS` numbers of units, in their order.
    """
    spread = values.std(0)
    jumps = np.abs(np.diff(values, axis=0)).mean(0) if len(values) > 1 else spread
    by_spread = list(np.argsort(-spread, kind="stable"))
    first = by_spread[: UNITS // 2]
    lively = by_spread[: max(len(by_spread) // 2, UNITS)]
    slow = sorted(lively, key=lambda unit: jumps[unit] / max(spread[unit], 1e-12))
    rest = [unit for unit in slow if unit not in first]
    return sorted(int(unit) for unit in [*first, *rest[: UNITS - len(first)]])


def _view(name: str, values: np.ndarray, units: list[int]) -> dict[str, Any]:
    """Return the values of some units as whole per cent of their largest magnitude."""
    kept = values[:, units]
    scale = float(np.abs(kept).max(initial=0.0)) or 1.0
    whole = np.rint(100 * np.nan_to_num(kept / scale)).astype(int)
    return {
        "name": name,
        "scale": scale,
        "units": [str(unit) for unit in units],
        "values": whole.T.tolist(),
    }
