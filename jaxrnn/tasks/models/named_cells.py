"""The cells that have a name in the programs, as a table: what each is made of, and
which variants it has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container
from typing import Any

import jax

from ...cells import (
    CTRNN,
    GDN2,
    GLA,
    GRU,
    HGRN2,
    KDA,
    LRU,
    LSTM,
    LTC,
    MGU,
    MLSTM,
    RGLRU,
    RTU,
    RWKV6,
    S5,
    SLSTM,
    CfC,
    DeltaNet,
    DeltaProduct,
    DiagonalGRU,
    DiagonalLSTM,
    Elman,
    GatedDeltaNet,
    IndRNN,
    MinGRU,
    MinLSTM,
    NonlinearRTU,
    OrthogonalRNN,
    RetNet,
)
from ...core.cell import Cell
from ...core.layer import Layer
from ...initializers import Chrono, Identity, Normal
from ...layers import (
    griffin_block,
    mamba2_block,
    mamba_block,
    mlstm_block,
    pre_norm_block,
    residual_block,
    rwkv_block,
    slstm_block,
)

Make = Callable[[int, str, int], Cell | Layer]


@dataclasses.dataclass(frozen=True)
class NamedCell:
    """A cell with a name.

    Attributes:
        words: what it is and its variants, in a few words.
        make: makes it of the number of units, the variant or "", and the number of
            steps of the task's sequences.
        takes: whether it has a variant; not called with "".
        heads: reads the number of heads off a variant, for a cell that has heads.
        of_heads: what the heads must divide, in units.
    """

    words: str
    make: Make
    takes: Callable[[str], bool] = lambda variant: False
    heads: Callable[[str], int] | None = None
    of_heads: int = 1


# ------------------------------------------------------------ variants
CHRONO = "chrono"


def is_number(text: str) -> bool:
    """Return whether the text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_count(text: str) -> bool:
    """Return whether the text is an int of at least 1."""
    return text.isdecimal() and int(text) > 0


def options_of(variant: str) -> list[str]:
    """Split a variant such as ``4:negative`` into its words."""
    return variant.split(":") if variant else []


def heads_of(variant: str, default: int = 1) -> int:
    """Return the number of heads that a variant names."""
    return next((int(w) for w in options_of(variant) if is_count(w)), default)


def takes_options(words: Container[str]) -> Callable[[str], bool]:
    """Return whether a variant is a number of heads, known words, or both.

    Each is there once, in any order.
    """

    def takes(variant: str) -> bool:
        options = options_of(variant)
        kinds = ["heads" if is_count(option) else option for option in options]
        known = all(kind == "heads" or kind in words for kind in kinds)
        return bool(kinds) and known and len(set(kinds)) == len(kinds)

    return takes


def chrono_or_number(variant: str) -> bool:
    return variant == CHRONO or is_number(variant)


def bias(variant: str, length: int) -> Any:
    """Return the bias of a gate that a variant names."""
    return Chrono(float(max(length, 3))) if variant == CHRONO else float(variant)


# ------------------------------------------------------------ ways to make a cell
def plain(words: str, cell: Any) -> NamedCell:
    """Return a cell of one form, made from the number of units alone."""
    return NamedCell(words, lambda hidden, variant, length: cell(hidden))


def in_block(words: str, cell: Any, alone: bool = False) -> NamedCell:
    """Return a linear cell in a residual block; ``alone`` if it has that variant."""

    def make(hidden: int, variant: str, length: int) -> Cell | Layer:
        made = cell(hidden)
        return made if variant else residual_block(made, hidden)

    return NamedCell(words, make, lambda variant: alone and variant == "alone")


def with_heads(words: str, cell: Any) -> NamedCell:
    """Return a cell with a number of heads as its variant."""

    def make(hidden: int, variant: str, length: int) -> Cell:
        return cell(hidden, num_heads=heads_of(variant))

    return NamedCell(words, make, is_count, heads_of)


def matrix(words: str, cell: Any, **options: dict[str, Any]) -> NamedCell:
    """Return a cell with a matrix state in a pre-norm block.

    Args:
        words: what it is.
        cell: makes it of the number of units, ``num_heads`` and other arguments.
        options: the arguments that a word in a variant stands for.
    """

    def make(hidden: int, variant: str, length: int) -> Layer:
        arguments: dict[str, Any] = {"num_heads": heads_of(variant)}
        for word in options_of(variant):
            arguments |= options.get(word, {})
        return pre_norm_block(cell(hidden, **arguments), hidden)

    return NamedCell(words, make, takes_options(options), heads_of)


