"""Sequences as flax's modules take them: batch-first, with lengths, in either order."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.types import Flags, Inputs, PyTree
from ..core.validation import check_all_ours, check_inputs
from ..unrolling import mask_from_lengths
from .flip import flip_sequences


class Order(NamedTuple):
    """How the sequences of one call are laid out, and in which order they are run.

    Attributes:
        time_major: whether time is the first axis, and not the one behind the batch.
        reverse: whether the steps run from the last to the first.
        keep_order: whether outputs stay beside their inputs then.
    """

    time_major: bool
    reverse: bool
    keep_order: bool


class Sequences(NamedTuple):
    """A batch of sequences with time first, and what is needed to lay it out again.

    Attributes:
        xs: the inputs, a pytree of ``(T, *B, ...)``.
        mask, resets: ``(T, *B)`` bool, or None.
        lengths: ``(*B,)`` integers, or None.
        batch: ``*B``.
        axis: where the time axis was.
    """

    xs: Any
    mask: Any
    resets: Any
    lengths: Any
    batch: tuple[int, ...]
    axis: int

    @property
    def flips_within_lengths(self) -> bool:
        """Whether a reversed run takes each sequence from the end of its own length.

        Step k of the loop is then the k-th of every sequence, as in flax. A mask does
        not tell where sequences end, and resets may stand in the padding, so with
        either all of time is reversed.
        """
        return self.lengths is not None and self.resets is None

    def flip(self, tree: PyTree) -> Any:
        """Put leaves ``(T, *B, ...)`` in the order of a reversed run, or back."""
        lengths = self.lengths if self.flips_within_lengths else None
        return jax.tree.map(
            lambda leaf: flip_sequences(leaf, lengths, len(self.batch), True), tree
        )

    def flipped(self) -> Sequences:
        """Return the sequences in the order of a reversed run."""
        return self._replace(
            xs=self.flip(self.xs),
            mask=self.mask if self.flips_within_lengths else self.flip(self.mask),
            resets=self.flip(self.resets),
        )

    def laid_out(self, ys: PyTree, flip: bool) -> Any:
        """Return outputs ``(T, *B, ...)`` in the caller's axes, flipped in time or not.

        Args:
            ys: a pytree of outputs, time first.
            flip: whether each sequence is reversed within its length.

        Returns:
            The outputs, with time where it was in the inputs.
        """

        def leaf(y: Array) -> Array:
            if flip:
                y = flip_sequences(y, self.lengths, len(self.batch), True)
            return jnp.moveaxis(y, 0, self.axis)

        return jax.tree.map(leaf, ys)


def arrange(
    inputs: Inputs,
    feature_ndim: PyTree,
    order: Order,
    mask: Flags | None,
    seq_lengths: Any,
    resets: Flags | None,
) -> Sequences:
    """Put time first, and turn lengths into a mask.

    Args:
        inputs: a pytree of ``(*B, T, ...)``, or ``(T, *B, ...)`` if time-major.
        feature_ndim: the number of feature axes, as in `Cell`.
        order: the options of the call.
        mask, resets: bool, with the axes of the inputs but for the features; or None.
        seq_lengths: ``(*B,)`` integers, a list of them, or None.

    Returns:
        The sequences.

    Raises:
        TypeError, ValueError: for arrays that do not fit, and for a mask together with
            ``seq_lengths`` or with reversed outputs.
    """
    check_all_ours("inputs", inputs)
    lead = check_inputs(inputs, feature_ndim)
    axis = 0 if order.time_major else len(lead) - 1
    layout = "(T, *B)" if order.time_major else "(*B, T)"
    for name, flags in (("mask", mask), ("resets", resets)):
        if flags is not None and jnp.shape(flags) != lead:
            raise ValueError(
                f"RNN: {name} must have shape {layout} = {lead}, but its "
                f"shape is {jnp.shape(flags)}"
            )
    if mask is not None and seq_lengths is not None:
        raise ValueError("RNN: pass a mask or seq_lengths, not both")
    if mask is not None and order.reverse and not order.keep_order:
        raise ValueError(
            "RNN: keep_order=False reverses sequences, and a mask does not tell "
            "where they end: pass seq_lengths"
        )
    xs, mask, resets = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, axis, 0), (inputs, mask, resets)
    )
    batch = lead[:axis] + lead[axis + 1 :]
    if seq_lengths is not None:
        if jnp.shape(seq_lengths) != batch:
            raise ValueError(
                f"RNN: seq_lengths must have one length per sequence, shape {batch}, "
                f"but have {jnp.shape(seq_lengths)}"
            )
        mask = mask_from_lengths(seq_lengths, lead[axis])
    return Sequences(xs, mask, resets, seq_lengths, batch, axis)
