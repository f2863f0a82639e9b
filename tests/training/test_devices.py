"""The batch split over devices gives the numbers of one device.

A process keeps the devices it began with, so what needs two of them (``check_...``)
runs in a pytest of its own.
"""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from collectives import collectives
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from quick import kept_programs
from reference import compiled
from subjects import assert_same

import jaxrnn
from jaxrnn import TBPTT, TBPTTState, Window, training
from jaxrnn.cli import main
from jaxrnn.online import RTRL, UORO, Traces
from jaxrnn.tasks import charlm, load, train
from jaxrnn.training.devices import choose_devices

# this process keeps those it has now, also where it calls the command line
jax.devices()
T, B, D = 7, 4, 3
LAYER = jaxrnn.stack(jaxrnn.LSTM(4, learned_initial_carry=True), jaxrnn.GRU(2))
NOISY = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.Elman(2))
SPLIT = TBPTTState(P("d"), P(None, "d"), P("d"))
SMALL = {"hidden": 24, "batch": 16, "tbptt": 16, "embed": 8}
QUICK = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
QUICK += [
    "--steps",
    "60",
    "--report-every",
    "10",
    "--evaluate-every",
    "30",
    "--checkpoint-seconds",
    "0",
]


def test_on_two_devices():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-o",
        "python_functions=check_*",
        __file__,
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


# -- TBPTT -----------------------------------------------------------------------------


def tbptt_of(layer, *pair, axis_name=None):
    def losses(params, carry, window):
        how = {
            "mask": window.mask,
            "resets": window.resets,
            "key": window.key if layer.requires_key else None,
        }
        _, ys, carries = jaxrnn.unroll(
            layer, params, window.inputs, carry, **how, return_carries=True
        )
        return jnp.square(ys - window.targets).mean(-1), carries

    return TBPTT(losses, layer.initial_carry, *pair, axis_name=axis_name)


def problem(layer=LAYER):
    """Parameters, and a window with holes in the mask: more of them in the second half
    of the batch, whose last stream is all hole.
    """
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a.astype(jnp.result_type(float)), layer.init(jax.random.key(0), D)
    )
    xs, targets = (
        jnp.asarray(random.normal(size=(T, B, size)), jnp.result_type(float))
        for size in (D, 2)
    )
    mask, resets = (
        random.random((T, B)) < np.array([1.0, 0.8, 0.4, 0.0]),
        random.random((T, B)) < 0.3,
    )
    return params, Window(xs, targets, jnp.asarray(mask), jnp.asarray(resets))


def over_devices(function, ins, outs, **options):
    mesh = Mesh(np.asarray(jax.devices()), ("d",))
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=ins,
        out_specs=outs,
        **{"check_vma": False, **options},
    )


def gradients(tbptt):
    return lambda params, window, state: tbptt.value_and_grad(params, window, state)


def updates(tbptt):
    optimizer = optax.adam(0.1)

    def run(params, window, state):
        moved, opt_state, loss, state = tbptt.update(
            optimizer, params, optimizer.init(params), window, state
        )
        return loss, (moved, opt_state), state

    return run


CASES = [
    (gradients, (2, 5), True),
    (gradients, (3, 3), True),
    (updates, (2, 5), True),
    (updates, (3, 9), False),
]


@pytest.mark.parametrize(("method", "pair", "flagged"), CASES)
def check_tbptt_gives_the_numbers_of_one_device(
    method, pair, flagged, x64, optax_promotion
):
    """The sequence in two pieces, not multiples of k1 long: the state goes on split
    as it came.
    """
    params, window = problem()
    window = window if flagged else Window(*window[:2])
    alone = compiled(method(tbptt_of(LAYER, *pair)))
    split = over_devices(
        method(tbptt_of(LAYER, *pair, axis_name="d")),
        (P(), P(None, "d"), SPLIT),
        (P(), P(), SPLIT),
    )
    states = [tbptt_of(LAYER, *pair).init(params, window, (B,))] * 2
    for piece in (slice(0, 4), slice(4, T)):
        part = jax.tree.map(lambda a, piece=piece: a[piece], window)
        *expected, states[0] = alone(params, part, states[0])
        *found, states[1] = compiled(split)(params, part, states[1])
        assert_same(found, expected)
        assert_same(states[1].carry, states[0].carry)
        np.testing.assert_array_equal(states[1].fresh, states[0].fresh)


