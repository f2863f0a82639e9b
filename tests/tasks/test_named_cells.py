"""Cells by name: those with a matrix state stand in blocks, and have heads and words as
variants.
"""

import jax
import pytest

from jaxrnn import cells, layers
from jaxrnn.tasks.models.cell_registry import make_cell
from jaxrnn.tasks.models.named_cells import NAMED
from jaxrnn.training import InputError


def pre_norm(cell, *arguments, **options):
    return layers.pre_norm_block(cell(8, *arguments, **options), 8)


MADE = {
    "gated-deltanet": pre_norm(cells.GatedDeltaNet),
    "gated-deltanet:2": pre_norm(cells.GatedDeltaNet, num_heads=2),
    "gated-deltanet:negative": pre_norm(cells.GatedDeltaNet, allow_negative=True),
    "gated-deltanet:4:negative": pre_norm(
        cells.GatedDeltaNet, num_heads=4, allow_negative=True
    ),
    "deltanet:negative:4": pre_norm(cells.DeltaNet, num_heads=4, allow_negative=True),
    "deltaproduct:2": pre_norm(cells.DeltaProduct, num_heads=2),
    "deltaproduct:positive": pre_norm(cells.DeltaProduct, allow_negative=False),
    "kda:negative": pre_norm(cells.KDA, allow_negative=True),
    "gdn2:2": pre_norm(cells.GDN2, num_heads=2),
    "gla:2": pre_norm(cells.GLA, num_heads=2),
    "retnet": pre_norm(cells.RetNet),
    "hgrn2:8": pre_norm(cells.HGRN2, num_heads=8),
    "mamba2:16": layers.mamba2_block(8, 16),
    "mamba": layers.mamba_block(8),
    "rwkv6:2": pre_norm(cells.RWKV6, num_heads=2),
    "rwkv7:2": layers.rwkv_block(8, 2),
    "griffin": layers.griffin_block(8),
    "xlstm": layers.mlstm_block(8, 4),
    "xlstm:2": layers.mlstm_block(8, 2),
    "xlstm:slstm": layers.slstm_block(8, 4),
    "xlstm:slstm:2": layers.slstm_block(8, 2),
}
NEW = dict.fromkeys(name.partition(":")[0] for name in MADE)


@pytest.mark.parametrize("spec", MADE)
def test_a_name_and_its_variant(spec):
    assert make_cell(spec, 8, 10) == MADE[spec]


@pytest.mark.parametrize("name", NEW)
def test_the_block_has_as_many_outputs_as_units(name):
    layer = make_cell(name, 8, 10)
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), 3))
    assert layer.output_features(params, 3) == 8


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gated-deltanet:0", "'0' is no variant of gated-deltanet"),
        ("gated-deltanet:", "'' is no variant of gated-deltanet"),
        ("gated-deltanet:2:2", "'2:2' is no variant"),
        ("gated-deltanet:positive", "'positive' is no variant"),
        ("kda:negative:negative", "is no variant of kda"),
        ("griffin:2", "'2' is no variant of griffin"),
        ("rwkv7:x", "'x' is no variant of rwkv7"),
        ("gated-deltanet:3", "3 heads do not divide --hidden 8"),
        ("mamba2:3", "3 heads do not divide 2 times --hidden 8"),
        ("xlstm:3", "3 heads do not divide --hidden 8"),
        ("gated-delta-net", "did you mean gated-deltanet"),
        ("rwkv", "did you mean rwkv"),
    ],
)
def test_what_has_no_name(spec, words):
    with pytest.raises(InputError, match=words):
        make_cell(spec, 8, 10)


def test_every_name_is_explained_with_its_variants():
    for name, cell in NAMED.items():
        assert cell.words
        assert not cell.takes("no such thing")
        if cell.takes("2") or cell.takes("chrono"):
            assert f"{name}:" in cell.words
