"""Every engine is `Scan`, for values and gradients, at lengths that divide nothing; and keeps the memory it promises."""

import jax
import jax.numpy as jnp
import pytest
from reference import compiled
from subjects import SUBJECTS, assert_same, assert_same_outcome, compiled_outcome, draw

import jaxrnn
from jaxrnn import Checkpoint, Scan

ENGINES = [Scan(hoist=False), Scan(unroll=3), Checkpoint(), Checkpoint(3), Checkpoint(100)]


def walked(layer, engine, reverse, window=None):
    """`outcome` of an unroll with an engine, compiled."""
    how = {"engine": engine, "reverse": reverse, "return_carries": True}

    def walk(params, xs, carry, mask, resets):
        if window is None:
            return jaxrnn.unroll(layer, params, xs, carry, mask=mask, resets=resets, **how)
        return jaxrnn.truncated_unroll(layer, params, xs, carry, window=window, mask=mask, resets=resets, **how)

    return compiled_outcome(walk)


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("name", ["elman", "lstm_all_learned", "user", "bidirectional"])
def test_engines_agree_with_scan(name, steps, x64):
    layer, inputs, reverse = SUBJECTS[name], draw(name, steps, steps), steps == 7
    expected = walked(layer, Scan(), reverse)(*inputs)
    for engine in ENGINES if steps > 1 else [Checkpoint()]:
        assert_same_outcome(walked(layer, engine, reverse)(*inputs), expected)
    truncated = walked(layer, Scan(), reverse, 4)(*inputs)
    assert_same_outcome(walked(layer, Checkpoint(3), reverse, 4)(*inputs), truncated)


def test_checkpoint_has_second_derivatives_and_forward_mode(x64):
    cell = jaxrnn.LSTM(3)
    params = cell.init(jax.random.key(0), 2)
    xs, direction = jax.random.normal(jax.random.key(1), (2, 9, 2))

    def loss(engine):
        return lambda x: jnp.sum(jnp.sin(jaxrnn.unroll(cell, params, x, engine=engine)[1]))

    for derivative in (
        lambda f: jax.jvp(f, (xs,), (direction,)),
        lambda f: jax.jvp(jax.grad(f), (xs,), (direction,)),
        lambda f: jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), direction))(xs),
    ):
        assert_same(*(compiled(lambda f=loss(engine), d=derivative: d(f))() for engine in (Checkpoint(2), Scan())))


def temporaries(engine, steps):
    """Bytes of temporaries of a gradient, in T*B*H floats."""
    cell = jaxrnn.LSTM(32)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 32))
    xs = jax.ShapeDtypeStruct((steps, 8, 32), jnp.float32)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(jaxrnn.unroll(cell, p, x, engine=engine)[1] ** 2), argnums=(0, 1)))
    memory = gradient.lower(params, xs).compile().memory_analysis()
    return memory.temp_size_in_bytes / (4 * steps * 8 * 32)


def test_checkpoint_needs_a_fraction_of_the_memory():
    assert temporaries(Checkpoint(), 1024) < 2.5 < 10 < temporaries(Scan(), 1024)


@pytest.mark.parametrize("segment", [0, -3, 2.0, True])
def test_a_segment_that_is_no_length_is_refused(segment, plain_errors):
    with pytest.raises(ValueError, match="Checkpoint: segment must be an int of at least 1"):
        Checkpoint(segment)
