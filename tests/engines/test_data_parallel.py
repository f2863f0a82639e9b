"""The batch split over devices by jit and NamedSharding alone: right numbers, and no
more said between devices than needed.

A program holds one all-reduce of the gradients, outside of every loop, whatever the
length; no device is sent the sequence. Four devices are needed, so the checks
(``check_...``) run in a pytest of their own.
"""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import Collective, collectives
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from subjects import SUBJECTS, D, UserCell, assert_same, draw, spatial_axes

import jaxrnn

T, B, DEVICES = 16, 8, 4
NOISY = {
    "dropout": jaxrnn.stack(
        jaxrnn.dropout(0.5), jaxrnn.Elman(4), jaxrnn.dropout(0.5), jaxrnn.LSTM(2)
    ),
    "recurrent_dropout_drawn": jaxrnn.recurrent_dropout(jaxrnn.LSTM(4), 0.3),
    "zoneout_drawn": jaxrnn.zoneout(jaxrnn.LSTM(4), (0.2, 0.1)),
}
ALL = (
    SUBJECTS
    | NOISY
    | {"residual_block": jaxrnn.residual(jaxrnn.residual_block(jaxrnn.LRU(4), D))}
)
ENGINES = {
    "default": None,
    "scan": jaxrnn.Scan(),
    "hoisted": jaxrnn.Scan(hoist=True),
    "in_loop": jaxrnn.Scan(hoist=False),
    "unrolled": jaxrnn.Scan(unroll=3),
    "window": jaxrnn.Scan(chunk=8),
    "odd_window": jaxrnn.Scan(chunk=5),
    "carries": jaxrnn.Scan(save="carries"),
    "checkpoint": jaxrnn.Checkpoint(),
    "odd_segment": jaxrnn.Checkpoint(5),
}
PARALLEL = {"associative": jaxrnn.Associative(), "chunks": jaxrnn.Associative(5)}
LINEAR = ("min_gru", "min_lstm", "rg_lru", "lru", "s5", "user_linear", "mlstm")
LINEAR += ("mamba", "kda")
OFTEN = [
    (name, "default", "", False)
    for name in (
        "lstm_all_learned",
        "mlstm",
        "slstm",
        "lru",
        "min_gru",
        "indrnn",
        "user",
    )
]
OFTEN += [
    (name, "default", "mr", True)
    for name in ("gru_learned", "bidirectional", "residual_block", "stack")
]
OFTEN += [
    ("lstm", engine, "", False) for engine in ("odd_window", "carries", "checkpoint")
]
OFTEN += [
    ("s5", "chunks", "m", False),
    ("mlstm", "chunks", "mr", True),
    # five steps a chunk, so that the last one of 16 is filled up
    ("mamba", "chunks", "", False),
    ("zoneout_drawn", "default", "m", False),
]
OFTEN += [("dropout", "checkpoint", "r", False)]
# the gradients of the kernels are convolutions over time and batch, in parts
OFTEN += [("conv_gru", "odd_window", "", False), ("conv_lstm", "default", "", False)]
# Cells whose matmuls all need the carry refuse hoist=True.
WITHOUT_PROJECTION = ("rwkv6", "rwkv7")
ROWS = [
    (name, engine, "mr", True)
    for name in ALL
    if not name.endswith("_learned")
    for engine in ENGINES
    if engine != "hoisted" or name not in WITHOUT_PROJECTION
]
ROWS += [(name, "default", "", False) for name in ALL]
ROWS += [
    (name, engine, flags, False)
    for name in LINEAR
    for engine in PARALLEL
    for flags in ("", "mr")
]
RARELY = [
    pytest.param(*row, marks=pytest.mark.slow) for row in ROWS if row not in OFTEN
]


@pytest.mark.parametrize(
    "which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)]
)
def test_over_four_devices(which):
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(DEVICES),
        "JAX_PLATFORMS": "cpu",
    }
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        which,
        "-o",
        "python_functions=check_*",
        __file__,
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=3600, env=environment
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


