"""Any cell or layer as a flax nnx module, so that flax's Embed, Linear, Conv and attention make the rest of a model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Inexact, Integer

from .cell import Carry, Cell, Layer, Params, check_cell
from .checks import check_inputs
from .layers import inference
from .layers.compose import init_in, output_size
from .unroll import mask_from_lengths, unroll


class RNN(nnx.Module):
    """A cell or layer walked over sequences, with its parameters as ``nnx.Param``.

    Args:
        layer: any jaxrnn cell or layer.
        input_size: D.
        time_major: sequences are ``(T, *B, D)``; by default they are batch-first, ``(*B, T, D)``, as elsewhere in flax.
        reverse: walk from the last step to the first; outputs stay beside their inputs.
        engine: see `jaxrnn.unroll`.
        dtype: of the parameters.
        rngs: ``nnx.Rngs`` whose ``params`` stream draws them.

    Attributes:
        output_size: features of the outputs.
        deterministic: True makes dropout and zoneout draw nothing; ``model.eval()`` and ``model.train()`` set it.

    Example::

        rnn = jaxrnn.nnx.RNN(jaxrnn.LSTM(128), 32, rngs=nnx.Rngs(0))
        ys = rnn(xs)                                # xs (B, T, 32) -> ys (B, T, 128)
        carry, ys = rnn(xs, seq_lengths=lengths, return_carry=True)
    """

    def __init__(
        self,
        layer: Cell | Layer,
        input_size: int,
        *,
        time_major: bool = False,
        reverse: bool = False,
        engine: Any = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        check_cell(layer)
        params = init_in(layer, rngs.params(), input_size, dtype)
        self.layer, self.input_size, self.output_size = layer, input_size, output_size(layer, params, input_size)
        self.time_major, self.reverse, self.engine = time_major, reverse, engine
        self.deterministic = False
        self.params = nnx.data(jax.tree.map(nnx.Param, params))

    def values(self) -> Params:
        """The parameters as plain arrays, as `jaxrnn.unroll` takes them."""
        return jax.tree.map(lambda p: p[...], self.params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """The carry before the first step."""
        return self.layer.initial_carry(self.values(), batch_shape)

    def step(self, carry: Carry, x: Inexact[Array, "*B D"]) -> tuple[Carry, Array]:
        """One streaming step without randomness: ``(carry, y)``."""
        return inference(self.layer)(self.values(), carry, x)

    def __call__(
        self,
        xs: Inexact[Array, "..."],
        carry: Carry = None,
        *,
        mask: Bool[Array, "..."] | None = None,
        seq_lengths: Integer[Array, "*B"] | None = None,
        resets: Bool[Array, "..."] | None = None,
        return_carry: bool = False,
        return_carries: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Any:
        """Outputs beside their inputs, ``(*B, T, H)`` or time-major.

        Args:
            xs, mask, resets: as in `jaxrnn.unroll`, but batch-first unless ``time_major``.
            carry: the state before the first step.
            seq_lengths: ``(*B,)`` integers instead of a mask. 0 gives back the initial carry.
            return_carry: return ``(carry, ys)``.
            return_carries: return ``(carry, ys, carries)``, the carries time-major whatever ``time_major`` says.
            rngs: demanded while a layer with dropout or zoneout is not deterministic; its ``dropout`` stream is used. As
                elsewhere in flax, modules that draw nothing take it and leave it alone.
        """
        check_inputs(xs)
        layout = "(T, *B)" if self.time_major else "(*B, T)"
        for name, flags in (("mask", mask), ("resets", resets)):
            if flags is not None and jnp.shape(flags) != xs.shape[:-1]:
                raise ValueError(f"RNN: {name} must have shape {layout} = {xs.shape[:-1]}, but its shape is {jnp.shape(flags)}")
        if mask is not None and seq_lengths is not None:
            raise ValueError("RNN: give a mask or seq_lengths, not both")
        axis = 0 if self.time_major else xs.ndim - 2
        xs, mask, resets = jax.tree.map(lambda a: jnp.moveaxis(a, axis, 0), (xs, mask, resets))
        if seq_lengths is not None:
            mask = mask_from_lengths(seq_lengths, xs.shape[0])
        layer = inference(self.layer) if self.deterministic else self.layer
        if layer.draws and rngs is None:
            raise ValueError(
                f"RNN: {type(layer).__name__} draws random numbers (dropout or zoneout), so each call needs "
                "rnn(xs, rngs=nnx.Rngs(...)): those of the constructor draw parameters only. model.eval() draws nothing"
            )
        key = rngs.dropout() if rngs is not None and layer.draws else None
        last, ys, *carries = unroll(
            layer,
            self.values(),
            xs,
            carry,
            engine=self.engine,
            mask=mask,
            resets=resets,
            reverse=self.reverse,
            key=key,
            return_carries=return_carries,
        )
        ys = jnp.moveaxis(ys, 0, axis)
        if return_carries:
            return last, ys, carries[0]
        return (last, ys) if return_carry else ys
