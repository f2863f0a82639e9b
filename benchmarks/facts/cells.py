"""A cell that the library does not have, because it is there for one fact only."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn.initializers import LecunNormal


@dataclasses.dataclass(frozen=True)
class Diagonal(jaxrnn.LinearCell):
    """A linear recurrence whose real factors depend on the input::

        a, b = x_t W + bias
        s_t = f(a) * s_{t-1} + b

    where f is the sigmoid, so that factors lie in [0, 1], or with ``negative`` tanh, so
    that they lie in [-1, 1] (Grazzi et al. 2025). The first state is a parameter,
    because a word has no first letter of its own at which something could be written
    into an empty state.

    Args:
        hidden_size: H, the number of units.
        negative: whether factors may be negative.
    """

    hidden_size: int
    negative: bool = False

    def init(self, key: Any, input_size: int) -> dict[str, Any]:
        H = self.hidden_size
        return {
            "kernel": LecunNormal()(key, (input_size, 2 * H), jnp.result_type(float)),
            "bias": jnp.zeros(2 * H),
            "initial": jnp.ones(H),
        }

    def initial_carry(
        self, params: Any, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Any:
        first = params["initial"]
        first = first if dtype is None else first.astype(dtype)
        return jnp.broadcast_to(first, (*batch_shape, self.hidden_size))

    def project(self, params: Any, x: Any) -> Any:
        return x @ params["kernel"] + params["bias"]

    def affine(self, params: Any, z: Any) -> tuple[Any, Any]:
        a, b = jnp.split(z, 2, axis=-1)
        return (jnp.tanh(a) if self.negative else jax.nn.sigmoid(a)), b
