"""Truncated backpropagation through time."""

from .artbp import ARTBP as ARTBP
from .tbptt import TBPTT as TBPTT
from .tbptt import TBPTTState as TBPTTState
from .tbptt import Window as Window
