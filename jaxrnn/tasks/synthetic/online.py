"""Online gradients of the tasks' models, in place of backpropagation.

One update still follows each batch of sequences, so that the methods differ in how the
gradient is computed and in nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...core.flags import expand_flags
from ...core.types import Carry, Params
from ...online import RTRL, UORO, Traces
from ...training import InputError
from ...truncation.tbptt import Window
from ...unrolling import unroll
from ..config import choice
from ..models.sequence_model import Batch, SequenceModel

TBPTT = "tbptt"
WINDOWS = {"rtrl": RTRL, "uoro": UORO}
TRACES = "traces"


def gradient_method_field() -> Any:
    """Return the option for how gradients are computed."""
    return choice(
        TBPTT,
        (TBPTT, *WINDOWS, TRACES),
        "how gradients are computed. tbptt: backwards in time, see --tbptt; rtrl: "
        "forwards and exactly; uoro: forwards, unbiased and noisy; traces: forwards, "
        "step by step, exactly for cells whose units do not see each other",
    )


def online_loss(
    model: SequenceModel, method: str, window: int
) -> Callable[[Params, Batch, Array], tuple[Array, Array]]:
    """Return the loss of a batch, whose derivative is an online gradient.

    Args:
        model: the model.
        method: ``"rtrl"``, ``"uoro"`` or ``"traces"``.
        window: the number of steps of a window, k1, for the first two.

    Returns:
        ``loss(params, batch, key) -> (sum of losses, number of losses)``, for
        `jaxrnn.training.make_batch_step`. Reverse mode alone is supported.
    """
    if method == TRACES:
        measure: Any = functools.partial(_by_traces, model)
    else:
        measure = functools.partial(_by_windows, model, WINDOWS[method], window)

    @jax.custom_vjp
    def total(params, batch, key):
        return measure(params, batch, key)[0]

    def forward(params, batch, key):
        return measure(params, batch, key)

    def backward(gradient, cotangent):
        scaled = jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradient)
        return scaled, None, None

    total.defvjp(forward, backward)
    return lambda params, batch, key: (total(params, batch, key), batch.counts.sum())


def check_online(
    model: SequenceModel, method: str, window: int, batch: Batch, params: Params
) -> None:
    """Check that a method supports a model. Nothing is computed.

    Args:
        model: the model.
        method: ``"rtrl"``, ``"uoro"`` or ``"traces"``.
        window: as for `online_loss`.
        batch: a batch, or its shapes and dtypes.
        params: the parameters, or their shapes and dtypes.

    Raises:
        InputError: if it does not.
    """
    flag = f"--gradient-method {method}"
    if model.pooled:
        raise InputError(
            f"{flag} needs the loss of single steps, but this task reads the mean over "
            f"all steps: leave it out"
        )
    if method == TRACES and model.tokens:
        raise InputError(
            f"{flag} has no traces for the embedding of this task's tokens: use "
            f"--gradient-method rtrl"
        )
    try:
        jax.eval_shape(
            online_loss(model, method, window), params, batch, jax.random.key(0)
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{flag}: {error}") from None


def _losses(
    model: SequenceModel, params: Params, ys: Any, targets: Any, counts: Any
) -> Array:
    """Return the losses that count, summed over what a step has of them, (T, *B)."""
    losses = model.losses(model.read(params, ys), targets)
    losses = jnp.where(counts, losses, jnp.zeros_like(losses))
    return losses.reshape(*losses.shape[:2], -1).sum(-1)


def _by_windows(
    model: SequenceModel, kind: Any, k1: int, params: Params, batch: Batch, key: Array
) -> tuple[Array, Params]:
    """Return the sum of the losses of a batch and its gradient, window by window."""

    def losses(params, carry, window):
        _, ys, carries = unroll(
            model.layer,
            params["rnn"],
            model.embed(params, window.inputs),
            carry,
            mask=window.mask,
            return_carries=True,
        )  # type: ignore[misc]
        return _losses(model, params, ys, *window.targets), carries

    def initial_carry(params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return model.layer.initial_carry(params["rnn"], batch_shape)

    online = kind(losses, initial_carry, k1)
    sequence = Window(batch.inputs, (batch.targets, batch.counts), batch.mask)
    streams = (batch.targets.shape[1],)
    state = online.init(params, sequence, streams)
    mean, gradient, _ = online.value_and_grad(params, sequence, state, key=key)
    steps = batch.targets.shape[0] * batch.targets.shape[1]
    valid = jnp.asarray(steps if batch.mask is None else batch.mask.sum(), mean.dtype)
    return mean * valid, jax.tree.map(lambda g: g * valid.astype(g.dtype), gradient)


def _by_traces(
    model: SequenceModel, params: Params, batch: Batch, key: Array
) -> tuple[Array, Params]:
    """Return the sum of the losses of a batch and its gradient, step by step."""
    traces = Traces(model.layer)

    def loss(params, state, now):
        x, target, counts, keep = now
        state, y = traces.step(params["rnn"], state, x, mask=keep)
        return _losses(model, params, y[None], target[None], counts[None]).sum(), state

    def body(before, now):
        state, total, gradient = before
        (value, state), new = jax.value_and_grad(loss, has_aux=True)(params, state, now)
        return (state, total + value, jax.tree.map(jnp.add, gradient, new)), None

    # Padding may hold anything; it must not enter a derivative.
    inputs = batch.inputs
    if batch.mask is not None:
        keep = expand_flags(batch.mask, inputs)
        inputs = jnp.where(keep, inputs, jnp.zeros_like(inputs))
    first = traces.init(params["rnn"], inputs[0])
    zero = jnp.zeros((), jnp.result_type(float))
    (_, total, gradient), _ = jax.lax.scan(
        body,
        (first, zero, jax.tree.map(jnp.zeros_like, params)),
        (inputs, batch.targets, batch.counts, batch.mask),
    )
    return total, gradient
