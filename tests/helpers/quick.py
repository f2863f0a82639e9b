"""XLA's options for the tests: their programs run a few times each, so time spent on
optimizing them is lost.
"""

import contextlib
import glob
import importlib.metadata
import os

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if (
    int(importlib.metadata.version("jaxlib").split(".")[1]) < 11
):  # later ones do not know it, and end the process
    QUICK["xla_cpu_use_fusion_emitters"] = False


def compile_fast():
    """Every program of this process and of those it starts: to be called before the
    first is compiled.

    Not where XLA_FLAGS are given (``XLA_FLAGS=--xla_backend_optimization_level=3 make
    test`` optimizes as for users), and not beside an accelerator, whose kernels the
    same options would slow down.
    """
    if not glob.glob("/dev/nvidia[0-9]*") and not glob.glob("/dev/accel*"):
        os.environ.setdefault(
            "XLA_FLAGS",
            " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items()),
        )


def kept_programs(folder):
    """The environment of processes that run the same program one after another: each
    is compiled by the first.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@contextlib.contextmanager
def programs_kept_in(folder):
    """This process, too, keeps its programs there, and reads what others have kept."""
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in options}
    reset_cache()  # a process asks once whether it keeps programs
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()
