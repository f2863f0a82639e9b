"""Tasks whose long dependencies are made to measure: exact generators, closed-form
baselines, one model for all.
"""

from . import adding as adding
from . import copying as copying
from . import group_words as group_words
from . import parity as parity
from . import seq_mnist as seq_mnist
from . import temporal_order as temporal_order
