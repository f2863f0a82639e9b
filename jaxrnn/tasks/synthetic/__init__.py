"""Synthetic tasks with long dependencies, exact generators and analytic baselines.

All tasks use the same model.
"""

from . import adding as adding
from . import copying as copying
from . import flip_flop as flip_flop
from . import group_words as group_words
from . import integration as integration
from . import mqar as mqar
from . import niah as niah
from . import parity as parity
from . import recall as recall
from . import seq_mnist as seq_mnist
from . import sine as sine
from . import temporal_order as temporal_order
