"""What a profile calls the operations of an unroll: the layer, its part, the engine."""

import re

import jax
import pytest

import jaxrnn

MODEL = jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.Elman(2)), jaxrnn.GRU(3))
PLACES = (
    "Stack/part_0/Bidirectional/part_0/Elman",
    "Stack/part_0/Bidirectional/part_1/Elman",
    "Stack/part_1/GRU",
)


@pytest.mark.parametrize("engine", [None, jaxrnn.Scan(save="everything")])
def test_operations_are_named_after_layers_and_engines(engine):
    params = MODEL.init(jax.random.key(0), 4)
    xs = jax.random.normal(jax.random.key(1), (5, 2, 4))

    def loss(params):
        with jax.named_scope("mine"):
            return jaxrnn.unroll(MODEL, params, xs, engine=engine)[1].sum()

    text = jax.jit(jax.grad(loss)).lower(params).as_text(debug_info=True)
    names = set(re.findall(r'"([^"]*/_?[^"]*)"', text))
    name = "DefaultEngine" if engine is None else "Scan"
    for place in PLACES:
        here = [n for n in names if f"{place}/{name}" in n and "mine" in n]
        assert any("transpose" in n for n in here)
        assert any("transpose" not in n for n in here)
