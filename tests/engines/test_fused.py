"""`Fused`: a loop as one kernel is the Python loop. Here the TPU's kernel in Pallas'
interpreter, which knows float64 too, and its lowering; the GPU's is in
test_fused_gpu.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import compiled
from subjects import (
    SUBJECTS,
    assert_same,
    assert_same_outcome,
    draw,
    drawn_params,
    looped,
)
from test_engines import MODES, unrolled

import jaxrnn
from jaxrnn import GRU, LRU, LSTM, RGLRU, Elman, Fused, MinGRU, Scan
from jaxrnn.engines.recurrence import heuristics

TPU = Fused(interpret="tpu")
FITTING = [
    *(
        "elman",
        "irnn",
        "lstm",
        "lstm_peephole",
        "lstm_coupled_learned",
        "gru_learned",
        "gru_before",
        "indrnn",
        "diagonal_gru",
    ),
    *(
        "diagonal_lstm",
        "min_gru",
        "min_lstm_learned",
        "rg_lru",
        "lru",
        "s5",
        "user_linear",
        "user",
        "stack",
        "bidirectional",
    ),
    "residual",
]
UNFIT = {
    "lstm_layer_norm": "reduce_sum",
    "gru_before_layer_norm": "reduce_sum",
    "lstm_projected": r"\(3, 4\)",
    "slstm": "heads",
    "mlstm": "shapes",
}
SHAPES = [(1, 5, 8), (3, 33, 64), (16, 2, 128), (3, 5, 96)]  # B, T and H
CELLS = {
    "lstm": LSTM,
    "gru": GRU,
    "elman": Elman,
    "min_gru": MinGRU,
    "lru": LRU,
    "rg_lru": RGLRU,
}


@pytest.mark.parametrize("name", FITTING)
def test_a_kernel_is_the_python_loop(name, x64):
    """Values, gradients and all carries, with masks that have holes, resets, and a
    first carry.
    """
    inputs, reverse = draw(name, 0, 7), FITTING.index(name) % 2 == 1
    assert_same_outcome(
        unrolled(SUBJECTS[name], TPU, reverse)(*inputs), looped(name, inputs, reverse)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru", "elman", "lru"])
def test_any_size(name, shape, x64):
    """Padded units and rows, several tiles of rows and blocks of time: each kept
    apart from the other.
    """
    size, steps, units = shape
    cell = CELLS[name](units)
    inputs = draw(cell, 0, steps, (size,))
    expected = unrolled(cell, Scan(save="everything"))(*inputs)
    assert_same_outcome(unrolled(cell, TPU)(*inputs), expected)


def test_tiles_and_blocks_of_time(x64):
    """As little memory as goes: tiles of 8 rows, and blocks of time that T is no
    multiple of.
    """
    cell = LSTM(8)
    inputs = draw(cell, 0, 37, (19,))
    small = Fused(interpret="tpu", memory=1_600_000)
    kept = dataclasses.replace(small, save="carries")
    for engine, reverse in ((small, True), (kept, False)):
        expected = unrolled(cell, Scan(save="everything"), reverse)(*inputs)
        assert_same_outcome(unrolled(cell, engine, reverse)(*inputs), expected)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_batch_axes_and_short_sequences(batch, steps, x64):
    cell = SUBJECTS["lstm_peephole_learned"]
    inputs = draw(cell, steps, steps, batch)
    assert_same_outcome(
        unrolled(cell, TPU)(*inputs), unrolled(cell, Scan(save="everything"))(*inputs)
    )


@dataclasses.dataclass(frozen=True)
class Tied(jaxrnn.Cell):
    """One matrix both ways, a constant of the step's own, flags made in the step,
    and H equal to the batch.
    """

    hidden_size: int

    def init(self, key, input_size):
        return {"kernel": jax.random.normal(key, (self.hidden_size, self.hidden_size))}

    def project(self, params, x):
        return x[..., :1]

    def step(self, params, carry, z):
        h = jnp.tanh(
            carry @ params["kernel"] + jnp.where(z > 0, z, jnp.asarray(0.5, z.dtype))
        )
        weights = jnp.asarray(np.linspace(0, 1, self.hidden_size), h.dtype).reshape(
            (1,) * (h.ndim - 1) + (-1,)
        )
        return weights * (h @ params["kernel"].T) + (1 - weights) * h


def test_a_cell_of_ones_own(x64):
    for size in (3, 4):
        inputs = draw(Tied(size), size, 6, (size,))
        assert_same_outcome(
            unrolled(Tied(size), TPU)(*inputs),
            unrolled(Tied(size), Scan(save="everything"))(*inputs),
        )


@dataclasses.dataclass(frozen=True)
class Crossed(Tied):
    """A number an example, taken for one a unit."""

    def step(self, params, carry, z):
        return jnp.tanh(carry @ params["kernel"]) * jnp.broadcast_to(
            carry[..., 0].reshape(1, -1), carry.shape
        )


def test_a_number_an_example_is_never_taken_for_one_a_unit(plain_errors):
    cell = Crossed(3)
    for batch in (3, 6):
        xs = jnp.zeros((4, batch, 3))
        with pytest.raises(
            (ValueError, TypeError),
            match="Crossed has no kernel" if batch == 3 else "broadcast",
        ):
            jaxrnn.unroll(cell, drawn_params(cell, 3), xs, engine=Fused())


@pytest.mark.parametrize("window", [3, 4])
def test_truncation(window, x64):
    inputs = draw("gru_learned", 3, 10)
    assert_same_outcome(
        unrolled(SUBJECTS["gru_learned"], TPU, window=window)(*inputs),
        looped("gru_learned", inputs, window=window),
    )


SOME = [
    "jvp",
    "forward over reverse",
    "reverse over reverse",
    "grad of vmap",
    "vmap of grad",
    "ensemble",
    "remat",
]


@pytest.mark.parametrize("mode", SOME)
def test_modes_of_differentiation(mode, x64):
    """Kernels where a kernel can be, JAX's loop where a loop itself is
    differentiated.
    """
    cell = GRU(2, learned_initial_carry=True)
    inputs, direction = (draw(cell, seed, 5, (2,)) for seed in (0, 1))
    mask = inputs.mask.at[:, 0].set(True)

    def f(params, xs, engine):
        flags = mask[: len(xs)] if xs.ndim == 3 else mask[: len(xs), 0]
        carry, ys = jaxrnn.unroll(
            cell, params, xs, mask=flags, resets=~flags, engine=engine
        )
        return jnp.sum(jnp.sin(ys)) + jnp.sum(carry**3)

    at = (inputs.params, inputs.xs, (direction.params, direction.xs))
    got, want = (
        compiled(lambda e=e: MODES[mode](functools.partial(f, engine=e), *at))()
        for e in (TPU, Scan(save="everything"))
    )
    assert_same(got, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["lstm", "gru", "elman", "min_gru"])
def test_no_kernel_adds_to_the_rounding(name, dtype):
    """Values and gradients err from float64 by at most twice what lax.scan's do in
    the same dtype.
    """
    cell = CELLS[name](16)
    with jax.enable_x64(True):
        inputs = draw(cell, 5, 20, (4,))
        inputs = jax.tree.map(
            lambda a: a.astype(dtype).astype(a.dtype) if a.dtype == jnp.float64 else a,
            inputs,
        )
        exact = unrolled(cell, Scan(save="everything"))(*inputs)
    single = in_dtype(cell, inputs, dtype)
    errors = [
        [
            float(np.abs(np.asarray(a, np.float64) - np.asarray(b)).max())
            for a, b in zip(*map(jax.tree.leaves, (made[:2], exact[:2])), strict=True)
        ]
        for made in (
            unrolled(cell, engine)(*single) for engine in (TPU, Scan(save="everything"))
        )
    ]
    largest = [float(np.abs(b).max()) for b in jax.tree.leaves(exact[:2])]
    epsilon = float(jnp.finfo(dtype).eps)
    for ours, theirs, scale in zip(*errors, largest, strict=True):
        assert ours <= 2 * max(theirs, epsilon * scale)
    assert max(errors[0]) > 0


def in_dtype(cell, inputs, dtype):
    """Parameters and inputs in ``dtype``; carries and cotangents in what the cell
    makes of that.
    """
    params, xs = (
        jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), tree)
        for tree in (inputs.params, inputs.xs)
    )
    shapes = jax.eval_shape(lambda p, x: jaxrnn.unroll(cell, p, x), params, xs)
    carry, cotangents = (
        jax.tree.map(
            lambda a, like: jnp.asarray(np.asarray(a), like.dtype), values, like
        )
        for values, like in ((inputs.carry, shapes[0]), (inputs.cotangents, shapes))
    )
    return inputs._replace(params=params, xs=xs, carry=carry, cotangents=cotangents)


# --------------------------------------------------------------------------------------
# lowering and refusal


def gradient_of(cell, engine, batch=3, steps=33, dtype=jnp.float32, flags=True):
    """A compiled gradient and its abstract inputs, for lowering."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    params = jax.tree.map(
        lambda a: (
            a
            if jnp.issubdtype(a.dtype, jnp.complexfloating)
            else jax.ShapeDtypeStruct(a.shape, dtype)
        ),
        params,
    )
    xs, mask = (
        jax.ShapeDtypeStruct((steps, batch, 3), dtype),
        jax.ShapeDtypeStruct((steps, batch), bool),
    )

    def loss(params, xs, mask):
        carry, ys = jaxrnn.unroll(
            cell,
            params,
            xs,
            engine=engine,
            mask=mask if flags else None,
            resets=mask if flags else None,
        )
        return sum(
            jnp.abs(a).astype(jnp.float32).sum() for a in jax.tree.leaves((carry, ys))
        )

    return jax.jit(jax.value_and_grad(loss)), (params, xs, mask)


