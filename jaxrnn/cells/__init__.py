"""The arithmetic of one step: a file a cell."""

from .elman import Elman as Elman
from .gru import GRU as GRU
from .lru import LRU as LRU
from .lru import RGLRU as RGLRU
from .lstm import LSTM as LSTM
from .lstm import LSTMState as LSTMState
from .minimal import MinGRU as MinGRU
from .minimal import MinLSTM as MinLSTM
