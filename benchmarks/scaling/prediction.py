"""What counted bytes and flops would take on a chip: arithmetic, nothing measured.

The chip is assumed, and so are the ways of sending; `ASSUMED` has the numbers. A split
over N chips takes the time of the products of one chip plus that of the exchange, as if
nothing of the two overlapped::

    efficiency = computing / (computing + sending)

Left out is what N does not change, such as a lower bound of each step of the loop; it
would bring the efficiency nearer to 1.
"""

from __future__ import annotations

import math
from typing import Any

ASSUMED = {
    "flops_per_second": 200e12,  # of bfloat16
    "used_share": 0.4,  # of them, in the products of a recurrent layer
    "bytes_per_second": 100e9,  # that a chip sends in a collective operation
    "seconds_per_hop": 5e-6,
}
SHOWN = (8, 64, 256, 1024, 4096)  # what tables show of them
CHIPS = tuple(2**power for power in range(13))
TIME_SPLIT = {"steps": 1 << 20, "batch": 1, "size": 4096}  # a layer that splits time


def computing(flops: float) -> float:
    """Return the seconds of matrix products."""
    return flops / (ASSUMED["flops_per_second"] * ASSUMED["used_share"])


def sending(size: float, hops: float) -> float:
    """Return the seconds in which a chip sends so many bytes over so many hops."""
    return size / ASSUMED["bytes_per_second"] + hops * ASSUMED["seconds_per_hop"]


def batch_split(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Predict a layer whose batch grows with the number of chips, from a counted row.

    An all-reduce of S bytes sends 2 S (N - 1) / N of them, over 2 log2 N hops.

    Args:
        row: what `worker.counted` gave for some number of devices.
    """
    seconds = computing(row["flops"])
    rows = []
    for chips in CHIPS:
        sent = 2 * row["bytes"] * (chips - 1) / chips
        exchange = sending(sent, 2 * math.log2(chips)) if chips > 1 else 0.0
        what = f"{row['cell']}, batch split"
        rows.append(_row(what, row["cell"], "batch", chips, seconds, exchange))
    return rows


def time_split(
    cell: str, flops: float, state_bytes: float, exchange: str
) -> list[dict[str, Any]]:
    """Predict one long sequence whose steps are split over the chips.

    Every chip tells the others what its part does to a state: two states forwards, and
    one backwards. Gathered, a chip receives those of all; permuted, it sends its own
    log2 N times.

    Args:
        cell: the name of the cell.
        flops: those of the gradient of the whole sequence.
        state_bytes: the bytes of one state.
        exchange: ``gather`` or ``permute``.
    """
    rows = []
    for chips in CHIPS:
        seconds, rounds = computing(flops / chips), math.log2(chips)
        if exchange == "gather":
            sent = 3 * state_bytes * (chips - 1)
        else:
            sent = 3 * state_bytes * rounds
        exchanged = sending(sent, 2 * rounds) if chips > 1 else 0.0
        what, split = f"{cell}, time split, {exchange}", f"time, {exchange}"
        rows.append(_row(what, cell, split, chips, seconds, exchanged))
    return rows


def _row(
    what: str, cell: str, split: str, chips: int, computed: float, sent: float
) -> dict[str, Any]:
    """Return a row of the table, from the seconds of computing and of sending."""
    return {
        "what": what,
        "cell": cell,
        "split": split,
        "chips": chips,
        "shown": chips in SHOWN,
        "computing_ms": computed * 1e3,
        "sending_ms": sent * 1e3,
        "efficiency": computed / (computed + sent),
    }


def predict(large: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all predictions from the counted rows of large layers."""
    rows = [row for one in large for row in batch_split(one)]
    for one in large:
        if one["cell"] != "LRU":
            continue
        # The same layer with other lengths: products grow with the steps, the rows of
        # the batch and the square of the units, and a state with its units.
        shape, wanted = one["shape"], TIME_SPLIT
        positions = shape["B"] / one["devices"] * shape["T"]
        flops = one["flops"] * wanted["steps"] * wanted["batch"] / positions
        flops *= (wanted["size"] / shape["H"]) ** 2
        state = one["carry_bytes"] / shape["B"] * wanted["size"] / shape["H"]
        for exchange in ("gather", "permute"):
            rows += time_split("LRU", flops, state, exchange)
    return rows
