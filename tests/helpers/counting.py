"""An experiment that trains nothing: its parameter counts the updates."""

import jax
import jax.numpy as jnp
import optax

from jaxrnn.training import Experiment, constant, fresh_state, make_batch_step


def counting_step():
    """The optimizer, and the compiled step that adds 1 to the parameter ``w``."""
    optimizer = optax.chain(
        optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=0.0)
    )
    step = make_batch_step(
        lambda params, batch, key: (-params["w"], jnp.asarray(1)),
        optimizer,
        constant(1.0),
    )
    return optimizer, step


def counting_experiment(optimizer, step, **changes):
    """An experiment of that step, with some of its parts replaced."""

    def start():
        return fresh_state(optimizer, {"w": jnp.zeros(())}, jax.random.key(0))

    parts = {
        "start": start,
        "advance": lambda state, progress: step(state, None, progress),
        "describe": lambda loss: {"loss": loss},
        "evaluate": lambda state: {"score": float(state.params["w"])},
        "sample": lambda state: None,
        "learning_rate": constant(1.0),
    }
    return Experiment(**parts | changes)
