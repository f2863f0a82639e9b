"""Which engine runs where, and why."""

from .execution import ExecutionPath as ExecutionPath
from .table import Explanation as Explanation
from .tracing import explain as explain