# bytes, for one valid input of the batch, which a cell is shown where a whole row is
# masked; once a cell
FILLING = 256
# bytes that are sent besides: where XLA sums rows of which a slice is the gradient, and
# where parameters are used twice, whose gradients are sent apart
SLICED = {"mamba2": 24, "mamba3": 32}
SHARED = 264


def mesh():
    return Mesh(np.asarray(jax.devices()), ("b",))


def placed(tree, *spec):
    """Shapes, or arrays, of ``tree`` placed on the mesh."""
    where = NamedSharding(mesh(), P(*spec))

    def leaf(a):
        return (
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)
            if isinstance(a, jax.ShapeDtypeStruct)
            else jax.device_put(a, where)
        )

    return jax.tree.map(leaf, tree)


def loss_of(layer, engine, flags="", reverse=False):
    """``(params, xs, mask, resets, key) -> loss``."""

    def loss(params, xs, mask, resets, key):
        how = {
            "mask": mask if "m" in flags else None,
            "resets": resets if "r" in flags else None,
        }
        how |= {"key": key} if layer.requires_key else {}
        _, ys = jaxrnn.unroll(layer, params, xs, engine=engine, reverse=reverse, **how)
        return jnp.square(ys).sum()

    return loss


def features_of(layer):
    return getattr(layer, "hidden_size", D) if isinstance(layer, jaxrnn.RGLRU) else D


def shapes_of(layer, steps=T, batch=B, features=None):
    """Abstract arguments of `loss_of`, the batch split, and the bytes of gradients
    and loss, and of what else may be sent.
    """
    features = features or features_of(layer)
    params = jax.eval_shape(lambda key: layer.init(key, features), jax.random.key(0))
    carry = jax.eval_shape(lambda p: layer.initial_carry(p), params)
    flags, key = (
        jax.ShapeDtypeStruct((steps, batch), bool),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    shape = (steps, batch, *spatial_axes(layer), features)
    xs = jax.ShapeDtypeStruct(shape, jnp.float32)
    needed = 4 + sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(params))
    # a learned carry comes in twice
    more = FILLING + sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(carry))
    return (
        (placed(params), *placed((xs, flags, flags), None, "b"), placed(key)),
        needed,
        more,
    )


def said(function, arguments):
    """The collectives of a compiled function."""
    return collectives(jax.jit(function).lower(*arguments).compile())


@pytest.mark.parametrize(("name", "engine", "flags", "reverse"), [*OFTEN, *RARELY])
def check_one_all_reduce_of_the_gradients(name, engine, flags, reverse):
    layer, engine = ALL[name], (ENGINES | PARALLEL)[engine]
    arguments, needed, more = shapes_of(layer)
    found = said(jax.value_and_grad(loss_of(layer, engine, flags, reverse)), arguments)
    assert {each.name for each in found} == {"all-reduce"}, found
    assert not any(each.looped for each in found), found
    more = more * bool(flags) + SLICED.get(name.removesuffix("_learned"), 0)
    more += SHARED * (name == "shared")
    assert needed <= sum(each.bytes for each in found) <= needed + more, (found, needed)


def check_parameters_that_no_step_reads_are_not_summed_by_the_loop():
    """The readout of an LRU: for each device a sum of zeros would be carried."""
    cell = jaxrnn.LRU(5)
    arguments, _, _ = shapes_of(cell)
    rows, columns = arguments[0]["output_kernel"].shape
    loss = loss_of(cell, jaxrnn.Scan(chunk=4))
    program = jax.jit(jax.grad(loss)).lower(*arguments).compile().as_text()
    assert "while" in program
    assert f"f32[{DEVICES},{rows},{columns}]" not in program


FORWARDS = ("lstm", "mlstm", "min_gru", "bidirectional", "slstm", "conv_gru")


