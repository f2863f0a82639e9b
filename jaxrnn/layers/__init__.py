"""Layers: cells and engines composed over whole sequences."""

from .block import block as block
from .compose import BidirectionalCarry as BidirectionalCarry
from .compose import bidirectional as bidirectional
from .compose import residual as residual
from .compose import stack as stack
from .noise import dropout as dropout
from .noise import inference as inference
from .noise import recurrent_dropout as recurrent_dropout
from .noise import zoneout as zoneout
