"""`jaxrnn.explain` against what happens: programs as they are lowered, paces as they
are run, errors as they are raised.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir
from subjects import drawn_params

import jaxrnn
from jaxrnn import (
    GRU,
    LSTM,
    MLSTM,
    Associative,
    Checkpoint,
    Elman,
    Fused,
    MinGRU,
    Scan,
    bidirectional,
    stack,
    unroll,
)
from jaxrnn.core.engine import AbstractEngine, AbstractNetworkEngine, Supports
from jaxrnn.core.layer import Layer
from jaxrnn.engines.loops.kinds import ParallelPrefix
from jaxrnn.engines.recurrence import passes
from jaxrnn.engines.recurrence import schedule as schedules
from jaxrnn.engines.recurrence.schedule import LoopSchedule
from jaxrnn.explaining.execution import PLATFORMS
from jaxrnn.explaining.table import brief
from jaxrnn.unrolling import run_network, unroll_unchecked

# as the compilers call it
KERNEL_CALL = {
    "gpu": "mosaic_gpu",
    "tpu": "tpu_custom_call",
}


def shapes(cell, steps=20, batch=(3,), features=4, dtype=jnp.float32):
    """The cell's params and its inputs, as shapes."""
    params = jax.eval_shape(lambda key: cell.init(key, features), jax.random.key(0))
    as_dtype = [jax.ShapeDtypeStruct(a.shape, dtype) for a in jax.tree.leaves(params)]
    xs = jax.ShapeDtypeStruct((steps, *batch, features), dtype)
    return jax.tree.unflatten(jax.tree.structure(params), as_dtype), xs


def programs(cell, engine=None, **options):
    """A run, and one whose gradient is taken, as functions of params and inputs."""

    def forward(params, xs):
        return unroll(cell, params, xs, engine=engine, **options)

    def gradient(params, xs):
        def loss(params, xs):
            carry, ys = forward(params, xs)[:2]
            return sum(
                jnp.sum(jnp.sin(a).astype(jnp.float32))
                for a in [ys, *jax.tree.leaves(carry)]
            )

        return jax.grad(loss, (0, 1))(params, xs)

    return forward, gradient


def lowered(function, given, platform):
    return (
        jax.jit(function)
        .trace(*given)
        .lower(lowering_platforms=(PLATFORMS[platform],))
        .as_text()
    )


def by_platform(explanation):
    """The rows of its first cell."""
    return {row.platform: row for row in explanation.rows[:3]}


