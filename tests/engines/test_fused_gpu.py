"""`Fused` on NVIDIA GPUs: in Mosaic GPU's interpreter, which simulates shared memory,
copies, barriers and the matrix unit; lowered; and, marked ``gpu``, on a GPU. The
kernels need jax 0.11, which Python 3.11 does not have.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import SUBJECTS, assert_same_outcome, draw
from test_engines import unrolled
from test_fused import CELLS, in_dtype, lowered

from jaxrnn import GRU, LRU, LSTM, SLSTM, Elman, Fused, MinGRU, Scan
from jaxrnn.engines.loops.pallas import mosaic_gpu
from jaxrnn.engines.loops.pallas.mosaic_gpu_arrays import split_bf16


@pytest.fixture(autouse=True)
def no_races(monkeypatch):
    """The interpreter keeps account of who wrote and read what: no kernel has a
    race.
    """
    if not NEW:
        yield
        return
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    unrolled = mosaic_gpu.run_loop

    def watched(*args):
        out = jax.block_until_ready(unrolled(*args))
        if args[-1].interpret:
            assert not gpu_callbacks.get_races().races_found
        return out

    monkeypatch.setattr(mosaic_gpu, "run_loop", watched)
    yield


NEW = jax.__version_info__ >= (0, 11)
needs_mosaic = pytest.mark.skipif(not NEW, reason="Mosaic GPU's kernels need jax 0.11")
GPU = Fused(interpret="gpu")
# Cell, B, T; padded units and rows, two tiles of rows, more steps than are fetched
# ahead; half of them backwards in time.
CASES = {
    "lstm of 8": (LSTM(8), 19, 9),
    "lstm of 64": (LSTM(64), 1, 5),
    "lstm of 40, peepholes": (
        LSTM(40, peephole=True, coupled_gates=True, learned_initial_carry=True),
        3,
        5,
    ),
    "gru of 64": (GRU(64), 16, 5),
    "gru of 8, reset before": (GRU(8, reset_after=False), 3, 6),
    "elman of 128": (Elman(128), 3, 33),
    "min_gru of 200": (MinGRU(200), 2, 37),
    "lru of 8": (LRU(8), 1, 33),
    "slstm of 8": (SLSTM(8), 2, 4),
}


def tame(inputs):
    """Smaller weights: a chaotic recurrence makes large differences of roundings, in
    any loop.
    """
    return inputs._replace(params=jax.tree.map(lambda a: 0.3 * a, inputs.params))


@needs_mosaic
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_is_the_loop(case):
    """Values, gradients and all carries, with masks that have holes, resets, and a
    first carry, in float32 proper.
    """
    cell, size, steps = CASES[case]
    inputs, reverse = (
        tame(draw(cell, 0, steps, (size,))),
        list(CASES).index(case) % 2 == 1,
    )
    with jax.default_matmul_precision("highest"):
        expected = unrolled(cell, Scan(save="everything"), reverse)(*inputs)
        assert_same_outcome(unrolled(cell, GPU, reverse)(*inputs), expected, 2e-6, 1e-5)


@needs_mosaic
def test_default_precision_is_closer_than_tf32():
    """Three bfloat16 products a float32 one: 2^-16, where TF32, with 10 bits of
    mantissa, errs by 2^-11 or more.
    """
    cell = Elman(16)
    inputs = tame(draw(cell, 0, 8, (4,)))
    expected = unrolled(cell, Scan(save="everything"))(*inputs)
    assert_same_outcome(unrolled(cell, GPU)(*inputs), expected, 5e-5, 2e-4)
    with jax.default_matmul_precision("highest"):
        assert_same_outcome(unrolled(cell, GPU)(*inputs), expected, 1e-6, 1e-5)


@needs_mosaic
@pytest.mark.parametrize("name", ["lstm", "gru", "elman"])
def test_bfloat16_adds_nothing_to_its_rounding(name):
    """Errors against float64 are at most twice those of lax.scan in bfloat16."""
    cell = CELLS[name](96)
    with jax.enable_x64(True):
        inputs = tame(draw(cell, 5, 12, (3,)))
        inputs = jax.tree.map(
            lambda a: (
                a.astype("bfloat16").astype(a.dtype) if a.dtype == jnp.float64 else a
            ),
            inputs,
        )
        exact = unrolled(cell, Scan(save="everything"))(*inputs)
    single = in_dtype(cell, inputs, "bfloat16")
    for ours, theirs, value in zip(
        *(
            jax.tree.leaves(unrolled(cell, engine)(*single)[:2])
            for engine in (GPU, Scan(save="everything"))
        ),
        jax.tree.leaves(exact[:2]),
        strict=True,
    ):
        value = np.asarray(value)
        ours, theirs = (
            np.abs(np.asarray(a, np.float64) - value).max() for a in (ours, theirs)
        )
        assert ours <= 2 * max(theirs, 2**-8 * np.abs(value).max())


def test_terms_add_up():
    numbers = np.random.default_rng(0).normal(size=1000).astype(
        np.float32
    ) * 10.0 ** np.arange(-20, 20).repeat(25)
    for terms, error in ((1, 2**-8), (2, 2**-16), (3, 2**-24)):
        total = sum(
            np.asarray(a, np.float64) for a in split_bf16(jnp.asarray(numbers), terms)
        )
        np.testing.assert_array_less(
            np.abs(total - numbers), error * np.abs(numbers) + 1e-45
        )


@needs_mosaic
@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(
    ("name", "units"),
    [("lstm", 64), ("gru", 8), ("elman", 128), ("min_gru", 200), ("lru", 64)],
)
def test_lowers_for_gpus(name, units, dtype):
    """One kernel forwards and one backwards, and no loop besides; several tiles of
    rows.
    """
    text = lowered("cuda", CELLS[name](units), Fused(), batch=40, dtype=dtype)
    assert text.count("stablehlo.custom_call @mosaic_gpu") == 2
    assert "stablehlo.while" not in text


@needs_mosaic
def test_the_largest_that_fits_and_the_next():
    """Bytes of shared memory decide: an LSTM of 128 in bfloat16, of 64 in float32
    under either precision.
    """
    assert "mosaic_gpu" in lowered("cuda", LSTM(128), Fused(), dtype=jnp.bfloat16)
    assert "mosaic_gpu" in lowered("cuda", LSTM(64), Fused())
    with pytest.raises(
        ValueError,
        match=r"need 2\d\d,\d{3} bytes of shared memory, but a block has 230,400: use .*Scan",  # noqa: E501
    ):
        lowered("cuda", LSTM(65), Fused())
    with pytest.raises(ValueError, match="takes at most 256 units, but there are 320"):
        lowered("cuda", Elman(320), Fused(), dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="float32 and bfloat16, but there are float16"):
        lowered("cuda", LSTM(8), Fused(), dtype=jnp.float16)


@pytest.mark.skipif(NEW, reason="this jax has what they need")
def test_an_older_jax_is_refused():
    with pytest.raises(
        ValueError, match=r"GPU kernels need jax 0.11 or newer, and this is 0\.10"
    ):
        lowered("cuda", LSTM(8), Fused())


# --------------------------------------------------------------------------------------
# on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 16, 300])
@pytest.mark.parametrize("name", CELLS)
def test_on_a_gpu(name, size):
    """float32 under the highest precision, T 1,000: within 1e-5 of lax.scan,
    gradients within 1e-4.
    """
    cell = CELLS[name](64 if name != "rg_lru" else 3)
    inputs = tame(draw(cell, 0, 1000, (size,)))
    with jax.default_matmul_precision("highest"):
        expected = unrolled(cell, Scan(save="everything"))(*inputs)
        assert_same_outcome(unrolled(cell, Fused())(*inputs), expected, 1e-5, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("units", [64, 128])
@pytest.mark.parametrize("name", ["lstm", "gru", "elman"])
def test_bfloat16_on_a_gpu(name, units):
    """At most twice the error of lax.scan in bfloat16, both against float64."""
    cell = CELLS[name](units)
    with jax.enable_x64(True):
        inputs = tame(draw(cell, 5, 200, (20,)))
        inputs = jax.tree.map(
            lambda a: (
                a.astype("bfloat16").astype(a.dtype) if a.dtype == jnp.float64 else a
            ),
            inputs,
        )
        exact = jax.tree.leaves(unrolled(cell, Scan(save="everything"))(*inputs)[:2])
    single = in_dtype(cell, inputs, "bfloat16")
    made = [
        jax.tree.leaves(unrolled(cell, engine)(*single)[:2])
        for engine in (Fused(), Scan(save="everything"))
    ]
    for ours, theirs, value in zip(*made, exact, strict=True):
        value = np.asarray(value)
        ours, theirs = (
            np.sqrt(np.square(np.asarray(a, np.float64) - value).mean())
            for a in (ours, theirs)
        )
        assert ours <= 2 * max(theirs, 2**-9 * np.sqrt(np.square(value).mean()))


@pytest.mark.gpu
def test_masks_and_resets_on_a_gpu():
    for name in ("lstm_peephole_learned", "min_gru"):
        inputs = draw(name, 1, 65)
        with jax.default_matmul_precision("highest"):
            expected = unrolled(SUBJECTS[name], Scan(save="everything"), True)(*inputs)
            assert_same_outcome(
                unrolled(SUBJECTS[name], Fused(), True)(*inputs), expected, 1e-5, 1e-4
            )