def check_every_device_draws_its_own_noise():
    params, window = problem(NOISY)
    # two equal halves
    window = Window(*(jnp.concatenate([a[:, :2]] * 2, 1) for a in window[:2]))
    tbptt = tbptt_of(NOISY, T, axis_name="d")
    run = over_devices(
        lambda *a: tbptt.value_and_grad(*a[:3], key=a[3]),
        (P(), P(None, "d"), SPLIT, P()),
        (P(), P(), SPLIT),
    )
    _, _, state = jax.jit(run)(
        params, window, tbptt.init(params, window, (B,)), jax.random.key(1)
    )
    one, other = np.split(np.asarray(jax.tree.leaves(state.carry)[0]), 2)
    assert np.abs(one - other).max() > 1e-3


def check_every_device_cuts_at_random_places_of_its_own():
    """The carry shown here is the last step's gradient scale; the gradients are
    summed as without cuts.
    """

    def losses(params, carry, window):
        scale = window.gradient_scale
        ys = jaxrnn.truncated_unroll(
            jaxrnn.Elman(2),
            params,
            window.inputs,
            gradient_scale=scale,
            mask=window.mask,
        )[1]
        return jnp.square(ys).mean(-1), scale

    params, window = jaxrnn.Elman(2).init(jax.random.key(0), D), problem()[1]
    tbptt = TBPTT(
        losses,
        lambda _, batch: jnp.ones(batch),
        T,
        axis_name="d",
        truncation=jaxrnn.ARTBP(1.5),
    )
    run = over_devices(
        lambda *a: tbptt.value_and_grad(*a[:3], key=a[3]),
        (P(), P(None, "d"), SPLIT, P()),
        (P(), P(), SPLIT),
    )
    window, last = Window(*window[:2]), []
    for seed in range(8):
        _, gradient, state = jax.jit(run)(
            params, window, tbptt.init(params, window, (B,)), jax.random.key(seed)
        )
        last.append(np.split(np.asarray(state.carry), 2))
        assert np.isfinite(ravel_pytree(gradient)[0]).all()
    assert any((one != other).any() for one, other in last)
    assert len({one.tobytes() for one, _ in last}) > 1


