"""The error of online gradients: compared with backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.types import Params
from ..core.validation import describe
from ..online import RTRL, UORO, Traces
from ..truncation.plan import pad_sequence
from ..truncation.tbptt import TBPTT, Window
from ..truncation.validation import check_steps, check_streams
from ..unrolling import unroll
from .truncation import compare_gradients

Loss = Callable[[Any, Any], Array]


class OnlineError(NamedTuple):
    """The distance of an online gradient g from the gradient f of backpropagation.

    Norms are over all parameters. A value is NaN where f is zero (or, for the cosine,
    g is), or something is not finite.

    Attributes:
        relative_error: ``||g - f|| / ||f||``.
        cosine: ``g . f / (||g|| ||f||)``.
        by_leaf: a pytree like the parameters: the relative error of the gradient of
            that parameter alone.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> def losses(w, h, window):  # h_t = w h_{t-1} + x_t; the loss is h_t
        ...     hs = jax.lax.scan(lambda h, x: (w * h + x,) * 2, h, window.inputs)[1]
        ...     return hs, hs
        >>> tbptt = jaxrnn.TBPTT(losses, lambda w, batch: jnp.zeros(batch), k1=2)
        >>> found = jaxrnn.diagnostics.online_error(
        ...     tbptt, jnp.float32(0.5), jaxrnn.Window(jnp.ones(4), None))
        >>> f"{found.relative_error:.2f} {found.by_leaf:.2f} {found.cosine:.2f}"
        '0.13 0.13 1.00'
    """

    relative_error: Float[Array, ""]
    cosine: Float[Array, ""]
    by_leaf: Any


def online_error(
    online: RTRL | UORO | TBPTT | Traces,
    params: Params,
    sequence: Window,
    *,
    batch_shape: tuple[int, ...] = (),
    loss: Loss | None = None,
    key: Array | None = None,
) -> OnlineError:
    """Compare an online gradient with that of backpropagation, on one batch.

    The parameters are held fixed, so that both are gradients of the same loss, the mean
    over the valid steps of the sequence. The latter needs the memory of all T steps.
    For `jaxrnn.online.RTRL` the error is rounding; for `jaxrnn.online.UORO` it is that
    of one draw, whose mean over draws is zero.

    Args:
        online: the method.
        params: the parameters: of the whole model, or of the layer for
            `jaxrnn.online.Traces`.
        sequence: a `jaxrnn.Window` of arrays ``(T, *B, ...)``, from its start.
        batch_shape: ``*B``.
        loss: for `jaxrnn.online.Traces`, and for it alone, ``loss(y, target) -> (*B,)``
            of the layer's output at one step. The other methods have their ``losses``.
        key: a `jax.random` key for `jaxrnn.online.UORO`.

    Returns:
        An `OnlineError`.

    Raises:
        TypeError: if ``online`` is none of these methods.
        ValueError: for an empty sequence; or if ``loss`` is missing, or given in vain.

    Example::

        >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.diagnostics, jaxrnn.online
        >>> params = jaxrnn.GRU(4).init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (20, 3))
        >>> def error(layer, params):
        ...     return jaxrnn.diagnostics.online_error(
        ...         jaxrnn.online.Traces(layer), params, jaxrnn.Window(xs, None),
        ...         loss=lambda y, target: jnp.square(y).sum(-1))
        >>> found = error(jaxrnn.GRU(4), params)
        >>> bool(0.01 < found.relative_error < 1), bool(found.cosine > 0.5)
        (True, True)
        >>> cell = jaxrnn.DiagonalGRU(4)
        >>> exact = error(cell, cell.init(jax.random.key(0), 3))
        >>> bool(exact.relative_error < 1e-5)
        True
    """
    if not isinstance(online, (RTRL, UORO, TBPTT, Traces)):
        raise TypeError(
            f"online_error: online must be a jaxrnn.online.RTRL, UORO or Traces, or a "
            f"jaxrnn.TBPTT, but it is {describe(online)}"
        )
    steps = check_steps(sequence, "online_error")
    if steps == 0:
        raise ValueError("online_error: the sequence has no steps (T = 0)")
    if isinstance(online, Traces):
        if loss is None:
            raise ValueError(
                "online_error: Traces has no losses of its own: pass loss=, a function "
                "loss(y, target) -> (*B,) of the output of one step"
            )
        check_streams(sequence, tuple(batch_shape), steps, "online_error")
        sequence = pad_sequence(sequence, steps, tuple(batch_shape))
        return OnlineError(*_errors_of_traces(online, loss, params, sequence))
    if loss is not None:
        name = type(online).__name__
        raise ValueError(
            f"online_error: {name} has its own losses, so loss= would be ignored: "
            f"leave it out"
        )
    full = TBPTT(online.losses, online.initial_carry, k1=steps)

    def gradient(method):
        state = method.init(params, sequence, batch_shape)
        return method.value_and_grad(params, sequence, state, key=key)[1]

    return OnlineError(*compare_gradients(gradient(online), gradient(full)))


def _errors_of_traces(
    traces: Traces, loss: Loss, params: Params, sequence: Window
) -> tuple[Array, Array, Any]:
    """Return the errors of the summed gradients of `Traces`."""
    xs, targets, mask, resets, *_ = sequence

    def valid(losses, keep):
        return jnp.where(keep, losses, jnp.zeros_like(losses)).sum()

    def full(params):
        flags = {"mask": mask, "resets": resets}
        _, ys = unroll(traces.layer, params, xs, **flags)  # type: ignore[misc]
        return valid(jax.vmap(loss)(ys, targets), mask)

    def body(before, now):
        state, total = before
        x, target, keep, reset = now
        _, gradient, state = traces.value_and_grad(
            params,
            state,
            x,
            lambda y: valid(loss(y, target), keep),
            mask=keep,
            reset=reset,
        )
        return (state, jax.tree.map(jnp.add, total, gradient)), None

    def both(params):
        first = traces.init(params, jax.tree.map(lambda a: a[0], xs))
        zero = jax.tree.map(jnp.zeros_like, params)
        (_, online), _ = jax.lax.scan(body, (first, zero), (xs, targets, mask, resets))
        return online, jax.grad(full)(params)

    return compare_gradients(*jax.jit(both)(params))
