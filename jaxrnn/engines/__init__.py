"""One way each to walk a recurrence through time: a file an engine, one method with
one signature.
"""

from .associative import Associative as Associative
from .checkpoint import Checkpoint as Checkpoint
from .cudnn.engine import CuDNN as CuDNN
from .fused import Fused as Fused
from .scan import Scan as Scan
