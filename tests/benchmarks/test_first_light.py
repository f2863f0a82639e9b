"""`benchmarks.accelerator.first_light`: its plan, what becomes of parts that fail, hang
or find no time, and how it goes on. No accelerator is needed, and no time is judged.
"""

import json
import sys
import time

import jax
import pytest

import jaxrnn
from benchmarks.accelerator import first_light, parts
from benchmarks.accelerator.first_light import PARTS
from benchmarks.harness import processes
from benchmarks.harness.processes import DONE, FAILED, LEFT, OVER

SAYS = f'print(\'{processes.MARK}\' + \'{{"rows": [{{"what": "kind", "value": 3}}]}}\')'


def python(code):
    return [sys.executable, "-c", code]


@pytest.fixture
def commands(monkeypatch):
    """What the parts run, by name; all that is not set says that it is done."""
    chosen = {}
    monkeypatch.setattr(
        first_light.Part,
        "words",
        lambda self, seconds, quick, out: chosen.get(self.name, python(SAYS)),
    )
    return chosen


def started(path, *words):
    status = first_light.main(["--out", str(path), *words])
    result = json.loads(path.with_name(path.name + ".json").read_text("utf-8"))
    return status, {part["part"]: part for part in result["parts"]}


def test_the_plan_fits_ten_minutes_and_prints_what_would_run(capsys):
    plan = first_light.planned(list(PARTS), 600, quick=False)
    assert [part for part, _ in plan] == list(PARTS)
    assert all(limit == part.seconds for part, limit in plan)
    assert sum(limit for _, limit in plan) <= 600
    assert first_light.main(["--plan"]) == 0
    printed = capsys.readouterr().out
    for part in PARTS:
        assert f"| {part.name} |" in printed
    assert "pytest -q -m gpu" in printed


def test_what_too_little_time_leaves_out_is_said(commands, tmp_path, capsys):
    assert first_light.main(["--plan", "--seconds", "60"]) == 0
    printed = capsys.readouterr().out
    assert "left out: needs 40 s" in printed
    plan = first_light.planned(list(PARTS), 60, quick=False)
    assert [limit for _, limit in plan][:3] == [45, 0, 0]
    _, found = started(tmp_path / "few", "--seconds", "20")
    assert found["device"]["status"] == DONE
    assert found["speed"]["status"] == LEFT
    assert found["speed"]["output"] == "not measured: the 20 seconds given were over"


def test_a_part_that_fails_or_hangs_takes_no_other_along(
    commands, tmp_path, monkeypatch
):
    commands["correct"] = python("print('a word'); raise SystemExit(7)")
    commands["memory"] = python(
        "import subprocess, sys; print('begun', flush=True);"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    )
    limited = [
        first_light.dataclasses.replace(p, seconds=2, least=0)
        if p.name == "memory"
        else p
        for p in PARTS
    ]
    monkeypatch.setattr(first_light, "PARTS", tuple(limited))
    began = time.monotonic()
    status, found = started(tmp_path / "run")
    assert time.monotonic() - began < 100
    assert status == 1
    assert found["correct"]["status"] == FAILED
    assert found["correct"]["output"] == "a word\n\nended with status 7"
    assert found["memory"]["status"] == OVER
    assert "begun" in found["memory"]["output"]
    others = [p for name, p in found.items() if name not in ("correct", "memory")]
    assert all(p["status"] == DONE and p["rows"][0]["value"] == 3 for p in others)
    page = (tmp_path / "run.md").read_text("utf-8")
    assert "ended with status 7" in page
    assert "| kind | 3 |" in page


def test_a_second_call_keeps_what_is_done_and_tries_the_rest(commands, tmp_path):
    commands["correct"] = python("raise SystemExit(1)")
    status, before = started(tmp_path / "run")
    assert status == 1
    del commands["correct"]
    commands["device"] = python("raise SystemExit('was run again')")
    status, after = started(tmp_path / "run")
    assert status == 0
    assert after["device"] == before["device"]
    assert after["correct"]["status"] == DONE
    status, _ = started(tmp_path / "run", "--again", "--parts", "device")
    assert status == 1


def test_no_gpu_test_is_no_failure():
    words = [sys.executable, "-c", "raise SystemExit(5)"]
    assert processes.run(words, 60, left_out=5)[0] == LEFT
    assert processes.run(words, 60)[0] == FAILED


def test_unknown_parts_and_nothing_to_do_are_one_line(capsys):
    with pytest.raises(SystemExit):
        first_light.main(["--parts", "lights"])
    assert "device, correct, tests" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        first_light.main(["--quick", "--parts", "tests"])
    assert "they need an accelerator" in capsys.readouterr().err


def test_every_engine_is_held_against_float64(monkeypatch):
    """A wrong engine shows, and one that refuses has its reason."""

    class Wrong(jaxrnn.Scan):
        def run(self, cell, params, carry, inputs, *rest, **options):
            last, ys, *more = super().run(cell, params, carry, inputs, *rest, **options)
            return last, jax.tree.map(lambda y: 1.01 * y, ys), *more

    engines = {
        "lax.scan": jaxrnn.Scan(save="everything"),
        "wrong": Wrong(),
        "CuDNN": jaxrnn.CuDNN(),
    }
    monkeypatch.setattr(parts, "engines_for", lambda cell: engines)
    rows = {
        row["engine"]: row for row in parts.errors(jaxrnn.GRU(4), 2, 5, 4, "float32")
    }
    assert rows["lax.scan"]["values"] < 1e-6
    assert rows["lax.scan"]["gradients"] < 1e-5
    assert 5e-3 < rows["wrong"]["values"] < 2e-2
    assert rows["CuDNN"]["values"] is None
    assert "CuDNN" in rows["CuDNN"]["reason"]


@pytest.mark.slow
def test_quick_runs_on_a_cpu(tmp_path):
    status, found = started(tmp_path / "quick", "--quick")
    assert status == 0
    assert all(part["status"] == DONE for part in found.values())
    assert {p.name for p in PARTS if p.quick} == set(found)
    assert found["device"]["machine"]["backend"] == jax.default_backend()
    checked = [row for row in found["correct"]["rows"] if row["dtype"] == "float32"]
    assert all(row["values"] < 1e-5 for row in checked if not row["reason"])
