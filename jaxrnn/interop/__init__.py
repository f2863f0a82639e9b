"""Conversion of weights from and to other libraries.

``from_x(...)`` returns ``(layer, params)``. ``to_x(layer, params)`` returns plain
arrays in the layout of the other library, and with ``into=`` loads them into one of
its objects. None of the libraries is imported: the objects passed in bring what is
needed. `to_onnx` exports a model for deployment.
"""

from .equinox_weights import from_equinox as from_equinox
from .equinox_weights import to_equinox as to_equinox
from .fla_weights import from_fla as from_fla
from .flax_weights import from_flax as from_flax
from .flax_weights import to_flax as to_flax
from .haiku_weights import from_haiku as from_haiku
from .haiku_weights import to_haiku as to_haiku
from .keras_weights import from_keras as from_keras
from .keras_weights import to_keras as to_keras
from .mamba_weights import from_mamba as from_mamba
from .onnx import to_onnx as to_onnx
from .torch_states import carry_from_torch as carry_from_torch
from .torch_states import carry_to_torch as carry_to_torch
from .torch_weights import from_torch as from_torch
from .torch_weights import to_torch as to_torch
