"""What cells, layers and engines of your own are made of.

`jaxrnn.Cell`, `jaxrnn.LinearCell` and `jaxrnn.Layer` are at the top level; what only
the author of a layer or an engine needs is here.
"""

from .core.cell import AbstractWrappedCell as AbstractWrappedCell
from .core.cell import ContextCell as ContextCell
from .core.cell import Gate as Gate
from .core.cell import unwrap as unwrap
from .core.engine import AbstractEngine as AbstractEngine
from .core.engine import AbstractNetworkEngine as AbstractNetworkEngine
from .core.engine import Request as Request
from .core.engine import Supports as Supports
from .core.exported import register_for_export as register_for_export
from .core.taps import tap as tap
from .core.unroll_spec import UnrollSpec as UnrollSpec
from .engines.engine import LoopEngine as LoopEngine
from .engines.loops.kinds import AutoLoop as AutoLoop
from .engines.loops.kinds import Chunkwise as Chunkwise
from .engines.loops.kinds import ParallelPrefix as ParallelPrefix
from .engines.loops.kinds import Sequential as Sequential
from .engines.loops.newton import NewtonIteration as NewtonIteration
from .engines.loops.pallas.primitive import PallasKernel as PallasKernel
from .engines.recurrence.schedule import LoopSchedule as LoopSchedule
from .engines.recurrence.schedule import ResolvedSchedule as ResolvedSchedule
from .engines.recurrence.schedule import resolve_schedule as resolve_schedule
from .matrix import StateSpaceCell as StateSpaceCell
from .matrix import StateSpaceState as StateSpaceState
from .unrolling import run_network as run_network
from .unrolling import unroll_part as unroll_part
from .unrolling import unroll_unchecked as unroll_unchecked
