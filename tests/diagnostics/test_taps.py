"""Values of all steps by name, against streaming steps; and no trace of them in the
program of an unroll.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import B, D, T, assert_same, draw

import jaxrnn
from jaxrnn import GRU, Elman, layers
from jaxrnn.core.cell import Gate
from jaxrnn.core.taps import taps_into
from jaxrnn.diagnostics import gate_statistics, gate_values, tapped
from jaxrnn.extending import ContextCell, tap

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Tapped(Elman):
    """An Elman network that names values in all its methods."""

    def project(self, params, x):
        return tap(super().project(params, x), "z")

    def step(self, params, carry, z):
        pre = tap(carry @ params["recurrent_kernel"], "pre") + z
        tap({"norm": jnp.square(carry).sum(-1)}, "square")
        return jnp.tanh(pre + params["bias"].reshape((1,) * (pre.ndim - 1) + (-1,)))

    def output(self, params, carry, x):
        return tap(2 * carry, "y")


@dataclasses.dataclass(frozen=True)
class Plain(Elman):
    """The same without names."""

    def step(self, params, carry, z):
        pre = carry @ params["recurrent_kernel"] + z
        return jnp.tanh(pre + params["bias"].reshape((1,) * (pre.ndim - 1) + (-1,)))

    def output(self, params, carry, x):
        return 2 * carry


def by_steps(cell, params, xs, carry, mask, resets, reverse):
    """What one streaming step after the other names, by hand."""
    steps = [{} for _ in range(T)]
    for t in reversed(range(T)) if reverse else range(T):
        carry = jnp.where(resets[t][:, None], 0, carry)
        with taps_into(steps[t]):
            new, _ = cell(params, carry, xs[t])
        carry = jnp.where(mask[t][:, None], new, carry)
        steps[t] = jax.tree.map(
            lambda a, t=t: jnp.where(mask[t].reshape(-1, *[1] * (a.ndim - 1)), a, 0),
            steps[t],
        )
    return jax.tree.map(lambda *values: jnp.stack(values), *steps)


@pytest.mark.parametrize("reverse", [False, True])
def test_values_are_those_of_single_steps(reverse, x64):
    cell = Tapped(4)
    inputs = draw(cell, 0)
    flags = {"mask": inputs.mask, "resets": inputs.resets, "reverse": reverse}
    hidden = jnp.where(inputs.mask[..., None], inputs.xs, jnp.nan)
    found = tapped(cell, inputs.params, hidden, inputs.carry, **flags)
    right = by_steps(cell, *inputs[:3], inputs.mask, inputs.resets, reverse)
    assert set(right) == {"z", "pre", "square", "y"}
    assert_same(found, right)


def test_every_cell_of_a_layer_is_seen(x64):
    """Two directions over a lower layer, a residual and a layer of one's own."""

    @dataclasses.dataclass(frozen=True)
    class Own(jaxrnn.Layer):
        cell: jaxrnn.Cell

        def init(self, key, input_size, dtype=None):
            return [self.cell.init(key, input_size)]

        def initial_carry(self, params, batch_shape=(), dtype=None):
            return self.cell.initial_carry(params[0], batch_shape, dtype)

        def unroll(self, params, carry, xs, spec):
            return jaxrnn.extending.unroll_part(self.cell, params[0], carry, xs, spec)

    layer = jaxrnn.stack(
        jaxrnn.residual(Tapped(D)),
        jaxrnn.bidirectional(Tapped(2)),
        layers.share(Own(layers.tied("core", Tapped(3)))),
        jaxrnn.zoneout(Tapped(2), 0.5),
    )
    inputs = draw(jaxrnn.inference(layer), 0)
    flags = {"mask": inputs.mask, "resets": inputs.resets}
    found = tapped(layer, *inputs[:3], **flags, key=KEY)
    places = [
        "layer_0",
        "layer_1/forward",
        "layer_1/backward",
        "layer_2/shared/core",
        "layer_3",
    ]
    names = {
        f"{place}/{name}" for place in places for name in ("z", "pre", "square", "y")
    }
    assert set(found) == names

    below = jaxrnn.residual(Tapped(D))
    _, xs = jaxrnn.unroll(
        below, inputs.params["layer_0"], inputs.xs, inputs.carry[0], **flags
    )
    pair, carry = inputs.params["layer_1"], inputs.carry[1]
    backwards = np.concatenate([inputs.resets[1:], np.zeros((1, B), bool)])
    for name, resets in (("forward", inputs.resets), ("backward", backwards)):
        alone = by_steps(
            Tapped(2),
            pair[name],
            xs,
            getattr(carry, name),
            inputs.mask,
            resets,
            name == "backward",
        )
        assert_same(found[f"layer_1/{name}/pre"], alone["pre"])


def test_shared_parameters_are_seen_at_every_place():
    core = layers.tied("core", Tapped(D))
    layer = layers.share(jaxrnn.stack(core, core))
    found = tapped(layer, layer.init(KEY, D), jnp.ones((T, B, D)))
    assert {"shared/core/pre", "shared/core/pre#2"} < set(found)
    assert found["shared/core/pre"].shape == (T, B, D)
    assert (found["shared/core/z"] != found["shared/core/z#2"]).any()


