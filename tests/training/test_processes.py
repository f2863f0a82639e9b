"""Several processes train one run: they agree, files are written by the first, and a
run that was killed goes on, on any number of processes.

Real processes run on this machine, connected through 127.0.0.1.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from quick import kept_programs
from several import ROOT, Processes, environment, free_port

from jaxrnn.cli import main
from jaxrnn.tasks import train
from jaxrnn.training import InputError, processes
from jaxrnn.training.checksum import split_checksum, weighted_sum
from jaxrnn.training.devices import choose_devices

# This process keeps the device it has now, also where it calls the command line.
jax.devices()
SMALL = {"hidden": 8, "batch": 8, "tbptt": 8, "embed": 4, "dropout": 0.2}
BUDGET = {"steps": 40, "report_every": 4, "evaluate_every": 20}
BUDGET["checkpoint_seconds"] = 0
TEXT = "In the beginning there was a loop, and it ran. " * 60


def flags(**values):
    return [
        word
        for name, value in values.items()
        for word in ("--" + name.replace("_", "-"), str(value))
    ]


def command(out, *words):
    return [sys.executable, "-m", "jaxrnn", "train", "charlm", "--out", out, *words]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def words(text):
    return [*flags(data=text, **SMALL), *flags(**BUDGET)]


def metrics(run):
    lines = (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def wait_for(condition, all_of, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert all_of.are_running(), [p.communicate() for p in all_of.all]
        time.sleep(0.01)


def has_lines(run, count):
    file = pathlib.Path(run) / "metrics.jsonl"
    return lambda: file.exists() and file.read_bytes().count(b"\n") >= count


def single(out, *words, devices=1):
    done = subprocess.run(
        list(map(str, command(out, *words))),
        capture_output=True,
        text=True,
        timeout=150,
        env=environment(devices),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_close(run, other):
    for a, b in zip(metrics(run), metrics(other), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"sample"}:
            assert b[name] == pytest.approx(a[name], rel=1e-5), name


# -- a run of two processes ------------------------------------------------------------


def killed_and_resumed(folder, words, seed):
    """A run whose two processes were killed at a random time, and started again."""
    run, kept = folder / "killed", kept_programs(folder / "programs")
    with Processes(command(run, *words), **kept) as both:
        wait_for(has_lines(run, 2), both)
        time.sleep(random.Random(seed).random())
        both.kill(0, 1)
    with Processes(command(run, "--resume"), **kept) as both:
        (status, out, err), other = both.ends()
    assert (status, other[0]) == (0, 0), err + other[2]
    return run, out, other


def test_two_killed_processes_go_on_and_give_the_numbers_of_one(
    tmp_path, words, optax_promotion, text
):
    run, out, other = killed_and_resumed(tmp_path, words, 0)
    assert "resumed at step" in out
    assert "the 2 processes of the last start did not end in order" in out
    assert other[1] == ""  # the first one speaks
    assert other[2] == ""  # nor do libraries
    train(
        "charlm",
        {**SMALL, "data": (str(text),), "devices": 1},
        BUDGET,
        out=tmp_path / "one",
    )
    assert_close(run, tmp_path / "one")
    assert not (run / "processes.json").exists()
    assert not (run / "lock").exists()
    assert main(["predict", str(run), "a loop"]) == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_run_ends_with_the_bytes_of_one_left_alone(tmp_path, words, seed):
    with Processes(command(tmp_path / "alone", *words)) as both:
        assert [status for status, *_ in both.ends()] == [0, 0]
    run, _, _ = killed_and_resumed(tmp_path, words, seed)
    expected = (tmp_path / "alone/metrics.jsonl").read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == expected
    # Two devices of one process are the same program.
    single(tmp_path / "devices", *words, "--devices", "2", devices=2)
    assert (tmp_path / "devices/metrics.jsonl").read_bytes() == expected


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (1, 2)])
def test_a_run_goes_on_on_another_number(tmp_path, words, before, after):
    alone, run = tmp_path / "alone", tmp_path / "run"
    single(alone, *words)
    with Processes(command(run, *words), before) as all_of:
        wait_for(has_lines(run, 4), all_of)
        all_of.kill(*range(before))
    with Processes(command(run, "--resume"), after) as all_of:
        ends = all_of.ends()
    assert [status for status, *_ in ends] == [0] * after, ends
    note = f"devices: {after}, where the run was started with {before}; the numbers"
    assert note in ends[0][1]
    assert_close(run, alone)


def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path, words):
    run = tmp_path / "run"
    with Processes(command(run, *words)) as both:
        wait_for(has_lines(run, 2), both)
        both.all[1].send_signal(signal.SIGTERM)
        first, other = both.ends()
    assert (first[0], other[0]) == (130, 130), first + other
    assert "continue with" in first[2]
    assert "saved in" in first[1]
    with Processes(command(run, "--resume")) as both:
        assert [status for status, *_ in both.ends()] == [0, 0]
    with Processes(command(tmp_path / "alone", *words)) as both:
        both.ends()
    assert (run / "metrics.jsonl").read_bytes() == (
        tmp_path / "alone/metrics.jsonl"
    ).read_bytes()


@pytest.mark.parametrize("lost", [0, 1])
def test_when_one_process_is_killed_the_other_ends(tmp_path, words, lost):
    run, heartbeat = tmp_path / "run", 8
    more = flags(heartbeat_seconds=heartbeat, steps=100000)
    with Processes(command(run, *words[:-8], *more)) as both:
        wait_for(has_lines(run, 1), both)
        began = time.monotonic()
        both.kill(lost)
        status, _, err = both.ends()[1 - lost]
    assert time.monotonic() - began < heartbeat + 5
    assert status not in (0, None)
    if lost == 1:
        assert status == 3, err
        assert "process 1 was lost: it has given no sign of life" in err
    before = (run / "metrics.jsonl").stat().st_ino
    with Processes(command(run, "--resume")) as both:  # which writes the records anew
        wait_for(lambda: (run / "metrics.jsonl").stat().st_ino != before, both)
        both.all[1].send_signal(signal.SIGTERM)
        out = both.ends()[0][1]
    host = os.uname().nodename
    assert (
        f"process 1 of 2, on {host}, was lost" if lost else "not end in order"
    ) in out


CLOCKS = """
import importlib, sys, time
process = int(sys.argv[sys.argv.index("--process") + 1])
real, begin = time.monotonic, time.monotonic()
speed = [1, 5][process]
time.monotonic = lambda: begin + speed * (real() - begin)
fit = importlib.import_module("jaxrnn.training.fit")
inner = fit._Loop.one_step
def one_step(self, share):
    print("share", share, file=sys.stderr)
    inner(self, share)
