"""Thirty random steps: the default's gradient, and one more engine and mode each.
``make fuzz`` tries thousands in full.
"""

import jax
from fuzz.__main__ import drawn_pairs, made_small
from fuzz.compare import tried
from fuzz.programs import random_program
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st


@seed(2026)
@settings(
    max_examples=30,
    phases=[
        Phase.generate
    ],  # a failing program is made small below: of the numbers that programs follow from none is simpler  # noqa: E501
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.integers(0, 2**31))
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