def lowered(platform, *args, **kwargs):
    function, inputs = gradient_of(*args, **kwargs)
    return function.trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("lstm", 96),
        ("gru", 128),
        ("elman", 8),
        ("min_gru", 256),
        ("lru", 64),
        ("rg_lru", 3),
    ],
)
def test_lowers_for_tpus(name, units, dtype):
    """One kernel forwards and one backwards, and no loop besides."""
    text = lowered("tpu", CELLS[name](units), Fused(), dtype=dtype)
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 2
    assert "stablehlo.while" not in text


@pytest.mark.parametrize("name", UNFIT)
def test_cells_that_do_not_fit_are_refused_by_name(name, plain_errors):
    layer = SUBJECTS[name]
    params = drawn_params(layer, 3)
    with pytest.raises(
        ValueError,
        match=(
            f"{type(layer).__name__} has no kernel: .*{UNFIT[name]}.*Use "
            f"engine=jaxrnn.Scan"
        ),
    ):
        jaxrnn.unroll(layer, params, jnp.zeros((5, 3, 3)), engine=Fused())


def test_what_a_chip_cannot_hold_is_refused_with_its_bytes():
    with pytest.raises(
        ValueError,
        match=r"need \d\d,\d{3},\d{3} bytes of VMEM, but 14,680,064 are there: use .*Scan",  # noqa: E501
    ):
        lowered("tpu", LSTM(2048), Fused())
    assert "tpu_custom_call" in lowered("tpu", LSTM(2048), Fused(memory=100 * 2**20))