def test_a_tap_leaves_no_trace():
    inputs = draw(Plain(4), 0)

    def programs(cell):
        layer = jaxrnn.stack(cell, GRU(2))
        params = {"layer_0": inputs.params, "layer_1": GRU(2).init(KEY, 4)}

        def loss(params, xs):
            return jaxrnn.unroll(layer, params, xs, mask=inputs.mask)[1].sum()

        return str(jax.make_jaxpr(jax.value_and_grad(loss))(params, inputs.xs))

    before = programs(Tapped(4))
    assert before == programs(Plain(4))
    tapped(Tapped(4), inputs.params, inputs.xs)
    assert programs(Tapped(4)) == before


def test_bad_taps_are_refused_in_words(plain_errors):
    @dataclasses.dataclass(frozen=True)
    class Twice(Elman):
        def step(self, params, carry, z):
            return tap(tap(carry, "h"), "h")

    @dataclasses.dataclass(frozen=True)
    class Inside(Elman):
        def step(self, params, carry, z):
            return jax.jit(lambda h: tap(h, "h") + 1)(carry)

    xs = jnp.ones((T, B, D))
    for cell, message in (
        (Twice(4), "two values of one cell are named 'h'"),
        (Inside(4), "inside a loop, a branch or a compiled function"),
    ):
        params = cell.init(KEY, D)
        jaxrnn.unroll(cell, params, xs)
        with pytest.raises(ValueError, match=message):
            tapped(cell, params, xs)
    assert tapped(GRU(2), GRU(2).init(KEY, D), xs) == {}


# -- gates -----------------------------------------------------------------------------


def test_gates_of_all_steps_have_the_means_of_the_statistics(x64):
    layer = jaxrnn.stack(
        layers.concat(jaxrnn.residual(Elman(D))),
        layers.layer_norm(),
        jaxrnn.inference(jaxrnn.zoneout(GRU(2), 0.5)),
    )
    inputs = draw(layer, 0)
    flags = {"mask": inputs.mask, "resets": inputs.resets}
    values = gate_values(layer, *inputs[:3], **flags)
    statistics = gate_statistics(layer, *inputs[:3], **flags)
    assert {name.rpartition("/")[0] for name in values} == set(statistics)
    for name, value in values.items():
        place, _, gate = name.rpartition("/")
        mean = value.sum((0, 1)) / float(inputs.mask.sum())
        assert_same(mean, statistics[place][gate].mean)
        assert not value[~inputs.mask].any()


def test_gates_of_both_directions(x64):
    layer = jaxrnn.bidirectional(GRU(4))
    inputs = draw(layer, 0)
    values = gate_values(layer, *inputs[:3])
    assert set(values) == {f"{w}/{g}" for w in ("forward", "backward") for g in "rzn"}
    backwards = gate_values(
        GRU(4), inputs.params["backward"], inputs.xs[::-1], inputs.carry.backward
    )
    assert_same(values["backward/z"], backwards["z"][::-1])


def test_gates_of_a_cell_that_has_none_are_refused(plain_errors):
    @dataclasses.dataclass(frozen=True)
    class Bare(jaxrnn.Cell):
        hidden_size: int = D

        def step(self, params, carry, z):
            return carry + z

    with pytest.raises(NotImplementedError, match="no cell of Bare reports its gates"):
        gate_values(Bare(), {}, jnp.ones((T, B, D)))
    noisy = jaxrnn.zoneout(GRU(2), 0.5)
    with pytest.raises(ValueError, match="needs key"):
        gate_values(noisy, noisy.init(KEY, D), jnp.ones((T, B, D)))


@dataclasses.dataclass(frozen=True)
class Conditioned(jaxrnn.Cell):
    """A cell whose gate depends on the context, and that reports it."""

    hidden_size: int
    takes_context = True

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

    def project(self, params, x, context):
        return x @ params["kernel"]

    def step(self, params, carry, z, context):
        keep = tap(jax.nn.sigmoid(z + context), "keep")
        return keep * carry + (1 - keep) * z

    def gate_values(self, params, carry, z, context):
        shape = (1,) * (z.ndim - context.ndim) + context.shape
        return {"keep": Gate(jax.nn.sigmoid(z + context.reshape(shape)), keeps=True)}


def test_gates_may_read_the_context(x64):
    cell = Conditioned(4)
    xs, context = (
        jax.random.normal(KEY, shape, jnp.float64) for shape in ((T, B, D), (B, 4))
    )
    layer = jaxrnn.stack(cell, jaxrnn.inference(jaxrnn.zoneout(cell, 0.5)))
    params = layer.init(KEY, D)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    gates = gate_values(layer, params, xs, context=context)
    assert_same(gates, tapped(layer, params, xs, context=context))
    kernel = params["layer_0"]["kernel"]
    assert_same(gates["layer_0/keep"], jax.nn.sigmoid(xs @ kernel + context[None]))
    statistics = gate_statistics(ContextCell(cell), (params["layer_0"], context), xs)
    assert_same(statistics["keep"].mean, gates["layer_0/keep"].mean((0, 1)))
