"""Which engine runs where, and why."""

from .execution import Way as Way
from .table import Explanation as Explanation
from .tracing import explain as explain
