"""`explain`: which engine runs each cell where, and why; `summary`: parameters."""

from .compiled_cost import CompiledCost as CompiledCost
from .execution import ExecutionPath as ExecutionPath
from .parameter_table import Summary as Summary
from .parameter_table import SummaryRow as SummaryRow
from .parameter_table import summary as summary
from .table import Explanation as Explanation
from .tracing import explain as explain