def block_with_heads(
    words: str, block: Any, default: int = 1, of_heads: int = 1
) -> NamedCell:
    """Return a block with a number of heads as its variant."""

    def heads(variant: str) -> int:
        return heads_of(variant, default)

    def make(hidden: int, variant: str, length: int) -> Layer:
        return block(hidden, heads(variant))

    return NamedCell(words, make, is_count, heads, of_heads)


def _elman(hidden: int, variant: str, length: int) -> Cell:
    if not variant:
        return Elman(hidden)
    return Elman(hidden, recurrent_init=Normal(float(variant)))


def _irnn(hidden: int) -> Cell:
    return Elman(hidden, activation=jax.nn.relu, recurrent_init=Identity())


def _gated(cell: Any, argument: str) -> Make:
    """Return what makes a cell whose variant is the bias of a gate."""

    def make(hidden: int, variant: str, length: int) -> Cell:
        given = {argument: bias(variant, length)} if variant else {}
        return cell(hidden, **given)

    return make


def _lru(hidden: int, variant: str, length: int) -> Layer:
    phase = float(variant or 2 * math.pi)
    return residual_block(LRU(hidden, r_min=0.9, r_max=0.999, max_phase=phase), hidden)


def _cfc(hidden: int, variant: str, length: int) -> Cell:
    return CfC(hidden, mode=variant.replace("-", "_")) if variant else CfC(hidden)


def _ctrnn(hidden: int, variant: str, length: int) -> Cell:
    return CTRNN(hidden, tau=float(variant)) if variant else CTRNN(hidden)


def slow_trace_units(hidden: int) -> RTU:
    """Return trace units that begin with memories of 50 to 10,000 steps."""
    return RTU(hidden, r_min=0.98, r_max=0.9999, max_phase=0.03)


def _rtu(hidden: int, variant: str, length: int) -> Cell:
    kinds: dict[str, Callable[[int], Cell]] = {
        "": RTU,
        "nonlinear": NonlinearRTU,
        "slow": slow_trace_units,
    }
    return kinds[variant](hidden)


def _xlstm(hidden: int, variant: str, length: int) -> Layer:
    scalar = "slstm" in options_of(variant)
    return (slstm_block if scalar else mlstm_block)(hidden, heads_of(variant, 4))


NEGATIVE: dict[str, Any] = {"negative": {"allow_negative": True}}

