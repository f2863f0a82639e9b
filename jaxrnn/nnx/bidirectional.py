"""Both directions, as flax puts them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Inexact, Shaped

from ..core.cell import Cell, Layer
from ..core.validation import describe
from .flip import Lengths, flip_sequences


def _concatenate(forward: Array, backward: Array) -> Array:
    return jnp.concatenate([forward, backward], axis=-1)


class Bidirectional(nnx.Module):
    """One RNN forwards in time and one backwards, their outputs merged, as
    ``nnx.Bidirectional``.

    Args:
        forward_rnn, backward_rnn: `RNN` of one's choice, or anything that is called
            like it. Two, so that each has parameters of its own: one object for both is
            refused (to share them, make two `RNN` of one cell).
        merge_fn: of the outputs of both, which stand beside their inputs; default:
            features side by side.
        time_major, return_carry: as for `RNN`; they, and ``rngs``, go to both at each
            call.
        rngs: taken and left alone.

    The carry is the pair of both, forward's at the last step and backward's at the
    first.

    Example::

        rnn = Bidirectional(RNN(nnx.GRUCell(3, 4, rngs=rngs)), RNN(nnx.GRUCell(3, 4,
        rngs=rngs)))
        ys = rnn(xs, seq_lengths=lengths)           # xs (B, T, 3) -> ys (B, T, 8)
    """

    def __init__(
        self,
        forward_rnn: Any,
        backward_rnn: Any,
        *,
        merge_fn: Callable[[Array, Array], Array] = _concatenate,
        time_major: bool = False,
        return_carry: bool = False,
        rngs: Any = True,
    ):
        for name, rnn in (("forward_rnn", forward_rnn), ("backward_rnn", backward_rnn)):
            if (
                isinstance(rnn, (Cell, Layer))
                or hasattr(rnn, "initialize_carry")
                or not callable(rnn)
            ):
                wrap = (
                    "RNN(cell, input_size, rngs=rngs)"
                    if isinstance(rnn, (Cell, Layer))
                    else "RNN(cell)"
                )
                raise TypeError(
                    f"Bidirectional: {name} must be an RNN, which walks whole "
                    f"sequences, but it is {describe(rnn)}: make it "
                    f"{wrap}"
                )
        if forward_rnn is backward_rnn:
            raise ValueError(
                "Bidirectional: forward_rnn and backward_rnn are one object, so both "
                "directions would share its parameters: "
                "make two, or, if they shall share, two RNN of one cell"
            )
        self.forward_rnn, self.backward_rnn, self.merge_fn = (
            forward_rnn,
            backward_rnn,
            merge_fn,
        )
        self.time_major, self.return_carry = time_major, return_carry

    def __call__(
        self,
        inputs: Shaped[Array, "..."],
        *,
        initial_carry: Any = None,
        rngs: Any = None,
        seq_lengths: Lengths | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Inexact[Array, "..."] | tuple[Any, Inexact[Array, "..."]]:
        """Merged outputs, or ``((forward's carry, backward's carry), outputs)``.

        With ``reverse`` the two change direction, so that one `Bidirectional` may be
        the backward half of another.
        """
        time_major = self.time_major if time_major is None else time_major
        forward, backward = (None, None) if initial_carry is None else initial_carry
        how: dict[str, Any] = {
            "seq_lengths": seq_lengths,
            "return_carry": True,
            "time_major": time_major,
            "keep_order": True,
        }
        if rngs is not None:
            how["rngs"] = rngs
        forward, ys = self._directed(
            self.forward_rnn, inputs, forward, bool(reverse), how
        )
        backward, others = self._directed(
            self.backward_rnn, inputs, backward, not reverse, how
        )
        outputs = self.merge_fn(ys, others)
        if reverse and keep_order is False:
            outputs = flip_sequences(outputs, seq_lengths, outputs.ndim - 2, time_major)
        return_carry = self.return_carry if return_carry is None else return_carry
        return ((forward, backward), outputs) if return_carry else outputs

    def _directed(
        self, rnn: Any, inputs: Array, carry: Any, reverse: bool, how: dict[str, Any]
    ) -> tuple[Any, Array]:
        return rnn(inputs, initial_carry=carry, reverse=reverse, **how)
