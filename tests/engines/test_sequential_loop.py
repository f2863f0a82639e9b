"""The loop over steps as chips run it: rows in parts, two steps an iteration."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import SUBJECTS, assert_same_outcome, compiled_outcome, draw, looped

import jaxrnn
from jaxrnn.engines.loops import sequential
from jaxrnn.engines.loops.kinds import loop_function, steps_an_iteration
from jaxrnn.engines.loops.sequential import parts_of_rows
from jaxrnn.engines.recurrence import heuristics, schedule
from jaxrnn.engines.recurrence.run import flat_step
from jaxrnn.explaining.chips import MissingCompilerError, compile_for
from jaxrnn.explaining.compiled_program import CompiledProgram
from jaxrnn.extending import LoopEngine, LoopSchedule, Sequential, resolve_schedule

STEPS = 18


@dataclasses.dataclass(frozen=True)
class AsOnChips(LoopEngine):
    """The schedule of a chip, on a CPU."""

    chunk: int | None
    unroll: int

    def schedule(self, cell, length):
        loop = Sequential(unroll=self.unroll, parts=True)
        return LoopSchedule(loop, self.chunk, save="dots")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("engine", [AsOnChips(None, 2), AsOnChips(3, 1)])
@pytest.mark.parametrize("name", ["gru_learned", "lstm_all_learned", "diagonal_lstm"])
def test_rows_in_parts_are_the_python_loop(name, engine, reverse, x64):
    """With masks that have holes, and resets, over seven steps."""
    inputs = draw(name, 0, 7)

    def unrolling(params, xs, carry, mask, resets):
        return jaxrnn.unroll(
            SUBJECTS[name],
            params,
            xs,
            carry,
            mask=mask,
            resets=resets,
            engine=engine,
            reverse=reverse,
            return_carries=True,
        )

    assert_same_outcome(
        compiled_outcome(unrolling)(*inputs), looped(name, inputs, reverse)
    )


def test_rows_are_parted_by_the_narrowest_of_their_kind():
    def counts(*shapes):
        return parts_of_rows([jnp.zeros(shape) for shape in shapes])

    assert counts((5, 2, 384), (5, 2, 128), (5, 2, 256)) == [3, 1, 2]
    assert counts((5, 2, 512)) == [1]
    assert counts((5, 2, 640), (5, 2, 128)) == [1, 1]  # five parts
    assert counts((5, 2, 200), (5, 2, 128)) == [1, 1]
    assert counts((5, 2, 256), (5, 3, 128), (5, 128)) == [1, 1, 1]  # other rows
    assert counts((5,), (5, 2), (5, 4)) == [1, 1, 2]
    assert counts((5, 2, 0), (5, 2, 4)) == [1, 1]
    assert counts() == []


def test_rows_that_something_needs_as_a_whole_do_not_fall_apart():
    matrix = jnp.ones((4, 8), jnp.float32)

    def body(carry, x, *, normalize=False):
        (h,), a = carry, carry[0] @ matrix
        gates = jax.nn.sigmoid(a + x)
        if normalize:
            gates = gates / gates.sum(-1, keepdims=True)
        h = gates[:, :4] * gates[:, 4:]
        joined = jnp.concatenate([h, h], -1)
        read = jnp.concatenate([h, -h], -1)
        h = h + read @ matrix.T
        return [h], [a, gates, jnp.tanh(joined), read, x, h, x.shape[0]]

    carry, xs = [jnp.zeros((2, 4), jnp.float32)], jnp.zeros((5, 2, 8), jnp.float32)
    apart = sequential.rows_that_fall_apart(body, carry, xs)
    assert apart == [False, True, True, False, False, False, False]
    normalized = functools.partial(body, normalize=True)
    assert not any(sequential.rows_that_fall_apart(normalized, carry, xs))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("unroll", [1, 2])
@pytest.mark.parametrize("whole", [True, False])
def test_parts_are_written_where_rows_are(whole, unroll, reverse):
    """The results are the same numbers; a longer buffer is written as it is."""
    steps, offset = 6, 0 if whole else 2
    xs = jax.random.normal(jax.random.key(0), (steps, 2, 8), jnp.float32)

    def body(carry, x):
        carry = [jnp.tanh(carry[0] + x[:, :4] * x[:, 4:])]
        row = jnp.concatenate([carry[0], x[:, :4]], -1)
        return carry, [row, carry[0], x, x.sum()]

    def run(parts):
        length = 6 if whole else 9
        buffers = [jnp.ones((length, 2, n), jnp.float32) for n in (8, 4, 8)]
        buffers.append(jnp.ones((length,), jnp.float32))
        loop = loop_function(Sequential(unroll=unroll, parts=parts))
        first = [jnp.zeros((2, 4), jnp.float32)]
        return loop(body, first, xs, buffers, offset, steps, reverse=reverse)

    found, expected = (
        compiled(functools.partial(run, parts))() for parts in (True, False)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    rows = expected[1][2][offset : offset + steps]
    np.testing.assert_array_equal(rows, xs)


@pytest.mark.parametrize(
    ("platform", "length", "chunk", "unroll", "parts"),
    [
        ("cpu", 100, None, 1, False),
        (None, 100, None, 1, False),
        ("cuda", 100, None, 2, True),
        ("tpu", 100, None, 2, False),
        ("cuda", 99, None, 1, True),
        ("cuda", 99, 10, 2, True),
        ("tpu", 100, 5, 1, False),
    ],
)
def test_what_is_left_open_is_chosen_for_the_platform(
    platform, length, chunk, unroll, parts, monkeypatch
):
    cell, xs = jaxrnn.GRU(8), jnp.ones((length, 3), jnp.float32)
    params = cell.init(jax.random.key(0), 3)
    step, _ = flat_step(cell, params, cell.initial_carry(params), (xs, None, None))

    def resolved(loop):
        asked = LoopSchedule(loop, chunk, save="dots")
        found = resolve_schedule(asked, step, length, platform, backward=True)
        return found.schedule.loop

    assert resolved(Sequential()) == Sequential(unroll, parts)
    assert resolved(Sequential(3, False)) == Sequential(3, False)
    assert steps_an_iteration(Sequential()) == 1
    monkeypatch.setattr(heuristics, "MOST_UNROLLED", 5)
    assert resolved(Sequential()).unroll == 1


def gradient_of(cell, units):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), units))

    def gradient(params, xs):
        def loss(params, xs):
            return jnp.square(jaxrnn.unroll(cell, params, xs)[1]).sum()

        return jax.value_and_grad(loss, (0, 1))(params, xs)

    return gradient, (params, jax.ShapeDtypeStruct((STEPS, 16, units), "float32"))


def test_programs_for_cpus_know_neither(monkeypatch):
    """On a GPU the halves of a GRU's row of r and z have arrays of their own."""

    def text(platform):
        # another function each time, or JAX would give back what it lowered before
        gradient, args = gradient_of(jaxrnn.GRU(64), 64)
        traced = jax.jit(gradient).trace(*args)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    cpu, gpu, tpu = (text(platform) for platform in ("cpu", "cuda", "tpu"))
    half, row = (f"tensor<{STEPS}x16x{n}xf32>" for n in (64, 128))
    joined = rf"concatenate .*: \({half}, {half}\) -> {row}"
    assert re.search(joined, gpu)
    assert not re.search(joined, cpu + tpu)
    monkeypatch.setattr(sequential, "parts_of_rows", None)
    assert text("cpu") == cpu
    monkeypatch.setattr(schedule, "choose_unroll", lambda *_: 1)
    assert text("cpu") == cpu
    assert text("tpu") != tpu


CELLS = {
    "LSTM": (jaxrnn.LSTM, 2.5, 3.5),
    "GRU": (jaxrnn.GRU, 2.5, 4),
    "Elman": (jaxrnn.Elman, 2.5, 2.5),
    "DiagonalLSTM": (jaxrnn.cells.DiagonalLSTM, 2, 2.5),
    "DiagonalGRU": (jaxrnn.cells.DiagonalGRU, 1, 1),
}


@pytest.mark.parametrize("name", CELLS)
def test_kernels_a_step_on_a_described_h100(name):
    """At most as many one after another as were counted with jax 0.12; nothing runs."""
    kind, *most = CELLS[name]
    gradient, args = gradient_of(kind(128), 128)
    try:
        made = compile_for("H100", gradient, *args)
    except MissingCompilerError as error:
        pytest.skip(str(error))
    loops = CompiledProgram(made.as_text()).loops()
    found = [loop.alone * loop.trips / STEPS for loop in loops]
    assert len(found) == 2
    assert all(a <= b for a, b in zip(found, most, strict=True)), found
