"""Padding may hold anything, for every cell that is finite at valid inputs: values and
gradients are those of the sequences without it, by a loop in Python over the kept steps
alone.
"""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import compiled
from subjects import assert_same

import jaxrnn
from jaxrnn import Associative, Checkpoint, Scan, diagnostics
from jaxrnn.core.masked_inputs import fill_masked_inputs
from jaxrnn.nnx import RNN

T, B, D, H = 5, 4, 3, 4
PADDINGS = (0.0, 1.0, np.nan, np.inf)
ENGINES = {
    "default": None,
    "scan": Scan(),
    "windows": Scan(chunk=3),
    "all": Scan(save="everything"),
    "carries": Scan(save="carries"),
    "checkpoint": Checkpoint(2),
}


@dataclasses.dataclass(frozen=True)
class InStep(jaxrnn.Cell):
    """Its step has a logarithm and a reciprocal of the inputs, which must lie
    between 0 and 1.
    """

    hidden_size: int = H

    def init(self, key, input_size):
        k_input, k_recurrent = jax.random.split(key)
        return {
            "W": 0.5 * jax.random.normal(k_input, (input_size, self.hidden_size)),
            "U": 0.5
            * jax.random.normal(k_recurrent, (self.hidden_size, self.hidden_size)),
        }

    def seen(self, x):
        return jnp.log(x) + 1 / (1 - x)

    def step(self, params, carry, z):
        return jnp.tanh(self.seen(z) @ params["W"] + carry @ params["U"])


class InProject(InStep):
    """The same before the loop, with a root and a norm."""

    def seen(self, x):
        return jnp.sqrt(x) / jnp.sqrt(
            jnp.sum(jnp.square(x), -1, keepdims=True)
        ) + jnp.log1p(-x)

    def project(self, params, x):
        return self.seen(x) @ params["W"]

    def step(self, params, carry, z):
        return jnp.tanh(z + carry @ params["U"])


class InOutput(InStep):
    """In its output; what it shows lies between 0 and 1 where its inputs do, so that
    it can stand on itself.
    """

    def step(self, params, carry, z):
        return jnp.tanh(z @ params["W"] + carry @ params["U"])

    def output(self, params, carry, x):
        return jax.nn.sigmoid(carry + (self.seen(x) @ params["W"]) / 8)


@dataclasses.dataclass(frozen=True)
class Linear(jaxrnn.LinearCell):
    """In the factors of a linear cell."""

    hidden_size: int = H

    init = InStep.init

    def affine(self, params, z):
        drive = jnp.log(z) @ params["W"]
        return jax.nn.sigmoid(jnp.log1p(-z) @ params["W"]), drive


CELLS = {
    "step": InStep(),
    "project": InProject(),
    "output": InOutput(),
    "linear": Linear(),
}
LAYERS = {
    "stack": jaxrnn.stack(InOutput(), InStep()),
    "residual": jaxrnn.residual(InOutput(D)),
}


@functools.cache
def drawn(subject):
    """Parameters, valid inputs, weights of the loss, and flags: a full row, one padded
    at its end, one with holes, an empty one; a reset at a kept step and one at a masked
    step.
    """
    random = np.random.default_rng(0)
    xs = jnp.asarray(random.uniform(0.2, 0.8, (T, B, D)))
    params = subject.init(jax.random.key(0), D)
    shapes = jax.eval_shape(lambda p, x: jaxrnn.unroll(subject, p, x), params, xs)
    weights = jax.tree.map(
        lambda a: jnp.asarray(random.normal(size=a.shape), a.dtype), shapes
    )
    mask = np.arange(T)[:, None] < np.array([T, 3, 0, 0])
    mask[:, 3] = [False, True, False, True, False]
    mask = mask[:, [0, 1, 3, 2]]
    resets = np.zeros((T, B), bool)
    resets[2, 0] = resets[2, 2] = resets[1, 3] = True
    return params, xs, weights, jnp.array(mask), jnp.asarray(resets)