NAMED: dict[str, NamedCell] = {
    "elman": NamedCell(
        "tanh, orthogonal recurrent matrix; elman:G, a normal one of gain G, e.g. "
        "elman:1.5",
        _elman,
        is_number,
    ),
    "irnn": plain("relu, the identity as recurrent matrix", _irnn),
    "lstm": NamedCell(
        "forget bias 1; lstm:B, forget bias B, e.g. lstm:0; lstm:chrono, biases for "
        "memories as long as the sequences",
        _gated(LSTM, "forget_bias"),
        chrono_or_number,
    ),
    "gru": NamedCell(
        "update bias 0; gru:B, update bias B; gru:chrono",
        _gated(GRU, "update_bias"),
        chrono_or_number,
    ),
    "slstm": with_heads("one head; slstm:N, N heads, a divisor of --hidden", SLSTM),
    "mlstm": with_heads(
        "one matrix memory; mlstm:N, N of them, a divisor of --hidden", MLSTM
    ),
    "mgu": NamedCell(
        "the minimal gated unit, update bias 0; mgu:chrono",
        _gated(MGU, "update_bias"),
        lambda variant: variant == CHRONO,
    ),
    "ctrnn": NamedCell(
        "relu, time constants of 5 steps; ctrnn:T, of T steps",
        _ctrnn,
        lambda variant: is_number(variant) and float(variant) >= 1,
    ),
    "orthogonal": plain(
        "scoRNN, an orthogonal recurrent matrix, modReLU", OrthogonalRNN
    ),
    "ltc": plain("liquid time constants, 6 solver steps in a step", LTC),
    "cfc": NamedCell(
        "closed-form continuous time, a backbone of 128 units; cfc:no-gate; cfc:pure, "
        "the closed-form solution itself",
        _cfc,
        lambda variant: variant in ("no-gate", "pure"),
    ),
    "rtu": NamedCell(
        "trace units, a linear recurrence with relu on both outputs of a unit; "
        "rtu:nonlinear, relu inside the recurrence; rtu:slow, memories of 50 steps and "
        "more at init",
        _rtu,
        lambda variant: variant in ("nonlinear", "slow"),
    ),
    "indrnn": plain("relu, recurrent weights uniform from 0 to 1", IndRNN),
    "diagonal-gru": NamedCell(
        "ParaGRU, biases as published; diagonal-gru:chrono",
        _gated(DiagonalGRU, "update_init"),
        lambda variant: variant == CHRONO,
    ),
    "diagonal-lstm": NamedCell(
        "ParaLSTM, biases as published; diagonal-lstm:chrono",
        _gated(DiagonalLSTM, "forget_init"),
        lambda variant: variant == CHRONO,
    ),
    "min-gru": in_block(
        "in a jaxrnn.residual_block; min-gru:alone, the bare cell", MinGRU, True
    ),
    "min-lstm": in_block(
        "in a jaxrnn.residual_block; min-lstm:alone, the bare cell", MinLSTM, True
    ),
    "rg-lru": in_block("in a jaxrnn.residual_block", RGLRU),
    "lru": NamedCell(
        "in a jaxrnn.residual_block, |lambda| from 0.9 to 0.999; lru:P, phases up to "
        "P, e.g. lru:0.3",
        _lru,
        lambda variant: is_number(variant) and 0 < float(variant) <= 2 * math.pi,
    ),
    "s5": in_block("in a jaxrnn.residual_block", S5),
    "gated-deltanet": matrix(
        "in a jaxrnn.layers.pre_norm_block, one head; gated-deltanet:N, N heads, a "
        "divisor of --hidden; gated-deltanet:N:negative, eigenvalues down to -1",
        GatedDeltaNet,
        **NEGATIVE,
    ),
    "deltanet": matrix(
        "as gated-deltanet, without decay; deltanet:N; deltanet:N:negative",
        DeltaNet,
        **NEGATIVE,
    ),
    "deltaproduct": matrix(
        "as gated-deltanet, two delta steps a step, eigenvalues down to -1; "
        "deltaproduct:N; deltaproduct:N:positive, down to 0",
        DeltaProduct,
        positive={"allow_negative": False},
    ),
    "kda": matrix(
        "as gated-deltanet, a decay a channel; kda:N; kda:N:negative", KDA, **NEGATIVE
    ),
    "gdn2": matrix(
        "as kda, erasing and writing by channel; gdn2:N; gdn2:N:negative",
        GDN2,
        **NEGATIVE,
    ),
    "mamba2": block_with_heads(
        "in a jaxrnn.layers.mamba2_block, one head; mamba2:N, N heads, a divisor of "
        "twice --hidden",
        mamba2_block,
        of_heads=2,
    ),
    "mamba": plain("in a jaxrnn.layers.mamba_block, states of 16", mamba_block),
    "gla": matrix(
        "gated linear attention in a jaxrnn.layers.pre_norm_block, one head; gla:N, N "
        "heads, a divisor of --hidden",
        GLA,
    ),
    "retnet": matrix("as gla, a constant decay a head; retnet:N", RetNet),
    "hgrn2": matrix("as gla, keys tied to the forget gate; hgrn2:N", HGRN2),
    "rwkv6": matrix("as gla, reads before it writes; rwkv6:N", RWKV6),
    "rwkv7": block_with_heads(
        "in a jaxrnn.layers.rwkv_block, one head; rwkv7:N, N heads, a divisor of "
        "--hidden",
        rwkv_block,
    ),
    "griffin": plain("rg-lru in a jaxrnn.layers.griffin_block", griffin_block),
    "xlstm": NamedCell(
        "mlstm in a jaxrnn.layers.mlstm_block, 4 heads; xlstm:N, N heads, a divisor "
        "of --hidden; xlstm:slstm and xlstm:slstm:N, slstm in a slstm_block",
        _xlstm,
        takes_options(("slstm",)),
        lambda variant: heads_of(variant, 4),
    ),
}
