"""Random steps: the default's gradient, and one more engine and mode each. ``make
fuzz`` tries thousands in full.
"""

import jax
import numpy as np
import pytest
from fuzz.__main__ import drawn_pairs, made_small
from fuzz.compare import tried
from fuzz.programs import random_program

NUMBERS = np.random.default_rng(2026).integers(2**31, size=30).tolist()


@pytest.mark.parametrize("number", NUMBERS)
def test_engines_are_a_python_loop(plain_errors, number):
    program = random_program(number, small=True)
    with jax.enable_x64(True):
        result = tried(program, drawn_pairs(program))
        assert result.dropped is None or "no step" not in result.dropped, result
        found = [
            made_small(difference, seconds=30) for difference in result.differences
        ]
    assert not found, "\n".join(
        f"{d.engine}, {d.mode}: {d.what}\n{d.program}" for d in found
    )
