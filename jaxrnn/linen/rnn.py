"""Any cell or layer as a linen module, and linen's own cells in jaxrnn's engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Bool

from ..core.cell import Cell
from ..core.dtypes import weaken_scalars
from ..core.layer import Layer
from ..core.types import Carry, Context, Inputs, Params
from ..core.validation import describe
from ..engines import Scan
from ..layers.compose import init_in
from ..modules.flip import Lengths
from ..modules.forms import Form
from ..modules.running import Ran, run_in_engine, run_in_loop, steps_per_iteration
from ..modules.sequences import Order, Sequences, arrange
from .cells import initialized_carry, pure_form

# The second argument of `jaxrnn.nnx.RNN` is the size of the inputs.
_NOT_A_SIZE = (
    ": the inputs say how many features they have, so no size is needed "
    "(RNN(cell, input_size=...) where they do not)"
)


class RNN(nn.Module):
    """A cell or layer applied to sequences; a drop-in replacement for ``nn.RNN``.

    The arguments are flax's, in flax's order. A flax cell whose step is a function of
    its parameters, its carry and its input runs in jaxrnn's engines; any other cell, or
    one with variables that ``variable_axes`` or ``variable_carry`` name, in flax's
    ``nn.scan``. The variables are those of ``nn.RNN``, under ``cell``.

    Args:
        cell: a flax cell (``nn.LSTMCell``, ``GRUCell``, or your own), or any jaxrnn
            cell or layer, whose parameters are then made at ``init``, under ``layer``.
        time_major: sequences are ``(T, *B, D)``. By default they are ``(*B, T, D)``.
        return_carry: return ``(carry, ys)``. This option, the next two and
            ``time_major`` can also be given at each call.
        reverse: run from the last step to the first.
        keep_order: with ``reverse``, outputs keep the order of the inputs; by default
            they have the order in which they are computed.
        unroll: the number of steps per iteration of the loop.
        variable_axes, variable_broadcast, variable_carry, split_rngs: for a flax cell,
            as for ``nn.scan``.
        engine: see `jaxrnn.unroll`.
        param_dtype: the dtype of the parameters of a jaxrnn cell or layer.
        input_size: D, for a jaxrnn cell whose inputs do not tell it.

    Raises:
        TypeError: if ``cell`` is neither a flax cell nor a jaxrnn cell or layer.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn.linen
        >>> from flax import linen as nn
        >>> rnn = jaxrnn.linen.RNN(nn.LSTMCell(4))
        >>> xs, lengths = jnp.ones((2, 5, 3)), jnp.array([5, 2])
        >>> variables = rnn.init(jax.random.key(0), xs)
        >>> rnn.apply(variables, xs, seq_lengths=lengths).shape
        (2, 5, 4)
        >>> rnn = jaxrnn.linen.RNN(jaxrnn.stack(jaxrnn.GRU(4), jaxrnn.LSTM(4)))
        >>> ys, variables = rnn.init_with_output(jax.random.key(0), xs)
        >>> ys.shape
        (2, 5, 4)
    """

    cell: Any
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    variable_axes: Mapping[Any, Any] = FrozenDict()
    variable_broadcast: Any = "params"
    variable_carry: Any = False
    split_rngs: Mapping[Any, bool] = FrozenDict({"params": False})
    engine: Any = None
    param_dtype: Any = None
    input_size: int | None = None

    def __call__(
        self,
        inputs: Inputs,
        *,
        initial_carry: Carry = None,
        init_key: Array | None = None,
        seq_lengths: Lengths | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        mask: Bool[Array, "..."] | None = None,
        resets: Bool[Array, "..."] | None = None,
        context: Context = None,
    ) -> Any:
        """Apply the cell or layer to a batch of sequences.

        Args:
            inputs: ``(*B, T, D)``, or ``(T, *B, D)`` if time-major; a pytree for a
                jaxrnn cell that takes one.
            initial_carry: the carry before the first step.
            init_key: the key for the cell's ``initialize_carry``; most cells ignore it.
            seq_lengths: ``(*B,)`` integers, or a list. A sequence of length 0 returns
                its initial carry.
            return_carry, time_major, reverse, keep_order: override the fields.
            mask, resets, context: as for `jaxrnn.unroll`, in the axes of the inputs.

        Returns:
            The outputs ``(*B, T, H)``, or time-major; zero at padded steps. With
            ``return_carry``, ``(carry, ys)``.

        Raises:
            TypeError, ValueError: for arrays whose shapes or dtypes do not fit, for a
                mask together with ``seq_lengths``, and for an engine together with a
                cell that flax's scan must run.
        """
        order = Order(
            self.time_major if time_major is None else time_major,
            self.reverse if reverse is None else reverse,
            self.keep_order if keep_order is None else keep_order,
        )
        for name, flag in order._asdict().items():
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(
                    f"RNN: {name} must be True or False, but it is {flag!r}"
                    f"{_NOT_A_SIZE if name == 'time_major' else ''}"
                )
        own = isinstance(self.cell, (Cell, Layer))
        if not own and not isinstance(self.cell, nn.Module):
            raise TypeError(
                f"RNN: the cell must be a flax cell, such as nn.LSTMCell(16), or a "
                f"jaxrnn cell or layer, but it is {describe(self.cell)}"
            )
        if context is not None and not own:
            raise TypeError(
                f"RNN: a context was given, but flax's {type(self.cell).__name__} "
                f"takes none: leave it out"
            )
        features = self.cell.feature_ndim if own else self.cell.num_feature_axes
        sequences = arrange(inputs, features, order, mask, seq_lengths, resets)
        if own:
            ran = self._layer(inputs, sequences, initial_carry, order, context)
        else:
            ran = self._flax_cell(sequences, initial_carry, init_key, order)
        return_carry = self.return_carry if return_carry is None else return_carry
        return (ran.carry, ran.ys) if return_carry else ran.ys

    @nn.compact
    def _layer(
        self,
        inputs: Inputs,
        sequences: Sequences,
        carry: Carry,
        order: Order,
        context: Context,
    ) -> Ran:
        """Run a jaxrnn cell or layer; its parameters are made here at ``init``."""
        size = self._input_size(inputs)

        def init(key: Array) -> Params:
            params = init_in(self.cell, key, size, self.param_dtype)
            return jax.tree.map(jnp.asarray, weaken_scalars(params))

        form = Form(self.cell, self.param("layer", init))
        key = self.make_rng("dropout") if self.cell.requires_key else None
        return run_in_engine(
            form,
            sequences,
            carry,
            order,
            engine=self._engine(),
            key=key,
            context=context,
        )

    def _input_size(self, inputs: Inputs) -> int:
        """Return D, from the field or the inputs."""
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
        if self.input_size is not None:
            return self.input_size
        if len(shapes) == 1 and self.cell.feature_ndim != 0:
            return shapes[0][-1]
        raise ValueError(
            f"RNN: the inputs do not tell the input_size of "
            f"{type(self.cell).__name__}: pass it, RNN(cell, input_size=...)"
        )

    def _engine(self) -> Any:
        """Return the engine that was asked for, or None."""
        if self.engine is None and self.unroll > 1:
            return Scan(unroll=self.unroll)
        return self.engine

    def _flax_cell(
        self, sequences: Sequences, carry: Carry, init_key: Any, order: Order
    ) -> Ran:
        """Run a flax cell, in an engine or in flax's scan."""
        shape = sequences.xs.shape[1:]
        initial = None
        if carry is None or sequences.resets is not None:
            initial = initialized_carry(self.cell, init_key, shape)
        carry = initial if carry is None else carry
        x = jax.ShapeDtypeStruct(shape, sequences.xs.dtype)
        form: Form | str = "resets are drawn from init_key"
        if sequences.resets is None or init_key is None:
            form = pure_form(self.cell, self.variable_broadcast, carry, x)
        if isinstance(form, Form):
            return run_in_engine(form, sequences, carry, order, engine=self._engine())
        engine = None if self.cell.is_initializing() else self.engine
        unroll = self.unroll if engine is None else steps_per_iteration(engine, form)
        return run_in_loop(self._loop(unroll), sequences, carry, initial, order)

    def _loop(self, unroll: int) -> Callable[[Callable, Carry, Any], Any]:
        """Return flax's scan of the cell, for `run_in_loop`."""

        def loop(step: Callable, carry: Carry, inputs: Any) -> Any:
            scanned = nn.scan(
                step,
                variable_axes=self.variable_axes,
                variable_broadcast=self.variable_broadcast,
                variable_carry=self.variable_carry,
                split_rngs=self.split_rngs,
                unroll=unroll,
            )
            return scanned(self.cell, carry, inputs)

        return loop