def error_of(function, given, platform):
    try:
        lowered(function, given, platform)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize(
    ("cell", "engine", "steps"),
    [
        (LSTM(64), None, 600),  # on a CPU by windows of its own
        (LSTM(64, layer_norm=True), None, 600),
        (LSTM(8), None, 500),  # all of T
        (MinGRU(64), None, 3_000),  # prefixes, but on a CPU
        (MinGRU(64), Associative(), 3_000),
        (LSTM(8), Scan(chunk=7, hoist=False), 20),
        (LSTM(8), Checkpoint(), 200),
        (GRU(8), Scan(save="carries"), 200),
    ],
    ids=brief,
)
def test_windows_are_those_run(cell, engine, steps, monkeypatch):
    used = []
    for name in ("forward_pass", "backward_pass"):

        def noted(*args, name=name, real=getattr(passes, name), **kwargs):
            used.append((name, next(a for a in args if isinstance(a, LoopSchedule))))
            return real(*args, **kwargs)

        monkeypatch.setattr(passes, name, noted)
    given = shapes(cell, steps, (16,), 32)
    rows = by_platform(jaxrnn.explain(cell, *given, engine=engine))
    forward, gradient = (jax.jit(f).trace(*given) for f in programs(cell, engine))
    for platform, row in rows.items():
        said = []
        for program, ways in (
            (forward, [("forward_pass", row.forward)]),
            (gradient, [("forward_pass", row.recording)]),
        ):
            used.clear()
            program.lower(lowering_platforms=(PLATFORMS[platform],))
            ways += [("backward_pass", row.backward)] * (program is gradient)
            assert [name for name, _ in used] == [name for name, _ in ways]
            for (_, schedule), (_, way) in zip(used, ways, strict=True):
                parallel = isinstance(schedule.loop, ParallelPrefix)
                assert way.kind == ("prefixes" if parallel else "loop")
                assert (way.steps or steps) == min(schedule.chunk or steps, steps)
                assert way.hoisted == (None if parallel else schedule.hoist)
                said.append(way.steps)
        if engine is None and isinstance(cell, LSTM) and cell.hidden_size == 64:
            # both sides of the table are tried
            assert (min(w or steps for w in said) < steps) == (platform == "cpu")


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize(
    "cell",
    [
        LSTM(16),
        LSTM(16, layer_norm=True),
        LSTM(2048),
        MinGRU(16),
        stack(GRU(16), MLSTM(16, num_heads=2)),
    ],
    ids=brief,
)
def test_a_kernel_by_default_is_there_exactly_when_explained(
    cell, platform, monkeypatch
):
    monkeypatch.setattr(schedules, "KERNELS", frozenset({PLATFORMS[platform]}))
    given = shapes(cell)
    rows = [
        row for row in jaxrnn.explain(cell, *given).rows if row.platform == platform
    ]
    forward, gradient = (
        lowered(f, given, platform).count(KERNEL_CALL[platform]) for f in programs(cell)
    )
    assert (forward > 0) == any(row.forward.kind == "kernel" for row in rows)
    assert (gradient > 0) == any(row.backward.kind == "kernel" for row in rows)
    assert all(row.error is None for row in rows)
    new = jax.__version_info__ >= (0, 11) or platform == "tpu"
    assert (rows[0].forward.kind == "kernel") == (
        new and (len(rows) == 2 or cell in (LSTM(16), MinGRU(16)))
    )
    for row in rows:
        assert row.engine == {"kernel": "Fused()", "chunks": "Associative()"}.get(
            row.forward.kind, "Scan()"
        )
        if row.forward.kind == "loop":
            assert "Fused: " in row.forward.reason
            assert row.kernel.kind == "error"
    others = [
        row
        for row in jaxrnn.explain(cell, *given).rows
        if row.platform not in ("cpu", platform)
    ]
    assert not any(row.forward.kind == "kernel" for row in others)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("cell", "engine"),
    [
        (LSTM(16), Fused()),
        (LSTM(16, layer_norm=True), Fused()),
        (LSTM(2048), Fused()),
        (LSTM(16), Fused(memory=20_000)),
        (jaxrnn.SLSTM(16), Fused()),
        (LSTM(16), Associative()),
        (LSTM(16), Scan()),
    ],
    ids=brief,
)
def test_an_engine_by_name_runs_or_raises_as_explained(cell, engine, platform):
    given = shapes(cell)
    row = by_platform(jaxrnn.explain(cell, *given, engine=engine))[platform]
    forward, gradient = programs(cell, engine)
    assert row.engine.startswith(type(engine).__name__)
    assert (row.forward.reason if row.forward.kind == "error" else None) == error_of(
        forward, given, platform
    )
    said = [way.reason for way in (row.recording, row.backward) if way.kind == "error"]
    assert (said[0] if said else None) == error_of(gradient, given, platform)
    assert (row.error is None) == (not said)


def test_what_fused_would_say_beside_another_engine():
    """The row of an engine tells what that of `Fused` does."""
    for cell in (LSTM(16), LSTM(2048), LSTM(16, layer_norm=True)):
        given = shapes(cell)
        plain, named = (
            by_platform(jaxrnn.explain(cell, *given, engine=engine))
            for engine in (None, Fused())
        )
        assert not any(row.error for row in plain.values())
        for platform, row in plain.items():
            assert (row.kernel.kind == "kernel") == (named[platform].error is None)
            assert row.kernel == named[platform].kernel
        if cell == LSTM(16):
            tpu = plain["tpu"].kernel
            assert tpu.bytes_required <= tpu.bytes_available == 14 * 2**20
    told = jaxrnn.explain(LSTM(2048), *shapes(LSTM(2048)))
    there = f"{14 * 2**20:,} are there"
    assert there in by_platform(told)["tpu"].kernel.reason
    assert there in " ".join(str(told).split())


