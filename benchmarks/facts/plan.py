"""All facts, the cheap ones first."""

from __future__ import annotations

from .attractors import FLIP_FLOP
from .chaos import CHAOS
from .exact import ITERATIONS, UNBIASED
from .fact import Fact
from .initial import CHRONO, VANISHING
from .learned import (
    ADDING_200,
    ADDING_400,
    COPY,
    DIGITS,
    IRNN,
    PARITY_DELTA,
    PARITY_DIAGONAL,
    PARITY_NONLINEAR,
    S3,
    TEMPORAL_ORDER,
)

ALL = (
    VANISHING,
    CHRONO,
    UNBIASED,
    ITERATIONS,
    CHAOS,
    FLIP_FLOP,
    PARITY_DIAGONAL,
    PARITY_DELTA,
    PARITY_NONLINEAR,
    S3,
    TEMPORAL_ORDER,
    IRNN,
    COPY,
    ADDING_200,
    ADDING_400,
    DIGITS,
)
FACTS: dict[str, Fact] = {fact.name: fact for fact in ALL}