def check_the_train_step_with_random_cuts(optax_promotion):
    """The state keeps its places and its structure from step to step."""

    def losses(params, carry, window):
        how = {
            "mask": window.mask,
            "resets": window.resets,
            "gradient_scale": window.gradient_scale,
        }
        _, ys, carries = jaxrnn.truncated_unroll(
            LAYER, params, window.inputs, carry, **how, return_carries=True
        )
        return jnp.square(ys - window.targets).mean(-1), carries

    params, window = problem()
    tbptt, optimizer = (
        TBPTT(losses, LAYER.initial_carry, 2, 5, truncation=jaxrnn.ARTBP(2.0)),
        training.make_optimizer(),
    )
    state = training.start(tbptt, optimizer, params, window, (B,), jax.random.key(1))
    train_step = training.make_train_step(
        tbptt, optimizer, lambda progress: progress, jax.make_mesh((2,), ("streams",))
    )
    for _ in range(2):
        state = train_step(state, window, np.float32(0.1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(state.carry.carry)} == {
        P("streams")
    }


def check_an_axis_that_jax_sums_over_too_is_refused(plain_errors):
    params, window = problem()
    tbptt = tbptt_of(LAYER, 2, axis_name="d")
    run = over_devices(
        tbptt.value_and_grad,
        (P(), P(None, "d"), SPLIT),
        (P(), P(), SPLIT),
        check_vma=True,
    )
    with pytest.raises(ValueError, match="pass check_vma=False"):
        jax.jit(run)(params, window, tbptt.init(params, window, (B,)))


def test_an_axis_that_is_not_there_is_named(plain_errors):
    params, window = problem()
    tbptt = tbptt_of(LAYER, 2, axis_name="streams")
    with pytest.raises(
        ValueError,
        match=r"no mapped axis has that name here: call it inside jax\.shard_map",
    ):
        tbptt.value_and_grad(params, window, tbptt.init(params, window, (B,)))


@pytest.mark.parametrize("name", ["traces", "rtrl", "uoro"])
def check_online_gradients_are_sums_over_devices(name, x64):
    """Every stream goes alone, so that nothing else is said between devices."""
    layer = jaxrnn.DiagonalLSTM(2, learned_initial_carry=True)
    params, window = problem(layer)

    def losses(params, carry, window):
        _, ys, carries = jaxrnn.unroll(
            layer,
            params,
            window.inputs,
            carry,
            mask=window.mask,
            resets=window.resets,
            return_carries=True,
        )
        return jnp.square(ys - window.targets).sum(-1), carries

    def by_traces(params, window):
        traces = Traces(layer)

        def body(before, now):
            state, total = before
            x, target, mask, reset = now
            _, gradient, state = traces.value_and_grad(
                params,
                state,
                x,
                lambda y: jnp.where(mask, jnp.square(y - target).sum(-1), 0).sum(),
                mask=mask,
                reset=reset,
            )
            return (state, jax.tree.map(jnp.add, total, gradient)), None

        first = traces.init(params, window.inputs[0])
        zero = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(body, (first, zero), tuple(window)[:4])[0][1]

    def by_windows(params, window):
        # In one window UORO has drawn nothing yet.
        kind, k1 = (RTRL, 2) if name == "rtrl" else (UORO, T)
        online = kind(losses, layer.initial_carry, k1=k1)
        key = None if name == "rtrl" else jax.random.key(0)
        state = online.init(params, window, window.inputs.shape[1:-1])
        gradient = online.value_and_grad(params, window, state, key=key)[1]
        steps = jnp.maximum(window.mask.sum(), 1).astype(float)
        return jax.tree.map(lambda g: g * steps, gradient)

    total = by_traces if name == "traces" else by_windows
    split = over_devices(
        lambda *arrays: jax.lax.psum(total(*arrays), "d"), (P(), P(None, "d")), P()
    )
    assert_same(compiled(split)(params, window), compiled(total)(params, window), 1e-12)


# -- the train step --------------------------------------------------------------------


def stepped(layer, mesh, batch=B):
    """The train step, and a state and window of its own for each call."""
    params, window = problem(layer)
    tbptt, optimizer = tbptt_of(layer, 2, 5), training.make_optimizer()
    state = training.start(
        tbptt, optimizer, params, window, (batch,), jax.random.key(1)
    )
    return (
        training.make_train_step(tbptt, optimizer, lambda progress: progress, mesh),
        state,
        window,
    )


def check_the_train_step_compiles_once_and_leaves_the_streams_where_they_are(
    optax_promotion,
):
    train_step, state, window = stepped(
        jaxrnn.GRU(2), jax.make_mesh((2,), ("anything",))
    )
    alone, expected, _ = stepped(jaxrnn.GRU(2), None)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compilations = []
        patch.setattr(
            "logging.Logger.handle",
            lambda self, record: compilations.append(record.getMessage()),
        )
        for _ in range(3):
            state, expected = (
                train_step(state, window, np.float32(0.1)),
                alone(expected, window, np.float32(0.1)),
            )
    assert (
        sum(message.startswith("Compiling jit(step)") for message in compilations) == 2
    )
    assert_same(
        jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, expected), 1e-5
    )
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(state.carry.carry)} == {
        P("anything")
    }
    assert {len(leaf.addressable_shards) for leaf in jax.tree.leaves(state)} == {2}


