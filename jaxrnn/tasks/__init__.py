"""The systems people know recurrent networks by, each built from the library."""

from . import charlm as charlm
from . import hello as hello
from . import synthetic as synthetic
from .program import load as load
from .program import train as train
