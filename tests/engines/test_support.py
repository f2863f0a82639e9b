"""Which engine takes which cell, and what each declares, as tables.

The tests of engines and the laws are run on cells that declare something. A
declaration that wrongly says "not supported" must fail here: elsewhere it would only
take rows away.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from subjects import CELLS, LEARNED, LINEAR, PLAIN, SUBJECTS, B, D, draw_params

import jaxrnn
from jaxrnn import Associative, Checkpoint, CuDNN, Fused, Newton, Scan
from jaxrnn.core.cell import is_chunkwise, is_linear
from jaxrnn.core.engine import Supports
from jaxrnn.layers.compose import Bidirectional

IN_A_LINE = {  # linear in their state: prefixes of affine maps
    *("min_gru", "min_gru_positive", "min_lstm", "min_lstm_plain", "rg_lru"),
    *("lru", "s5", "rtu", "user_linear"),
}
IN_CHUNKS = {  # a state that is a matrix: chunks as products
    *("mlstm", "delta_net", "gated_delta_net", "delta_product", "kda", "gdn2"),
    *("mamba", "mamba2", "mamba3", "gla", "retnet", "hgrn2", "rwkv6", "rwkv7"),
    *("mlstm_mixer",),
}
EVERY_CELL = {name for name, cell in SUBJECTS.items() if isinstance(cell, jaxrnn.Cell)}
# What learns its first state, beside what has none to learn or is no cell.
LEARN_NOTHING = {"lru", "s5", "rtu", "user_linear", "slstm", "user"}


def with_learned(names):
    """The names, and those of their twins that learn the initial carry."""
    return names | {f"{name}_learned" for name in names if f"{name}_learned" in LEARNED}


def taken_by(engine):
    """The cells for which an engine has a schedule."""

    def takes(cell):
        try:
            return engine.schedule(cell, 16) is not None
        except (TypeError, ValueError):
            return False

    return {name for name in EVERY_CELL if takes(SUBJECTS[name])}


def test_kinds_of_cells():
    """A new cell that is linear or runs chunks belongs in a table above."""
    assert {n for n in EVERY_CELL if is_linear(SUBJECTS[n])} == with_learned(IN_A_LINE)
    chunkwise = {n for n in EVERY_CELL if is_chunkwise(SUBJECTS[n])}
    assert chunkwise == with_learned(IN_CHUNKS)
    assert LINEAR.keys() == IN_A_LINE
    assert len(EVERY_CELL) == 2 * len(CELLS) + len(LEARN_NOTHING)
    assert CELLS.keys() == (EVERY_CELL & PLAIN.keys()) - LEARN_NOTHING


def test_cells_of_every_engine():
    for engine in (Scan(), Scan(chunk=3), Scan(save="everything"), Checkpoint()):
        assert taken_by(engine) == EVERY_CELL, engine
    for engine in (Newton(), Newton(4, save="starts"), Newton(jacobian="units")):
        assert taken_by(engine) == EVERY_CELL, engine
    for engine in (Associative(), Associative(4)):
        assert taken_by(engine) == with_learned(IN_A_LINE | IN_CHUNKS), engine
    # Which steps a kernel can hold is read from their programs.
    assert taken_by(Fused()) == EVERY_CELL


def test_cells_of_cudnn():
    random, xs = np.random.default_rng(0), jnp.zeros((4, B, D))

    def taken(name):
        cell = SUBJECTS[name]
        if np.ndim(cell.feature_ndim) or cell.feature_ndim != 1:
            return False
        params = draw_params(cell, random)
        carry = cell.initial_carry(params, (B,))
        return CuDNN().refusal(cell, params, carry, xs) is None

    few = {"lstm", "lstm_peephole", "lstm_projected", "gru", "mlstm", "user"}
    assert {name for name in with_learned(few) if taken(name)} == {
        *("lstm", "lstm_learned")
    }


@pytest.mark.parametrize(
    ("engine", "supports"),
    [
        (Scan(), Supports.EVERYTHING),
        (Checkpoint(), Supports.EVERYTHING),
        (Newton(), Supports.EVERYTHING),
        (Associative(), Supports.EVERYTHING & ~Supports.ANY_CELL),
        (Fused(), Supports.EVERYTHING & ~Supports.ANY_CELL),
        (CuDNN(), Supports.WHOLE_NETWORK),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_engines_declare(engine, supports):
    assert engine.supports == supports


def test_what_cells_declare():
    """No subject takes a context or draws; all but a bidirectional layer is causal."""
    for name, layer in SUBJECTS.items():
        assert not layer.takes_context, name
        assert not layer.requires_key, name
        assert layer.causal == (not isinstance(layer, Bidirectional)), name
    shared = {name for name in EVERY_CELL if SUBJECTS[name].shares_scale}
    assert shared == with_learned({"mlstm", "mlstm_mixer", "slstm"})
    shown = {name for name in EVERY_CELL if SUBJECTS[name].shows_h_alone}
    assert shown == with_learned(IN_CHUNKS - {"mlstm"})