def loss_of(unrolling, weights):
    def loss(params, xs):
        last, ys = unrolling(params, xs)[:2]
        total = jax.tree.map(lambda w, a: jnp.sum(w * a), weights, (last, ys))
        return sum(jax.tree.leaves(total)), (last, ys)

    return compiled(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def alone(subject, mask, resets, reverse=False):
    """The kept steps of each row by a loop in Python, nothing else being looked at."""
    mask, resets = np.asarray(mask), np.asarray(resets)

    def unrolling(params, xs):
        rows = []
        for b in range(B):
            carry, ys = subject.initial_carry(params), [None] * T
            shape = jax.eval_shape(
                lambda p, c, x: subject(p, c, x)[1], params, carry, xs[0, 0]
            )
            for t in reversed(range(T)) if reverse else range(T):
                carry = subject.initial_carry(params) if resets[t, b] else carry
                ys[t] = jnp.zeros(shape.shape, shape.dtype)
                if mask[t, b]:
                    carry, ys[t] = subject(params, carry, xs[t, b])
            rows.append((carry, jnp.stack(ys)))
        carries, ys = zip(*rows)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *carries), jnp.stack(
            ys, 1
        )

    return unrolling


@functools.cache
def expected(name, reverse):
    subject = (CELLS | LAYERS)[name]
    params, xs, weights, mask, resets = drawn(subject)
    return loss_of(alone(subject, mask, resets, reverse), weights)(params, xs)


def assert_as_without_padding(unrolling, subject, right):
    params, xs, weights, mask, _ = drawn(subject)
    gradient = loss_of(unrolling, weights)
    for padding in PADDINGS:
        assert_same(gradient(params, jnp.where(mask[..., None], xs, padding)), right)


ROWS = [("step", engine, False) for engine in ENGINES] + [
    ("step", "default", True),
    ("output", "default", True),
]
ROWS += [
    (name, engine, False)
    for name in ("project", "output", "linear")
    for engine in ("default", "all")
]


@pytest.mark.parametrize(("name", "engine", "reverse"), ROWS)
def test_padding_is_as_none(name, engine, reverse, x64):
    subject = CELLS[name]
    flags = dict(zip(("mask", "resets"), drawn(subject)[3:], strict=True))

    def unrolling(params, xs):
        return jaxrnn.unroll(
            subject, params, xs, engine=ENGINES[engine], reverse=reverse, **flags
        )

    assert_as_without_padding(unrolling, subject, expected(name, reverse))


@pytest.mark.parametrize("engine", [Associative(), Associative(2)])
def test_padding_is_as_none_for_prefixes(engine, x64):
    _, _, _, mask, resets = drawn(CELLS["linear"])

    def unrolling(params, xs):
        return jaxrnn.unroll(
            CELLS["linear"], params, xs, engine=engine, mask=mask, resets=resets
        )

    assert_as_without_padding(unrolling, CELLS["linear"], expected("linear", False))


def test_padding_is_as_none_in_a_stack(x64):
    """The second cell's masked inputs are the zeros that the first one puts out
    there.
    """
    name, subject = "stack", LAYERS["stack"]
    _, _, _, mask, resets = drawn(subject)

    def unrolling(params, xs):
        return jaxrnn.unroll(subject, params, xs, mask=mask, resets=resets)

    assert_as_without_padding(unrolling, subject, expected(name, False))


def padded_alike(function, params, xs, mask):
    """The same, whatever the padding, as with valid inputs there."""
    right = function(params, xs)
    assert all(
        np.isfinite(leaf).all()
        for leaf in jax.tree.leaves(right)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    )
    for padding in PADDINGS:
        assert_same(function(params, jnp.where(mask[..., None], xs, padding)), right)


def gradient_of(unrolling):
    def loss(params, xs):
        return sum(
            jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(unrolling(params, xs))
        )

    return compiled(jax.value_and_grad(loss, argnums=(0, 1)))


OTHER_DOORS = {
    "truncated by window": lambda cell, p, x, m: jaxrnn.truncated_unroll(
        cell, p, x, mask=m, window=4
    ),
    "truncated by scale": lambda cell, p, x, m: jaxrnn.truncated_unroll(
        cell, p, x, mask=m, gradient_scale=jnp.full(m.shape, 0.5)
    ),
    "carries": lambda cell, p, x, m: jaxrnn.unroll(
        cell, p, x, mask=m, return_carries=True
    ),
    "over batch": lambda cell, p, x, m: jax.vmap(
        lambda x, m: jaxrnn.unroll(cell, p, x, mask=m), (1, 1), (0, 1)
    )(x, m),
}


