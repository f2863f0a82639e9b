"""Standard tasks of recurrent networks, each built from the library."""

from . import charlm as charlm
from . import hello as hello
from . import synthetic as synthetic
from .cell_comparison import compare_cells as compare_cells
from .runner import load as load
from .runner import train as train
