"""Equal cells compile once: counted with a cell whose step has a side effect in
Python.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

TRACES = []
XS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 3)), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Counting(jaxrnn.Cell):
    """Notes every time that its step is traced."""

    hidden_size: int
    label: str  # a test's own, so that no other test has compiled it

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

    def step(self, params, carry, z):
        TRACES.append(self.label)
        return jnp.tanh(carry + z @ params["kernel"])


def traces(function, *args):
    """How many times a call traces the step."""
    before = len(TRACES)
    jax.block_until_ready(function(*args))
    return len(TRACES) - before


def params_of(label):
    return Counting(4, label).init(jax.random.key(0), 3)


def test_rebuilt_cells_compile_once_when_called_eagerly():
    params = params_of("eager")
    counts = [
        traces(lambda: jaxrnn.unroll(Counting(4, "eager"), params, XS))
        for _ in range(5)
    ]
    assert counts[0] > 0
    assert counts[1:] == [0] * 4
    # another shape
    assert traces(lambda: jaxrnn.unroll(Counting(4, "eager"), params, XS[:4])) > 0
    # another cell
    assert traces(lambda: jaxrnn.unroll(Counting(4, "eager!"), params, XS)) > 0


def test_rebuilt_cells_are_traced_once_inside_jit():
    params = params_of("jit")

    @jax.jit
    def once(params, xs):
        return jaxrnn.unroll(Counting(4, "jit"), params, xs)[1]

    @jax.jit
    def five_times(params, xs):
        return sum(
            jaxrnn.unroll(Counting(4, "jit five"), params, xs)[1] for _ in range(5)
        )

    single = traces(once, params, XS)
    assert traces(five_times, params, XS) == single > 0
    assert traces(once, params, XS) == traces(five_times, params, XS) == 0


def test_a_cell_may_be_a_static_argument():
    params = params_of("static")
    unroll = jax.jit(jaxrnn.unroll, static_argnums=0)
    counts = [traces(unroll, Counting(4, "static"), params, XS) for _ in range(3)]
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_wrapped_in_layers_and_with_options_too():
    params = params_of("layers")

    def layered():
        cell = Counting(4, "layers")
        layer = jaxrnn.stack(
            jaxrnn.zoneout(cell, 0.1), jaxrnn.bidirectional(jaxrnn.GRU(2))
        )
        layers = {
            "layer_0": params,
            "layer_1": layer.layers[1].init(jax.random.key(0), 4),
        }
        how = {
            "engine": jaxrnn.Scan(unroll=2),
            "reverse": True,
            "key": jax.random.key(1),
        }
        return jaxrnn.truncated_unroll(layer, layers, XS, window=2, **how)[1]

    counts = [traces(layered) for _ in range(3)]
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_a_streaming_step_of_a_layer_compiles_once():
    layer, params = (
        jaxrnn.stack(Counting(4, "streaming")),
        {"layer_0": params_of("streaming")},
    )
    carry = layer.initial_carry(params)
    counts = [traces(lambda: layer(params, carry, XS[0, 0])) for _ in range(3)]
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


@pytest.mark.parametrize(("k1", "k2"), [(2, 2), (2, 5)])
def test_tbptt_traces_one_window_however_many_there_are(k1, k2):
    label = f"tbptt {k1} {k2}"
    cell, params = Counting(4, label), params_of(label)

    def losses(params, carry, window):
        how = {"mask": window.mask, "resets": window.resets, "return_carries": True}
        _, ys, carries = jaxrnn.unroll(cell, params, window.inputs, carry, **how)
        return jnp.square(ys - window.targets).mean(-1), carries

    tbptt = jaxrnn.TBPTT(losses, cell.initial_carry, k1, k2)

    def run(steps):
        window = jaxrnn.Window(jnp.ones((steps, 3)), jnp.ones((steps, 4)))
        return jax.jit(
            lambda p: tbptt.value_and_grad(p, window, tbptt.init(p, window))[:2]
        )(params)

    first = traces(run, 4)
    assert first > 0
    # More windows, and a ragged last one, reuse the trace of the first: the shape of a
    # window is the same.
    assert traces(run, 40) <= first
    assert traces(run, 41) <= first


def test_truncated_unroll_traces_one_window():
    label = "windows"
    params = params_of(label)

    def run(steps):
        return jaxrnn.truncated_unroll(
            Counting(4, label), params, jnp.ones((steps, 3)), window=2
        )

    first = traces(run, 4)
    assert first > 0
    assert traces(run, 40) <= first
    assert traces(run, 40) == 0
