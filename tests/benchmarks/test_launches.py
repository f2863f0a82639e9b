"""Counts of compiled programs, where the makers' compilers are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def rows_of(tmp_path, *words, module="compiled"):
    """The rows of the benchmark, or a skipped test where a compiler is missing."""
    root, name = Path(__file__).parents[2], tmp_path / "steps"
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"benchmarks.accelerator.{module}"),
            *(*words, "--out", str(name)),
        ],
        cwd=root,
        env=os.environ | {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 2 and "nothing was compiled" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(name.with_suffix(".json").read_text("utf-8"))["rows"]


def test_steps_have_as_few_kernels_as_they_are_said_to_have(tmp_path):
    """Where the compilers are: what a cell of a user's own launches, one after another
    (beside them), in a step forwards, while recording too, and backwards.
    """
    rows = rows_of(tmp_path, "--cells", "a user's LSTM")
    ours = {row["mode"]: row["step"] for row in rows if "jaxrnn" in row["entry"]}
    assert ours["forward"].split()[0] == "2.5"
    assert [part.split()[0] for part in ours["gradient"].split(", ")] == ["2.5", "3.5"]


def test_tpus_are_expected_to_take_fewer_cycles_than_by_other_loops(tmp_path):
    """At most .7 of flax's for an LSTM, and 1.1 of `lax.scan`'s for an Elman network;
    with the rows in a worse order they were .79 and 1.6.
    """
    rows = rows_of(tmp_path, "--chips", "v5e", "--cells", "LSTM", "Elman")
    cycles = {
        (row["cell"], row["entry"]): row["cycles_a_step"]
        for row in rows
        if row["mode"] == "gradient"
    }
    ours = "jaxrnn default"
    assert cycles["LSTM", ours] <= 0.7 * cycles["LSTM", "flax"]
    assert cycles["Elman", ours] <= 1.1 * cycles["Elman", "lax.scan"]


def test_a_loop_over_a_cluster_of_blocks_compiles(tmp_path):
    """Where the compilers are: the prototype, within the memory that it says."""
    rows = rows_of(tmp_path, "--quick", module="cluster")
    assert [row["compiled"] for row in rows] == [True]
    assert 0 < rows[0]["shared_bytes"] <= rows[0]["needed_bytes"] < 232_448
    assert rows[0]["spilled_bytes"] == 0
