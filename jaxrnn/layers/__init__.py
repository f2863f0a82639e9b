"""Layers: cells and engines composed over whole sequences."""

from .block import residual_block as residual_block
from .compose import BidirectionalCarry as BidirectionalCarry
from .compose import bidirectional as bidirectional
from .compose import residual as residual
from .compose import stack as stack
from .convolution import causal_conv as causal_conv
from .convolution import shift as shift
from .pointwise import apply as apply
from .pointwise import dense as dense
from .pointwise import layer_norm as layer_norm
from .pointwise import rms_norm as rms_norm
from .sharing import share as share
from .sharing import tied as tied
from .skip import concat as concat
from .skip import multiply as multiply
from .stochastic import dropout as dropout
from .stochastic import inference as inference
from .stochastic import recurrent_dropout as recurrent_dropout
from .stochastic import zoneout as zoneout