@pytest.mark.usefixtures("x64")
def test_float64_is_no_kernels(monkeypatch):
    monkeypatch.setattr(schedules, "KERNELS", frozenset({"cuda", "tpu"}))
    for cell in (LSTM(16), jaxrnn.IndRNN(16)):
        given = shapes(cell, dtype=jnp.float64)
        for platform, row in by_platform(jaxrnn.explain(cell, *given)).items():
            found = error_of(programs(cell)[1], given, platform)
            assert row.error == found
            if platform == "tpu" or cell == LSTM(16):
                assert row.forward.kind == "loop"
            text = "" if found else lowered(programs(cell)[1], given, platform)
            assert (KERNEL_CALL.get(platform, "no such call") in text) == (
                row.backward.kind == "kernel"
            )


@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_alone(steps):
    for engine in (None, Fused(), Checkpoint()):
        rows = jaxrnn.explain(LSTM(8), *shapes(LSTM(8), steps), engine=engine).rows
        assert (
            {row.forward.kind for row in rows}
            == {row.backward.kind for row in rows}
            == {"lax.scan"}
        )
        assert all(
            "needs no loop" in row.forward.reason and row.error is None for row in rows
        )
    text = lowered(programs(LSTM(8), Fused())[0], shapes(LSTM(8), steps), "cpu")
    assert KERNEL_CALL["tpu"] not in text


def test_chunks_of_a_cell_that_joins_its_steps():
    cell = MLSTM(8, num_heads=2)
    given = shapes(cell, 40)
    rows = jaxrnn.explain(cell, *given).rows
    assert {(row.engine, row.forward.kind) for row in rows} == {
        ("Associative()", "chunks")
    }
    assert {row.platform: row.forward.steps for row in rows} == {
        "cpu": 32,
        "gpu": 64,
        "tpu": 64,
    }
    assert {
        row.forward.steps
        for row in jaxrnn.explain(cell, *given, engine=Associative(chunk=5)).rows
    } == {5}
    asked = jaxrnn.explain(cell, *given, return_carries=True).rows
    assert {(row.engine, row.forward.kind) for row in asked} == {("Scan()", "loop")}
    assert "carries inside its chunks" in asked[0].why
    named = jaxrnn.explain(cell, *given, return_carries=True, engine=Associative()).rows
    forward, _ = programs(cell, Associative(), return_carries=True)
    assert {row.error for row in named} == {error_of(forward, given, "cpu")} != {None}


@dataclasses.dataclass(frozen=True)
class Loud(LSTM):
    """An LSTM that calls back to Python."""

    def step(self, params, carry, z):
        carry = super().step(params, carry, z)
        return carry._replace(
            h=jax.pure_callback(
                lambda h: h, jax.ShapeDtypeStruct(carry.h.shape, carry.h.dtype), carry.h
            )
        )


def test_steps_that_are_jaxs_own():
    given = shapes(Loud(8))
    rows = jaxrnn.explain(Loud(8), *given).rows
    assert {(row.forward.kind, row.forward.reason) for row in rows} == {
        ("lax.scan", "its step calls back to Python")
    }
    found = error_of(programs(Loud(8), Checkpoint())[0], given, "cpu")
    assert "calls back to Python" in found
    assert {
        row.error for row in jaxrnn.explain(Loud(8), *given, engine=Checkpoint()).rows
    } == {found}
    plain = jaxrnn.explain(LSTM(8), *given, engine=Scan(save="everything")).rows
    assert {(row.engine, row.forward.kind) for row in plain} == {
        ("Scan(save='everything')", "lax.scan")
    }


