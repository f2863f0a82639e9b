"""The engine that runs LSTMs by cuDNN, on NVIDIA GPUs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...cells.lstm import LSTM, LSTMState
from ...core.cell import AbstractWrappedCell, Cell
from ...core.engine import AbstractNetworkEngine, Request, Supports
from ...core.foreign import precision_word
from ...core.gradient_scale import ScaledCell
from ...core.types import Carry, Flags, Inputs, Params
from ..recurrence.run import unsupported_arrays_reason
from .primitives import USE_SCAN, Library, Network, lstm
from .weights import pack_lstm

# The precisions of jax that mean float32 matmuls, and those that mean TF32 ones.
FLOAT32 = {"highest", "float32", "f32_f32_f32"}
TF32 = {"none", "high", "tensorfloat32", "bfloat16_3x", "tf32_tf32_f32"}


@dataclasses.dataclass(frozen=True)
class CuDNN(AbstractNetworkEngine):
    """Run an `LSTM` by cuDNN, the whole sequence in one call.

    Choose it for a plain `LSTM` in float32 on an NVIDIA GPU, alone or inside any layer.
    It calls ``jax.experimental.rnn``. A ``stack`` of LSTMs, a ``bidirectional`` pair
    and a stack of such pairs, if all cells have one size, are one call; otherwise each
    cell has its own.

    It supports masks of any form (valid steps are moved to the front, as cuDNN
    requires, and the outputs back), ``reverse``, initial and last carries,
    `truncated_unroll` with windows, and gradients. Under ``vmap`` the mapped axis joins
    the batch.

    It raises an error, which says what to do instead, for other cells, LSTM options
    and dtypes; for ``resets`` and ``gradient_scale``; for ``vmap`` over parameters or
    of a gradient, forward mode and second derivatives; for versions of jax with another
    interface; and, when compiled, for other platforms. cuDNN returns c after the last
    step only, so ``unroll(..., return_carries=True)`` is an error, too.

    Inputs, outputs and sums are float32. By default the factors of matmuls are rounded
    to TF32 (10 bits, errors near 1e-3), as in ``jax.experimental.rnn``.

    Args:
        precision: ``"highest"`` for float32 matmuls, ``"high"`` for TF32 ones, or a
            `jax.lax.Precision`. None is ``jax_default_matmul_precision``, and TF32 if
            that is not set.

    Raises:
        ValueError: for a precision that cuDNN's LSTM does not have.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.CuDNN(precision="highest")
        CuDNN(precision='highest')
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

    def unsupported_reason(self, cell: Cell, request: Request) -> str | None:
        """Return None: `refusal` says it in better words, with the repair."""
        return None

    def refusal(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Inputs,
        mask: Flags | None = None,
        resets: Flags | None = None,
    ) -> TypeError | ValueError | None:
        """Return the error that `run` would raise for these arguments, or None.

        It assumes that there is an NVIDIA GPU.
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
        xs: Inputs,
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """Run the LSTM; see `AbstractEngine.run`.

        The carries after every step have h only; their c is None.
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
        """Run a whole network in one call; see `AbstractNetworkEngine.run_network`.

        ``params`` are those of a ``stack``, a ``bidirectional`` pair, or a stack of
        such pairs. ``carries`` are in the order of cuDNN: layer by layer, forward
        before backward. The caller must have called `refusal` for every cell. Outputs
        at masked steps are zero.
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
        """Call cuDNN with any number of batch axes.

        Returns the last carries, and the outputs of the last layer after every step.
        Before the first valid step of a row the outputs are ``shown``.
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
    """Call cuDNN with one batch axis and carries ``(layers, B, H)``.

    cuDNN takes ``(B, T, D)``, and the valid steps of each sequence must come first.
    """

    def call_cudnn(xs, carry, lengths):
        y, h, c = call(jnp.swapaxes(xs, 0, 1), *carry, weights, lengths)
        return LSTMState(h, c), jnp.swapaxes(y, 0, 1)

    if mask is None:
        last, ys = call_cudnn(
            jnp.flip(xs, 0) if reverse else xs,
            carry,
            jnp.full(xs.shape[1], xs.shape[0], jnp.int32),
        )
        return last, jnp.flip(ys, 0) if reverse else ys
    count, place = places(mask, reverse)
    lengths = count[0 if reverse else -1]
    # cuDNN has no empty sequences. They run for one step over zeros, whose results are
    # not used.
    begun = lengths[None, :, None] > 0
    column = jnp.arange(xs.shape[1], dtype=jnp.int32)[None]
    moved = (
        jnp.zeros_like(xs)
        .at[place, column]
        .set(jnp.where(mask[..., None], xs, 0), unique_indices=True)
    )
    last, ys = call_cudnn(
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
    """Sort the steps of each sequence so that the valid ones come first.

    Args:
        mask: True at valid steps.
        reverse: whether the steps run from the last to the first.

    Returns:
        The number of valid steps up to and including each step, in the order in which
        the steps run; and the new position of each step.
    """
    flags = mask.astype(jnp.int32)
    count = jax.lax.cumsum(flags, axis=0, reverse=reverse)
    skipped = jax.lax.cumsum(1 - flags, axis=0, reverse=reverse)
    total = count[:1] if reverse else count[-1:]
    return count, jnp.where(mask, count, total + skipped) - 1


def _allows_tf32(precision: Any, name: str) -> bool:
    """Whether a precision of jax lets float32 matmuls round their factors to TF32."""
    word = precision_word(precision)
    if word in TF32 | FLOAT32:
        return word in TF32
    raise ValueError(
        f"CuDNN: {name} is {precision!r}, but through jax cuDNN's LSTM has two: "
        f"CuDNN(precision='highest') for float32 "
        "matmuls, 'high' for TF32 ones"
    )


def _wrong_cell(cell: Any) -> str | None:
    """Say why cuDNN does not support a cell, or None."""
    name = type(cell).__name__
    wrapped = isinstance(cell, AbstractWrappedCell)
    if isinstance(cell, ScaledCell):
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
    held = vars(cell)
    given = [
        f"{option}={held[option]}"
        for option, plain in options.items()
        if held[option] != plain
    ]
    if given:
        return f"its LSTM has no {', '.join(given)}: {USE_SCAN}, or leave that out"
    return None