def check_noise_is_that_of_one_device(optax_promotion):
    """Drawn for the whole batch; but inside shard_map each device draws its own."""
    states = []
    for mesh in (None, jax.make_mesh((2,), ("streams",))):
        train_step, state, window = stepped(NOISY, mesh)
        for _ in range(3):
            state = train_step(state, window, np.float32(0.1))
        states.append(jax.tree.map(np.asarray, state))
    assert_same(*states, 1e-5)
    losses = []
    for name in (None, "streams"):
        tbptt, optimizer = (
            tbptt_of(NOISY, 2, 5, axis_name=name),
            training.make_optimizer(),
        )
        params, window = problem(NOISY)
        state = training.start(
            tbptt, optimizer, params, window, (B,), jax.random.key(1)
        )
        train_step = training.make_train_step(
            tbptt, optimizer, training.constant(0.1), jax.make_mesh((2,), ("streams",))
        )
        losses.append(float(train_step(state, window, np.float32(0.1)).loss))
    assert losses[0] != losses[1]


def step_with(layer, params, window):
    """A step over two devices, whose windows are as long as ``window``; its program."""

    def losses(params, carry, window):
        _, ys, carries = jaxrnn.unroll(
            layer,
            params,
            window.inputs,
            carry,
            mask=window.mask,
            resets=window.resets,
            key=window.key,
            return_carries=True,
        )
        return jnp.square(ys.mean(-1)), carries

    tbptt = TBPTT(losses, layer.initial_carry, len(window.inputs))
    optimizer, mesh = training.make_optimizer(), jax.make_mesh((2,), ("streams",))
    state = training.start(tbptt, optimizer, params, window, (B,), jax.random.key(1))
    step = training.make_train_step(tbptt, optimizer, training.constant(0.1), mesh)
    compiled = inspect.getclosurevars(inspect.unwrap(step)).nonlocals["compiled"]
    state = training.shard_state(state, mesh)
    return compiled.lower(state, window, np.float32(0.1)).compile()


@pytest.mark.parametrize("name", ["lstm", "lru"])
def check_the_train_step_sends_the_gradients_once(name, optax_promotion):
    """One all-reduce of the gradients and the loss, outside of every loop, and some
    numbers of the mask; whatever the length.
    """
    layer = jaxrnn.LSTM(8) if name == "lstm" else jaxrnn.LRU(8)
    layer = jaxrnn.stack(layer, jaxrnn.dropout(0.5))
    params, window = problem(layer)
    sent = [
        collectives(
            step_with(
                layer,
                params,
                jax.tree.map(lambda a, n=n: jnp.resize(a, (n, *a.shape[1:])), window),
            )
        )
        for n in (4, 12)
    ]
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for found in sent:
        assert {each.name for each in found} == {"all-reduce"}
        assert not any(each.looped for each in found)
        assert sum(each.bytes >= needed for each in found) == 1
        assert sum(each.bytes for each in found) < needed + 200
    assert len(sent[0]) == len(sent[1])


@pytest.mark.parametrize("rows", [4, 3])
def check_a_batch_step_splits_its_rows(rows, optax_promotion):
    """Also rows that the devices do not divide, which all compute."""
    cell = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.GRU(3))
    params, optimizer = cell.init(jax.random.key(0), D), training.make_optimizer()
    xs = np.random.default_rng(0).normal(size=(T, rows, D)).astype(np.float32)

    def loss(params, xs, key):
        ys = jaxrnn.unroll(cell, params, xs, key=key)[1]
        return jnp.square(ys).sum(), jnp.asarray(ys.size)

    states = []
    for mesh in (None, jax.make_mesh((2,), ("rows",))):
        step = training.make_batch_step(
            loss, optimizer, training.constant(0.1), mesh, axis=1
        )
        state = training.fresh_state(optimizer, params, jax.random.key(1))
        for _ in range(2):
            state = step(state, xs, np.float32(0))
        states.append(jax.tree.map(np.asarray, state))
    assert_same(*states, 1e-5)