@dataclasses.dataclass(frozen=True)
class Inside(Layer):
    """A layer that runs its cell as it likes."""

    cell: LSTM

    def init(self, key, input_size, dtype=None):
        return {"mine": self.cell.init(key, input_size)}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return self.cell.initial_carry(params["mine"], batch_shape, dtype)

    def unroll(self, params, carry, xs, spec):
        if isinstance(spec.engine, AbstractNetworkEngine):
            last, ys = run_network(
                spec.engine,
                params["mine"],
                [carry],
                xs,
                spec.mask,
                spec.reverse,
                False,
            )
            return last[0], ys, jax.tree.map(lambda _: None, carry)
        return unroll_unchecked(
            self.cell,
            params["mine"],
            carry,
            xs,
            spec.replace(engine=Checkpoint(chunk=4)),
        )


class ByUnroll(Inside):
    """A layer that applies its cell by the public function."""

    def unroll(self, params, carry, xs, spec):
        return jaxrnn.unroll(
            self.cell, params["mine"], xs, carry, mask=spec.mask, return_carries=True
        )


def test_a_layer_that_calls_unroll_is_seen_inside():
    """Also where the same unroll was compiled before."""
    layer = ByUnroll(LSTM(4))
    params, xs = drawn_params(layer, 3), jnp.ones((6, 2, 3))
    jaxrnn.unroll(layer, params, xs)
    told = jaxrnn.explain(layer, params, xs)
    assert [row.place for row in told.rows] == ["mine"] * 3
    assert "step by step" in str(told)


@jax.jit
def compiled_gru(params, xs):
    return jaxrnn.unroll(GRU(4), params, xs)


@dataclasses.dataclass(frozen=True)
class ByCompiled(Inside):
    """A layer whose code calls a compiled function."""

    def unroll(self, params, carry, xs, spec):
        return (*compiled_gru(params["mine"], xs), None)


def test_what_explain_traces_is_never_run():
    """What a compiled function in a layer is traced to for `explain` is not kept."""
    layer = ByCompiled(GRU(4))
    params, xs = drawn_params(layer, 3), jnp.ones((6, 2, 3))
    first, again = jaxrnn.explain(layer, params, xs), jaxrnn.explain(layer, params, xs)
    assert len(first.rows) == len(again.rows) == 3
    assert "jaxrnn_recurrence" in str(jax.make_jaxpr(compiled_gru)(params["mine"], xs))


@dataclasses.dataclass(frozen=True)
class Nested(jaxrnn.Cell):
    """A cell whose step applies another cell over its state."""

    hidden_size: int = 4

    def init(self, key, input_size):
        return {"inner": Elman(1).init(key, 1)}

    def step(self, params, h, z):
        inner = jaxrnn.unroll(Elman(1), params["inner"], h[..., None].swapaxes(0, 1))
        return jnp.tanh(inner[1][..., 0].swapaxes(0, 1) + z.sum(-1, keepdims=True))


def test_a_step_is_explained_as_it_runs():
    """An unroll in a step is part of the step, and a step may want its axes."""
    cell = Nested()
    params, xs = drawn_params(cell, 3), jnp.ones((6, 2, 3))
    assert [row.cell for row in jaxrnn.explain(cell, params, xs).rows] == [
        "Nested()"
    ] * 3


def test_a_projection_that_wants_a_step_alone():
    @dataclasses.dataclass(frozen=True)
    class Stepwise(jaxrnn.Cell):
        hidden_size: int = 4

        def init(self, key, input_size):
            return {"kernel": jax.random.normal(key, (input_size, self.hidden_size))}

        def project(self, params, x):
            return jnp.einsum("bd,dh->bh", x, params["kernel"])

        def step(self, params, h, z):
            return jnp.tanh(h + z)

    cell = Stepwise()
    params, xs = drawn_params(cell, 3), jnp.ones((6, 2, 3))
    jaxrnn.unroll(cell, params, xs)
    assert len(jaxrnn.explain(cell, params, xs).rows) == 3


