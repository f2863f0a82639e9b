"""Recurrent layers for flax nnx: drop-in replacements for ``nnx.RNN``.

`RNN` and `Bidirectional` replace ``nnx.RNN`` and ``nnx.Bidirectional``. They take
flax's cells, with flax's parameters, arguments and carries, or any jaxrnn cell or
layer. They differ from flax in the following points.

Padded steps:
    flax returns whatever the cell computes from padding, and NaN there turns
    gradients into NaN. Here their outputs are zero, and NaN in padding changes
    neither values nor gradients.
Length 0:
    flax returns the carry after all padding; here it is the initial carry, because
    the sequence has no steps.
Lengths with two batch axes:
    flax returns a carry of the wrong shape; here there is one carry per sequence.
``reverse=True``, default ``keep_order``:
    flax returns outputs in the order in which they were computed; here they keep the
    order of the inputs. ``keep_order=False`` gives flax's order.
``dtype=bfloat16``:
    flax returns float32, unless the parameters are bfloat16, too. Here the outputs
    are bfloat16; an LSTM's c and a GRU's h stay float32, because they are sums over
    the whole sequence.
The carry of an LSTM:
    (c, h) in flax. Here it is (c, h) for a flax cell and ``LSTMState(h, c)`` for a
    jaxrnn cell.
The state of the module:
    the cell and a stream of keys in flax. Here, with a jaxrnn cell, all variables
    are ``nnx.Param``.
The ``carry_init`` of a cell:
    flax draws it from that stream. Here it is refused: pass ``initial_carry``.
Cells that draw random numbers or keep variables:
    flax's own scan runs them, as in flax (``state_axes``, ``broadcast_rngs``). At a
    padded step such a cell sees the first input of its sequence, where flax shows it
    the padding; variables that are statistics of inputs differ by that.
One RNN for both directions:
    flax logs a warning. Here it is refused, because most likely it is a mistake.
"""

from ..modules.flip import flip_sequences as flip_sequences
from .bidirectional import Bidirectional as Bidirectional
from .rnn import RNN as RNN
