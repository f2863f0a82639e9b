"""Weights from other libraries and back. None of them is imported: an object handed in brings its own.

``from_x(...) -> (layer, params)``; ``to_x(layer, params)`` gives plain arrays in the other library's layout, and with
``into=`` loads them into an object of its.
"""

from .torch_weights import carry_from_torch as carry_from_torch
from .torch_weights import carry_to_torch as carry_to_torch
from .torch_weights import from_torch as from_torch
from .torch_weights import to_torch as to_torch
