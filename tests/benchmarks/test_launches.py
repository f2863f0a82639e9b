"""Launches are counted in the text of a compiled program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accelerator.compiled import kind_of, loops, step_of
from benchmarks.accelerator.launches import launches

PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %add.1 = f32[4]{0} add(%p, %p)
}

%body (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%arg), index=1
  %a = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  %s = ((f32[4]{0}), f32[4]{0}) fusion-start(%a), kind=kLoop, calls=%fused
  %d = f32[4]{0} fusion-done(%s)
  %dot = f32[4]{0} custom-call(%a, %d), custom_call_target="__cublas$gemm"
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %dot)
}

%condition (arg.1: (s32[], f32[4])) -> pred[] {
  %arg.1 = (s32[], f32[4]{0}) parameter(0)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0)
  %copy.1 = f32[4]{0} copy(%x.1)
  %w = (s32[], f32[4]{0}) while(%init), condition=%condition, body=%body, KNOWN
  ROOT %r = f32[4]{0} get-tuple-element(%w), index=1
}
"""
KNOWN = 'backend_config={"known_trip_count":{"n":"5"}}'


def test_loops_and_overlapped_launches():
    assert launches(PROGRAM.replace("KNOWN", KNOWN)) == (1 + 5 * 2, 5)


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="does not say how often it runs"):
        launches(PROGRAM.replace(", KNOWN", ""))


def test_one_iteration_of_each_loop_by_kind():
    (loop,) = loops(PROGRAM.replace("KNOWN", KNOWN))
    assert loop == {
        "trips": 5,
        "alone": 2,
        "beside": 1,
        "kinds": {"arithmetic": 1, "beside": 1, "matmul": 1},
    }
    assert step_of([loop, loop]) == "2 (+1), 2 (+1)"
    assert loops(PROGRAM.replace(", KNOWN", ""))[0]["trips"] is None
    assert kind_of("f32[4]{0} copy(%x)") == "copy"
    assert kind_of("f32[4]{0} bitcast(%x)") == ""


def test_steps_have_as_few_kernels_as_they_are_said_to_have(tmp_path):
    """Where the compilers are: an LSTM and a cell of a user's own launch at most 3
    kernels one after another a step forwards, while recording too, and 5 backwards.
    """
    root, name = Path(__file__).parents[2], tmp_path / "steps"
    words = ["-m", "benchmarks.accelerator.compiled", "--cells", "a user's LSTM"]
    done = subprocess.run(
        [sys.executable, *words, "--out", str(name)],
        cwd=root,
        env=os.environ | {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(name.with_suffix(".json").read_text("utf-8"))["rows"]
    ours = {row["mode"]: row["loops"] for row in rows if "jaxrnn" in row["entry"]}
    assert [loop["alone"] for loop in ours["forward"]] == [3]
    assert [loop["alone"] for loop in ours["gradient"]] == [3, 5]
