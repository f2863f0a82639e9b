"""Any cell or layer as a flax nnx module, to be combined with flax's other layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool

from ..core.arrays import is_array
from ..core.cell import Cell
from ..core.dtypes import weaken_scalars
from ..core.engine import AbstractEngine
from ..core.flags import select
from ..core.foreign import optional_attribute
from ..core.layer import Layer, check_cell
from ..core.types import Carry, Context, Flags, Inputs, Params
from ..core.validation import check_inputs, check_positive, describe
from ..engines import Scan
from ..layers import inference
from ..layers.compose import init_in, outputs_of
from ..modules.flip import Lengths
from ..modules.forms import Form
from ..modules.running import Ran, run_in_engine, run_in_loop, steps_per_iteration
from ..modules.sequences import Order, Sequences, arrange
from .cells import CellOfFlax, feature_axes, form_of, initialized_carry, why_impure
from .scan import scan_cell


class RNN(nnx.Module):
    """A cell or layer applied to sequences; a drop-in replacement for ``nnx.RNN``.

    The parameters are ``nnx.Param``.

    Args:
        cell: any jaxrnn cell or layer, or a flax cell (``nnx.LSTMCell``, ``GRUCell``,
            ``SimpleCell``, or your own). A flax cell keeps its parameters, in
            ``rnn.cell``, and its carry, (c, h) for an LSTM.
        input_size: D, for a jaxrnn cell or layer.
        time_major: sequences are ``(T, *B, D)``. By default they are batch-first,
            ``(*B, T, D)``, as elsewhere in flax.
        return_carry: return ``(carry, ys)``. This option, the next two and
            ``time_major`` can also be given at each call.
        reverse: run from the last step to the first.
        keep_order: with ``reverse``, outputs keep the order of the inputs; False
            returns them in the order in which they are computed.
        unroll: the number of steps per iteration of the loop.
        engine: see `jaxrnn.unroll`.
        dtype: the dtype of the parameters of a jaxrnn cell or layer.
        state_axes: for a flax cell that changes its own variables while it steps, where
            each kind of variable goes: an int is an axis over time, ``nnx.Carry`` hands
            it from step to step (the default for all), None gives every step the same.
        broadcast_rngs: a filter of the key streams of a flax cell from which all steps
            of a call draw the same numbers.
        rngs: ``nnx.Rngs`` whose ``params`` stream draws the parameters of a jaxrnn cell
            or layer. Ignored for a flax cell.

    Attributes:
        output_size: the number of output features (for a flax cell its
            ``hidden_features``; None if it is not known).
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
        engine: AbstractEngine | None = None,
        dtype: DTypeLike | None = None,
        state_axes: Any = None,
        broadcast_rngs: Any = None,
        rngs: Any = None,
    ):
        if isinstance(cell, nnx.Module):
            if not isinstance(cell, CellOfFlax):
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
            self.cell: Any = cell
            self.input_size = optional_attribute(cell, "in_features")
            self.output_size: Any = optional_attribute(cell, "hidden_features")
            self.broadcast_rngs = broadcast_rngs
            self.state_axes = None if state_axes is None else nnx.StateAxes(state_axes)
        else:
            if state_axes is not None or broadcast_rngs is not None:
                raise TypeError(
                    "RNN: state_axes and broadcast_rngs are for a flax cell that "
                    "changes its own variables while it steps; a jaxrnn cell has none: "
                    "leave them out"
                )
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
        self,
        layer: Cell | Layer,
        input_size: int | None,
        dtype: DTypeLike | None,
        rngs: Any,
    ) -> None:
        """Initialize the parameters of a jaxrnn cell or layer."""
        check_cell(layer)
        self.cell = None
        wrong = _wrong_arguments(input_size, rngs)
        if input_size is None or wrong:
            raise TypeError(
                f"RNN: a jaxrnn cell or layer gets its parameters here, by RNN(layer, "
                f"input_size, rngs=nnx.Rngs(0)), but {wrong}"
            )
        params = init_in(layer, rngs.params(), input_size, dtype)
        self.layer, self.input_size = layer, input_size
        self.output_size = _output_size(layer, params, input_size)
        self.params = nnx.data(
            jax.tree.map(
                lambda leaf: nnx.Param(jnp.asarray(leaf)), weaken_scalars(params)
            )
        )

    def _form(self, x: Inputs = None) -> Form:
        """Return the arguments of `jaxrnn.unroll` for this module."""
        return (
            form_of(self.cell, x)
            if self._wraps_flax
            else Form(self.layer, self._own_values())
        )

    @property
    def _wraps_flax(self) -> bool:
        """Whether the cell is one of flax."""
        return self.cell is not None

    @property
    def feature_ndim(self) -> Any:
        """The number of feature axes of the inputs, as in `jaxrnn.Cell`."""
        return feature_axes(self.cell) if self._wraps_flax else self.layer.feature_ndim

    def _why_impure(self, x: Inputs) -> str | None:
        """Say why flax's own scan must run the cell, or None; ``x`` is an input."""
        if not self._wraps_flax:
            return None
        if self.state_axes is not None or self.broadcast_rngs is not None:
            return "state_axes or broadcast_rngs is given"
        return why_impure(self.cell, x)

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
        return self._form().params

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Return the carry before the first step, for the given batch shape."""
        layer, params, _, _, leave = self._form()
        return leave(layer.initial_carry(params, batch_shape))

    def step(
        self,
        carry: Carry,
        x: Inputs,
        *,
        reset: Bool[Array, "*B"] | None = None,
        context: Context = None,
    ) -> tuple[Carry, Any]:
        """Apply one step, for streaming; a jaxrnn layer draws nothing in it.

        Args:
            carry: the carry before the step.
            x: the input, ``(*B, D)``, or a pytree as the cell takes it.
            reset: ``(*B)`` bool; where True, the carry first becomes the initial one.
            context: the context, for a jaxrnn cell that takes one.

        Returns:
            ``(carry, y)``, the carry after the step and the output ``(*B, H)``.
        """
        x_shape = jax.eval_shape(lambda x: x, x)
        if self._why_impure(x_shape):
            if reset is not None:
                carry = select(reset, initialized_carry(self.cell, x.shape), carry)
            return self.cell(carry, x)
        layer, params, dtype, enter, leave = self._form(x_shape)
        batch = check_inputs(jax.tree.map(lambda a: a[None], x), self.feature_ndim)[1:]
        carry, y = inference(layer)(
            params,
            enter(carry, batch),
            x if dtype is None else x.astype(dtype),
            reset=reset,
            context=context,
        )
        return leave(carry), y

    def __call__(
        self,
        inputs: Inputs,
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
        context: Context = None,
    ) -> Any:
        """Apply the cell or layer to a batch of sequences.

        Args:
            inputs, mask, resets, context: as for `jaxrnn.unroll`, but batch-first
                unless ``time_major``; inputs may be a pytree.
            initial_carry: the carry before the first step.
            seq_lengths: ``(*B,)`` integers, or a list, instead of a mask. A sequence of
                length 0 returns its initial carry.
            return_carry, time_major, reverse, keep_order: override the options of the
                constructor.
            return_carries: return ``(carry, ys, carries)``. The carries are time-major
                whatever ``time_major`` is.
            rngs: ``nnx.Rngs``, required by a layer with dropout or zoneout unless it is
                deterministic; its ``dropout`` stream is used. As elsewhere in flax,
                modules that draw nothing accept and ignore it, and so do flax's cells,
                which draw from streams of their own.

        Returns:
            The outputs ``(*B, T, H)``, or time-major; zero at padded steps. With
            ``return_carry``, ``(carry, ys)``.

        Raises:
            TypeError, ValueError: for arrays whose shapes or dtypes do not fit, for a
                mask together with ``seq_lengths``, or for missing ``rngs``.
        """
        order = Order(
            self.time_major if time_major is None else time_major,
            self.reverse if reverse is None else reverse,
            self.keep_order if keep_order is None else keep_order,
        )
        if context is not None and self._wraps_flax:
            raise TypeError(
                f"RNN: a context was given, but flax's {type(self.cell).__name__} "
                f"takes none: leave it out"
            )
        sequences = arrange(inputs, self.feature_ndim, order, mask, seq_lengths, resets)
        self._check_drawn_carry(initial_carry, resets)
        x = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), sequences.xs
        )
        why = self._why_impure(x)
        if why is not None:
            ran = self._in_loop(sequences, initial_carry, order, why, return_carries)
        else:
            form = self._form(x)
            layer = inference(form.layer) if self.deterministic else form.layer
            ran = run_in_engine(
                form._replace(layer=layer),
                sequences,
                initial_carry,
                order,
                engine=self.engine,
                key=self._key(layer, rngs),
                context=context,
                return_carries=return_carries,
            )
        if return_carries:
            return tuple(ran)
        return_carry = self.return_carry if return_carry is None else return_carry
        return (ran.carry, ran.ys) if return_carry else ran.ys

    def _in_loop(
        self,
        sequences: Sequences,
        carry: Carry,
        order: Order,
        why: str,
        return_carries: bool,
    ) -> Ran:
        """Run sequences in flax's own scan."""
        loop = scan_cell(
            self.cell,
            state_axes=self.state_axes,
            broadcast_rngs=self.broadcast_rngs,
            unroll=steps_per_iteration(self.engine, why),
        )
        initial = (
            initialized_carry(self.cell, sequences.xs.shape[1:])
            if carry is None or sequences.resets is not None
            else None
        )
        return run_in_loop(
            loop,
            sequences,
            initial if carry is None else carry,
            initial,
            order,
            return_carries=return_carries,
        )

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

    def _check_drawn_carry(self, initial_carry: Carry, resets: Flags | None) -> None:
        """Refuse to draw the carry of a flax cell with a ``carry_init``."""
        draws = optional_attribute(self.cell, "carry_init") is not None
        if draws and (initial_carry is None or resets is not None):
            raise ValueError(
                f"RNN: {type(self.cell).__name__} has a carry_init, which draws "
                f"a new carry at each call: make it "
                "with rnn.cell.initialize_carry(shape, rngs) and pass it as "
                "initial_carry; resets restore zeros only"
            )


def _output_size(layer: Cell | Layer, params: Params, input_size: int) -> int | None:
    """Return the number of output features, or None if they are not known."""
    known = layer.output_features(params, input_size)
    if known is not None or layer.takes_context or layer.feature_ndim not in (1, None):
        return known
    ys = outputs_of(layer, params, input_size)
    return ys.shape[-1] if is_array(ys) else None


def _wrong_arguments(input_size: Any, rngs: Any) -> str:
    """Say which argument for the parameters is missing or of another type, or ""."""
    if isinstance(input_size, nnx.Rngs):
        return "input_size is an nnx.Rngs: pass it as rngs="
    wrong = ["no input_size came"] if input_size is None else []
    if rngs is None:
        wrong.append("no rngs came")
    elif not isinstance(rngs, nnx.Rngs):
        came = describe(rngs) if is_array(rngs) else repr(rngs)
        wrong.append(f"rngs is {came}: make it nnx.Rngs(...) of that")
    return " and ".join(wrong)