@pytest.mark.parametrize(
    "name",
    [
        *FORWARDS,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ALL
            if name not in FORWARDS
        ),
    ],
)
def check_nothing_is_said_forwards(name):
    layer = ALL[name]
    params, xs, mask, resets, key = shapes_of(layer)[0]

    def run(p, x, r, k, m=None):
        how = {"key": k} if layer.requires_key else {}
        return jaxrnn.unroll(layer, p, x, mask=m, resets=r, **how)

    assert said(run, (params, xs, resets, key)) == []
    found = said(run, (params, xs, resets, key, mask))
    assert not any(each.looped or each.name != "all-reduce" for each in found), found
    assert sum(each.bytes for each in found) <= FILLING


@pytest.mark.parametrize(
    "cell", [jaxrnn.LSTM(128), jaxrnn.MinGRU(128)], ids=["lstm", "min_gru"]
)
def check_a_sequence_long_enough_for_chunks(cell):
    """More than 13 MB are kept, so a CPU runs it chunk after chunk."""
    arguments, needed, _ = shapes_of(cell, steps=4096, batch=16, features=128)
    found = said(jax.value_and_grad(loss_of(cell, None)), arguments)
    assert [(each.name, each.looped) for each in found] == [("all-reduce", False)]
    assert found[0].bytes == needed


@dataclasses.dataclass(frozen=True)
class Pictures(jaxrnn.Cell):
    """A cell of one's own, whose pullback needs the carries alone."""

    places: int = 6
    feature_ndim = 2

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, self.places, 4))

    def step(self, kernel, h, x):
        y = jax.lax.conv_general_dilated(
            h, kernel, (1,), "SAME", dimension_numbers=("NXC", "XIO", "NXC")
        )
        return 0.9 * h + jax.nn.relu(y + x)


def check_convolutions_of_ones_own():
    """One all-reduce; and where ``vmap`` maps over what is split, no gather in a loop;
    and pictures without a place.
    """
    kernel = placed(jax.ShapeDtypeStruct((3, 4, 4), jnp.float32))

    def loss(kernel, xs, engine=None):
        cell = Pictures(xs.shape[-2])
        return jnp.square(jaxrnn.unroll(cell, kernel, xs, engine=engine)[1]).sum()

    xs = placed(jax.ShapeDtypeStruct((T, B, 6, 4), jnp.float32), None, "b")
    for engine in (None, jaxrnn.Scan(chunk=4)):
        found = said(
            jax.value_and_grad(functools.partial(loss, engine=engine)), (kernel, xs)
        )
        assert [(each.name, each.looped) for each in found] == [("all-reduce", False)]
    many = placed(jax.ShapeDtypeStruct((DEVICES, T, 2, 6, 4), jnp.float32), "b")
    each = jax.vmap(jax.grad(loss), (None, 0))
    assert not any(found.looped for found in said(each, (kernel, many)))
    xs = placed(jax.ShapeDtypeStruct((T, B, 0, 4), jnp.float32), None, "b")
    assert jax.jit(jax.grad(loss)).lower(kernel, xs).compile()


@pytest.mark.parametrize("batch", [2, 7])
def check_batches_that_devices_do_not_divide(batch):
    """Whole arrays on every device: nothing is to be said at all."""
    cell = jaxrnn.LSTM(4)
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    whole = placed((params, jax.ShapeDtypeStruct((T, batch, D), jnp.float32)))
    assert (
        said(
            jax.value_and_grad(
                lambda *a: loss_of(cell, jaxrnn.Scan(chunk=5))(*a, None, None, None)
            ),
            whole,
        )
        == []
    )


def check_two_batch_axes_and_an_ensemble():
    """The first of two batch axes is split; and members with parameters of their
    own, under vmap.
    """
    cell = jaxrnn.GRU(4)
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    needed = 4 + sum(a.size * 4 for a in jax.tree.leaves(params))
    xs = placed(jax.ShapeDtypeStruct((T, B, 3, D), jnp.float32), None, "b")
    found = said(
        jax.value_and_grad(lambda p, x: jnp.square(jaxrnn.unroll(cell, p, x)[1]).sum()),
        (placed(params), xs),
    )
    assert [(each.name, each.bytes, each.looped) for each in found] == [
        ("all-reduce", needed, False)
    ]

    def each(params, xs):
        return jax.vmap(lambda p: jnp.square(jaxrnn.unroll(cell, p, xs)[1]).sum())(
            params
        ).sum()

    many = placed(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct((3, *a.shape), a.dtype), params)
    )
    xs = placed(jax.ShapeDtypeStruct((T, B, D), jnp.float32), None, "b")
    found = said(jax.value_and_grad(each), (many, xs))
    assert {one.name for one in found} == {"all-reduce"}
    assert not any(one.looped for one in found)


