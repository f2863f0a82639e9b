"""Truncated backpropagation through time: TBPTT(k1, k2) and ARTBP."""

from .artbp import ARTBP as ARTBP
from .tbptt import TBPTT as TBPTT
from .tbptt import TBPTTState as TBPTTState
from .tbptt import Window as Window
