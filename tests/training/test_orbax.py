"""Parameters and carries through Orbax, as docs/howto/resume.md says it: structure,
dtypes and shardings kept.

A process keeps the devices it began with, so what needs two of them (``check_...``)
runs in a pytest of its own.
"""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from subjects import D, assert_same, draw_params

import jaxrnn

FIVE_LINES = """\
checkpointer = ocp.StandardCheckpointer()
checkpointer.save(path, {"params": layer_params, "carry": carry})
checkpointer.wait_until_finished()
# Or jax.ShapeDtypeStruct(shape, dtype, sharding=...) for each.
like = {"params": layer_params, "carry": carry}
restored = checkpointer.restore(path, like)
"""
ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto" / "resume.md").read_text(encoding="utf-8")
LAYER = jaxrnn.stack(
    jaxrnn.LSTM(4),
    jaxrnn.inference(jaxrnn.dropout(0.1)),
    jaxrnn.bidirectional(jaxrnn.GRU(6)),
)


def state():
    """Parameters in bfloat16 and a carry in the midst of a sequence, whose sums are
    float32; and inputs.
    """
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), draw_params(LAYER, random))
    xs = jnp.asarray(random.normal(size=(5, 4, D)), jnp.bfloat16)
    return params, jaxrnn.unroll(LAYER, params, xs)[0], xs


def there_and_back(path, params, carry):
    names = {"ocp": ocp, "path": path, "layer_params": params, "carry": carry}
    exec(FIVE_LINES, names)
    assert names["restored"] is not names["like"]
    return names["restored"]["params"], names["restored"]["carry"]


def test_the_sequence_goes_on_to_the_same_numbers(tmp_path):
    params, carry, xs = state()
    restored = there_and_back(tmp_path / "state", params, carry)
    assert_same(restored, (params, carry), 0)
    assert isinstance(restored[1][0], jaxrnn.LSTMState)
    assert (restored[1][0].c.dtype, restored[1][0].h.dtype) == (
        jnp.float32,
        jnp.bfloat16,
    )
    assert_same(
        jaxrnn.unroll(LAYER, restored[0], xs, restored[1]),
        jaxrnn.unroll(LAYER, params, xs, carry),
        0,
    )


def test_the_guide_says_these_lines():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert any(FIVE_LINES in block for block in blocks)


def test_on_two_devices_and_then_on_one(tmp_path):
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_PLATFORMS": "cpu",
        "ORBAX_TEST_FOLDER": str(tmp_path),
    }
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
    params, carry, _ = state()
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            tmp_path / "state", {"params": params, "carry": carry}
        )
    assert_same(restored, {"params": params, "carry": carry}, 0)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {1}


def check_shardings_are_kept():
    mesh = jax.make_mesh((2,), ("d",))
    params, carry, _ = state()

    def placed(path, leaf):
        columns = str(path[-1]) == "['recurrent_kernel']"
        return jax.device_put(
            leaf, NamedSharding(mesh, P(None, "d") if columns else P())
        )

    params = jax.tree_util.tree_map_with_path(placed, params)
    carry = jax.device_put(carry, NamedSharding(mesh, P("d")))
    restored = there_and_back(
        pathlib.Path(os.environ["ORBAX_TEST_FOLDER"]) / "state", params, carry
    )
    assert_same(restored, (params, carry), 0)
    found, expected = (
        [leaf.sharding for leaf in jax.tree.leaves(tree)]
        for tree in (restored, (params, carry))
    )
    assert found == expected
    assert {sharding.spec for sharding in found} == {P(), P(None, "d"), P("d")}
    half = restored[1][0].c.addressable_shards[1].data
    np.testing.assert_array_equal(half, np.asarray(carry[0].c)[2:])
