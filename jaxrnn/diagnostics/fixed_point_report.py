"""Fixed points as a result: duplicates merged, outliers marked, and a table."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from ..core.types import Carry
from ..core.validation import describe
from .fixed_point_search import Found

SHOWN = 20  # rows of a table


@dataclasses.dataclass(frozen=True, eq=False)
class FixedPoints:
    """Points where searches for fixed points ended; it prints as a table.

    Those that converged come first, and among them those that most searches reached.

    Attributes:
        states: the points, whole carries, ``(P, ...)`` per leaf.
        speed: ``|F(s, x) - s|``, the length of one step there, ``(P,)``. q is half its
            square.
        converged: whether the speed is at most the tolerance, ``(P,)``: a fixed point.
        stationary: whether q has a minimum there that is not zero, ``(P,)``: where the
            speed is small, this is a slow point.
        outlier: whether the point lies far outside the starting states, ``(P,)``.
        starts: how many searches ended there, ``(P,)``.
        iterations: the largest number of iterations of those searches, ``(P,)``.
        point_of_start: the number of the point at which each search ended, ``(S,)``.
        tolerance: the speed up to which a point is fixed.
    """

    states: Carry
    speed: Float[np.ndarray, " P"]
    converged: Bool[np.ndarray, " P"]
    stationary: Bool[np.ndarray, " P"]
    outlier: Bool[np.ndarray, " P"]
    starts: Int[np.ndarray, " P"]
    iterations: Int[np.ndarray, " P"]
    point_of_start: Int[np.ndarray, " S"]
    tolerance: float

    def __len__(self) -> int:
        return len(self.speed)

    @property
    def q(self) -> Float[np.ndarray, " P"]:
        """Half the squared speed, which the searches minimize."""
        return 0.5 * np.square(self.speed)

    def select(self, which: Bool[np.ndarray, " P"]) -> FixedPoints:
        """Return some of the points.

        Args:
            which: ``(P,)`` bool, such as ``points.converged & ~points.outlier``.

        Returns:
            `FixedPoints`. In ``point_of_start`` a point that is left out is -1.

        Raises:
            ValueError: if ``which`` is not ``(P,)`` bool.
        """
        which = np.asarray(which)
        if which.shape != (len(self),) or which.dtype != bool:
            raise ValueError(
                f"select: which must be ({len(self)},) bool, one for each point, but "
                f"it is {describe(which)}"
            )
        numbers = np.where(which, np.cumsum(which) - 1, -1)
        return dataclasses.replace(
            self,
            states=jax.tree.map(lambda a: a[which], self.states),
            speed=self.speed[which],
            converged=self.converged[which],
            stationary=self.stationary[which],
            outlier=self.outlier[which],
            starts=self.starts[which],
            iterations=self.iterations[which],
            point_of_start=numbers[self.point_of_start],
        )

    def verdicts(self) -> list[str]:
        """Return in words what each point is."""
        words = np.where(
            self.converged,
            "fixed point",
            np.where(self.stationary, "minimum of q", "not converged"),
        )
        return [
            f"{word}, outlier" if far else str(word)
            for word, far in zip(words, self.outlier, strict=True)
        ]

    def __str__(self) -> str:
        fixed = int(self.converged.sum())
        lines = [
            f"{len(self)} points of {len(self.point_of_start)} searches: {fixed} fixed "
            f"(speed at most {self.tolerance:.1e}), {int(self.stationary.sum())} "
            f"minima of q, {int((~self.converged & ~self.stationary).sum())} not "
            f"converged"
        ]
        if len(self):
            lines.append("point  searches  iterations    speed        q  what it is")
        lines += [
            f"{i:5}  {self.starts[i]:8}  {self.iterations[i]:10}  {self.speed[i]:.1e}"
            f"  {self.q[i]:.1e}  {word}"
            for i, word in enumerate(self.verdicts()[:SHOWN])
        ]
        if len(self) > SHOWN:
            lines.append(f"and {len(self) - SHOWN} more")
        if len(self) and not fixed:
            lines.append(
                f"No search reached a fixed point; the least speed is "
                f"{self.speed.min():.1e}. There may be none under this input, or it "
                f"lies far from the starting states: start from others, or allow "
                f"more iterations (max_iterations)."
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def merged(
    found: Found,
    starts: Float[np.ndarray, "S n"],
    tolerance: float,
    same: float,
    far: float,
) -> tuple[Int[np.ndarray, " P"], FixedPoints]:
    """Merge equal points, the slowest of which stands for all.

    Args:
        found: where the searches ended.
        starts: where they began.
        tolerance: the speed up to which a point is fixed.
        same: two points are equal if no number differs by more than this, relative to
            one plus the largest number.
        far: a point is an outlier if it is farther from the center of the starts than
            this many times their mean distance from it.

    Returns:
        The number of the search that stands for each point, and the points, whose
        states are not filled in yet.
    """
    vectors, speed = np.asarray(found.vectors), np.asarray(found.speed)
    point_of_start = np.full(len(speed), -1)
    kept: list[int] = []
    for i in np.argsort(np.where(np.isnan(speed), np.inf, speed), kind="stable"):
        gaps = np.abs(vectors[kept] - vectors[i]).max(-1) if kept else np.empty(0)
        limit = same * (1 + np.abs(vectors[i]).max())
        near = np.flatnonzero(gaps <= limit)
        point_of_start[i] = near[0] if near.size else len(kept)
        if not near.size:
            kept.append(int(i))
    counts = np.bincount(point_of_start, minlength=len(kept))
    converged = speed[kept] <= tolerance
    order = np.lexsort((-counts, ~converged))
    chosen, renumbered = np.asarray(kept)[order], np.argsort(order)
    iterations = np.zeros(len(kept), int)
    np.maximum.at(iterations, point_of_start, np.asarray(found.iterations))
    center = starts.mean(0)
    reach = far * np.linalg.norm(starts - center, axis=-1).mean()
    distance = np.linalg.norm(vectors[chosen] - center, axis=-1)
    return chosen, FixedPoints(
        states=None,
        speed=speed[chosen],
        converged=converged[order],
        stationary=np.asarray(found.stationary)[chosen] & ~converged[order],
        outlier=(distance > reach) & (reach > 0),
        starts=counts[order],
        iterations=iterations[order],
        point_of_start=renumbered[point_of_start],
        tolerance=tolerance,
    )
