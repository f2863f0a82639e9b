"""The plan for platforms other than a CPU, chunks prepared side by side, run here."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrix_cells import MATRIX_CELLS, with_learned_state
from test_chunks import assert_same_outcomes, draw, unrolled

import jaxrnn
from jaxrnn import Associative, Scan
from jaxrnn.cells import MLSTM, GatedDeltaNet
from jaxrnn.matrix import chunkwise
from jaxrnn.matrix.block import BLOCK_BYTES, chunks_in_block

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def float32(x64):
    with jax.enable_x64(False):
        yield


@pytest.fixture
def elsewhere(monkeypatch):
    """Run blocks of two chunks, as a platform that is not a CPU would."""

    def plans(steps, chunk, S, *, weighted, usual):
        plan = chunkwise.Plan(min(chunk or 4, steps), 2)
        return plan, plan

    unrolled.cache_clear()
    monkeypatch.setattr(chunkwise, "plans", plans)
    yield
    unrolled.cache_clear()


@pytest.mark.parametrize("name", MATRIX_CELLS)
@pytest.mark.parametrize("learned", [False, True], ids=["zero", "learned"])
def test_blocks_are_steps(name, learned, elsewhere):
    cell = MATRIX_CELLS[name]
    cell = with_learned_state(cell) if learned else cell
    arguments = draw(cell, 19)
    assert_same_outcomes(
        unrolled(cell, Associative(4), "mr", learned)(*arguments),
        unrolled(cell, Scan(), "mr", learned)(*arguments),
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_ends_at_a_reset(bad, elsewhere):
    cell = MATRIX_CELLS["head_delta"]
    params, xs, carry, _, _, _ = draw(cell, 11)
    carry = carry._replace(S=carry.S.at[0, 0, 1, 2].set(bad))
    resets = jnp.zeros((11, 2), bool).at[6].set(True)

    def run(engine):
        return jax.jit(
            lambda: jaxrnn.unroll(
                cell, params, xs, carry, resets=resets, engine=engine
            )[1]
        )()

    found, expected = run(Associative(4)), run(Scan())
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found[6:], expected[6:], atol=1e-12)


def test_plans():
    S = jnp.zeros((4, 4, 64, 64))
    on_cpu, elsewhere = chunkwise.plans(2048, None, S, weighted=False)
    assert on_cpu == (32, 1)
    assert elsewhere.chunk == 64
    assert 1 < elsewhere.block <= 32
    assert chunkwise.plans(100, None, S, weighted=False) == ((32, 1), (64, 1))
    assert chunkwise.plans(2048, None, S, weighted=True) == ((32, 1), (64, 1))
    assert chunkwise.plans(2048, 16, S, weighted=False)[0] == (16, 1)
    assert chunkwise.plans(20, None, S, weighted=False) == ((20, 1), (20, 1))


def test_a_cell_says_how_long_its_chunks_are(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Short(jaxrnn.cells.GatedDeltaNet):
        def chunk_on(self, platform):
            return {"cpu": 4, "gpu": 8, "tpu": 8}[platform]

    chosen = []

    def plans(*args, **options):
        chosen.append(chunkwise_plans(*args, **options))
        return chosen[-1]

    chunkwise_plans = chunkwise.plans
    monkeypatch.setattr(chunkwise, "plans", plans)
    cell = Short(4, num_heads=2)
    params = cell.init(jax.random.key(0), 3)
    jax.eval_shape(lambda xs: jaxrnn.unroll(cell, params, xs), jnp.zeros((16, 2, 3)))
    assert chosen[0] == ((4, 1), (8, 1))


def test_blocks_are_equally_long_and_bounded():
    S = jnp.zeros((4, 4, 64, 64), jnp.float32)
    assert chunks_in_block(3, 64, S) == 3
    block = chunks_in_block(1000, 64, S)
    assert 64 * S.size // 64 * 4 * block < BLOCK_BYTES
    assert chunks_in_block(block + 1, 64, S) == (block + 2) // 2


@pytest.mark.usefixtures("float32")
def test_explain_says_which_chunk_a_platform_has():
    for cell in (GatedDeltaNet(8, num_heads=2, conv=None), MLSTM(8)):
        params = cell.init(jax.random.key(0), 3)
        explained = jaxrnn.explain(cell, params, jnp.ones((600, 2, 3), jnp.float32))
        rows = {row.platform: row.forward for row in explained.rows}
        assert {name: path.steps for name, path in rows.items()} == {
            "cpu": 32,
            "gpu": 64,
            "tpu": 64,
        }


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_platform_compiles_its_own_plan(platform):
    cell = GatedDeltaNet(8, num_heads=2, conv=None, use_gate=False)
    params = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((640, 2, 3), jnp.float32)
    loss = jax.jit(jax.grad(lambda p, xs: jaxrnn.unroll(cell, p, xs)[1].sum()))
    text = loss.trace(params, xs).lower(lowering_platforms=(platform,)).as_text()
    # The inputs as blocks, chunks and steps: 20 chunks of 32, or 10 of 64 at once.
    # What the other plan would save for the gradient is there as zeros alone.
    divided = {
        shape
        for shape in ("20x1x32x2x", "1x10x64x2x")
        if re.search(rf"stablehlo.reshape .*-> tensor<{shape}", text)
    }
    assert divided == {"20x1x32x2x" if platform == "cpu" else "1x10x64x2x"}


@pytest.mark.parametrize("name", MATRIX_CELLS)
def test_a_batch_of_no_examples(name):
    cell = MATRIX_CELLS[name]

    def loss(params, xs):
        carry, ys = jaxrnn.unroll(cell, params, xs)
        return ys.sum() + sum(leaf.sum() for leaf in jax.tree.leaves(carry))

    params = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((19, 0, 3), jnp.float64)
    assert jax.eval_shape(jax.grad(loss), params, xs) == params


@pytest.mark.usefixtures("float32")
def test_the_state_is_kept_apart_from_matrix_products():
    """XLA's CPU compiler reads memory that nobody wrote where it fuses a product with
    an operand that is one number everywhere, as zeros are; with all optimizations only,
    which tests go without. So what is asked for is the barrier.
    """
    cell = GatedDeltaNet(64, num_heads=1, conv=None)
    params = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((16, 4, 3), jnp.float32)
    unroll = jax.jit(lambda params, xs: jaxrnn.unroll(cell, params, xs))
    for platform, barriers in (("cpu", 2), ("cuda", 0)):
        lowered = unroll.trace(params, xs).lower(lowering_platforms=(platform,))
        found = re.findall(
            r"optimization_barrier.*tensor<4x1x64x64xf32>", lowered.as_text()
        )
        assert len(found) == barriers