NUMBERS = [("lstm", "odd_window"), ("gru_learned", "checkpoint"), ("s5", "default")]
NUMBERS += [("conv_gru", "odd_window")]
MORE = [
    ("lstm_all_learned", "carries"),
    ("mlstm", "chunks"),
    ("bidirectional", "checkpoint"),
    ("slstm", "default"),
]
MORE += [("user_linear", "chunks"), ("stack", "default"), ("min_gru", "associative")]
NUMBERS += [pytest.param(*row, marks=pytest.mark.slow) for row in MORE]


@pytest.mark.parametrize(("name", "engine"), NUMBERS)
def check_the_numbers_of_one_device(name, engine, x64):
    layer, engine = ALL[name], (ENGINES | PARALLEL)[engine]
    inputs = draw(layer, 3, steps=11, batch=(B,))
    function = jax.jit(jax.value_and_grad(loss_of(layer, engine, "mr"), argnums=(0, 1)))
    alone = function(inputs.params, inputs.xs, inputs.mask, inputs.resets, None)
    split = (
        placed(inputs.params),
        *placed((inputs.xs, inputs.mask, inputs.resets), None, "b"),
    )
    found = function(*split, None)
    assert_same(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, alone))


@pytest.mark.parametrize("engine", [jaxrnn.Fused(), jaxrnn.Fused(interpret="tpu")])
def check_a_kernel_is_not_split(engine, plain_errors):
    cell = jaxrnn.LSTM(4)
    arguments, _, _ = shapes_of(cell)
    with pytest.raises(
        ValueError,
        match=r"Fused: this program is compiled for 4 devices, .*jax\.shard_map",
    ):
        said(loss_of(cell, engine), arguments)


@pytest.mark.parametrize("engine", [jaxrnn.Fused(), jaxrnn.CuDNN()])
def check_nor_is_one_for_a_gpu(engine, plain_errors):
    arguments, _, _ = shapes_of(jaxrnn.LSTM(64), features=64)
    with pytest.raises(
        ValueError,
        match=f"{type(engine).__name__}: this program is compiled for 4 devices",
    ):
        jax.jit(loss_of(jaxrnn.LSTM(64), engine)).trace(*arguments).lower(
            lowering_platforms=("cuda",)
        )


def check_inside_shard_map_a_kernel_runs_each_part():
    cell = jaxrnn.LSTM(4)
    inputs = draw(cell, 3, steps=5, batch=(B,))

    def unrolling(params, xs):
        return jaxrnn.unroll(cell, params, xs, engine=jaxrnn.Fused(interpret="tpu"))[1]

    split = jax.shard_map(
        unrolling,
        mesh=mesh(),
        in_specs=(P(), P(None, "b")),
        out_specs=P(None, "b"),
        check_vma=False,
    )
    np.testing.assert_allclose(
        jax.jit(split)(*inputs[:2]), jaxrnn.unroll(cell, *inputs[:2])[1], atol=1e-6
    )


# -- shard_map with sums in the step ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Meeting(jaxrnn.Cell):
    """A cell whose examples meet at every step, over the devices too: by their mean,
    or in the whole of its carry.
    """

    hidden_size: int
    alike: bool = False  # every device has the same carry

    init = UserCell.init

    def initial_carry(self, params, batch_shape=(), dtype=None):
        h = jnp.zeros((*batch_shape, self.hidden_size), dtype or params["vector"].dtype)
        return {"h": h, "seen": h[..., 0]}

    def step(self, params, carry, z):
        h = jnp.tanh(
            z @ params["kernel"]
            + carry["h"] * jnp.broadcast_to(params["vector"], carry["h"].shape)
        )
        mean = jax.lax.pmean(h, "b")
        return {
            "h": mean if self.alike else h - 0.5 * mean,
            "seen": carry["seen"] + mean.sum(-1),
        }

    def output(self, params, carry, x):
        return carry["h"] * jnp.cos(carry["seen"])[..., None]


