"""Recurrent layers at home in flax nnx: `RNN` and `Bidirectional` stand where
``nnx.RNN`` and ``nnx.Bidirectional`` stood.

They take flax's cells, with flax's parameters, arguments and carries, or any jaxrnn
cell or layer. What differs::

    what                        flax                          here, and why
    padded steps                whatever the cell makes of    zeros; NaN there changes no value and no gradient
                                padding; NaN kills gradients
    length 0                    the carry after all padding   the initial carry: nothing came
    lengths, two batch axes     a carry of wrong shape        one carry a sequence
    reverse, keep_order unsaid  outputs in the order walked   outputs beside their inputs; keep_order=False is flax's
    dtype=bfloat16              float32 out, unless the       bfloat16 out; an LSTM's c and a GRU's h stay float32, because
                                parameters are bfloat16 too   they are sums over the whole sequence
    an LSTM's carry             (c, h)                        (c, h) of a flax cell, LSTMState(h, c) of jaxrnn's
    state of the module         cell and a stream of keys     cell: nnx.Param is all there is
    carry_init of a cell        drawn from that stream        refused: pass initial_carry
    cells that draw or count    state_axes, broadcast_rngs    refused: a step is a function of carry and input
    one RNN for both directions a warning in the log          refused: most likely an oversight
    a cell's outputs            any tree                      one array
"""  # noqa: E501

from .bidirectional import Bidirectional as Bidirectional
from .flip import flip_sequences as flip_sequences
from .rnn import RNN as RNN
