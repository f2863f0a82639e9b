"""Launches are counted in the text of a compiled program."""

import pytest

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
