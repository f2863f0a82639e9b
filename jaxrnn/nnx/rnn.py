"""Any cell or layer as a flax nnx module, so that flax's Embed, Linear, Conv and
attention make the rest of a model.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Inexact, Shaped

from ..core.cell import Carry, Cell, Layer, Params, check_cell, weaken_scalars
from ..core.validation import check_inputs, check_ours, check_positive
from ..engines import Scan
from ..layers import inference
from ..layers.compose import init_in, outputs_of
from ..unrolling import mask_from_lengths
from ..unrolling import unroll as unroll_layer
from .cells import Walkable, walkable
from .flip import Lengths, flip_sequences


class RNN(nnx.Module):
    """A cell or layer walked over sequences, with its parameters as ``nnx.Param``;
    stands where ``nnx.RNN`` stood.

    Args:
        cell: any jaxrnn cell or layer, or a flax cell (``nnx.LSTMCell``, ``GRUCell``,
            ``SimpleCell``, one's own). A flax cell brings its parameters, which stay
            where they are, ``rnn.cell``; its carry is flax's, (c, h) for an LSTM.
        input_size: D, for a jaxrnn cell or layer.
        time_major: sequences are ``(T, *B, D)``; by default they are batch-first,
            ``(*B, T, D)``, as elsewhere in flax.
        return_carry: return ``(carry, ys)``. This and the next two, and ``time_major``,
            can also be said at each call.
        reverse: walk from the last step to the first.
        keep_order: with ``reverse`` outputs stay beside their inputs; False gives them
            in the order of walking.
        unroll: steps in one round of the loop.
        engine: see `jaxrnn.unroll`.
        dtype: of the parameters of a jaxrnn cell or layer.
        state_axes, broadcast_rngs: refused by name.
        rngs: ``nnx.Rngs`` whose ``params`` stream draws the parameters of a jaxrnn cell
            or layer. Left alone for a flax cell.

    Attributes:
        output_size: features of the outputs (of a flax cell its ``hidden_features``;
            None where they are several arrays).
        deterministic: True makes dropout and zoneout draw nothing; ``model.eval()``,
            ``model.train()`` and ``nnx.view(model, deterministic=True)`` set it.

    Example::

        rnn = jaxrnn.nnx.RNN(jaxrnn.LSTM(128), 32, rngs=nnx.Rngs(0))
        ys = rnn(xs)                                # xs (B, T, 32) -> ys (B, T, 128)
        carry, ys = rnn(xs, seq_lengths=lengths, return_carry=True)
        rnn = jaxrnn.nnx.RNN(nnx.LSTMCell(32, 128, rngs=nnx.Rngs(0)))
    """

    def __init__(
        self,
        cell: Any,
        input_size: int | None = None,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = True,
        unroll: int = 1,
        engine: Any = None,
        dtype: Any = None,
        state_axes: Any = None,
        broadcast_rngs: Any = None,
        rngs: Any = True,
    ):
        if state_axes is not None or broadcast_rngs is not None:
            raise TypeError(
                "RNN: state_axes and broadcast_rngs are for cells that change their "
                "own variables while they step, which are "
                "not walked here: use jaxrnn.recurrent_dropout or jaxrnn.zoneout "
                "around a jaxrnn cell, or flax's nnx.RNN"
            )
        if isinstance(cell, nnx.Module):
            if not hasattr(cell, "initialize_carry"):
                raise TypeError(
                    f"RNN: a flax cell has __call__(carry, x) -> (carry, y) and "
                    f"initialize_carry, which {type(cell).__name__} "
                    "has not: give a cell, such as nnx.LSTMCell, or a jaxrnn cell or "
                    "layer (an RNN is whole: call it)"
                )
            if input_size is not None or dtype is not None:
                raise ValueError(
                    f"RNN: {type(cell).__name__} has its parameters already, so leave "
                    f"input_size and dtype out: they make "
                    "those of a jaxrnn cell"
                )
            self.cell, self.input_size = cell, getattr(cell, "in_features", None)
            self.output_size: Any = getattr(cell, "hidden_features", None)
        else:
            self._draw_params(cell, input_size, dtype, rngs)
        check_positive(self, unroll=unroll)
        self.engine = Scan(unroll=unroll) if engine is None and unroll > 1 else engine
        self.time_major, self.return_carry, self.reverse, self.keep_order = (
            time_major,
            return_carry,
            reverse,
            keep_order,
        )
        self.deterministic = False

    def _draw_params(
        self, layer: Cell | Layer, input_size: int | None, dtype: Any, rngs: Any
    ) -> None:
        check_cell(layer)
        if input_size is None or not isinstance(rngs, nnx.Rngs):
            raise TypeError(
                "RNN: a jaxrnn cell or layer gets its parameters here: RNN(layer, "
                "input_size, rngs=nnx.Rngs(0)), but "
                f"input_size is {input_size!r} and rngs is {rngs!r}"
            )
        params = init_in(layer, rngs.params(), input_size, dtype)
        ys = outputs_of(layer, params, input_size)
        self.layer, self.input_size, self.output_size = (
            layer,
            input_size,
            ys.shape[-1] if hasattr(ys, "shape") else None,
        )
        self.params = nnx.data(
            jax.tree.map(
                lambda leaf: nnx.Param(jnp.asarray(leaf)), weaken_scalars(params)
            )
        )

    def _walkable(self, dtype: Any = None, features: int | None = None) -> Walkable:
        return (
            walkable(self.cell, dtype, features)
            if hasattr(self, "cell")
            else Walkable(self.layer, self._own_values())
        )

    def _own_values(self) -> Params:
        return jax.tree.map(
            lambda p: p[...],
            self.params,
            is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
        )

    def values(self) -> Params:
        """The parameters as plain arrays, as `jaxrnn.unroll` takes them (a flax
        cell's, packed in jaxrnn's order).
        """
        return self._walkable().params

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """The carry before the first step."""
        layer, params, _, _, leave = self._walkable()
        return leave(layer.initial_carry(params, batch_shape))

    def step(self, carry: Carry, x: Inexact[Array, "*B D"]) -> tuple[Carry, Array]:
        """One streaming step without randomness: ``(carry, y)``."""
        layer, params, dtype, enter, leave = self._walkable(x.dtype, x.shape[-1])
        carry, y = inference(layer)(
            params, enter(carry, x.shape[:-1]), x if dtype is None else x.astype(dtype)
        )
        return leave(carry), y

    def __call__(
        self,
        inputs: Shaped[Array, "..."],
        initial_carry: Carry = None,
        *,
        mask: Bool[Array, "..."] | None = None,
        seq_lengths: Lengths | None = None,
        resets: Bool[Array, "..."] | None = None,
        return_carry: bool | None = None,
        return_carries: bool = False,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """Outputs ``(*B, T, H)`` or time-major, zero where a sequence is padded.

        Args:
            inputs, mask, resets: as in `jaxrnn.unroll`, but batch-first unless
                ``time_major``.
            initial_carry: the state before the first step.
            seq_lengths: ``(*B,)`` integers, or a list, instead of a mask. 0 gives back
                the initial carry.
            return_carry, time_major, reverse, keep_order: instead of what was said at
                construction.
            return_carries: return ``(carry, ys, carries)``, the carries time-major
                whatever ``time_major`` says.
            rngs: ``nnx.Rngs``, demanded while a layer with dropout or zoneout is not
                deterministic; its ``dropout`` stream is used. As elsewhere in flax,
                modules that draw nothing take it and leave it alone.
        """
        time_major, reverse, keep_order, return_carry = (
            getattr(self, name) if said is None else said
            for name, said in [
                ("time_major", time_major),
                ("reverse", reverse),
                ("keep_order", keep_order),
                ("return_carry", return_carry),
            ]
        )
        check_ours("inputs", inputs)
        parts = self._walkable(inputs.dtype, inputs.shape[-1])
        xs = inputs if parts.dtype is None else inputs.astype(parts.dtype)
        self._check(
            xs,
            mask,
            seq_lengths,
            resets,
            initial_carry,
            time_major,
            reverse and not keep_order,
        )
        axis = 0 if time_major else xs.ndim - 2
        xs, mask, resets = jax.tree.map(
            lambda a: jnp.moveaxis(a, axis, 0), (xs, mask, resets)
        )
        if seq_lengths is not None:
            given: Any = seq_lengths  # a list too, which is checked there
            mask = mask_from_lengths(given, xs.shape[0])
        layer = inference(parts.layer) if self.deterministic else parts.layer
        last, ys, *carries = unroll_layer(
            layer,
            parts.params,
            xs,
            None
            if initial_carry is None
            else parts.enter(initial_carry, xs.shape[1:-1]),
            engine=self.engine,
            mask=mask,
            resets=resets,
            reverse=reverse,
            key=self._key(layer, rngs),
            return_carries=return_carries,
        )
        if reverse and not keep_order:
            ys = jax.tree.map(
                lambda leaf: flip_sequences(leaf, seq_lengths, xs.ndim - 2, True), ys
            )
        last, ys = (
            parts.leave(last),
            jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), ys),
        )
        if return_carries:
            return last, ys, parts.leave(carries[0])
        return (last, ys) if return_carry else ys

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view`` calls on its copy."""
        self.deterministic = (
            self.deterministic if deterministic is None else deterministic
        )

    def _key(self, layer: Cell | Layer, rngs: Any) -> Array | None:
        if not layer.requires_key:
            return None
        if not isinstance(rngs, nnx.Rngs):
            raise ValueError(
                f"RNN: {type(layer).__name__} draws random numbers (dropout or "
                f"zoneout), so each call needs "
                "rnn(xs, rngs=nnx.Rngs(...)): those of the constructor draw parameters "
                "only. model.eval() draws nothing"
            )
        return rngs.dropout()

    def _check(
        self, xs, mask, seq_lengths, resets, initial_carry, time_major, turned
    ) -> None:
        check_inputs(xs)
        layout = "(T, *B)" if time_major else "(*B, T)"
        for name, flags in (("mask", mask), ("resets", resets)):
            if flags is not None and jnp.shape(flags) != xs.shape[:-1]:
                raise ValueError(
                    f"RNN: {name} must have shape {layout} = {xs.shape[:-1]}, but its "
                    f"shape is {jnp.shape(flags)}"
                )
        if mask is not None and seq_lengths is not None:
            raise ValueError("RNN: give a mask or seq_lengths, not both")
        if mask is not None and turned:
            raise ValueError(
                "RNN: keep_order=False turns sequences round, whose ends a mask does "
                "not tell: give seq_lengths"
            )
        if getattr(getattr(self, "cell", None), "carry_init", None) is not None and (
            initial_carry is None or resets is not None
        ):
            raise ValueError(
                f"RNN: {type(self.cell).__name__} was given a carry_init, which draws "
                f"its carry anew at each call: make it "
                "with rnn.cell.initialize_carry(shape, rngs) and pass it as "
                "initial_carry; resets go back to zeros only"
            )
