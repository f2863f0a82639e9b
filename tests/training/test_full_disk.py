"""A disk that is full, or read-only, ends a run with one line: why, what was saved,
and how to go on.
"""

import builtins
import errno
import os
import subprocess
import sys

import pytest

from jaxrnn.cli import main
from jaxrnn.training import Checkpoints, InputError, checkpoints, run
from jaxrnn.training.errors import unwritable

QUICK = [
    "--hidden",
    "8",
    "--steps",
    "40",
    "--report-every",
    "10",
    "--evaluate-every",
    "20",
    "--checkpoint-seconds",
    "0",
]


def full(path="x"):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.fixture
def disk(monkeypatch):
    """``disk(name, times)``: writing a file of that name fails after so many times
    that it does not.
    """

    def make(name, times=0):
        left, really = [times], builtins.open

        def opened(path, mode="r", *args, **kwargs):
            if os.path.basename(str(path)).startswith(name) and mode != "r":
                if left[0] == 0:
                    raise full(path)
                left[0] -= 1
            return really(path, mode, *args, **kwargs)

        monkeypatch.setattr(run, "open", opened, raising=False)

    return make


def trained(tmp_path, capsys):
    status = main(["train", "hello", *QUICK, "--out", str(tmp_path / "run")])
    return status, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("name", "times", "saved"),
    [
        ("metrics.jsonl", 0, None),
        ("metrics.jsonl", 2, 10),
        ("timing.jsonl", 1, 10),
        ("result.json", 0, 40),
    ],
)
def test_each_file_of_a_run(
    name, times, saved, tmp_path, capsys, disk, optax_promotion
):
    disk(name, times)
    status, lines = trained(tmp_path, capsys)
    assert status == 2
    assert len(lines) == 1
    assert (
        f"jaxrnn: {tmp_path / 'run'} could not be written: No space left on device; "
        in lines[0]
    )
    what = (
        f"the last checkpoint saved is that of step {saved}, in "
        f"{tmp_path / 'run' / 'checkpoints'}: make room"
    )
    assert (what if saved else "no checkpoint was saved") in lines[0]


def test_no_room_for_its_directory(tmp_path, capsys, disk, optax_promotion):
    disk("config.json")
    status, lines = trained(tmp_path, capsys)
    assert (status, len(lines)) == (2, 1)
    assert (
        "cannot be written: No space left on device; choose another --out" in lines[0]
    )


def test_no_room_for_a_checkpoint_and_a_run_that_goes_on(
    tmp_path, capsys, monkeypatch, optax_promotion
):
    """orbax wraps the system's words; a resumed run ends as one left alone."""
    really, count = Checkpoints.save, []

    def save(self, step, *args, **kwargs):
        count.append(step)
        if step > 20:
            raise ValueError(
                "RESOURCE_EXHAUSTED: Failed to write: No space left on device "
                "[os_error_code='28'] [key=\"x\"]"
            )
        return really(self, step, *args, **kwargs)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    status, lines = trained(tmp_path, capsys)
    assert (status, len(lines)) == (2, 1)
    assert "the last checkpoint saved is that of step 20" in lines[0]
    monkeypatch.setattr(checkpoints.Checkpoints, "save", really)
    assert main(["train", "hello", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert main(["train", "hello", *QUICK, "--out", str(tmp_path / "alone")]) == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (
        tmp_path / "alone/metrics.jsonl"
    ).read_bytes()


def test_what_says_that_nothing_can_be_written():
    wrapped = RuntimeError("a checkpoint failed")
    wrapped.__cause__ = full()
    assert unwritable(wrapped) == unwritable(full()) == "No space left on device"
    assert (
        unwritable(PermissionError(errno.EACCES, "Permission denied"))
        == "Permission denied"
    )
    assert unwritable(OSError(errno.EROFS, "x")) == "Read-only file system"
    for other in (
        ValueError("No space left on device is what a file holds"),
        FileNotFoundError(2, "x"),
        MemoryError(),
        InputError("x"),
    ):
        assert unwritable(other) is None


def test_other_errors_are_not_hidden(tmp_path, monkeypatch, optax_promotion):
    monkeypatch.setattr(checkpoints.Checkpoints, "save", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "hello", *QUICK, "--out", str(tmp_path / "run")])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_no_room_for_the_output(tmp_path):
    with open("/dev/full", "w") as out:
        words = [sys.executable, "-m", "jaxrnn", "gradients", "--help"]
        done = subprocess.run(
            words, stdout=out, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk"
)
@pytest.mark.parametrize(
    ("size", "saved"), [("40k", "no checkpoint was saved"), ("140k", "that of step ")]
)
def test_a_small_disk(size, saved, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        words = [
            "train",
            "hello",
            "--checkpoint-seconds",
            "0",
            "--out",
            str(tmp_path / "run"),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "jaxrnn", *words],
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert saved in done.stderr