def test_an_engine_does_not_do_what_it_does_not_declare():
    @dataclasses.dataclass(frozen=True)
    class NoResets(Strange):
        supports = Supports.EVERYTHING & ~Supports.RESETS

    cell = LSTM(4)
    params, xs = drawn_params(cell, 3), jnp.ones((6, 2, 3))
    resets = jnp.zeros((6, 2), bool)
    with pytest.raises(ValueError, match="NoResets does not support resets: use"):
        jaxrnn.unroll(cell, params, xs, resets=resets, engine=NoResets())
    rows = jaxrnn.explain(cell, params, xs, resets=resets, engine=NoResets()).rows
    assert all("does not support resets" in row.error for row in rows)


def test_places_and_layers():
    layer = stack(
        bidirectional(Elman(6), jaxrnn.residual(stack(jaxrnn.zoneout(Elman(4), 0.1)))),
        jaxrnn.dropout(0.2),
        stack(jaxrnn.recurrent_dropout(Elman(6), 0.1), MinGRU(5)),
        Inside(Elman(6)),
        Elman(6),
    )
    told = jaxrnn.explain(layer, *shapes(layer), key=jax.random.key(0))
    places = [row.place for row in told.rows if row.platform == "cpu"]
    assert places == [
        "layer_0/forward",
        "layer_0/backward/layer_0",
        "layer_2/layer_0",
        "layer_2/layer_1",
        "layer_3/mine",
        "layer_4",
    ]
    engines = {
        (row.place, row.engine, row.forward.steps)
        for row in told.rows
        if row.platform == "cpu"
    }
    assert ("layer_3/mine", "Checkpoint(chunk=4)", 4) in engines
    assert ("layer_4", "Scan()", None) in engines
    assert [row.platform for row in told.rows] == list(PLATFORMS) * 6
    text = str(told)
    assert text == repr(told)
    assert all(place in text for place in places)
    assert max(map(len, text.splitlines())) <= 128
    with pytest.raises(dataclasses.FrozenInstanceError):
        told.rows[0].engine = "Scan()"
    with pytest.raises(ValueError, match="needs key="):
        jaxrnn.explain(layer, *shapes(layer))


def test_cells_alike_are_told_once():
    layer = stack(LSTM(4), LSTM(4), LSTM(4))
    told = jaxrnn.explain(layer, *shapes(layer))
    assert "layer_0, layer_1, layer_2: LSTM(hidden_size=4)" in str(told)
    assert [row.number for row in told.rows] == list(
        itertools.chain(*([i] * 3 for i in range(3)))
    )


identity_p = Primitive("identity_of_cpus")
identity_p.def_impl(lambda x: x)
identity_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(
    identity_p, mlir.lower_fun(lambda x: x, multiple_results=False), platform="cpu"
)


@dataclasses.dataclass(frozen=True)
class Strange(AbstractEngine):
    """An engine of one's own, for CPUs and without derivatives; a network is one
    call.
    """

    refuses: bool = False

    def run(self, cell, params, carry, xs, mask=None, resets=None, reverse=False):
        if self.refuses:
            raise ValueError("Strange: refuses")
        last, carries = Scan(save="everything").run(
            cell, params, carry, xs, mask, resets, reverse
        )
        return jax.tree.map(identity_p.bind, last), carries


class Whole(Strange, AbstractNetworkEngine):
    """The same, with a call for several cells."""

    def run_network(self, params, carries, xs, mask, reverse, bidirectional):
        cell = LSTM(carries[0].h.shape[-1])
        last, out = self.run(cell, params, carries[0], xs, mask, None, reverse)
        return [last], cell.output(params, out, xs)

    def refusal(self, *given):
        return ValueError("Whole: no stack is one network")


def test_engines_of_ones_own():
    given = shapes(LSTM(4))
    for engine in (Strange(), Strange(refuses=True)):
        rows = by_platform(jaxrnn.explain(LSTM(4), *given, engine=engine))
        forward, gradient = programs(LSTM(4), engine)
        for platform, row in rows.items():
            said = row.forward.reason if row.forward.kind == "error" else None
            assert (
                (row.forward.kind == "own")
                == (said is None)
                == (platform == "cpu" and not engine.refuses)
            )
            found = [error_of(f, given, platform) for f in (forward, gradient)]
            assert [bool(said), bool(row.error)] == list(map(bool, found))
            assert (said or "")[:60] == (found[0] or "")[:60]
        assert (
            rows["cpu"].error.split(":")[0]
            == error_of(gradient, given, "cpu").split(":")[0]
        )


