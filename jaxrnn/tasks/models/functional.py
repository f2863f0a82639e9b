"""A flax nnx model as pure functions of its parameters, for training steps and for
use.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from ...core.cell import Params


@dataclasses.dataclass(frozen=True)
class Pure:
    """``pure.training(params)`` is the model with its dropout, ``pure.still(params)``
    the one without randomness.

    Both are nnx modules, made anew from the parameters: inside ``jit`` they cost
        nothing.
    """

    graph: Any
    still_graph: Any

    @classmethod
    def of(cls, model: nnx.Module) -> tuple[Any, Params]:
        """The functions, and the model's parameters as a dict."""
        graph, state = nnx.split(model)
        model.eval()
        still, _ = nnx.split(model)
        model.train()
        return cls(graph, still), nnx.to_pure_dict(state)

    def training(self, params: Params) -> Any:
        return nnx.merge(self.graph, params)

    def still(self, params: Params) -> Any:
        return nnx.merge(self.still_graph, params)