def check_the_steps_run_where_a_mesh_of_explicit_axes_is_set(optax_promotion):
    """Also with windows whose type holds such a mesh."""
    mesh = Mesh(np.asarray(jax.devices()), ("s",), axis_types=(AxisType.Explicit,))

    def trained(mesh):
        train_step, state, window = stepped(jaxrnn.GRU(2), mesh)
        for _ in range(2):
            state = train_step(state, window, np.float32(0.1))
        assert float(training.sharding.zero_like(state.loss)) == 0
        return jax.tree.map(np.asarray, state)

    def batched(mesh):
        step = training.make_batch_step(
            lambda p, xs, key: (jnp.square(p["w"] * xs).sum(), jnp.asarray(xs.size)),
            optimizer := training.make_optimizer(),
            training.constant(0.1),
            mesh,
        )
        params = {"w": jnp.ones(())}
        state = training.fresh_state(optimizer, params, jax.random.key(1))
        return jax.tree.map(np.asarray, step(state, jnp.ones((4, 3)), np.float32(0)))

    expected = trained(None), batched(None)
    with jax.set_mesh(mesh):
        found = trained(mesh), batched(mesh)
    assert_same(found, expected, 1e-5)


def check_an_axis_of_another_name_than_the_mesh_has(plain_errors):
    with pytest.raises(ValueError, match="the axis of the mesh is 'a', but TBPTT"):
        training.make_train_step(
            tbptt_of(LAYER, 2, axis_name="b"),
            training.make_optimizer(),
            training.constant(0.1),
            jax.make_mesh((2,), ("a",)),
        )


def check_a_mesh_of_one_device_changes_nothing_nor_its_noise(optax_promotion):
    states = []
    for mesh in (None, Mesh(np.asarray(jax.devices()[:1]), ("streams",))):
        train_step, state, window = stepped(NOISY, mesh)
        states.append(
            jax.tree.map(np.asarray, train_step(state, window, np.float32(0.1)))
        )
    assert_same(*states, 0)


def check_meshes_that_do_not_fit(plain_errors):
    both = jax.make_mesh((2, 1), ("a", "b"))
    for name, given in (
        ("local_rows", (both, 2)),
        ("global_batch", (np.ones(2), both)),
    ):
        with pytest.raises(ValueError, match=f"^{name}: the mesh must have one axis"):
            getattr(training, name)(*given)
    with pytest.raises(
        ValueError, match=r"the mesh must have one axis, .* but it has \('a', 'b'\)"
    ):
        stepped(LAYER, jax.make_mesh((2, 1), ("a", "b")))
    for batch in (3, ()):
        train_step, state, window = stepped(
            LAYER, jax.make_mesh((2,), ("a",)), *([batch] if batch else [])
        )
        state = (
            state
            if batch
            else state._replace(carry=state.carry._replace(fresh=jnp.asarray(True)))
        )
        with pytest.raises(
            ValueError, match="the first batch axis must be a multiple of 2"
        ):
            train_step(state, window, np.float32(0))


# -- the program -----------------------------------------------------------------------


def check_a_run_has_the_metrics_of_one_device(tmp_path, optax_promotion):
    options, budget = (
        {**SMALL, "dropout": 0},
        {"steps": 20, "report_every": 5, "evaluate_every": 10},
    )
    runs = [
        train("charlm", {**options, "devices": n}, budget, out=tmp_path / str(n))[0]
        for n in (1, 2)
    ]
    for a, b in zip(*(run.records("metrics.jsonl") for run in runs), strict=True):
        assert a.keys() == b.keys()
        assert all(b[k] == pytest.approx(a[k], rel=1e-4) for k in a if k != "sample")
    assert [
        json.loads((run.path / "result.json").read_text())["devices"] for run in runs
    ] == [1, 2]


def check_what_is_chosen():
    assert [choose_devices(0, batch, 256) for batch in (1, 15, 16, 17, 32)] == [
        1,
        1,
        2,
        1,
        2,
    ]
    assert [choose_devices(0, 32, hidden) for hidden in (8, 384, 385, 512)] == [
        2,
        2,
        1,
        1,
    ]
    assert [choose_devices(n, 4, 512) for n in (1, 2)] == [1, 2]
    with pytest.raises(
        training.InputError,
        match="--devices 2 does not divide --batch 5: choose a --batch",
    ):
        choose_devices(2, 5, 8)
    with pytest.raises(
        training.InputError,
        match=r"--devices 3, but there are only 2 devices here; .*JAX_NUM_CPU_DEVICES=3 ",  # noqa: E501
    ):
        choose_devices(3, 6, 8)


