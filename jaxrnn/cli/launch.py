"""The start of a run of several processes, by ``jax.distributed.initialize()``.

JAX finds the processes under Slurm, Open MPI, Kubernetes and on TPU pods. Elsewhere the
flags ``--coordinator``, ``--processes`` and ``--process`` name them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from ..core.foreign import optional_attribute
from ..training import InputError
from ..training.errors import unwritable
from ..training.processes import coordinator
from . import foreign_words, watch

START_SECONDS = 300
HEARTBEAT_SECONDS = 60
# JAX itself ends all processes after so many times the heartbeat time. It counts from
# the last sign of life, which may be half of its time before a process was lost: with
# twice the time its end comes after that of `watch`, which has words.
JAX_SHARE = 2
# More than JAX's own limits, which end a process without words; see `_within`.
MARGIN_SECONDS = 60
# A process that has finished waits this long for the first one, which writes a report.
LAST_SECONDS = 3600
# How errors of XLA begin, which may be the first that one hears of a lost process.
STATUS = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE"
    "|UNKNOWN): "
)

# Variables that hold the number of processes that a launcher has started.
LAUNCHERS = {
    "SLURM_NTASKS": "Slurm",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPI",
    "MV2_COMM_WORLD_SIZE": "MPI",
}


def begin(arguments: argparse.Namespace) -> bool:
    """Connect the processes of a run, if there are several.

    Args:
        arguments: those of ``jaxrnn train``.

    Returns:
        Whether there are several.

    Raises:
        InputError: if flags do not fit each other, or a launcher has started several
            processes that cannot be connected.
    """
    named = ("coordinator", "processes", "process")
    given = vars(arguments)
    flags = {name: given[name] for name in named if given[name] is not None}
    if flags == {"processes": 1}:  # alone, whatever the environment holds
        return False
    if flags:
        _initialize(arguments, _named(flags))
        return True
    client, _, count = coordinator()
    if client is not None:  # the program that calls this one has connected them
        watch.begin(arguments.heartbeat_seconds)
        return count > 1
    kind = _found()
    try:
        count = 1 if kind is None else kind.get_process_count()
    except Exception as error:
        raise InputError(
            f"the number of processes cannot be found: {_one_line(error)}; give "
            f"--coordinator, --processes and --process, or --processes 1"
        ) from None
    if count > 1:
        _initialize(arguments, {})
        return True
    _check_alone()
    return False


def guarded(command: Callable[[], int]) -> int:
    """Run a command of several processes, whose errors end all of them.

    Args:
        command: returns the exit status.
    """
    try:
        with foreign_words.without_greetings():
            status = command()
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BaseException as error:
        reason = unwritable(error)
        if reason is not None:
            _fail(f"a file could not be written: {reason}", 2)
        if STATUS.match(str(error)):
            # Where the devices' connection to a lost process is closed, this one hears
            # of it before the thread does that knows which process it is.
            watch.wait_for_loss()
        traceback.print_exc()
        watch.fail(f"{type(error).__name__}: {_one_line(error)}", 1)
    watch.end()
    return status


def _fail(message: str, status: int) -> NoReturn:
    """Print an error and end all processes."""
    print(f"jaxrnn: {message}", file=sys.stderr, flush=True)
    watch.fail(message, status)


def _named(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``initialize`` that flags stand for."""
    address = flags.get("coordinator") or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, process = flags.get("processes"), flags.get("process")
    if address is None or count is None or process is None:
        raise InputError(
            "--coordinator HOST:PORT, --processes N and --process I belong together: "
            "give all three, with the same HOST:PORT and N to every process"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(
            f"--coordinator must be HOST:PORT, such as host0:1234, but it is {address}"
        )
    if not 0 <= process < count:
        raise InputError(
            f"--process must be one of 0 to {count - 1}, because --processes is "
            f"{count}, but it is {process}"
        )
    _check_resolved(host.strip("[]"), address)
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": process,
    }


def _check_resolved(host: str, address: str) -> None:
    """Check that the coordinator's host has an address, for which JAX would wait."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--coordinator {address}: the host name {host} cannot be resolved "
            f"({reason}); check its spelling, or give the IP address of the machine of "
            f"process 0"
        ) from None


def _found() -> Any:
    """Return where JAX would find the processes, or None."""
    try:  # JAX has no public name for it
        from jax._src.clusters import ClusterEnv
    except ImportError:
        return None
    for kind in optional_attribute(ClusterEnv, "_cluster_types", ()):
        try:
            if not kind.opt_in_only_method and kind.is_env_present():
                return None if _is_single_pod() else kind
        except Exception:  # it is not what this kind has expected
            continue
    return None


def _is_single_pod() -> bool:
    """Return whether this is a pod of Kubernetes outside of an indexed job."""
    return (
        "KUBERNETES_SERVICE_HOST" in os.environ
        and "JOB_COMPLETION_INDEX" not in os.environ
        and not any(name in os.environ for name in LAUNCHERS)
    )


def _check_alone() -> None:
    """Check that no launcher has started this program several times."""
    for variable, launcher in LAUNCHERS.items():
        text = os.environ.get(variable, "")
        if text.isdigit() and int(text) > 1:
            raise InputError(
                f"{launcher} has {text} tasks ({variable}), but jax.distributed does "
                f"not find them here: start all by srun or mpirun, or give "
                f"--coordinator, --processes and --process; --processes 1 trains alone"
            )


def _initialize(arguments: argparse.Namespace, named: dict[str, Any]) -> None:
    """Connect to the other processes, and begin to watch them."""
    seconds, heartbeat = arguments.start_seconds, arguments.heartbeat_seconds
    # The loop of `jaxrnn.training.fit` itself handles SIGTERM.
    with contextlib.suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)
    address = named.get("coordinator_address") or "the coordinator"
    try:
        with _within(seconds, address):
            jax.distributed.initialize(
                **named,
                initialization_timeout=seconds + MARGIN_SECONDS,
                heartbeat_timeout_seconds=JAX_SHARE * heartbeat,
                shutdown_timeout_seconds=LAST_SECONDS,
            )
    except Exception as error:  # gRPC and JAX raise many types
        raise InputError(
            f"the processes cannot be connected through {address}: {_one_line(error)}"
        ) from None
    foreign_words.move()
    watch.begin(heartbeat)


@contextlib.contextmanager
def _within(seconds: int, address: str) -> Iterator[None]:
    """End this process with one line if the body takes longer.

    JAX itself would end it with a stack trace.
    """

    def give_up() -> None:
        print(
            f"jaxrnn: not all processes were connected through {address} within "
            f"{seconds} seconds (--start-seconds): is process 0 running, is its "
            f"address reachable, and were all processes started?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _one_line(error: BaseException) -> str:
    """Return the message of an error as one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
