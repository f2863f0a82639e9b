"""The engines: how the steps of a cell run over a sequence.

Each engine is a frozen dataclass of options in a file of its own. `Scan`, `Checkpoint`,
`Associative`, `Newton` and `Fused` are schedules of one recurrence (`recurrence`),
which runs by one of several loops (`loops`) on the jaxpr of the cell's step (`jaxpr`).
`CuDNN` calls a library, and `Across` runs another engine on every device.
"""

from .across.engine import Across as Across
from .associative import Associative as Associative
from .checkpoint import Checkpoint as Checkpoint
from .cudnn.engine import CuDNN as CuDNN
from .fused import Fused as Fused
from .newton import Newton as Newton
from .scan import Scan as Scan
