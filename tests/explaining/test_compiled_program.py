"""Launches, bytes and cycles are counted in the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.accelerator.compiled import step_of
from jaxrnn.explaining.compiled_program import CompiledProgram, Loop, kind_of

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
    assert CompiledProgram(PROGRAM.replace("KNOWN", KNOWN)).launches() == (11, 5)


def test_a_loop_of_unknown_length_is_refused():
    program = CompiledProgram(PROGRAM.replace(", KNOWN", ""))
    for count in (program.launches, program.cycles, program.bytes_moved, program.loops):
        with pytest.raises(ValueError, match="does not say how often it runs"):
            count()


def test_the_condition_of_a_loop_says_how_often_it_runs():
    """On TPUs nothing else does: a counter from 0 is compared with a constant."""
    text = PROGRAM.replace(", KNOWN", "").replace(
        "  ROOT %lt", "  %n = s32[] constant(7)\n  ROOT %lt"
    )
    assert CompiledProgram(text).launches() == (1 + 7 * 2, 7)


def test_one_iteration_of_each_loop_by_kind():
    (loop,) = CompiledProgram(PROGRAM.replace("KNOWN", KNOWN)).loops()
    kinds = {"arithmetic": 1, "beside": 1, "matmul": 1}
    assert loop == Loop(trips=5, alone=2, beside=1, kinds=kinds, cycles=0)
    assert step_of([loop, loop], 5) == "2 (+1), 2 (+1)"
    assert step_of([loop], 10) == "1 (+0.5)"
    assert kind_of("f32[4]{0} copy(%x)") == "copy"
    assert kind_of("f32[4]{0} bitcast(%x)") == ""


def test_cycles_are_those_of_operations_that_nothing_overlaps():
    cycles = ', backend_config={"estimated_cycles":"N"}'
    text = (
        PROGRAM.replace("KNOWN", KNOWN)
        .replace("copy(%x.1)", "copy(%x.1)" + cycles.replace("N", "100"))
        .replace(
            "fusion(%x), kind=kLoop, calls=%fused",
            "fusion(%x), kind=kLoop, calls=%fused" + cycles.replace("N", "30"),
        )
        .replace(
            "fusion-start(%a), kind=kLoop, calls=%fused",
            "fusion-start(%a), kind=kLoop, calls=%fused" + cycles.replace("N", "9999"),
        )
    )
    program = CompiledProgram(text)
    assert program.cycles() == 100 + 5 * 30
    assert program.loops()[0].cycles == 30


def test_bytes_are_those_that_operations_read_and_write():
    """Four floats are copied: 32 bytes. Each of 5 iterations has two fusions of one
    operand, 32 bytes each, and a product of two, 48.
    """
    program = CompiledProgram(PROGRAM.replace("KNOWN", KNOWN))
    assert program.bytes_moved() == 32 + 5 * (32 + 32 + 48)


ROWS = """HloModule rows

%row (p.0: f32[100,8], p.1: s32[]) -> f32[8] {
  %p.0 = f32[100,8]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %all = f32[100,8]{1,0} bitcast(%p.0)
  %zero = s32[] constant(0)
  %one = f32[1,8]{1,0} dynamic-slice(%all, %p.1, %zero), dynamic_slice_sizes={1,8}
  ROOT %flat = f32[8]{0} bitcast(%one)
}

%place (q.0: f32[100,8], q.1: f32[8], q.2: s32[]) -> f32[100,8] {
  %q.0 = f32[100,8]{1,0} parameter(0)
  %q.1 = f32[8]{0} parameter(1)
  %q.2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %new = f32[1,8]{1,0} bitcast(%q.1)
  ROOT %put = f32[100,8]{1,0} dynamic-update-slice(%q.0, %new, %q.2, %zero.1)
}

ENTRY %main (a: f32[100,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %taken = f32[8]{0} fusion(%a, %i), kind=kLoop, calls=%row
  ROOT %put.1 = f32[100,8]{1,0} fusion(%a, %taken, %i), kind=kLoop, calls=%place
}
"""


def test_a_row_that_is_read_or_overwritten_counts_as_a_row():
    """A row of 32 bytes is read, and written to a result, each beside an index of 4;
    then it is read again, and put into its place.
    """
    assert CompiledProgram(ROWS).bytes_moved() == (32 + 4 + 32) + (32 + 4 + 32)


def test_a_row_that_a_fusion_within_a_fusion_reads_counts_as_a_row():
    outer = """%outer (o.0: f32[100,8], o.1: s32[]) -> f32[8] {
  %o.0 = f32[100,8]{1,0} parameter(0)
  %o.1 = s32[] parameter(1)
  %within = f32[8]{0} fusion(%o.0, %o.1), kind=kLoop, calls=%row
  ROOT %double = f32[8]{0} add(%within, %within)
}

ENTRY"""
    text = ROWS.replace("calls=%row", "calls=%outer").replace("ENTRY", outer)
    assert "calls=%outer" in text.partition("ENTRY")[2]
    assert CompiledProgram(text).bytes_moved() == CompiledProgram(ROWS).bytes_moved()


def test_a_real_program_is_read():
    """A CPU's compiler says how often a loop runs, and the bytes grow with it."""

    def moved(steps):
        def loop(x):
            return jax.lax.scan(lambda c, _: (jnp.sin(c @ c), c), x, length=steps)

        text = jax.jit(loop).lower(jnp.ones((8, 8))).compile().as_text()
        program = CompiledProgram(text)
        return program.bytes_moved(), [found.trips for found in program.loops()]

    (few, trips), (many, more_trips) = moved(100), moved(200)
    assert trips == [100]
    assert more_trips == [200]
    assert 1.8 * few < many < 2.2 * few
