"""Cells by name and variant: ``NAME``, ``NAME:VARIANT``, or ``module:Name(...)``."""

from __future__ import annotations

import difflib
import math
from typing import Any

import jax

from ...cells import (
    CTRNN,
    GRU,
    LRU,
    LSTM,
    LTC,
    MGU,
    MLSTM,
    RGLRU,
    RTU,
    S5,
    SLSTM,
    CfC,
    DiagonalGRU,
    DiagonalLSTM,
    Elman,
    IndRNN,
    MinGRU,
    MinLSTM,
    NonlinearRTU,
    OrthogonalRNN,
)
from ...core.cell import Cell
from ...core.import_path import module_exists
from ...core.layer import Layer
from ...core.validation import describe
from ...initializers import Chrono, Identity, Normal
from ...layers import residual_block
from ...training import InputError
from .own_cell import (
    CellLike,
    checked,
    make_own_cell,
    parse_own_cell,
    why_no_own_cell,
)

CHRONO = "chrono"
KNOWN = {
    "elman": (
        "tanh, orthogonal recurrent matrix; elman:G, a normal one of gain G, e.g. "
        "elman:1.5"
    ),
    "irnn": "relu, the identity as recurrent matrix",
    "lstm": (
        "forget bias 1; lstm:B, forget bias B, e.g. lstm:0; lstm:chrono, biases for "
        "memories as long as the sequences"
    ),
    "gru": "update bias 0; gru:B, update bias B; gru:chrono",
    "slstm": "one head; slstm:N, N heads, a divisor of --hidden",
    "mlstm": "one matrix memory; mlstm:N, N of them, a divisor of --hidden",
    "mgu": "the minimal gated unit, update bias 0; mgu:chrono",
    "ctrnn": "relu, time constants of 5 steps; ctrnn:T, of T steps",
    "orthogonal": "scoRNN, an orthogonal recurrent matrix, modReLU",
    "ltc": "liquid time constants, 6 solver steps in a step",
    "cfc": (
        "closed-form continuous time, a backbone of 128 units; cfc:no-gate; cfc:pure, "
        "the closed-form solution itself"
    ),
    "rtu": (
        "trace units, a linear recurrence with relu on both outputs of a unit; "
        "rtu:nonlinear, relu inside the recurrence"
    ),
    "indrnn": "relu, recurrent weights uniform from 0 to 1",
    "diagonal-gru": "ParaGRU, biases as published; diagonal-gru:chrono",
    "diagonal-lstm": "ParaLSTM, biases as published; diagonal-lstm:chrono",
    "min-gru": "in a jaxrnn.residual_block; min-gru:alone, the bare cell",
    "min-lstm": "in a jaxrnn.residual_block; min-lstm:alone, the bare cell",
    "rg-lru": "in a jaxrnn.residual_block",
    "lru": (
        "in a jaxrnn.residual_block, |lambda| from 0.9 to 0.999; lru:P, phases up to "
        "P, e.g. "
        "lru:0.3"
    ),
    "s5": "in a jaxrnn.residual_block",
}
LINEAR: dict[str, Any] = {
    "min-gru": MinGRU,
    "min-lstm": MinLSTM,
    "rg-lru": RGLRU,
    "lru": LRU,
    "s5": S5,
}
ALONE = "alone"
HEADS = {"slstm": SLSTM, "mlstm": MLSTM}
# Cells of one form, made from the number of units alone
PLAIN: dict[str, Any] = {
    "indrnn": IndRNN,
    "mgu": MGU,
    "ctrnn": CTRNN,
    "orthogonal": OrthogonalRNN,
    "rtu": RTU,
    "ltc": LTC,
    "cfc": CfC,
}
CHRONOS = ("lstm", "gru", "mgu", "diagonal-gru", "diagonal-lstm")


