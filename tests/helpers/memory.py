"""Room for compiled programs: what a test process keeps, and how it lets go of it."""

import contextlib
import ctypes
import functools
import gc
import os
import sys
from pathlib import Path

import jax

TESTS = Path(__file__).parents[1]
# Linux gives a process 65,530 memory maps; every compiled program takes some, and XLA
# dies without
MOST_MAPS = 30_000
MOST_BYTES = 1.5e9  # resident: two processes and what they start stay below 4 GB
most_bytes = MOST_BYTES  # higher where letting go does not help


def resident():
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def maps():
    try:
        with open("/proc/self/maps", encoding="utf-8") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


def forget_programs():
    """Empty every ``functools.cache`` of the tests and their helpers (most hold
    compiled programs), and JAX's own, and hand the memory back.
    """
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is None or TESTS not in Path(file).parents:
            continue
        for value in list(vars(module).values()):
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def make_room(count_maps=False):
    """Forget all programs where the process has grown large; ``count_maps`` where
    they have come to fill its memory maps, too: to count them takes longer.
    """
    global most_bytes
    if resident() > most_bytes or (count_maps and maps() > MOST_MAPS):
        forget_programs()
        most_bytes = max(MOST_BYTES, resident() + 0.3e9)
