"""jaxrnn: a functional toolkit for recurrent networks in JAX."""

from . import initializers as initializers
from .artbp import ARTBP as ARTBP
from .beam import Beams as Beams
from .beam import beam_search as beam_search
from .cell import Cell as Cell
from .cell import Layer as Layer
from .cell import LinearCell as LinearCell
from .cell import Walk as Walk
from .cells import GRU as GRU
from .cells import LRU as LRU
from .cells import LSTM as LSTM
from .cells import MLSTM as MLSTM
from .cells import RGLRU as RGLRU
from .cells import S5 as S5
from .cells import SLSTM as SLSTM
from .cells import DiagonalGRU as DiagonalGRU
from .cells import DiagonalLSTM as DiagonalLSTM
from .cells import Elman as Elman
from .cells import IndRNN as IndRNN
from .cells import LSTMState as LSTMState
from .cells import MinGRU as MinGRU
from .cells import MinLSTM as MinLSTM
from .cells import MLSTMState as MLSTMState
from .cells import SLSTMState as SLSTMState
from .engines import Associative as Associative
from .engines import Checkpoint as Checkpoint
from .engines import Scan as Scan
from .generation import Generated as Generated
from .generation import generate as generate
from .layers import BidirectionalCarry as BidirectionalCarry
from .layers import bidirectional as bidirectional
from .layers import block as block
from .layers import dropout as dropout
from .layers import inference as inference
from .layers import recurrent_dropout as recurrent_dropout
from .layers import residual as residual
from .layers import stack as stack
from .layers import zoneout as zoneout
from .tbptt import TBPTT as TBPTT
from .tbptt import TBPTTState as TBPTTState
from .tbptt import Window as Window
from .unroll import mask_from_lengths as mask_from_lengths
from .unroll import truncated_unroll as truncated_unroll
from .unroll import unroll as unroll

__version__ = "0.1.0"
