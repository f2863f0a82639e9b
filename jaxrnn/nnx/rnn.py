"""Any cell or layer as a flax nnx module, to be combined with flax's other layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Inexact, Shaped

from ..core.arrays import is_array
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
    """A cell or layer applied to sequences; a drop-in replacement for ``nnx.RNN``.

    The parameters are ``nnx.Param``.

    Args: cell: any jaxrnn cell or layer, or a flax cell (``nnx.LSTMCell``, ``GRUCell``,
        ``SimpleCell``, or your own). A flax cell keeps its parameters, in ``rnn.cell``,
        and its carry, (c, h) for an LSTM. input_size: D, for a jaxrnn cell or layer.
        time_major: sequences are ``(T, *B, D)``. By default they are batch-first,
        ``(*B, T, D)``, as elsewhere in flax. return_carry: return ``(carry, ys)``. This
        option, the next two and ``time_major`` can also be given at each call. reverse:
        run from the last step to the first. keep_order: with ``reverse``, outputs keep
        the order of the inputs; False returns them in the order in which they are
        computed. unroll: the number of steps per iteration of the loop. engine: see
        `jaxrnn.unroll`. dtype: the dtype of the parameters of a jaxrnn cell or layer.
        state_axes, broadcast_rngs: not supported; refused by name. rngs: ``nnx.Rngs``
        whose ``params`` stream draws the parameters of a jaxrnn cell or layer. Ignored
        for a flax cell.

    Attributes:
        output_size: the number of output features (for a flax cell its
            ``hidden_features``; None if the output is not one array).
        deterministic: True disables dropout and zoneout. ``model.eval()``,
            ``model.train()`` and ``nnx.view(model, deterministic=True)`` set it.

    Raises:
        TypeError: if ``cell`` is neither a cell nor a layer, or a jaxrnn cell comes
            without ``input_size`` or ``rngs``.
        ValueError: if a flax cell comes with ``input_size`` or ``dtype``.

    Example::

        >>> import jax.numpy as jnp, jaxrnn.nnx
        >>> from flax import nnx
        >>> rnn = jaxrnn.nnx.RNN(jaxrnn.LSTM(4), 3, rngs=nnx.Rngs(0))
        >>> rnn(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 2])).shape
        (2, 5, 4)
        >>> rnn = jaxrnn.nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
        >>> (c, h), ys = rnn(jnp.ones((2, 5, 3)), return_carry=True)
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
                "not supported: use jaxrnn.recurrent_dropout or jaxrnn.zoneout "
                "around a jaxrnn cell, or flax's nnx.RNN"
            )
        if isinstance(cell, nnx.Module):
            if not hasattr(cell, "initialize_carry"):
                raise TypeError(
                    f"RNN: a flax cell must have __call__(carry, x) -> (carry, y) and "
                    f"initialize_carry, which {type(cell).__name__} does not have: "
                    f"pass a cell, such as nnx.LSTMCell, or a jaxrnn cell or layer "
                    f"(an RNN needs no wrapper: call it)"
                )
            if input_size is not None or dtype is not None:
                raise ValueError(
                    f"RNN: {type(cell).__name__} already has its parameters, so leave "
                    f"out input_size and dtype: they are for a jaxrnn cell"
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
        """Initialize the parameters of a jaxrnn cell or layer."""
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
            ys.shape[-1] if is_array(ys) else None,
        )
        self.params = nnx.data(
            jax.tree.map(
                lambda leaf: nnx.Param(jnp.asarray(leaf)), weaken_scalars(params)
            )
        )

    def _walkable(self, dtype: Any = None, features: int | None = None) -> Walkable:
        """Return the arguments of `jaxrnn.unroll` for this module."""
        return (
            walkable(self.cell, dtype, features)
            if hasattr(self, "cell")
            else Walkable(self.layer, self._own_values())
        )

    def _own_values(self) -> Params:
        """Return the parameters of a jaxrnn cell or layer as plain arrays."""
        return jax.tree.map(
            lambda p: p[...],
            self.params,
            is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
        )

    def values(self) -> Params:
        """Return the parameters as plain arrays, as `jaxrnn.unroll` takes them.

        Those of a flax cell are packed in jaxrnn's order.
        """
        return self._walkable().params

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Return the carry before the first step, for the given batch shape."""
        layer, params, _, _, leave = self._walkable()
        return leave(layer.initial_carry(params, batch_shape))

    def step(self, carry: Carry, x: Inexact[Array, "*B D"]) -> tuple[Carry, Array]:
        """Apply one step without randomness, for streaming.

        Args:
            carry: the carry before the step.
            x: the input, ``(*B, D)``.

        Returns:
            ``(carry, y)``, the carry after the step and the output ``(*B, H)``.
        """
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
        """Apply the cell or layer to a batch of sequences.

        Args: inputs, mask, resets: as for `jaxrnn.unroll`, but batch-first unless
            ``time_major``. initial_carry: the carry before the first step. seq_lengths:
            ``(*B,)`` integers, or a list, instead of a mask. A sequence of length 0
            returns its initial carry. return_carry, time_major, reverse, keep_order:
            override the options of the constructor. return_carries: return ``(carry,
            ys, carries)``. The carries are time-major whatever ``time_major`` is. rngs:
            ``nnx.Rngs``, required by a layer with dropout or zoneout unless it is
            deterministic; its ``dropout`` stream is used. As elsewhere in flax, modules
            that draw nothing accept and ignore it.

        Returns:
            The outputs ``(*B, T, H)``, or time-major; zero at padded steps. With
            ``return_carry``, ``(carry, ys)``.

        Raises: TypeError, ValueError: for arrays whose shapes or dtypes do not fit, for
            a mask together with ``seq_lengths``, or for missing ``rngs``.
        """
        time_major, reverse, keep_order, return_carry = (
            getattr(self, name) if argument is None else argument
            for name, argument in [
                ("time_major", time_major),
                ("reverse", reverse),
                ("keep_order", keep_order),
                ("return_carry", return_carry),
            ]
        )
        check_ours("inputs", inputs)
        target = self._walkable(inputs.dtype, inputs.shape[-1])
        xs = inputs if target.dtype is None else inputs.astype(target.dtype)
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
            lengths: Any = seq_lengths  # may be a list, which the function checks
            mask = mask_from_lengths(lengths, xs.shape[0])
        layer = inference(target.layer) if self.deterministic else target.layer
        last_carry, ys, *carries = unroll_layer(
            layer,
            target.params,
            xs,
            None
            if initial_carry is None
            else target.enter(initial_carry, xs.shape[1:-1]),
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
        last_carry, ys = (
            target.leave(last_carry),
            jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), ys),
        )
        if return_carries:
            return last_carry, ys, target.leave(carries[0])
        return (last_carry, ys) if return_carry else ys

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set the mode of this module; ``nnx.view`` calls it on its copy."""
        self.deterministic = (
            self.deterministic if deterministic is None else deterministic
        )

    def _key(self, layer: Cell | Layer, rngs: Any) -> Array | None:
        """Draw the key of this call, if the layer needs one."""
        if not layer.requires_key:
            return None
        if not isinstance(rngs, nnx.Rngs):
            raise ValueError(
                f"RNN: {type(layer).__name__} draws random numbers (dropout or "
                f"zoneout), so each call needs "
                "rnn(xs, rngs=nnx.Rngs(...)): those of the constructor draw parameters "
                "only. After model.eval() nothing is drawn"
            )
        return rngs.dropout()

    def _check(
        self, xs, mask, seq_lengths, resets, initial_carry, time_major, flipped
    ) -> None:
        """Check flags, lengths and carry against the inputs."""
        check_inputs(xs)
        layout = "(T, *B)" if time_major else "(*B, T)"
        for name, flags in (("mask", mask), ("resets", resets)):
            if flags is not None and jnp.shape(flags) != xs.shape[:-1]:
                raise ValueError(
                    f"RNN: {name} must have shape {layout} = {xs.shape[:-1]}, but its "
                    f"shape is {jnp.shape(flags)}"
                )
        if mask is not None and seq_lengths is not None:
            raise ValueError("RNN: pass a mask or seq_lengths, not both")
        if mask is not None and flipped:
            raise ValueError(
                "RNN: keep_order=False reverses sequences, and a mask does not tell "
                "where they end: pass seq_lengths"
            )
        if getattr(getattr(self, "cell", None), "carry_init", None) is not None and (
            initial_carry is None or resets is not None
        ):
            raise ValueError(
                f"RNN: {type(self.cell).__name__} has a carry_init, which draws "
                f"a new carry at each call: make it "
                "with rnn.cell.initialize_carry(shape, rngs) and pass it as "
                "initial_carry; resets restore zeros only"
            )