def make_cell(spec: CellLike, hidden: int, length: int) -> Cell | Layer:
    """Make the cell that ``spec`` names; a cell or layer is returned as it is.

    The names and their variants stand in `KNOWN`: the IRNN is that of Le, Jaitly &
    Hinton (2015); ``chrono`` draws biases by Tallec & Ollivier (2018, eq. 16) for
    memories as long as the task's sequences. Cells that are linear in their state are
    each wrapped in a `jaxrnn.residual_block` of ``hidden`` features, unless the variant
    is ``alone``. A cell of one's own is ``module:Name(...)`` (see `own_cell`), and its
    module is imported.

    Args:
        spec: the name, optionally with a variant; an import path; or a cell or layer.
        hidden: the number of units.
        length: the number of steps of the task's sequences, which is the longest time
            of chrono biases (at least 3).

    Raises:
        InputError: for an unknown name, with the most similar known one, or an unknown
            variant.
    """
    check_cell_name("--cell", spec)
    if not isinstance(spec, str):
        return spec
    name, _, variant = spec.partition(":")
    if name not in KNOWN and (own := parse_own_cell("--cell", spec)):
        return make_own_cell("--cell", spec, own, hidden)
    if name == "irnn":
        return Elman(hidden, activation=jax.nn.relu, recurrent_init=Identity())
    if name == "elman":
        return (
            Elman(hidden, recurrent_init=Normal(float(variant)))
            if variant
            else Elman(hidden)
        )
    if name in PLAIN and not variant:
        return PLAIN[name](hidden)
    if name == "rtu":
        return NonlinearRTU(hidden)
    if name == "cfc":
        return CfC(hidden, mode=variant.replace("-", "_"))
    if name == "ctrnn":
        return CTRNN(hidden, tau=float(variant))
    if name in LINEAR:
        if name == "lru":
            return residual_block(
                LRU(
                    hidden,
                    r_min=0.9,
                    r_max=0.999,
                    max_phase=float(variant or 2 * math.pi),
                ),
                hidden,
            )
        return (
            LINEAR[name](hidden)
            if variant
            else residual_block(LINEAR[name](hidden), hidden)
        )
    if name in HEADS:
        heads = int(variant or 1)
        if hidden % heads:
            raise InputError(
                f"--cell {spec}: {heads} heads do not divide --hidden {hidden}"
            )
        return HEADS[name](hidden, num_heads=heads)
    if name.startswith("diagonal"):
        bias: Any = Chrono(float(max(length, 3)))
        if name == "diagonal-gru":
            return (
                DiagonalGRU(hidden, update_init=bias)
                if variant
                else DiagonalGRU(hidden)
            )
        return (
            DiagonalLSTM(hidden, forget_init=bias) if variant else DiagonalLSTM(hidden)
        )
    if not variant:
        return LSTM(hidden) if name == "lstm" else GRU(hidden)
    bias = Chrono(float(max(length, 3))) if variant == CHRONO else float(variant)
    if name == "lstm":
        return LSTM(hidden, forget_bias=bias)
    return (MGU if name == "mgu" else GRU)(hidden, update_bias=bias)


def check_cell_name(what: str, spec: CellLike) -> None:
    """Check that ``spec`` names a cell, and a variant that it has.

    What is no built-in cell's name may be an import path; nothing is imported here.
    """
    if isinstance(spec, (Cell, Layer)):
        checked(what, spec)
        return
    if not isinstance(spec, str):
        raise InputError(
            f"{what} takes the name of a cell, such as lstm or gru:chrono, the import "
            f"path of one of your own, such as mine:Mine, or a cell, but it is "
            f"{describe(spec)}"
        )
    name, colon, variant = spec.partition(":")
    if name not in KNOWN:
        near = difflib.get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.5)
        is_path = parse_own_cell(what, spec) is not None
        if is_path and (
            module_exists(name) or not near or not _is_variant(near[0], variant)
        ):
            return
        if why := why_no_own_cell(spec):
            raise InputError(f"{what} {spec}: {why}")
        own = "a cell of your own is module:Name or module:Name(arguments)"
        if near and colon:
            hint = f"did you mean {near[0]}{colon}{variant}?"
        elif near:
            mine = name if module_exists(name) else "mine"
            hint = f"did you mean {near[0]}? Or {own}, as in {mine}:Mine(64)"
        else:
            hint = f"known: {', '.join(KNOWN)}; {own}"
        raise InputError(f"{what}: there is no {name!r}; {hint}")
    if colon and not _is_variant(name, variant):
        raise InputError(
            f"{what}: {variant!r} is no variant of {name}; {name}: {KNOWN[name]}"
        )


def _is_variant(name: str, variant: str) -> bool:
    """Return whether the cell has this variant."""
    if name in HEADS:
        return variant.isdecimal() and int(variant) > 0
    if name in ("min-gru", "min-lstm"):
        return variant == ALONE
    if name == "lru":
        return _is_number(variant) and 0 < float(variant) <= 2 * math.pi
    if name == "rtu":
        return variant == "nonlinear"
    if name == "cfc":
        return variant in ("no-gate", "pure")
    if name == "ctrnn":
        return _is_number(variant) and float(variant) >= 1
    return (variant == CHRONO and name in CHRONOS) or (
        name in ("elman", "lstm", "gru") and _is_number(variant)
    )


def _is_number(text: str) -> bool:
    """Return whether the text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
