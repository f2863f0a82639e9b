"""cuDNN's LSTM as an engine."""

from .engine import CuDNN as CuDNN
