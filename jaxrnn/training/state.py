"""One training step: a pure function of a state that holds everything a run needs to
go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from ..core.cell import Params
from ..core.exported import register_for_export
from ..truncation.tbptt import TBPTT, TBPTTState, Window
from .devices import check_mesh, check_streams


@register_for_export
class TrainState(NamedTuple):
    """Everything that the next step depends on; saved whole, so that a resumed run goes
    on to the same numbers.

    ``step`` counts updates, and is the position in the data; ``carry`` is what one
    update hands to the next, ``()`` where sequences start anew with each batch; ``key``
    is raw key data, folded with ``step``; ``loss`` and ``tokens`` sum the losses (nats)
    and their number since the last report.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    carry: Any  # a TBPTTState, or ()
    key: Array
    loss: Float[Array, ""]
    tokens: Float[Array, ""]


def make_optimizer(
    *, clip: float = 1.0, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam after clipping by global norm, its learning rate a hyperparameter in the
    state for a schedule to set.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=0.0),
    )


def warmup_cosine(
    peak: float, *, warmup: float = 0.02, final: float = 0.01
) -> Callable[[Array], Array]:
    """A schedule over progress in [0, 1]: linear from 0 to ``peak`` over ``warmup``,
    then a cosine down to ``final * peak``.
    """
    resolution = 100_000  # optax's schedules count steps
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        0.0, peak, int(warmup * resolution), resolution, end_value=final * peak
    )
    return lambda progress: schedule(jnp.round(progress * resolution).astype(jnp.int32))


def constant(rate: float) -> Callable[[Array], Array]:
    """A schedule over progress in [0, 1] that stays at ``rate``."""
    return lambda progress: jnp.full(jnp.shape(progress), rate, jnp.result_type(float))


def fresh_state(
    optimizer: optax.GradientTransformation, params: Params, key: Array, carry: Any = ()
) -> TrainState:
    """The state before the first step; ``key`` is of all randomness in training."""
    state = TrainState(
        step=jnp.asarray(0, jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        carry=carry,
        key=jax.random.key_data(key),
        loss=jnp.zeros(()),
        tokens=jnp.zeros(()),
    )
    return jax.tree.map(
        jnp.copy, state
    )  # the train step takes its buffers, so no two leaves may share one


def start(
    tbptt: TBPTT,
    optimizer: optax.GradientTransformation,
    params: Params,
    example: Window,
    batch_shape: tuple[int, ...],
    key: Array,
) -> TrainState:
    """`fresh_state` for streams under ``tbptt``; ``example`` is a window of data,
    for its shapes.
    """
    return fresh_state(optimizer, params, key, tbptt.init(params, example, batch_shape))


def key_of(state: TrainState) -> Array:
    """The key of the step that comes next: the same one in a run that was killed and
    resumed.
    """
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)


def set_rate(who: str, opt_state: Any, rate: Array) -> Any:
    """The optimizer's state with its injected learning rate set."""
    if optax.tree_utils.tree_get(opt_state, "learning_rate") is None:
        raise ValueError(
            f"{who}: the optimizer has no injected hyperparameter learning_rate for "
            f"the schedule to set; use "
            "make_optimizer(), or "
            "optax.inject_hyperparams(optax.adam)(learning_rate=0.0)"
        )
    return optax.tree_utils.tree_set(opt_state, learning_rate=rate)


def make_train_step(
    tbptt: TBPTT,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Window, Any], TrainState]:
    """``train_step(state, window, progress) -> state``, compiled: one optax update per
    k1 steps of ``window``.

    ``optimizer`` has an injected hyperparameter ``learning_rate`` (as from
    `make_optimizer`), set to ``schedule(progress)``. The state passed in is given up to
    the computation: use only the one returned.

    With a ``mesh`` of one axis the streams (the first batch axis) are split over its
    devices, where their carries stay from step to step; parameters and optimizer state
    are held by each. The numbers are those of one device, to rounding; but with
    randomness (dropout) each device draws its own, so that the noise depends on how
    many there are.
    """
    if mesh is not None:
        check_mesh(mesh)
        tbptt = dataclasses.replace(tbptt, axis_name=mesh.axis_names[0])

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

    return jax.jit(step, donate_argnums=0) if mesh is None else _split(step, mesh)


def _split(
    step: Callable, mesh: Mesh
) -> Callable[[TrainState, Window, Any], TrainState]:
    """``step`` over the devices of ``mesh``, compiled once: the state comes and goes
    in the same places.
    """
    mesh = Mesh(
        mesh.devices, mesh.axis_names
    )  # where its axes are explicit, jit would want every array in place before
    everywhere, streams, in_time = (
        P(),
        P(mesh.axis_names[0]),
        P(None, mesh.axis_names[0]),
    )
    state: Any = TrainState(*[everywhere] * len(TrainState._fields))  # type: ignore[arg-type]  # places, not arrays
    state = state._replace(carry=TBPTTState(streams, in_time, streams))  # type: ignore[arg-type]
    arguments = (state, in_time, everywhere)
    # check_vma=False: the sums over devices stand in TBPTT, and jax adds none of its
    # own
    inner = jax.shard_map(
        step, mesh=mesh, in_specs=arguments, out_specs=state, check_vma=False
    )
    places = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        arguments,
        is_leaf=lambda leaf: isinstance(leaf, P),
    )
    compiled = jax.jit(
        inner, donate_argnums=0, in_shardings=places, out_shardings=places[0]
    )

    def train_step(state: TrainState, window: Window, progress: Any) -> TrainState:
        check_streams(state.carry.fresh.shape, mesh)
        if (
            state.step.sharding != places[0].step
        ):  # fresh or restored, all on one device: jit would compile for that too
            state = jax.device_put(state, places[0])
        return compiled(state, window, progress)

    return train_step
