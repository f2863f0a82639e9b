"""Recurrent layers at home in flax nnx: `RNN` and `Bidirectional` stand where ``nnx.RNN`` and ``nnx.Bidirectional`` stood."""

from .bidirectional import Bidirectional as Bidirectional
from .flip import flip_sequences as flip_sequences
from .rnn import RNN as RNN
