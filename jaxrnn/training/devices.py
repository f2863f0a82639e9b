"""Devices over which a batch is split: the cores of a CPU, or several accelerators."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ..core.types import PyTree
from . import processes
from .errors import InputError

MOST_HIDDEN = 384  # number of hidden units up to which splitting over cores is faster
LEAST_STREAMS = 8  # least number of streams per device


def choose_devices(asked: int, batch: int, hidden: int) -> int:
    """Choose the number of devices for a run of ``batch`` streams.

    ``asked`` is used if it is not 0. For 0 the choice follows measurements: on a CPU
    and with up to 384 hidden units, as many devices as exist, as long as they divide
    the batch evenly and each gets at least 8 streams; otherwise one. Each core then
    runs its own streams without waiting for the others at every step, but multiplies
    fewer of them at a time by the recurrent weights; with more hidden units XLA is as
    fast when it splits each product over the cores. The table gives charlm with an LSTM
    in windows of 64 steps, float32, in thousands of characters per second on one device
    and on two (Intel Xeon, Sapphire Rapids, two cores, jax 0.10.2, one or two
    undisturbed rounds)::

        hidden        64           128          256          384          512
        batch 16   311 -> 310   163 -> 193   50 -> 79     28 -> 31     16 -> 17
        batch 32   357 -> 440   169 -> 225   56 -> 81     28 -> 37     18 -> 19
        batch 64                             51 -> 62                  21 -> 20

    If another program keeps one of the two cores busy, nothing is gained, and at 384
    units an eighth is lost. Several accelerators were not measured: their number must
    be given explicitly.

    Of several processes each has the same number of devices, at least one. On a CPU
    the rule is the same; of accelerators, all are used.

    Args:
        asked: the value of ``--devices``, which counts those of all processes.
        batch: the number of streams.
        hidden: the number of hidden units.

    Returns:
        The number of devices.

    Raises:
        InputError: if ``asked`` exceeds the number of devices, does not divide the
            batch, or is no multiple of the number of processes.
    """
    if processes.count() > 1:
        return _of_all_processes(asked, batch, hidden)
    devices = jax.devices()
    if asked > len(devices):
        more = (
            f"; a CPU has more with JAX_NUM_CPU_DEVICES={asked} in the environment, "
            f"or with "
            f'jax.config.update("jax_num_cpu_devices", {asked}) before jax is first '
            f"used"
        )
        available = (
            "is only 1 device"
            if len(devices) == 1
            else f"are only {len(devices)} devices"
        )
        raise InputError(
            f"--devices {asked}, but there {available} "
            f"here{more if devices[0].platform == 'cpu' else ''}"
        )
    if asked and batch % asked:
        raise InputError(
            f"--devices {asked} does not divide --batch {batch}: choose a --batch that "
            f"is a multiple of {asked}"
        )
    if asked or hidden > MOST_HIDDEN or devices[0].platform != "cpu":
        return asked or 1
    return max(
        n
        for n in range(1, len(devices) + 1)
        if n == 1 or (batch % n == 0 and batch >= n * LEAST_STREAMS)
    )


def host_cores() -> int:
    """Return the number of cores that this process may use."""
    # Not every operating system can say which cores a process may use.
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def _of_all_processes(asked: int, batch: int, hidden: int) -> int:
    """Choose the number of devices of all processes together."""
    count = processes.count()
    own = Counter(device.process_index for device in jax.devices())
    most = min(own.values())
    if asked % count or asked > most * count:
        raise InputError(
            f"--devices {asked}, but {count} processes have {most * count} devices to "
            f"share alike: choose a multiple of {count} that is at most {most * count}"
        )
    is_cpu = jax.devices()[0].platform == "cpu"
    if asked:
        each = asked // count
    elif not is_cpu:
        each = most
    else:
        each = max(
            n
            for n in range(1, most + 1)
            if n == 1
            or (
                hidden <= MOST_HIDDEN
                and batch % (n * count) == 0
                and batch >= n * count * LEAST_STREAMS
            )
        )
    if batch % (each * count):
        raise InputError(
            f"{each * count} devices of {count} processes do not divide --batch "
            f"{batch}: choose a --batch that is a multiple of {each * count}"
        )
    return each * count


def mesh_of(devices: int) -> Mesh | None:
    """Return a mesh of ``devices`` devices with the axis ``streams``.

    They are the first ones of each process. None for one device.
    """
    if devices == 1:
        return None
    each = devices // processes.count()
    own: dict[int, list[Any]] = {}
    for device in jax.devices():
        own.setdefault(device.process_index, []).append(device)
    chosen = [device for process in sorted(own) for device in own[process][:each]]
    return Mesh(np.asarray(chosen), ("streams",))


def mesh_of_processes(options: Any) -> Mesh | None:
    """Return the mesh of a task that uses one device of a single process.

    Of several processes, it uses the devices that `choose_devices` chooses.

    Args:
        options: those of the task, with ``batch`` and ``hidden``.
    """
    if processes.count() == 1:
        return None
    return mesh_of(choose_devices(0, options.batch, options.hidden))


def on_one_device(tree: PyTree) -> Any:
    """Return the copy of replicated arrays on the first device.

    Computations on them then run on that device alone.
    """
    return jax.tree.map(
        lambda leaf: leaf.addressable_data(0) if leaf.is_fully_replicated else leaf,
        tree,
    )
