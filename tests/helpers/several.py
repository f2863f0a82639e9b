"""Several processes of one run on this machine, which 127.0.0.1 connects."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(devices=1, **more):
    """Of a process with some devices of a CPU, outside of any launcher."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "OMPI_", "PMI_"))
    }
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), *map(str, sys.path[:1])])}
    return (
        kept
        | paths
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAXRNN_REPORT": "plain",
        }
        | more
    )


class Processes:
    """``count`` copies of a command, each with its flags.

    Args:
        command: the words, without the flags that connect the processes.
        count: the number of processes.
        folders: where each of them runs; by default, where this one does.
        variables: more of the environment.
        each: more words, a list for each process.
    """

    def __init__(self, command, count=2, *, folders=None, each=None, **variables):
        port = free_port()
        self.all = [
            subprocess.Popen(
                [
                    *map(str, command),
                    *("--coordinator", f"127.0.0.1:{port}"),
                    *("--processes", str(count), "--process", str(i)),
                    *(each[i] if each else []),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=folders[i] if folders else None,
                env=environment(**variables),
            )
            for i in range(count)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill(*range(len(self.all)))
        for process in self.all:
            with contextlib.suppress(Exception):
                process.communicate(timeout=10)

    def kill(self, *which):
        for i in which:
            self.all[i].kill()

    def ends(self, timeout=150):
        """The exit status, standard output and standard error of each."""
        found = [process.communicate(timeout=timeout) for process in self.all]
        return [
            (process.returncode, *words)
            for process, words in zip(self.all, found, strict=True)
        ]

    def are_running(self):
        return all(process.poll() is None for process in self.all)
