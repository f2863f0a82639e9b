"""Thirty random steps: the default's gradient, and one more engine and mode each. ``make fuzz`` tries thousands in full."""

import jax
from fuzz.__main__ import drawn_pairs
from fuzz.compare import tried
from fuzz.programs import programs
from hypothesis import HealthCheck, Phase, given, seed, settings


@seed(2026)
@settings(
    max_examples=30,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(programs(most=2, longest=2, around=0))
def test_engines_are_a_python_loop(plain_errors, program):
    with jax.enable_x64(True):
        result = tried(program, drawn_pairs(program))
    assert result.dropped is None or "no step" not in result.dropped, result
    assert not result.differences, "\n".join(f"{d.engine}, {d.mode}: {d.what}" for d in result.differences)
