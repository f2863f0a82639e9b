"""What `explain` says of time that is split over devices."""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr

from ..core.cell import Cell
from ..core.engine import AbstractEngine
from ..engines import Across
from ..engines.across.on_mesh import AcrossMesh
from ..engines.jaxpr.evaluate import all_equations

EXCHANGES = ("all_gather", "ppermute")  # the operations that send maps


def across_of(engine: AbstractEngine) -> Across | None:
    """Return the engine that splits time, if one does."""
    if isinstance(engine, AcrossMesh):
        return engine.across
    return engine if isinstance(engine, Across) else None


def inner_engine(engine: AbstractEngine, cell: Cell) -> AbstractEngine:
    """Return the engine that runs the steps of a device."""
    across = across_of(engine)
    return engine if across is None else across.engine_for(cell)


def described_split(engine: AbstractEngine, forward: Any) -> str:
    """Say over how many devices time is split, and what each is sent for a cell.

    Args:
        engine: the engine of a run.
        forward: the jaxpr of the run forwards, or the text of an error.
    """
    if not isinstance(engine, (Across, AcrossMesh)):
        return ""
    if not isinstance(forward, ClosedJaxpr):
        return ""
    sent = [
        equation
        for equation in all_equations(forward.jaxpr)
        if equation.primitive.name in EXCHANGES
    ]
    received = sum(
        math.prod(v.aval.shape) * v.aval.dtype.itemsize for e in sent for v in e.outvars
    )
    return f"across time, {engine.devices} devices, {received:,} bytes a cell"
