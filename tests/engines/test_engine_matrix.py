"""Every engine, on a cell of each kind, under each transformation: one table.

A row compares `jaxrnn.unroll` under an engine with a Python loop of streaming steps,
with a mask that has holes and, where the engine supports them, with resets. What an
engine does not support is read from what it declares, and must be refused.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from engines import ENGINES, supports
from reference import compiled, python_loop
from subjects import SUBJECTS, assert_same, draw

import jaxrnn
from jaxrnn.core.cell import is_chunkwise, is_linear
from jaxrnn.core.engine import Supports

# A cell as users write one, a gated cell, and those whose steps join: elementwise, and
# as products of matrices.
CASES = ("user", "gru_learned", "min_gru", "mlstm")
TRANSFORMATIONS = ("values", "vjp", "jvp", "vmap")
STEPS = 5
# Newton's method solves for the carries to rounding errors of their differences.
TOLERANCE = {"newton": 1e-11}


def applies(engine, case):
    """Whether an engine says that it takes the cell of a case."""
    cell = SUBJECTS[case]
    joins = is_linear(cell) or is_chunkwise(cell)
    return Supports.ANY_CELL in supports(engine) or joins


def transformed(run, transformation):
    """A function of two draws: what ``run`` gives under a transformation.

    ``run`` takes params, xs, carry, mask and resets. The second draw is the direction
    of a tangent, or the other member of a mapped axis.
    """

    def function(inputs, other):
        moving, flags = inputs[:3], (inputs.mask, inputs.resets)
        if transformation == "values":
            return run(*moving, *flags)
        if transformation == "vjp":
            pullback = jax.vjp(lambda *m: run(*m, *flags), *moving)[1]
            return pullback(inputs.cotangents)
        if transformation == "jvp":
            return jax.jvp(lambda *m: run(*m, *flags), moving, other[:3])
        members = jax.tree.map(
            lambda a, b: jnp.stack([a, b]),
            (*moving, *flags),
            (*other[:3], other.mask, other.resets),
        )
        return jax.vmap(run)(*members)

    return function


@functools.cache
def of_the_loop(case, transformation, with_resets, reverse):
    """What a Python loop of streaming steps gives, compiled once for all engines."""
    cell = SUBJECTS[case]

    def run(params, xs, carry, mask, resets):
        flags = (mask, resets if with_resets else None)
        return python_loop(cell, params, xs, carry, *flags, reverse)[:2]

    return compiled(transformed(run, transformation))(*draws(case))


def draws(case):
    return tuple(draw(case, seed, STEPS) for seed in (0, 1))


def of_the_engine(engine, case, transformation, with_resets, reverse):
    def run(params, xs, carry, mask, resets):
        resets = resets if with_resets else None
        how = {"mask": mask, "resets": resets, "reverse": reverse, "engine": engine}
        return jaxrnn.unroll(SUBJECTS[case], params, xs, carry, **how)

    return compiled(transformed(run, transformation))(*draws(case))


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_the_python_loop(name, case, transformation, x64):
    engine, reverse = ENGINES[name], case in ("gru_learned", "mlstm")
    with_resets = Supports.RESETS in supports(engine)
    row = (case, transformation, with_resets, reverse)
    refused = not applies(engine, case) or (
        transformation == "jvp" and Supports.FORWARD_MODE not in supports(engine)
    )
    if refused:
        with pytest.raises((TypeError, ValueError), match=type(engine).__name__):
            of_the_engine(engine, *row)
        return
    got, want = of_the_engine(engine, *row), of_the_loop(*row)
    assert_same(got, want, TOLERANCE.get(name, 1e-12))


@pytest.mark.parametrize("name", ENGINES)
def test_no_steps_give_back_the_carry_under_every_engine(name):
    inputs, cell = draw("min_gru", 0, 0), SUBJECTS["min_gru"]
    given = (inputs.params, inputs.xs, inputs.carry)
    how = {"mask": inputs.mask, "resets": inputs.resets, "engine": ENGINES[name]}
    carry, ys = jaxrnn.unroll(cell, *given, **how)
    assert_same(carry, inputs.carry, 0.0)
    assert ys.shape == (0, *inputs.carry.shape)


def test_how_many_rows_run():
    """A declaration that wrongly says "not supported" would only take rows away."""
    taken = {name: [applies(e, c) for c in CASES] for name, e in ENGINES.items()}
    joining = [False, False, True, True]
    only_these = ("associative", "associative_chunk")
    assert {n: t for n, t in taken.items() if t != [True] * 4} == dict.fromkeys(
        only_these, joining
    )
    for engine in ENGINES.values():
        assert Supports.FORWARD_MODE | Supports.RESETS in supports(engine)
