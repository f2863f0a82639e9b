"""Recurrent layers for flax linen: drop-in replacements for ``nn.RNN``.

`RNN` and `Bidirectional` replace ``flax.linen.RNN`` and ``flax.linen.Bidirectional``.
They take flax's cells, with flax's variables, arguments and carries; an `RNN` takes any
jaxrnn cell or layer, too. The page docs/frameworks.md lists where they differ from
flax, with the reasons.
"""

from ..modules.flip import flip_sequences as flip_sequences
from .bidirectional import Bidirectional as Bidirectional
from .rnn import RNN as RNN
