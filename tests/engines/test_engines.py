"""Every engine and option is the Python loop, for values and gradients, and keeps
the memory and the modes it promises.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import (
    FEW,
    PLAIN,
    SUBJECTS,
    assert_same,
    assert_same_outcome,
    compiled_outcome,
    draw,
    looped,
)

import jaxrnn
from jaxrnn import Checkpoint, Scan
from jaxrnn.engines.jaxpr.min_cut import min_vertex_cut
from jaxrnn.engines.loops import sequential
from jaxrnn.engines.recurrence.backward import whole_plan
from jaxrnn.engines.recurrence.heuristics import choose_chunk, nearest_divisor
from jaxrnn.engines.recurrence.run import flat_step

ENGINES = {
    "default": Scan(),
    "jax": Scan(save="everything"),
    "jax_in_loop": Scan(save="everything", hoist=False),
    "chunk_1": Scan(chunk=1),
    "chunk_3": Scan(chunk=3),
    "chunk_long": Scan(chunk=100),
    "in_loop": Scan(hoist=False, chunk=2),
    "unrolled": Scan(unroll=3, chunk=4),
    "carries": Scan(save="carries"),
    "carries_3": Scan(save="carries", chunk=3),
    "checkpoint": Checkpoint(),
    "checkpoint_2": Checkpoint(2),
    "checkpoint_long": Checkpoint(100),
}
# one of each kind of residuals, with a chunk left over
OWN = [
    "chunk_3",
    "carries_3",
    "checkpoint_2",
]


@functools.cache
def unrolled(layer, engine, reverse=False, window=None):
    """`outcome` of an unroll with an engine, compiled once for all inputs of a
    shape.
    """
    how = {"engine": engine, "reverse": reverse, "return_carries": True}

    def unrolling(params, xs, carry, mask, resets):
        if window is None:
            return jaxrnn.unroll(
                layer, params, xs, carry, mask=mask, resets=resets, **how
            )
        return jaxrnn.truncated_unroll(
            layer, params, xs, carry, window=window, mask=mask, resets=resets, **how
        )

    return compiled_outcome(unrolling)


@pytest.mark.parametrize(
    ("name", "engine"),
    [(name, engine) for name in ("lstm_all_learned", "stack") for engine in ENGINES]
    + [
        (name, engine)
        for name in ("gru_learned", "user")
        for engine in ("default", "in_loop", "unrolled", "jax", *OWN)
    ],
)
def test_engines_are_the_python_loop(name, engine, x64):
    """With masks that have holes, and resets; forwards and backwards in time."""
    inputs, reverse = draw(name, 0, 7), list(ENGINES).index(engine) % 2 == 0
    assert_same_outcome(
        unrolled(SUBJECTS[name], ENGINES[engine], reverse)(*inputs),
        looped(name, inputs, reverse),
    )


@pytest.mark.parametrize(
    "name",
    [*PLAIN, "lstm_all_learned", "gru_learned", "mlstm_learned", "min_lstm_learned"],
)
def test_every_subject_under_every_kind_of_residuals(name, x64):
    inputs, engine = draw(name, 1, 7), OWN[list(SUBJECTS).index(name) % len(OWN)]
    assert_same_outcome(
        unrolled(SUBJECTS[name], ENGINES[engine])(*inputs), looped(name, inputs)
    )


@pytest.mark.parametrize("engine", OWN)
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_lengths_and_truncation(steps, engine, x64):
    layer, inputs, reverse = (
        SUBJECTS["gru_learned"],
        draw("gru_learned", steps, steps),
        steps == 7,
    )
    for window in (None, 4):
        expected = unrolled(layer, Scan(save="everything"), reverse, window)(*inputs)
        assert_same_outcome(
            unrolled(layer, ENGINES[engine], reverse, window)(*inputs), expected
        )


@pytest.mark.parametrize("engine", [*OWN, "default"])
def test_float32_gradients(engine):
    inputs = draw("lstm", 0, 40)
    expected = unrolled(SUBJECTS["lstm"], Scan(save="everything"))(*inputs)
    assert_same_outcome(
        unrolled(SUBJECTS["lstm"], ENGINES[engine])(*inputs), expected, 1e-6, 1e-5
    )


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_bfloat16_weight_gradients_add_up_in_float32(name):
    """A chunk of one step, hundreds of times, is no worse than one chunk."""
    cell = SUBJECTS[name]
    params = cell.init(jax.random.key(0), 3, dtype=jnp.bfloat16)
    xs = jax.random.normal(jax.random.key(1), (512, 4, 3), jnp.bfloat16)

    def gradient(engine):
        return jax.jit(
            jax.grad(
                lambda p: (
                    jaxrnn.unroll(cell, p, xs, engine=engine)[1]
                    .astype(jnp.float32)
                    .sum()
                )
            )
        )(params)

    whole, single = gradient(Scan(chunk=512)), gradient(Scan(chunk=1))
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(whole), strict=True):
        assert a.dtype == jnp.bfloat16
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max(), rtol=0)


# --------------------------------------------------------------------------------------
# modes of differentiation

MODES = {
    "jvp": lambda f, p, x, d: jax.jvp(f, (p, x), d),
    "forward over reverse": lambda f, p, x, d: jax.jvp(jax.grad(f, (0, 1)), (p, x), d),
    "reverse over reverse": lambda f, p, x, d: jax.grad(
        lambda p, x: _dot(jax.grad(f, (0, 1))(p, x), d), (0, 1)
    )(p, x),
    "reverse over forward": lambda f, p, x, d: jax.grad(
        lambda p, x: jax.jvp(f, (p, x), d)[1], (0, 1)
    )(p, x),
    "linearize": lambda f, p, x, d: jax.linearize(f, p, x)[1](*d),
    "jacfwd": lambda f, p, x, d: jax.jacfwd(f, 1)(p, x),
    "jacrev of jacrev": lambda f, p, x, d: jax.jacrev(jax.jacrev(f, 1), 1)(p, x[:3]),
    "third order": lambda f, p, x, d: jax.grad(
        lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(jax.grad(f, 1)(p, x) ** 2))(x))
    )(x),
    "grad of vmap": lambda f, p, x, d: jax.grad(
        lambda p, x: jax.vmap(f, (None, 1))(p, x).sum(), (0, 1)
    )(p, x),
    "vmap of grad": lambda f, p, x, d: jax.vmap(jax.grad(f, (0, 1)), (None, 1))(p, x),
    "grad of vmap of grad": lambda f, p, x, d: jax.grad(
        lambda p: sum(
            jnp.sum(g**2)
            for g in jax.tree.leaves(jax.vmap(jax.grad(f), (None, 1))(p, x))
        )
    )(p),
    "ensemble": lambda f, p, x, d: jax.vmap(jax.grad(f))(
        jax.tree.map(lambda *a: jnp.stack(a), p, d[0]), jnp.stack([x, d[1]])
    ),
    "remat": lambda f, p, x, d: jax.grad(jax.checkpoint(f))(p, x),
}


def _dot(a, b):
    return sum(
        jnp.vdot(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@functools.cache
def differentiated(mode, engine):
    """What a mode gives of an LSTM's loss under an engine, in float64."""
    cell = jaxrnn.LSTM(2, learned_initial_carry=True)
    inputs, direction = (draw(cell, seed, 5, (2,)) for seed in (0, 1))
    mask = inputs.mask.at[:, 0].set(True)

    def loss(params, xs):
        flags = mask[: len(xs)] if xs.ndim == 3 else mask[: len(xs), 0]
        carry, ys = jaxrnn.unroll(
            cell, params, xs, mask=flags, resets=~flags, engine=engine
        )
        return jnp.sum(jnp.sin(ys)) + jnp.sum(carry.c**3)

    at = (inputs.params, inputs.xs, (direction.params, direction.xs))
    return compiled(lambda: MODES[mode](loss, *at))()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", OWN)
