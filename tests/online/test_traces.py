"""Traces by units: exact where no unit sees another, else SnAp-1 or e-prop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from online_cases import B, case, looped
from reference import choose, compiled
from subjects import SUBJECTS, D, assert_same, normal

import jaxrnn
from jaxrnn import Window
from jaxrnn.diagnostics import online_error
from jaxrnn.online import RTRL, UORO, Traces
from jaxrnn.online.traces import TracesState


def step_loss(traces):
    """The loss of one step as a function of everything, for ``jax.grad``."""

    def loss(params, state, now):
        x, target, keep, reset = now
        state, y = traces.step(params["rnn"], state, x, mask=keep, reset=reset)
        error = jnp.square(jnp.sin(y @ params["readout"]) - target).sum(-1)
        return jnp.where(keep, error, 0).sum(), state

    return loss


def traced(name, through="unit"):
    """The sums of the online gradients of every prefix, and the last state."""
    params, window, _ = case(name)
    traces = Traces(SUBJECTS[name], through)
    step = jax.value_and_grad(step_loss(traces), has_aux=True)

    def unrolling(params, rows):
        def body(before, now):
            state, total = before
            (_, state), gradient = step(params, state, now)
            total = jax.tree.map(jnp.add, total, gradient)
            return (state, total), total

        first = traces.init(params["rnn"], rows[0][0])
        zero = jax.tree.map(jnp.zeros_like, params)
        (state, _), totals = jax.lax.scan(body, (first, zero), rows)
        return totals, state

    return compiled(unrolling)(params, tuple(window[:4]))


UNITS = {
    "indrnn_learned": 1,
    "diagonal_gru": 1,
    "diagonal_lstm_learned": 2,
    "min_gru_learned": 1,
    "min_lstm": 1,
    "rg_lru": 1,
    "user": 1,
    "user_linear": 2,
    "rtu": 2,
    "nonlinear_rtu_learned": 2,
    "lru": 2,
}


@pytest.mark.parametrize("name", UNITS)
def test_traces_are_backpropagation_where_no_unit_sees_another(name, x64):
    """At every prefix, one step at a time, with masks, resets and a readout."""
    totals, _ = traced(name)
    assert_same(totals, looped(name), 1e-11)
    params, window, _ = case(name)
    (found,) = Traces(SUBJECTS[name]).units(params["rnn"], window.inputs[0])
    assert (found.parts, found.exact) == (UNITS[name], True)


# -- cells whose units see each other --------------------------------------------------


def dense(name, params, rows, stopped, keep_only):
    """Real-time recurrent learning of one stream with the whole influence, of which
    ``keep_only`` keeps a part after every step; None where ``stopped`` cuts the step.

    Returns the sums of the gradients of every prefix.
    """
    cell = SUBJECTS[name]
    flat, unflatten = ravel_pytree(params["rnn"])
    like = cell.initial_carry(params["rnn"])
    vector, to_carry = ravel_pytree(like)

    def step(flat, vector, x, keep, reset):
        params, carry = unflatten(flat), to_carry(vector)
        carry = choose(reset, cell.initial_carry(params), carry)
        z, options = cell.project(params, x), {}
        if stopped:
            h = carry.h if isinstance(carry, jaxrnn.LSTMState) else carry
            options["recurrent_h"] = jax.lax.stop_gradient(h)
        new = cell.step(params, carry, z, **options)
        return ravel_pytree(choose(keep, new, carry))[0]

    def loss(flat, readout, vector, x, target, keep):
        y = cell.output(unflatten(flat), to_carry(vector), x)
        error = jnp.square(jnp.sin(y @ readout) - target).sum()
        return jnp.where(keep, error, 0)

    def body(before, now):
        vector, M, total = before
        x, target, keep, reset = now
        F, J = jax.jacrev(step, (0, 1))(flat, vector, x, keep, reset)
        vector, M = step(flat, vector, x, keep, reset), keep_only(J @ M + F)
        own, readout, d = jax.grad(loss, (0, 1, 2))(
            flat, params["readout"], vector, x, target, keep
        )
        one = {"rnn": unflatten(own + d @ M), "readout": readout}
        total = jax.tree.map(jnp.add, total, one)
        return (vector, M, total), total

    first = jax.jacrev(lambda f: ravel_pytree(cell.initial_carry(unflatten(f)))[0])
    zero = jax.tree.map(jnp.zeros_like, params)
    M = keep_only(first(flat))
    return jax.lax.scan(body, (vector, M, zero), rows)[1]


def own_units(name, params):
    """Where in (n, P) a number of the carry and a parameter have the same unit."""
    cell = SUBJECTS[name]
    units = cell.hidden_size
    n = ravel_pytree(cell.initial_carry(params["rnn"]))[0].size
    of_parameter = jax.tree.map(
        lambda p: np.broadcast_to(np.arange(p.shape[-1]) % units, p.shape),
        params["rnn"],
    )
    of_parameter = np.concatenate([a.ravel() for a in jax.tree.leaves(of_parameter)])
    return (np.arange(n) % units)[:, None] == of_parameter


@pytest.mark.parametrize("through", ["unit", None], ids=["snap", "eprop"])
@pytest.mark.parametrize("name", ["elman_learned", "lstm_learned", "gru_learned"])
def test_traces_are_the_masked_influence_where_units_see_each_other(name, through, x64):
    """SnAp-1 with all parts of a unit, and e-prop, whose recurrent matrix is cut."""
    params, window, _ = case(name)
    same = own_units(name, params)

    @compiled
    def expected(rows):
        each = jax.vmap(
            lambda row: dense(
                name, params, row, through is None, lambda M: jnp.where(same, M, 0)
            ),
            in_axes=1,
        )(rows)
        return jax.tree.map(lambda a: a.sum(0), each)

    wanted = expected(tuple(window[:4]))
    totals, _ = traced(name, through)
    assert_same(totals, wanted, 1e-11)
    full = looped(name)["rnn"]["input_kernel"][-1]
    error = abs(totals["rnn"]["input_kernel"][-1] - full).max() / abs(full).max()
    assert 1e-3 < error < 1.5
    (found,) = Traces(SUBJECTS[name], through).units(params["rnn"], window.inputs[0])
    assert not found.exact


def test_the_last_layer_of_a_stack_is_exact_and_lower_ones_are_not(x64):
    layer = jaxrnn.stack(
        jaxrnn.DiagonalGRU(3), jaxrnn.layers.dense(3, jnp.tanh), jaxrnn.DiagonalGRU(3)
    )
    SUBJECTS["diagonal stack"] = layer
    try:
        totals, state = traced("diagonal stack")
        wanted = looped("diagonal stack")
    finally:
        del SUBJECTS["diagonal stack"]
    for place in ("layer_2",):
        assert_same(totals["rnn"][place], wanted["rnn"][place], 1e-11)
    assert_same(totals["readout"], wanted["readout"], 1e-11)
    lower, full = (t["rnn"]["layer_0"]["input_kernel"][-1] for t in (totals, wanted))
    assert 1e-2 < abs(lower - full).max() / abs(full).max() < 2
    assert np.vdot(lower, full) > 0
    assert len(state.traces) == 2


def test_without_its_traces_the_gradient_is_another(x64):
    params, window, _ = case("diagonal_lstm")
    traces = Traces(SUBJECTS["diagonal_lstm"])
    x = window.inputs[0]
    state = traces.init(params["rnn"], x)
    state, _ = traces.step(params["rnn"], state, x)
    forgotten = TracesState(state.carry, jax.tree.map(jnp.zeros_like, state.traces))

    def gradient(state):
        return traces.value_and_grad(
            params["rnn"], state, window.inputs[1], lambda y: jnp.sin(y).sum()
        )[1]["input_kernel"]

    kept, lost = gradient(state), gradient(forgotten)
    assert abs(kept - lost).max() > 1e-2 * abs(kept).max()


def test_a_step_is_the_layers_own_step(x64):
    """The carry and the output, bit for bit, and no gradient to the state."""
    params, window, _ = case("stack")
    layer, traces = SUBJECTS["stack"], Traces(SUBJECTS["stack"])
    state = traces.init(params["rnn"], window.inputs[0])
    new, y = traces.step(params["rnn"], state, window.inputs[0])
    carry, same = layer(params["rnn"], state.carry, window.inputs[0])
    assert_same((new.carry, y), (carry, same), 1e-14)

    def through_state(state):
        new, y = traces.step(params["rnn"], state, window.inputs[1])
        numbers = jax.tree.leaves((new, y))
        return sum(a.sum() for a in numbers)

    blocked = jax.grad(through_state)(new)
    assert not any(a.any() for a in jax.tree.leaves(blocked))


def test_forward_mode_is_reverse_mode(x64):
    params, window, _ = case("gru")
    traces, rng = Traces(SUBJECTS["gru"]), np.random.default_rng(0)
    state = traces.init(params["rnn"], window.inputs[0])
    state, _ = traces.step(params["rnn"], state, window.inputs[0])

    def loss(params):
        return jnp.sin(traces.step(params, state, window.inputs[1])[1]).sum()

    direction = normal(rng, params["rnn"])
    along = jax.jvp(loss, (params["rnn"],), (direction,))[1]
    each = jax.tree.map(jnp.vdot, jax.grad(loss)(params["rnn"]), direction)
    assert_same(along, sum(jax.tree.leaves(each)), 1e-12)


def test_dropped_noise_and_keys(x64):
    """With random numbers the step is that of the layer with the same key."""
    layer = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.zoneout(jaxrnn.IndRNN(3), 0.3))
    params = layer.init(jax.random.key(0), 2)
    x, key = (
        jnp.asarray(np.random.default_rng(0).normal(size=(B, 2))),
        jax.random.key(4),
    )
    traces = Traces(layer)
    state = traces.init(params, x)
    new, y = traces.step(params, state, x, key=key)
    assert_same((new.carry, y), layer(params, state.carry, x, key=key), 1e-14)
    with pytest.raises(ValueError, match="needs key"):
        traces.step(params, state, x)


# -- derivatives of the user's own -----------------------------------------------------


def spiking(linear):
    """A leaky unit that is reset when it fires, with a surrogate of its derivative."""

    @jax.custom_vjp
    def fires(x):
        return jnp.where(x > 0, jnp.ones_like(x), jnp.zeros_like(x))

    def backward(x, g):
        g = g if linear else jnp.clip(g, -0.01, 0.01)
        return (g / (1 + jnp.abs(x)) ** 2,)

    fires.defvjp(lambda x: (fires(x), x), backward)

    @dataclasses.dataclass(frozen=True)
    class Spiking(jaxrnn.Cell):
        hidden_size: int = 3

        def init(self, key, input_size):
            kernel = jax.random.normal(key, (input_size, self.hidden_size))
            return {"kernel": kernel, "leak": jnp.full(self.hidden_size, 0.7)}

        def step(self, params, carry, z):
            return (
                params["leak"] * carry
                - 0.5 * fires(carry - 0.3)
                + (z @ params["kernel"])
            )

    return Spiking()


def test_a_surrogate_derivative_is_followed(x64):
    """One of ``jax.custom_vjp``, which forward mode does not have."""
    cell = spiking(True)
    params = cell.init(jax.random.key(0), 2)
    xs = jax.random.normal(jax.random.key(1), (9, 2))
    found = online_error(
        Traces(cell), params, Window(xs, None), loss=lambda y, _: jnp.sin(y).sum(-1)
    )
    assert found.relative_error < 1e-14
    assert Traces(cell).units(params, xs[0])[0].exact


def test_a_surrogate_that_has_no_forward_mode_is_refused(plain_errors):
    cell = spiking(False)
    params = cell.init(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"Traces: Spiking: .*not linear.*RTRL"):
        Traces(cell).init(params, jnp.ones(2))

    def losses(params, carry, window):
        out = jaxrnn.unroll(cell, params, window.inputs, carry, return_carries=True)
        return out[1].sum(-1), out[2]

    uoro, window = (
        UORO(losses, cell.initial_carry, k1=1),
        Window(jnp.ones((2, 2)), None),
    )
    with pytest.raises(ValueError, match=r"UORO needs .* forward mode.*RTRL"):
        uoro.value_and_grad(
            params, window, uoro.init(params, window), key=jax.random.key(0)
        )


# -- long streams ----------------------------------------------------------------------


def agent(steps, learning_rate=0.03):
    """An online learner: step, loss, update, for a stream that it draws itself."""
    cell = jaxrnn.cells.RTU(4)
    traces, optimizer = Traces(cell), optax.adam(learning_rate)
    params = {
        "rnn": cell.init(jax.random.key(0), 2),
        "readout": jnp.zeros((8, 1)),
    }

    def loss(params, state, x, target, reset):
        state, y = traces.step(params["rnn"], state, x, reset=reset)
        return jnp.square((y @ params["readout"])[0] - target), state

    def body(t, before):
        params, opt_state, state, previous, total = before
        x = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), (2,))
        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, state, x, previous, t % 1000 == 999
        )
        changes, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, changes)
        return params, opt_state, state, x[0], jnp.maximum(total * 0.999, value)

    def run(params):
        first = (
            params,
            optimizer.init(params),
            traces.init(params["rnn"], jnp.zeros(2)),
            jnp.zeros(()),
            jnp.zeros(()),
        )
        return jax.lax.fori_loop(0, steps, body, first)

    return jax.jit(run), params


@pytest.mark.usefixtures("optax_promotion")
def test_an_agent_of_a_hundred_thousand_steps_stays_finite():
    """In float32, and it has learned to say what it saw one step ago."""
    run, params = agent(100_000)
    params, _, state, _, recent = run(params)
    numbers = jax.tree.leaves((params, state))
    assert all(np.isfinite(a).all() for a in numbers)
    assert recent < 3


@pytest.mark.usefixtures("optax_promotion")
def test_memory_does_not_grow_with_the_length_of_the_stream():
    sizes = []
    for steps in (100, 10_000):
        run, params = agent(steps)
        memory = run.lower(params).compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes + memory.output_size_in_bytes)
    assert sizes[0] == sizes[1] > 0


def test_traces_overflow_where_backpropagation_does():
    """A unit that grows 1.5-fold a step: float32 ends after some 220 steps."""
    cell = jaxrnn.IndRNN(1, activation=lambda a: a)
    params = {
        "input_kernel": jnp.ones((1, 1)),
        "recurrent_vector": jnp.full(1, 1.5),
        "bias": jnp.zeros(1),
    }
    traces = Traces(cell)

    def norm_of_traces(steps):
        def body(state, x):
            return traces.step(params, state, x)[0], None

        xs = jnp.ones((steps, 1))
        state = jax.lax.scan(body, traces.init(params, xs[0]), xs)[0]
        return state.traces[0]["recurrent_vector"][0, 0]

    def full(steps):
        def last(params):
            return jaxrnn.unroll(cell, params, jnp.ones((steps, 1)))[0][0]

        return jax.grad(last)(params)["recurrent_vector"][0]

    np.testing.assert_allclose(norm_of_traces(40), full(40), rtol=1e-5)
    assert not np.isfinite(norm_of_traces(300))
    assert not np.isfinite(full(300))


# -- refusals --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rolled(jaxrnn.Cell):
    """A cell whose units see their neighbours without any matrix."""

    hidden_size: int

    def init(self, key, input_size):
        return {"kernel": jnp.ones((input_size, self.hidden_size))}

    def step(self, params, carry, z):
        return jnp.tanh(jnp.roll(carry, 1, -1) + z @ params["kernel"])


@dataclasses.dataclass(frozen=True)
class OneRate(Rolled):
    """A cell one of whose parameters moves all units."""

    def init(self, key, input_size):
        return super().init(key, input_size) | {"rate": jnp.ones(())}

    def step(self, params, carry, z):
        rate = jnp.broadcast_to(params["rate"], carry.shape)
        return jnp.tanh(rate * carry + z @ params["kernel"])


@dataclasses.dataclass(frozen=True)
class Memoryless(Rolled):
    """A cell without a carry."""

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return ()

    def step(self, params, carry, z):
        return ()

    def output(self, params, carry, x):
        return x @ params["kernel"]


REFUSED = {
    "reset before": (
        jaxrnn.GRU(4, reset_after=False),
        r"Traces: (params\['bias'\] of GRU moves more|GRU multiplies)",
    ),
    "projection": (jaxrnn.LSTM(4, projection_size=2), "Traces: .*LSTM"),
    "layer norm": (jaxrnn.LSTM(4, layer_norm=True), "Traces: .*LSTM"),
    "layer norm of a GRU": (jaxrnn.GRU(4, layer_norm=True), "Traces: .*GRU"),
    "matrix state": (jaxrnn.MLSTM(4, num_heads=2), "Traces: the carry of MLSTM"),
    "pictures": (
        jaxrnn.cells.ConvGRU(2, spatial_shape=(3,), kernel_size=2),
        "Traces: the carry of ConvGRU",
    ),
    "neighbours": (Rolled(5), "Traces: Rolled: units of the carry see each other"),
    "one rate": (OneRate(4), r"Traces: params\['rate'\] of OneRate moves more than"),
}


@pytest.mark.parametrize("through", ["unit", None], ids=["snap", "eprop"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_traces_by_units_is_refused_by_name(name, through, plain_errors):
    layer, words = REFUSED[name]
    shape = (3, D) if name == "pictures" else (D,)
    params = jax.eval_shape(lambda k: layer.init(k, D), jax.random.key(0))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match=words) as error:
        jax.eval_shape(Traces(layer, through).init, params, x)
    assert "RTRL" in str(error.value)


BAD = {
    "through": (lambda: Traces(jaxrnn.GRU(2), "all"), "through must be 'unit' or None"),
    "both directions": (
        lambda: Traces(jaxrnn.bidirectional(jaxrnn.GRU(2))),
        "inputs that have not come yet",
    ),
    "no cell": (lambda: Traces(jnp.tanh), "expected a jaxrnn.Cell or a layer"),
    "nothing recurrent": (
        lambda: Traces(jaxrnn.layers.dense(2)).init(
            {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, jnp.ones(3)
        ),
        "has no recurrent cell",
    ),
    "no carry": (
        lambda: Traces(Memoryless(2)).init({"kernel": jnp.ones((3, 2))}, jnp.ones(3)),
        "Traces: Memoryless has no carry",
    ),
    "bytes": (
        lambda: Traces(jaxrnn.IndRNN(2), max_bytes=10).init(
            jaxrnn.IndRNN(2).init(jax.random.key(0), 3), jnp.ones((5, 3))
        ),
        "Traces: the traces of IndRNN would take 40 bytes a stream, 200 for 5 streams",
    ),
    "state of another batch": (
        lambda: Traces(jaxrnn.IndRNN(2)).step(
            jaxrnn.IndRNN(2).init(jax.random.key(0), 3),
            Traces(jaxrnn.IndRNN(2)).init(
                jaxrnn.IndRNN(2).init(jax.random.key(0), 3), jnp.ones((5, 3))
            ),
            jnp.ones((4, 3)),
        ),
        "the carry of the state",
    ),
    "state of another cell": (
        lambda: Traces(jaxrnn.IndRNN(2)).step(
            jaxrnn.IndRNN(2).init(jax.random.key(0), 3),
            Traces(jaxrnn.MinGRU(2)).init(
                jaxrnn.MinGRU(2).init(jax.random.key(0), 3), jnp.ones(3)
            ),
            jnp.ones(3),
        ),
        "Traces: the traces of IndRNN in the state are .* another layer's",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name, plain_errors):
    call, words = BAD[name]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


@pytest.mark.parametrize("method", [Traces, RTRL, UORO])
def test_tracked_axes_of_a_mesh_are_refused_in_words(method, plain_errors):
    """RTRL and UORO beside them: all of them are computed per device."""
    cell = jaxrnn.IndRNN(2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    params = cell.init(jax.random.key(0), D)
    whole, split = (
        jax.sharding.PartitionSpec(),
        jax.sharding.PartitionSpec(None, "data"),
    )

    def losses(params, carry, window):
        out = jaxrnn.unroll(cell, params, window.inputs, carry, return_carries=True)
        return out[1].sum(-1), out[2]

    def start(params, xs):
        if method is Traces:
            return Traces(cell).init(params, xs[0]).carry
        online = method(losses, cell.initial_carry, k1=1)
        return online.init(params, jaxrnn.Window(xs, None), (B,)).carry

    def mapped(**options):
        run = jax.shard_map(
            start, mesh=mesh, in_specs=(whole, split), out_specs=whole, **options
        )
        return jax.eval_shape(run, params, jnp.ones((3, B, D)))

    assert mapped(check_vma=False).shape == (B, 2)
    with pytest.raises(ValueError, match=r"check_vma=True arrays vary over \['data'\]"):
        mapped()


def test_a_counter_in_the_carry_is_refused(plain_errors):
    @dataclasses.dataclass(frozen=True)
    class Counted(Rolled):
        def initial_carry(self, params, batch_shape=(), dtype=None):
            h = jnp.zeros((*batch_shape, self.hidden_size), dtype or jnp.float32)
            return {"h": h, "count": jnp.zeros(batch_shape, jnp.int32)}

        def step(self, params, carry, z):
            h = jnp.tanh(carry["h"] + z @ params["kernel"])
            return {"h": h, "count": carry["count"] + 1}

    traces = Traces(Counted(2))
    params = traces.layer.init(jax.random.key(0), D)
    with pytest.raises((TypeError, ValueError), match="Counted"):
        traces.init(params, jnp.ones(D))


def test_equal_traces_share_a_compiled_step():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Counted(jaxrnn.IndRNN):
        def step(self, params, carry, z):
            calls.append(1)
            return super().step(params, carry, z)

    params = jaxrnn.IndRNN(2).init(jax.random.key(0), 3)
    counts = []
    for _ in range(2):
        traces = Traces(Counted(2))
        state = traces.init(params, jnp.ones(3))
        state, _ = traces.step(params, state, jnp.ones(3))
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0
