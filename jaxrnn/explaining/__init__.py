"""`explain`: which engine runs each cell of a layer on which platform, and why."""

from .execution import ExecutionPath as ExecutionPath
from .table import Explanation as Explanation
from .tracing import explain as explain
