"""The arithmetic of one step: a file a cell."""

from .elman import Elman as Elman
from .gru import GRU as GRU
from .lstm import LSTM as LSTM
from .lstm import LSTMState as LSTMState