def test_every_mode_of_differentiation(engine, mode, x64):
    got, want = (
        differentiated(mode, e) for e in (ENGINES[engine], Scan(save="everything"))
    )
    assert_same(got, want, 1e-11 if "third" in mode else 1e-12)


def test_a_vmapped_unroll_makes_no_weight_gradient_an_example():
    """Read in the compiled program: weight gradients (B, H, 4H) exist only where
    they are asked for.
    """
    cell, examples = jaxrnn.LSTM(24), 10
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 24))
    xs = jax.ShapeDtypeStruct((examples, 60, 24), jnp.float32)

    def loss(params, x):
        return jnp.sum(jaxrnn.unroll(cell, params, x)[1] ** 2)

    def program(gradient):
        return jax.jit(gradient).lower(params, xs).compile().as_text()

    each = {f"f32[{examples},24,96]", f"f32[{examples},96,24]"}
    of_the_sum = program(
        jax.grad(lambda p, xs: jax.vmap(loss, (None, 0))(p, xs).mean(), (0, 1))
    )
    assert not [shape for shape in each if shape in of_the_sum]
    per_example = program(jax.vmap(jax.grad(loss), (None, 0)))
    assert [shape for shape in each if shape in per_example]


@pytest.mark.parametrize("name", FEW)
def test_no_weight_gradient_a_step(name):
    """No array of the gradient's program has time before a weight matrix's axes."""
    layer = SUBJECTS[name]
    inputs = draw(name, 0, 7, (5,))
    weights = {leaf.shape for leaf in jax.tree.leaves(inputs.params) if leaf.ndim == 2}
    gradient = jax.grad(
        lambda p: jnp.sum(jaxrnn.unroll(layer, p, inputs.xs, engine=Scan(chunk=7))[1])
    )
    hlo = jax.jit(gradient).lower(inputs.params).as_text()
    a_step = [
        f"tensor<7x{a}x{b}xf32>" for shape in weights for a, b in (shape, shape[::-1])
    ]
    assert not [text for text in a_step if text in hlo]
    # there they are asked for
    mapped = jax.vmap(
        jax.grad(lambda p, x: jnp.sum(jaxrnn.unroll(layer, p, x)[1])), (None, 0)
    )
    each = (
        jax.jit(mapped)
        .lower(inputs.params, jnp.swapaxes(draw(name, 0, 2, (7,)).xs, 0, 1))
        .as_text()
    )
    assert [text for text in a_step if text in each]


