"""A bidirectional RNN module with the interface of ``nnx.Bidirectional``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Carry, Context, Inputs
from ..core.validation import describe, lead_ndim
from ..modules.flip import Lengths, flip_sequences
from .cells import CellOfFlax
from .rnn import RNN


def _concatenate(forward: Array, backward: Array) -> Array:
    """Concatenate the features of both directions."""
    return jnp.concatenate([forward, backward], axis=-1)


class Bidirectional(nnx.Module):
    """A forward and a backward RNN whose outputs are merged, as ``nnx.Bidirectional``.

    The carry is the pair of both carries: that of the forward RNN at the last step and
    that of the backward RNN at the first.

    Args:
        forward_rnn, backward_rnn: two `RNN` modules, or modules that are called like
            one. They must be two objects, so that each has parameters of its own. (To
            share parameters, make two `RNN` of one cell.)
        merge_fn: ``merge_fn(forward_outputs, backward_outputs) -> outputs``, for each
            array of the outputs, both in the order of the inputs. The default
            concatenates the features.
        time_major: inputs and outputs are ``(T, B, D)`` instead of ``(B, T, D)``.
        return_carry: return ``(carry, outputs)`` from each call.
        rngs: accepted for compatibility with flax, and ignored.

    Raises:
        TypeError: if a direction is not an `RNN`.
        ValueError: if both directions are one object.

    Example::

        >>> import jax.numpy as jnp, jaxrnn.nnx
        >>> from flax import nnx
        >>> cells = [nnx.GRUCell(3, 4, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
        >>> rnn = jaxrnn.nnx.Bidirectional(*map(jaxrnn.nnx.RNN, cells))
        >>> rnn(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 3])).shape
        (2, 5, 8)
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
            if isinstance(rnn, (Cell, Layer, CellOfFlax)) or not callable(rnn):
                wrap = (
                    "RNN(cell, input_size, rngs=rngs)"
                    if isinstance(rnn, (Cell, Layer))
                    else "RNN(cell)"
                )
                raise TypeError(
                    f"Bidirectional: {name} must be an RNN, which is applied to whole "
                    f"sequences, but it is {describe(rnn)}: make it "
                    f"{wrap}"
                )
        if forward_rnn is backward_rnn:
            raise ValueError(
                "Bidirectional: forward_rnn and backward_rnn are one object, so both "
                "directions would share its parameters: "
                "make two, or, if they should share, two RNN of one cell"
            )
        self.forward_rnn, self.backward_rnn, self.merge_fn = (
            forward_rnn,
            backward_rnn,
            merge_fn,
        )
        self.time_major, self.return_carry = time_major, return_carry

    def __call__(
        self,
        inputs: Inputs,
        *,
        initial_carry: Any = None,
        rngs: Any = None,
        seq_lengths: Lengths | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        context: Context = None,
    ) -> Any:
        """Apply both directions and merge their outputs.

        Args:
            inputs: ``(*B, T, D)``, or ``(T, *B, D)`` if time-major.
            initial_carry: the pair of the initial carries, forward and backward.
            rngs: passed to both directions; needed by layers that draw random numbers.
            seq_lengths: the lengths of the sequences, ``(*B,)``.
            return_carry, time_major: override the options of the constructor.
            reverse: exchange the directions, so that one `Bidirectional` may be the
                backward half of another.
            keep_order: with ``reverse``, False returns the outputs in reversed time.
            context: passed to both directions; needed by cells that take one.

        Returns:
            The merged outputs, or ``((forward_carry, backward_carry), outputs)``.
        """
        time_major = self.time_major if time_major is None else time_major
        forward, backward = (None, None) if initial_carry is None else initial_carry
        options: dict[str, Any] = {
            "seq_lengths": seq_lengths,
            "return_carry": True,
            "time_major": time_major,
            "keep_order": True,
        }
        if rngs is not None:
            options["rngs"] = rngs
        if context is not None:
            options["context"] = context
        forward, forward_ys = self._directed(
            self.forward_rnn, inputs, forward, bool(reverse), options
        )
        backward, backward_ys = self._directed(
            self.backward_rnn, inputs, backward, not reverse, options
        )
        outputs = jax.tree.map(self.merge_fn, forward_ys, backward_ys)
        if reverse and keep_order is False:
            features = (
                self.forward_rnn.feature_ndim
                if isinstance(self.forward_rnn, RNN)
                else 1
            )
            batch = lead_ndim(inputs, features) - 1
            outputs = jax.tree.map(
                lambda ys: flip_sequences(ys, seq_lengths, batch, time_major), outputs
            )
        return_carry = self.return_carry if return_carry is None else return_carry
        return ((forward, backward), outputs) if return_carry else outputs

    def _directed(
        self,
        rnn: Any,
        inputs: Inputs,
        carry: Carry,
        reverse: bool,
        options: dict[str, Any],
    ) -> tuple[Any, Any]:
        """Apply one RNN in the given direction."""
        return rnn(inputs, initial_carry=carry, reverse=reverse, **options)
