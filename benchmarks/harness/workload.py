"""Equal work: one recurrence with fixed weights, inputs and cotangent, and what
every library's answer is held against.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn

from .options import Shape

CELLS = {"LSTM": jaxrnn.LSTM, "GRU": jaxrnn.GRU, "Elman": jaxrnn.Elman}
GATES = {"LSTM": 4, "GRU": 3, "Elman": 1}
# train: forward and backward, gradients of weights and input
MODES = (
    "forward",
    "train",
)
TOLERANCE = {
    "cpu": 1e-4
}  # largest relative difference that counts as the same function; 2e-2 where matmuls may be TF32  # noqa: E501


def tolerance() -> float:
    """The relative difference up to which two answers count as the same on this
    backend.
    """
    return TOLERANCE.get(jax.default_backend(), 2e-2)


@dataclasses.dataclass(frozen=True)
class Work:
    """One layer of ``kind`` over a batch of sequences, float32, time-major, from a zero
    state.

    The loss is ``sum(ys * cotangent)`` with a fixed random cotangent; `MODES` "train"
    computes its gradients with respect to weights and inputs. Weights stand in jaxrnn's
    layout (gates i, f, g, o and r, z, n; kernels (in, out)), with random biases so that
    a bias in the wrong place shows.
    """

    kind: str
    shape: Shape

    @property
    def cell(self) -> Any:
        return CELLS[self.kind](self.shape.H)

    def flops(self, mode: str) -> float:
        """Multiplications and additions of the matmuls: 2 gates B H (H + I) a step
        forward, three times that for training.

        What a checkpointing engine computes again is not counted: it is the useful work
            that is compared.
        """
        B, T, I, H = self.shape
        return (
            2.0
            * GATES[self.kind]
            * T
            * B
            * H
            * (H + I)
            * (1 if mode == "forward" else 3)
        )

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        drawn = jax.tree.map(
            np.asarray, self.cell.init(jax.random.key(0), self.shape.I)
        )
        noise = np.random.default_rng(1)
        return {
            name: value + 0.1 * noise.standard_normal(value.shape, np.float32)
            if "bias" in name
            else value
            for name, value in drawn.items()
        }

    def weights_of(self, cell: Any) -> dict[str, np.ndarray]:
        """The weights that ``cell``, a variant of this work's cell, has:
        reset-before GRUs have one bias less.
        """
        names = jax.eval_shape(lambda: cell.init(jax.random.key(0), self.shape.I))
        return {name: self.weights[name] for name in names}

    @functools.cached_property
    def xs(self) -> np.ndarray:
        return np.random.default_rng(2).standard_normal(
            (self.shape.T, self.shape.B, self.shape.I), np.float32
        )

    @functools.cached_property
    def cotangent(self) -> np.ndarray:
        return np.random.default_rng(3).standard_normal(
            (self.shape.T, self.shape.B, self.shape.H), np.float32
        )

    @functools.cached_property
    def _answers(self) -> dict:
        return {}

    def answer(self, cell: Any) -> dict[str, Any]:
        """Outputs and gradients by the naive scan over ``cell``, this work's cell or
        a variant of it with the same weights.
        """
        if cell not in self._answers:
            forward = naive(cell)
            value_and_gradients = jax.jit(training(forward))
            weights = self.weights_of(cell)
            _, (weight_gradient, input_gradient) = value_and_gradients(
                weights, self.xs, self.cotangent
            )
            outputs = jax.jit(forward)(weights, self.xs)
            self._answers[cell] = jax.tree.map(
                np.asarray,
                {
                    "outputs": outputs,
                    "input_gradient": input_gradient,
                    "weight_gradient": weight_gradient,
                },
            )
        return self._answers[cell]


def naive(cell: Any):
    """``(weights, xs) -> ys`` as a person writes it without a library: one
    ``jax.lax.scan``, everything inside the loop.
    """

    def forward(weights, xs):
        def step(carry, x):
            carry = cell.step(weights, carry, cell.project(weights, x))
            return carry, cell.output(weights, carry, x)

        return jax.lax.scan(step, cell.initial_carry(weights, xs.shape[1:-1]), xs)[1]

    return forward


def training(forward):
    """``(weights, xs, cotangent) -> (loss, (weight gradients, input gradient))`` of
    a forward function.
    """
    return jax.value_and_grad(
        lambda weights, xs, cotangent: jnp.sum(forward(weights, xs) * cotangent),
        argnums=(0, 1),
    )


def difference(result: Any, expected: Any) -> float:
    """Largest difference over the largest value, leaf by leaf; the worst leaf
    counts. Shapes must be equal.
    """
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
    return max(
        (_leaf_difference(np.asarray(a), np.asarray(b)) for a, b in pairs), default=0.0
    )


def _leaf_difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        raise ValueError(f"an answer has shape {a.shape}, but {b.shape} is expected")
    return float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(b))), 1e-30))
