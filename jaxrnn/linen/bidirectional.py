"""A bidirectional RNN module with the interface of ``flax.linen.Bidirectional``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Shaped

from ..modules.flip import Lengths, flip_sequences


def _concatenate(forward: Array, backward: Array) -> Array:
    """Concatenate the features of both directions."""
    return jnp.concatenate([forward, backward], axis=-1)


class Bidirectional(nn.Module):
    """A forward and a backward RNN whose outputs are merged, as flax's.

    The carry is the pair of both carries: that of the forward RNN at the last step and
    that of the backward RNN at the first. The arguments are flax's, in flax's order.

    Args:
        forward_rnn, backward_rnn: two `RNN` modules, or modules that are called like
            one. They must be two objects, so that each has parameters of its own. (To
            share parameters, make two `RNN` of one cell.)
        merge_fn: ``merge_fn(forward_outputs, backward_outputs) -> outputs``, for each
            array of the outputs, both in the order of the inputs. The default
            concatenates the features.
        time_major: inputs and outputs are ``(T, B, D)`` instead of ``(B, T, D)``.
        return_carry: return ``(carry, outputs)`` from each call.

    Raises:
        ValueError: if both directions are one object.

    Example::

        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from jaxrnn.linen import RNN, Bidirectional
        >>> both = Bidirectional(RNN(nn.GRUCell(4)), RNN(nn.GRUCell(4)))
        >>> xs = jnp.ones((2, 5, 3))
        >>> variables = both.init(jax.random.key(0), xs)
        >>> both.apply(variables, xs, seq_lengths=jnp.array([5, 3])).shape
        (2, 5, 8)
    """

    forward_rnn: Any
    backward_rnn: Any
    merge_fn: Callable[[Array, Array], Array] = _concatenate
    time_major: bool = False
    return_carry: bool = False

    def __call__(
        self,
        inputs: Shaped[Array, "..."],
        *,
        initial_carry: Any = None,
        init_key: Array | None = None,
        seq_lengths: Lengths | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Apply both directions and merge their outputs.

        Args:
            inputs: ``(*B, T, D)``, or ``(T, *B, D)`` if time-major.
            initial_carry: the pair of the initial carries, forward and backward.
            init_key: a key, split for the two initial carries.
            seq_lengths: the lengths of the sequences, ``(*B,)``.
            return_carry, time_major: override the fields.
            reverse: exchange the directions, so that one `Bidirectional` may be the
                backward half of another.
            keep_order: with ``reverse``, False returns the outputs in reversed time.

        Returns:
            The merged outputs, or ``((forward_carry, backward_carry), outputs)``.
        """
        if self.forward_rnn is self.backward_rnn:
            raise ValueError(
                "Bidirectional: forward_rnn and backward_rnn are one object, so both "
                "directions would share its parameters: "
                "make two, or, if they should share, two RNN of one cell"
            )
        keys = (None, None) if init_key is None else jax.random.split(init_key)
        carries = (None, None) if initial_carry is None else initial_carry
        time_major = self.time_major if time_major is None else time_major
        directions = (self.forward_rnn, bool(reverse)), (self.backward_rnn, not reverse)
        (forward, forward_ys), (backward, backward_ys) = (
            rnn(
                inputs,
                initial_carry=carry,
                init_key=key,
                seq_lengths=seq_lengths,
                return_carry=True,
                time_major=time_major,
                reverse=backwards,
                keep_order=True,
            )
            for (rnn, backwards), carry, key in zip(directions, carries, keys)
        )
        outputs = jax.tree.map(self.merge_fn, forward_ys, backward_ys)
        if reverse and keep_order is False:
            outputs = jax.tree.map(
                lambda ys: flip_sequences(ys, seq_lengths, ys.ndim - 2, time_major),
                outputs,
            )
        return_carry = self.return_carry if return_carry is None else return_carry
        return ((forward, backward), outputs) if return_carry else outputs
