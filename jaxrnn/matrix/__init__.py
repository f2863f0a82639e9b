"""Recurrences on a matrix state: their terms, their steps, and their chunks."""

from .cell import MatrixCell as MatrixCell
from .cell import MatrixState as MatrixState
from .state_space import StateSpaceCell as StateSpaceCell
from .state_space import StateSpaceState as StateSpaceState
from .terms import MatrixMemory as MatrixMemory
from .terms import Terms as Terms
