"""What truncation costs: the truncated gradient beside the full one."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from ..core.cell import Params, accumulator
from ..core.validation import describe
from ..truncation.tbptt import TBPTT, Window
from ..truncation.validation import check_steps


class TruncationBias(NamedTuple):
    """How far TBPTT(k1, k2)'s gradient g_k lies from the full one, g, at each k2; norms
    are over all parameters.

    ``relative_error`` is ``||g_k - g|| / ||g||``, ``cosine`` is ``g_k . g / (||g_k||
    ||g||)``. ``by_leaf`` is a pytree as the parameters, each leaf ``(K,)``: the
    relative error of that parameter's gradient by itself. NaN: the full gradient is
    zero (or, for the cosine, the truncated one), or something is not finite.
    """

    k2: Int[np.ndarray, " K"]
    relative_error: Float[Array, " K"]
    cosine: Float[Array, " K"]
    by_leaf: Any


def truncation_bias(
    tbptt: TBPTT,
    params: Params,
    sequence: Window,
    k2s: Iterable[int] | Integer[np.ndarray, " K"],
    *,
    batch_shape: tuple[int, ...] = (),
    windows: bool = False,
) -> TruncationBias:
    """The bias of truncated BPTT on one batch of sequences, as a function of k2, with
    the parameters held still.

    Every k2 is a program of its own to compile; the full gradient needs the memory of
    all T steps.

    Args:
        tbptt: whose losses and k1 are used; its k2 does not matter. The losses draw no
            random numbers.
        sequence: ``(T, *B, ...)``, walked from its start.
        k2s: steps over which gradients flow, each from k1 to T.
        batch_shape: B, as for `TBPTT.init`.
        windows: take k1 = k2 at each k2 and pass over ``tbptt.k1``: windows cut where
            they end, as most programs ship. Their losses see 1 to k2 steps, those of k1
            = 1 always k2.

    Raises:
        ValueError: for a k2 below k1 or beyond T, none at all, an empty sequence, or a
            TBPTT with a random truncation.
    """
    if not isinstance(tbptt, TBPTT):
        raise TypeError(
            f"truncation_bias: tbptt must be a jaxrnn.TBPTT, but it is "
            f"{describe(tbptt)}"
        )
    if tbptt.truncation is not None:
        raise ValueError(
            f"truncation_bias: the TBPTT has truncation={tbptt.truncation!r}, whose "
            f"gradient is random: take "
            "dataclasses.replace(tbptt, truncation=None), with losses that do without "
            "gradient_scale"
        )
    steps = check_steps(sequence)
    lengths = _check_lengths(k2s, 1 if windows else tbptt.k1, steps)

    def gradient(k1, k2):
        one = dataclasses.replace(tbptt, k1=k1, k2=k2)
        return one.value_and_grad(
            params, sequence, one.init(params, sequence, batch_shape)
        )[1]

    full = gradient(steps, steps)
    compared = [
        _compare(gradient(k if windows else tbptt.k1, k), full) for k in lengths
    ]
    error, cosine, by_leaf = jax.tree.map(lambda *each: jnp.stack(each), *compared)
    return TruncationBias(np.asarray(lengths, np.int32), error, cosine, by_leaf)


def _check_lengths(k2s: Any, k1: int, steps: int) -> list[int]:
    """Ints from k1 to T, one at least."""
    lengths = list(k2s) if isinstance(k2s, (Iterable, np.ndarray)) else [k2s]
    if not lengths:
        raise ValueError(
            "truncation_bias: k2s is empty: give the truncation lengths to measure, "
            "such as [1, 2, 4, 8]"
        )
    if steps == 0:
        raise ValueError("truncation_bias: the sequence has no steps (T = 0)")
    for k2 in lengths:
        if (
            isinstance(k2, (bool, np.bool_))
            or not isinstance(k2, numbers.Integral)
            or int(k2) < 1
        ):
            raise ValueError(
                f"truncation_bias: every k2 must be an int of at least 1 step, but one "
                f"is {k2!r}"
            )
        if int(k2) < k1:
            raise ValueError(
                f"truncation_bias: k2 = {k2} is less than k1 = {k1}, so some losses "
                f"would get no gradient at all: take "
                "k2 >= k1, a TBPTT with a smaller k1, or windows=True"
            )
        if int(k2) > steps:
            raise ValueError(
                f"truncation_bias: k2 = {k2} lies beyond the sequence of T = {steps} "
                f"steps; k2 = T has no bias"
            )
    return [int(k2) for k2 in lengths]


@jax.jit
def _compare(truncated: Params, full: Params) -> tuple[Array, Array, Any]:
    """The relative error and the cosine over all leaves, and the relative error of
    each.
    """

    def wide(a):
        return a.astype(accumulator(a.dtype))

    def squared(tree):
        return jax.tree.map(lambda a: jnp.square(jnp.abs(wide(a))).sum(), tree)

    def total(tree):
        return sum(
            leaf.astype(jnp.result_type(float)) for leaf in jax.tree.leaves(tree)
        )

    difference = squared(jax.tree.map(lambda a, b: wide(a) - wide(b), truncated, full))
    size, truncated_size = squared(full), squared(truncated)
    product = jax.tree.map(
        lambda a, b: (wide(a) * wide(b).conj()).real.sum(), truncated, full
    )
    by_leaf = jax.tree.map(lambda d, n: jnp.sqrt(d / n), difference, size)
    return (
        jnp.sqrt(total(difference) / total(size)),
        total(product) / jnp.sqrt(total(size) * total(truncated_size)),
        by_leaf,
    )