# --------------------------------------------------------------------------------------
# memory


@dataclasses.dataclass(frozen=True)
class OwnLSTM(jaxrnn.Cell):
    """An LSTM as a user writes one, without a derivative or a hint."""

    hidden_size: int

    def init(self, key, input_size):
        H = self.hidden_size
        return {
            "W": jnp.zeros((input_size, 4 * H)),
            "U": jax.random.normal(key, (H, 4 * H)),
            "b": jnp.zeros(4 * H),
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        zeros = jnp.zeros((*batch_shape, self.hidden_size))
        return jaxrnn.LSTMState(zeros, zeros)

    def project(self, params, x):
        z = x @ params["W"]
        return z + jnp.broadcast_to(params["b"], z.shape)

    def step(self, params, carry, z):
        i, f, g, o = jnp.split(z + carry.h @ params["U"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * carry.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jaxrnn.LSTMState(jax.nn.sigmoid(o) * jnp.tanh(c), c)


def temporaries(cell, engine, batch, steps, size):
    """Temporaries of a gradient, in T*B*H floats."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), size))
    xs = jax.ShapeDtypeStruct((steps, batch, size), jnp.float32)
    gradient = jax.jit(
        jax.grad(
            lambda p, x: jnp.sum(jaxrnn.unroll(cell, p, x, engine=engine)[1] ** 2),
            argnums=(0, 1),
        )
    )
    memory = gradient.lower(params, xs).compile().memory_analysis()
    return memory.temp_size_in_bytes / (4 * steps * batch * size)


def test_memory_of_a_gradient():
    lstm = jaxrnn.LSTM(64)
    naive = temporaries(lstm, Scan(save="everything", hoist=False), 8, 1024, 64)
    assert temporaries(lstm, None, 8, 1024, 64) < naive
    assert temporaries(lstm, Scan(save="carries"), 8, 1024, 64) < 5
    assert temporaries(lstm, Checkpoint(), 8, 1024, 64) < 2.5


def test_a_loss_of_the_last_carry_stores_no_carries():
    """A quarter of a million steps, forwards and backwards, in some megabytes under
    Checkpoint.
    """
    cell, steps = jaxrnn.LSTM(32), 2**18
    params, xs = (
        jax.eval_shape(lambda: cell.init(jax.random.key(0), 32)),
        jax.ShapeDtypeStruct((steps, 1, 32), jnp.float32),
    )
    gradient = jax.jit(
        jax.grad(
            lambda p, x: jnp.sum(jaxrnn.unroll(cell, p, x, engine=Checkpoint())[0].h),
            argnums=(0, 1),
        )
    )
    assert (
        gradient.lower(params, xs).compile().memory_analysis().temp_size_in_bytes
        < 0.1 * 4 * steps * 32
    )


def test_memory_of_a_cell_of_ones_own():
    assert temporaries(OwnLSTM(128), Scan(save="carries"), 16, 512, 128) < 5


def test_what_is_kept_of_a_step():
    """Four gates of an LSTM, whoever wrote it; nothing of a tanh network, whose
    carry says it all.
    """
    for cell, blocks in (
        (jaxrnn.LSTM(8), 4),
        (OwnLSTM(8), 4),
        (jaxrnn.GRU(8), 4),
        (jaxrnn.Elman(8), 0),
    ):
        params = cell.init(jax.random.key(0), 5)
        step, _ = flat_step(
            cell,
            params,
            cell.initial_carry(params, (3,)),
            (jnp.zeros((7, 3, 5)), None, None),
        )
        assert sum(v.aval.size for v in step.adjoint.matmul_values) == blocks * 3 * 8


# --------------------------------------------------------------------------------------
# parts and words


def test_the_cut_is_the_least():
    """Against every subset of the nodes of small random graphs."""
    random = np.random.default_rng(0)
    for _ in range(60):
        nodes = list(range(7))
        edges = [
            (a, b) for a in nodes for b in nodes if a < b and random.random() < 0.4
        ]
        size = {n: int(random.integers(1, 5)) for n in nodes}
        sources, sinks = [0, 1], [5, 6]

        def reaches(without, edges=edges):
            seen, queue = set(), [n for n in (0, 1) if n not in without]
            while queue:
                seen.add(a := queue.pop())
                queue += [
                    b for x, b in edges if x == a and b not in without and b not in seen
                ]
            return bool(seen & {5, 6})

        subsets = [{n for n in nodes if mask >> n & 1} for mask in range(2**7)]
        least = min(sum(size[n] for n in s) for s in subsets if not reaches(s))
        cut = min_vertex_cut(sources, sinks, edges, size.get)
        assert not reaches(set(cut))
        assert sum(size[n] for n in cut) == least


def test_windows_by_default():
    assert [
        nearest_divisor(1000, 64),
        nearest_divisor(512, 30),
        nearest_divisor(1013, 64),
    ] == [
        50,
        32,
        64,
    ]

    def step(cell, batch=8):
        size = cell.hidden_size
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), size))
        sequence = (jnp.zeros((2, batch, size)), None, None)
        return flat_step(cell, params, cell.initial_carry(params, (batch,)), sequence)[
            0
        ]

    lstm, gru = step(jaxrnn.LSTM(64)), step(jaxrnn.GRU(64))
    assert choose_chunk(lstm, 1024, "cpu", backward=True) is None
    assert choose_chunk(lstm, 4096, "cpu", backward=True) == 128
    assert choose_chunk(lstm, 4096, "cuda", backward=True) is None
    # A GRU saves less, but its backward pass holds more than malloc keeps in one piece.
    held = [whole_plan(cell, False).bytes_allocated * 1024 for cell in (lstm, gru)]
    assert held[0] < 32 * 2**20 < held[1]
    assert choose_chunk(gru, 1024, "cpu", backward=True) == 128
    assert choose_chunk(gru, 512, "cpu", backward=True) is None
    assert choose_chunk(gru, 1024, "cpu", backward=False) is None
    # What one operation makes of the carries has no place in memory of its own.
    elman = step(jaxrnn.Elman(512), 64)
    plan = whole_plan(elman, False)
    assert plan.bytes_allocated <= plan.bytes_held
    assert plan.bytes_allocated * 64 <= 32 * 2**20
    assert choose_chunk(elman, 64, "cpu", backward=True) is None


def test_steps_with_side_effects_run_as_often_as_they_should(capfd):
    class Loud(OwnLSTM):
        def step(self, params, carry, z):
            jax.debug.print("step {}", carry.h.sum())
            return super().step(params, carry, z)

    cell = Loud(2)
    gradient = jax.grad(lambda p: jnp.sum(jaxrnn.unroll(cell, p, jnp.ones((5, 3)))[1]))(
        cell.init(jax.random.key(0), 3)
    )
    jax.block_until_ready(gradient)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("step") == 5


def test_inside_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    split, whole = (
        jax.sharding.PartitionSpec(None, "data"),
        jax.sharding.PartitionSpec(),
    )
    inputs = draw("lstm", 0, 7)

    def gradient(engine, **check):
        def loss(params, xs):
            return jnp.sum(
                jaxrnn.unroll(SUBJECTS["lstm"], params, xs, engine=engine)[1] ** 2
            )

        mapped = jax.shard_map(
            jax.grad(loss), mesh=mesh, in_specs=(whole, split), out_specs=whole, **check
        )
        return jax.jit(mapped)(inputs.params, inputs.xs)

    expected = gradient(None)
    for engine in (Scan(), Scan(chunk=3), Checkpoint()):
        assert_same(gradient(engine, check_vma=False), expected, 1e-5)
    for engine in (Scan(chunk=3), Checkpoint()):
        with pytest.raises(
            ValueError,
            match=r"check_vma=True .*vary over \['data'\]; pass check_vma=False",
        ):
            gradient(engine)


class Counted(NamedTuple):
    h: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class Odd(jaxrnn.Cell):
    """h_t = tanh(x_t W + h_{t-1} U) changed by ``extra(h, count)``; beside h the
    carry has a counter of steps, or a key.
    """

    extra: Callable = lambda h, count: h
    start: Callable = lambda: jnp.asarray(0, jnp.int32)
    hidden_size: int = 3

    def init(self, key, input_size):
        kernel, unused = jax.random.normal(key, (2, input_size, input_size))
        return {
            "U": kernel,
            "scale": jnp.asarray(0.5, kernel.dtype),
            "unused": unused,
            "number": jnp.asarray(2, jnp.int32),
        }

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return Counted(jnp.zeros((*batch_shape, self.hidden_size)), self.start())

    def step(self, params, carry, z):
        scale = jnp.broadcast_to(params["scale"], z.shape)
        h = jnp.tanh(carry.h @ params["U"] + z @ params["U"]) * scale
        count = (
            carry.count
            if jax.dtypes.issubdtype(carry.count.dtype, jax.dtypes.prng_key)
            else carry.count + 1
        )
        return Counted(self.extra(h, count), count)


def _branches(h, count):
    return jax.lax.cond(count % 2 == 0, jnp.sin, jnp.cos, h)


def _loop(h, count):
    return jax.lax.fori_loop(0, 3, lambda _, a: jnp.sin(a) + 0.1, h)


def _rematerialised(h, count):
    return jax.checkpoint(
        lambda a: jnp.tanh(jnp.asarray(np.eye(3), h.dtype) @ a[..., None])[..., 0] * 2
    )(h)


def _drawing(h, count):
    key = jax.random.fold_in(jax.random.key(3, impl="rbg"), count)
    return h * jax.random.uniform(key, h.shape, h.dtype)


def _calling_back(h, count):
    @jax.custom_jvp
    def call(a):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(a.shape, a.dtype), a)

    call.defjvp(
        lambda primals, tangents: (call(*primals), jnp.cos(primals[0]) * tangents[0])
    )
    return call(h)


def _of_a_key(h, key):
    return h * jax.random.uniform(key, h.shape, h.dtype)


def odd_gradient(cell, engine):
    params, xs = (
        cell.init(jax.random.key(0), 3),
        jax.random.normal(jax.random.key(1), (7, 2, 3)),
    )

    def loss(params, xs):
        carry, ys = jaxrnn.unroll(cell, params, xs, engine=engine)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(carry.h)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), allow_int=True))(params, xs)


def assert_same_floats(a, b):
    floats = [
        [x for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]
        for tree in (a, b)
    ]
    assert_same(*floats)


@pytest.mark.parametrize(
    "extra", [Odd.extra, _branches, _loop, _rematerialised], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("engine", OWN)
def test_odd_steps(extra, engine, x64):
    """Integers in carry and params, unused and scalar params, control flow inside
    the step.
    """
    cell = Odd(extra)
    assert_same_floats(
        odd_gradient(cell, ENGINES[engine]), odd_gradient(cell, Scan(save="everything"))
    )


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Odd(_drawing), "draws from a generator whose numbers differ under vmap"),
        (Odd(_calling_back), "calls back to Python"),
        (Odd(_of_a_key, lambda: jax.random.key(0)), "typed random keys"),
    ],
)
def test_steps_left_to_jax(cell, message, x64):
    """The default runs them as lax.scan does; what only the own backward pass has
    is refused.
    """
    assert_same_floats(
        odd_gradient(cell, None), odd_gradient(cell, Scan(save="everything"))
    )
    for engine in (Scan(chunk=3), Checkpoint()):
        with pytest.raises(
            ValueError, match=rf"Odd: .*{message}.* Leave chunk and save out"
        ):
            odd_gradient(cell, engine)


def test_symbolic_sizes_are_left_to_jax_and_explicit_meshes_are_not(plain_errors):
    cell = jaxrnn.LSTM(4)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((7, 2, 3))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t, b, 3"), jnp.float32)
    exported = jax.export.export(jax.jit(lambda p, x: jaxrnn.unroll(cell, p, x)[1]))(
        params, shape
    )
    np.testing.assert_allclose(
        exported.call(params, xs), jaxrnn.unroll(cell, params, xs)[1], atol=1e-6
    )

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    placed = jax.device_put(
        (params, xs), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    for engine in (None, Checkpoint()):
        np.testing.assert_allclose(
            jaxrnn.unroll(cell, *placed, engine=engine)[1],
            jaxrnn.unroll(cell, params, xs)[1],
            atol=1e-6,
        )


def test_linear_transpose_names_the_option():
    cell = jaxrnn.Elman(3, activation=jnp.positive)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 3))
    with pytest.raises(NotImplementedError, match=r"Scan\(save='everything'\)"):
        jax.linear_transpose(lambda xs: jaxrnn.unroll(cell, params, xs)[1], xs)(xs)


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        (
            Checkpoint,
            {"chunk": 0},
            "Checkpoint: chunk must be an int of at least 1, but it is 0",
        ),
        (
            Checkpoint,
            {"chunk": 2.0},
            "Checkpoint: chunk must be an int of at least 1",
        ),
        (
            Checkpoint,
            {"chunk": True},
            "Checkpoint: chunk must be an int of at least 1",
        ),
        (Scan, {"chunk": 0}, "Scan: chunk must be an int of at least 1, but it is 0"),
        (Scan, {"chunk": True}, "Scan: chunk must be an int of at least 1"),
        (Scan, {"unroll": 0}, "Scan: unroll must be an int of at least 1"),
        (
            Scan,
            {"hoist": "yes"},
            "Scan: hoist must be True, False or 'auto', but it is 'yes'",
        ),
        (
            Scan,
            {"save": "none"},
            "Scan: save must be 'dots', 'carries', 'everything' or 'auto', but it is "
            "'none'",
        ),
        (Scan, {"chunk": "all"}, r"chunk must be a size, None \(all of T\) or 'auto'"),
        (Scan, {"save": "everything", "chunk": 3}, "has no chunks, but chunk is 3"),
    ],
)
def test_options_that_cannot_apply_are_refused(engine, options, message, plain_errors):
    with pytest.raises(ValueError, match=message):
        engine(**options)


def test_hoisting_nothing_is_refused(plain_errors):
    class Bare(jaxrnn.Cell):
        pass

    @dataclasses.dataclass(frozen=True)
    class Memory(Bare):
        """The input is added to the state: no matmul without the carry."""

        hidden_size: int

        def init(self, key, input_size):
            return {"U": jnp.ones((input_size, input_size))}

        def step(self, params, carry, z):
            return jnp.tanh(z + carry @ params["U"])

    cell, xs = Memory(3), jnp.ones((4, 3))
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises(
        ValueError,
        match=r"hoist=True, but Memory has no projection of its inputs.* Leave hoist out",  # noqa: E501
    ):
        jaxrnn.unroll(cell, params, xs, engine=Scan(hoist=True))
    jaxrnn.unroll(cell, params, xs, engine=Scan())
    # a matmul inside step is found
    jaxrnn.unroll(SUBJECTS["user"], draw("user", 0).params, xs, engine=Scan(hoist=True))


def test_rows_are_laid_out_for_gpus_and_tpus_alone(monkeypatch):
    """A step that is recorded writes six rows. Behind barriers XLA's GPU compiler makes
    them in one kernel. For TPUs the rows that a loop reads and writes are to be pieces
    of memory. For a CPU the program is what it is without.
    """
    cell, T, B = jaxrnn.LSTM(32), 8, 16
    params, xs = cell.init(jax.random.key(0), 4), jnp.zeros((T, B, 4))

    def text(platform):
        def loss(params):
            return (jaxrnn.unroll(cell, params, xs)[1] ** 2).sum()

        traced = jax.jit(jax.grad(loss)).trace(params)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    gpu, tpu, cpu = text("cuda"), text("tpu"), text("cpu")
    for name in ("gpu_optimization_barrier", "rows_together"):
        monkeypatch.setattr(sequential, name, lambda rows: rows)
    assert text("cpu") == cpu
    barriers = gpu.count("optimization_barrier")
    assert barriers - text("cuda").count("optimization_barrier") >= 6
    layouts = re.findall(r"LayoutConstraint.*result_layouts = \[dense<(.*?)>", tpu)
    assert len(layouts) >= 6
    assert set(layouts) == {"[2, 1, 0]"}
    assert "LayoutConstraint" not in gpu + cpu + text("tpu")


def test_slices_of_a_step_are_arrays_of_their_own_on_a_cpu():
    """Of 512 bytes or more on the way forwards, and of 2,048 or more on the way back.
    XLA:CPU does not vectorize what it fuses with a slice; fewer numbers are faster in
    one piece of code.
    """

    def barriers(batch, gradient):
        cell = jaxrnn.GRU(16)  # the slices have 192 bytes for each row of the batch
        params = cell.init(jax.random.key(0), 4)
        xs = jnp.zeros((8, batch, 4))

        def loss(params):
            return (jaxrnn.unroll(cell, params, xs)[1] ** 2).sum()

        traced = jax.jit(jax.grad(loss) if gradient else loss).trace(params)
        texts = [
            traced.lower(lowering_platforms=(platform,)).as_text()
            for platform in ("cpu", "tpu")
        ]
        return texts[0].count("optimization_barrier") - texts[1].count(
            "optimization_barrier"
        )

    assert barriers(2, False) == 0
    forwards = barriers(4, False)
    assert forwards > 0
    assert barriers(4, True) == forwards
    assert barriers(16, True) > forwards
