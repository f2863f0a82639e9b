"""One way each to walk a recurrence through time: a file an engine, one method with one signature."""

from .scan import Scan as Scan