def test_a_network_in_one_call():
    for refuses in (False, True):
        layer = stack(LSTM(4), Inside(LSTM(4)))
        rows = jaxrnn.explain(layer, *shapes(layer), engine=Whole(refuses)).rows
        assert [row.place for row in rows] == ["layer_0"] * 3 + ["layer_1/mine"] * 3
        assert rows[3].cell == "1 cells in one call"
        assert (rows[3].error or "").startswith(
            "ValueError: Strange: refuses"
        ) == refuses


def test_nothing_is_computed_and_arrays_are_as_good_as_shapes(monkeypatch):
    cell = LSTM(4)
    params, (T, B, D) = drawn_params(cell, 3), (6, 2, 3)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    mask = jaxrnn.mask_from_lengths(jnp.array([6, 2]), T)
    carry = cell.initial_carry(params, (B,))
    by_shape = jax.eval_shape(lambda *args: args, params, xs, carry, mask)
    told = jaxrnn.explain(cell, params, xs, carry, mask=mask, resets=mask, reverse=True)
    p, x, c, m = by_shape
    assert jaxrnn.explain(cell, p, x, c, mask=m, resets=m, reverse=True) == told
    with pytest.raises(TypeError, match="mask must be bool"):
        jaxrnn.explain(cell, params, xs, mask=jnp.ones((T, B)))
    with pytest.raises(TypeError, match="engine must be an engine"):
        jaxrnn.explain(cell, params, xs, engine="scan")


# --------------------------------------------------------------------------------------
# Compiled for chips


def test_compiled_programs_are_said_to_be_compiled_and_not_run():
    cell = jaxrnn.GRU(8)
    params = cell.init(jax.random.key(0), 4)
    xs = jax.ShapeDtypeStruct((20, 2, 4), "float32")
    found = jaxrnn.explain(cell, params, xs, compile=["cpu"])
    forward, gradient = found.rows[0].compiled
    assert forward.chip == "cpu"
    assert not forward.error
    assert forward.launches is None
    assert 0 < forward.bytes_moved < gradient.bytes_moved
    assert forward.temporary_bytes <= gradient.temporary_bytes
    assert "for cpu, not run: " in str(found)
    assert "MB moved" in str(found)
    assert [len(row.compiled) for row in found.rows] == [2, 0, 0]
    assert all(not row.compiled for row in jaxrnn.explain(cell, params, xs).rows)


@pytest.mark.parametrize(("chip", "package"), [("H100", "nvcc"), ("v5e", "libtpu")])
def test_a_missing_compiler_is_named_in_the_row(chip, package, monkeypatch):
    from jax.experimental import topologies

    def missing(*args, **kwargs):
        raise RuntimeError("there is none")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cell = jaxrnn.Elman(4)
    params = cell.init(jax.random.key(0), 4)
    xs = jax.ShapeDtypeStruct((5, 2, 4), "float32")
    found = jaxrnn.explain(cell, params, xs, compile=[chip])
    (row,) = (row for row in found.rows if row.compiled)
    assert row.platform == {"H100": "gpu", "v5e": "tpu"}[chip]
    for cost in row.compiled:
        assert f"no compiler for {chip} is at hand" in cost.error
        assert package in cost.error
        assert "there is none" in cost.error
    assert "compiled     nothing: no compiler" in str(found)


def test_chips_that_are_not_known_are_refused(plain_errors):
    cell = jaxrnn.Elman(4)
    params = cell.init(jax.random.key(0), 4)
    xs = jax.ShapeDtypeStruct((5, 2, 4), "float32")
    with pytest.raises(ValueError, match=r"'H200' cannot be described.*H100, A100, v4"):
        jaxrnn.explain(cell, params, xs, compile=["H200"])
    with pytest.raises(TypeError, match=r"write a list of chips, \['H100'\]"):
        jaxrnn.explain(cell, params, xs, compile="H100")
