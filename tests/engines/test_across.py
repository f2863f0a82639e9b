"""Time split over devices by `Across`: the numbers of one device, and few bytes.

Eight devices are needed, so the checks (``check_...``), here and in
tests/distributed/test_wavefront.py, run in a pytest of their own.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from subjects import LINEAR, SUBJECTS, assert_same, draw

import jaxrnn
from jaxrnn import Across, layers

DEVICES = 8
OWN = {
    "both_ways": jaxrnn.bidirectional(
        jaxrnn.MinGRU(2), jaxrnn.MinGRU(3, learned_initial_carry=True)
    ),
    "deep": jaxrnn.stack(
        layers.causal_conv(3, jnp.tanh),
        jaxrnn.residual_block(jaxrnn.LRU(3), 3),
        layers.shift(3),
        jaxrnn.cells.DeltaNet(4, num_heads=2, conv=3),
    ),
    "matrix_both_ways": jaxrnn.bidirectional(jaxrnn.MLSTM(2), jaxrnn.LRU(3)),
}
ALL = SUBJECTS | OWN
MATRIX = ["mlstm", "mlstm_learned", "delta_net", "gated_delta_net", "kda", "gdn2"]
MATRIX += ["delta_product_learned", "mamba", "mamba2", "mamba3", "gla", "retnet"]
MATRIX += ["hgrn2_learned", "rwkv6", "rwkv7", "mlstm_mixer"]
# m: a mask with holes, whole stretches among them; r: resets; b: backwards; s: two
# steps a device, so that a convolution looks past its neighbour
OFTEN = [
    ("lru", "mr", "gather", 4),
    ("both_ways", "mr", "gather", 4),
    ("user_linear", "mb", "permute", 8),
    ("retnet", "mr", "permute", 4),
]
RARELY = [
    (name, flags, exchange, devices)
    for name in [*LINEAR, "min_gru_learned", "causal_conv", "shift", *MATRIX, *OWN]
    for flags, exchange, devices in (
        ("", "gather", 2),
        ("m", "gather", 4),
        ("mr", "permute", 8),
        ("mb", "permute", 4),
        ("mrb", "gather", 8),
        ("sb", "permute", 8),
    )
]
ROWS = OFTEN + [pytest.param(*row, marks=pytest.mark.slow) for row in RARELY]


@pytest.mark.parametrize(
    "which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)]
)
def test_over_eight_devices(which):
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(DEVICES),
        "JAX_PLATFORMS": "cpu",
    }
    files = [__file__, Path(__file__).parents[1] / "distributed" / "test_wavefront.py"]
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-m", which]
    words += ["-o", "python_functions=check_*", *map(str, files)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=3600, env=environment
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


def mesh_of(devices, kind=AxisType.Auto, names=("time",)):
    shape = (devices,) if len(names) == 1 else (devices // 2, 2)
    found = np.asarray(jax.devices()[:devices]).reshape(shape)
    return Mesh(found, names, axis_types=(kind,) * len(names))


def inputs_of(name, flags, devices, batch=2):
    steps = 2 * devices if "s" in flags else 16
    inputs = draw(ALL[name], 3, steps=steps, batch=(batch,))
    mask = inputs.mask.at[4:10, 0].set(False)  # a whole stretch, for one row
    return (
        *inputs[:3],
        mask if "m" in flags else None,
        inputs.resets if "r" in flags else None,
    )


def unrolled(layer, engine, flags=""):
    """``(params, xs, carry, mask, resets) -> (carry, ys)``."""

    def run(params, xs, carry, mask, resets):
        return jaxrnn.unroll(
            layer,
            params,
            xs,
            carry,
            engine=engine,
            mask=mask,
            resets=resets,
            reverse="b" in flags,
        )

    return run


def over(devices, run):
    """A function ``(params, xs, carry, mask, resets)`` whose time is split."""
    steps = P("time")
    return jax.shard_map(
        run,
        mesh=mesh_of(devices),
        in_specs=(P(), steps, P(), steps, steps),
        out_specs=(P(), steps),
        check_vma=False,
    )


def loss_of(results):
    return sum(
        (jnp.square(jnp.abs(leaf)) + 0.3 * jnp.real(leaf) + 0.2 * jnp.imag(leaf)).sum()
        for leaf in jax.tree.leaves(results)
    )


def everything(run):
    """Compiled: values, and gradients of params, inputs and the first carry."""

    def both(params, xs, carry, *flags):
        def loss(*given):
            return loss_of(run(*given, *flags))

        values = run(params, xs, carry, *flags)
        return values, jax.grad(loss, argnums=(0, 1, 2))(params, xs, carry)

    return jax.jit(both)


@pytest.mark.parametrize(("name", "flags", "exchange", "devices"), ROWS)
def check_the_numbers_of_one_device(name, flags, exchange, devices, x64):
    given = inputs_of(name, flags, devices)
    wanted = everything(unrolled(ALL[name], None, flags))(*given)
    engine = Across("time", exchange=exchange)
    found = everything(over(devices, unrolled(ALL[name], engine, flags)))(*given)
    assert_same(found, wanted)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(jaxrnn.Checkpoint(2), marks=pytest.mark.slow),
        pytest.param(jaxrnn.Associative(), marks=pytest.mark.slow),
        pytest.param(jaxrnn.Scan(save="everything"), marks=pytest.mark.slow),
        pytest.param(jaxrnn.Fused(interpret="tpu"), marks=pytest.mark.slow),
    ],
)
def check_any_engine_runs_the_steps_of_a_device(engine, x64):
    name = "user_linear"
    given = inputs_of(name, "mr", 4)
    wanted = everything(unrolled(ALL[name], None))(*given)
    found = everything(over(4, unrolled(ALL[name], Across("time", engine))))(*given)
    assert_same(found, wanted)


@pytest.mark.slow
def check_a_matrix_cell_step_by_step(x64):
    given = inputs_of("mlstm", "mr", 4)
    wanted = everything(unrolled(ALL["mlstm"], None))(*given)
    engine = Across("time", jaxrnn.Scan())
    assert_same(everything(over(4, unrolled(ALL["mlstm"], engine)))(*given), wanted)


def check_gradients_inside_shard_map(x64):
    """They are those of the sum of all losses, to be summed over the axis."""
    layer, (params, xs, carry, *_) = ALL["lru"], inputs_of("lru", "", 4)

    def local(params, xs, carry):
        def loss(params, xs, carry):
            run = unrolled(layer, Across("time"))
            return loss_of(run(params, xs, carry, None, None)[1])

        d_params, d_xs, d_carry = jax.grad(loss, argnums=(0, 1, 2))(params, xs, carry)
        return *jax.lax.psum((d_params, d_carry), "time"), d_xs

    split = jax.shard_map(
        local,
        mesh=mesh_of(4),
        in_specs=(P(), P("time"), P()),
        out_specs=(P(), P(), P("time")),
        check_vma=False,
    )
    found = jax.jit(split)(params, xs, carry)

    def loss(params, xs, carry):
        return loss_of(jaxrnn.unroll(layer, params, xs, carry)[1])

    wanted = jax.jit(jax.grad(loss, argnums=(0, 2, 1)))(params, xs, carry)
    assert_same(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["min_gru", "retnet"])
def check_second_derivatives(name, x64):
    params, xs, carry, *flags = inputs_of(name, "", 2)

    def slope(run):
        def loss(xs):
            return loss_of(run(params, xs, carry, *flags))

        def of_gradient(xs):
            return jnp.sin(jax.grad(loss)(xs)).sum()

        return jax.jit(jax.grad(of_gradient))(xs)

    found = slope(over(2, unrolled(ALL[name], Across("time"))))
    assert_same(found, slope(unrolled(ALL[name], None)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["min_gru", "retnet"])
def check_products_with_the_hessian(name, x64):
    params, xs, carry, *flags = inputs_of(name, "", 2)

    def product(run):
        def gradient(xs):
            return jax.grad(lambda xs: loss_of(run(params, xs, carry, *flags)))(xs)

        return jax.jit(lambda xs: jax.jvp(gradient, (xs,), (jnp.cos(xs),)))(xs)

    found = product(over(2, unrolled(ALL[name], Across("time"))))
    assert_same(found, product(unrolled(ALL[name], None)))


@dataclasses.dataclass(frozen=True)
class Multiplied(jaxrnn.LinearCell):
    """Its decay is w times one half of the inputs, which may be 0 without a reset."""

    def init(self, key, input_size):
        return {"w": jnp.arange(1.0, 1 + input_size // 2)}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, *params["w"].shape), params["w"].dtype)

    def affine(self, params, z):
        a, b = jnp.split(z, 2, axis=-1)
        return jnp.broadcast_to(params["w"], a.shape) * a, b


SECOND = {
    "forward over reverse": lambda loss, given, by: jax.jvp(
        jax.grad(loss), (given,), (by,)
    ),
    "reverse over reverse": lambda loss, given, by: jax.grad(
        lambda given: jnp.vdot(jax.grad(loss)(given), by)
    )(given),
    "forward over forward": lambda loss, given, by: jax.jvp(
        lambda given: jax.jvp(loss, (given,), (by,)), (given,), (by,)
    ),
}


@pytest.mark.parametrize(
    "mode",
    [
        "forward over forward",
        *[pytest.param(m, marks=pytest.mark.slow) for m in list(SECOND)[:2]],
    ],
)
def check_second_derivatives_through_decays_of_zero(mode, x64):
    cell = Multiplied()
    params = jax.tree.map(jnp.float64, cell.init(jax.random.key(0), 4))
    xs = jax.random.normal(jax.random.key(1), (16, 2, 4), jnp.float64)
    xs = xs.at[5, :, 0].set(0).at[11, 1].set(0)
    carry = jnp.ones((2, 2), jnp.float64)
    flags = jnp.ones((16, 2), bool), jnp.zeros((16, 2), bool).at[8, 0].set(True)

    def second(run):
        def loss(xs):
            return sum(
                jnp.sin(a).sum()
                for a in jax.tree.leaves(run(params, xs, carry, *flags))
            )

        return jax.jit(lambda xs: SECOND[mode](loss, xs, jnp.cos(xs)))(xs)

    found = second(over(4, unrolled(cell, Across("time"), "r")))
    assert_same(found, second(unrolled(cell, jaxrnn.Scan(), "r")))


FORWARD = [("min_gru", "mr", "gather"), ("lru", "mrb", "permute")]
FORWARD += [("retnet", "m", "gather"), ("both_ways", "mr", "permute")]


@pytest.mark.parametrize(
    ("name", "flags", "exchange"),
    [FORWARD[0], *[pytest.param(*row, marks=pytest.mark.slow) for row in FORWARD[1:]]],
)
def check_forward_mode(name, flags, exchange, x64):
    given = inputs_of(name, flags, 4)
    tangents = jax.tree.map(jnp.cos, given[:3])

    def pushed(run):
        def values(*moving):
            return run(*moving, *given[3:])

        return jax.jit(lambda *moving: jax.jvp(values, moving, tangents))(*given[:3])

    found = pushed(
        over(4, unrolled(ALL[name], Across("time", exchange=exchange), flags))
    )
    assert_same(found, pushed(unrolled(ALL[name], None, flags)))


@pytest.mark.slow
def check_jacobians_both_ways(x64):
    """Forward mode is mapped over too."""
    params, xs, carry, *flags = inputs_of("min_gru", "", 2)
    run = over(2, unrolled(ALL["min_gru"], Across("time")))

    def last(xs):
        return run(params, xs, carry, *flags)[0]

    found = [jax.jit(f(last))(xs) for f in (jax.jacfwd, jax.jacrev)]
    assert_same(*found)


def mapped(run, name):
    """``vmap`` of ``value_and_grad`` over three inputs, and the inputs."""
    params, xs, carry, *flags = inputs_of(name, "", 2)

    def loss(params, xs, carry):
        return loss_of(run(params, xs, carry, *flags))

    both = jax.value_and_grad(loss, argnums=(0, 1, 2))
    each = jax.vmap(both, in_axes=(None, 0, None))
    return jax.jit(each), (params, jnp.stack([xs, 2 * xs, 3 * xs]), carry)


def check_gradients_that_are_mapped_over_are_traced():
    run = over(2, unrolled(ALL["retnet"], Across("time")))
    function, given = mapped(run, "retnet")
    jax.eval_shape(function, *given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exchange"),
    [("min_gru", "gather"), ("retnet", "gather"), ("retnet", "permute")],
)
def check_gradients_are_mapped_over(name, exchange, x64):
    engine = Across("time", exchange=exchange)
    function, given = mapped(over(2, unrolled(ALL[name], engine)), name)
    assert_same(function(*given), mapped(unrolled(ALL[name], None), name)[0](*given))


@pytest.mark.parametrize("name", ["min_gru", "retnet"])
def check_no_steps(name, x64):
    params, xs, carry, mask, resets = inputs_of(name, "mr", 2)
    run = over(2, unrolled(ALL[name], Across("time")))
    last, ys = run(params, xs[:0], carry, mask[:0], resets[:0])
    assert_same(last, carry)
    assert not jax.tree.leaves(ys)[0].size


# -- what does not cross ---------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["gather", "permute"])
@pytest.mark.parametrize(
    "name", ["min_gru", pytest.param("kda", marks=pytest.mark.slow)]
)
def check_nothing_crosses_a_reset_between_devices(name, exchange, x64):
    """Bit for bit, values and gradients: other inputs, or NaN, on other devices."""
    params, xs, carry, *_ = inputs_of(name, "", 4)
    resets = jnp.zeros(xs.shape[:2], bool).at[jnp.arange(0, 16, 4)].set(True)
    run = over(4, unrolled(ALL[name], Across("time", exchange=exchange)))

    @jax.jit
    def of_third(params, xs, carry):
        """Outputs on the third device, and what they depend on."""

        def shown(params, xs, carry):
            ys = run(params, xs, carry, None, resets)[1][8:12]
            return jnp.square(ys).sum(), ys

        gradients, ys = jax.grad(shown, argnums=(1, 2), has_aux=True)(params, xs, carry)
        return ys, gradients[0][8:12], gradients[1]

    wanted = of_third(params, xs, carry)
    for other in (7.0, jnp.nan):
        spoiled = xs.at[:8].set(other).at[12:].set(3.0)
        found = of_third(params, spoiled, carry)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), found, wanted)
        assert all(jax.tree.leaves(same)), same


@pytest.mark.parametrize(
    "name",
    ["min_gru", *[pytest.param(n, marks=pytest.mark.slow) for n in ("mamba", "mlstm")]],
)
def check_nan_spreads_as_on_one_device(name, x64):
    params, xs, carry, *_ = inputs_of(name, "", 4)
    xs = xs.at[5, 0].set(jnp.nan)
    resets = jnp.zeros(xs.shape[:2], bool).at[10].set(True)
    wanted = jax.jit(unrolled(ALL[name], None))(params, xs, carry, None, resets)
    run = over(4, unrolled(ALL[name], Across("time")))
    found = jax.jit(run)(params, xs, carry, None, resets)
    assert_same(found, wanted)
    assert bool(jnp.isnan(found[1][9, 0]).all())
    assert not bool(jnp.isnan(found[1][10:]).any())


# -- what is sent ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Forgetful(jaxrnn.LinearCell):
    """Its state is multiplied by exp(-rate) at every step."""

    def init(self, key, input_size):
        return {"rate": jnp.float32(30.0)}

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, 3), params["rate"].dtype)

    def affine(self, params, z):
        return jnp.exp(-params["rate"] * jnp.ones_like(z)), z


@pytest.mark.parametrize(
    ("devices", "rate"),
    [
        (8, 30.0),
        (2, 1e4),
        pytest.param(2, 30.0, marks=pytest.mark.slow),
        pytest.param(8, 1e4, marks=pytest.mark.slow),
    ],
)
def check_decays_that_underflow(devices, rate):
    """Values and gradients are those of one device, and NaN does not get lost."""
    cell, params = Forgetful(), {"rate": jnp.float32(rate)}
    xs = jax.random.normal(jax.random.key(0), (32, 2, 3))
    carry = jnp.ones((2, 3))
    resets = jnp.zeros((32, 2), bool).at[25, 0].set(True)
    runs = [
        over(devices, unrolled(cell, Across("time"), "r")),
        unrolled(cell, jaxrnn.Scan(), "r"),
    ]
    for given in (xs, xs.at[5, :, 0].set(jnp.nan)):
        arguments = (params, given, carry, jnp.ones((32, 2), bool), resets)
        found, expected = (everything(run)(*arguments) for run in runs)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def arguments_of(layer, steps, features=3, batch=2):
    params = jax.eval_shape(lambda key: layer.init(key, features), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((steps, batch, features), jnp.float32)
    return params, xs


def summed_loss(layer, engine):
    def loss(params, xs):
        return jnp.square(jaxrnn.unroll(layer, params, xs, engine=engine)[1]).sum()

    return loss


def split_loss(layer, engine, devices):
    def local(params, xs):
        return jax.lax.psum(summed_loss(layer, engine)(params, xs), "time")

    return jax.shard_map(
        local,
        mesh=mesh_of(devices),
        in_specs=(P(), P("time")),
        out_specs=P(),
        check_vma=False,
    )


def said(function, arguments):
    """The collectives of a compiled function, by name."""
    found = collectives(jax.jit(function).lower(*arguments).compile())
    assert not any(each.looped for each in found), found
    return sorted((each.name, each.bytes) for each in found)


@pytest.mark.parametrize(
    "layer",
    [
        jaxrnn.LRU(4),
        *[
            pytest.param(layer, marks=pytest.mark.slow)
            for layer in (
                jaxrnn.MinLSTM(4),
                jaxrnn.MLSTM(4, num_heads=2),
                jaxrnn.cells.KDA(4, num_heads=2, conv=None),
                jaxrnn.cells.Mamba(4, conv=None),
            )
        ],
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize(
    ("exchange", "most"),
    [("gather", 1), pytest.param("permute", 3, marks=pytest.mark.slow)],
)
def check_bytes_do_not_depend_on_length(layer, exchange, most):
    engine = Across("time", exchange=exchange)

    def values(params, xs):
        return jaxrnn.unroll(layer, params, xs, engine=engine)

    forward = jax.shard_map(
        values,
        mesh=mesh_of(4),
        in_specs=(P(), P("time")),
        out_specs=(P(), P("time")),
        check_vma=False,
    )
    found = [said(forward, arguments_of(layer, steps)) for steps in (16, 64)]
    assert found[0] == found[1]
    names = [name for name, _ in found[0]]
    # one exchange, and the last carry from the last device to all
    assert names.count("all-reduce") == 1
    assert len(names) <= most + 1, names
    slope = jax.value_and_grad(split_loss(layer, engine, 4))
    found = [said(slope, arguments_of(layer, steps)) for steps in (16, 64)]
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer", [jaxrnn.MinGRU(64), jaxrnn.LRU(64)], ids=["min_gru", "lru"]
)
def check_memory_of_a_device(layer):
    """Of 65,536 steps an eighth takes .14 of the temporaries on one device."""
    given = arguments_of(layer, 65_536, features=64, batch=1)

    def temporaries(loss):
        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        compiled = program.lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    alone = temporaries(summed_loss(layer, None))
    split = temporaries(split_loss(layer, Across("time"), 8))
    assert split <= 0.35 * alone, (split, alone)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["gather", "permute"])
def check_other_axes_may_be_left_to_xla(exchange):
    """The batch is split over an automatic axis: no branch may hold a collective."""
    cell, mesh = jaxrnn.MinGRU(4), mesh_of(8, names=("time", "data"))
    params, xs, *_ = draw(cell, 3, steps=16, batch=(4,))

    def local(params, xs):
        engine = Across("time", exchange=exchange)
        return jaxrnn.unroll(cell, params, xs, engine=engine)[1]

    split = jax.shard_map(
        local,
        mesh=mesh,
        axis_names={"time"},
        in_specs=(P(), P("time")),
        out_specs=P("time"),
        check_vma=False,
    )
    put = jax.device_put(xs, NamedSharding(mesh, P("time", "data")))
    found, wanted = jax.jit(split)(params, put), jaxrnn.unroll(cell, params, xs)[1]
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=1e-6)


# -- types that split time -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("both_ways", ("time", "data")),
        *[
            pytest.param(name, names, marks=pytest.mark.slow)
            for name in ("lru", "deep", "mlstm_learned", "mamba", "causal_conv")
            for names in (("time",), ("time", "data"))
        ],
    ],
)
def check_time_is_read_from_the_type(name, names, x64):
    """Nothing is said at the call; results have the types of the inputs."""
    given = inputs_of(name, "mr", 4)
    program = everything(unrolled(ALL[name], None))
    wanted = program(*given)
    with jax.set_mesh(mesh_of(4, AxisType.Explicit, names)):
        steps, rows = P(*names), P(*names[1:])
        places = (P(), steps, rows, steps, steps)
        put = [jax.device_put(a, p) for a, p in zip(given, places, strict=True)]
        found = program(*put)
        kinds = [jax.typeof(found[0][1]), jax.typeof(found[1][1])]
        assert all(kind.sharding.spec[: len(names)] == names for kind in kinds), kinds
    assert_same(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, wanted))


@pytest.mark.slow
def check_noise_is_that_of_one_device_where_the_type_splits_time(x64):
    layer = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.MinGRU(3))
    params = layer.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (8, 2, 3))

    @jax.jit
    def outputs(params, xs):
        return jaxrnn.unroll(layer, params, xs, key=jax.random.key(2))[1]

    wanted = outputs(params, xs)
    with jax.set_mesh(mesh_of(4, AxisType.Explicit)):
        found = outputs(jax.device_put(params, P()), jax.device_put(xs, P("time")))
    assert_same(np.asarray(found), np.asarray(wanted))


def check_devices_draw_noise_of_their_own():
    layer = jaxrnn.dropout(0.5)

    def local(xs):
        engine, key = Across("time"), jax.random.key(0)
        return jaxrnn.unroll(layer, {}, xs, engine=engine, key=key)[1]

    split = jax.shard_map(
        local,
        mesh=mesh_of(2),
        in_specs=P("time"),
        out_specs=P("time"),
        check_vma=False,
    )
    ys = split(jnp.ones((4, 64)))
    assert bool((ys[:2] != ys[2:]).any())


def check_explain_says_what_is_exchanged():
    layer = jaxrnn.MinGRU(8)
    params = layer.init(jax.random.key(0), 3)
    xs = jnp.ones((64, 2, 3))
    found = []

    def local(params, xs):
        found.append(jaxrnn.explain(layer, params, xs, engine=Across("time")))
        return xs

    steps = P("time")
    split = jax.shard_map(
        local, mesh=mesh_of(4), in_specs=(P(), steps), out_specs=steps, check_vma=False
    )
    jax.eval_shape(split, params, xs)
    with jax.set_mesh(mesh_of(4, AxisType.Explicit)):
        found.append(jaxrnn.explain(layer, params, jax.device_put(xs, steps)))
    # two states (2, 8) of four devices, in float32
    words = "across time, 4 devices, 512 bytes a cell"
    for explanation in found:
        row = explanation.rows[0]
        assert row.forward.across == row.backward.across == words
        assert words in str(explanation)
        assert row.engine == "Across(axis='time')"
    assert "because the type of the inputs splits time" in str(found[1])


# -- one device ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lru", "retnet"])
def test_one_device_is_the_unsplit_run(name):
    given = inputs_of(name, "mr", 1)
    wanted = everything(unrolled(ALL[name], None))(*given)
    found = everything(over(1, unrolled(ALL[name], Across("time"))))(*given)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), found, wanted)
    assert all(jax.tree.leaves(same))


REFUSED = [
    (jaxrnn.LSTM(3), {}, TypeError, r"LSTM is not linear .*batch.*wavefront.*Newton"),
    (jaxrnn.SLSTM(3), {}, TypeError, "SLSTM is not linear"),
    (
        jaxrnn.inference(jaxrnn.zoneout(jaxrnn.MinGRU(3), 0.1)),
        {},
        TypeError,
        "is not linear",
    ),
    (
        jaxrnn.MLSTM(3),
        {"return_carries": True},
        ValueError,
        "does not know the carries of MLSTM",
    ),
]


@pytest.mark.parametrize(("layer", "how", "error", "words"), REFUSED)
def test_what_cannot_be_split_is_refused(layer, how, error, words, plain_errors):
    params, xs = layer.init(jax.random.key(0), 3), jnp.ones((4, 2, 3))

    def local(params, xs):
        return jaxrnn.unroll(layer, params, xs, engine=Across("time"), **how)[1]

    split = jax.shard_map(
        local,
        mesh=mesh_of(1),
        in_specs=(P(), P("time")),
        out_specs=P("time"),
        check_vma=False,
    )
    with pytest.raises(error, match=words):
        jax.eval_shape(split, params, xs)


def test_types_that_split_time_refuse_other_cells(plain_errors):
    layer = jaxrnn.GRU(3)
    params, xs = layer.init(jax.random.key(0), 3), jnp.ones((4, 2, 3))
    with jax.set_mesh(mesh_of(1, AxisType.Explicit)):
        xs = jax.device_put(xs, P("time"))
        with pytest.raises(TypeError, match=r"splits time over .*'time'.*GRU is not"):
            jaxrnn.unroll(layer, params, xs)
        with pytest.raises(ValueError, match="axis is 'other', but the type"):
            jaxrnn.unroll(layer, params, xs, engine=Across("other"))
        with pytest.raises(ValueError, match="window=2 cuts gradients"):
            jaxrnn.truncated_unroll(layer, params, xs, window=2)


def test_where_it_does_not_belong(plain_errors):
    layer = jaxrnn.MinGRU(3)
    params, xs = layer.init(jax.random.key(0), 3), jnp.ones((4, 2, 3))
    engine = Across("time")
    with pytest.raises(
        ValueError, match="no mesh axis 'time' here: call unroll inside"
    ):
        jaxrnn.unroll(layer, params, xs, engine=engine)
    calls = {
        "window=2 cuts gradients": lambda p, x: jaxrnn.truncated_unroll(
            layer, p, x, window=2, engine=engine
        ),
        "gradient_scale cuts gradients": lambda p, x: jaxrnn.truncated_unroll(
            layer, p, x, gradient_scale=jnp.ones((4, 2)), engine=engine
        ),
        "last_output: time is split": lambda p, x: jaxrnn.last_output(
            layer, p, x, engine=engine
        ),
    }

    def split(call, check_vma):
        return jax.shard_map(
            lambda p, x: call(p, x)[1],
            mesh=mesh_of(1),
            in_specs=(P(), P("time")),
            out_specs=P("time"),
            check_vma=check_vma,
        )

    for words, call in calls.items():
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(split(call, False), params, xs)
    with pytest.raises(ValueError, match="check_vma=False"):
        jax.eval_shape(
            split(lambda p, x: jaxrnn.unroll(layer, p, x, engine=engine), True),
            params,
            xs,
        )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"axis": "t", "exchange": "ring"},
            ValueError,
            "'gather', 'permute' or 'auto'",
        ),
        ({"axis": 3}, TypeError, "axis must be the name of a mesh axis"),
        ({"axis": ()}, TypeError, "axis must be the name of a mesh axis"),
        ({"axis": "t", "engine": "scan"}, TypeError, "engine must be an engine"),
        ({"axis": "t", "engine": Across("s")}, ValueError, "time is split once"),
    ],
)
def test_options_that_do_not_exist(options, error, words, plain_errors):
    with pytest.raises(error, match=words):
        Across(**options)


def test_exchange_is_chosen_by_the_number_of_devices():
    from jaxrnn.core.time_split import MOST_GATHERED, TimeSplit

    def gathers(devices):
        found = []
        mesh = jax.sharding.AbstractMesh(
            (devices,), ("time",), axis_types=(AxisType.Auto,)
        )
        with jax.sharding.use_abstract_mesh(mesh):
            jax.eval_shape(
                jax.shard_map(
                    lambda x: found.append(TimeSplit("time").gathers) or x,
                    in_specs=P("time"),
                    out_specs=P("time"),
                ),
                jax.ShapeDtypeStruct((devices,), jnp.float32),
            )
        return found[0]

    assert gathers(MOST_GATHERED)
    assert not gathers(MOST_GATHERED + 1)
