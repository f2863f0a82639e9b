"""The training step for batches of whole sequences, without a carry between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from ..core.types import Params
from .compiled_steps import compile_for_batches
from .state import TrainState, key_of, set_rate


def make_batch_step(
    loss: Callable[[Params, Any, Array], tuple[Array, Array]],
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    mesh: Mesh | None = None,
    axis: int = 0,
) -> Callable[[TrainState, Any, Any], TrainState]:
    """Compile ``batch_step(state, batch, progress) -> state``, one optax update.

    The update follows the gradient of the mean loss of the batch. Nothing but the state
    passes from one batch to the next; for streams whose carry continues, see
    `make_train_step`. The initial state is made by `fresh_state`. The state passed in
    is donated to the computation: use only the returned one.

    With a ``mesh`` of one axis, XLA splits the rows of the batch over its devices;
    parameters and optimizer state are replicated, and random numbers are drawn for the
    whole batch, so that the result is that of one device up to rounding. If the devices
    belong to several processes, each calls the step with the same state, and with the
    whole batch or with what `global_batch` makes of its own rows.

    Args:
        loss: ``loss(params, batch, key) -> (sum of losses, number of losses)``.
            ``batch`` is a pytree of arrays, or None if the loss draws its sequences
            itself. ``key`` is the state's key folded with its step, so that a run that
            was killed and resumed continues with the same numbers. Where the number of
            losses is zero, the gradient is zero.
        optimizer, schedule: as for `make_train_step`.
        mesh: the devices over which the rows are split (default: one device).
        axis: the axis of the rows. Arrays that the devices do not divide along it are
            copied to every device.

    Returns:
        The compiled function.

    Raises:
        ValueError: if the mesh has more than one axis; when the step is traced, if
            ``loss`` does not return two scalars.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.training import (
        ...     constant, fresh_state, make_batch_step, make_optimizer)
        >>> def loss(params, batch, key):  # of a line through the origin
        ...     xs, ys = batch
        ...     return jnp.square(params["w"] * xs - ys).sum(), jnp.asarray(xs.size)
        >>> optimizer = make_optimizer()
        >>> step = make_batch_step(loss, optimizer, constant(0.1))
        >>> state = fresh_state(optimizer, {"w": jnp.zeros(())}, jax.random.key(0))
        >>> xs = jax.random.normal(jax.random.key(1), (8,))
        >>> for _ in range(100):
        ...     state = step(state, (xs, 2 * xs), 0.0)
        >>> int(state.step), f"{state.params['w']:.1f}", int(state.tokens)
        (100, '2.0', 800)
    """

    def mean_loss(
        params: Params, batch: Any, key: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        total, count = loss(params, batch, key)
        if jnp.shape(total) or jnp.shape(count):
            raise ValueError(
                "make_batch_step: loss must return two scalars, the sum of the losses "
                "and their number, but their shapes are "
                f"{jnp.shape(total)} and {jnp.shape(count)}"
            )
        count = count.astype(total.dtype)
        return total / jnp.maximum(count, jnp.ones_like(count)), (total, count)

    def step(state: TrainState, batch: Any, progress: Any) -> TrainState:
        opt_state = set_rate("make_batch_step", state.opt_state, schedule(progress))
        gradient, (total, count) = jax.grad(mean_loss, has_aux=True)(
            state.params, batch, key_of(state)
        )
        updates, opt_state = optimizer.update(gradient, opt_state, state.params)
        return state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            loss=state.loss + total.astype(state.loss.dtype),
            tokens=state.tokens + count.astype(state.tokens.dtype),
        )

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    return compile_for_batches(step, mesh, axis)
