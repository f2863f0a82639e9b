"""The state of training, which a run can resume from; optimizers and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ..core.exported import register_for_export
from ..core.types import Carry, Params, PyTree
from ..truncation.tbptt import TBPTT, Window

RESOLUTION = 100_000  # the steps of optax's schedules in a whole run


@register_for_export
class TrainState(NamedTuple):
    """Everything that the next step depends on.

    It is saved whole, so that a resumed run continues with the same numbers.

    Attributes:
        step: the number of updates, which is also the position in the data.
        params: the parameters.
        opt_state: the state of the optax optimizer.
        carry: what one update passes to the next: a `TBPTTState`, or ``()`` if every
            batch starts new sequences.
        key: raw key data; each step uses it folded with ``step``.
        loss: the sum of the losses since the last report, in nats.
        tokens: the number of these losses.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.training import TrainState, fresh_state, make_optimizer
        >>> params = {"w": jnp.ones((2, 3))}
        >>> state = fresh_state(make_optimizer(), params, jax.random.key(0))
        >>> isinstance(state, TrainState), int(state.step), state.carry
        (True, 0, ())
        >>> sum(leaf.shape == (2, 3) for leaf in jax.tree.leaves(state.opt_state))
        2
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    carry: Any
    key: Array
    loss: Float[Array, ""]
    tokens: Float[Array, ""]


def make_optimizer(
    *,
    clip: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    rule: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Create Adam, or another optimizer, with clipping by global norm.

    The learning rate is an injected hyperparameter in the state, which a schedule sets.

    Args:
        clip: the largest global norm of the gradient.
        b1, b2: the decay rates of Adam's moments.
        weight_decay: the decoupled weight decay (AdamW).
        rule: what takes Adam's place between the clipping and the learning rate, such
            as ``optax.scale_by_lion()``. It must not contain a learning rate.

    Returns:
        The optax transformation.

    Example::

        >>> import jax.numpy as jnp, optax
        >>> from jaxrnn.training import make_optimizer
        >>> lion = make_optimizer(rule=optax.scale_by_lion())
        >>> opt_state = make_optimizer().init({"w": jnp.zeros(2)})
        >>> float(optax.tree_utils.tree_get(opt_state, "learning_rate"))
        0.0
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1=b1, b2=b2) if rule is None else rule,
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=0.0),
    )


def warmup_cosine(
    peak: float, *, warmup: float = 0.02, final: float = 0.01
) -> Callable[[Array], Array]:
    """Return a schedule with linear warm-up and cosine decay.

    Args:
        peak: the largest rate.
        warmup: the share of the run over which the rate rises from 0 to ``peak``.
        final: the last rate, relative to ``peak``.

    Returns:
        A function of the progress in [0, 1].

    Example:
        >>> from jaxrnn.training import warmup_cosine
        >>> rate = warmup_cosine(0.1, warmup=0.2)
        >>> [round(float(rate(progress)), 4) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.05, 0.1, 0.0505, 0.001]
    """
    return over_progress(
        optax.schedules.warmup_cosine_decay_schedule(
            0.0, peak, int(warmup * RESOLUTION), RESOLUTION, end_value=final * peak
        )
    )


def over_progress(schedule: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return a schedule over the progress in [0, 1].

    Args:
        schedule: a schedule of optax over `RESOLUTION` steps.
    """
    return lambda progress: schedule(jnp.round(progress * RESOLUTION).astype(jnp.int32))


def constant(rate: float) -> Callable[[Array], Array]:
    """Return a schedule that is always the same rate.

    Args:
        rate: the rate.

    Returns:
        A function of the progress in [0, 1].

    Example:
        >>> from jaxrnn.training import constant
        >>> [float(constant(0.25)(progress)) for progress in (0.0, 1.0)]
        [0.25, 0.25]
    """
    return lambda progress: jnp.full(jnp.shape(progress), rate, jnp.result_type(float))


def fresh_state(
    optimizer: optax.GradientTransformation,
    params: Params,
    key: Array,
    carry: Carry = (),
) -> TrainState:
    """Return the state before the first step.

    Args:
        optimizer: the optax transformation.
        params: the initial parameters.
        key: the key of all randomness in training.
        carry: what the first step gets; ``()`` if every batch starts new sequences.

    Returns:
        A `TrainState`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.training import fresh_state, make_optimizer
        >>> params = {"w": jnp.ones(3)}
        >>> state = fresh_state(make_optimizer(), params, jax.random.key(0))
        >>> state.params["w"] is params["w"]  # a step may donate the state's arrays
        False
        >>> int(state.step), float(state.loss), float(state.tokens)
        (0, 0.0, 0.0)
    """
    state = TrainState(
        step=jnp.asarray(0, jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        carry=carry,
        key=jax.random.key_data(key),
        loss=jnp.zeros(()),
        tokens=jnp.zeros(()),
    )
    # The train step donates the buffers of the state, so no two leaves may share one.
    return jax.tree.map(jnp.copy, state)


def start(
    tbptt: TBPTT,
    optimizer: optax.GradientTransformation,
    params: Params,
    example: Window,
    batch_shape: tuple[int, ...],
    key: Array,
) -> TrainState:
    """Return the state before the first window of streams under ``tbptt``.

    Args:
        tbptt: the `TBPTT` of the training step.
        optimizer: the optax transformation.
        params: the initial parameters.
        example: a window of data, of which only the shapes matter.
        batch_shape: B, the shape of the streams.
        key: the key of all randomness in training.

    Returns:
        A `TrainState` as of `fresh_state`, whose carry is the `TBPTTState` before the
        first window.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.training import make_optimizer, start
        >>> def losses(w, h, window):  # h_t = w h_{t-1} + x_t; the loss is h_t
        ...     hs = jax.lax.scan(lambda h, x: (w * h + x,) * 2, h, window.inputs)[1]
        ...     return hs, hs
        >>> tbptt = jaxrnn.TBPTT(losses, lambda w, batch: jnp.zeros(batch), k1=4)
        >>> window, key = jaxrnn.Window(jnp.ones((8, 2)), None), jax.random.key(0)
        >>> state = start(
        ...     tbptt, make_optimizer(), jnp.float32(0.5), window, (2,), key
        ... )
        >>> state.carry.carry.tolist(), state.carry.fresh.tolist()
        ([0.0, 0.0], [True, True])
    """
    return fresh_state(optimizer, params, key, tbptt.init(params, example, batch_shape))


def key_of(state: TrainState) -> Array:
    """Return the key of the next step, which is the same in a resumed run."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)


def set_rate(who: str, opt_state: PyTree, rate: Array) -> Any:
    """Set the injected learning rate in the state of the optimizer."""
    if optax.tree_utils.tree_get(opt_state, "learning_rate") is None:
        raise ValueError(
            f"{who}: the optimizer has no injected hyperparameter learning_rate for "
            f"the schedule to set; use "
            "make_optimizer(), or "
            "optax.inject_hyperparams(optax.adam)(learning_rate=0.0)"
        )
    return optax.tree_utils.tree_set(opt_state, learning_rate=rate)
