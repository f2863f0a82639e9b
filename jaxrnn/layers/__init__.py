"""Layers: cells and engines composed over whole sequences."""

from .block import ResidualBlock as ResidualBlock
from .block import residual_block as residual_block
from .compose import Bidirectional as Bidirectional
from .compose import BidirectionalCarry as BidirectionalCarry
from .compose import Residual as Residual
from .compose import Stack as Stack
from .compose import bidirectional as bidirectional
from .compose import residual as residual
from .compose import stack as stack
from .stochastic import Dropout as Dropout
from .stochastic import RecurrentDropout as RecurrentDropout
from .stochastic import Zoneout as Zoneout
from .stochastic import dropout as dropout
from .stochastic import inference as inference
from .stochastic import recurrent_dropout as recurrent_dropout
from .stochastic import state_noise as state_noise
from .stochastic import zoneout as zoneout
