"""The training step for streams, whose carries pass from window to window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from ..truncation.tbptt import TBPTT, Window
from .compiled_steps import compile_for_mesh
from .sharding import check_axis_name, check_mesh
from .state import TrainState, key_of, set_rate


def make_train_step(
    tbptt: TBPTT,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Window, Any], TrainState]:
    """Compile ``train_step(state, window, progress) -> state``.

    One call makes one optax update per k1 steps of ``window``. The state passed in is
    donated to the computation: use only the returned one.

    With a ``mesh`` of one axis the streams (the first batch axis) are split over its
    devices, where their carries stay from step to step; parameters and optimizer state
    are replicated. The devices may belong to several processes: then each calls the
    step with the same state and with the window of all streams, or with the arrays that
    `global_batch` makes of its own streams. XLA splits the program as ``jax.jit`` does.
    Random numbers (dropout) are drawn for the whole batch, so the result is that of one
    device up to rounding.

    A ``tbptt`` with the mesh's ``axis_name`` runs inside ``jax.shard_map`` instead, for
    engines that XLA cannot split (`Fused`, `CuDNN`). Each device then draws random
    numbers of its own.

    Args:
        tbptt: the `TBPTT` with the losses of the model.
        optimizer: a transformation with an injected hyperparameter ``learning_rate``,
            as from `make_optimizer`.
        schedule: ``schedule(progress) -> rate``, the learning rate at the progress in
            [0, 1].
        mesh: the devices over which the streams are split (default: one device).

    Returns:
        The compiled function.

    Raises:
        ValueError: if the mesh has more than one axis or one of another name than that
            of ``tbptt``, the streams cannot be split evenly, or the optimizer has no
            injected learning rate.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.training import constant, make_optimizer, make_train_step, start
        >>> def losses(w, h, window):  # h_t = w h_{t-1} + x_t should be the target
        ...     hs = jax.lax.scan(lambda h, x: (w * h + x,) * 2, h, window.inputs)[1]
        ...     return jnp.square(hs - window.targets), hs
        >>> tbptt = jaxrnn.TBPTT(losses, lambda w, batch: jnp.zeros(batch), k1=4)
        >>> window = jaxrnn.Window(jnp.ones(8), jnp.full(8, 2.0))  # as for w = 1 / 2
        >>> optimizer, w = make_optimizer(), jnp.float32(0.0)
        >>> state = start(tbptt, optimizer, w, window, (), jax.random.key(0))
        >>> train_step = make_train_step(tbptt, optimizer, constant(0.02))
        >>> for _ in range(50):  # windows of one stream, with two updates each
        ...     state = train_step(state, window, 0.0)
        >>> f"{state.params:.1f}", f"{state.carry.carry:.1f}"
        ('0.5', '2.0')
    """
    if mesh is not None:
        check_mesh(mesh, "make_train_step")
        check_axis_name(tbptt.axis_name, mesh)

    def step(state: TrainState, window: Window, progress: Any) -> TrainState:
        key, opt_state = (
            key_of(state),
            set_rate("make_train_step", state.opt_state, schedule(progress)),
        )
        if window.mask is None:
            steps = jax.tree.leaves(window.inputs)[0].shape[0]
            window = window._replace(
                mask=jnp.ones((steps, *state.carry.fresh.shape), bool)
            )
        params, opt_state, loss, carry = tbptt.update(
            optimizer, state.params, opt_state, window, state.carry, key=key
        )
        tokens = jnp.asarray(window.mask).sum(dtype=state.tokens.dtype)
        if tbptt.axis_name is not None:
            tokens = jax.lax.psum(tokens, tbptt.axis_name)
        return TrainState(
            state.step + 1,
            params,
            opt_state,
            carry,
            state.key,
            state.loss + loss * tokens,
            state.tokens + tokens,
        )

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    return compile_for_mesh(step, mesh, mapped=tbptt.axis_name is not None)
