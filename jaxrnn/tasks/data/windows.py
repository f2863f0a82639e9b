"""Series as the inputs of a network: features of samples, and windows of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .bucketing import Buckets, Rows
from .series import Filled


@dataclasses.dataclass(frozen=True)
class Features:
    """What the network reads of a sample, in this order:

    the scaled values; with ``flags``, 1 or 0 for each of them that was seen or is held
    from before; with ``ahead``, the logarithms of the next gaps; with ``since``, that
    of the gap before; with ``elapsed``, that gap itself.

    Attributes:
        values: D, the number of values.
        flags: whether values may be missing.
        ahead: the number of future gaps, which a forecast is told; or 0.
        since: whether the gap before a sample is told.
        elapsed: whether the cell takes the elapsed time, which is the last feature.
    """

    values: int
    flags: bool = False
    ahead: int = 0
    since: bool = False
    elapsed: bool = False

    @property
    def size(self) -> int:
        """Return the number of features."""
        flags = self.values if self.flags else 0
        return self.values + flags + self.ahead + self.since + self.elapsed

    def of(self, series: Filled) -> Float[np.ndarray, "T F"]:
        """Return the features of every sample of a series."""
        parts = [series.values]
        if self.flags:
            parts.append(series.seen.astype(float))
        logs = np.log(series.gaps)
        if self.ahead:
            # After the last sample comes the usual gap, whose logarithm is 0.
            later = np.concatenate([logs, np.zeros(self.ahead)])
            steps = np.arange(len(logs))[:, None] + 1 + np.arange(self.ahead)
            parts.append(later[steps])
        if self.since:
            parts.append(logs[:, None])
        if self.elapsed:
            parts.append(series.gaps[:, None])
        return np.concatenate(parts, axis=1)


class Windows(NamedTuple):
    """Windows of several series, whose samples stand one after the other.

    Attributes:
        inputs: the features of all samples, ``(N, F)``.
        targets: the scaled values that are forecast, ``(N, K)``.
        counts: which of them count in the loss, ``(N, K)``.
        starts, lengths: where each window begins, and its number of samples, ``(M,)``.
        horizon: H, the number of samples after each that are its targets.
    """

    inputs: Float[np.ndarray, "N F"]
    targets: Float[np.ndarray, "N K"]
    counts: Bool[np.ndarray, "N K"]
    starts: Int[np.ndarray, " M"]
    lengths: Int[np.ndarray, " M"]
    horizon: int


class WindowBatch(NamedTuple):
    """A batch of windows, time first; padding and empty rows are masked."""

    inputs: Float[np.ndarray, "T B F"]
    mask: Bool[np.ndarray, "T B"]
    targets: Float[np.ndarray, "T B H K"]
    counts: Bool[np.ndarray, "T B H K"]


def training_windows(
    series: Sequence[Filled],
    ends: Sequence[int],
    features: Features,
    targets: Sequence[int],
    *,
    length: int,
    horizon: int,
) -> Windows:
    """Return all windows of training parts, one sample apart.

    Args:
        series: the whole series.
        ends: where the training part of each ends: no input and no target of a window
            is at or after it.
        features: what is read of a sample.
        targets: the numbers of the K values that are forecast.
        length: the number of samples of a window, less in a shorter series.
        horizon: H.
    """
    parts = [
        Filled(*(array[:end] for array in one))
        for one, end in zip(series, ends, strict=True)
    ]
    starts, lengths, position = [], [], 0
    for part in parts:
        inputs = len(part.values) - 1  # the last sample is only a target
        if inputs > 0:
            first = np.arange(max(inputs - length, 0) + 1)
            starts.append(position + first)
            lengths.append(np.full(len(first), min(inputs, length)))
        position += len(part.values) + horizon
    chosen = list(targets)

    def joined(arrays: list[np.ndarray]) -> np.ndarray:
        """Put the series one after the other, with room for the horizon between."""
        return np.concatenate([np.pad(a, ((0, horizon), (0, 0))) for a in arrays])

    return Windows(
        joined([features.of(part) for part in parts]),
        joined([part.values[:, chosen] for part in parts]),
        joined([part.seen[:, chosen] for part in parts]),
        np.concatenate(starts) if starts else np.zeros(0, int),
        np.concatenate(lengths) if lengths else np.zeros(0, int),
        horizon,
    )


def window_batch(windows: Windows, rows: Rows) -> WindowBatch:
    """Return the windows of a batch, padded to its width."""
    chosen = np.maximum(rows.rows, 0)
    lengths = np.where(rows.rows >= 0, windows.lengths[chosen], 0)
    step = np.arange(rows.width)[:, None]
    mask = step < lengths
    at = np.where(mask, windows.starts[chosen] + step, 0)
    later = at[..., None] + 1 + np.arange(windows.horizon)
    later = np.minimum(later, len(windows.targets) - 1)
    return WindowBatch(
        as_floats(np.where(mask[..., None], windows.inputs[at], 0)),
        mask,
        as_floats(windows.targets[later]),
        windows.counts[later] & mask[..., None, None],
    )


def padded_series(
    inputs: Sequence[Float[np.ndarray, "_ F"]], rows: Rows
) -> tuple[Float[np.ndarray, "W B F"], Bool[np.ndarray, "W B"]]:
    """Return whole series as a batch, time first, and its mask."""
    padded = np.zeros((rows.width, len(rows.rows), inputs[0].shape[1]))
    mask = np.zeros(padded.shape[:2], bool)
    for column, row in enumerate(rows.rows):
        if row >= 0:
            padded[: len(inputs[row]), column] = inputs[row]
            mask[: len(inputs[row]), column] = True
    return as_floats(padded), mask


def of_series(
    function: Callable[[np.ndarray, np.ndarray], Any],
    inputs: Sequence[Float[np.ndarray, "_ F"]],
    buckets: Buckets,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Return what a function of a padded batch and its mask gives for each series.

    Args:
        function: takes the batch and the mask of `padded_series`, and returns an array
            of ``(B, *shape)``.
        inputs: the series.
        buckets: the batches of them.
        shape: the shape of a result.
    """
    results = np.zeros((len(inputs), *shape))
    for rows in buckets.in_order():
        values = np.asarray(function(*padded_series(inputs, rows)))
        used = rows.rows >= 0
        results[rows.rows[used]] = values[used]
    return results


def as_floats(values: np.ndarray) -> np.ndarray:
    """Return an array in JAX's default float."""
    return values.astype(jnp.result_type(float))
