"""The bias of truncated BPTT: the truncated gradient compared with the full one."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from ..core.dtypes import accumulator
from ..core.types import Params
from ..core.validation import describe
from ..truncation.tbptt import TBPTT, Window
from ..truncation.validation import check_steps


class TruncationBias(NamedTuple):
    """The distance of TBPTT's gradient from the full gradient, for each k2.

    Let g_k be the gradient of TBPTT(k1, k2) and g the full gradient; norms are over all
    parameters. A value is NaN where the full gradient is zero (or, for the cosine, the
    truncated one), or something is not finite.

    Attributes:
        k2: the truncation lengths, ``(K,)``.
        relative_error: ``||g_k - g|| / ||g||``, ``(K,)``.
        cosine: ``g_k . g / (||g_k|| ||g||)``, ``(K,)``.
        by_leaf: a pytree like the parameters, each leaf ``(K,)``: the relative error of
            the gradient of that parameter alone.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> def losses(w, h, window):  # h_t = w h_{t-1} + x_t; the loss is h_t
        ...     hs = jax.lax.scan(lambda h, x: (w * h + x,) * 2, h, window.inputs)[1]
        ...     return hs, hs
        >>> tbptt = jaxrnn.TBPTT(losses, lambda w, batch: jnp.zeros(batch), k1=1)
        >>> bias = jaxrnn.diagnostics.truncation_bias(
        ...     tbptt, jnp.float32(0.5), jaxrnn.Window(jnp.ones(4), None), [2, 4],
        ...     windows=True)
        >>> bias.k2.tolist(), [f"{cosine:.2f}" for cosine in bias.cosine]
        ([2, 4], ['1.00', '1.00'])
        >>> bool((bias.by_leaf == bias.relative_error).all())  # there is one parameter
        True
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
    """Measure the bias of truncated BPTT on one batch, as a function of k2.

    The parameters are held fixed. Every k2 compiles a program of its own, and the full
    gradient needs the memory of all T steps.

    Args:
        tbptt: the `TBPTT` whose losses and k1 are used; its k2 is ignored. The losses
            must not draw random numbers.
        params: the parameters of the whole model, as for `TBPTT.value_and_grad`.
        sequence: a `Window` of arrays ``(T, *B, ...)``, processed from its start.
        k2s: the truncation lengths, each from k1 to T.
        batch_shape: B, as for `TBPTT.init`.
        windows: use k1 = k2 at each k2 and ignore ``tbptt.k1``: consecutive windows
            without overlap, as most programs train. Their losses see 1 to k2 steps,
            those of k1 = 1 always k2.

    Returns:
        A `TruncationBias`.

    Raises:
        TypeError: if ``tbptt`` is not a `TBPTT`.
        ValueError: if a k2 is below k1 or beyond T, or there is none; for an empty
            sequence, or a TBPTT with a random truncation.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> def losses(w, h, window):  # h_t = w h_{t-1} + x_t; the loss is h_t
        ...     hs = jax.lax.scan(lambda h, x: (w * h + x,) * 2, h, window.inputs)[1]
        ...     return hs, hs
        >>> tbptt = jaxrnn.TBPTT(losses, lambda w, batch: jnp.zeros(batch), k1=1)
        >>> bias = jaxrnn.diagnostics.truncation_bias(
        ...     tbptt, jnp.float32(0.5), jaxrnn.Window(jnp.ones(4), None), [1, 2, 4],
        ...     windows=True)
        >>> print([f"{error:.2f}" for error in bias.relative_error])
        ['0.26', '0.13', '0.00']
    """
    if not isinstance(tbptt, TBPTT):
        raise TypeError(
            f"truncation_bias: tbptt must be a jaxrnn.TBPTT, but it is "
            f"{describe(tbptt)}"
        )
    if tbptt.truncation is not None:
        raise ValueError(
            f"truncation_bias: the TBPTT has truncation={tbptt.truncation!r}, whose "
            f"gradient is random: pass "
            "dataclasses.replace(tbptt, truncation=None), with losses that do not use "
            "gradient_scale"
        )
    steps = check_steps(sequence)
    lengths = _check_lengths(k2s, 1 if windows else tbptt.k1, steps)

    def gradient(k1, k2):
        truncated = dataclasses.replace(tbptt, k1=k1, k2=k2)
        return truncated.value_and_grad(
            params, sequence, truncated.init(params, sequence, batch_shape)
        )[1]

    full = gradient(steps, steps)
    comparisons = [
        compare_gradients(gradient(k if windows else tbptt.k1, k), full)
        for k in lengths
    ]
    error, cosine, by_leaf = jax.tree.map(lambda *each: jnp.stack(each), *comparisons)
    return TruncationBias(np.asarray(lengths, np.int32), error, cosine, by_leaf)


def _check_lengths(k2s: Any, k1: int, steps: int) -> list[int]:
    """Return the truncation lengths as ints, at least one, each from k1 to T."""
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
                f"would get no gradient at all: use "
                "k2 >= k1, a TBPTT with a smaller k1, or windows=True"
            )
        if int(k2) > steps:
            raise ValueError(
                f"truncation_bias: k2 = {k2} lies beyond the sequence of T = {steps} "
                f"steps; k2 = T has no bias"
            )
    return [int(k2) for k2 in lengths]


@jax.jit
def compare_gradients(truncated: Params, full: Params) -> tuple[Array, Array, Any]:
    """Return the relative error and cosine over all leaves, and the error per leaf."""

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
