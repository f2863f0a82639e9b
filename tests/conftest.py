"""The tests run with shapes checked by beartype and without silent promotion of
dtypes or ranks.
"""

import gc
import os

import jax
import pytest
import tiers
from checker import checked_modules
from jaxtyping import config, install_import_hook
from memory import make_room
from quick import compile_fast
from times import Times

compile_fast()

# The parts of reports that compile something stand in tests/tasks/test_report.py.
os.environ.setdefault("JAXRNN_REPORT", "plain")

gc.set_threshold(
    50_000, 20, 50
)  # JAX's objects are many and live long: to look through them again and again takes a tenth  # noqa: E501

install_import_hook(checked_modules(), "checker.typechecked")

from jaxrnn.training import announced  # noqa: E402  (after the hook, to be checked)

# A machine that is busy would print lines that others do not.
announced.FIRST = announced.LEAST = 3600.0

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_traceback_in_locations_limit", 0
)  # a program's operations need not say which lines they come from


def pytest_configure(config):
    if path := os.environ.get("JAXRNN_TEST_TIMES"):
        config.pluginmanager.register(Times(path))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Which tests are slow is decided in tests/tiers.py."""
    tiers.choose(config, items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``--dist loadgroup`` what shares programs stays together: see `groups`."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from groups import ByGroup  # needs xdist, which this hook does, too

    return ByGroup(config, log)


def pytest_runtest_setup(item):
    tiers.skip_when_time_is_up(item)
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU, and jax with its CUDA plugin")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Between tests, compiled programs are dropped where the process has grown large,
    and between files where they have come to fill its memory maps.
    """
    outcome = yield
    make_room(count_maps=nextitem is None or nextitem.path != item.path)
    return outcome


@pytest.fixture
def plain_errors():
    """The library's own words for bad input, as users see them: without beartype,
    which would speak first.
    """
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    """Float64, for comparisons at 1e-12."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optax_promotion():
    """optax's schedules and transforms rely on promotion; the library itself is
    tested without.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
