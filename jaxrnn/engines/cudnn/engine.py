"""cuDNN's LSTM, for NVIDIA GPUs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...cells.lstm import LSTM, LSTMState
from ...core.cell import AbstractWrappedCell, Carry, Cell, Params
from ...core.engine import AbstractNetworkEngine, Supports
from ..recurrence.run import unsupported_arrays_reason
from .primitives import USE_SCAN, Library, Network, lstm
from .weights import pack_lstm

FLOAT32 = {"highest", "float32", "f32_f32_f32"}  # what jax's precisions mean here
TF32 = {"none", "high", "tensorfloat32", "bfloat16_3x", "tf32_tf32_f32"}


@dataclasses.dataclass(frozen=True)
class CuDNN(AbstractNetworkEngine):
    """Walk an `LSTM` by cuDNN, through ``jax.experimental.rnn``: the whole sequence in
    one call.

    For a plain `LSTM` in float32 on an NVIDIA GPU, alone or inside any layer. A
    ``stack`` of LSTMs, a ``bidirectional`` pair and a stack of such pairs, all of one
    size, are one call; else each cell has its own. Masks of any form (the valid steps
    are moved to the front, where cuDNN wants them, and the outputs back), ``reverse``,
    initial and last carries, `truncated_unroll` by windows, gradients; under ``vmap``
    the mapped axis joins the batch.

    Refused, with the repair: other cells, LSTM options and dtypes, ``resets`` and
    ``gradient_scale``; ``vmap`` over parameters or of a gradient, forward mode, second
    derivatives; jax versions that call it in another way; when compiled, other
    platforms. cuDNN tells c at the end only, so ``unroll(..., return_carries=True)`` is
    refused too.

    Precision: float32 in and out, sums in float32. By default the matmuls take TF32
    factors (10 bits: errors near 1e-3), as ``jax.experimental.rnn`` does.

    Args:
        precision: ``"highest"`` for float32 matmuls, ``"high"`` for TF32 ones, or those
            of `jax.lax.Precision`. None: as ``jax_default_matmul_precision`` says, and
            TF32 where that says nothing.

    Raises:
        ValueError: for a precision that cuDNN's LSTM does not have.
    """

    precision: Any = None
    library: ClassVar[Library] = Library()
    supports: ClassVar[Supports] = Supports.WHOLE_NETWORK

    def __post_init__(self):
        if self.precision is not None:
            _allows_tf32(self.precision, "precision")

    @property
    def _tf32(self) -> bool:
        if self.precision is not None:
            return _allows_tf32(self.precision, "precision")
        config: Any = jax.config
        return _allows_tf32(
            config.jax_default_matmul_precision, "jax_default_matmul_precision"
        )

    def refusal(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Any,
        mask: Any = None,
        resets: Any = None,
    ) -> TypeError | ValueError | None:
        """Why this walk cannot be cuDNN's, as the error that `run` raises; None
        where it can, given an NVIDIA GPU.
        """
        wrong = _wrong_cell(cell)
        if wrong is not None:
            return TypeError(f"CuDNN: {wrong}")
        if resets is not None:
            return ValueError(
                f"CuDNN: it has no resets: {USE_SCAN}, or give each sequence a place "
                f"of its own in the batch"
            )
        values = {"params": params, "carry": carry, "xs": xs}
        for name, tree in values.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if leaf.dtype != self.library.dtype:
                    return TypeError(
                        f"CuDNN: {name}{jax.tree_util.keystr(path)} is {leaf.dtype}, "
                        f"but through jax cuDNN's LSTM computes in "
                        f"{self.library.dtype} alone: cast it with "
                        f".astype({self.library.dtype!r}), or {USE_SCAN}"
                    )
        reason = unsupported_arrays_reason(jax.tree.leaves((*values.values(), mask)))
        return None if reason is None else ValueError(f"CuDNN: {reason}: {USE_SCAN}")

    def run(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Any,
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """As `AbstractEngine.run`, but the carries after every step hold h alone: their
        c is None.
        """
        error = self.refusal(cell, params, carry, xs, mask, resets)
        if error is not None:
            raise error
        network = Network(xs.shape[-1], carry.h.shape[-1], tf32=self._tf32)
        (last,), hs = self._call(
            network, params, [carry], xs, mask, reverse, shown=carry.h
        )
        return last, LSTMState(hs, None)  # type: ignore[arg-type]

    def run_network(
        self,
        params: Params,
        carries: list[LSTMState],
        xs: Float[Array, "T *B D"],
        mask: Bool[Array, "T *B"] | None,
        reverse: bool,
        bidirectional: bool,
    ) -> tuple[list[LSTMState], Float[Array, "T *B H"]]:
        """A whole network in one call: the last carries and the outputs of its last
        layer, zero where masked.

        ``params`` are those of a ``stack``, a ``bidirectional`` pair, or a stack of
        such; ``carries`` stand in cuDNN's order, layer by layer, forward before
        backward. The caller has asked `refusal` for every cell.
        """
        directions = 2 if bidirectional else 1
        H = carries[0].h.shape[-1]
        network = Network(
            xs.shape[-1], H, len(carries) // directions, bidirectional, self._tf32
        )
        shown = jnp.zeros((*carries[0].h.shape[:-1], directions * H), xs.dtype)
        last, ys = self._call(network, params, carries, xs, mask, reverse, shown)
        return last, ys if mask is None else jnp.where(mask[..., None], ys, 0)

    def _call(
        self,
        network: Network,
        params: Params,
        carries: list[LSTMState],
        xs: Float[Array, "T *B D"],
        mask: Bool[Array, "T *B"] | None,
        reverse: bool,
        shown: Float[Array, "*B H"],
    ) -> tuple[list[LSTMState], Float[Array, "T *B H"]]:
        """The last carries, and what the last layer shows after every step;
        ``shown`` before the first valid one.
        """
        self.library.check_here()
        steps, batch = xs.shape[0], xs.shape[1:-1]
        if not xs.size:  # no step, or no sequence
            return carries, jnp.zeros((steps, *shown.shape), shown.dtype)
        first = LSTMState(
            *(
                jnp.stack([leaf.reshape(-1, leaf.shape[-1]) for leaf in part])
                for part in zip(*carries, strict=True)
            )
        )
        call = functools.partial(
            _flat, functools.partial(lstm, network, self.library), pack_lstm(params)
        )
        flat_xs, flat_mask = (
            xs.reshape(steps, -1, xs.shape[-1]),
            None if mask is None else mask.reshape(steps, -1),
        )
        last, ys = call(
            first, flat_xs, flat_mask, reverse, shown.reshape(-1, shown.shape[-1])
        )
        h, c = (leaf.reshape(-1, *batch, leaf.shape[-1]) for leaf in last)
        return list(map(LSTMState, h, c)), ys.reshape(steps, *batch, ys.shape[-1])


def _flat(
    call: Callable,
    weights: Float[Array, " N"],
    carry: LSTMState,
    xs: Float[Array, "T B D"],
    mask: Bool[Array, "T B"] | None,
    reverse: bool,
    shown: Float[Array, "B H"],
) -> tuple[LSTMState, Float[Array, "T B H"]]:
    """`CuDNN._call` for one batch axis and carries ``(layers, B, H)``; cuDNN's batch
    leads, and its valid steps come first.
    """

    def called(xs, carry, lengths):
        y, h, c = call(jnp.swapaxes(xs, 0, 1), *carry, weights, lengths)
        return LSTMState(h, c), jnp.swapaxes(y, 0, 1)

    if mask is None:
        last, ys = called(
            jnp.flip(xs, 0) if reverse else xs,
            carry,
            jnp.full(xs.shape[1], xs.shape[0], jnp.int32),
        )
        return last, jnp.flip(ys, 0) if reverse else ys
    count, place = places(mask, reverse)
    lengths = count[0 if reverse else -1]
    begun = (
        lengths[None, :, None] > 0
    )  # cuDNN has no empty sequences: they are walked for a step, over zeros, to no effect  # noqa: E501
    column = jnp.arange(xs.shape[1], dtype=jnp.int32)[None]
    moved = (
        jnp.zeros_like(xs)
        .at[place, column]
        .set(jnp.where(mask[..., None], xs, 0), unique_indices=True)
    )
    last, ys = called(
        moved,
        LSTMState(*(jnp.where(begun, leaf, 0) for leaf in carry)),
        jnp.maximum(lengths, 1),
    )
    ys = jnp.take_along_axis(ys, jnp.maximum(count - 1, 0)[..., None], axis=0)
    ys = jnp.where(count[..., None] > 0, ys, shown[None])
    return LSTMState(
        *(jnp.where(begun, new, old) for new, old in zip(last, carry, strict=True))
    ), ys


def places(
    mask: Bool[Array, "T B"], reverse: bool
) -> tuple[Int[Array, "T B"], Int[Array, "T B"]]:
    """In the order of walking: how many valid steps there are up to and with each step,
    and each step's place when all valid ones come first.
    """
    flags = mask.astype(jnp.int32)
    count = jax.lax.cumsum(flags, axis=0, reverse=reverse)
    skipped = jax.lax.cumsum(1 - flags, axis=0, reverse=reverse)
    total = count[:1] if reverse else count[-1:]
    return count, jnp.where(mask, count, total + skipped) - 1


def _allows_tf32(precision: Any, name: str) -> bool:
    """Whether a precision of jax's lets float32 matmuls take TF32 factors."""
    word = str(getattr(precision, "name", precision)).lower()
    if word in TF32 | FLOAT32:
        return word in TF32
    raise ValueError(
        f"CuDNN: {name} is {precision!r}, but through jax cuDNN's LSTM has two: "
        f"CuDNN(precision='highest') for float32 "
        "matmuls, 'high' for TF32 ones"
    )


def _wrong_cell(cell: Any) -> str | None:
    """Why a cell is not the one that cuDNN knows."""
    name = type(cell).__name__
    wrapped = isinstance(cell, AbstractWrappedCell)
    if wrapped and cell.purpose:
        return (
            f"gradient_scale (ARTBP) needs the steps one by one: {USE_SCAN}, or "
            f"truncate with window=, which CuDNN takes"
        )
    if type(cell) is not LSTM:
        what = f"{name} around {type(cell.cell).__name__}" if wrapped else name
        return (
            f"it has an LSTM, but {what} is another recurrence: {USE_SCAN}, or the "
            f"cell jaxrnn.LSTM"
        )
    options = {
        "layer_norm": False,
        "peephole": False,
        "coupled_gates": False,
        "projection_size": None,
    }
    given = [
        f"{option}={getattr(cell, option)}"
        for option, plain in options.items()
        if getattr(cell, option) != plain
    ]
    if given:
        return f"its LSTM has no {', '.join(given)}: {USE_SCAN}, or leave that out"
    return None