fit._Loop.one_step = one_step
from jaxrnn.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_clocks_that_differ_give_the_same_learning_rates(tmp_path, text):
    words = [*flags(data=text, **SMALL), "--seconds", "6"]
    program = [sys.executable, "-c", CLOCKS, "train", "charlm", "--out", tmp_path / "r"]
    with Processes([*program, *words]) as both:
        ends = both.ends()
    assert [status for status, *_ in ends] == [0, 0], ends
    shares = [
        [line for line in err.splitlines() if line.startswith("share")]
        for _, _, err in ends
    ]
    assert len(shares[0]) > 5
    assert shares[0] == shares[1]


@pytest.mark.parametrize("task", ["adding", "sentiment"])
def test_other_tasks_split_their_batches(tmp_path, task):
    """One draws its batches, the other reads them; the second keeps its best scores."""
    rows = [f"{'good fine' if i % 2 else 'bad'} day {i % 7},{i % 2}" for i in range(80)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    more = flags(hidden=6, batch=4, steps=8, report_every=2, evaluate_every=4)
    more += (
        flags(length=10)
        if task == "adding"
        else flags(data=tmp_path / "rows.csv", dropout=0.3)
    )
    program = [sys.executable, "-m", "jaxrnn", "train", task, *more, "--out"]
    done = subprocess.run(
        [*program, tmp_path / "one"],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    with Processes([*program, tmp_path / "two"]) as both:
        ends = both.ends()
    assert [status for status, *_ in ends] == [0, 0], ends
    assert_close(tmp_path / "two", tmp_path / "one")


def slurm(process, port):
    """The variables of a task that Slurm has started, two of them on this machine."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
        "JAX_COORDINATOR_PORT": str(port),
    }


def test_processes_that_slurm_has_started(tmp_path, words):
    """By its variables alone, as JAX reads them."""
    port = free_port()
    both = [
        subprocess.Popen(
            list(map(str, command(tmp_path / "run", *words))),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**slurm(i, port)),
        )
        for i in range(2)
    ]
    ends = [process.communicate(timeout=150) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["processes"], result["devices"]) == (2, 2)


LOOP = """
import sys
import jax
index, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
exec(open(sys.argv[3]).read())
"""


def test_a_loop_of_ones_own(tmp_path):
    """The code of docs/howto/many_processes.md, by two processes and by one."""
    page = (ROOT / "docs/howto/many_processes.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    (tmp_path / "code.py").write_text(code)
    port, found = free_port(), []
    both = [
        subprocess.Popen(
            [sys.executable, "-c", LOOP, str(i), str(port), str(tmp_path / "code.py")],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=tmp_path,
        )
        for i in range(2)
    ]
    for process in both:
        found.append(process.communicate(timeout=150)[0].splitlines()[-1])
    shown = re.findall(r"```text\n(.*?)\n```", page, re.DOTALL)[-1].splitlines()[-1]
    assert found == [shown, shown]


# -- what does not fit -----------------------------------------------------------------


def one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("jaxrnn: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize("process", [0, 1])
def test_a_coordinator_that_cannot_be_reached(tmp_path, words, process):
    more = ["--coordinator", f"127.0.0.1:{free_port()}", "--start-seconds", "2"]
    more += flags(processes=2, process=process)
    began = time.monotonic()
    done = subprocess.run(
        list(map(str, command(tmp_path / "run", *words, *more))),
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(),
    )
    assert time.monotonic() - began < 60
    assert done.returncode == 2
    assert "within 2 seconds (--start-seconds)" in one_line(done.stderr)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_one_process_does_not_see(tmp_path, words):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with Processes(command("run", *words), folders=folders) as both:
        ends = both.ends()
    for status, _, err in ends:
        assert status == 2
        assert "does not see it: --out must be on a file system" in one_line(err)
    assert not list((tmp_path / "b").iterdir())


def test_processes_with_other_data_or_another_task(tmp_path, words):
    (tmp_path / "other.txt").write_text(TEXT + "And again.")
    each = [[], flags(data=tmp_path / "other.txt")]
    with Processes(command(tmp_path / "run", *words), each=each) as both:
        ends = both.ends()
    for status, _, err in ends:
        assert status == 2
        assert "process 1 has other options or other data" in one_line(err)
    assert not (tmp_path / "run").exists()


def test_an_error_in_one_process_ends_all(tmp_path, words):
    each = [[], flags(data=tmp_path / "nothing.txt")]
    with Processes(command(tmp_path / "run", *words), each=each) as both:
        ends = both.ends()
    for status, _, err in ends:
        assert status == 2
        assert "process 1: " in one_line(err)
        assert "nothing.txt cannot be read" in err


# -- in this process -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "flagged", "expected"),
    [
        ({"SLURM_NTASKS": "2"}, [], "Slurm has 2 tasks"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, [], "4"),
        ({"PMI_SIZE": "3"}, [], "MPI has 3 tasks"),
        ({}, flags(processes=2, process=0), "belong together"),
        ({}, flags(coordinator="a:1"), "belong together"),
        ({}, flags(coordinator="host", processes=2, process=0), "must be HOST:PORT"),
        ({}, flags(coordinator="a:1", processes=2, process=2), "one of 0 to 1"),
        (
            {},
            flags(coordinator="nowhere.invalid:1", processes=2, process=1),
            "the host name nowhere.invalid cannot be resolved",
        ),
    ],
)
def test_more_than_one_task_without_a_start(
    tmp_path, words, capsys, monkeypatch, variables, flagged, expected
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", "charlm", *map(str, words), *out, *flagged]) == 2
    assert expected in one_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_one_process_trains_alone_under_a_launcher(
    tmp_path, words, monkeypatch, optax_promotion
):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    short = [*map(str, words), "--steps", "4", "--processes", "1"]
    assert main(["train", "charlm", *short, "--out", str(tmp_path / "run")]) == 0


def test_what_is_chosen_for_several_processes(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InputError, match="--devices 3, but 2 processes have 2 devices"):
        choose_devices(3, 6, 8)
    with pytest.raises(InputError, match="2 devices of 2 processes do not divide"):
        choose_devices(0, 7, 8)
    assert [choose_devices(n, 4, 8) for n in (0, 2)] == [2, 2]


def test_a_checksum_does_not_depend_on_the_parts():
    generator = np.random.default_rng(0)
    arrays = {
        "floats": generator.normal(size=(6, 5, 4)).astype(np.float32),
        "complex": generator.normal(size=(6, 4)) * (1 + 2j),
        "flags": generator.random((6, 3)) < 0.5,
        "scalar": np.int32(7),
    }
    whole = split_checksum(arrays)
    for name in ("floats", "complex", "flags"):
        array = arrays[name]
        parts = [(slice(0, 2),), (slice(2, 6),)]
        for axis in (0, 1):
            index = [
                tuple(part if k == axis else slice(None) for k in range(array.ndim))
                for (part,) in parts
            ]
            every = (slice(None),) * array.ndim
            total = sum(weighted_sum(array[i], i, array.shape) for i in index)
            assert total % 2**64 == weighted_sum(array, every, array.shape)
        changed = array.copy()
        changed[1, 2] = ~changed[1, 2] if array.dtype == bool else changed[1, 2] + 1
        assert split_checksum({**arrays, name: changed}) != whole
        swapped = array.copy()
        swapped[[0, 1]] = array[[1, 0]]
        assert split_checksum({**arrays, name: swapped}) != whole
