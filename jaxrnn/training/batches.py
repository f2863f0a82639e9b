"""The training step for whole sequences that start anew with each batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..core.cell import Params
from .state import TrainState, key_of, set_rate


def make_batch_step(
    loss: Callable[[Params, Any, Array], tuple[Array, Array]],
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
) -> Callable[[TrainState, Any, Any], TrainState]:
    """``batch_step(state, batch, progress) -> state``, compiled: one optax update by
    the mean loss of a batch.

    Nothing but the state goes from one batch to the next; for streams whose carry goes
    on, see `make_train_step`. The state comes from `fresh_state`. The state passed in
    is given up to the computation: use only the one returned.

    Args:
        loss: ``loss(params, batch, key) -> (sum of losses, their number)``. ``batch``
            is a pytree of arrays, or None where the loss draws its sequences itself;
            ``key`` is the state's, folded with its step, so that a run which was killed
            and resumed goes on to the same numbers. Where no loss counts, the
            parameters get no gradient.
        optimizer, schedule: as for `make_train_step`.
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

    return jax.jit(step, donate_argnums=0)
