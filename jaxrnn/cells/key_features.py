"""What queries and keys of a delta rule are made of."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .delta_rule import HeadDeltaCell
from .matrix_base import unit_length

FEATURE_MAPS = {
    "silu": jax.nn.silu,
    "elu": lambda x: 1 + jax.nn.elu(x),
    "relu": jax.nn.relu,
    "identity": lambda x: x,
}
POSITIVE = ("elu", "relu")
KEY_NORMS = ("l2", "sum")
LEAST_SUM = 1e-6  # below it features count as if their sum were this


@dataclasses.dataclass(frozen=True)
class MappedDeltaCell(HeadDeltaCell):
    """A delta rule whose feature map of q and k, and their norm, are options."""

    _: dataclasses.KW_ONLY
    feature_map: str = "silu"
    key_norm: str = "l2"

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("feature_map", FEATURE_MAPS), ("key_norm", KEY_NORMS)):
            if vars(self)[name] not in tuple(known):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be one of "
                    f"{', '.join(known)}, but it is {vars(self)[name]!r}"
                )
        if self.key_norm == "sum" and self.feature_map not in POSITIVE:
            raise ValueError(
                f"{type(self).__name__}: key_norm='sum' divides by a sum, which must "
                f"not be zero or negative, but feature_map={self.feature_map!r} has "
                f"negative values: set feature_map to 'elu' or 'relu', or key_norm to "
                f"'l2'"
            )

    def features(self, x: Float[Array, "*TB N K"]) -> Float[Array, "*TB N K"]:
        """Return q or k of the convolution: phi, divided by its norm."""
        x = FEATURE_MAPS[self.feature_map](x)
        if self.key_norm == "l2":
            return unit_length(x)
        total = x.sum(-1, keepdims=True)
        return x / jnp.maximum(total, jnp.asarray(LEAST_SUM, total.dtype))
