"""The laws of cells and layers, to be tried on one's own."""

from .check import check_cell as check_cell
from .report import CellReport as CellReport
from .report import LawError as LawError
from .report import LawResult as LawResult