@pytest.mark.parametrize(
    ("name", "door"),
    [
        *(("stack", door) for door in OTHER_DOORS),
        *((name, "carries") for name in LAYERS),
    ],
)
def test_padding_by_other_doors(name, door, x64):
    subject = (CELLS | LAYERS)[name]
    params, xs, _, mask, _ = drawn(subject)
    padded_alike(
        gradient_of(lambda p, x: OTHER_DOORS[door](subject, p, x, mask)),
        params,
        xs,
        mask,
    )


def test_padding_both_ways(x64):
    layer = jaxrnn.stack(
        jaxrnn.bidirectional(InOutput(), InProject()), jaxrnn.bidirectional(InOutput(2))
    )
    layer = dataclasses.replace(
        layer,
        layers=(
            dataclasses.replace(layer.layers[0], backward=InOutput()),
            layer.layers[1],
        ),
    )
    params, xs, _, mask, _ = drawn(layer)
    padded_alike(
        gradient_of(lambda p, x: jaxrnn.unroll(layer, p, x, mask=mask)),
        params,
        xs,
        mask,
    )


def test_padding_with_noise(x64):
    """The draws of zoneout are inputs of its cell, too, and no floats."""
    layer = jaxrnn.stack(InOutput(), jaxrnn.zoneout(InStep(), 0.3))
    params, xs, _, mask, _ = drawn(jaxrnn.inference(layer))
    flags = {"mask": mask, "key": jax.random.key(1)}
    padded_alike(
        gradient_of(lambda p, x: jaxrnn.unroll(layer, p, x, **flags)), params, xs, mask
    )


def test_padding_in_nnx(x64):
    _, xs, _, mask, _ = drawn(InStep())
    rnn = RNN(InStep(), D, rngs=nnx.Rngs(0))
    graph, state = nnx.split(rnn)

    def unrolling(state, xs):
        return nnx.merge(graph, state)(
            jnp.swapaxes(xs, 0, 1), mask=mask.T, return_carry=True
        )

    padded_alike(gradient_of(unrolling), state, xs, mask)


def test_padding_under_diagnostics(x64):
    params, xs, _, mask, _ = drawn(InStep())

    def lags(params, xs):
        found = diagnostics.gradient_lags(InStep(), params, xs, jnp.sum, mask=mask)
        terms = diagnostics.parameter_lags(
            InStep(), params, xs, jnp.sum, mask=mask, terms=True
        ).terms
        return (
            jnp.exp(found.log_norm[:, :3][:2]),
            terms,
            diagnostics.jacobians(InStep(), params, xs, mask=mask),
        )

    padded_alike(lags, params, xs, mask)


@dataclasses.dataclass(frozen=True)
class Logarithm(jaxrnn.Layer):
    """A layer of a user's own that computes with its inputs."""

    cell: jaxrnn.Cell = InProject()

    def init(self, key, input_size, dtype=None):
        return self.cell.init(key, input_size)

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return self.cell.initial_carry(params, batch_shape, dtype)

    def unroll(self, params, carry, xs, spec):
        flags = {"mask": spec.mask, "resets": spec.resets, "reverse": spec.reverse}
        return jaxrnn.unroll(
            self.cell,
            params,
            jax.nn.sigmoid(jnp.log(xs)),
            carry,
            return_carries=True,
            **flags,
        )


def test_padding_in_a_layer_of_ones_own(x64):
    params, xs, _, mask, _ = drawn(Logarithm())
    padded_alike(
        gradient_of(lambda p, x: jaxrnn.unroll(Logarithm(), p, x, mask=mask)),
        params,
        xs,
        mask,
    )


@pytest.mark.parametrize("name", [*CELLS, "stack"])
def test_a_batch_without_a_valid_step(name, x64):
    """Values are the held carry, gradients zero: a half stands where the inputs
    would.
    """
    subject = (CELLS | LAYERS)[name]
    params, xs, _, mask, _ = drawn(subject)
    never = jnp.zeros_like(mask)
    last, ys = jaxrnn.unroll(subject, params, jnp.full_like(xs, jnp.nan), mask=never)
    assert_same(last, subject.initial_carry(params, (B,)), 0)
    assert not np.asarray(ys).any()
    _, gradients = gradient_of(lambda p, x: jaxrnn.unroll(subject, p, x, mask=never))(
        params, xs * 0
    )
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_what_is_filled_in(shape):
    """A row's first valid input, else the first row's that has one, else a half or
    0.
    """
    random = np.random.default_rng(1)
    xs, numbers = (
        random.normal(size=(T, *shape, D)).astype("float32"),
        random.integers(1, 9, (T, *shape)).astype("int32"),
    )
    for share in (0.5, 0.15, 0.0):
        mask = random.random((T, *shape)) < share
        kept = [np.flatnonzero(mask[(slice(None), *row)]) for row in np.ndindex(shape)]
        rows = list(np.ndindex(shape))
        lender = next((i for i, steps in enumerate(kept) if len(steps)), None)
        filled = fill_masked_inputs(
            (jnp.asarray(xs), jnp.asarray(numbers)), jnp.asarray(mask)
        )
        for i, row in enumerate(rows):
            at = i if len(kept[i]) else lender
            for leaf, got, empty in zip((xs, numbers), filled, (0.5, 0), strict=True):
                want = empty if at is None else leaf[(kept[at][0], *rows[at])]
                for t in range(T):
                    np.testing.assert_array_equal(
                        got[(t, *row)], leaf[(t, *row)] if mask[(t, *row)] else want
                    )