def by_lax_scan(cell, params, xs, mask):
    def step(carry, now):
        new = jax.tree.map(
            lambda a, b: jnp.where(now[1].reshape(-1, *[1] * (a.ndim - 1)), a, b),
            cell.step(params, carry, now[0]),
            carry,
        )
        return new, new

    first, alike = (
        cell.initial_carry(params, xs.shape[1:-1]),
        {"seen", "h"} if cell.alike else {"seen"},
    )
    if "b" in varying(xs):
        masked = mask is not None
        first = {
            name: jax.lax.pcast(a, "b", to="varying")
            if masked or name not in alike
            else a
            for name, a in first.items()
        }
    mask = jnp.ones(xs.shape[:2], bool) if mask is None else mask
    last, carries = jax.lax.scan(step, first, (xs, mask))
    return last, jnp.where(mask[..., None], cell.output(params, carries, xs), 0)


def varying(a):
    return getattr(jax.typeof(a).manual_axis_type, "varying", ())


@pytest.mark.parametrize(
    "engine",
    [None, pytest.param(jaxrnn.Scan(save="everything"), marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("flags", ["", "m"])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("tracked", [True, False])
def check_sums_in_the_step(tracked, alike, flags, engine, x64):
    """What lax.scan does there; its types too: what every device has alike may leave
    shard_map as such.
    """
    cell = Meeting(4, alike)
    inputs = draw(UserCell(4), 3, steps=5, batch=(B,))

    def run(unrolling):
        def local(params, xs, mask):
            last, ys = unrolling(params, xs, mask if flags else None)
            return jax.lax.psum(jnp.square(ys).sum(), "b"), last["seen"]

        out = (P(), P("b") if flags else P())
        split = jax.shard_map(
            local,
            mesh=mesh(),
            in_specs=(P(), P(None, "b"), P(None, "b")),
            out_specs=out,
            check_vma=tracked,
        )
        return jax.jit(jax.value_and_grad(split, argnums=(0, 1), has_aux=True))(
            *inputs[:2], jnp.ones_like(inputs.mask)
        )

    def ours(params, xs, mask):
        return jaxrnn.unroll(cell, params, xs, mask=mask, engine=engine)

    assert_same(run(ours), run(lambda *a: by_lax_scan(cell, *a)))


@pytest.mark.parametrize("name", ["lstm", "lru", "stack", "mlstm"])
def check_weight_gradients_are_summed_once_inside_shard_map(name):
    layer = ALL[name]
    inputs = draw(layer, 3, steps=5, batch=(B,))

    def local(*arrays):
        return jax.lax.psum(loss_of(layer, None, "mr")(*arrays, None), "b")

    split = jax.shard_map(
        local, mesh=mesh(), in_specs=(P(), *[P(None, "b")] * 3), out_specs=P()
    )
    found = said(
        jax.value_and_grad(split),
        (inputs.params, inputs.xs, inputs.mask, inputs.resets),
    )
    assert {each.name for each in found} == {"all-reduce"}
    assert not any(each.looped for each in found)


def check_newton_inside_shard_map(x64):
    layer = jaxrnn.stack(jaxrnn.LSTM(4), jaxrnn.DiagonalLSTM(2))
    inputs = draw(layer, 3, steps=5, batch=(B,))
    arrays = (inputs.params, inputs.xs, inputs.mask, inputs.resets)
    split = jax.shard_map(
        lambda *arrays: jax.lax.psum(
            loss_of(layer, jaxrnn.Newton(3, fallback="nan"), "mr")(*arrays, None), "b"
        ),
        mesh=mesh(),
        in_specs=(P(), *[P(None, "b")] * 3),
        out_specs=P(),
        check_vma=False,
    )
    found = jax.jit(jax.value_and_grad(split, argnums=(0, 1)))(*arrays)
    wanted = jax.jit(jax.value_and_grad(loss_of(layer, None, "mr"), argnums=(0, 1)))(
        *arrays, None
    )
    assert_same(found, wanted, 1e-11)


def check_an_empty_or_single_step_inside_shard_map():
    cell = jaxrnn.LSTM(4)
    for steps in (0, 1):
        inputs = draw(cell, 3, steps=steps, batch=(B,))
        split = jax.shard_map(
            lambda *a: jaxrnn.unroll(cell, *a)[1],
            mesh=mesh(),
            in_specs=(P(), P(None, "b")),
            out_specs=P(None, "b"),
        )
        assert jax.jit(split)(*inputs[:2]).shape == (steps, B, 4)


# -- meshes of explicit axes -----------------------------------------------------------


EXPLICIT = ["gru_learned", "s5"]
EXPLICIT += [
    pytest.param(name, marks=pytest.mark.slow) for name in ALL if name not in EXPLICIT
]


def explicit_mesh():
    return jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))


@pytest.mark.parametrize("name", EXPLICIT)
def check_an_explicit_mesh(name, x64):
    """Values, gradients and types, in which the batch is split; and one all-reduce,
    as on a mesh without types.
    """
    layer = ALL[name]
    inputs = draw(jaxrnn.inference(layer), 3, steps=5, batch=(4,))
    key = jax.random.key(1) if layer.requires_key else None
    arrays = (inputs.xs, inputs.mask, inputs.resets)

    def both(params, *arrays):
        loss = loss_of(layer, None, "mr")
        how = {"key": key} if layer.requires_key else {}
        return jax.value_and_grad(loss, argnums=(0, 1))(
            params, *arrays, key
        ), jaxrnn.unroll(layer, params, arrays[0], **how)

    expected = jax.jit(both)(inputs.params, *arrays)
    with jax.set_mesh(explicit_mesh()):
        split = jax.device_put(arrays, P(None, "data"))
        program = jax.jit(both)
        found = program(jax.device_put(inputs.params, P()), *split)
        assert jax.typeof(found[1][1]).sharding.spec[:2] == (None, "data")
        assert jax.typeof(found[0][1][1]).sharding.spec[:2] == (None, "data")
        assert {
            jax.typeof(leaf).sharding.spec[0] for leaf in jax.tree.leaves(found[1][0])
        } == {"data"}
        assert {each.name for each in said(both, (inputs.params, *split))} == {
            "all-reduce"
        }
    assert_same(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, expected))