def test_a_platform_without_kernels_is_refused():
    function, inputs = gradient_of(LSTM(8), Fused())
    with pytest.raises(ValueError, match=r"compiled for cpu: use jaxrnn\.Scan"):
        function.lower(*inputs)
    with pytest.raises(ValueError, match="compiled for rocm"):
        lowered("rocm", LSTM(8), Fused())


def test_wide_dtypes_are_refused(x64):
    with pytest.raises(
        ValueError,
        match="TPU's kernels take float32 and bfloat16, but there are float64",
    ):
        lowered("tpu", LSTM(8), Fused(), dtype=jnp.float64)


@pytest.mark.parametrize(
    "options", [{"interpret": "cpu"}, {"memory": 0}, {"save": "everything"}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=f"Fused: .*{next(iter(options))}"):
        Fused(**options)


def test_the_default_table(monkeypatch):
    """On a platform that the table names, the default is a kernel where there is
    one, and a loop where there is none.
    """
    assert not heuristics.KERNELS
    for cell in (LSTM(24), MinGRU(24)):
        assert "tpu_custom_call" not in lowered("tpu", cell, None)
    monkeypatch.setattr(
        "jaxrnn.engines.recurrence.schedule.KERNELS", frozenset({"tpu"})
    )
    for cell in (LSTM(25), MinGRU(25), LRU(25)):
        assert (
            lowered("tpu", cell, None).count("stablehlo.custom_call @tpu_custom_call")
            == 2
        )
        assert "tpu_custom_call" not in lowered("tpu", cell, Scan())
        assert "tpu_custom_call" not in lowered("cpu", cell, None)
    for cell in (
        LSTM(25, layer_norm=True),
        LSTM(2047),
    ):  # does not fit its form; does not fit the chip
        assert "tpu_custom_call" not in lowered("tpu", cell, None)


def test_a_gradient_scale_and_flags_that_are_not_flags(x64):
    """Numbers an example, as ARTBP's scales are, go through a kernel as flags do."""
    inputs = draw("lstm", 2, 6)
    scale = jnp.asarray(np.random.default_rng(0).random((6, 3)))

    def gradient(engine):
        def loss(params, xs):
            return jnp.sum(
                jnp.sin(
                    jaxrnn.truncated_unroll(
                        SUBJECTS["lstm"],
                        params,
                        xs,
                        gradient_scale=scale,
                        engine=engine,
                    )[1]
                )
            )

        return compiled(jax.grad(loss, (0, 1)))(inputs.params, inputs.xs)

    assert_same(gradient(TPU), gradient(Scan()))