def shapes_in(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for inner in jax.tree.leaves(
            list(eqn.params.values()),
            is_leaf=lambda a: hasattr(a, "eqns") or hasattr(a, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


def test_a_mapped_axis_is_one_of_the_batch(x64):
    """The empty row is lent a valid input over the mapped axis, and no example gets
    a weight gradient of its own.
    """
    subject, size = InStep(), 7
    params, xs, _, mask, _ = drawn(subject)
    params, padded = {**params, "U": params["U"]}, jnp.where(mask[..., None], xs, 0)

    def loss(params, xs):
        one = jax.vmap(
            lambda x, m: jaxrnn.unroll(subject, params, x, mask=m), (1, 1), (0, 1)
        )
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in one(xs, mask))

    direct = gradient_of(lambda p, x: jaxrnn.unroll(subject, p, x, mask=mask))(
        params, padded
    )
    assert_same(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, padded), direct)
    wide = InStep(size)
    made = jax.make_jaxpr(jax.grad(lambda p, x: loss_mapped(wide, p, x, mask)))(
        wide.init(jax.random.key(0), D), padded
    )
    assert not {(B, D, size), (B, size, size), (T, B, size, size)} & set(
        shapes_in(made.jaxpr)
    )


def loss_mapped(cell, params, xs, mask):
    ys = jax.vmap(lambda x, m: jaxrnn.unroll(cell, params, x, mask=m)[1], (1, 1), 1)(
        xs, mask
    )
    return jnp.sum(jnp.sin(ys))


SHARDED = """
import re
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxrnn.core.masked_inputs import fill_masked_inputs
mesh = Mesh(jax.devices(), ("data",))
rows = NamedSharding(mesh, PartitionSpec(None, "data"))
xs = jax.device_put(jnp.ones((64, 16, 32)), rows)
mask = jax.device_put(jnp.ones((64, 16), bool), rows)
text = jax.jit(fill_masked_inputs).lower(xs, mask).compile().as_text()
print(len(jax.devices()), re.findall(r"all-gather|all-to-all|collective-permute", text))
print(sorted(set(re.findall(r"= (\\S+) all-reduce", text))))
"""


def test_a_sharded_batch_is_not_gathered():
    """The rows' own inputs are local; what they lend each other is a number and one
    input.
    """
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ".",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=flags,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == "4 []"
    assert all(size in second for size in ("s32[", "32]"))
    assert not any(size in second for size in ("64,", "16,"))


def test_a_learned_state_for_each_row_goes_with_a_mask(x64):
    """`initial_carry` makes no carry of another batch than its parameters': nobody
    asks the user for one.
    """

    @dataclasses.dataclass(frozen=True)
    class Rows(jaxrnn.Cell):
        hidden_size: int = 3

        def initial_carry(self, params, batch_shape=(), dtype=None):
            return jnp.broadcast_to(params["h0"], (*batch_shape, self.hidden_size))

        def step(self, p, h, x):
            return jnp.tanh(x + h @ p["U"])

    random = np.random.default_rng(0)
    params = {
        "h0": jnp.asarray(random.normal(size=(2, 3))),
        "U": jnp.asarray(random.normal(size=(3, 3))),
    }
    xs = jnp.asarray(random.normal(size=(5, 2, 3)))
    expected = jaxrnn.unroll(Rows(), params, xs)[1]
    np.testing.assert_array_equal(
        jaxrnn.unroll(Rows(), params, xs, mask=jnp.ones((5, 2), bool))[1], expected
    )
