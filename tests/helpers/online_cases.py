"""What online gradients are tried on: a layer with a readout, a sequence with holes in
its flags, and the gradient of every prefix by a loop over streaming steps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from reference import choose, compiled
from subjects import SUBJECTS, draw, normal

import jaxrnn
from jaxrnn import Window

STEPS, B = 7, 2


@functools.cache
def model_of(layer):
    """A layer with a readout, whose parameters no carry depends on."""

    def losses(params, carry, window):
        flags = {"mask": window.mask, "resets": window.resets}
        flags |= {"key": window.key} if layer.requires_key else {}
        _, ys, carries = jaxrnn.unroll(
            layer, params["rnn"], window.inputs, carry, return_carries=True, **flags
        )
        outputs = jnp.sin(ys @ params["readout"])
        return jnp.square(outputs - window.targets).sum(-1), carries

    return losses, lambda params, batch: layer.initial_carry(params["rnn"], batch)


@functools.cache
def case(name, flagged=True, batch=(B,)):
    """Random parameters, a sequence with holes in its flags, and its model."""
    layer, rng = SUBJECTS[name], np.random.default_rng(3)
    inputs = draw(name, 0, steps=STEPS, batch=batch)
    width = inputs.cotangents[1].shape[-1]
    params = {
        "rnn": inputs.params,
        "readout": normal(rng, np.zeros((width, 2))),
    }
    mask = rng.random((STEPS, *batch)) < 0.75
    resets = rng.random((STEPS, *batch)) < 0.25
    mask[2], mask[3], resets[4] = False, True, True
    targets = normal(rng, np.zeros((STEPS, *batch, 2)))
    flags = (jnp.asarray(mask), jnp.asarray(resets)) if flagged else (None, None)
    return params, Window(inputs.xs, targets, *flags), model_of(layer)


def part(window, a, b):
    return jax.tree.map(lambda x: x[a:b], window)


def looped(name, flagged=True, batch=(B,)):
    """The gradient of every prefix's summed loss, by a loop over streaming steps."""
    params, window, _ = case(name, flagged, batch)
    layer = SUBJECTS[name]
    mask = np.ones((STEPS, *batch), bool) if window.mask is None else window.mask
    resets = np.zeros((STEPS, *batch), bool)
    resets = resets if window.resets is None else window.resets

    def by_step(params):
        def step(carry, now):
            x, target, keep, reset = now
            new, y = layer(params["rnn"], carry, x, reset=reset)
            old = layer.initial_carry(params["rnn"], batch)
            new = choose(keep, new, choose(reset, old, carry))
            loss = jnp.square(jnp.sin(y @ params["readout"]) - target).sum(-1)
            return new, jnp.where(keep, loss, 0).sum()

        first = layer.initial_carry(params["rnn"], batch)
        rows = (window.inputs, window.targets, jnp.asarray(mask), jnp.asarray(resets))
        return jnp.cumsum(jax.lax.scan(step, first, rows)[1])

    return compiled(jax.jacrev(by_step))(params)


def scaled(gradient, window):
    """A gradient of the mean as that of the sum."""
    valid = window.targets.shape[0] * np.prod(window.targets.shape[1:-1])
    valid = valid if window.mask is None else max(window.mask.sum(), 1)
    return jax.tree.map(lambda g: g * float(valid), gradient)