def command(*words):
    return [sys.executable, "-m", "jaxrnn", "train", "charlm", *map(str, words)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run on two devices that was left alone, and one that was killed and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    environment = (
        os.environ
        | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
        | kept_programs(folder / "programs")
    )
    run = {"capture_output": True, "text": True, "timeout": 200, "env": environment}
    alone = subprocess.run(command(*QUICK, "--out", folder / "alone"), **run)
    assert alone.returncode == 0, alone.stderr
    metrics = folder / "killed/metrics.jsonl"
    process = subprocess.Popen(
        command(*QUICK, "--out", folder / "killed"),
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    while not (metrics.exists() and metrics.stat().st_size > 300):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    last = subprocess.run(command("--out", folder / "killed", "--resume"), **run)
    assert last.returncode == 0, last.stderr
    assert "resumed at step" in last.stdout
    return folder


def test_killed_and_resumed_on_two_devices_a_run_ends_with_the_same_metrics(killed):
    for name in ("metrics.jsonl", "config.json"):
        assert (killed / "killed" / name).read_bytes() == (
            killed / "alone" / name
        ).read_bytes()
    assert (
        json.loads((killed / "alone/config.json").read_text())["options"]["devices"]
        == 2
    )


def test_a_run_on_two_devices_is_read_where_there_is_one(killed, capsys, tmp_path):
    (tmp_path / "other.txt").write_text("The following is a list of names. " * 30)
    assert main(["sample", str(killed / "alone"), "--length", "20"]) == 0
    assert main(["predict", str(killed / "alone"), "some text"]) == 0
    assert (
        main(["evaluate", str(killed / "alone"), "--data", str(tmp_path / "other.txt")])
        == 0
    )
    trained, notes = load(killed / "alone")
    assert notes == []
    assert {
        len(leaf.sharding.device_set) for leaf in jax.tree.leaves(trained.params)
    } == {1}


def test_a_run_on_two_devices_goes_on_on_one(killed, tmp_path, capsys, optax_promotion):
    copies = [tmp_path / "left_out", tmp_path / "asked"]
    for copy, words in zip(copies, ([], ["--devices", "1"]), strict=True):
        shutil.copytree(killed / "alone", copy)
        shutil.rmtree(copy / "checkpoints/60")
        assert main(["train", "charlm", "--resume", "--out", str(copy), *words]) == 0
        assert (
            "devices: 1, where the run was started with 2; the numbers are the same up "
            "to rounding" in capsys.readouterr().out
        )
        runs = [training.Run.open(path) for path in (copy, killed / "alone")]
        for a, b in zip(*(run.records("metrics.jsonl") for run in runs), strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() - {"sample"}:
                assert b[name] == pytest.approx(a[name], rel=1e-5), name


def test_a_run_is_not_resumed_on_devices_that_are_not_there(killed, capsys):
    words = ["--resume", "--out", str(killed / "alone"), "--devices", "2"]
    assert main(["train", "charlm", *words]) == 2
    assert (
        "cannot be continued here: --devices 2, but there is only 1 device here; a CPU "
        "has more with JAX_NUM_CPU_DEVICES=2" in capsys.readouterr().err
    )


def test_a_run_from_before_there_was_a_choice_goes_on_on_one_device(
    tmp_path, optax_promotion
):
    run, _, _ = train(
        "charlm",
        SMALL,
        {"steps": 10, "report_every": 5, "evaluate_every": 5},
        out=tmp_path / "run",
    )
    before = (run.path / "metrics.jsonl").read_bytes()
    assert run.config["options"].pop("devices") == 1
    (run.path / "config.json").write_text(json.dumps(run.config))
    train("charlm", out=run.path, resume=True)
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_where_there_is_one_device_nothing_is_split_and_more_are_refused():
    assert choose_devices(0, 32, 64) == 1
    with pytest.raises(
        training.InputError,
        match=r"--devices 2, but there is only 1 device here; .*jax_num_cpu_devices\", 2",  # noqa: E501
    ):
        charlm.prepare(charlm.Options(**SMALL, devices=2))
