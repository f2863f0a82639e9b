"""Gradients online: forward in time, with memory that does not grow with T."""

from .rtrl import RTRL as RTRL
from .traces import Traces as Traces
from .traces import TracesState as TracesState
from .traces import Units as Units
from .uoro import UORO as UORO
from .windows import OnlineState as OnlineState
