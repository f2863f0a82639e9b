"""The linear maps near fixed points as a result, and their table."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Complex, Float, Int

from .fixed_point_report import SHOWN


@dataclasses.dataclass(frozen=True, eq=False)
class Linearization:
    """The linear maps near points, as `linearize` returns them; it prints as a table.

    Modes are sorted by the modulus of their eigenvalues, the largest first.

    Attributes:
        vectors: the points as vectors of real numbers, ``(P, n)``, leaf after leaf as
            in `jacobians`.
        drift: ``F(s, x) - s``, ``(P, n)``; zero at a fixed point.
        jacobian: J = dF/ds, ``(P, n, n)``.
        input_jacobian: B = dF/dx, ``(P, n, D)``, for the floating-point numbers of x
            leaf after leaf.
        eigenvalues: of J, ``(P, n)``.
        right: right eigenvectors as columns, ``(P, n, n)``.
        left: left eigenvectors as rows, ``(P, n, n)``: the selection vectors. NaN where
            J has fewer than n independent eigenvectors.
        slow: the time constant from which a mode is slow, in steps.
        kinds: what each point is, in words: ``"attractor"``, ``"saddle of index k"``
            with k unstable modes, ``"repeller"``, ``"line attractor"``, ``"slow
            manifold of dimension k"``; before it ``"slow point, "`` where the state
            moves.
    """

    vectors: Float[np.ndarray, "P n"]
    drift: Float[np.ndarray, "P n"]
    jacobian: Float[np.ndarray, "P n n"]
    input_jacobian: Float[np.ndarray, "P n D"]
    eigenvalues: Complex[np.ndarray, "P n"]
    right: Complex[np.ndarray, "P n n"]
    left: Complex[np.ndarray, "P n n"]
    slow: float
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def speed(self) -> Float[np.ndarray, " P"]:
        """``|F(s, x) - s|``, the length of the drift."""
        return np.linalg.norm(self.drift, axis=-1)

    @property
    def time_constants(self) -> Float[np.ndarray, "P n"]:
        """Steps in which a mode shrinks, or grows, by the factor e; inf for neither."""
        return time_constants(self.eigenvalues)

    @property
    def frequencies(self) -> Float[np.ndarray, "P n"]:
        """Cycles a step of each mode, from 0 to 1/2; negative for the conjugate."""
        return np.angle(self.eigenvalues) / (2 * np.pi)

    @property
    def unstable(self) -> Int[np.ndarray, " P"]:
        """The number of modes that grow at each point."""
        return is_unstable(self.eigenvalues).sum(-1)

    @property
    def stable(self) -> Int[np.ndarray, " P"]:
        """The number of modes that do not grow at each point."""
        return self.eigenvalues.shape[-1] - self.unstable

    @property
    def selected_input(self) -> Complex[np.ndarray, "P n D"]:
        """``left @ input_jacobian``: how much of each input enters each mode."""
        return self.left @ self.input_jacobian

    def predict(
        self, displacements: Float[np.ndarray, "P n"], steps: int
    ) -> Float[np.ndarray, "K P n"]:
        """Return the linear states after k = 0, ..., ``steps`` steps from ``s* + d``.

        At a fixed point they are ``s* + J^k d``.

        Args:
            displacements: d for each point, ``(P, n)``.
            steps: the last k.

        Returns:
            The states, ``(steps + 1, P, n)``.
        """
        moved = [np.asarray(displacements, self.jacobian.dtype)]
        for _ in range(steps):
            moved.append(np.einsum("pij,pj->pi", self.jacobian, moved[-1]) + self.drift)
        return self.vectors + np.stack(moved)

    def __str__(self) -> str:
        lines = ["point    speed  |eigenvalue|  steps  cycles/step  unstable  kind"]
        for i in range(min(len(self), SHOWN)):
            tau, turns = self.time_constants[i, 0], abs(self.frequencies[i, 0])
            lines.append(
                f"{i:5}  {self.speed[i]:.1e}  {abs(self.eigenvalues[i, 0]):12.4f}  "
                f"{tau:5.3g}  {turns:11.3g}  {self.unstable[i]:8}  {self.kinds[i]}"
            )
        if len(self) > SHOWN:
            lines.append(f"and {len(self) - SHOWN} more")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def is_unstable(eigenvalues: np.ndarray) -> np.ndarray:
    """Return whether a mode grows, beyond the rounding of its eigenvalue."""
    rounding = eigenvalues.shape[-1] * 8 * np.finfo(eigenvalues.dtype).eps
    return np.abs(eigenvalues) > 1 + rounding


def time_constants(eigenvalues: np.ndarray) -> np.ndarray:
    """Return ``1 / |log |eigenvalue||`` in steps."""
    with np.errstate(divide="ignore"):
        return 1 / np.abs(np.log(np.abs(eigenvalues)))