def check_what_else_there_is_on_an_explicit_mesh():
    """Streaming, truncation, all carries, second derivatives, mapped and empty
    sequences, a mesh with an automatic axis too.
    """
    cell = jaxrnn.LSTM(4)
    inputs = draw(cell, 3, steps=6, batch=(4,))

    def kinds(tree):
        return {str(jax.typeof(leaf).sharding.spec) for leaf in jax.tree.leaves(tree)}

    mixed = jax.make_mesh(
        (2, 2),
        ("data", "more"),
        axis_types=(jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto),
    )
    for mesh in (explicit_mesh(), mixed):
        with jax.set_mesh(mesh):
            params, xs = (
                jax.device_put(inputs.params, P()),
                jax.device_put(inputs.xs, P(None, "data")),
            )
            carry, ys, carries = jax.jit(
                lambda p, x: jaxrnn.unroll(cell, p, x, return_carries=True)
            )(params, xs)
            assert kinds((ys, carries)) == {str(P(None, "data", None))}
            assert kinds(jax.jit(cell)(params, carry, xs[0])) == {str(P("data", None))}
            cut = jax.jit(
                lambda p, x, c: jaxrnn.truncated_unroll(cell, p, x, c, window=4)
            )
            assert kinds(cut(params, xs, carry)[1]) == {str(P(None, "data", None))}
            empty = jax.jit(lambda p, x: jaxrnn.unroll(cell, p, x[:0]))(params, xs)
            assert empty[1].shape == (0, 4, 4)  # an array without numbers is nowhere
            mapped = jax.vmap(lambda x: jaxrnn.unroll(cell, inputs.params, x)[1], 1, 1)
            assert kinds(jax.jit(mapped)(xs)) == {str(P(None, "data", None))}

            def slope(x, params=params):
                return jax.grad(
                    lambda x: jnp.square(jaxrnn.unroll(cell, params, x)[1]).sum()
                )(x)

            assert kinds(jax.jit(lambda x: jax.jvp(slope, (x,), (x,)))(xs)) == {
                str(P(None, "data", None))
            }


