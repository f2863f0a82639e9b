"""The systems people know recurrent networks by, each built from the library."""

from . import charlm as charlm
from . import hello as hello
