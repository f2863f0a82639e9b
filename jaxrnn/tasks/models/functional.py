"""A flax nnx model as pure functions of its parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from ...core.types import Params


@dataclasses.dataclass(frozen=True)
class Pure:
    """A model as functions of its parameters.

    ``pure.training(params)`` is the model with dropout, ``pure.still(params)`` the
    model without randomness. Both are nnx modules that are rebuilt from the parameters;
    inside ``jit`` this costs nothing.
    """

    graph: Any
    still_graph: Any

    @classmethod
    def of(cls, model: nnx.Module) -> tuple[Any, Params]:
        """Return the functions of a model, and its parameters as a dict."""
        graph, state = nnx.split(model)
        model.eval()
        still, _ = nnx.split(model)
        model.train()
        return cls(graph, still), nnx.to_pure_dict(state)

    def training(self, params: Params) -> Any:
        """Return the model for training, with dropout."""
        return nnx.merge(self.graph, params)

    def still(self, params: Params) -> Any:
        """Return the model for inference, without randomness."""
        return nnx.merge(self.still_graph, params)