# -- one device ------------------------------------------------------------------------


def test_one_device_keeps_products_of_two_axes():
    """XLA's CPU compiler would copy the cotangent to contract two."""
    for cell in (jaxrnn.LSTM(8), jaxrnn.MLSTM(8, num_heads=2)):
        params = jax.eval_shape(
            lambda key, cell=cell: cell.init(key, 8), jax.random.key(0)
        )
        xs = jax.ShapeDtypeStruct((T, B, 8), jnp.float32)
        text = (
            jax.jit(
                jax.grad(lambda p, x, cell=cell: jaxrnn.unroll(cell, p, x)[1].sum())
            )
            .lower(params, xs)
            .as_text()
        )
        kernel = cell.init(jax.random.key(0), 8)["input_kernel"].shape
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert any(
            f"tensor<{T * B}x8xf32>" in line
            and f"tensor<{T * B}x{kernel[1]}xf32>" in line
            for line in products
        )
        assert not any(
            "[0, 1] x [0, 1]" in line and "batching" not in line for line in products
        )


@pytest.mark.parametrize("what", ["both", "rows", "kernel"])
def test_mapped_products_have_the_numbers_of_a_loop(what, x64):
    from jaxrnn.cells.ops import dense

    random = np.random.default_rng(0)
    axes = {"both": (1, 2), "rows": (2, None), "kernel": (None, 0)}[what]
    x, kernel = (np.asarray(random.normal(size=shape)) for shape in ((3, 4, 5), (5, 6)))
    x = x if axes[0] is None else np.stack([x, 2 * x + 1], axes[0])
    kernel = kernel if axes[1] is None else np.stack([kernel, kernel - 1], axes[1])

    def one(x, kernel, product):
        out, pull = jax.vjp(product, x, kernel)
        tangent = jax.jvp(product, (x, kernel), (jnp.sin(x), jnp.cos(kernel)))[1]
        return out, pull(jnp.cos(out)), tangent

    found = jax.vmap(lambda x, k: one(x, k, dense), in_axes=axes)(x, kernel)
    assert_same(
        found,
        jax.vmap(
            lambda x, k: one(x, k, lambda x, k: jnp.einsum("tbd,dh->tbh", x, k)),
            in_axes=axes,
        )(x, kernel),
    )


def test_products_keep_the_precision_asked_for():
    from jaxrnn.cells.ops import dense

    with jax.default_matmul_precision("highest"):
        text = (
            jax.jit(jax.grad(lambda x, k: dense(x, k).sum(), 1))
            .lower(jnp.ones((3, 4, 5)), jnp.ones((5, 6)))
            .as_text()
        )
    assert text.count("precision = [HIGHEST, HIGHEST]") == text.count("dot_general") > 0


def test_collectives_are_counted():
    """The counter itself: what devices say in a loop and outside of it."""

    class Program:
        def as_text(self):
            return """HloModule m
%body (p: f32[2]) -> f32[2] {
  %a = f32[2]{0} all-gather(%p), dimensions={0}
}
ENTRY %main (x: f32[2]) -> f32[2] {
  %r = (f32[3,2]{1,0}, s8[4]{0}) all-reduce(%x, %y), to_apply=%sum
  ROOT %w = f32[2] while(%r), condition=%c, body=%body
}
"""

    assert collectives(Program()) == [
        Collective("all-reduce", 28, False),
        Collective("all-gather", 8, True),
    ]
