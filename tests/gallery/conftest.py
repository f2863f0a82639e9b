"""The gallery runs in float64, and as users run JAX: ranks may broadcast."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _as_users_run():
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.enable_x64(True),
    ):
        yield
