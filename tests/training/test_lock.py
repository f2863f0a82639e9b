"""Two processes cannot write one run; the lock of a dead process locks nobody out."""

import os
import signal
import subprocess
import sys

import pytest

from jaxrnn.tasks import hello
from jaxrnn.training import Budget, InputError, Run, fit, lock
from jaxrnn.training.lock import is_locked, locked

fcntl = pytest.importorskip("fcntl", reason="runs are not locked here")

HOLD = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, f"{os.getpid()}\\n".encode())
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the directory ``run``."""
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(tmp_path / "run/lock")],
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_what_another_process_writes_is_refused(tmp_path, holder, optax_promotion):
    run = Run(tmp_path / "run", {"task": "t"})
    message = f"is being written by another process \\(number {holder.pid}\\)"
    assert is_locked(run.path)
    with pytest.raises(InputError, match=message), locked(run.path):
        pass
    with pytest.raises(InputError, match=message):
        Run.create(run.path, {"task": "t"})
    with pytest.raises(InputError, match=message):
        fit(hello.prepare(hello.Options())[0], run, Budget(steps=1))
    assert [file.name for file in run.path.iterdir()] == ["lock"]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    file = tmp_path / "run/lock"
    assert file.read_text() == f"{holder.pid}\n"
    assert not is_locked(tmp_path / "run")
    with locked(tmp_path / "run"):
        assert file.read_text() == f"{os.getpid()}\n"
        assert is_locked(tmp_path / "run")
    assert not file.exists()


def test_a_process_may_take_its_lock_again(tmp_path):
    with locked(tmp_path / "new"), locked(tmp_path / "new"):
        with locked(tmp_path / "new"):
            pass
        assert is_locked(tmp_path / "new")
    assert not is_locked(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_an_error_inside_releases_it(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert not is_locked(tmp_path)


def test_a_lock_that_was_removed_while_it_was_opened_is_tried_again(
    tmp_path, monkeypatch
):
    """Its holder ends between the opening and the locking of the file here."""
    really, left = fcntl.flock, [1]

    def flock(descriptor, how):
        if left:
            left.pop()
            (tmp_path / "lock").unlink()
        really(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(tmp_path):
        assert (tmp_path / "lock").exists()
        assert is_locked(tmp_path)
    assert not left


def test_where_files_cannot_be_locked_runs_are_not(tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(tmp_path):
        assert not is_locked(tmp_path)


def test_a_disk_without_room_for_the_lock(tmp_path, monkeypatch):
    def write(descriptor, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock.os, "write", write)
    with (
        pytest.raises(InputError, match="cannot be written: No space left on device"),
        locked(tmp_path),
    ):
        pass


def test_a_run_is_not_made_without_its_task(tmp_path, plain_errors):
    with pytest.raises(ValueError, match="the config must name its task"):
        Run.create(tmp_path / "run", {"hidden": 4})
    assert not (tmp_path / "run").exists()
