"""The benchmark of scaling: what it counts, its arithmetic, and what it writes."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks.scaling import prediction, run
from benchmarks.scaling.counting import count

SPLIT = """
HloModule jit_f

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %gathered = f32[8,8]{1,0} all-gather(%x), dimensions={0}
  %y = f32[4,8]{1,0} dot(%x, %gathered), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], f32[4,8]) tuple(%i, %y)
}

%condition (state: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %loop = (s32[], f32[4,8]) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %total = (f32[4,8]{1,0}, bf16[3]{0}) all-reduce(%p, %q), to_apply=%sum
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%total), index=0
}
"""  # noqa: E501


def test_operations_of_loops_count_as_often_as_the_loop_runs():
    counts = count(SPLIT)
    assert counts.collectives == {"all-gather": 5, "all-reduce": 1}
    assert counts.looped == 5
    assert counts.bytes == 5 * 8 * 8 * 4 + 4 * 8 * 4 + 3 * 2
    assert counts.flops == 5 * 2 * 4 * 8 * 8
    unknown = SPLIT.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    with pytest.raises(ValueError, match="does not say how often it runs"):
        count(unknown)


def test_the_products_of_a_compiled_loop_are_counted():
    def unrolling(matrix, xs):
        return jax.lax.scan(lambda h, x: (h @ matrix + x,) * 2, xs[0], xs)[1]

    matrix, xs = jnp.ones((24, 24)), jnp.ones((7, 40, 24))
    text = jax.jit(unrolling).lower(matrix, xs).compile().as_text()
    counts = count(text)
    assert counts.flops == 2 * 7 * 40 * 24 * 24
    assert counts.collectives.total() == counts.bytes == 0


def test_the_arithmetic_of_the_prediction():
    row = {"cell": "LSTM", "flops": 8e12, "bytes": 5e9}
    found = {each["chips"]: each for each in prediction.batch_split(row)}
    assert found[1]["efficiency"] == 1
    seconds = 8e12 / (200e12 * 0.4)
    sent = 2 * 5e9 * 7 / 8 / 100e9 + 2 * 3 * 5e-6
    assert found[8]["efficiency"] == pytest.approx(seconds / (seconds + sent))
    assert found[8]["sending_ms"] == pytest.approx(1e3 * sent)
    gather, permute = (
        {r["chips"]: r for r in prediction.time_split("LRU", 8e13, 1e6, exchange)}
        for exchange in ("gather", "permute")
    )
    for chips in (2, 64, 4096):
        computing = 8e13 / chips / 80e12
        for found, sent in (
            (gather, 3e6 * (chips - 1)),
            (permute, 3e6 * math.log2(chips)),
        ):
            sending = sent / 100e9 + 2 * math.log2(chips) * 5e-6
            assert found[chips]["efficiency"] == pytest.approx(
                computing / (computing + sending)
            )
    assert permute[4096]["efficiency"] > gather[4096]["efficiency"]


def test_quick_writes_what_it_promises(tmp_path):
    assert run.main(["--quick", "--out", str(tmp_path / "scaling")]) == 0
    result = json.loads((tmp_path / "scaling.json").read_text("utf-8"))
    rows = [row for row in result["counted"] if row["split"] == "batch"]
    assert {row["devices"] for row in rows} == {1, 2}
    one, two = (
        {row["cell"]: row for row in rows if row["devices"] == n} for n in (1, 2)
    )
    assert not any(row["collectives"] for row in one.values())
    for cell, row in two.items():
        # nothing in the loop: the gradients and the loss, once
        assert row["looped"] == 0
        assert row["bytes"] == row["gradient_bytes"] + 4
        assert row["flops"] * 2 == one[cell]["flops"] > 0
        assert row["temp_bytes"] < one[cell]["temp_bytes"]
    assert {row["chips"] for row in result["predicted"]} == set(prediction.CHIPS)
    assert all(0 < row["efficiency"] <= 1 for row in result["predicted"])
    assert {row["cell"] for row in result["timed"]} == set(two)
    text = (tmp_path / "scaling.md").read_text("utf-8")
    assert "## Predicted, not measured" in text
