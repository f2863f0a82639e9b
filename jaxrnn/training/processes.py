"""What the processes of one run say to each other: ``jax.distributed`` connects them.

The first process (number 0) writes files and decides what depends on the clock, on
signals, or on rounding; the others are told. Two ways lead between processes. Rare and
slow matters go through the store of JAX's coordinator, where waiting has a time limit.
What is decided at every step is exchanged by the devices, as the gradients are.

With one process, every function returns at once what it was given.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import pathlib
import secrets
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.foreign import optional_attribute
from .errors import InputError

LIMIT = 1800.0  # seconds that a process waits for what the others compute or write
SEEN_LIMIT = 10.0  # seconds after which a new file must be seen on every host
KEPT = 64  # number of earlier messages that stay in the store
_calls = itertools.count()  # all processes call the functions below in the same order


def count() -> int:
    """Return the number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Return whether this process is the one that writes files and decides."""
    return jax.process_index() == 0


def coordinator() -> tuple[Any, int, int]:
    """Return JAX's client of the coordinator or None, this process, and their number.

    It does not start JAX's devices. On a TPU the number of the process may differ from
    ``jax.process_index()``.
    """
    # JAX has no public name for these; orbax's barriers use the same ones.
    from jax._src import distributed

    state = distributed.global_state
    return optional_attribute(state, "client"), state.process_id, state.num_processes


def _connected() -> Any:
    """Return the client of JAX's coordinator."""
    client, _, _ = coordinator()
    if client is None:
        raise InputError(
            f"there are {count()} processes, but jax.distributed does not connect "
            f"them: call jax.distributed.initialize() before jax is first used"
        )
    return client


def gather(value: Any, what: str) -> list[Any]:
    """Return the values of all processes, in their order.

    Args:
        value: what this process gives, as JSON.
        what: what the processes meet for, in words, for the error.

    Raises:
        InputError: if a process does not come within `LIMIT` seconds.
    """
    if count() == 1:
        return [value]
    client, call, deadline = _connected(), next(_calls), time.monotonic() + LIMIT
    _put(client, call, json.dumps(value))
    found = [_get(client, call, i, what, deadline) for i in range(count())]
    return [json.loads(text) for text in found]


def broadcast(value: Any, what: str) -> Any:
    """Return the value of the first process, in every process.

    Args, errors: as for `gather`.
    """
    if count() == 1:
        return value
    client, call, deadline = _connected(), next(_calls), time.monotonic() + LIMIT
    if is_first():
        _put(client, call, json.dumps(value))
        return value
    return json.loads(_get(client, call, 0, what, deadline))


def _put(client: Any, call: int, text: str) -> None:
    """Store what this process says in a call, and drop what it said long ago."""
    client.key_value_set(f"jaxrnn/{call}/{jax.process_index()}", text)
    if call >= KEPT:
        with contextlib.suppress(Exception):  # nothing was said in that call
            client.key_value_delete(f"jaxrnn/{call - KEPT}/{jax.process_index()}")


def _get(client: Any, call: int, process: int, what: str, deadline: float) -> str:
    """Wait for what a process says in a call."""
    left = max(deadline - time.monotonic(), 0.001)
    try:
        return client.blocking_key_value_get(
            f"jaxrnn/{call}/{process}", int(1000 * left)
        )
    except Exception as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise InputError(
            f"process {process} of {count()} did not come to {what} within "
            f"{LIMIT:g} seconds: look at what it prints, and start the run again with "
            f"--resume"
        ) from None


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Let every process raise an `InputError` that one of them raises in the body.

    Args:
        what: what is done in the body, in words.
    """
    message = None
    try:
        yield
    except InputError as error:
        if count() == 1:
            raise
        message = str(error)
    found = gather(message, what)
    for process, words in enumerate(found):
        if words is not None:
            prefix = f"process {process}: " if process else ""
            raise InputError(f"{prefix}{words}")


@functools.cache
def _exchange() -> tuple[NamedSharding, Any]:
    """Return where one row of each process is, and a program that joins the rows."""
    devices: dict[int, Any] = {}
    for device in jax.devices():
        devices.setdefault(device.process_index, device)
    mesh = Mesh(np.asarray([devices[i] for i in sorted(devices)]), ("process",))
    rows, everywhere = (NamedSharding(mesh, spec) for spec in (P("process"), P()))

    def join(rows: jax.Array) -> jax.Array:
        return jnp.stack([rows[0, 0], rows[:, 1].max()])

    return rows, jax.jit(join, out_shardings=everywhere)


def agree(share: float, asked: bool) -> tuple[float, bool]:
    """Return the first process's share of the budget, and whether any asks to stop.

    It is called before every step, and goes through the devices.
    """
    if count() == 1:
        return share, asked
    rows, join = _exchange()
    mine = np.array([[share, asked]], np.float32)
    found = np.asarray(join(jax.make_array_from_process_local_data(rows, mine)))
    return float(found[0]), bool(found[1])


def check_seen_by_all(directory: pathlib.Path) -> None:
    """Check that every process sees what the first one writes in a directory.

    Raises:
        InputError: if one does not, with its host.
    """
    if count() == 1:
        return
    name = broadcast(f".seen-{secrets.token_hex(8)}", "the run directory")
    file = pathlib.Path(directory) / name
    with together("the run directory"):
        if is_first():
            _write(file)
    found = gather([_appears(file), socket.gethostname()], "the run directory")
    if is_first():
        file.unlink(missing_ok=True)
    for process, (seen, host) in enumerate(found):
        if not seen:
            raise InputError(
                f"{directory} is written by process 0 on {found[0][1]}, but process "
                f"{process} on {host} does not see it: --out must be on a file system "
                f"that all processes share"
            )


def _write(file: pathlib.Path) -> None:
    """Write an empty file."""
    try:
        file.write_text("")
    except OSError as error:
        raise InputError(
            f"{file.parent} cannot be written: {os.strerror(error.errno or 0)}; choose "
            f"another --out"
        ) from None


def _appears(file: pathlib.Path) -> bool:
    """Return whether a file is seen soon; other hosts may see it somewhat later."""
    deadline = time.monotonic() + SEEN_LIMIT
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
